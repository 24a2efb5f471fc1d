"""What a policy that sees meets in a benchmark: its robot in simulation, and a process for each of its cameras."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import yaml

from hardware.loop import percentiles
from robot_rl.observe import Readings
from robot_rl.spec import Camera, PolicySpec, mjcf_file

FILM_S = 2.0  # of video, shown again and again
BLOCK = 16  # pixels


@contextmanager
def filmed(spec: PolicySpec, where: Sequence[str]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Run `sim-robot` and `camera` for a contract at `where` on the bus; the processes by name, ready.

    Raises SpecError for a robot that does not come with the package, RuntimeError when a process ends.
    """
    from hardware.camera_node import write_video
    assert spec.robot is not None
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        robot = msgspec.structs.replace(spec.robot, mjcf=str(mjcf_file(spec.robot.robot)))
        file = folder / "robot.yaml"
        file.write_text(yaml.safe_dump(msgspec.to_builtins(robot)))
        commands = {"robot": ["sim-robot", str(file), "--no-cameras"]}
        for camera in spec.cameras:
            video = folder / f"{camera.name}.avi"
            write_video(video, film(camera), camera.rate_hz)
            commands[f"camera {camera.name}"] = ["camera", str(file), "--source", f"{camera.name}={video}", "--loop"]
        started = {name: stack.enter_context(_started([*command, *where])) for name, command in commands.items()}
        for name, process in started.items():
            assert process.stdout is not None
            if "ready" not in process.stdout.readline():
                raise RuntimeError(f"the process of {name} ended with status {process.wait()} before it was ready")
        yield started


class Sightings:
    """What a loop saw of its cameras at each of so many ticks."""

    def __init__(self, spec: PolicySpec, ticks: int) -> None:
        assert spec.robot is not None
        self._names, self._joints = [camera.name for camera in spec.cameras], spec.robot.joint_sensor.name
        self._spans = np.full((len(self._names), ticks, 2), np.nan)
        """Age, and how far behind the joints; s."""
        self._acquired = np.zeros((len(self._names), ticks), np.int64)

    def note(self, tick: int, readings: Readings) -> None:
        """Keep what a tick saw."""
        for i, name in enumerate(self._names):
            if name in readings.ages:
                self._spans[i, tick] = readings.ages[name], readings.behind_s(name, self._joints)
                self._acquired[i, tick] = readings.acquired[name]

    def figures(self, ticks: int) -> dict[str, dict[str, float]]:
        """Of the first so many ticks, by camera: the share that saw a new image, its age, how far behind the joints."""
        told = {}
        for name, spans, acquired in zip(self._names, self._spans, self._acquired, strict=True):
            age, behind = (column[np.isfinite(column)] * 1e3 for column in spans[:ticks].T)
            fresh = float(np.mean(np.diff(acquired[:ticks]) > 0))
            told[name] = {"new_share": fresh} | {f"{key}_ms_p{rank}": value for key, values in (
                ("age", age), ("behind_joints", behind)) for rank, value in zip(
                (50, 99), percentiles(values, 50, 99), strict=True)}
        return told


def film(camera: Camera) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 of moving blocks with grain, for a JPEG of a usual size."""
    rng = np.random.default_rng(0)
    shape = -(-camera.height // BLOCK), -(-camera.width // BLOCK)
    blocks = np.kron(rng.integers(40, 216, (*shape, 3)), np.ones((BLOCK, BLOCK, 1), int))
    grain = rng.integers(-8, 9, blocks.shape)
    return [np.roll(blocks, 4 * i, 1)[:camera.height, :camera.width].astype(np.uint8)
            + np.roll(grain, 7 * i, 0)[:camera.height, :camera.width].astype(np.uint8)
            for i in range(round(FILM_S * camera.rate_hz))]


def cpu_s(process: int) -> float:
    """CPU time that a process has used, s; NaN where /proc does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _started(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-m", "robot_rl.cli", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
