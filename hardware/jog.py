"""Move a robot by hand over the bus: one joint, or all of them home, on a checked path behind the safety filter."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from hardware.bus import COMMAND, Bus
from hardware.either import Switch
from hardware.loop import Ticker
from hardware.robot_io import RobotIO
from robot_rl.homing import CLOSE, Homing
from robot_rl.kinematics import guarded
from robot_rl.observe import Readings
from robot_rl.safety import Reason, Safety
from robot_rl.spec import RobotSpec, SpecError

RATE_HZ = 50.0
SPEED = 0.3  # rad/s (m/s)
LISTEN_S = 1.0  # for other publishers to be discovered
SETTLE_S, ARRIVE_S = 0.3, 5.0  # of rest at the end of the path; the longest to wait for it
SENSORS_S = 10.0


class Jog:
    """Commands one robot from one place. Raises SpecError before anything moves, TimeoutError for a silent robot."""

    def __init__(self, robot: RobotSpec, mjcf: Path, bus: Bus, speed: float = SPEED) -> None:
        if robot.command.interface != "position":
            raise SpecError(f"robot '{robot.robot}': command.interface={robot.command.interface}: only what takes "
                            "positions are jogged")
        slowest = min(j.velocity for j in robot.actuated)
        if not 0 < speed <= slowest:
            raise SpecError(f"--speed {speed}: outside (0, {slowest}], the speed limit of the slowest joint")
        self.robot, self._speed = robot, speed
        self._guarded = guarded(robot, mjcf)
        self._io = RobotIO(robot, bus)
        self._commanded = [bus.reader(to.topic, to.type, COMMAND) for to in robot.command_topics]
        self._stop = Switch(bus, robot.stop_topic)
        self._safety = Safety(robot, RATE_HZ)

    def target(self, joint: str, *, delta: float | None = None, to: float | None = None) -> np.ndarray:
        """The pose (C,) with one joint elsewhere, rad (m), from where the robot is. Raises SpecError."""
        names = [j.name for j in self.robot.actuated]
        if joint not in names:
            raise SpecError(f"joint '{joint}': robot '{self.robot.robot}' is commanded by {', '.join(names)}")
        if (delta is None) == (to is None):
            raise SpecError(f"jog {joint}: give a delta or --to, one of them")
        goal, at = self._position(self._ready()), names.index(joint)
        goal[at] = to if to is not None else goal[at] + (delta or 0.0)
        lower, upper = (np.array([getattr(j, key) if getattr(j, key) is not None else sign * np.inf
                                  for j in self.robot.actuated]) for key, sign in (("lower", -1), ("upper", 1)))
        others = np.arange(len(names)) != at  # those may rest a little beyond their limits
        return np.where(others, np.clip(goal, lower, upper), goal)

    def _others(self) -> int:
        """How many publishers command the robot beside this one, on the topic that has most of them."""
        return max(reader.matched() for reader in self._commanded) - 1

    def go(self, goal: np.ndarray) -> dict[str, float]:
        """Drive to a pose (C,); returns where each joint then is. Raises SpecError when it may not or cannot."""
        readings = self._ready()
        if others := self._others():
            topics = ", ".join(to.topic for to in self.robot.command_topics)
            raise SpecError(f"{others} other publisher(s) on {topics}: stop what commands "
                            f"'{self.robot.robot}' first")
        joints = self._joints(readings)
        path = Homing(self.robot, joints, time.monotonic(), goal, self._speed, self._guarded)
        ticker, last = Ticker(RATE_HZ), self._position(readings)
        ticker.start()
        end, still = time.monotonic() + path.path_s + ARRIVE_S, 0
        while still < SETTLE_S * RATE_HZ and time.monotonic() < end:
            ticker.wait()
            readings = self._io.read()
            if fault := self._fault(readings):
                stop = self._safety.stop(readings, last)
                if stop is not None:
                    self._io.send(stop)
                raise SpecError(f"stopped: {fault}")
            asked = path.command(joints, joints, time.monotonic())
            last, _ = self._safety.limit(asked, last, readings)
            self._io.send(last)
            velocity = readings.values[f"{self.robot.joint_sensor.name}.velocity"]
            still = still + 1 if path.finished(self._joints(readings), velocity, time.monotonic()) else 0
        found = self._position(self._io.read())
        worst = int(np.argmax(np.abs(found - goal)))
        joint = self.robot.actuated[worst].name
        if abs(found[worst] - goal[worst]) > CLOSE:
            raise SpecError(f"joint '{joint}' is at {found[worst]:.3f}, asked for {goal[worst]:.3f}: is the driver "
                            "armed (robot-rl call arm), and the way free?")
        return {j.name: round(float(at), 4) for j, at in zip(self.robot.actuated, found, strict=True)}

    def home(self) -> np.ndarray:
        """The default pose (C,)."""
        return np.array([j.default for j in self.robot.actuated])

    def _ready(self) -> Readings:
        """Fresh readings of a robot that may move, once others had the time to be seen."""
        self._io.wait(SENSORS_S)
        end = time.monotonic() + LISTEN_S
        while time.monotonic() < end and not self._others():
            time.sleep(0.02)
        readings = self._io.read()
        if fault := self._fault(readings):
            raise SpecError(f"robot '{self.robot.robot}' may not move: {fault}")
        return readings

    def _fault(self, readings: Readings) -> str:
        """Why the robot may not move, or ''; one that is outside its workspace may be brought back."""
        if self._stop.on():
            return f"the protective stop on {self.robot.stop_topic} is pressed"
        reason = self._safety.check(readings) & ~Reason.WORKSPACE
        return reason.words() if reason else ""

    def _joints(self, readings: Readings) -> np.ndarray:
        return readings.values[f"{self.robot.joint_sensor.name}.position"]

    def _position(self, readings: Readings) -> np.ndarray:
        return self._joints(readings)[self.robot.actuated_index]
