"""Which steps to learn from more often: those that the critics were wrong about.

The rule is that of LAP (Fujimoto et al. 2020, An Equivalence between Loss Functions and Non-Uniform Sampling in
Experience Replay): step i is drawn with a probability in proportion to max(|error_i|, 1)**alpha and its loss is not
reweighted; the loss that belongs to it is Huber's. New steps get the highest priority. Axes: B batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

FAN = 4  # numbers below a node of the tree: few operations a level, and few levels
ONES = np.ones(FAN)
TOP = 4_096  # numbers that are faster summed up at each draw than through more levels
RENEWAL = 1_000  # updates after which the highest priority is looked up again, so that one early outlier is forgotten


class SumTree:
    """Numbers >= 0 at the places 0 ... size - 1, of which one is drawn with a probability in proportion to it.

    Each level holds the sums of FAN neighbours below; both verbs work on a whole batch, level by level.
    """

    def __init__(self, size: int) -> None:
        self._levels: list[np.ndarray] = []
        while not self._levels or size > TOP:
            size = -(-size // FAN)
            self._levels.append(np.zeros((size, FAN)))
        self._top = np.zeros(size)
        self.numbers = self._levels[0].reshape(-1)
        """The numbers, to be read; places from `size` on are 0."""

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        return self._top.nbytes + sum(level.nbytes for level in self._levels)

    def set(self, place: np.ndarray, number: np.ndarray) -> None:
        """Put `number` (B,) at `place` (B,) int64; of a place that comes twice the last number counts."""
        for level in self._levels:
            level.reshape(-1)[place] = number
            place = place // FAN
            number = level.take(place, axis=0) @ ONES  # summed anew, so nothing drifts
        self._top[place] = number

    def draw(self, uniform: np.ndarray) -> np.ndarray:
        """Places (B,) int64 for numbers `uniform` (B,) in [0, 1). Some number must be above 0; a 0 is never drawn."""
        sums = self._top.cumsum()
        left = np.minimum(uniform * sums[-1], np.nextafter(sums[-1], 0.0))
        place = sums.searchsorted(left, "right")
        left = np.maximum(left - (sums - self._top)[place], 0.0)
        for level in reversed(self._levels):  # a place is never led to where there is 0, whatever the rounding
            one, two, three, four = level.take(place, axis=0).T
            pair = one + two
            right = (left >= pair) & (three + four > 0.0)
            left = left - pair * right
            lower, upper = np.where(right, three, one), np.where(right, four, two)
            odd = (left >= lower) & (upper > 0.0)
            left = left - lower * odd
            place = place * FAN + 2 * right + odd
        return place


class Priorities:
    """The priority of the row at each place of a replay; 0 where no step can be drawn."""

    def __init__(self, capacity: int, alpha: float) -> None:
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"replay: prioritized is {alpha}, an exponent in (0, 1], or 0 for even sampling")
        self.alpha = alpha
        self._tree = SumTree(capacity)
        self._highest, self._updates = 1.0, 0

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        return self._tree.nbytes

    def admit(self, place: np.ndarray, taken: np.ndarray) -> None:
        """Rows at `place` (B,) are new: the highest priority where a step was taken from them, else none."""
        self._tree.set(place, np.where(taken > 0.0, self._highest, 0.0))

    def update(self, place: np.ndarray, error: np.ndarray) -> None:
        """`error` (B,): how wrong the critics were about the steps at `place` (B,)."""
        priority = np.maximum(np.abs(error), 1.0) ** self.alpha
        self._tree.set(place, priority)
        self._updates += 1
        self._highest = max(self._highest, float(priority.max(initial=1.0)))
        if self._updates % RENEWAL == 0:
            self._highest = float(self._tree.numbers.max())

    def known(self, place: np.ndarray) -> np.ndarray:
        """Whether a step was taken from the rows at `place` (B,)."""
        return self._tree.numbers.take(place) > 0.0

    def draw(self, batch: int, generator: np.random.Generator) -> np.ndarray:
        """Places (B,) int64, drawn by priority."""
        return self._tree.draw(generator.random(batch))

    def state_dict(self, place: np.ndarray) -> dict[str, np.ndarray]:
        """The priorities at `place` (B,) in that order, and what new steps get."""
        return {"priorities": self._tree.numbers[place], "highest": np.array([self._highest, self._updates])}

    def load_state_dict(self, state: Mapping[str, np.ndarray], place: np.ndarray) -> None:
        """Continue from `state` with priorities that are all 0, the rows now being at `place` (B,)."""
        self._tree.set(place, np.asarray(state["priorities"]))
        self._highest, updates = (float(value) for value in state["highest"])
        self._updates = int(updates)
