"""Reward and success from the contract's terms, so that they exist wherever the readings exist."""

from __future__ import annotations

import numpy as np

from robot_rl.observe import Quantity, Values
from robot_rl.spec import PolicySpec, Reward


class Rewards:
    """The sum of a contract's reward terms."""

    def __init__(self, spec: PolicySpec) -> None:
        self._terms = [(Quantity(r.term, spec), r) for r in spec.rewards]
        self.parts: dict[str, float] = {}
        """What each term gave in the last step, by its name; of terms with one name together."""

    def reset(self) -> None:
        """Start an episode."""
        for quantity, _ in self._terms:
            quantity.reset()

    def __call__(self, values: Values) -> float:
        """Reward of the step that led to these values."""
        self.parts = dict.fromkeys((r.term.name for _, r in self._terms), 0.0)
        for quantity, r in self._terms:
            self.parts[r.term.name] += float(r.weight * shape(r, quantity(values)).sum())
        return sum(self.parts.values())


class SuccessClock:
    """How long the success condition has held, in s."""

    def __init__(self, spec: PolicySpec) -> None:
        assert spec.success is not None
        self.spec = spec.success
        self.hold_s = 0.0
        self._dt = 1.0 / spec.rate_hz
        self._quantity = Quantity(spec.success.term, spec)

    def reset(self) -> None:
        """Start an episode."""
        self.hold_s = 0.0
        self._quantity.reset()

    def __call__(self, values: Values) -> bool:
        """Advance by one step; True when the condition has held for long enough."""
        holds = self.spec.holds(float(self._quantity(values)[0]))
        self.hold_s = self.hold_s + self._dt if holds else 0.0
        return self.hold_s >= self.spec.hold_s - 1e-9


def shape(reward: Reward, x: np.ndarray) -> np.ndarray:
    """The reward's shape over the term's numbers (n,)."""
    if reward.shape == "value":
        return x
    outside = np.maximum(np.maximum(reward.lower - x, x - reward.upper), 0.0)
    inside = (outside == 0).astype(float) if reward.margin == 0 else 0.1 ** np.square(outside / reward.margin)
    return 1.0 - inside if reward.shape == "miss" else inside
