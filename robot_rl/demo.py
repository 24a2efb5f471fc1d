"""The main job with one command, through the same commands that a user types, between real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot_rl.log import write_atomic

TASK, ROBOT = "so101-reach", "so101"
GAP = "payload=0.3,friction=0.1"
"""The reality gap of the demo's robot, chosen on other seeds than the demo's."""


LEARNER = ("--recipe", "sac", "--set", "hidden=[128,128]", "--set", "batch=128", "--threads", 1)
TUNER = ("--repeats", 6, "--warm-updates", 2_000, "--set", "target_entropy=-10", "--threads", 1)
_said: list[str] = []  # the commands run so far, as typed


@dataclass(frozen=True)
class Sizes:
    """How long each part is."""

    steps: int = 40_000
    simulated: int = 200
    episodes: int = 30
    finetune: int = 80
    minutes: float = 3.9


QUICK = Sizes(steps=3_000, simulated=10, episodes=3, finetune=3, minutes=0.5)


def run_demo(out: Path, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Train, export, run on the gapped robot, fine-tune there, run again on the same goals; a table and a report."""
    sizes, began = QUICK if quick else Sizes(), time.monotonic()
    out = _folder(out)
    run, tuned, policy = out / "train", out / "finetuned", out / "policy.onnx"
    _say(1, 6, "train in simulation")
    if (run / "checkpoint.pt").exists():
        _robot_rl("train", "--resume", run)
    else:
        _robot_rl("train", TASK, "--out", run, *LEARNER, "--steps", sizes.steps, "--seed", seed)
    _say(2, 6, "export, and evaluate in simulation")
    _robot_rl("export", run, "-o", policy)
    simulated = _robot_rl("eval", policy, "--episodes", sizes.simulated, "--seed", 1_000 + seed)
    with robot_process(seed) as where:
        _say(3, 6, f"run {sizes.episodes} episodes on the robot, whose gap is {GAP}")
        before = _deploy(policy, out / "before", sizes.episodes, seed, where)
        _say(4, 6, "fine-tune on the robot")
        tuning = _robot_rl("finetune", run, "--data", out / "before", "--robot", ROBOT, "--episodes", sizes.finetune,
                           "--minutes", sizes.minutes, "--out", tuned, "--seed", seed, *TUNER, *where)
        _say(5, 6, "run again on the same goals")
        after = _deploy(tuned / "policy.onnx", out / "after", sizes.episodes, seed, where)
    figures = {"simulation": simulated, "before": before, "finetune": tuning, "after": after, "gap": GAP, "seed": seed,
               "seconds": time.monotonic() - began, "commands": _said}
    write_atomic(out / "demo.json", json.dumps(figures, indent=1).encode())
    _say(6, 6, "report")
    _robot_rl("report", out)
    print(table(figures))
    return {"success_simulation": simulated["success_rate"], "success_before": before["success_rate"],
            "success_after": after["success_rate"], "before_ci95": before["success_ci95"],
            "after_ci95": after["success_ci95"], "robot_minutes": tuning["robot_minutes"],
            "seconds": figures["seconds"], "report": str(out / "report.html")}


def _folder(out: Path) -> Path:
    """`out`, or beside it the next number when a finished demo is there; an unfinished one continues."""
    number, folder = 2, out
    while (folder / "demo.json").exists():
        folder, number = out.with_name(f"{out.name}-{number}"), number + 1
    for part in ("before", "after"):
        if (folder / part).exists():
            shutil.rmtree(folder / part)  # runs cut short: the same goals are run again
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def table(figures: dict[str, Any]) -> str:
    """The demo's one table."""
    rows = [("in simulation", figures["simulation"]), ("on the robot, before", figures["before"]),
            ("on the robot, after", figures["after"])]
    lines = [f"{'so101-reach':<22}{'success':>9}   {'95% interval':<16}{'episodes':>8}"]
    for name, row in rows:
        low, high = row["success_ci95"]
        interval = f"{low:.1%} to {high:.1%}"
        lines.append(f"{name:<22}{row['success_rate']:>9.1%}   {interval:<16}{row['episodes']:>8}")
    lines.append(f"fine-tuning used {figures['finetune']['robot_minutes']:.1f} robot minutes; "
                 f"the demo took {figures['seconds'] / 60:.1f} minutes")
    return "\n".join(lines)


@contextmanager
def robot_process(seed: int) -> Iterator[list[str]]:
    """The gapped robot as a process of its own; yields the bus arguments that reach it."""
    where = ["--domain", os.environ.get("ROS_DOMAIN_ID", "42")]
    command = _command("sim-robot", ROBOT, "--gap", GAP, "--seed", 77 + seed, *where)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if "ready" not in (line := process.stdout.readline()):
            raise RuntimeError(f"the robot process did not start: {line}")
        yield where
    finally:
        process.terminate()
        process.wait(10)


def _deploy(policy: Path, folder: Path, episodes: int, seed: int, where: list[str]) -> dict[str, Any]:
    _robot_rl("deploy", policy, "--robot", ROBOT, "--episodes", episodes, "--record", folder, "--seed",
              2_000 + seed, *where)
    return json.loads((folder / "deploy.json").read_text())


def _robot_rl(*arguments: object) -> dict[str, Any]:
    """Run one command and return its JSON; its progress stays visible. Raises RuntimeError when it fails."""
    command = _command(*arguments, "--json")
    _said.append("robot-rl " + " ".join(map(str, arguments)))
    print("$ " + _said[-1], flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"robot-rl {arguments[0]} ended with status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "robot_rl.cli", *map(str, arguments)]


def _say(step: int, steps: int, what: str) -> None:
    print(f"\n[{step}/{steps}] {what}", flush=True)
