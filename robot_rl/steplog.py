"""Step → log and log → transitions (stages 7 and 8 of a step).

A step is one std_msgs/Float64MultiArray on `policy/step` whose layout names its segments, so that common plotting
tools can read it. Times are split into whole seconds and nanoseconds, because a float64 cannot hold both.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hardware import messages
from hardware.either import BOOL
from hardware.robot_io import decode, heard_on
from robot_rl.bag import read
from robot_rl.episode import Episode, Outcome
from robot_rl.observe import Readings, Values, state_of
from robot_rl.safety import Reason
from robot_rl.spec import GOAL, POSE, SUPERVISOR_STATE, PolicySpec, RobotSpec, SpecError

STEP_TOPIC, STEP_TYPE = "policy/step", "std_msgs/msg/Float64MultiArray"
SENT_TOPIC = "supervisor/sent"
FIRST_NS = 250_000_000  # no command is told of later than this; what is older belongs to the episode before
EPISODE_TOPIC, TEXT_TYPE = "policy/episode", "std_msgs/msg/String"
INFO_TOPIC = "policy/policy_info"
"""Private to the policy's node: `~/policy_info` there, and this where the node has its usual name."""


Kind = TypeVar("Kind", bound="Record")


class Record:
    """Float64 vectors in one message, each a segment of its layout under its own name."""

    def encode(self) -> bytes:
        """CDR bytes of the message."""
        parts = [(f.name, getattr(self, f.name)) for f in fields(self)]  # type: ignore[arg-type]  # its kinds are data
        return messages.encode(messages.float64s(np.concatenate([v for _, v in parts]),
                                                 [(name, len(v)) for name, v in parts]))

    @classmethod
    def decode(cls: type[Kind], data: bytes) -> Kind:
        """Read the message back; segments are found by their labels. Raises ValueError for what is none."""
        found = messages.segments(messages.decode(data, STEP_TYPE))
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # its kinds are data
        if missing := [name for name in names if not len(found.get(name, ()))]:
            raise ValueError(f"a {cls.__name__} lacks {', '.join(missing)}; it has {', '.join(found)}")
        return cls(**{name: np.array(found[name]) for name in names})


@dataclass
class StepRecord(Record):
    """One tick of the control loop; every field is a float64 vector."""

    tick: np.ndarray
    episode: np.ndarray
    stamp: np.ndarray
    """Wall time of the tick: (s, ns)."""
    inputs: np.ndarray
    """Source stamps of the messages used, (s, ns) for each of the contract's `inputs`."""
    observation: np.ndarray
    """(O,) its numbers; the frames are in the images that `inputs` names."""
    reward: np.ndarray
    """Reward of the step before this tick."""
    ends: np.ndarray
    """(terminated, truncated, success, valid) as 0 or 1."""
    faults: np.ndarray
    asked: np.ndarray
    """(A,) the policy's action; NaN at the last tick of an episode, which has none."""
    action: np.ndarray
    """(A,) the action that the sent command amounts to."""
    sent: np.ndarray
    """(C,) command, rad, rad/s or N·m."""
    reasons: np.ndarray
    lateness: np.ndarray
    """Of this tick against its deadline, s."""
    latency: np.ndarray
    """From the take of the newest state to the return of publish, s."""


@dataclass
class SentRecord(Record):
    """One command that a supervisor sent; every field is a float64 vector."""

    command: np.ndarray
    """Source stamp of the policy's command that it comes of: (s, ns); zeros for one of the supervisor's own."""
    heard: np.ndarray
    """Wall time when that command was taken, or when the supervisor decided on one of its own: (s, ns)."""
    stamp: np.ndarray
    """Source stamp of what was sent: (s, ns)."""
    sent: np.ndarray
    """(C,) command, rad, rad/s or N·m; by joint as `on_the_wire` has them."""
    reasons: np.ndarray


