"""Recorded episodes as a report looks at them: where the tip went, how success came about, how each tick ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hardware.robot_io import decode
from robot_rl.bag import BagError, below
from robot_rl.observe import Quantity
from robot_rl.safety import Reason
from robot_rl.spec import POSE, PolicySpec, SpecError
from robot_rl.steplog import EpisodeLog, join_ns, outcome, read_episode

WORDS = {"before": "before fine-tuning", "after": "after fine-tuning", "only": "recorded"}
"""The groups that episodes come in; the keys are also the names of their colours."""
OUTCOMES = [("good", "success"), ("bad", "no success")]


@dataclass(frozen=True)
class Track:
    """One recorded episode; T ticks."""

    bag: Path
    spec: PolicySpec
    start: dict[str, Any]
    end: dict[str, Any]
    """What the policy process said of the end; empty when the recording broke off."""
    goal: np.ndarray | None
    """(3,) m."""
    tip: np.ndarray
    """(N, 3) m, every reading of the first pose sensor from the first tick to the last; (0, 3) without one."""
    stamps_ns: np.ndarray
    """(T,) int64 wall time of the ticks, ns."""
    measure: np.ndarray
    """(T,) the quantity that success is judged by; NaN where it is unknown."""
    lateness_ms: np.ndarray
    latency_ms: np.ndarray
    reasons: tuple[Reason, ...]

    @property
    def success(self) -> bool | None:
        """None when the recording broke off before the end."""
        return bool(self.end["success"]) if "success" in self.end else None

    @property
    def seconds(self) -> np.ndarray:
        """(T,) from the first tick, s."""
        return (self.stamps_ns - self.stamps_ns[:1]) * 1e-9

    @property
    def series(self) -> str:
        """The colour of the outcome."""
        return {True: "good", False: "bad", None: "ink"}[self.success]

    @property
    def outcome(self) -> str:
        """The outcome in words."""
        return outcome(self.end)


Tracks = Mapping[str, Sequence[Track]]
"""By group, see `WORDS`."""


def paired(tracks: Tracks) -> bool:
    """Whether the episodes before and after had the same goals in the same order."""
    before, after = tracks.get("before", ()), tracks.get("after", ())
    return bool(before) and len(before) == len(after) and all(
        a.goal is not None and b.goal is not None and np.allclose(a.goal, b.goal)
        for a, b in zip(before, after, strict=True))


def read_tracks(folder: Path) -> tuple[list[Track], list[str]]:
    """Every episode in the bags below a folder, by name, and what could not be read and why."""
    tracks, refused = [], []
    for bag in below(folder):
        try:
            log = read_episode(bag)
        except (SpecError, BagError) as error:
            refused.append(str(error))
            continue
        if log.records:
            tracks.append(_track(bag, log))
        else:
            refused.append(f"{bag}: holds no step")
    return tracks, refused


def _track(bag: Path, log: EpisodeLog) -> Track:
    goal, records = log.start.get("goal"), log.records
    stamps = np.array([join_ns(*r.stamp) for r in records], np.int64)
    lateness, latency = (np.array([getattr(r, key)[0] for r in records]) * 1e3 for key in ("lateness", "latency"))
    reasons = tuple(Reason(int(r.reasons[0])) | Reason(int(r.faults[0])) for r in records)
    return Track(bag, log.spec, log.start, log.end, None if goal is None else np.array(goal), _tip(log), stamps,
                 _measure(log), lateness, latency, reasons)


def _tip(log: EpisodeLog) -> np.ndarray:
    """Every position that the first pose sensor told of between the inputs of the first and the last tick."""
    assert log.spec.robot is not None
    robot = log.spec.robot
    place = next((i for i, s in enumerate(robot.sensors) if s.type == POSE), None)
    if place is None:
        return np.zeros((0, 3))
    sensor = robot.sensors[place]
    used = [join_ns(*r.inputs.reshape(-1, 2)[place]) for r in log.records]
    first, last = next((s for s in used if s), 0), max(used)
    found = [decode(sensor, data, robot)[f"{sensor.name}.position"]
             for stamp, data in sorted(log.readings[sensor.name].items()) if first <= stamp <= last]
    return np.array(found).reshape(-1, 3)


def _measure(log: EpisodeLog) -> np.ndarray:
    """The success term at every tick, NaN where a reading that it needs is not in the bag."""
    success, out = log.spec.success, np.full(len(log.records), np.nan)
    if success is None:
        return out
    quantity, goal = Quantity(success.term, log.spec), log.start.get("goal")
    for i, record in enumerate(log.records):
        try:
            values = log.values(record, log.spec, images=False) | {"command": record.sent, "action": record.action}
            out[i] = quantity(values if goal is None else values | {"goal.position": np.array(goal)})[0]
        except (SpecError, KeyError):
            continue
    return out
