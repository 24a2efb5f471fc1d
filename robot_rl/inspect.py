"""Look inside a policy, a run, a robot, a bag or a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robot_rl.spec import PolicySpec, SpecError, load_robot, policies, policy_file


def inspect(what: str, recipe: str | None) -> dict[str, Any]:
    """Figures of the thing, found by what it is. Raises SpecError when it is nothing known."""
    if recipe is not None:
        from robot_rl.learn import recipes
        if recipe == "list":
            return {name: one.about for name, one in recipes.RECIPES.items()}
        return {"recipe": recipe} | recipes.options(recipe)
    path = Path(what)
    if path.suffix == ".onnx" or (what in policies() and not path.exists()):
        from robot_rl.policy import Policy
        policy = Policy(policy_file(what))
        return {"policy": what, "sha256": policy.sha256} | _contract(policy.spec)
    if (path / "run.json").exists():
        from robot_rl.log import read_lines
        from robot_rl.run import Run
        lines = read_lines(path / "metrics.jsonl")
        return {"run": what} | _contract(Run(path).contract) | {"last": lines[-1] if lines else {}}
    if path.is_dir() and any(path.glob("*.mcap")):
        from robot_rl import bag_info
        return bag_info.lines(bag_info.describe(path))
    if not what:
        raise SpecError("inspect: name a policy file, a run folder, a robot, a bag folder, or --recipe NAME")
    try:
        robot = load_robot(what)
    except SpecError as error:
        if path.suffix in (".yaml", ".yml"):
            raise
        raise SpecError(f"{error}; policies: {', '.join(policies())}; nor is it a run or a bag folder") from error
    joints = {f"joint {j.name}": f"[{j.lower}, {j.upper}] rad, {j.velocity} rad/s, {j.effort} N·m"
              for j in robot.joints}
    sensors = {f"sensor {s.name}": f"{s.type} on {s.topic}" for s in robot.sensors}
    sensors |= {f"camera {c.name}": f"{c.width}x{c.height} at {c.rate_hz:g} Hz on {c.image_topic}"
                for c in robot.cameras}
    objects = {f"object {o.object}": f"from {o.lower} to {o.upper} (radius m, azimuth rad, height m), yaw {o.yaw} rad"
               for o in robot.objects}
    commands = {f"command {to.topic}": f"{robot.command.interface} of {', '.join(to.joints)} as {to.type}"
                for to in robot.command_topics}
    return {"robot": robot.robot} | commands | {"stop": robot.stop} | joints | sensors | objects


def _contract(spec: PolicySpec) -> dict[str, Any]:
    return {
        "task": spec.task, "robot": spec.robot.robot if spec.robot else None, "rate_hz": spec.rate_hz,
        "time_limit_s": spec.time_limit_s, "observation_size": spec.observation_size,
        "observations": [f"{t.name}[{t.size}] {t.unit}".strip() for t in spec.observations],
        "vision": f"{spec.vision.shape} of {', '.join(spec.vision.cameras)}" if spec.vision else None,
        "action_size": spec.action_size, "action": spec.action.kind if spec.action else None,
        "trained": spec.trained,
    }
