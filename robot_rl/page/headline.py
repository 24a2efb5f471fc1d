"""The result: success in simulation, before and after, with intervals, time used, and the reality gap in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from robot_rl.evaluate import wilson
from robot_rl.page import html
from robot_rl.page.curves import Runs
from robot_rl.page.figures import intervals
from robot_rl.page.tracks import WORDS, Track, Tracks, paired

SHORT = {"ink": "Simulation", "before": "Robot, before", "after": "Robot, after", "only": "Recorded"}
GAP_WORDS = {
    "payload": lambda v: f"{1e3 * v:g} g carried at the tip",
    "friction": lambda v: f"{v:g} N·m of dry friction added to every driven joint",
    "motor_strength": lambda v: f"motors with {v:.0%} of their gain and force",
    "encoder_bias": lambda v: f"encoders off by {v:g} rad ({np.degrees(v):.1f}°)",
    "command_delay": lambda v: f"commands that take effect {1e3 * v:g} ms late",
    "sensor_delay": lambda v: f"measurements that arrive {1e3 * v:g} ms late",
    "noise": lambda v: f"encoder noise of {v:g} rad (standard deviation)",
    "pose_noise": lambda v: f"tip tracker noise of {1e3 * v:g} mm (standard deviation)",
    "dropout": lambda v: f"{v:.1%} of sensor messages lost",
}


def scores(figures: Mapping[str, Any], tracks: Tracks) -> list[tuple[str, str, dict[str, Any]]]:
    """(words, series, figures) of every evaluation: as the commands told it, else from the bags."""
    out = [("in simulation", "ink", figures["simulation"])] if "simulation" in figures else []
    for key, words in WORDS.items():
        place = words if key == "only" else f"on the robot, {words}"
        told = figures.get(key) or _counted(tracks.get(key, ()))
        if told:
            out.append((place, key, told))
    return [row for row in out if row[2].get("success_rate") is not None]


def _counted(tracks: Sequence[Track]) -> dict[str, Any]:
    ended = [t for t in tracks if t.success is not None]
    if not ended:
        return {}
    won = sum(bool(t.success) for t in ended)
    return {"episodes": len(ended), "success_rate": won / len(ended), "success_ci95": wilson(won, len(ended)),
            "return_mean": float(np.mean([t.end["episode_return"] for t in ended]))}


def summary(figures: Mapping[str, Any], runs: Runs, tracks: Tracks) -> str:
    """The outcome in a sentence or two."""
    told = {series: _of(row) for _, series, row in scores(figures, tracks)}
    minutes = figures.get("finetune", {}).get("robot_minutes")
    if {"ink", "before", "after"} <= told.keys() and minutes is not None:
        return (f"Trained in simulation alone, the policy succeeds in {told['ink']} episodes there, but in "
                f"{told['before']} on a robot with a reality gap. After {minutes:.1f} minutes of learning on that "
                f"robot it succeeds in {told['after']}{', with the same goals' if paired(tracks) else ''}.")
    parts = []
    if "train" in runs:
        parts.append(_trained(runs["train"][1]))
    if "finetune" in runs:
        lines = [line for line in runs["finetune"][1] if "robot/minutes" in line]
        parts.append(f"{len(lines)} episodes of fine-tuning on the robot took {lines[-1]['robot/minutes']:.1f} minutes "
                     "of its time.")
    parts += [f"{place[0].upper()}{place[1:]}: success in {_of(row)} episodes." for place, _, row in
              scores(figures, tracks)]
    broken = sum(t.success is None for ts in tracks.values() for t in ts)
    if broken:
        parts.append(f"{broken} recording{'s' * (broken > 1)} broke off.")
    return " ".join(parts)


def _trained(lines: Sequence[dict[str, Any]]) -> str:
    last, seconds = lines[-1]["step"], max((line.get("time/seconds", 0.0) for line in lines), default=0.0)
    best = next((line for line in reversed(lines) if "evaluate/return_mean" in line), None)
    text = f"{last:,} steps of training in simulation took {_duration(seconds)}."
    if best is not None and "evaluate/success_rate" in best:
        text += (f" The last evaluation, at step {best['step']:,}, succeeded in {best['evaluate/success_rate']:.0%} of "
                 f"{best['evaluate/episodes']:.0f} episodes.")
    elif best is not None:
        text += f" The last evaluation, at step {best['step']:,}, returned {best['evaluate/return_mean']:.4g} a time."
    return text


def result(figures: Mapping[str, Any], runs: Runs, tracks: Tracks) -> str:
    """The headline: numbers, table, intervals, and the gap in words."""
    rows = scores(figures, tracks)
    if not rows:
        return ""
    cells = [[SHORT[series], f"<b>{row['success_rate']:.1%}</b>",
              _range(*row["success_ci95"]), str(row["episodes"]), _signed(row["return_mean"])]
             for _, series, row in rows]
    table = html.table(["", "Success", "95% interval", "Episodes", "Return"], cells)
    dots = [(place, series, row["success_ci95"][0], row["success_rate"],
             row["success_ci95"][1]) for place, series, row in rows]
    drawn = html.figure("Success with its 95% Wilson interval",
                        intervals(dots, "share of episodes", "success rates with intervals: " + "; ".join(
                            f"{place} {row['success_rate']:.1%}" for place, _, row in rows)),
                        "A dot is the share of episodes that ended in success; the whisker spans the success rates "
                        "that are compatible with so many episodes.")
    left = f'<div class="wide scores">{table}{_verdict(rows)}{_gap(figures)}</div>'
    return _tiles(figures, runs, tracks) + html.columns([left, drawn])


def _tiles(figures: Mapping[str, Any], runs: Runs, tracks: Tracks) -> str:
    tiles = []
    told = {series: row for _, series, row in scores(figures, tracks)}
    if {"before", "after"} <= told.keys():
        tiles.append(("success on the robot", f"{told['before']['success_rate']:.0%} <small>to</small> "
                      f"{told['after']['success_rate']:.0%}"))
    if "finetune" in figures:
        tiles.append(("of robot time for fine-tuning, resets included",
                      f"{figures['finetune']['robot_minutes']:.1f} <small>min</small>"))
    if "train" in runs and figures:
        seconds = max((line.get("time/seconds", 0.0) for line in runs["train"][1]), default=0.0)
        tiles.append(("of training in simulation", f"{seconds / 60:.1f} <small>min</small>"))
    if "seconds" in figures:
        tiles.append(("wall time of the whole demo", f"{figures['seconds'] / 60:.1f} <small>min</small>"))
    if len(tiles) < 2:
        return ""
    return '<dl class="numbers">' + "".join(f"<div><dd>{v}</dd><dt>{escape(k)}</dt></div>" for k, v in tiles) + "</dl>"


def _verdict(rows: Sequence[tuple[str, str, dict[str, Any]]]) -> str:
    told = {series: row for _, series, row in rows}
    if not {"before", "after"} <= told.keys():
        return ""
    apart = told["after"]["success_ci95"][0] > told["before"]["success_ci95"][1]
    return "<p></p>" + html.paragraph(
        "The interval after fine-tuning lies wholly above the one before: the gain is not a matter of luck."
        if apart else "The two intervals on the robot overlap: so few episodes do not prove a gain.")


def _gap(figures: Mapping[str, Any]) -> str:
    if "gap" not in figures:
        return ""
    items = [part.partition("=") for part in str(figures["gap"]).split(",") if part]
    lines = [GAP_WORDS[key](float(value)) if key in GAP_WORDS else f"{key} = {value}"
             for key, _, value in items if key != "seed"]
    return ("<h3>The reality gap</h3>" + html.paragraph("What the robot has and the simulation in training had not:")
            + html.bullets(lines or ["nothing: the robot behaves as in training"]))


def _of(row: Mapping[str, Any]) -> str:
    return f"{round(row['success_rate'] * row['episodes'])} of {row['episodes']}"


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}%"


def _signed(value: float) -> str:
    return f"{value:.1f}".replace("-", "\N{MINUS SIGN}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