def step_record(spec: PolicySpec, *, tick: int, episode: int, stamp_ns: int, stamps: dict[str, int], outcome: Outcome,
                asked: np.ndarray, action: np.ndarray, sent: np.ndarray, reasons: Reason, lateness_s: float,
                latency_s: float) -> StepRecord:
    """Gather one tick into a record."""
    one = np.atleast_1d
    flags = [outcome.terminated, outcome.truncated, bool(outcome.success), outcome.valid]
    inputs = [part for s in spec.inputs for part in split_ns(stamps.get(s.name, 0))]
    return StepRecord(one(float(tick)), one(float(episode)), np.array(split_ns(stamp_ns), float),
                      np.array(inputs, float), state_of(outcome.observation).astype(float), one(outcome.reward),
                      np.array(flags, float), one(float(outcome.faults)), asked, action, sent,
                      one(float(reasons)), one(lateness_s), one(latency_s))


@dataclass
class EpisodeLog:
    """One recorded episode: the contract it ran under, its steps, and its raw messages by source stamp."""

    folder: str
    spec: PolicySpec
    info: dict[str, Any]
    """What `~/policy_info` said: contract, with the topics' absolute names, and policy hash."""
    start: dict[str, Any]
    end: dict[str, Any]
    """Outcome as the policy process reported it; empty when the recording broke off."""
    records: list[StepRecord]
    readings: dict[str, dict[int, bytes]]
    goals: dict[int, np.ndarray] = field(default_factory=dict)
    """Goals (3,) in m that came while it ran, by the tick from which they held."""

    def replayed(self, spec: PolicySpec | None = None, goal: np.ndarray | None = None
                 ) -> Iterator[tuple[Outcome, np.ndarray | None]]:
        """Run the episode's rules again over the raw messages: (outcome, action (A,) or None at the end) by step.

        `spec` reads the same messages through another contract of the same robot, for instance with another reward;
        `goal` (3,) in m judges them by another goal than the episode was run for. Raises SpecError for a message that
        is not in the bag, and for a contract that sees through a camera that the episode's policy did not use.
        """
        spec = spec or self.spec
        assert spec.robot is not None
        for camera in {c.name for c in spec.cameras} - {c.name for c in self.spec.cameras}:
            used = ", ".join(c.name for c in self.spec.cameras) or "none"
            raise SpecError(f"{self.folder}: task {spec.task} sees through camera '{camera}', {self.spec.task} ran "
                            f"with {used}: which image belongs to which step is not in the bag")
        episode = Episode(spec, endless=bool(self.start.get("continuous")))
        moved = {} if goal is not None else self.goals
        if goal is None and self.start.get("goal") is not None:
            goal = np.array(self.start["goal"])
        episode.begin(goal)
        for record in self.records:
            if (tick := int(record.tick[0])) in moved:
                episode.aim(moved[tick])
            faults = Reason(int(record.faults[0]))
            episode.halt(faults & ~Reason.WORKSPACE)
            outcome = episode.observe(Readings(self.values(record, spec), self._stamps(record)))
            last = outcome.done or not np.isfinite(record.asked).all()
            yield outcome, None if last else episode.took(record.sent)
            if last:
                return

    def reached(self, spec: PolicySpec | None = None) -> np.ndarray:
        """(T, 3) in m: what success compares with the goal, at each step; (0, 3) for a task without such a goal."""
        spec = spec or self.spec
        term = spec.success.term if spec.goal and spec.success else None
        if term is None or term.minus is None or GOAL not in (term.source, term.minus):
            return np.empty((0, 3))
        source = term.minus if term.source == GOAL else term.source
        seen = (self.values(record, spec, images=False).get(source) for record in self.records)
        return np.array([value for value in seen if value is not None and np.isfinite(value).all()]).reshape(-1, 3)

    def _stamps(self, record: StepRecord) -> dict[str, int]:
        """The source stamp of each message that a step used, ns."""
        parts = zip(self.spec.inputs, record.inputs.reshape(-1, 2), strict=True)
        return {s.name: stamp for s, (seconds, rest) in parts if (stamp := join_ns(seconds, rest))}

    def values(self, record: StepRecord, spec: PolicySpec, images: bool = True) -> Values:
        """What every sensor, and every camera that `spec` uses, had said when a step was decided. Raises SpecError."""
        assert spec.robot is not None
        wanted, values = {s.name for s in (spec.inputs if images else spec.robot.sensors)}, Values()
        stamps = self._stamps(record)
        for sensor in self.spec.inputs:
            if sensor.name not in wanted or (stamp := stamps.get(sensor.name)) is None:
                continue
            data = self.readings[sensor.name].get(stamp)
            if data is None:
                raise SpecError(f"{self.folder}: tick {int(record.tick[0])}: the message of '{sensor.name}' stamped "
                                f"{stamp} ns is not in the bag")
            values |= decode(sensor, data, spec.robot)
        return values


