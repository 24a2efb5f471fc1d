"""Runs of a suite beside public learners: who reached what at which step, as returns and as comparable scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from robot_rl.spec import SpecError
from robot_rl.suite import Result, table_rows

COLUMNS = ("observation", "task", "algorithm", "env_steps", "mean_return", "std_over_seeds", "seeds")
COMPARED_AT = 100_000  # env_steps at which learners are compared, where the runs are that long
DMC_MOST = 1000.0  # the highest return of a task of the dm_control suite


@dataclass(frozen=True)
class Public:
    """A public learner's curve on a task; arrays (N,) by env_steps."""

    task: str
    algorithm: str
    steps: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    """Over seeds."""
    seeds: np.ndarray

    def at(self, step: float) -> float:
        """Mean return at a step, between the published ones on a straight line; NaN outside them."""
        return value_at(self.steps, self.mean, step)


def read_public(file: Path, observation: str = "state") -> list[Public]:
    """The curves from state or pixels in a CSV file with `COLUMNS`. Raises SpecError naming file, line and column."""
    rows: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for line, row in table_rows(file, COLUMNS, "a table of public learners"):
        if row["observation"] == observation:
            rows.setdefault((row["task"], row["algorithm"]), []).append(_numbers(file, line, row))
    return [Public(task, algorithm, *np.array(sorted(found), float).T)
            for (task, algorithm), found in sorted(rows.items())]


def _numbers(file: Path, line: int, row: dict[str, str]) -> tuple[float, float, float, float]:
    found = []
    for column in COLUMNS[3:]:
        try:
            found.append(float(row[column]))
        except (TypeError, ValueError) as error:
            raise SpecError(f"{file}, line {line}: {column}={row[column]!r} is no number") from error
    return found[0], found[1], found[2], found[3]


@dataclass(frozen=True)
class Best:
    """The best public mean on a task at a step."""

    mean: float
    algorithm: str
    task: str
    """As the public table has it: another version of ours where it has none of ours."""


class Comparison:
    """A suite's runs and public curves, compared at `at` env_steps.

    That is `COMPARED_AT`, or the end of the shortest run that is finished; before any is, as far as the first came.
    """

    def __init__(self, found: Sequence[Result], public: Sequence[Public]) -> None:
        self.results = [r for r in found if len(r.steps)]
        self.tasks = list(dict.fromkeys(r.task for r in self.results))
        self.recipes = list(dict.fromkeys(r.config.recipe for r in self.results))
        self.dmc = {r.task for r in self.results if r.config.task.startswith("dmc:")}
        self.public = {task: _matching(task, public) for task in self.tasks}
        ends = [int(r.steps[-1]) for r in self.results if r.finished]
        far = max((int(r.steps[-1]) for r in self.results), default=0)
        self.at = min([COMPARED_AT, *(ends or [far])])

    def of(self, task: str, recipe: str) -> list[Result]:
        """The runs of a recipe on a task that were evaluated at all, by seed."""
        return [r for r in self.results if r.task == task and r.config.recipe == recipe]

    def returns(self, task: str, recipe: str, step: float) -> np.ndarray:
        """(S,) returns at a step, of the seeds that came so far."""
        values = np.array([value_at(r.steps, r.returns, step) for r in self.of(task, recipe)])
        return values[np.isfinite(values)]

    def best(self, task: str, step: float) -> Best | None:
        """The best public mean; None where nothing is published for the task at that step."""
        known = [Best(p.at(step), p.algorithm, p.task) for p in self.public[task] if np.isfinite(p.at(step))]
        return max(known, key=lambda b: b.mean, default=None)

    def unit(self, task: str, step: float) -> float | None:
        """The return that counts as a score of 1: 1000 in the dm_control suite, elsewhere the best public mean."""
        if task in self.dmc:
            return DMC_MOST
        best = self.best(task, step)
        return best.mean if best and best.mean > 0 else None

    @cached_property
    def scored(self) -> list[str]:
        """The tasks that figures over all tasks are taken over: every recipe ran them, and a score has a unit."""
        return self._scored(self.at)

    def scores(self, recipe: str, step: float) -> list[np.ndarray]:
        """By task of `scored`: scores (S,) of the seeds."""
        return [self.returns(task, recipe, step) / (self.unit(task, step) or np.nan) for task in self.scored]

    def grid(self) -> list[int]:
        """Steps at which every recipe has scores on all of `scored`: those of the evaluations."""
        steps = np.unique(np.concatenate([r.steps for r in self.results if r.task in self.scored] or [np.empty(0)]))
        return [int(s) for s in steps if self._scored(s) == self.scored]

    def public_scores(self) -> dict[str, float]:
        """By public learner with a figure on each of `scored`: the mean over tasks of its scores at `at`."""
        by: dict[str, list[float]] = {}
        for task in self.scored:
            for curve in self.public[task]:
                if np.isfinite(mean := curve.at(self.at)):
                    by.setdefault(curve.algorithm, []).append(mean / (self.unit(task, self.at) or np.nan))
        return {name: float(np.mean(v)) for name, v in sorted(by.items()) if len(v) == len(self.scored)}

    @cached_property
    def algorithms(self) -> list[str]:
        """Every public learner on any of the tasks, by name."""
        return sorted({p.algorithm for curves in self.public.values() for p in curves})

    def _scored(self, step: float) -> list[str]:
        return [task for task in self.tasks if self.unit(task, step)
                and all(len(self.returns(task, recipe, step)) for recipe in self.recipes)]


def value_at(steps: np.ndarray, values: np.ndarray, step: float) -> float:
    """A curve's value at a step, on a straight line between its points; NaN outside them."""
    return float(np.interp(step, steps, values, np.nan, np.nan)) if len(steps) else np.nan


def mean_curve(runs: Sequence[Result]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N,) steps, mean, lowest and highest return of the seeds, where every seed has been."""
    steps = np.unique(np.concatenate([r.steps for r in runs])).astype(float)
    every = np.array([[value_at(r.steps, r.returns, s) for s in steps] for r in runs])
    kept = np.isfinite(every).all(0)
    every = every[:, kept]
    return steps[kept], every.mean(0), every.min(0), every.max(0)


def _matching(task: str, public: Sequence[Public]) -> list[Public]:
    """The curves of a task, else those of another version of it (HalfCheetah-v4 for HalfCheetah-v5)."""
    stem = re.sub(r"-v\d+$", "", task)
    return [p for p in public if p.task == task] or [p for p in public if re.sub(r"-v\d+$", "", p.task) == stem]
