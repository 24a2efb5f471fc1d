"""The parts of a report, each as HTML; an empty text where there is nothing to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from robot_rl import page
from robot_rl.evaluate import wilson
from robot_rl.figures import Axis, Chart, bars, intervals, number, span, thin
from robot_rl.safety import Reason
from robot_rl.spec import Success
from robot_rl.stills import data_uri, stills
from robot_rl.tracks import Timing, Track, reason_shares

Runs = Mapping[str, tuple[dict[str, Any], list[dict[str, Any]]]]
Tracks = Mapping[str, Sequence[Track]]

WORDS = {"before": "before fine-tuning", "after": "after fine-tuning", "only": "recorded"}
OUTCOMES = [("good", "success"), ("bad", "no success")]
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
REASONS = {
    Reason.STOP: "stop: a stop message", Reason.MISSING: "missing: a sensor never spoke",
    Reason.STALE: "stale: a sensor fell silent", Reason.NONFINITE: "nonfinite: NaN or infinite values",
    Reason.WORKSPACE: "workspace: the tip left its box", Reason.POSITION: "position: cut at a joint limit",
    Reason.RATE: "rate: cut at a speed limit", Reason.EFFORT: "effort: cut at what the motor can push",
}


# --- result -------------------------------------------------------------------------------------------------------

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
                f"robot it succeeds in {told['after']}{', with the same goals' if _paired(tracks) else ''}.")
    parts = []
    if "train" in runs:
        parts.append(_trained(runs["train"][1]))
    if "finetune" in runs:
        lines = [line for line in runs["finetune"][1] if "robot/success" in line]
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
        text += f" The last evaluation, at step {best['step']:,}, returned {best['evaluate/return_mean']:.4g} on average."
    return text


def result(figures: Mapping[str, Any], runs: Runs, tracks: Tracks) -> str:
    """The headline: numbers, table, intervals, and the gap in words."""
    rows = scores(figures, tracks)
    if not rows:
        return ""
    cells = [[escape(place[0].upper() + place[1:]), f"<b>{row['success_rate']:.1%}</b>",
              "{:.1%} to {:.1%}".format(*row["success_ci95"]), str(row["episodes"]), f"{row['return_mean']:.2f}"]
             for place, _, row in rows]
    table = page.table(["", "Success", "95% interval", "Episodes", "Return"], cells)
    dots = [(f"{place}: {row['success_rate']:.1%}", series, row["success_ci95"][0], row["success_rate"],
             row["success_ci95"][1]) for place, series, row in rows]
    drawn = page.figure("Success rate with its 95% Wilson interval",
                        intervals(dots, "share of episodes", "success rates with intervals: "
                                  + "; ".join(name for name, *_ in dots)),
                        "A dot is the share of episodes that ended in success; the whisker spans the success rates "
                        "that are compatible with so many episodes.")
    left = f'<div class="wide">{table}{_verdict(rows)}{_gap(figures)}</div>'
    return _tiles(figures, runs, tracks) + page.columns([left, drawn])


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
    return "<p></p>" + page.paragraph(
        "The interval after fine-tuning lies wholly above the one before: the gain is not a matter of luck."
        if apart else "The two intervals on the robot overlap: so few episodes do not prove a gain.")


def _gap(figures: Mapping[str, Any]) -> str:
    if "gap" not in figures:
        return ""
    items = [part.partition("=") for part in str(figures["gap"]).split(",") if part]
    lines = [GAP_WORDS[key](float(value)) if key in GAP_WORDS else f"{key} = {value}"
             for key, _, value in items if key != "seed"]
    return ("<h3>The reality gap</h3>" + page.paragraph("What the robot has and the simulation in training had not:")
            + page.bullets(lines or ["nothing: the robot behaves as in training"]))


def _of(row: Mapping[str, Any]) -> str:
    return f"{round(row['success_rate'] * row['episodes'])} of {row['episodes']}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


# --- learning -----------------------------------------------------------------------------------------------------

def learning(runs: Runs, figures: Mapping[str, Any]) -> str:
    """Learning curves of the training in simulation and of the fine-tuning on the robot."""
    out = ""
    if "train" in runs and (drawn := _simulated(runs["train"][1])):
        out += "<h3>In simulation</h3>" + page.columns(drawn)
    if "finetune" in runs and (drawn := _on_robot(runs["finetune"][1], figures)):
        out += "<h3>On the robot, while fine-tuning</h3>" + page.columns(drawn)
    return out


def _simulated(lines: Sequence[dict[str, Any]]) -> list[str]:
    top = _wall(lines)
    steps = Axis(0, max(line["step"] for line in lines), "environment steps")
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
        out.append(page.figure("Success rate", chart.svg("success rate against environment steps and wall time"),
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
    return page.figure(title, chart.svg(f"{title} against environment steps and wall time"), caption, legend)


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
    lines = [line for line in lines if "robot/success" in line]
    if not lines:
        return []
    minutes, success, total, length = (np.array([line.get(f"robot/{key}", np.nan) for line in lines])
                                       for key in ("minutes", "success", "return", "length"))
    x = Axis(0, max(float(minutes[-1]), 1e-3), "robot time, min")
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
    first = page.figure("Success rate", chart.svg("success of fine-tuning episodes against robot minutes"),
                        "With exploration noise, thus lower than the policy alone would be.",
                        [("after", f"mean of the last {window} episodes"), ("dot good", "an episode: success"),
                         ("dot bad", "no success")])
    out = [first]
    for title, unit, values in (("Return", "return", total), ("Episode length", "steps", length)):
        chart = Chart(x, Axis(*span(values), unit))
        chart.dots(minutes, values, "faint before", [f"episode {k}: {v:.4g}" for k, v in enumerate(values)])
        chart.line(minutes, _rolling(values, window), "after")
        out.append(page.figure(title, chart.svg(f"{title} of fine-tuning episodes against robot minutes"), "",
                               [("after", f"mean of the last {window} episodes"), ("dot before", "an episode")]))
    return out


def _rolling(values: np.ndarray, window: int) -> np.ndarray:
    """(N,) mean of the newest `window` values at each place, of fewer at the start."""
    return np.array([np.mean(values[max(0, i - window + 1):i + 1]) for i in range(len(values))])


def _series(lines: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) steps and values of the lines that have a key."""
    found = [(line["step"], line[key]) for line in lines if key in line]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, values


