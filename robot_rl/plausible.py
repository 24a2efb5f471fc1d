"""Can joint states be true? Pure: what is judged is given, the clock too.

A joint that lies further from where it was than it can have moved **jumps**. Joint states that come, but repeat one
message to the last bit although commands move, are **frozen**: an encoder that is not read any more, or a robot that
cannot follow. Either way its measurement is nothing to steer by.
"""

from __future__ import annotations

import numpy as np

from robot_rl.observe import Readings
from robot_rl.spec import RobotSpec

FASTER, SLACK_S = 3.0, 0.02  # a joint may be so much faster than its limit, for so much longer than between messages
GAP_S = 1.0  # stamps further apart are of clocks that were set
TRAVEL = 0.1  # rad (m) that commands move before readings have to; more than dead bands and gear backlash
LEAD = 0.6  # of what a servo may be ahead, where that is less: a clamped command cannot go further
RESPONSE_S, MESSAGES = 0.3, 5  # time and joint states that a robot has to follow in


class Plausible:
    """Judges the joint states of one robot, as they come; only those of position robots are ever frozen."""

    def __init__(self, robot: RobotSpec) -> None:
        self._name = robot.joint_sensor.name
        self._fast = FASTER * np.array([j.velocity for j in robot.joints])
        self._endless = np.array([j.lower is None for j in robot.joints])
        self._follows = robot.command.interface == "position"
        self._travel = np.array([min(TRAVEL, LEAD * j.effort / j.kp) if j.kp > 0 else TRAVEL for j in robot.actuated])
        self._stamp = self._acquired = 0
        self._arrival = 0.0
        self._told: tuple[np.ndarray, ...] = ()
        self.begin()

    def begin(self) -> None:
        """Commands begin anew."""
        self._lowest: np.ndarray | None = None
        self._highest: np.ndarray | None = None
        self._led_s: float | None = None  # since when commands are so far that readings have to change
        self._repeats = 0

    def sent(self, command: np.ndarray, now: float) -> None:
        """Note a command (C,), rad or m, and when it was sent, s."""
        if self._lowest is None or self._highest is None:
            self._lowest = self._highest = command
        self._lowest, self._highest = np.minimum(self._lowest, command), np.maximum(self._highest, command)
        if self._follows and self._led_s is None and np.any(self._highest - self._lowest > self._travel):
            self._led_s, self._repeats = now, 0

    def judge(self, readings: Readings, now: float) -> tuple[bool, bool]:
        """Whether the newest joint states jump, and whether they are frozen; `now` is on the clock of their ages."""
        stamp = readings.stamps.get(self._name)
        if stamp is None or stamp == self._stamp:
            return False, False
        told = tuple(readings.values[key] for key in sorted(readings.values) if key.startswith(f"{self._name}."))
        arrival, acquired = now - readings.ages[self._name], readings.acquired.get(self._name, 0) or stamp
        jumps = bool(self._told) and self._jumps(readings.values[f"{self._name}.position"], arrival, acquired)
        same = len(told) == len(self._told) and all(map(np.array_equal, told, self._told))
        self._stamp, self._arrival, self._acquired, self._told = stamp, arrival, acquired, told
        self._position = readings.values[f"{self._name}.position"]
        if not same:
            self.begin()
            return jumps, False
        self._repeats += 1
        frozen = self._led_s is not None and now - self._led_s > RESPONSE_S and self._repeats >= MESSAGES
        if frozen:
            self.begin()
        return jumps, frozen

    def _jumps(self, position: np.ndarray, arrival: float, acquired: int) -> bool:
        """Whether a joint cannot have come so far since the message before; NaN is for others to see."""
        by_stamp = (acquired - self._acquired) * 1e-9
        seconds = max(arrival - self._arrival, by_stamp if 0 < by_stamp < GAP_S else 0.0)
        way = np.abs(position - self._position)
        way = np.where(self._endless, np.abs(np.remainder(way + np.pi, 2 * np.pi) - np.pi), way)
        return bool(np.any(way > self._fast * (seconds + SLACK_S)))
