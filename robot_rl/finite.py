"""A NaN or an infinity ends a run: nothing is learned from it, no checkpoint keeps it, and the batch is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.replay import Batch, Data, NotFinite


class Watched:
    """Data that remembers the newest batch drawn from it."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.newest: Batch = {}

    def sample(self, batch: int, horizon: int = 1, n_step: int = 1, discount: float = 0.99) -> Batch:
        """As the data's own."""
        self.newest = self.data.sample(batch, horizon, n_step, discount)
        return self.newest

    def prioritise(self, index: np.ndarray, source: np.ndarray, priority: np.ndarray) -> None:
        """As the data's own."""
        self.data.prioritise(index, source, priority)

    def renew(self, index: np.ndarray, source: np.ndarray, plan: np.ndarray) -> None:
        """As the data's own."""
        self.data.renew(index, source, plan)

    def reward_size(self) -> float:
        """As the data's own."""
        return self.data.reward_size()

    def __len__(self) -> int:
        """Transitions held."""
        return len(self.data)


def not_finite(state: Any, name: str = "") -> Iterator[str]:
    """Paths of the numbers, arrays and tensors in nested dicts and lists that hold a NaN or an infinity."""
    if isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from not_finite(value, f"{name}/{key}" if name else str(key))
    elif isinstance(state, float | np.floating) or (isinstance(state, np.ndarray) and state.dtype.kind == "f"):
        if not np.isfinite(state).all():
            yield name
    elif hasattr(state, "is_floating_point") and state.is_floating_point() and not bool(state.isfinite().all()):
        yield name  # a tensor, said without torch


def demand_finite(state: Any, what: str, batch: Batch) -> None:
    """Raise NotFinite, with the batch that was learned from last, where `state` holds a NaN or an infinity."""
    if bad := list(not_finite(state)):
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise NotFinite(f"{what}: {', '.join(bad[:3])}{more} not finite", batch)


@contextmanager
def rescue(folder: Path) -> Iterator[None]:
    """On NotFinite write its batch to `folder` and say so in the error, a FloatingPointError."""
    try:
        yield
    except NotFinite as error:
        path = folder / "not_finite.npz"
        np.savez(path, **error.batch)  # type: ignore[arg-type]
        raise FloatingPointError(f"{error}; the batch is in {path}, the last checkpoint is intact") from error