# --- paths --------------------------------------------------------------------------------------------------------

def paths(tracks: Tracks) -> str:
    """Where the tip went, and how the success term went, for each group of episodes."""
    drawn = {key: group for key, group in tracks.items() if any(len(t.tip) for t in group)}
    out, parts = "", []
    if drawn:
        said = "The same goals before and after. " if _paired(tracks) else ""
        out += page.paragraph(said + "Each line is the tip of the robot in one episode, as the tracker saw it; circles "
                              "are the goals, to scale.")
        parts += [_top_and_side(group, drawn, words) for key, words in WORDS.items()
                  if (group := drawn.get(key)) is not None]
    over_time = [figure for key, words in WORDS.items() if (figure := _over_time(tracks.get(key, ()), words))]
    if over_time:
        parts.append("<div>" + "<p></p>".join(over_time) + "</div>")
    return out + (page.columns(parts) if parts else "") + _episodes(tracks)


def _top_and_side(group: Sequence[Track], every: Tracks, words: str) -> str:
    points = [p for g in every.values() for t in g for p in (t.tip, np.array([t.goal]).reshape(-1, 3))
              if t.goal is not None or p is t.tip]
    x, y, z = np.concatenate(points).T
    across, ahead = (span(v, pad=0.04) for v in (y, x))
    away, up = (span(v, pad=0.04) for v in (np.hypot(x, y), z))
    # the robot looks up the page, so its left, +y, is at the left
    top = Chart(Axis(*across, "left (+) and right of the base, m", reverse=True), Axis(*ahead, "ahead of the base, m"),
                equal=True)
    side = Chart(Axis(*away, "distance from the base's vertical axis, m"), Axis(*up, "height, m"), equal=True)
    for track in sorted(group, key=lambda t: t.success is not True, reverse=False):
        title = f"{track.bag.name}: {track.outcome}"
        flat = np.stack([track.tip[:, 1], track.tip[:, 0]], 1)
        tall = np.stack([np.hypot(track.tip[:, 0], track.tip[:, 1]), track.tip[:, 2]], 1)
        goal = track.goal
        spots = [(goal[1], goal[0]), (float(np.hypot(goal[0], goal[1])), goal[2])] if goal is not None else [None] * 2
        for chart, line, spot in ((top, flat, spots[0]), (side, tall, spots[1])):
            _draw(chart, line, spot, _radius(track), track.series, title)
    starts = [t.tip[0] for t in group if len(t.tip)]
    if starts:
        a, b, c = np.mean(starts, 0)
        top.note(b, a, "start")
        side.note(float(np.hypot(a, b)), c, "start")
    won = sum(t.success is True for t in group)
    seen = f"tip paths {words}, {won} of {len(group)} in success"
    return page.figure(f"{words[0].upper()}{words[1:]}: {won} of {len(group)}",
                       '<p class="eyebrow">From above</p>' + top.svg(f"{seen}, from above")
                       + '<p class="eyebrow">From the side</p>' + side.svg(f"{seen}, from the side"),
                       "", [*OUTCOMES, ("ring ink", f"goal, radius {100 * _radius(group[0]):g} cm")])