def read_info(data: bytes) -> dict[str, Any]:
    """The JSON object in a std_msgs/String. Raises ValueError where there is none."""
    try:
        told = json.loads(messages.decode(data, TEXT_TYPE).data)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(told, dict):
        raise ValueError(f"no JSON object but {type(told).__name__}")
    return told


def read_event(data: bytes) -> dict[str, Any]:
    """One message of `policy/episode`, its numbers checked. Raises ValueError for what is no such event."""
    event = read_info(data)
    kind, goal = event.get("event"), event.get("goal")
    whole = [event[key] for key in ("episode", "tick") if event.get(key) is not None]
    if kind not in ("start", "end", "goal") or not all(isinstance(number, int) for number in whole):
        raise ValueError(f"no episode event: {str(event)[:200]}")
    if goal is not None and (np.shape(goal) != (3,) or not all(isinstance(x, (int, float)) for x in goal)):
        raise ValueError(f"episode event: goal={str(goal)[:200]} is not three numbers")
    if kind == "goal" and (goal is None or event.get("tick") is None):
        raise ValueError(f"episode event: a goal without its tick or its place: {str(event)[:200]}")
    return event


def outcome(end: Mapping[str, Any]) -> str:
    """How an episode ended, in words; of no end if its recording broke off."""
    if "success" not in end:
        return "recording broke off"
    faults = end.get("faults", "none")
    if faults != "none" and not end["success"]:
        return f"stopped ({faults})"
    return {True: "success", False: "failed", None: "over"}[end["success"]]


def read_episode(folder: str | Path) -> EpisodeLog:
    """Read one recorded episode, also one that broke off. Raises SpecError when it holds no contract."""
    info: dict[str, Any] = {}
    start: dict[str, Any] = {}
    end: dict[str, Any] = {}
    steps: list[tuple[int, StepRecord]] = []
    sent: dict[int, SentRecord] = {}
    raw: dict[str, dict[int, bytes]] = {}
    goals: dict[int, np.ndarray] = {}
    for message in read(folder):
        try:
            if message.topic.endswith(STEP_TOPIC):
                steps.append((message.publish_ns, StepRecord.decode(message.data)))
            elif message.topic.endswith(SENT_TOPIC):
                one = SentRecord.decode(message.data)
                sent[join_ns(*one.command)] = one
            elif message.topic.endswith("/policy_info"):
                info = read_info(message.data)
            elif message.topic.endswith(EPISODE_TOPIC):
                event = read_event(message.data)
                if event["event"] == "goal":
                    goals[event["tick"]] = np.array(event["goal"])
                else:
                    start, end = (event, end) if event["event"] == "start" else (start, event)
            else:
                raw.setdefault(message.topic, {})[message.publish_ns] = message.data
        except (ValueError, OverflowError) as error:  # a time that is infinite is the latter
            raise SpecError(f"{folder}: {message.topic} at {message.log_ns} ns: {error}") from error
    if "contract" not in info:
        raise SpecError(f"{folder}: no contract on ~/policy_info: this bag was not recorded by `robot-rl deploy`")
    spec = PolicySpec.from_json(json.dumps(info["contract"]), str(folder))
    readings = {s.name: next((m for topic, m in raw.items() if topic.endswith(heard_on(s)[0])), {})
                for s in spec.inputs}
    if spec.robot is not None and spec.robot.supervised:
        places = on_the_wire(spec.robot)
        try:
            sent = {stamp: replace(one, sent=one.sent[np.argsort(places)]) for stamp, one in sent.items()}
            steps = list(let_through(steps, sent))
        except (ValueError, IndexError, OverflowError) as error:
            raise SpecError(f"{folder}: {SENT_TOPIC} and {STEP_TOPIC} do not fit robot {spec.robot.robot}: {error}"
                            ) from error
    records = [r for _, r in steps if not start or r.episode[0] == start.get("episode")]
    return EpisodeLog(str(folder), spec, info, start, end, records, readings, goals)


