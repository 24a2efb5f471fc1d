"""How late a robot's sensors are and how long its policy takes, measured from bags, and kept for the simulator.

Every tick tells when it began, which messages it used and when its command was out; every message tells when it was
measured. Sensors and policy on machines of their own need clocks that agree (chrony, PTP): where they do not, a message
seems to come from the future, which is refused, or to be older than it is, which nobody can see.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hardware import messages
from hardware.loop import percentiles
from robot_rl.finetune import bags_in
from robot_rl.log import write_atomic
from robot_rl.spec import Camera, Data, RobotSpec, SpecError
from robot_rl.steplog import EpisodeLog, StepRecord, join_ns, read_episode

SCHEMA = 1
KEPT = 1000  # numbers of a distribution, as quantiles where there were more
AHEAD_S = 0.001  # a message may seem to come from the future by so much, for clocks are never quite equal


class Late(Data, kw_only=True):
    """How late one sensor or camera is: s, in ascending order, to be drawn from."""

    driver_s: tuple[float, ...]
    """From the measurement to the driver's publishing of it: what a simulated robot waits, whose bus is real."""
    age_s: tuple[float, ...]
    """From the measurement to the beginning of the first tick that used it: what a training environment shows."""


class Latency(Data, kw_only=True):
    """What was measured on one robot."""

    schema: int = SCHEMA
    robot: str
    policies: tuple[str, ...]
    """SHA-256 of each that ran."""
    ticks: int
    command_s: tuple[float, ...]
    """From the beginning of a tick to the return of publish, s, in ascending order."""
    inputs: dict[str, Late]
    """By sensor or camera."""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema={self.schema}; this version reads schema {SCHEMA}")
        given = {"command_s": self.command_s}
        for name, late in self.inputs.items():
            given |= {f"inputs.{name}.driver_s": late.driver_s, f"inputs.{name}.age_s": late.age_s}
        for key, values in given.items():
            if not values or not np.isfinite(values).all() or min(values) < 0:
                raise ValueError(f"{key}: {len(values)} numbers from {min(values, default=None)} to "
                                 f"{max(values, default=None)}: at least one is needed, none below 0")