def _draw(chart: Chart, line: np.ndarray, spot: tuple[float, float] | None, radius: float, series: str,
          title: str) -> None:
    if spot is not None:
        chart.circle(*spot, radius, series, title)
    if len(line):
        kept = thin(line, 0.001)
        chart.line(kept[:, 0], kept[:, 1], f"fine {series}", title)
        if series == "good":
            chart.dots(kept[-1:, 0], kept[-1:, 1], series, [title], 2.2)
        else:
            chart.cross(*kept[-1], series, title)


def _radius(track: Track) -> float:
    """The bound of the success term where that is a distance, m."""
    success = track.spec.success
    return success.below if success is not None and success.below and success.term.transform == "norm" else 0.01


def _over_time(group: Sequence[Track], words: str) -> str:
    """The success term of every episode over time, with its bound."""
    success = group[0].spec.success if group else None
    if success is None or not any(np.isfinite(t.measure).any() for t in group):
        return ""
    distance, values = success.term.transform == "norm", np.concatenate([t.measure for t in group])
    scale, unit = (100.0, "cm") if distance and success.term.unit == "m" else (1.0, success.term.unit)
    label = ("distance to the goal" if distance else success.term.name) + (f", {unit}" if unit else "")
    bound = scale * (success.below if success.below is not None else success.above or 0.0)
    low, high = span(values * scale, include=[bound])
    if distance:
        positive = values[np.isfinite(values) & (values > 0)] * scale
        low, high = min(float(positive.min()), bound) * 0.8, max(float(positive.max()), bound) * 1.2
    longest = max(float(t.seconds[-1]) for t in group)
    chart = Chart(Axis(0, longest, "time in the episode, s"), Axis(low, high, label, log=distance), height=210)
    for track in sorted(group, key=lambda t: t.success is not True):
        chart.line(track.seconds, track.measure * scale, f"fine {track.series}", f"{track.bag.name}: {track.outcome}")
    chart.rule(bound, f"{number(bound)} {unit}".strip())
    return page.figure(f"{_named(success)}, {words}", chart.svg(f"{label} over time {words}"),
                       _judged(success, bound, unit), OUTCOMES)


def _named(success: Success) -> str:
    return "Distance to the goal" if success.term.transform == "norm" else success.term.name.capitalize()


def _judged(success: Success, bound: float, unit: str) -> str:
    side = "below" if success.below is not None else "above"
    when = "which ends the episode" if success.ends_episode else "until the time is up"
    return f"Success is to stay {side} the dashed line ({bound:g} {unit}) for {success.hold_s:g} s, {when}."


