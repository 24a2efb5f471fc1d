"""The reality gap: how a simulated robot differs from the model that a policy was trained on. SI units."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Generic, TypeVar

import mujoco
import numpy as np

from robot_rl.latency import load_latency
from robot_rl.spec import Camera, RobotSpec

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
    camera_delay: float = 0.0
    """From an image to its delivery, s."""
    noise: float = 0.0
    """Standard deviation of every encoder reading, rad."""
    pose_noise: float = 0.0
    """Standard deviation of every coordinate of a pose sensor, m."""
    imu_noise: float = 0.0
    """Standard deviation of every angular velocity of an IMU, rad/s."""
    odometry_noise: float = 0.0
    """Standard deviation of every linear velocity of an odometry, m/s."""
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


@dataclass(frozen=True)
class Lags:
    """Delays that were measured on a robot, to be drawn from, s. They come on top of the gap's own."""

    command: np.ndarray
    """(N,) from an observation to its command."""
    inputs: dict[str, np.ndarray]
    """(N,) of each sensor or camera, from a measurement to its delivery."""

    @staticmethod
    def training(file: Path, robot: RobotSpec, cameras: Iterable[Camera]) -> Lags:
        """What a policy meets on the robot, bus, ticks and its own time included. Raises SpecError."""
        found = load_latency(file, robot, cameras)
        return Lags(np.array(found.command_s), {name: np.array(late.age_s) for name, late in found.inputs.items()})

    @staticmethod
    def live(file: Path, robot: RobotSpec) -> Lags:
        """What the robot's own drivers add, where bus and policy are real. Raises SpecError."""
        found = load_latency(file, robot)
        return Lags(np.zeros(1), {name: np.array(late.driver_s) for name, late in found.inputs.items()})

    def most(self, names: Iterable[str]) -> float:
        """The longest delay of some sensors or cameras, s."""
        return max((float(self.inputs[name].max()) for name in names if name in self.inputs), default=0.0)


NO_LAGS = Lags(np.zeros(1), {})


class History(Generic[Value]):
    """Values in order of time, looked up by time."""

    def __init__(self, value: Value) -> None:
        """`value` has held since ever."""
        self._values = deque([(-np.inf, value)])

    def push(self, time: float, value: Value) -> None:
        """Add a value that comes about at `time`, s, or with the newest one if that comes later."""
        self._values.append((max(time, self._values[-1][0]), value))

    def at(self, time: float) -> Value:
        """The newest value that had come about at `time`, s."""
        return next((value for since, value in reversed(self._values) if since <= time + 1e-9), self._values[0][1])

    def forget(self, before: float) -> None:
        """Let go of what nobody asks for who asks for no time `before`, s."""
        while len(self._values) > 1 and self._values[1][0] <= before + 1e-9:
            self._values.popleft()