def load_latency(path: Path, robot: RobotSpec, cameras: Iterable[Camera] = ()) -> Latency:
    """Read what was measured on a robot, with each of its sensors and `cameras`. Raises SpecError."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Latency)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: {error}") from error
    if found.robot != robot.robot:
        raise SpecError(f"{path}: robot: measured on {found.robot}, this is {robot.robot}")
    wanted = [sensor.name for sensor in robot.sensors] + [camera.name for camera in cameras]
    missing = [name for name in wanted if name not in found.inputs]
    if missing:
        raise SpecError(f"{path}: inputs: measured are {', '.join(found.inputs)}, {robot.robot} has "
                        f"{', '.join(missing)} too")
    return found


def write_latency(folder: Path, out: Path) -> dict[str, Any]:
    """Measure what the bags below a folder tell, write it and return its figures, ms."""
    latency, figures = measure(folder)
    write_atomic(out, msgspec.json.encode(latency))
    return {"latency": str(out)} | figures


def measure(folder: Path) -> tuple[Latency, dict[str, Any]]:
    """What the bags below a folder tell of latency, and its figures in ms. Raises SpecError where they tell nothing."""
    ticks = _Ticks()
    for bag in bags_in(folder):
        ticks.add(read_episode(bag))
    if not ticks.command or ticks.robot is None:
        raise SpecError(f"{folder}: no bag in it holds a step that a policy took on a robot")
    figures: dict[str, Any] = {"robot": ticks.robot.robot, "episodes": ticks.episodes, "ticks": len(ticks.command)}
    figures |= _figures("take_to_command", ticks.command)
    for name, spans in ticks.spans.items():
        for key, values in spans.items():
            figures |= _figures(f"{name}_{key}", values)
    late = {name: Late(driver_s=_kept(spans["driver"]), age_s=_kept(spans["age"]))
            for name, spans in ticks.spans.items()}
    return Latency(robot=ticks.robot.robot, policies=tuple(sorted(ticks.policies)), ticks=len(ticks.command),
                   command_s=_kept(ticks.command), inputs=late), figures


class _Ticks:
    """Spans of time, s, gathered from episodes."""

    def __init__(self) -> None:
        self.robot: RobotSpec | None = None
        self.policies: set[str] = set()
        self.episodes = 0
        self.command: list[float] = []
        self.spans: dict[str, dict[str, list[float]]] = {}
        """By input: driver, age, to_command, and of cameras behind_joints."""

    def add(self, log: EpisodeLog) -> None:
        """Add the ticks of one episode that sent a command; demonstrations in simulation have no such thing."""
        robot = log.spec.robot
        if robot is None or not log.info.get("sha256"):
            return
        if self.robot is not None and self.robot.robot != robot.robot:
            raise SpecError(f"{log.folder}: robot {robot.robot}, the bags before it are of {self.robot.robot}")
        self.robot, self.episodes = robot, self.episodes + 1
        self.policies.add(log.info["sha256"])
        before = dict[str, int]()
        for record in log.records:
            if np.isfinite(record.asked).all():
                self._tick(log, record, before)

    def _tick(self, log: EpisodeLog, record: StepRecord, before: dict[str, int]) -> None:
        began, latency = join_ns(*record.stamp), float(record.latency[0])
        self.command.append(latency)
        measured = dict[str, int]()
        for sensor, (seconds, nanoseconds) in zip(log.spec.inputs, record.inputs.reshape(-1, 2), strict=True):
            sent = join_ns(seconds, nanoseconds)
            stamp = _measured(log, sensor.name, sent)
            delay = sensor.delay_s if isinstance(sensor, Camera) else 0.0
            driver = _span(log, sensor.name, "its driver published it", sent - stamp) + delay
            age = _span(log, sensor.name, "the tick that used it began", began - stamp) + delay
            measured[sensor.name] = stamp - round(delay * 1e9)
            spans = self.spans.setdefault(sensor.name, {"driver": [], "age": [], "to_command": []})
            spans["to_command"].append(age + latency)
            if before.get(sensor.name) != sent:
                before[sensor.name] = sent
                spans["driver"].append(driver)
                spans["age"].append(age)
        assert log.spec.robot is not None
        for camera in log.spec.cameras:
            behind = (measured[log.spec.robot.joint_sensor.name] - measured[camera.name]) * 1e-9
            self.spans[camera.name].setdefault("behind_joints", []).append(behind)


def _measured(log: EpisodeLog, name: str, sent: int) -> int:
    """When a message was measured by its header, ns since the Unix epoch."""
    data = log.readings[name].get(sent)
    stamp = 0 if data is None else messages.acquired_ns(data)
    if data is None or stamp == 0:
        raise SpecError(f"{log.folder}: the message of '{name}' published at {sent} ns "
                        + ("is not in the bag" if data is None else "has header.stamp 0: its driver does not stamp"))
    return stamp


def _span(log: EpisodeLog, name: str, until: str, nanoseconds: int) -> float:
    """Seconds of a span that cannot be negative; clocks that differ make it so."""
    seconds = nanoseconds * 1e-9
    if seconds < -AHEAD_S:
        raise SpecError(f"{log.folder}: '{name}' has a header.stamp {-seconds:.4f} s after {until}: the clocks of the "
                        "two differ")
    return max(0.0, seconds)


def _kept(values: list[float]) -> tuple[float, ...]:
    """The distribution in ascending order, by its quantiles where it is long."""
    if len(values) > KEPT:
        return tuple(float(v) for v in np.quantile(values, np.linspace(0, 1, KEPT)))
    return tuple(sorted(values))


def _figures(name: str, values: list[float]) -> dict[str, float]:
    p50, p99 = percentiles(np.array(values) * 1e3, 50, 99)
    return {f"{name}_ms_p50": p50, f"{name}_ms_p99": p99, f"{name}_ms_max": 1e3 * max(values)}