def recorded_topics(robot: RobotSpec, cameras: bool = True) -> list[tuple[str, str, str]]:
    """What a robot says and is told, and the policy's steps: (topic, type, QoS kind of the recorder)."""
    rows = [(*heard_on(sensor), "sensor") for sensor in robot.sensors]
    for camera in robot.cameras if cameras else ():
        rows += [(*heard_on(camera), "sensor"), (camera.info_topic, "sensor_msgs/msg/CameraInfo", "sensor")]
    rows += [(to.topic, to.type, "command") for to in robot.command_topics]
    return [*rows, (robot.stop_topic, BOOL, "latched"), (STEP_TOPIC, STEP_TYPE, "events"), *supervisor_topics(robot)]


def asked_topics(spec: PolicySpec) -> list[tuple[str, str, str]]:
    """What a policy is asked by: (topic, type, QoS kind of the recorder)."""
    goal = [(spec.goal.topic, POSE, "latched")] if spec.goal else []
    return goal + ([(spec.steering.topic, spec.steering.type, "sensor")] if spec.steering else [])


def supervisor_topics(robot: RobotSpec) -> list[tuple[str, str, str]]:
    """What is recorded of a supervisor and of what it is told: (topic, type, QoS kind)."""
    if not robot.supervised:
        return []
    return [*((robot.commands_of_policies(to.topic), to.type, "command") for to in robot.command_topics),
            (SENT_TOPIC, STEP_TYPE, "events"), (SUPERVISOR_STATE, TEXT_TYPE, "latched")]


def on_the_wire(robot: RobotSpec) -> np.ndarray:
    """(C,) int: which actuated joint each number of a SentRecord belongs to.

    They come in the order of the command topics and of their joints: a policy's own order of joints changes neither.
    """
    places = {joint.name: i for i, joint in enumerate(robot.actuated)}
    return np.array([places[name] for to in robot.command_topics for name in to.joints], dtype=np.intp)


def let_through(steps: list[tuple[int, StepRecord]], sent: dict[int, SentRecord]) -> Iterator[tuple[int, StepRecord]]:
    """Steps, each with its source stamp in ns, with what the supervisor sent for them in the place of what it was told.

    A policy tells of a step after its command, so the command is the last one before the step's stamp and after the
    step before. One that was not let through is a stop: nothing may be learned from there on.
    """
    stamps, before = sorted(sent), 0
    for told_ns, record in steps:
        place = bisect.bisect_right(stamps, told_ns) - 1
        since = max(before, told_ns - FIRST_NS)
        if place >= 0 and stamps[place] > since:
            ours = sent[stamps[place]]
            reasons = np.array([float(int(record.reasons[0]) | int(ours.reasons[0]))])
            record = replace(record, sent=ours.sent, reasons=reasons)
        elif np.isfinite(record.asked).all():
            record = replace(record, faults=np.array([float(int(record.faults[0]) | Reason.STOP)]))
        before = told_ns
        yield told_ns, record


def split_ns(stamp_ns: int) -> tuple[int, int]:
    """(s, ns) of a stamp."""
    return divmod(stamp_ns, 1_000_000_000)


def join_ns(seconds: float, nanoseconds: float) -> int:
    """The stamp in ns of its two parts."""
    return int(seconds) * 1_000_000_000 + int(nanoseconds)
