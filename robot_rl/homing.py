"""A joint path, checked before it is driven: how a robot gets to its default pose, to its rest, or where a jog asks.

Position robots follow straight lines between joint poses; others get a damped spring on their actuated joints.
"""

from __future__ import annotations

import itertools

import numpy as np

from robot_rl.kinematics import Chain
from robot_rl.spec import RobotSpec, SpecError

HOMING_SPEED = 1.6  # rad/s (m/s), of the joint path to the default pose
SETTLED = 0.05  # rad/s (m/s)
CLOSE = 0.15  # rad (m): how far a servo may hang behind its command at rest, if it is stiff
GRAIN = 0.02  # rad (m): how finely a path is checked
MARGIN_M = 0.01  # how much further out of its box than at its ends a guarded frame may get on the way
ROUNDING = 1e-6


class Homing:
    """One such movement, from the measured pose on. Raises SpecError when no path is allowed; see `plan`."""

    def __init__(self, robot: RobotSpec, position: np.ndarray, now: float, goal: np.ndarray | None = None,
                 speed: float = HOMING_SPEED, chain: Chain | None = None, enter: bool = True) -> None:
        self._robot, self._began = robot, now
        start = position[robot.actuated_index]
        self.goal = np.array([j.default for j in robot.actuated]) if goal is None else goal
        self._limit = np.array([j.effort for j in robot.actuated])
        # a soft servo stands as far off as the robot's weight pushes it
        self._close = np.array([max(CLOSE, 0.5 * j.effort / j.kp if j.kp > 0 else 0.0) for j in robot.actuated])
        points = np.stack([start, self.goal])
        if robot.command.interface == "position":
            points = plan(robot, position, self.goal, chain, enter)
        fastest = np.minimum(speed, [j.velocity for j in robot.actuated])
        seconds = np.max(np.abs(np.diff(points, axis=0)) / fastest, axis=1)
        self._points, self._times = points, np.concatenate([[0.0], np.cumsum(seconds)])
        self.path_s = float(self._times[-1])

    def command(self, position: np.ndarray, velocity: np.ndarray, now: float) -> np.ndarray:
        """The command (C,) now."""
        if self._robot.command.interface == "position":
            passed = now - self._began
            return np.array([np.interp(passed, self._times, column) for column in self._points.T])
        index = self._robot.actuated_index
        error, speed = self.goal - position[index], velocity[index]
        if self._robot.command.interface == "velocity":
            return np.clip(2.0 * error, -HOMING_SPEED, HOMING_SPEED)
        return np.clip(self._limit * (0.6 * error - 0.08 * speed), -self._limit, self._limit)

    def finished(self, position: np.ndarray, velocity: np.ndarray, now: float) -> bool:
        """At rest at the end of the path; joints that no motor drives must have settled too."""
        error = np.abs(position[self._robot.actuated_index] - self.goal)
        resting = bool(np.all(np.abs(velocity) < SETTLED)) and bool(np.all(error < self._close))
        return now - self._began > self.path_s + 0.05 and (resting or self.late(now))

    def late(self, now: float) -> bool:
        """Whether it has taken longer than the robot's resets may."""
        return now - self._began > max(self.path_s, self._robot.reset_timeout_s)


def plan(robot: RobotSpec, position: np.ndarray, goal: np.ndarray, chain: Chain | None, enter: bool = True
         ) -> np.ndarray:
    """Waypoints (N, C) from a measured pose (J,) to a goal (C,): straight, else with one or two joints moved first.

    The goal keeps the joint limits; from outside of them joints only come back. The frame that the workspace guards
    stays in its box, or leaves it no further than where it starts or, without `enter`, than where it is to go.
    Raises SpecError naming joint or frame, value and limit.
    """
    start, joints = position[robot.actuated_index], robot.actuated
    for joint, here, there in zip(joints, start, goal, strict=True):
        low, high = (-np.inf if joint.lower is None else joint.lower), np.inf if joint.upper is None else joint.upper
        if not np.isfinite([here, there]).all():
            raise SpecError(f"{robot.robot}: joint '{joint.name}' is at {here:g} and should go to {there:g}")
        if not low - ROUNDING <= there <= high + ROUNDING:
            raise SpecError(f"{robot.robot}: joint '{joint.name}' should go to {there:.4g}, its limits are "
                            f"{joint.lower} and {joint.upper}")
    box = robot.workspace
    if chain is None or box is None:
        return np.stack([start, goal])

    def outside(commands: np.ndarray) -> float:
        """How far outside its box the guarded frame gets in poses (N, C), m."""
        poses = np.tile(position, (len(commands), 1))
        poses[:, robot.actuated_index] = commands
        places = chain.positions(poses)
        return max(0.0, float(np.max([box.lower - places, places - box.upper])))

    first, last = outside(start[None]), outside(goal[None])
    allowed = first if enter else max(first, last)
    if last > allowed:
        raise SpecError(f"{robot.robot}: {box.sensor} would end {last:.3f} m outside its workspace {box.lower} to "
                        f"{box.upper}")
    moving = np.flatnonzero(np.abs(goal - start) > GRAIN)
    least = np.inf
    for leading in ((), *itertools.combinations(moving, 1), *itertools.combinations(moving, 2)):
        points = np.stack([start, start, goal])
        points[1, list(leading)] = goal[list(leading)]
        points = points if leading else points[1:]
        worst = outside(_between(points))
        if worst <= allowed + MARGIN_M:
            return points
        least = min(least, worst)
    raise SpecError(f"{robot.robot}: on every path tried {box.sensor} would leave its workspace {box.lower} to "
                    f"{box.upper}, by {least:.3f} m at least; move the arm by hand or with jog")


def _between(points: np.ndarray) -> np.ndarray:
    """(M, C) poses along waypoints, `GRAIN` apart, both ends in it."""
    legs = [np.linspace(a, b, 2 + int(np.max(np.abs(b - a)) / GRAIN)) for a, b in itertools.pairwise(points)]
    return np.concatenate(legs)