def _paired(tracks: Tracks) -> bool:
    """Whether the episodes before and after had the same goals in the same order."""
    before, after = tracks.get("before", ()), tracks.get("after", ())
    return bool(before) and len(before) == len(after) and all(
        a.goal is not None and b.goal is not None and np.allclose(a.goal, b.goal)
        for a, b in zip(before, after, strict=True))


def _episodes(tracks: Tracks) -> str:
    """Every episode in a table that unfolds."""
    if _paired(tracks):
        head = ["Goal x, y, z (cm)", "Before", "s", "ended at", "After", "s", "ended at"]
        rows = [[_goal(a), *_row(a), *_row(b)] for a, b in zip(tracks["before"], tracks["after"], strict=True)]
        return _unfold(page.table(head, rows))
    head, parts = ["Bag", "Goal x, y, z (cm)", "Outcome", "s", "ended at"], ""
    for key, group in tracks.items():
        title = f"<h3>{escape(WORDS[key].capitalize())}</h3>" if len(tracks) > 1 else ""
        parts += title + page.table(head, [[escape(t.bag.name), _goal(t), *_row(t)] for t in group])
    return _unfold(parts) if parts else ""


def _unfold(inside: str) -> str:
    return f"<details><summary>Every episode as a table</summary>{inside}</details>"


def _goal(track: Track) -> str:
    return "none" if track.goal is None else ", ".join(f"{100 * v:.1f}".replace("-", "\N{MINUS SIGN}")
                                                       for v in track.goal)


def _row(track: Track) -> list[str]:
    success = track.spec.success
    value = track.measure[-1] if len(track.measure) else np.nan
    metres = success is not None and success.term.unit == "m"
    ended = "" if not np.isfinite(value) else f"{1e3 * value:.1f} mm" if metres else f"{value:.3g}"
    colour = {"good": "good", "bad": "bad"}.get(track.series, "soft")
    return [f'<span class="{colour}">{escape(track.outcome)}</span>', f"{track.seconds[-1]:.2f}", ended]


# --- timing -------------------------------------------------------------------------------------------------------

def timing(tracks: Tracks, figures: Mapping[str, Any]) -> str:
    """How the control loop kept its deadlines, and what the safety filter did."""
    found = {}
    for key in WORDS:
        if figures.get(key, {}).get("lateness_ms", {}).get("counts"):
            found[key] = Timing.told(figures[key])
        elif tracks.get(key):
            found[key] = Timing.recorded(tracks[key])
    if not found:
        return ""
    late = _histograms({k: (t.lateness, t.lateness_p50, t.lateness_p99) for k, t in found.items()},
                       "Lateness of the ticks", "How late each tick woke against the absolute schedule.")
    latency = _histograms({k: (t.latency, t.latency_p50, t.latency_p99) for k, t in found.items()},
                          "Observation to command", "From the take of the newest sensor messages to the return of the "
                          "publish call: observation, network, safety filter and message.")
    return _timing_table(found) + page.columns([late, latency, _safety(tracks, found)])


def _timing_table(found: Mapping[str, Timing]) -> str:
    rows = [("Control rate", lambda t: f"{t.rate_hz:g} Hz"), ("Ticks", lambda t: f"{t.ticks:,}"),
            ("Missed deadlines (skipped periods)", lambda t: f"{t.missed:,}"),
            ("Lateness, median", lambda t: _ms(t.lateness_p50)), ("Lateness, 99th percentile",
                                                                   lambda t: _ms(t.lateness_p99)),
            ("Observation to command, median", lambda t: _ms(t.latency_p50)),
            ("Observation to command, 99th percentile", lambda t: _ms(t.latency_p99)),
            ("Ticks with a safety event", lambda t: f"{t.events:,} ({t.events / max(t.ticks, 1):.1%})")]
    return page.table(["", *(escape(WORDS[key].capitalize()) for key in found)],
                      [[escape(name), *(tell(t) for t in found.values())] for name, tell in rows])


