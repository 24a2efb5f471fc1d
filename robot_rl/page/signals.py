"""A bag over time on one page: joints against commands, when safety did what, the steps, or fields that were chosen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from hardware import messages
from hardware.robot_io import decode
from robot_rl.bag import Message, info, read
from robot_rl.log import write_atomic
from robot_rl.page import html
from robot_rl.page.figures import Axis, Chart, lanes, outline, span
from robot_rl.page.timing import REASONS
from robot_rl.report import made
from robot_rl.safety import Reason
from robot_rl.spec import SUPERVISOR_STATE, SpecError
from robot_rl.steplog import STEP_TYPE, EpisodeLog, join_ns, outcome, read_episode, read_info

POINTS = 3_000  # of a line; a chart has fewer pixels
MOST = 64  # charts of one field
STALE_NS = 10**9  # a source stamp that differs more from the arrival says nothing about when: a latched message
UNITS = {"position": "rad", "velocity": "rad/s", "effort": "N·m"}
LEAST = {"rad": 0.02, "rad/s": 0.02, "N·m": 0.02}
"""Spans of an axis, by unit."""
STEP = {"reward": "reward", "lateness": "lateness, ms", "latency": "observation to command, ms"}

Signals = dict[str, tuple[np.ndarray, np.ndarray]]
"""By name: times (N,) in s and values (N,)."""


def write_plot(bag: Path, out: Path, fields: Sequence[str]) -> dict[str, Any]:
    """Write the page about a bag to `out`; `fields` are TOPIC:FIELD. Raises SpecError for one that is not there."""
    found = info(bag)
    if not found.messages:
        raise SpecError(f"{bag}: holds no message to draw")
    log = None if fields else _episode(bag)
    zero = found.start_ns if log is None else join_ns(*log.records[0].stamp)
    if log is not None:
        parts = [("joints", "Joints", _joints(log, zero)), ("safety", "Safety", _safety(bag, log, zero)),
                 ("steps", "Steps", _steps(log, zero))]
    else:
        chosen = [_chosen(bag, field) for field in fields] or [
            (name, "position") for name, topic in found.topics.items() if topic.type == "sensor_msgs/msg/JointState"
            and topic.count] + [(name, "data") for name, topic in found.topics.items() if topic.type == STEP_TYPE
                                and topic.count]
        if not chosen:
            raise SpecError(f"{bag}: holds no joint states and no numbers; choose with --field TOPIC:FIELD among "
                            f"{', '.join(found.topics)}")
        drawn = _read(bag, chosen, zero)
        window = 0.0, (found.end_ns - zero) * 1e-9
        parts = [(f"field{i}", f"{field} of {topic}",
                  _grid({name: {"only": signal} for name, signal in of.items()}, window=window))
                 for i, ((topic, field), of) in enumerate(drawn.items())]
    shown = [part for part in parts if part[2]]
    out.parent.mkdir(parents=True, exist_ok=True)
    seconds = (found.end_ns - found.start_ns) * 1e-9
    lead = f"{found.messages:,} messages of {len(found.topics)} topics in {seconds:.4g} s."
    if log is not None:
        lead = f"Task {log.spec.task}, {len(log.records)} steps: {outcome(log.end)}. {lead}"
    body = (f'<p class="eyebrow">robot-rl bag plot of <code>{escape(str(bag))}</code></p><h1>{escape(bag.stem)}</h1>'
            + html.paragraph(lead, "lead") + html.paragraph(made(), "eyebrow")
            + "<nav>" + "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown) + "</nav>"
            + "\n".join(html.section(*part) for part in shown))
    write_atomic(out, html.page(f"{bag.stem}: signals", body).encode())
    return {"plot": str(out), "sections": [title for _, title, _ in shown]}


def _episode(bag: Path) -> EpisodeLog | None:
    """The episode in a bag; None where no policy ran, or where what it said cannot be read."""
    try:
        log = read_episode(bag)
    except SpecError:
        return None
    return log if log.records else None


def _joints(log: EpisodeLog, zero: int) -> str:
    """What each joint was told against what it did."""
    assert log.spec.robot is not None
    robot, sensor = log.spec.robot, log.spec.robot.joint_sensor
    field = str(robot.command.interface)
    stamps, rows = [], []
    for stamp, data in sorted(log.readings[sensor.name].items()):
        values = decode(sensor, data, robot).get(f"{sensor.name}.{field}")
        if values is not None:
            stamps.append(stamp)
            rows.append(values)
    ticks = _seconds([join_ns(*r.stamp) for r in log.records], zero)
    measured = np.array(rows).reshape(-1, len(robot.joints))
    sent = np.array([r.sent for r in log.records]).reshape(len(ticks), -1)
    every: dict[str, Signals] = {}
    for i, joint in enumerate(robot.joints):
        every[joint.name] = {"before": (_seconds(stamps, zero), measured[:, i])} if rows else {}
        if joint in robot.actuated:
            command = sent[:, robot.actuated.index(joint)]
            every[joint.name]["after"] = np.repeat(ticks, 2)[1:], np.repeat(command, 2)[:-1]  # held until the next
    key = html.key([("before", f"measured {field}"), ("after", "command sent")])
    return key + _grid(every, UNITS.get(field, ""))


def _safety(bag: Path, log: EpisodeLog, zero: int) -> str:
    """When which reason or fault changed a command, and which flags a supervisor had set."""
    ticks = _seconds([join_ns(*r.stamp) for r in log.records], zero)
    ends = np.append(ticks[1:], ticks[-1] + 1.0 / log.spec.rate_hz)
    told = [Reason(int(r.reasons[0])) | Reason(int(r.faults[0])) for r in log.records]
    rows = {words: _spans(ticks, ends, [bool(reason & r) for r in told]) for reason, words in REASONS.items()}
    states = [m for m in read(bag) if m.topic.endswith(SUPERVISOR_STATE)]
    if states:
        begun = _seconds([m.log_ns for m in states], zero)
        until = np.append(begun[1:], max(ends[-1], begun[-1]))
        said = [read_info(m.data) for m in states]
        for flag in sorted({str(flag) for one in said for flag in one.get("flags", ())}):
            rows[f"supervisor: {flag}"] = _spans(begun, until, [flag in one.get("flags", ()) for one in said])
        rows["supervisor: not armed"] = _spans(begun, until, [one.get("state") != "armed" for one in said])
    rows = {name: spans for name, spans in rows.items() if spans}
    if not rows:
        return html.paragraph("No command was changed and no fault was found.")
    x = Axis(float(ticks[0]), float(ends[-1]), "time, s")
    return html.figure("Reasons of the filter, and flags", lanes(rows, x, "bad", "safety over time"))


def _steps(log: EpisodeLog, zero: int) -> str:
    """Reward, times, and the action that was asked for against the one that the sent command amounts to."""
    assert log.spec.action is not None
    ticks = _seconds([join_ns(*r.stamp) for r in log.records], zero)
    every: dict[str, Signals] = {}
    for field, title in STEP.items():
        scale = 1e3 if title.endswith("ms") else 1.0
        every[title] = {"only": (ticks, scale * np.array([getattr(r, field)[0] for r in log.records]))}
    asked, action = (np.array([getattr(r, key) for r in log.records]) for key in ("asked", "action"))
    names = log.spec.action.joints if len(log.spec.action.joints) == asked.shape[1] else range(asked.shape[1])
    for i, name in enumerate(names):
        every[f"action {name}"] = {"before": (ticks, asked[:, i]), "after": (ticks, action[:, i])}
    return html.key([("before", "action asked for"), ("after", "action that the sent command amounts to")]
                    ) + _grid(every)


def _spans(begin: np.ndarray, end: np.ndarray, holds: Sequence[bool]) -> list[tuple[float, float]]:
    """The stretches (from, to), neighbours joined, in which something holds."""
    out: list[tuple[float, float]] = []
    for a, b, so in zip(begin.tolist(), end.tolist(), holds, strict=True):
        if so and out and out[-1][1] == a:
            out[-1] = out[-1][0], b
        elif so:
            out.append((a, b))
    return out


def _grid(every: Mapping[str, Signals], unit: str = "", window: tuple[float, float] | None = None) -> str:
    """A chart for each name, of its lines by series; all over the same time, `window` in s or that of the lines."""
    known = {name: lines for name, lines in every.items() if any(np.isfinite(y).any() for _, y in lines.values())}
    if not known:
        return ""
    shown = dict(list(known.items())[:MOST])
    times = [x for lines in shown.values() for x, _ in lines.values() if len(x)]
    begin, end = window or (min(float(x.min()) for x in times), max(float(x.max()) for x in times))
    axis = Axis(begin, max(end, begin + 1e-3), "time, s")
    figures = []
    for name, lines in shown.items():
        low, high = span(*(y for _, y in lines.values()))
        wider = max(0.0, LEAST.get(unit, 0.0) - (high - low)) / 2  # or noise would look like motion
        chart = Chart(axis, Axis(low - wider, high + wider, unit), height=150)
        for series, (x, y) in lines.items():
            chart.line(*outline(x, y, POINTS), f"fine {series}")
        figures.append(html.figure(name, chart.svg(f"{name} over time")))
    left = len(known) - len(shown)
    return html.columns(figures) + (html.paragraph(f"{left} more are not drawn.", "soft") if left else "")


def _chosen(bag: Path, field: str) -> tuple[str, str]:
    """The (absolute topic, field) that TOPIC:FIELD means. Raises SpecError."""
    topic, colon, path = field.partition(":")
    topics = info(bag).topics
    hits = [name for name in topics if name == topic or name.endswith("/" + topic.lstrip("/"))]
    if not colon or not path or len(hits) != 1:
        raise SpecError(f"--field {field}: give TOPIC:FIELD, TOPIC one of {', '.join(topics)}"
                        + (f"; {topic} is {', '.join(hits)}" if len(hits) > 1 else ""))
    return hits[0], path


def _read(bag: Path, chosen: Iterable[tuple[str, str]], zero: int) -> dict[tuple[str, str], Signals]:
    """The numbers of some fields. Raises SpecError for one that a message lacks or that holds no numbers."""
    wanted = list(dict.fromkeys(chosen))
    rows: dict[tuple[str, str], dict[str, tuple[list[int], list[float]]]] = {key: {} for key in wanted}
    for message in read(bag, {topic for topic, _ in wanted}):
        for key in wanted:
            if key[0] != message.topic:
                continue
            try:
                numbers = _numbers(message, key[1])
            except (ValueError, KeyError, RecursionError) as error:
                raise SpecError(f"{bag}: {message.topic}: {error}") from error
            for name, value in numbers.items():
                stamps, values = rows[key].setdefault(name, ([], []))
                stamps.append(_when(message))
                values.append(value)
    return {key: {name: (_seconds(stamps, zero), np.array(values)) for name, (stamps, values) in of.items()}
            for key, of in rows.items()}


def _numbers(message: Message, field: str) -> dict[str, float]:
    """The numbers in one field of a message, by joint, by label or by place. Raises ValueError."""
    root: Any = messages.decode(message.data, message.type)
    value, seen = root, ""
    if message.type == STEP_TYPE and root.layout.dim:
        value = {**messages.segments(root), "data": messages.segments(root)}
    elif message.type.endswith("/String"):
        value = {"data": json.loads(root.data)}
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
        seen = f"{seen}.{part}".lstrip(".")
        if value is None:
            raise ValueError(f"{message.type} has no field {seen}")
    names = getattr(root, "name", getattr(root, "joint_names", ()))
    return _flat(value, field, list(names))


def _flat(value: Any, name: str, joints: Sequence[str]) -> dict[str, float]:
    """Numbers of a value of whatever shape by name. Raises ValueError where there are none."""
    if isinstance(value, (bool, int, float, np.number)):
        return {name: float(value)}
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in _flat(one, key, ()).items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        if len(value) > 4 * MOST:
            raise ValueError(f"{name} has {len(value)} numbers, too many to draw")
        labels = [name] if len(value) == 1 else [f"{name}[{i}]" for i in range(len(value))]
        labels = list(joints) if len(joints) == len(value) else labels
        return {k: v for label, one in zip(labels, value, strict=True) for k, v in _flat(one, label, ()).items()}
    parts = [part for part in getattr(value, "__dataclass_fields__", {}) if not part.startswith("_")]
    if not parts:
        raise ValueError(f"{name} is {type(value).__name__} and no number")
    return {k: v for part in parts for k, v in _flat(getattr(value, part), f"{name}.{part}", ()).items()}


def _when(message: Message) -> int:
    """When a message was made, unix ns."""
    return message.publish_ns if abs(message.publish_ns - message.log_ns) < STALE_NS else message.log_ns


def _seconds(stamps: Sequence[int], zero: int) -> np.ndarray:
    """(N,) s after `zero` of stamps in ns."""
    return np.array([stamp - zero for stamp in stamps], float) * 1e-9
