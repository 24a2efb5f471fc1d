"""The figures of a suite's page as PNG files, drawn by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.page.figures import number
from robot_rl.page.scores import Comparison, mean_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECIPES = ("#2b52cf", "#c5441a", "#0a7868", "#8a2fb0", "#111111", "#d4a017", "#e377c2")
LINES = ("-", "-.", ":")  # of recipes whose colours are used up
PUBLIC = ("#94702a", "#66758a", "#b0608f", "#4f8a4f", "#3f94ad", "#8d8d8d")
BESIDE = 6  # names that fit into a picture

Row = tuple[str, int, float, tuple[float, float] | None]
"""Name, which recipe, value, interval."""


def write_figures(folder: Path, compared: Comparison, iqms: Sequence[Row] = (), improvements: Sequence[Row] = (),
                  efficiency: Mapping[str, np.ndarray] = MappingProxyType({})) -> list[Path]:
    """One PNG a task and one for each figure over all tasks; returns their paths. Raises ModuleNotFoundError.

    `efficiency` holds by recipe (N, 4): step, low, interquartile mean, high.
    """
    figures = {f"curves_{task}": _curves(compared, task) for task in compared.tasks}
    if iqms:
        figures["iqm"] = _dots(iqms, "interquartile mean of scores")
    if improvements:
        figures["improvement"] = _dots(improvements, "probability of improvement", half=True)
    if efficiency:
        figures["sample_efficiency"] = _efficiency(efficiency)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=160)
    return [folder / f"{name}.png" for name in figures]


def _curves(compared: Comparison, task: str) -> Figure:
    figure, axes = _axes(task, "environment steps", "return")
    last = max(r.steps[-1] for recipe in compared.recipes for r in compared.of(task, recipe))
    for name, curve in ((p.algorithm, p) for p in compared.public[task]):
        near = curve.steps <= max(last, compared.at)
        if near.any():
            axes.errorbar(curve.steps[near], curve.mean[near], curve.std[near], color=_public(compared, name), lw=1.1,
                          ls="--", marker="o", ms=3, elinewidth=0.6, label=name)
    for k, recipe in enumerate(compared.recipes):
        runs, colour = compared.of(task, recipe), RECIPES[k % len(RECIPES)]
        for run in runs if len(runs) > 1 else ():
            axes.plot(run.steps, run.returns, color=colour, lw=0.7, alpha=0.6)
        if runs:
            steps, mean, low, high = mean_curve(runs)
            axes.fill_between(steps, low, high, color=colour, alpha=0.13, lw=0)
            axes.plot(steps, mean, color=colour, lw=2, marker="o", ms=3, ls=LINES[k // len(RECIPES) % len(LINES)],
                      label=f"{recipe} ({len(runs)} seed{'s' * (len(runs) > 1)})")
    _by_steps(axes)
    return figure


def _efficiency(efficiency: Mapping[str, np.ndarray]) -> Figure:
    figure, axes = _axes("Sample efficiency", "environment steps", "interquartile mean of scores")
    for k, (recipe, rows) in enumerate(efficiency.items()):
        colour = RECIPES[k % len(RECIPES)]
        axes.fill_between(rows[:, 0], rows[:, 1], rows[:, 3], color=colour, alpha=0.13, lw=0)
        axes.plot(rows[:, 0], rows[:, 2], color=colour, lw=2, label=recipe)
    _by_steps(axes)
    return figure


def _dots(rows: Sequence[Row], label: str, half: bool = False) -> Figure:
    figure, axes = _axes("", label, "", height=0.9 + 0.45 * len(rows))
    for y, (_, k, value, interval) in enumerate(rows):
        colour = RECIPES[k % len(RECIPES)]
        if interval:
            axes.plot(interval, (y, y), color=colour, lw=2)
        axes.plot(value, y, "o", color=colour)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.03, max(1.03, axes.get_xlim()[1]))
    if half:
        axes.axvline(0.5, color="#747d8b", lw=1, ls="--")
    return figure


def _axes(title: str, x: str, y: str, height: float = 3.2) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure
    figure = Figure((4.8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#e8eaed")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _by_steps(axes: Any) -> None:
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: number(value))
    if len(axes.get_legend_handles_labels()[0]) <= BESIDE:
        axes.legend(fontsize=7, frameon=False)
    else:  # they would hide the curves
        axes.figure.set_size_inches(7.6, axes.figure.get_figheight())
        axes.figure.legend(fontsize=7, frameon=False, loc="outside right upper")


def _public(compared: Comparison, algorithm: str) -> str:
    return PUBLIC[compared.algorithms.index(algorithm) % len(PUBLIC)]
