"""An arm on serial servos, as joints in SI units: what it measures, where it is told to go, torque on and off."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hardware import feetech
from hardware.calibration import RADIAN, Calibration, ServoCalibration
from hardware.feetech import BusError, Register, ServoBus, number
from robot_rl.spec import RobotSpec, SpecError

VOLT = 0.1  # of a unit of the voltage register
FULL = 1000  # of load and torque limit
COARSE_SPEED = 50  # ticks/s of a unit where the servo is so configured
OUTSIDE = 0.1  # rad: how far beyond its range a joint may lie when torque comes on


@dataclass(frozen=True)
class ArmState:
    """One round of feedback; arrays (J,) in the order of the robot's joints."""

    stamp_ns: int
    """The middle of the round, ns since the Unix epoch."""
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    """N·m, an estimate: the share of the voltage that the motor is driven with, of the joint's largest effort."""
    voltage: np.ndarray
    temperature: np.ndarray
    """°C."""
    status: np.ndarray
    """(J,) int, bits of feetech.FAULTS."""


class Arm:
    """The servos of one calibrated arm. Raises SpecError when the calibration is not theirs, BusError when they fail.

    Nothing moves and no torque changes until `torque`.
    """

    def __init__(self, robot: RobotSpec, calibration: Calibration, where: Path, port: str) -> None:
        self._robot, self._calibration, self._where = robot, calibration, where
        self._effort = np.array([j.effort for j in robot.joints])
        self._ids = [j.id for j in calibration.joints.values()]
        self.bus = ServoBus(port)
        try:
            self._check()
            self._speed = np.array([1 if self.bus.read(i, feetech.PHASE) & feetech.PHASE_FINE_SPEED else COARSE_SPEED
                                    for i in self._ids]) / RADIAN
            self._direction = np.array([j.direction for j in calibration.joints.values()])
            self.hottest = np.array([self.bus.read(i, feetech.MAX_TEMPERATURE) for i in self._ids])
            """(J,) °C at which a servo switches itself off."""
        except Exception:
            self.bus.close()
            raise

    @property
    def rest(self) -> np.ndarray:
        """(J,) rad where the arm may be left without torque, within its limits."""
        lower = [-np.inf if j.lower is None else j.lower for j in self._robot.joints]
        upper = [np.inf if j.upper is None else j.upper for j in self._robot.joints]
        return np.clip(self._calibration.rest, lower, upper)

    def servo(self, joint: int) -> str:
        """'servo 3 (elbow_flex)' for joint 2."""
        return f"servo {self._ids[joint]} ({self._robot.names[joint]})"

    def read(self) -> ArmState:
        """One round of feedback from every servo."""
        before = time.time_ns()
        data = self.bus.sync_read(self._ids, feetech.FEEDBACK)
        after = time.time_ns()

        def column(register: Register) -> np.ndarray:
            start = register.address - feetech.FEEDBACK.address
            return np.array([number(register, data[i][start:start + register.size]) for i in self._ids])

        return ArmState(
            (before + after) // 2, self._calibration.position(column(feetech.POSITION)),
            self._direction * column(feetech.SPEED) * self._speed,
            self._direction * column(feetech.LOAD) * self._effort / FULL,
            column(feetech.VOLTAGE) * VOLT, column(feetech.TEMPERATURE), column(feetech.STATUS))

    def go(self, position: np.ndarray) -> None:
        """Tell every servo where to go, (J,) rad."""
        ticks = self._calibration.ticks(position)
        self.bus.sync_write(feetech.GOAL_POSITION, {i: int(t) for i, t in zip(self._ids, ticks, strict=True)})

    def has_torque(self) -> bool:
        """Whether any servo holds its joint."""
        return any(self.bus.read(i, feetech.TORQUE_ENABLE) for i in self._ids)

    def hold(self) -> np.ndarray:
        """Torque on where the arm is, without a jump: returns the pose (J,) that it holds. Raises SpecError, BusError.

        Torque limits are set and every servo's goal is its own position before the first one gets torque.
        """
        here = self.bus.tried(self.read).position
        for joint, at, servo in zip(self._robot.joints, here, self._calibration.joints.values(), strict=True):
            low, high = servo.range
            if not low - OUTSIDE <= at <= high + OUTSIDE:
                raise SpecError(f"{self._where}: joints.{joint.name}: it is at {at:.3f} rad, its range is {low:.3f} to "
                                f"{high:.3f}: move it by hand, or calibrate again")
        for servo in self._calibration.joints.values():
            self.bus.write(servo.id, feetech.TORQUE_LIMIT, round(FULL * servo.torque_limit))
            self.bus.write(servo.id, feetech.ACCELERATION, 0)  # 0 and 0: as fast as it can, the driver sets the pace
            self.bus.write(servo.id, feetech.GOAL_SPEED, 0)
        for i, ticks in zip(self._ids, self._calibration.ticks(here), strict=True):
            self.bus.write(i, feetech.GOAL_POSITION, int(ticks))
        for i in self._ids:
            self.bus.write(i, feetech.TORQUE_ENABLE, 1)
        return here

    def let_go(self) -> None:
        """Torque off at every servo that answers. Raises BusError naming those that do not."""
        failed = []
        for i in self._ids:
            try:
                self.bus.write(i, feetech.TORQUE_ENABLE, 0)
            except BusError as error:
                failed.append(str(error))
        if failed:
            raise BusError("torque may be on: " + "; ".join(failed))

    def _check(self) -> None:
        """Every servo is there, of the right kind, and holds what the calibration says. Raises SpecError."""
        faults, silent = [], []
        for name, servo in self._calibration.joints.items():
            try:
                model = self.bus.read(servo.id, feetech.MODEL)
            except feetech.PortLost:
                raise
            except BusError:
                silent.append(f"joints.{name}.id: {servo.id} does not answer")
                continue
            if model != self._calibration.model:
                faults.append(f"model: the file says {self._calibration.model}, servo {servo.id} ({name}) {model}")
                continue
            for key, ours, register in held(servo):
                theirs = self.bus.read(servo.id, register)
                if ours != theirs:
                    faults.append(f"joints.{name}.{key}: the file says {ours}, servo {servo.id} {theirs}")
        if len(silent) == len(self._calibration.joints):
            raise BusError(f"port {self.bus.path}: no servo answers: is the arm powered, and is this its port?")
        if silent:
            seen = self.bus.present()
            faults += [f"{line}; the ids that do are {seen}" for line in silent]
        if faults:
            raise SpecError(f"calibration {self._where} of arm '{self._calibration.arm}' is not that of the arm on "
                            f"{self.bus.path}:\n  " + "\n  ".join(faults))


def held(servo: ServoCalibration) -> list[tuple[str, int, Register]]:
    """What a servo keeps without power of its calibration: key, value and register."""
    p, i, d = servo.gains
    return [("offset", servo.offset, feetech.OFFSET), ("lower", servo.lower, feetech.MIN_POSITION),
            ("upper", servo.upper, feetech.MAX_POSITION), ("gains[0]", p, feetech.GAIN_P),
            ("gains[1]", i, feetech.GAIN_I), ("gains[2]", d, feetech.GAIN_D), ("mode", 0, feetech.MODE)]
