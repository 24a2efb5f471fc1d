"""Tasks by name. A task is a function that joins a robot to observations, actions, rewards and a goal.

    @task("so101-reach", robot="so101")
    def reach(robot: RobotSpec) -> PolicySpec: ...
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import gymnasium
import msgspec

from robot_rl.spec import PolicySpec, RobotSpec, SpecError, load_robot, mjcf_file

TaskFunction = Callable[[RobotSpec], PolicySpec]
_TASKS: dict[str, tuple[TaskFunction, str]] = {}


def task(name: str, robot: str) -> Callable[[TaskFunction], TaskFunction]:
    """Register a task under a name, with the robot that it runs on unless another is given."""
    def register(function: TaskFunction) -> TaskFunction:
        if name in _TASKS:
            raise ValueError(f"task '{name}' is registered twice")
        _TASKS[name] = (function, robot)
        gymnasium.register(id=f"robot_rl/{name}-v0", entry_point="sim:make", kwargs={"name": name})
        return function
    return register


def tasks() -> list[str]:
    """Names of the robot tasks."""
    return sorted(_TASKS)


def task_spec(name: str, robot: str | None = None) -> tuple[PolicySpec, str]:
    """The contract of a robot task, and the robot (name or path) that it runs on. Raises SpecError."""
    if name not in tasks():
        close = difflib.get_close_matches(name, _TASKS, 1)
        raise SpecError(f"task '{name}' is unknown{f' (did you mean {close[0]}?)' if close else ''}; there are "
                        f"{', '.join(tasks())}, dmc:<domain>-<task>, "
                        "dmc-pixels:<domain>-<task> and gym:<id>")
    function, default = _TASKS[name]
    return function(load_robot(robot or default)), robot or default


def make(name: str, robot: str | None = None, action_repeat: int = 1, **options: Any) -> gymnasium.Env:
    """An environment by task name: one of ours, `dmc:<domain>-<task>` or `gym:<id>`. Raises SpecError.

    A task of ours decides 1 / `action_repeat` times as often as it says, and so does its policy on the robot.
    """
    if ":" in name:
        from sim import suite
        if robot:
            raise SpecError(f"--robot {robot}: task {name} brings its own robot")
        if options:
            key, value = next(iter(options.items()))
            raise SpecError(f"--{key} {value}: task {name} has no robot with topics that it could apply to")
        return suite.make(name, action_repeat=action_repeat)
    from sim.env import RobotEnv
    spec, where = task_spec(name, robot)
    if action_repeat < 1:
        raise SpecError(f"--action-repeat {action_repeat}: it is at least 1")
    spec = msgspec.structs.replace(spec, rate_hz=spec.rate_hz / action_repeat)
    return RobotEnv(spec, str(mjcf_file(where)), **options)


def env_spec(env: gymnasium.Env, name: str) -> PolicySpec:
    """The contract of an environment: ours carry one; for suites it says the sizes only."""
    contract = getattr(env.unwrapped, "contract", None)
    if isinstance(contract, PolicySpec):
        return contract
    rate = getattr(env.unwrapped, "rate_hz", None) or 1.0
    limit = getattr(env.unwrapped, "max_steps", None) or 0
    seen = env.observation_space
    size, = (seen["state"] if isinstance(seen, gymnasium.spaces.Dict) else seen).shape or (0,)
    actions, = env.action_space.shape or (0,)
    return PolicySpec(task=name, rate_hz=rate, time_limit_s=limit / rate, observation_size=size, action_size=actions,
                      vision=getattr(env.unwrapped, "vision", None))


from sim import lift, reach, swingup, walk  # noqa: E402, F401  (each task family registers itself)