def _histograms(found: Mapping[str, tuple[Any, float, float]], title: str, caption: str) -> str:
    some = [(edges[:-1][counts > 0].min(), edges[1:][counts > 0].max(), counts.max())
            for (edges, counts), _, _ in found.values() if counts.sum()]
    if not some:
        return ""
    low, high, most = min(s[0] for s in some), max(s[1] for s in some), max(s[2] for s in some)
    chart = Chart(Axis(low, high, "ms", log=True), Axis(0.7, most * 3.0 ** (1 + len(found)), "ticks", log=True))
    for row, (key, ((edges, counts), p50, p99)) in enumerate(found.items()):
        filled = np.flatnonzero(counts)
        part = slice(filled[0], filled[-1] + 1) if len(filled) else slice(0, 0)
        chart.histogram(edges[part.start:part.stop + 1], counts[part], key)
        for name, value in (("p50", p50), ("p99", p99)):
            if np.isfinite(value):
                chart.flag(value, key, f"{name} {_ms(value)}", row)
    return page.figure(title, chart.svg(f"histogram, {title.lower()}, ms"), caption + " Both scales are logarithmic.",
                       [(key, WORDS[key]) for key in found])


def _safety(tracks: Tracks, found: Mapping[str, Timing]) -> str:
    shares = {key: reason_shares(tracks[key]) for key in found if tracks.get(key)}
    if not shares:
        return page.figure("Safety events by reason", "", "The bags that tell the reasons are not in this folder.")
    seen = [r for r in REASONS if any(r in s for s in shares.values())]
    caption = ("Share of ticks at which the safety filter changed the command, or a fault was found, by reason. A tick "
               "can have several.")
    if not seen:
        return page.figure("Safety events by reason", "", "None: the safety filter changed no command.")
    rows = {REASONS[r]: [(key, s.get(r, 0.0)) for key, s in shares.items()] for r in seen}
    return page.figure("Safety events by reason", bars(rows, "share of ticks", "safety events by reason"), caption,
                       [(key, WORDS[key]) for key in shares])


def _ms(value: float) -> str:
    return "unknown" if not np.isfinite(value) else f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"


# --- cameras ------------------------------------------------------------------------------------------------------

def cameras(tracks: Tracks) -> str:
    """First and last picture of every camera in one failed and one successful episode, of the same goal if possible."""
    out = ""
    for track, words in _chosen(tracks):
        try:
            found = stills(track.bag, int(track.stamps_ns[0]))
        except ValueError as error:
            out += f"<h3>{escape(words)}</h3>" + page.paragraph(str(error), "soft")
            continue
        pictures = "".join(
            f'<figure><img src="{data_uri(picture)}" width="{picture.shape[1]}" height="{picture.shape[0]}" '
            f'alt="{escape(camera)} camera, {when} picture"><figcaption>{escape(camera)}, {when}</figcaption></figure>'
            for topic, pair in found.items() for camera in [topic.strip("/").split("/")[-2]]
            for when, picture in zip(("first", "last"), pair, strict=True))
        if pictures:
            out += f'<h3>{escape(words)}</h3><div class="stills">{pictures}</div>'
    return out


def _chosen(tracks: Tracks) -> list[tuple[Track, str]]:
    lost = [(key, i) for key in ("before", "only", "after") for i, t in enumerate(tracks.get(key, ()))
            if t.success is False]
    won = [(key, i) for key in ("after", "only", "before") for i, t in enumerate(tracks.get(key, ())) if t.success]
    pair = next(((a, b) for a in lost for b in won if a[1] == b[1] and a[0] != b[0] and _paired(tracks)), None)
    picked = list(pair) if pair else [*lost[:1], *won[:1]]
    same = " (same goal)" if pair else ""
    return [(tracks[key][i], f"{tracks[key][i].outcome.capitalize()}{', ' + WORDS[key] if key != 'only' else ''}"
             f": {tracks[key][i].bag.name}{same if k else ''}") for k, (key, i) in enumerate(picked)]
