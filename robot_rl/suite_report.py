"""One self-contained HTML page and PNG figures about a suite's runs, beside public learners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robot_rl.log import write_atomic
from robot_rl.page.plots import write_figures
from robot_rl.page.scores import Comparison, read_public
from robot_rl.page.suite import Page
from robot_rl.report import made
from robot_rl.spec import SpecError
from robot_rl.suite import results, tabled, write_tables

PUBLIC_CURVES = Path(__file__).parents[1] / "docs/results/public_curves.csv"
"""Comes with a checkout, not with an installed package."""


def write_suite_report(folder: Path, out: Path, curves: Path | None = None, baseline: str | None = None,
                       recipes: Sequence[str] = ()) -> dict[str, Any]:
    """Write the page about `folder` to `out`, figures to folder/figures and both tables again; returns what was made.

    Where `folder` is a table like returns.csv, only its learning curves are drawn, to figures/ beside it.
    `curves` is a CSV file of public learners, `PUBLIC_CURVES` where that is present; `baseline` is the recipe that the
    others are compared with, else the first; `recipes` are those that are shown, else all. Raises SpecError without an
    evaluated run, or without one of `baseline` or of one of `recipes`.
    """
    if curves is None and PUBLIC_CURVES.exists():
        curves = PUBLIC_CURVES
    alone = folder.is_file()
    found = tabled(folder) if alone else results(folder)
    observed = sorted({result.observation for result in found})
    if len(observed) > 1:
        raise SpecError(f"{folder}: runs from {' and from '.join(observed)}; give each kind a folder of its own")
    known = {result.config.recipe for result in found}
    if unknown := set(recipes) - known:
        raise SpecError(f"--recipe {', '.join(sorted(unknown))}: the runs in {folder} are of "
                        f"{', '.join(sorted(known))}")
    found = [result for result in found if not recipes or result.config.recipe in recipes]
    compared = Comparison(found, read_public(curves, *observed) if curves else [])
    if not compared.results:
        raise SpecError(f"{folder}: no evaluated run below it; make some with `robot-rl suite run --out {folder}`")
    if baseline is not None and baseline not in compared.recipes:
        raise SpecError(f"--baseline {baseline}: the runs in {folder} are of {', '.join(compared.recipes)}")
    if alone:
        return _drawn(folder.parent / "figures", compared)
    page = Page(folder, found, compared, baseline)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.text(made()).encode())
    told: dict[str, Any] = {"report": str(out), "compared_at": compared.at, **write_tables(folder)}
    return told | _drawn(folder / "figures", compared, page.iqms, page.improvements, page.efficiency)


def _drawn(folder: Path, *what: Any) -> dict[str, Any]:
    try:
        return {"figures": [str(path) for path in write_figures(folder, *what)]}
    except ModuleNotFoundError as error:
        return {"figures": [], "no_figures": f"{error.name} is not installed: pip install 'robot-rl[plots]'"}
