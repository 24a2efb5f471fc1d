"""Where the joints must be for a site to be somewhere: damped least squares on a copy of the model."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

STEPS = 100
LARGEST_STEP = 0.2  # rad of one joint: a step further than that is not what the Jacobian foretold
DAMPING = 1e-6  # m²: steadies the step near a stretched arm
TURN_M = 0.01  # an error of 1 rad weighs as much as one of this many m: an arm of five joints turns as far as it can
CLOSE = 1e-4


class Kinematics:
    """The joints that carry a site, and the effort that gravity asks of them. Angles rad, positions m in the world."""

    def __init__(self, model: mujoco.MjModel, site: str, joints: Sequence[str]) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        self._site = model.site(site).id
        found = [model.joint(name) for name in joints]
        self._position = np.array([j.qposadr[0] for j in found])
        self._dof = np.array([j.dofadr[0] for j in found])
        self._lower, self._upper = np.array([j.range for j in found]).T

    def solve(self, start: np.ndarray, position: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """Joints (J,), from `start` (J,) on, that bring the site to `position` (3,) and turn it as far as they can.

        `axes` (3, 3) holds the site's wanted x, y and z axis in its columns. A position out of reach is come close to.
        """
        joints = np.array(start, float)
        jacobian = np.zeros((6, self._model.nv))
        for _ in range(STEPS):
            where, turned = self.pose(joints)
            turn = 0.5 * np.cross(turned.T, axes.T).sum(axis=0)
            error = np.concatenate([position - where, TURN_M * turn])
            mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
            slope = jacobian[:, self._dof]
            slope[3:] *= TURN_M
            step = _step(slope, error)
            slope[:, (joints + step < self._lower) | (joints + step > self._upper)] = 0.0
            step = _step(slope, error)  # with the others, where a joint is at its limit
            joints = np.clip(joints + step, self._lower, self._upper)
            if np.abs(step).max() < CLOSE:
                break
        return joints

    def pose(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and axes (3, 3), in columns, of the site at joints (J,)."""
        self._data.qpos[self._position] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)  # the Jacobian is taken about it
        return self._data.site_xpos[self._site].copy(), self._data.site_xmat[self._site].reshape(3, 3).copy()

    def gravity(self, joints: np.ndarray) -> np.ndarray:
        """(J,) effort, N·m, that holds the joints against gravity."""
        self.pose(joints)
        self._data.qvel[:] = 0.0
        mujoco.mj_comVel(self._model, self._data)
        bias = np.empty(self._model.nv)
        mujoco.mj_rne(self._model, self._data, 0, bias)
        return bias[self._dof]


def _step(slope: np.ndarray, error: np.ndarray) -> np.ndarray:
    step = slope.T @ np.linalg.solve(slope @ slope.T + DAMPING * np.eye(len(error)), error)
    return step * min(1.0, LARGEST_STEP / max(np.abs(step).max(), 1e-12))
