"""Few seeds, many tasks: interquartile mean, stratified bootstrap intervals, probability of improvement.

`scores` holds one array (S,) of scores for each task, one score a seed; tasks may have different numbers of seeds. The
measures are those that Agarwal et al. (2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice")
recommend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

Scores = Sequence[ArrayLike]
"""By task: scores (S,) of its seeds."""


def iqm(scores: ArrayLike, axis: int | None = None) -> np.ndarray | float:
    """Mean of what is left without the lowest and the highest quarter (each rounded down to whole scores).

    Over all scores of an array of any shape (then a float), or along one axis (then an array without that axis).
    Raises ValueError for no scores.
    """
    values = np.asarray(scores, float)
    values = values.reshape(-1) if axis is None else np.moveaxis(values, axis, -1)
    n = values.shape[-1]
    if n == 0:
        raise ValueError("iqm: no scores")
    cut = n // 4
    middle = np.sort(values, -1)[..., cut:n - cut].mean(-1)
    return float(middle) if axis is None else middle


def stratified_bootstrap_ci(scores: Scores, statistic: Callable[..., ArrayLike] = iqm, *, level: float = 0.95,
                            resamples: int = 2_000, seed: int = 0) -> tuple[float, float] | None:
    """Percentile interval of `statistic` over all scores, seeds drawn anew within each task and tasks kept.

    `statistic` takes (R, N) with `axis=-1` and gives (R,). None when no task has two seeds: then nothing is known of
    the spread.
    """
    arrays = [np.asarray(s, float) for s in scores]
    if all(len(a) < 2 for a in arrays):
        return None
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([_resampled(a, resamples, rng) for a in arrays], axis=1)  # (R, N)
    return _interval(np.asarray(statistic(drawn, axis=-1)), level)


def probability_of_improvement(ours: Scores, theirs: Scores) -> float:
    """Chance that a run of `ours` beats one of `theirs` on a task drawn at random; a tie counts half.

    Both list the same tasks in the same order. Raises ValueError otherwise, or for a task without scores.
    """
    _check(ours, theirs)
    return float(np.mean([_wins(np.asarray(a, float)[None], np.asarray(b, float)[None])[0]
                          for a, b in zip(ours, theirs, strict=True)]))


def improvement_ci(ours: Scores, theirs: Scores, *, level: float = 0.95, resamples: int = 2_000, seed: int = 0
                   ) -> tuple[float, float] | None:
    """Stratified bootstrap interval of `probability_of_improvement`; None when no task has two seeds on both sides."""
    _check(ours, theirs)
    pairs = [(np.asarray(a, float), np.asarray(b, float)) for a, b in zip(ours, theirs, strict=True)]
    if all(min(len(a), len(b)) < 2 for a, b in pairs):
        return None
    rng = np.random.default_rng(seed)
    chances = [_wins(_resampled(a, resamples, rng), _resampled(b, resamples, rng)) for a, b in pairs]
    return _interval(np.mean(chances, axis=0), level)


def _wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(R,) share of pairs in which a score of `a` (R, S) is above one of `b` (R, S'), half for equal ones."""
    difference = a[:, :, None] - b[:, None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean((1, 2))


def _resampled(scores: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(R, S) scores drawn with replacement from (S,)."""
    return scores[rng.integers(0, len(scores), (resamples, len(scores)))]


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(ours: Scores, theirs: Scores) -> None:
    sizes = [[np.size(s) for s in scores] for scores in (ours, theirs)]
    if len(ours) != len(theirs) or not len(ours) or not all(map(all, sizes)):
        raise ValueError(f"probability of improvement: scores of the same tasks are needed, at least one a task; "
                         f"seeds by task: {sizes[0]} against {sizes[1]}")
