"""Action → joint target and back (stage 4 of a step)."""

from __future__ import annotations

import numpy as np

from robot_rl.spec import ActionSpec, RobotSpec


class ActionMap:
    """Maps actions (A,) in [-1, 1] to commands (C,) of the actuated joints, and back.

    Commands are rad, rad/s or N·m, as the robot's command interface says.
    """

    def __init__(self, action: ActionSpec, robot: RobotSpec) -> None:
        names = [j.name for j in robot.actuated]
        self._index = np.array([names.index(name) for name in action.joints], dtype=np.intp)
        self._scale = np.array(action.scale)
        self._offset = np.array(action.offset or np.zeros(len(action.joints)))
        self._delta = action.kind == "delta"
        self._filter = action.filter
        held = [j.default if robot.command.interface == "position" else 0.0 for j in robot.actuated]
        self._held = np.array(held)

    def target(self, action: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Command (C,) that an action asks for after the last sent command (C,)."""
        before = last[self._index]
        wanted = (before if self._delta else self._offset) + self._scale * action
        target = self._held.copy()
        target[self._index] = before + self._filter * (wanted - before)
        return target

    def inverse(self, command: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Action (A,) whose target after `last` is `command`; outside [-1, 1] where no action reaches it."""
        before = last[self._index]
        wanted = before + (command[self._index] - before) / self._filter
        return (wanted - (before if self._delta else self._offset)) / self._scale
