"""The page of `robot-rl bench learner`: updates per second of ours and of each peer, every turn in sight."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from robot_rl.log import write_atomic
from robot_rl.page import html
from robot_rl.page.figures import Axis, intervals

STYLE = """
.ours { color: var(--after); } .peer { color: var(--bad); }
"""


def write_page(file: Path, found: Mapping[str, Any]) -> None:
    """Write the page of what `robot_rl.learn.bench.bench` returns."""
    turns, agent = found["repetitions"], found["agent"]
    rows = [(name, "ours" if name == "ours" else "peer", min(rates), statistics.median(rates), max(rates))
            for name, rates in sorted(turns.items(), key=lambda item: -statistics.median(item[1]))]
    most = max(high for *_, high in rows)
    picture = intervals(rows, "updates a second", f"updates a second of {agent}, ours and others",
                        Axis(0.0, 1.05 * most, "updates a second"))
    table = html.table(["", "updates/s", "lowest turn", "highest", "processor ms", "ours is"], [
        [escape(name), f"{middle:.2f}", f"{low:.2f}", f"{high:.2f}", f"{found['cpu_ms'][name]:.2f}",
         f"{found['ratio'][name]:.2f} times as fast" if name in found["ratio"] else ""]
        for name, _, low, middle, high in rows])
    machine = ", ".join(f"{key}: {value}" for key, value in found["machine"].items())
    body = (f"<h1>Updates of {escape(agent)}</h1>"
            + html.paragraph("An update is one of critics and actor, sampling included. Contestants take turns; dots "
                             "are medians, whiskers the slowest and the fastest turn.")
            + html.figure("Updates a second", picture) + table
            + html.bullets([f"{name} is not here: {why}" for name, why in found["missing"].items()])
            + html.paragraph(machine))
    write_atomic(file, html.page(f"Updates of {agent}", body, STYLE).encode())
