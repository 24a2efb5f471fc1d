"""Reading → observation: one function for the simulator, the robot and the log reader (stage 2 of a step)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from robot_rl import image
from robot_rl.spec import PolicySpec, Sensor, Term, Vision

Values = dict[str, np.ndarray]
Observation = np.ndarray | dict[str, np.ndarray]
"""(O,) float32; with vision {"state": (O,) float32, "frames": `vision.shape` uint8}."""


def alone(observation: Observation) -> Observation:
    """An observation as a batch of one."""
    return {k: v[None] for k, v in observation.items()} if isinstance(observation, dict) else observation[None]


@dataclass
class Readings:
    """What the sensors said last, by source name (`joints.position`, `tip.orientation`, …), SI units.

    `<camera>.image` (H, W, 3) uint8 rgb, of any size, for each camera in use.
    """

    values: Values
    stamps: dict[str, int] = field(default_factory=dict)
    """Source stamp of each sensor's and camera's message, ns since the Unix epoch."""
    ages: dict[str, float] = field(default_factory=dict)
    """Seconds since each sensor's and camera's message arrived, on the monotonic clock; of a camera with its delay."""
    acquired: dict[str, int] = field(default_factory=dict)
    """When each was measured by its header, of a camera less its delay, ns since the Unix epoch by its own clock."""

    def behind_s(self, camera: str, joints: str) -> float:
        """How much earlier than the joints a camera's image was taken, s, by the clocks of their drivers."""
        return (self.acquired[joints] - self.acquired[camera]) * 1e-9


class Speeds:
    """Joint speeds, rad/s, from the positions of two decisions: for joint states with `velocity: derived`."""

    def __init__(self, sensor: Sensor, rate_hz: float) -> None:
        self._sensor, self._period = sensor, 1.0 / rate_hz
        self.reset()

    def reset(self) -> None:
        """An episode begins, at rest."""
        self._before: tuple[np.ndarray, int | None] | None = None
        self._speed: np.ndarray | None = None

    def __call__(self, readings: Readings) -> Readings:
        """The readings with speeds in them; as they are where speeds are measured or no position has come."""
        name = self._sensor.name
        position, stamp = readings.values.get(f"{name}.position"), readings.stamps.get(name)
        if self._sensor.velocity == "measured" or position is None:
            return readings
        if self._before is None or self._speed is None:
            self._speed = np.zeros_like(position)
        else:
            then, before = self._before
            seconds = self._period if stamp is None or before is None else (stamp - before) * 1e-9
            if seconds > 0:  # else it is the message of the decision before
                self._speed = (position - then) / seconds
        self._before = position, stamp
        return Readings(readings.values | {f"{name}.velocity": self._speed}, readings.stamps, readings.ages)


class Quantity:
    """One term, ready to be evaluated; holds what `change` and `history` remember within an episode."""

    def __init__(self, term: Term, spec: PolicySpec) -> None:
        assert spec.robot is not None
        self.term = term
        self._pick = _picker(term.source, term, spec)
        self._minus = _picker(term.minus, term, spec) if term.minus else None
        self._transform = _TRANSFORMS.get(term.transform, lambda x: x)
        if term.period_s:
            pick = self._pick
            self._pick = lambda values: 2 * np.pi / term.period_s * pick(values)
        if term.transform == "down":
            chosen = np.array(["xyz".index(axis) for axis in term.axes or "xyz"], dtype=np.intp)
            self._transform = lambda quaternion: _down(quaternion)[chosen]
        self._previous: np.ndarray | None = None
        self._past: np.ndarray | None = None

    def reset(self) -> None:
        """Forget the previous episode."""
        self._previous = self._past = None

    def __call__(self, values: Values) -> np.ndarray:
        """The term's numbers now, (n,) or (history * n,) float64, oldest first."""
        x = self._pick(values)
        if self._minus is not None:
            x = x - self._minus(values)
        if self.term.transform == "change":
            x, self._previous = x - (x if self._previous is None else self._previous), x.copy()
        x = self._transform(x) * self.term.scale
        if self.term.history == 1:
            return x
        if self._past is None:
            self._past = np.tile(x, (self.term.history, 1))
        else:
            self._past[:-1] = self._past[1:].copy()
            self._past[-1] = x
        return self._past.ravel()


class Frames:
    """The newest images of the cameras in use, stacked within an episode."""

    def __init__(self, vision: Vision) -> None:
        self._vision = vision
        self._past: np.ndarray | None = None

    def reset(self) -> None:
        """Forget the previous episode."""
        self._past = None

    def __call__(self, values: Values) -> np.ndarray:
        """`vision.shape` uint8: by time, oldest first, then by camera, then red, green, blue; a new array each time."""
        height, width = self._vision.height, self._vision.width
        frame = np.concatenate([image.fit(values[f"{c}.image"], height, width) for c in self._vision.cameras])
        if self._past is None:
            self._past = np.tile(frame, (self._vision.stack, 1, 1))
        else:
            self._past = np.concatenate([self._past[len(frame):], frame])
        return self._past


class Observer:
    """All observation terms of a contract, concatenated in their order, and the frames that it sees."""

    def __init__(self, spec: PolicySpec) -> None:
        self.size = spec.observation_size
        self._quantities = [Quantity(term, spec) for term in spec.observations]
        self._frames = Frames(spec.vision) if spec.vision else None

    def reset(self) -> None:
        """Start an episode: histories and stacks will be filled with its first values."""
        for quantity in self._quantities:
            quantity.reset()
        if self._frames is not None:
            self._frames.reset()

    def __call__(self, values: Values) -> Observation:
        """The observation from the values of every source."""
        state = np.concatenate([q(values) for q in self._quantities]).astype(np.float32)
        assert state.shape == (self.size,), (state.shape, self.size)
        return state if self._frames is None else {"state": state, "frames": self._frames(values)}


def blank(spec: PolicySpec) -> Observation:
    """An observation of a contract, all zeros."""
    state = np.zeros(spec.observation_size, np.float32)
    return {"state": state, "frames": np.zeros(spec.vision.shape, np.uint8)} if spec.vision else state


def state_of(observation: Observation) -> np.ndarray:
    """(O,) float32: the numbers of an observation, without its frames."""
    return observation["state"] if isinstance(observation, dict) else observation


_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sin_cos": lambda x: np.concatenate([np.sin(x), np.cos(x)]),
    "cos": np.cos,
    "norm": lambda x: np.sqrt(np.sum(np.square(x), keepdims=True)),
    "square": np.square,
}


def _down(quaternion: np.ndarray) -> np.ndarray:
    """(3,) where gravity points in the frame of an orientation (4,) xyzw: the last row of its matrix, turned round."""
    x, y, z, w = quaternion
    return np.array([2 * (w * y - x * z), -2 * (w * x + y * z), 2 * (x * x + y * y) - 1])


def _picker(source: str, term: Term, spec: PolicySpec) -> Callable[[Values], np.ndarray]:
    """A function that takes one source, or the joints or axes of it that a term names, out of all values."""
    assert spec.robot is not None
    if not term.joints and (not term.axes or term.transform == "down"):
        return lambda values: values[source]
    names = [j.name for j in (spec.robot.actuated if source == "command" else spec.robot.joints)]
    index = np.array([names.index(j) for j in term.joints] or ["xyz".index(a) for a in term.axes], dtype=np.intp)
    return lambda values: values[source][index]
