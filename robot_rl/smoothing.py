"""Reward smoothing: what a learner is told of when an episode's rewards came is spread in time (DreamSmooth, method 0).

A reward that comes once, at a moment that nobody can foretell to the step, is what a model of rewards leaves out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CHOICES = "none, gaussian:STD and uniform:WIDTH in steps, or ema:SHARE that each step hands to the next"


@dataclass(frozen=True)
class Smoothing:
    """Each reward of a segment is shared among the steps about it, which together get all of it.

    What would fall before the segment's first step, or past its last, goes to the others: nothing is lost at an end.
    """

    weights: tuple[float, ...]
    """Of the steps from `before` a reward on."""
    before: int

    @classmethod
    def parse(cls, text: str) -> Smoothing | None:
        """From "gaussian:3", "uniform:9" (odd), "ema:0.5", which only looks back, or "none". Raises ValueError."""
        if text == "none":
            return None
        kind, _, number = text.partition(":")
        try:
            size = float(number)
        except ValueError:
            size = math.nan
        if kind == "gaussian" and 0 < size < 1e3:
            reach = math.ceil(4 * size)
            return cls(tuple(np.exp(-0.5 * (np.arange(-reach, reach + 1) / size) ** 2)), reach)
        if kind == "uniform" and 1 <= size < 1e4 and size % 2 == 1:
            return cls((1.0,) * int(size), int(size) // 2)
        if kind == "ema" and 0 < size < 1:
            return cls(tuple(size ** np.arange(math.ceil(math.log(1e-4) / math.log(size)) + 1)), 0)
        raise ValueError(f"smoothing is {text!r}; it is {CHOICES}, as gaussian:3, uniform:9 or ema:0.5")

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """(n,) in order -> (n,) with the same sum."""
        weights, count = np.array(self.weights), len(rewards)
        first = len(weights) - 1 - self.before
        given = np.convolve(np.ones(count), weights[::-1])[first : first + count]  # of a reward, to steps that exist
        return np.convolve(rewards / given, weights)[self.before : self.before + count]
