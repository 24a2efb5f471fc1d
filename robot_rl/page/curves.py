"""Learning curves of the training in simulation and of the fine-tuning on the robot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robot_rl.evaluate import wilson
from robot_rl.page import html
from robot_rl.page.figures import Axis, Chart, number, span

Runs = Mapping[str, tuple[dict[str, Any], list[dict[str, Any]]]]
"""By `train` and `finetune`: what run.json says and the lines of metrics.jsonl."""


def learning(runs: Runs, figures: Mapping[str, Any]) -> str:
    """Learning curves of the training in simulation and of the fine-tuning on the robot."""
    out = ""
    if "train" in runs and (drawn := _simulated(runs["train"][1])):
        out += "<h3>In simulation</h3>" + html.columns(drawn)
    if "finetune" in runs and (drawn := _on_robot(runs["finetune"][1], figures)):
        out += "<h3>On the robot, while fine-tuning</h3>" + html.columns(drawn)
    return out


def _simulated(lines: Sequence[dict[str, Any]]) -> list[str]:
    top = _wall(lines)
    taken = [line["step"] for line in lines]  # below 0: updates before the first step
    steps = Axis(min(0, *taken), max(taken), "environment steps")
    out = []
    tested, rate = _series(lines, "evaluate/success_rate")
    practised, practice = _series(lines, "collect/success")
    if len(tested):
        chart = Chart(steps, Axis(0, 1, "success rate", percent=True), top=top)
        _, episodes = _series([line for line in lines if "evaluate/success_rate" in line], "evaluate/episodes")
        low, high = np.array([wilson(round(r * n), int(n)) for r, n in zip(rate, episodes, strict=True)]).T
        chart.line(practised, practice, "faint before")
        chart.band(tested, low, high, "after")
        chart.line(tested, rate, "after")
        chart.dots(tested, rate, "after", [f"step {s:,.0f}: {r:.0%}" for s, r in zip(tested, rate, strict=True)])
        out.append(html.figure("Success rate", chart.svg("success rate against environment steps and wall time"),
                               f"Evaluation: {episodes[-1]:.0f} episodes without exploration noise each time; the "
                               "band is the 95% Wilson interval.",
                               [("after", "evaluation"), ("before", "while exploring")]))
    out.append(_pair(lines, steps, top, "Return", "return",
                     ("evaluate/return_mean", "evaluation"), ("collect/return", "while exploring"),
                     "Sum of the rewards of an episode, on average."))
    out.append(_pair(lines, steps, top, "Episode length", "steps", ("", ""), ("collect/length", "while exploring"),
                     "Steps until an episode ends, on average. Where success ends the episode, shorter is better."))
    return [figure for figure in out if figure]


def _pair(lines: Sequence[dict[str, Any]], x: Axis, top: Any, title: str, unit: str, main: tuple[str, str],
          other: tuple[str, str], caption: str) -> str:
    (x1, y1), (x2, y2) = _series(lines, main[0]), _series(lines, other[0])
    if not len(y1) and not len(y2):
        return ""
    chart = Chart(x, Axis(*span(y1, y2), unit), top=top)
    chart.line(x2, y2, "faint before" if len(y1) else "before")
    chart.line(x1, y1, "after")
    chart.dots(x1, y1, "after", [f"step {s:,.0f}: {v:.4g}" for s, v in zip(x1, y1, strict=True)])
    legend = [(c, words) for c, words, y in (("after", main[1], y1), ("before", other[1], y2)) if len(y)]
    return html.figure(title, chart.svg(f"{title} against environment steps and wall time"), caption, legend)


def _wall(lines: Sequence[dict[str, Any]]) -> tuple[list[tuple[float, str]], str] | None:
    """Where on the axis of steps the round wall times lie."""
    steps, seconds = _series(lines, "time/seconds")
    if len(steps) < 2 or not seconds[-1] > 0:
        return None
    unit, size = ("min", 60.0) if seconds[-1] > 120 else ("s", 1.0)
    ticks = [t for t in Axis(0, seconds[-1] / size, "").ticks(5) if t > 0]
    places = np.interp(np.array(ticks) * size, np.append(0.0, seconds), np.append(0.0, steps))
    return [(float(p), number(t)) for p, t in zip(places, ticks, strict=True)], f"wall time, {unit}"


def _on_robot(lines: Sequence[dict[str, Any]], figures: Mapping[str, Any], window: int = 10) -> list[str]:
    lines = [line for line in lines if "robot/minutes" in line]
    if not lines:
        return []
    minutes, success, total, length = (np.array([line.get(f"robot/{key}", np.nan) for line in lines])
                                       for key in ("minutes", "success", "return", "length"))
    x = Axis(0, max(float(minutes[-1]), 1e-3), "robot time, min")
    out = list[str]()
    if not np.isnan(success).all():
        out.append(_judged(x, minutes, success, figures, window))
    for title, unit, values in (("Return", "return", total), ("Episode length", "steps", length)):
        chart = Chart(x, Axis(*span(values), unit))
        chart.dots(minutes, values, "faint before", [f"episode {k}: {v:.4g}" for k, v in enumerate(values)])
        chart.line(minutes, _rolling(values, window), "after")
        out.append(html.figure(title, chart.svg(f"{title} of fine-tuning episodes against robot minutes"), "",
                               [("after", f"mean of the last {window} episodes"), ("dot before", "an episode")]))
    return out


def _judged(x: Axis, minutes: np.ndarray, success: np.ndarray, figures: Mapping[str, Any], window: int) -> str:
    """The figure of success (N,), 1 or 0, against robot minutes (N,)."""
    chart = Chart(x, Axis(-0.04, 1.04, "success rate", percent=True))
    names = [f"episode {k}: {'success' if s else 'no success'}" for k, s in enumerate(success)]
    for value, series in ((1.0, "good"), (0.0, "bad")):
        chosen = success == value
        chart.dots(minutes[chosen], success[chosen], f"faint {series}",
                   [n for n, c in zip(names, chosen, strict=True) if c])
    chart.line(minutes, _rolling(success, window), "after")
    told = figures.get("before", {}).get("success_rate")
    if told is not None:
        chart.rule(told, f"before: {told:.0%}")
    return html.figure("Success rate", chart.svg("success of fine-tuning episodes against robot minutes"),
                       "These episodes run with exploration noise, the ones before and after without.",
                       [("after", f"mean of the last {window} episodes"), ("dot good", "an episode: success"),
                        ("dot bad", "no success")])


def _rolling(values: np.ndarray, window: int) -> np.ndarray:
    """(N,) mean of the newest `window` values at each place; NaN until there are half as many."""
    means = [np.mean(values[max(0, i - window + 1):i + 1]) for i in range(len(values))]
    return np.where(np.arange(len(values)) + 1 < window // 2, np.nan, means)


def _series(lines: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) steps and values of the lines that have a key."""
    found = [(line["step"], line[key]) for line in lines if key in line]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, values
