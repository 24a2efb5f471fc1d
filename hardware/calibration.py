"""The calibration of one arm on serial servos: which servo moves which joint, and what its ticks mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import yaml

from hardware.feetech import LARGEST_ID, STS3215, TICKS
from robot_rl.log import write_atomic
from robot_rl.spec import Data, RobotSpec, SpecError, read_yaml

RADIAN = TICKS / math.tau  # ticks
SLACK = 0.1  # rad by which a joint may fall short of the range that its robot file gives it
SCHEMA = 1


class ServoCalibration(Data, kw_only=True):
    """One servo. Ticks are those that it reports: 4096 a turn, after its own offset."""

    id: int
    direction: Literal[1, -1]
    """Whether ticks grow with the joint's position, or fall."""
    zero: int
    """Ticks where the joint is at 0."""
    lower: int
    """Smallest ticks that the joint reached; the servo itself goes no further either."""
    upper: int
    offset: int
    """What the servo takes off its encoder, ticks."""
    rest: int
    """Ticks where the joint may be left without torque."""
    gains: tuple[int, int, int]
    """P, I and D of the servo's own loop, in its units."""
    torque_limit: float = 1.0
    """Share of the motor's torque that it may use."""

    def __post_init__(self) -> None:
        if not 0 <= self.id <= LARGEST_ID:
            raise ValueError(f"id={self.id} is outside [0, {LARGEST_ID}]")
        if not 0 < self.torque_limit <= 1:
            raise ValueError(f"torque_limit={self.torque_limit} is outside (0, 1]")
        if not 0 <= self.lower < self.upper < TICKS:
            raise ValueError(f"lower={self.lower} and upper={self.upper} must be ticks of one turn, in this order")
        if not self.lower <= self.zero <= self.upper:
            raise ValueError(f"zero={self.zero} is outside [{self.lower}, {self.upper}]")

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest position of the joint, rad."""
        ends = [self.direction * (ticks - self.zero) / RADIAN for ticks in (self.lower, self.upper)]
        return min(ends), max(ends)


class Calibration(Data, kw_only=True):
    """An arm. The servos hold offsets, ranges and gains too; where they differ, it is another arm's."""

    schema: int = SCHEMA
    robot: str
    arm: str
    """Name of the arm, for people."""
    model: int = STS3215
    """Model number of its servos."""
    joints: dict[str, ServoCalibration]

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema={self.schema}; this version reads schema {SCHEMA}")
        ids = [j.id for j in self.joints.values()]
        for name, joint in self.joints.items():
            if ids.count(joint.id) > 1:
                raise ValueError(f"joints.{name}.id={joint.id} is that of another joint too")

    def position(self, ticks: np.ndarray) -> np.ndarray:
        """(J,) rad of (J,) ticks, in the order of `joints`."""
        return self._direction * (ticks - self._zero) / RADIAN

    def ticks(self, position: np.ndarray) -> np.ndarray:
        """(J,) ticks, within the range of each servo, of (J,) rad."""
        asked = np.rint(self._zero + self._direction * position * RADIAN)
        return np.clip(asked, [j.lower for j in self.joints.values()], [j.upper for j in self.joints.values()])

    @property
    def rest(self) -> np.ndarray:
        """(J,) rad where the arm may be left without torque."""
        return self.position(np.array([j.rest for j in self.joints.values()]))

    @property
    def _zero(self) -> np.ndarray:
        return np.array([j.zero for j in self.joints.values()])

    @property
    def _direction(self) -> np.ndarray:
        return np.array([j.direction for j in self.joints.values()])

    def on(self, robot: RobotSpec, where: str) -> Calibration:
        """This calibration with the joints in `robot`'s order, once they are that robot's. Raises SpecError."""
        if set(self.joints) != set(robot.names):
            raise SpecError(f"{where}: made for robot '{self.robot}' with joints {', '.join(self.joints)}; "
                            f"robot '{robot.robot}' has {', '.join(robot.names)}")
        for joint in robot.joints:
            if fault := contradiction(self.joints[joint.name].range, joint.lower, joint.upper):
                raise SpecError(f"{where}: joints.{joint.name}: {fault}")
        return msgspec.structs.replace(self, joints={name: self.joints[name] for name in robot.names})


def contradiction(measured: tuple[float, float], lower: float | None, upper: float | None) -> str:
    """What is wrong with a measured range against the limits of the robot file, or ''."""
    if lower is None or upper is None:
        return "turns without end in the robot file, which a servo in position mode does not"
    if measured[0] > lower + SLACK or measured[1] < upper - SLACK:
        return (f"it reaches {measured[0]:.3f} to {measured[1]:.3f} rad, but the robot file says lower: {lower}, "
                f"upper: {upper}")
    return ""


def load_calibration(file: Path, robot: RobotSpec) -> Calibration:
    """Read the calibration of an arm that is such a robot. Raises SpecError naming file, key and both values."""
    calibration = read_yaml(file, Calibration, f"calibration {file}", "; `robot-rl calibrate` makes one")
    return calibration.on(robot, f"calibration {file}")


def save_calibration(calibration: Calibration, file: Path) -> None:
    """Write it, all or nothing."""
    text = f"# Calibration of the arm '{calibration.arm}', in ticks of its servos, 4096 a turn.\n"
    body = msgspec.to_builtins(calibration)
    body["joints"] = {name: body["joints"][name] for name in calibration.joints}
    write_atomic(file, (text + yaml.safe_dump(body, sort_keys=False, default_flow_style=None)).encode())
