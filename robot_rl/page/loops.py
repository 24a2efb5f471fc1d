"""The page of `robot-rl bench loop`: how several control loops kept time, as a table and as histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.log import write_atomic
from robot_rl.page import html
from robot_rl.page.timing import histogram, histograms

WORDS = {"ours": "ours: absolute deadlines", "sleep": "sleep: sleeps what is left of a period",
         "timer": "timer: a plain rclpy node"}
STYLE = """
.ours { color: var(--after); } .sleep { color: var(--bad); } .timer { color: var(--good); }
svg text.ours, svg text.sleep, svg text.timer { fill: currentColor; }
td { white-space: nowrap; }
"""
COLUMNS = (("jitter p50", "jitter_ms_p50", "{:.4f}"), ("p99", "jitter_ms_p99", "{:.3f}"),
           ("p99.9", "jitter_ms_p999", "{:.3f}"), ("interval error p50", "interval_error_ms_p50", "{:.4f}"),
           ("p99", "interval_error_ms_p99", "{:.3f}"), ("drift, ms/s", "drift_ms_per_s", "{:.2f}"),
           ("latency p50", "latency_ms_p50", "{:.2f}"), ("p99", "latency_ms_p99", "{:.2f}"),
           ("CPU", "cpu_share", "{:.0%}"))


def write_page(file: Path, figures: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of figures as `hardware.loop_bench` has them, with the jitter of every tick."""
    rows = [[f"{f['rate_hz']:g} Hz", f["load"], f'<span class="{f["loop"]}">{f["loop"]}</span>',
             f"{f['missed']:,} of {f['ticks'] + f['missed']:,}", *(shown.format(f[key]) for _, key, shown in COLUMNS)]
            for f in figures]
    table = html.table(["rate", "load", "loop", "missed", *(title for title, _, _ in COLUMNS)], rows, 3)
    cases = list(dict.fromkeys((f["rate_hz"], f["load"]) for f in figures))
    pictures = [_picture([f for f in figures if (f["rate_hz"], f["load"]) == case], *case) for case in cases]
    says = html.paragraph("Times in ms. Jitter is how late a tick woke against the absolute schedule; the interval "
                          "error is the difference of the time between two ticks to the period; drift is what the loop "
                          "loses in a second; a missed deadline is a period without a tick; latency is from the take "
                          "of the newest sensor messages to the return of the publish call.")
    body = f"<h1>Control loops</h1>{says}{table}{html.columns(pictures)}"
    write_atomic(file, html.page("Control loops", body, STYLE).encode())


def _picture(figures: Sequence[Mapping[str, Any]], rate_hz: float, load: str) -> str:
    found = {f["loop"]: (histogram(np.array(f["jitter_ms"])), f["jitter_ms_p50"], f["jitter_ms_p99"]) for f in figures}
    return histograms(found, f"Jitter at {rate_hz:g} Hz, {load}", "", WORDS)
