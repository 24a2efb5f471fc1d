"""Where the tip went, how near it came to its goal, and every episode in a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from robot_rl.page import html
from robot_rl.page.figures import Axis, Chart, number, span
from robot_rl.page.tracks import OUTCOMES, WORDS, Track, Tracks, paired
from robot_rl.spec import Success


def paths(tracks: Tracks) -> str:
    """Where the tip went, and how the success term went, for each group of episodes."""
    drawn = {key: group for key, group in tracks.items() if any(len(t.tip) for t in group)}
    out, parts = "", []
    if drawn:
        said = "The same goals before and after. " if paired(tracks) else ""
        out += html.paragraph(said + "Each line is the tip of the robot in one episode, as the tracker saw it; circles "
                              "are the goals, to scale.")
        parts += [_top_and_side(group, drawn, words) for key, words in WORDS.items()
                  if (group := drawn.get(key)) is not None]
    over_time = [figure for key, words in WORDS.items() if (figure := _over_time(tracks.get(key, ()), tracks, words))]
    if over_time:
        parts.append("<div>" + "<p></p>".join(over_time) + "</div>")
    return out + (html.columns(parts) if parts else "") + _episodes(tracks)


def _top_and_side(group: Sequence[Track], every: Tracks, words: str) -> str:
    """Two views of the tip's paths, on the same scales for all groups."""
    points = [p for g in every.values() for t in g for p in (t.tip, *([] if t.goal is None else [t.goal[None]]))]
    flat, tall = (view(np.concatenate(points)) for view in (_from_above, _from_the_side))
    across, ahead = _frame(np.concatenate([flat, np.zeros((1, 2))]))
    away, up = _frame(tall)
    # the robot looks up the page, so its left, +y, is at the left
    top = Chart(Axis(*across, "left (+) and right of the base, m", reverse=True), Axis(*ahead, "ahead of the base, m"),
                equal=True)
    side = Chart(Axis(*away, "distance from the base's vertical axis, m"), Axis(*up, "height, m"), equal=True)
    for track in sorted(group, key=lambda t: t.success is not True):
        for chart, view in ((top, _from_above), (side, _from_the_side)):
            _draw(chart, view(track.tip), None if track.goal is None else view(track.goal[None])[0], track)
    top.note(0.0, 0.0, "base")
    starts = np.array([t.tip[0] for t in group if len(t.tip)]).reshape(-1, 3)
    for chart, view in ((top, _from_above), (side, _from_the_side)):
        if len(starts):
            x, y = view(starts).mean(0)
            chart.note(x, y, "start")
    won = sum(t.success is True for t in group)
    seen = f"tip paths {words}, {won} of {len(group)} in success"
    goal = [("ring ink", f"goal, radius {100 * _radius(group[0]):g} cm")] if group[0].goal is not None else []
    return html.figure(f"{words[0].upper()}{words[1:]}: {won} of {len(group)}",
                       '<p class="eyebrow">From above</p>' + top.svg(f"{seen}, from above")
                       + '<p class="eyebrow">From the side</p>' + side.svg(f"{seen}, from the side"),
                       "", [*OUTCOMES, *goal])


def _from_above(points: np.ndarray) -> np.ndarray:
    """(N, 2) left and ahead of (N, 3) points."""
    return points[:, [1, 0]]


def _from_the_side(points: np.ndarray) -> np.ndarray:
    """(N, 2) distance from the base's vertical axis, and height, of (N, 3) points."""
    return np.stack([np.hypot(points[:, 0], points[:, 1]), points[:, 2]], 1)


def _frame(points: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of (N, 2) points, the narrower one widened until the picture is neither a tower nor a slit."""
    (a, b), (c, d) = (span(v, pad=0.04) for v in points.T)
    wider, higher = max(0.0, (d - c) / 1.5 - (b - a)) / 2, max(0.0, (b - a) * 0.4 - (d - c)) / 2
    return (a - wider, b + wider), (c - higher, d + higher)


def _draw(chart: Chart, line: np.ndarray, goal: np.ndarray | None, track: Track) -> None:
    title = f"{track.bag.name}: {track.outcome}"
    if goal is not None:
        chart.circle(float(goal[0]), float(goal[1]), _radius(track), track.series, title)
    if not len(line):
        return
    chart.line(line[:, 0], line[:, 1], f"fine {track.series}", title)
    if track.success:
        chart.dots(line[-1:, 0], line[-1:, 1], track.series, [title], 2.2)
    else:
        chart.cross(float(line[-1, 0]), float(line[-1, 1]), track.series, title)


def _radius(track: Track) -> float:
    """The bound of the success term where that is a distance, m."""
    success = track.spec.success
    return success.below if success is not None and success.below and success.term.transform == "norm" else 0.01


def _over_time(group: Sequence[Track], every: Tracks, words: str) -> str:
    """The success term of every episode over time, with its bound; on the same scales for all groups."""
    success = group[0].spec.success if group else None
    if success is None or not any(np.isfinite(t.measure).any() for t in group):
        return ""
    distance, values = success.term.transform == "norm", np.concatenate([t.measure for g in every.values() for t in g])
    scale, unit = (100.0, "cm") if distance and success.term.unit == "m" else (1.0, success.term.unit)
    label = ("distance to the goal" if distance else success.term.name) + (f", {unit}" if unit else "")
    bound = scale * (success.below if success.below is not None else success.above or 0.0)
    low, high = span(values * scale, include=[bound])
    if distance:
        positive = np.append(values[values > 0] * scale, bound)
        low, high = float(positive.min()) * 0.8, float(positive.max()) * 1.2
    longest = max(float(t.seconds[-1]) for g in every.values() for t in g)
    chart = Chart(Axis(0, longest or 1.0, "time in the episode, s"), Axis(low, high, label, log=distance), height=210)
    for track in sorted(group, key=lambda t: t.success is not True):
        chart.line(track.seconds, track.measure * scale, f"fine {track.series}", f"{track.bag.name}: {track.outcome}")
    chart.rule(bound, f"{number(bound)} {unit}".strip())
    return html.figure(f"{_named(success)}, {words}", chart.svg(f"{label} over time {words}"),
                       _judged(success, bound, unit), OUTCOMES)


def _named(success: Success) -> str:
    return "Distance to the goal" if success.term.transform == "norm" else success.term.name.capitalize()


def _judged(success: Success, bound: float, unit: str) -> str:
    side = "below" if success.below is not None else "above"
    when = "which ends the episode" if success.ends_episode else "until the time is up"
    line = f"{bound:g} {unit}".strip()
    return f"Success is to stay {side} the dashed line ({line}) for {success.hold_s:g} s, {when}."


def _episodes(tracks: Tracks) -> str:
    """Every episode in a table that unfolds."""
    if paired(tracks):
        head = ["Goal x, y, z (cm)", "Before", "time, s", "ended at", "After", "time, s", "ended at"]
        rows = [[_goal(a), *_row(a), *_row(b)] for a, b in zip(tracks["before"], tracks["after"], strict=True)]
        return _unfold(html.table(head, rows))
    head, parts = ["Bag", "Goal x, y, z (cm)", "Outcome", "time, s", "ended at"], ""
    for key, group in tracks.items():
        title = f"<h3>{escape(WORDS[key].capitalize())}</h3>" if len(tracks) > 1 else ""
        parts += title + html.table(head, [[escape(t.bag.name), _goal(t), *_row(t)] for t in group])
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
