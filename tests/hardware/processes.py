"""Our processes as the command line starts them, for tests on a machine that may be slow."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import yaml

from robot_rl.spec import RobotSpec, load_robot, mjcf_file
from tests.processes import start, wait_for

PATIENCE_S = 120.0
until = partial(wait_for, timeout_s=PATIENCE_S)


def written(robot: RobotSpec, folder: Path, **changes: Any) -> Path:
    """A robot's file with changes, beside its MJCF."""
    (folder / robot.mjcf).write_bytes(mjcf_file(robot.robot).read_bytes())
    (folder / "robot.yaml").write_text(yaml.safe_dump(msgspec.to_builtins(robot) | changes))
    return folder / "robot.yaml"


def patient(folder: Path) -> Path:
    """The file of an SO-101 whose sensors and whose policy may be late."""
    sensors = [sensor | {"stale_after_s": 5.0} for sensor in msgspec.to_builtins(load_robot("so101").sensors)]
    return written(load_robot("so101"), folder, sensors=sensors, supervisor={"heartbeat_s": 10.0})


@contextmanager
def process(*words: object, bus: str, more: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """One of our processes, killed at the end."""
    with start(*words, f"--bus={bus}", *more, env=os.environ | {"ROBOT_RL_INTERFACE": "lo"}) as one:
        try:
            yield one
        finally:
            one.kill()


def ready(one: subprocess.Popen[str]) -> None:
    assert one.stdout is not None
    assert "ready" in one.stdout.readline()
