"""How the control loop kept time and what the safety filter did, from the bags or from what `deploy` told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from robot_rl.page import html
from robot_rl.page.figures import Axis, Chart, bars
from robot_rl.page.tracks import WORDS, Track, Tracks
from robot_rl.safety import Reason

Histogram = tuple[np.ndarray, np.ndarray]
"""Edges (N+1,) and counts (N,)."""
REASONS = {
    Reason.STOP: "stop: a stop message", Reason.MISSING: "missing: a sensor never spoke",
    Reason.STALE: "stale: a sensor fell silent", Reason.NONFINITE: "nonfinite: NaN or infinite values",
    Reason.WORKSPACE: "workspace: the tip left its box", Reason.POSITION: "position: cut at a joint limit",
    Reason.RATE: "rate: cut at a speed limit", Reason.EFFORT: "effort: cut at what the motor can push",
    Reason.FADE: "fade: the policy was being faded in",
    Reason.TOOL: "tool: held back from its box, its speed or other links",
    Reason.UNSUPERVISED: "unsupervised: the supervisor fell silent",
}


@dataclass(frozen=True)
class Timing:
    """How a control loop kept time; all in ms."""

    rate_hz: float
    ticks: int
    missed: int
    lateness: Histogram
    latency: Histogram
    lateness_p50: float
    lateness_p99: float
    latency_p50: float
    latency_p99: float
    events: int
    """Ticks at which the safety filter changed a command or a fault was found."""

    @staticmethod
    def told(figures: dict[str, Any]) -> Timing:
        """From what `robot-rl deploy` printed."""
        late, latency = (_told(figures[key]) for key in ("lateness_ms", "latency_ms"))
        return Timing(figures["rate_hz"], figures["ticks"], figures["missed_deadlines"], late, latency,
                      quantile(late, 0.5), figures["jitter_ms_p99"], figures["latency_ms_p50"],
                      figures["latency_ms_p99"], figures["safety_events"])

    @staticmethod
    def recorded(tracks: Sequence[Track]) -> Timing:
        """From the bags; a missed deadline is a gap of a whole period between two ticks."""
        rate = tracks[0].spec.rate_hz
        late, latency = (np.concatenate([getattr(t, key) for t in tracks]) for key in ("lateness_ms", "latency_ms"))
        gaps = np.concatenate([np.diff(t.stamps_ns) for t in tracks]) * 1e-9 * rate
        events = sum(bool(r) for t in tracks for r in t.reasons)
        p = [float(np.percentile(v, q)) if len(v) else np.nan for v in (late, latency) for q in (50, 99)]
        return Timing(rate, len(late), int(np.maximum(np.round(gaps) - 1, 0).sum()), histogram(late),
                      histogram(latency), p[0], p[1], p[2], p[3], events)


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
    late = histograms({k: (t.lateness, t.lateness_p50, t.lateness_p99) for k, t in found.items()},
                      "Lateness of the ticks", "How late each tick woke against the absolute schedule; a whole "
                       "period late is a missed deadline.")
    latency = histograms({k: (t.latency, t.latency_p50, t.latency_p99) for k, t in found.items()},
                          "Observation to command", "From the take of the newest sensor messages to the return of the "
                          "publish call: observation, network, safety filter and message.")
    return _timing_table(found) + html.columns([late, latency, _safety(tracks, found)])


def _timing_table(found: Mapping[str, Timing]) -> str:
    rows = [("Control rate", lambda t: f"{t.rate_hz:g} Hz"), ("Ticks", lambda t: f"{t.ticks:,}"),
            ("Missed deadlines", lambda t: f"{t.missed:,}"),
            ("Lateness, median (p50)", lambda t: _ms(t.lateness_p50)),
            ("Lateness, 99th percentile (p99)", lambda t: _ms(t.lateness_p99)),
            ("Observation to command, p50", lambda t: _ms(t.latency_p50)),
            ("Observation to command, p99", lambda t: _ms(t.latency_p99)),
            ("Ticks with a safety event", lambda t: f"{t.events:,}")]
    cells = [[escape(name), *(tell(t) for t in found.values())] for name, tell in rows]
    names = ["" if key == "only" else key.capitalize() for key in found]
    return f'<div class="narrow">{html.table(["", *names], cells)}</div>'


def histograms(found: Mapping[str, tuple[Histogram, float, float]], title: str, caption: str,
               words: Mapping[str, str] = WORDS) -> str:
    """A picture of (histogram, p50, p99) in ms of each series, on logarithmic scales; nothing without counts."""
    some = [(edges[:-1][counts > 0].min(), edges[1:][counts > 0].max(), counts.max())
            for (edges, counts), _, _ in found.values() if counts.sum()]
    if not some:
        return ""
    low, high, most = min(s[0] for s in some), max(s[1] for s in some), max(s[2] for s in some)
    x = Axis(10.0 ** np.floor(np.log10(low)), 10.0 ** np.ceil(np.log10(high)), "ms", log=True)
    chart = Chart(x, Axis(0.7, most * 3.0 ** (1 + len(found)), "ticks", log=True))
    for row, (key, ((edges, counts), p50, p99)) in enumerate(found.items()):
        filled = np.flatnonzero(counts)
        part = slice(filled[0], filled[-1] + 1) if len(filled) else slice(0, 0)
        chart.histogram(edges[part.start:part.stop + 1], counts[part], key)
        for name, value in (("p50", p50), ("p99", p99)):
            if np.isfinite(value):
                chart.flag(value, key, f"{name} {value:.2g}", row, left=name == "p50")
    caption = f"{caption} Both scales are logarithmic.".strip()
    return html.figure(title, chart.svg(f"histogram, {title.lower()}, ms"), caption,
                       [(key, words[key]) for key in found])


def _safety(tracks: Tracks, found: Mapping[str, Timing]) -> str:
    shares = {key: reason_shares(tracks[key]) for key in found if tracks.get(key)}
    if not shares:
        return html.figure("Safety events by reason", "", "The bags that tell the reasons are not in this folder.")
    seen = [r for r in REASONS if any(r in s for s in shares.values())]
    caption = ("Share of ticks at which the safety filter changed the command, or a fault was found, by reason. A tick "
               "can have several.")
    if not seen:
        return html.figure("Safety events by reason", "", "None: the safety filter changed no command.")
    rows = {REASONS[r]: [(key, s.get(r, 0.0)) for key, s in shares.items()] for r in seen}
    return html.figure("Safety events by reason", bars(rows, "share of ticks", "safety events by reason"), caption,
                       [(key, WORDS[key]) for key in shares])


def _ms(value: float) -> str:
    return "unknown" if not np.isfinite(value) else f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"


def reason_shares(tracks: Sequence[Track]) -> dict[Reason, float]:
    """The share of ticks that carry each reason, of those that occur."""
    every = [r for t in tracks for r in t.reasons]
    counts = {reason: sum(bool(r & reason) for r in every) for reason in Reason if reason and reason != Reason.FAULTS}
    return {reason: count / len(every) for reason, count in counts.items() if count}


def quantile(histogram: Histogram, share: float) -> float:
    """A quantile by interpolation within its bin, on the bins' logarithmic scale; NaN without counts."""
    edges, counts = histogram
    total = np.concatenate([[0.0], np.cumsum(counts)])
    if not total[-1]:
        return float("nan")
    return float(np.exp(np.interp(share * total[-1], total, np.log(edges))))


def _told(histogram: dict[str, list[float]]) -> Histogram:
    return np.array(histogram["edges_ms"]), np.array(histogram["counts"])


def histogram(values: np.ndarray, bins: int = 60) -> Histogram:
    """Counts of values in ms on a logarithmic scale from 0.0001 ms on."""
    edges = np.geomspace(1e-4, max(10.0, values.max(initial=0.0)), bins + 1)
    return edges, np.histogram(np.maximum(values, 1e-4), edges)[0].astype(float)
