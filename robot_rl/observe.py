"""Reading → observation: one function for the simulator, the robot and the log reader (stage 2 of a step)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from robot_rl.spec import PolicySpec, Term

Values = dict[str, np.ndarray]
Observation = np.ndarray | dict[str, np.ndarray]
"""(O,) float32; of a policy that sees {"state": (O,) float32, "frames": (C, H, W) uint8}."""


def alone(observation: Observation) -> Observation:
    """An observation as a batch of one."""
    return {k: v[None] for k, v in observation.items()} if isinstance(observation, dict) else observation[None]


@dataclass
class Readings:
    """What the sensors said last, by source name (`joints.position`, `tip.orientation`, …), SI units."""

    values: Values
    stamps: dict[str, int] = field(default_factory=dict)
    """Source stamp of each sensor's message, ns since the Unix epoch."""
    ages: dict[str, float] = field(default_factory=dict)
    """Seconds since each sensor's message arrived, on the monotonic clock."""


class Quantity:
    """One term, ready to be evaluated; holds what `change` and `history` remember within an episode."""

    def __init__(self, term: Term, spec: PolicySpec) -> None:
        assert spec.robot is not None
        self.term = term
        self._pick = _picker(term.source, term, spec)
        self._minus = _picker(term.minus, term, spec) if term.minus else None
        self._transform = _TRANSFORMS.get(term.transform, lambda x: x)
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


class Observer:
    """All observation terms of a contract, concatenated in their order."""

    def __init__(self, spec: PolicySpec) -> None:
        self.size = spec.observation_size
        self._quantities = [Quantity(term, spec) for term in spec.observations]

    def reset(self) -> None:
        """Start an episode: histories will be filled with its first values."""
        for quantity in self._quantities:
            quantity.reset()

    def __call__(self, values: Values) -> np.ndarray:
        """Observation (O,) float32 from the values of every source."""
        observation = np.concatenate([q(values) for q in self._quantities]).astype(np.float32)
        assert observation.shape == (self.size,), (observation.shape, self.size)
        return observation


_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sin_cos": lambda x: np.concatenate([np.sin(x), np.cos(x)]),
    "cos": np.cos,
    "norm": lambda x: np.sqrt(np.sum(np.square(x), keepdims=True)),
    "square": np.square,
}


def _picker(source: str, term: Term, spec: PolicySpec) -> Callable[[Values], np.ndarray]:
    """A function that takes one source, or the joints or axes of it that a term names, out of all values."""
    assert spec.robot is not None
    if not term.joints and not term.axes:
        return lambda values: values[source]
    names = [j.name for j in (spec.robot.actuated if source == "command" else spec.robot.joints)]
    index = np.array([names.index(j) for j in term.joints] or ["xyz".index(a) for a in term.axes], dtype=np.intp)
    return lambda values: values[source][index]
