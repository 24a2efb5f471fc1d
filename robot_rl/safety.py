"""Joint target → safe command (stage 5 of a step). Pure: the same inputs give the same command.

Two questions are kept apart: may the robot move at all (`check`), and how far (`limit`). When it may not, `stop`
gives the robot's own stop behaviour. A command is never invented: without a measurement there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag

import numpy as np

from robot_rl.observe import Readings
from robot_rl.spec import IMU, JOINT_STATE, ODOMETRY, Camera, RobotSpec


class Reason(IntFlag):
    """Why a command differs from what was asked, or why the robot was stopped."""

    NONE = 0
    STOP = 1  # a stop message, or the operator
    MISSING = 2  # a sensor or a camera in use has never spoken
    STALE = 4  # a sensor or a camera in use is silent for longer than its limit
    NONFINITE = 8  # a reading or an action is NaN or infinite
    WORKSPACE = 16  # the guarded frame left its box
    POSITION = 32  # clipped to a position limit
    RATE = 64  # clipped to a speed or acceleration limit
    EFFORT = 128  # clipped to an effort limit
    FADE = 256  # the policy is being faded in after the robot was activated
    TOOL = 512  # held back: the guarded frame would leave its box or be too fast, or links would meet
    UNSUPERVISED = 1024  # the supervisor that commands go to has fallen silent
    FAULTS = STOP | MISSING | STALE | NONFINITE | WORKSPACE | UNSUPERVISED

    def words(self) -> str:
        """The set flags, in lower case, joined by '+'."""
        return "+".join(r.name.lower() for r in Reason if r in self and r.name and r.value) or "none"


CLAMPS = Reason.POSITION | Reason.RATE | Reason.EFFORT | Reason.TOOL
"""A command was sent, but not the one that was asked for."""


class Safety:
    """The filter of one robot at one decision rate, for a policy that sees through `cameras`.

    Invariant, for any input: a command from `limit` is finite, inside the joint limits, and, where the last command
    was inside them too, no further from it than the speed limit allows in one period.
    """

    def __init__(self, robot: RobotSpec, rate_hz: float, cameras: Sequence[Camera] = ()) -> None:
        joints = robot.actuated
        self._robot = robot
        self._index = robot.actuated_index
        self._interface = robot.command.interface
        self._joints = robot.joint_sensor.name
        self._lower = np.array([-np.inf if j.lower is None else j.lower for j in joints])
        self._upper = np.array([np.inf if j.upper is None else j.upper for j in joints])
        self._velocity = np.array([j.velocity for j in joints])
        self._effort = np.array([j.effort for j in joints])
        self._brake = np.array([j.brake for j in joints])
        timed = {name for to in robot.command_topics if to.time_from_start_s for name in to.joints}
        lead = [j.effort / j.kp if j.kp > 0 and j.name not in timed else np.inf for j in joints]
        # rad that a position command may run ahead: beyond it the servo is saturated, unless a controller leads it on
        self._lead = np.array(lead)
        slew = [np.inf if j.acceleration is None else j.acceleration / rate_hz for j in joints]
        self._slew = np.array(slew)
        self._step = self._velocity / rate_hz
        self._images = [f"{camera.name}.image" for camera in cameras]
        self._limits = {s.name: s.stale_after_s for s in robot.sensors} | {c.name: c.stale_after_s for c in cameras}
        self._required = [key for s in robot.sensors for key in _keys(s.name, s.type)]

    def check(self, readings: Readings) -> Reason:
        """Why the robot may not move: missing, stale or non-finite sensors, or a frame outside the workspace."""
        reason = Reason.NONE if all(key in readings.values for key in self._images) else Reason.MISSING
        for key in self._required:
            value = readings.values.get(key)
            if value is None:
                reason |= Reason.MISSING
            elif not np.isfinite(value).all():
                reason |= Reason.NONFINITE
        for sensor, limit in self._limits.items():
            if readings.ages.get(sensor, 0.0) > limit:
                reason |= Reason.STALE
        box = self._robot.workspace
        if box is not None and not reason:
            position = readings.values[f"{box.sensor}.position"]
            if np.any(position < box.lower) or np.any(position > box.upper):
                reason |= Reason.WORKSPACE
        return reason

    def start(self, readings: Readings) -> np.ndarray:
        """The command (C,) that moves nothing: the measured position, or zero speed or effort."""
        if self._interface == "position":
            return np.clip(readings.values[f"{self._joints}.position"][self._index], self._lower, self._upper)
        return np.zeros(len(self._index))

    def limit(self, target: np.ndarray, last: np.ndarray, readings: Readings,
              periods: float = 1.0) -> tuple[np.ndarray, Reason]:
        """The nearest allowed command (C,) to `target` so many periods after `last`, and why it differs."""
        if not np.isfinite(target).all():
            return np.clip(last, *self._bounds()), Reason.NONFINITE
        position = readings.values[f"{self._joints}.position"][self._index]
        velocity = readings.values[f"{self._joints}.velocity"][self._index]
        if self._interface == "position":
            return self._limit_position(target, last, position, periods)
        return self._limit_push(target, last, position, velocity, periods)

    def stop(self, readings: Readings, last: np.ndarray | None) -> np.ndarray | None:
        """The stop behaviour's command (C,), or None when nothing is known that would make one safe."""
        if self._interface != "position":
            brake = readings.values.get(f"{self._joints}.velocity") if self._robot.stop == "damping" else None
            if brake is None or not np.isfinite(brake).all():
                return np.zeros(len(self._index))
            return np.clip(-self._brake * brake[self._index], -self._effort, self._effort)
        position = readings.values.get(f"{self._joints}.position")
        if position is not None and np.isfinite(position).all():
            return np.clip(position[self._index], self._lower, self._upper)
        if self._robot.stop == "damping":  # sent with a gain of 0
            return np.clip(np.zeros(len(self._index)), self._lower, self._upper)
        return None if last is None else np.clip(last, self._lower, self._upper)

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bound (C,) of any command on this interface."""
        if self._interface == "position":
            return self._lower, self._upper
        most = self._velocity if self._interface == "velocity" else self._effort
        return -most, most

    def _limit_position(self, target: np.ndarray, last: np.ndarray, position: np.ndarray,
                        periods: float) -> tuple[np.ndarray, Reason]:
        step = periods * self._step
        inside = _within(target, self._lower, self._upper)
        led = _within(inside, position - self._lead, position + self._lead)
        rated = _within(led, last - step, last + step)
        command = _within(rated, self._lower, self._upper)
        return command, _reason((target, inside, Reason.POSITION), (inside, led, Reason.EFFORT),
                                (led, rated, Reason.RATE), (rated, command, Reason.POSITION))

    def _limit_push(self, target: np.ndarray, last: np.ndarray, position: np.ndarray, velocity: np.ndarray,
                    periods: float) -> tuple[np.ndarray, Reason]:
        """Velocity or effort: never further out of a joint's range, never faster than its speed limit."""
        bounds, slew = self._bounds(), periods * self._slew
        bounded = _within(target, *bounds)
        slewed = bounded
        if self._interface == "velocity":
            slewed = _within(bounded, last - slew, last + slew)
            slewed = _within(slewed, *bounds)
        fast = np.abs(velocity) > self._velocity
        calm = np.where(fast & (slewed * velocity > 0), 0.0, slewed)
        outward = ((position >= self._upper) & (calm > 0)) | ((position <= self._lower) & (calm < 0))
        command = np.where(outward, 0.0, calm)
        kind = Reason.EFFORT if self._interface == "effort" else Reason.RATE
        return command, _reason((target, bounded, kind), (bounded, slewed, Reason.RATE),
                                (slewed, calm, Reason.RATE), (calm, command, Reason.POSITION))


def _keys(name: str, type: str) -> tuple[str, ...]:
    fields = {JOINT_STATE: ("position", "velocity"), IMU: ("orientation", "angular_velocity"),
              ODOMETRY: ("linear_velocity", "angular_velocity")}.get(type, ("position", "orientation"))
    return tuple(f"{name}.{field}" for field in fields)


def _within(values: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """What np.clip gives, in less than half of its time for a few numbers."""
    bounded: np.ndarray = np.minimum(np.maximum(values, lower), upper)
    return bounded


def _reason(*changes: tuple[np.ndarray, np.ndarray, Reason]) -> Reason:
    reason = Reason.NONE
    for before, after, why in changes:
        if (before != after).any():
            reason |= why
    return reason
