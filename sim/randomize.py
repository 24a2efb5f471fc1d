"""The reality gap: how a simulated robot differs from the model that a policy was trained on. SI units."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import mujoco
import numpy as np

Value = TypeVar("Value")


@dataclass(frozen=True)
class Gap:
    """Differences in physics, wiring and sensors; the default is no gap.

    `Gap.parse("payload=0.1,friction=0.05")` reads one from a command line.
    """

    payload: float = 0.0
    """Point mass at the site `tip`, kg."""
    friction: float = 0.0
    """Dry friction added at every joint that has an actuator, N·m (N for a slide)."""
    motor_strength: float = 1.0
    """Factor on the gains and force limits of every actuator."""
    encoder_bias: float = 0.0
    """Size of a constant error of every joint's encoder, rad; each sign is drawn from `seed`."""
    command_delay: float = 0.0
    """From a command to its effect, s."""
    sensor_delay: float = 0.0
    """From a measurement to its delivery, s."""
    noise: float = 0.0
    """Standard deviation of every encoder reading, rad."""
    pose_noise: float = 0.0
    """Standard deviation of every coordinate of a pose sensor, m."""
    imu_noise: float = 0.0
    """Standard deviation of every angular velocity of an IMU, rad/s."""
    dropout: float = 0.0
    """Probability that one message of a sensor is lost."""
    seed: int = 0
    """Draws the signs of `encoder_bias`, and noise and losses where a reset brings no generator."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not np.isfinite(value) or value < 0:
                raise ValueError(f"gap: {field.name}={value} must be a finite number of at least 0")
        if self.dropout > 1:
            raise ValueError(f"gap: dropout={self.dropout} is a probability, at most 1")

    @staticmethod
    def parse(text: str) -> Gap:
        """A gap from `key=value,key=value`; an empty text is no gap. Raises ValueError listing the known keys."""
        known = {field.name: field for field in fields(Gap)}
        values: dict[str, float] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, equals, number = (part.strip() for part in item.partition("="))
            if key not in known or not equals:
                raise ValueError(f"gap: '{item}' is not one of {', '.join(f'{name}=NUMBER' for name in known)}")
            if key in values:
                raise ValueError(f"gap: {key} is given twice")
            try:
                values[key] = int(number) if key == "seed" else float(number)
            except ValueError:
                raise ValueError(f"gap: {key}={number}: not a number") from None
        return Gap(**values)  # type: ignore[arg-type]  # seed is an int by the line above

    def __str__(self) -> str:
        """What differs from no gap, in the form that `parse` reads."""
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self)
                        if getattr(self, field.name) != field.default)

    def apply(self, model: mujoco.MjModel) -> None:
        """Change the physics of a freshly compiled model. Raises ValueError for a payload without a `tip` site."""
        if self.payload:
            add_mass(model, "tip", self.payload)
        driven = model.jnt_dofadr[model.actuator_trnid[model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT.value, 0]]
        if self.friction:
            model.dof_frictionloss[np.unique(driven)] += self.friction
            model.dof_solimp[np.unique(driven), :2] = 0.99  # MuJoCo's softer default lets a loaded joint creep
        model.actuator_gainprm[:, :3] *= self.motor_strength
        model.actuator_biasprm[:, :3] *= self.motor_strength
        model.actuator_forcerange *= self.motor_strength

    def biases(self, joints: int) -> np.ndarray:
        """(J,) rad: what each encoder reads too much."""
        signs = np.random.default_rng(self.seed).choice((-1.0, 1.0), joints)
        return self.encoder_bias * signs


def add_mass(model: mujoco.MjModel, site: str, mass: float) -> None:
    """Fix a point mass (kg) to the body that carries a site, at the site. Raises ValueError without such a site."""
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, site)
    if index < 0:
        raise ValueError(f"gap: payload={mass}: the MJCF has no site '{site}' to carry it")
    body, point = model.site_bodyid[index], model.site_pos[index].copy()
    own, centre, total = model.body_mass[body], model.body_ipos[body].copy(), model.body_mass[body] + mass
    joint_centre = (own * centre + mass * point) / total
    inertia = _inertia(model, body) + own * _steiner(centre - joint_centre) + mass * _steiner(point - joint_centre)
    principal, axes = np.linalg.eigh(inertia)
    if np.linalg.det(axes) < 0:
        axes[:, 0] *= -1
    model.body_mass[body], model.body_ipos[body], model.body_inertia[body] = total, joint_centre, principal
    mujoco.mju_mat2Quat(model.body_iquat[body], axes.ravel())
    model.body_sameframe[body] = 0  # else MuJoCo goes on using the frame of the unloaded body
    mujoco.mj_setConst(model, mujoco.MjData(model))


def _inertia(model: mujoco.MjModel, body: int) -> np.ndarray:
    """(3, 3) about the body's centre of mass, in the axes of its frame."""
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.body_iquat[body])
    axes = rotation.reshape(3, 3)
    return axes @ np.diag(model.body_inertia[body]) @ axes.T


def _steiner(offset: np.ndarray) -> np.ndarray:
    """(3, 3) inertia of a unit mass at an offset (3,)."""
    return offset @ offset * np.eye(3) - np.outer(offset, offset)


class DelayLine(Generic[Value]):
    """Values in order of time, read a fixed time late."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._values: deque[tuple[float, Value]] = deque()

    def restart(self, time: float, value: Value) -> None:
        """Forget everything; `value` has held since ever."""
        self._values = deque([(time - self._delay, value)])

    def push(self, time: float, value: Value) -> None:
        """Add a value that comes about at `time`, s."""
        self._values.append((time, value))
        self.read(time)  # forgets what nobody can read any more

    def read(self, time: float) -> Value:
        """What has come through at `time`, s: the newest value that is at least one delay old."""
        while len(self._values) > 1 and self._values[1][0] <= time - self._delay + 1e-9:
            self._values.popleft()
        return self._values[0][1]
