"""Measures control loops: a real policy behind the safety filter, against a robot's topics in another process.

Three loops run the same decision: `ours` has absolute deadlines, `sleep` sleeps what is left of a period, as loops of
robot-learning stacks do, and `timer` is a plain rclpy node with a timer and subscriptions. They take turns.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hardware import messages
from hardware.bus import COMMAND, Qos, connect
from hardware.camera_bench import Sightings, cpu_s, filmed
from hardware.loop import RealTime, Ticker, percentiles, steady
from hardware.rehearsal import Rehearsal
from hardware.robot_io import RobotIO, decode, encode_command
from robot_rl import image
from robot_rl.episode import Episode
from robot_rl.observe import Readings
from robot_rl.policy import Policy
from robot_rl.spec import JOINT_STATE, PolicySpec, RobotSpec, SpecError, policy_file

LOOPS = ("ours", "sleep", "timer")
LOADS = ("idle", "busy")
NODE, NAMESPACE = "policy", "bench"
WARM_TICKS = 20


@dataclass(frozen=True)
class Turn:
    """What one loop is to do once; everything that its process needs."""

    loop: str
    rate_hz: float
    seconds: float
    policy: str
    kind: str
    domain: int
    cpu: int | None
    rehearse: bool
    others: Mapping[str, int]
    """Processes whose share of a core is told too, by name."""


@dataclass(frozen=True)
class Kept:
    """How a loop kept time in one turn."""

    stamps_ns: np.ndarray
    """(ticks,) when each tick began, on the monotonic clock."""
    latency_s: np.ndarray
    """(ticks,) from the take of the newest state to the return of publish."""
    cpu_share: float
    """Of one core."""
    memory_growth_mb: float
    real_time: RealTime | None
    stops: int
    """Ticks at which a silent sensor or camera let nothing be sent."""
    cameras: dict[str, dict[str, float]]
    cpu_share_of: dict[str, float]


@dataclass
class Figures:
    """Of one loop at one rate under one load, all turns together; ms where nothing else is said.

    Jitter is lateness against the absolute schedule; interval error the difference of an interval to the period; drift
    what the loop loses in a second; a missed deadline is a period without a tick.
    """

    loop: str
    load: str
    rate_hz: float
    achieved_hz: float
    ticks: int
    missed: int
    jitter_ms_p50: float
    jitter_ms_p99: float
    jitter_ms_p999: float
    interval_error_ms_p50: float
    interval_error_ms_p99: float
    drift_ms_per_s: float
    latency_ms_p50: float
    latency_ms_p99: float
    cpu_share: float
    memory_growth_mb: float
    stops: int
    real_time: RealTime | None
    cameras: dict[str, dict[str, float]] | None
    """Of the last turn: the share of ticks with a new image, its age, how far behind the joints it is."""
    cpu_share_of: dict[str, float] | None
    """Of the last turn: of one core, by process beside the loop."""
    jitter_ms: list[float] = field(default_factory=list)
    """(ticks,)"""


def bench(rates: Sequence[float], seconds: float, policy: str, loops: Sequence[str] = LOOPS,
          loads: Sequence[str] = ("idle",), repetitions: int = 1, kind: str = "auto", domain: int = 117,
          cpu: int | None = None, cores: int = 0, rehearse: bool = True, out: Path | None = None,
          report: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Let the loops take turns at every rate under every load; returns the figures, and writes a page to `out`.

    Loads: `idle`, and `busy` with a process on each core that never rests. A policy that sees gets camera processes and
    a `sim-robot`. `timer` is left out for it, and where rclpy is absent. Everything together keeps to so many `cores`,
    0 to all.
    """
    for name, given, known in (("loops", loops, LOOPS), ("loads", loads, LOADS)):
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"{name}: {', '.join(unknown)}; known are {', '.join(known)}")
    if slow := [rate for rate in rates if not rate > 0]:
        raise ValueError(f"rate: {slow[0]:g} Hz; a rate is above 0")
    spec = _contract(policy)
    there = [loop for loop in loops if loop != "timer" or (_rclpy() and not spec.vision)]
    if left_out := sorted(set(loops) - set(there)):
        why = "the policy sees" if spec.vision else "rclpy cannot be imported"
        report(f"left out, because {why}: {', '.join(left_out)}")
    found: list[Figures] = []
    for rate in rates:
        with _kept_to(cores), _robot(spec, rate, kind, domain) as others:
            for load in loads:
                turns: dict[str, list[Kept]] = {loop: [] for loop in there}
                with _busy(load == "busy"):
                    for _ in range(repetitions):
                        for loop in there:
                            turn = Turn(loop, rate, seconds, policy, kind, domain, cpu, rehearse, others)
                            turns[loop].append(_in_a_process(turn))
                for loop in there:
                    found.append(_figures(loop, load, rate, turns[loop]))
                    report(_line(found[-1]))
    if out is not None:
        from robot_rl.page.loops import write_page
        write_page(out, [asdict(f) for f in found])
    rows = [asdict(f) | {"jitter_ms": None} for f in found]
    rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
    shared = {"machine": f"{os.cpu_count()} cores", "cores": cores or os.cpu_count(), "policy": policy,
              "seconds": seconds, "repetitions": repetitions}
    return shared | ({"page": str(out)} if out else {}) | (rows[0] if len(rows) == 1 else {"loops": rows})


def judged(stamps_ns: np.ndarray, period_ns: int) -> tuple[np.ndarray, int]:
    """Lateness (ticks,) ns of ticks against the schedule that the first second of them keeps best, and periods missed.

    A tick belongs to the period that it falls into; two may, where the first was late by more than one. It may be a
    twentieth of a period early, for the first second's ticks are a little late themselves.
    """
    number = np.arange(len(stamps_ns))
    some = max(1, min(len(stamps_ns), 1_000_000_000 // period_ns))
    since = stamps_ns - int((stamps_ns[:some] - number[:some] * period_ns).min())
    place = (since + period_ns // 20) // period_ns
    return since - place * period_ns, int(np.maximum(np.diff(place) - 1, 0).sum())


def _contract(policy: str) -> PolicySpec:
    spec = Policy(policy_file(policy)).spec
    if spec.robot is None:
        raise SpecError(f"policy {policy}: it declares no robot to run on")
    return spec


def _at(spec: PolicySpec, rate_hz: float) -> PolicySpec:
    """The contract at a rate; with numbers only, on a robot as fast."""
    robot = spec.robot if spec.vision or spec.robot is None else _fast(spec.robot, rate_hz)
    return msgspec.structs.replace(spec, rate_hz=rate_hz, robot=robot)


def _fast(robot: RobotSpec, rate_hz: float) -> RobotSpec:
    """The robot with sensors as fast as the loop, so that every tick has something new to read.

    They may be silent for longer than usual: a busy machine holds its robot process up, which is not the loop's fault.
    """
    sensors = tuple(msgspec.structs.replace(s, rate_hz=max(s.rate_hz, rate_hz), stale_after_s=5.0)
                    for s in robot.sensors)
    return msgspec.structs.replace(robot, sensors=sensors)


def _figures(loop: str, load: str, rate_hz: float, turns: Sequence[Kept]) -> Figures:
    period = round(1e9 / rate_hz)
    late, missed = zip(*(judged(turn.stamps_ns, period) for turn in turns), strict=True)
    jitter = np.concatenate(late) * 1e-6
    error = np.concatenate([np.abs(np.diff(turn.stamps_ns) - period) for turn in turns]) * 1e-6
    latency = np.concatenate([turn.latency_s for turn in turns]) * 1e3
    lasted = np.array([turn.stamps_ns[-1] - turn.stamps_ns[0] for turn in turns]) * 1e-9
    ticks = np.array([len(turn.stamps_ns) - 1 for turn in turns])
    drift = np.median((lasted - ticks / rate_hz) / lasted) * 1e3
    j50, j99, j999 = percentiles(jitter, 50, 99, 99.9)
    (e50, e99), (l50, l99) = percentiles(error, 50, 99), percentiles(latency, 50, 99)
    return Figures(loop, load, rate_hz, float(ticks.sum() / lasted.sum()), int(ticks.sum()), int(sum(missed)),
                   j50, j99, j999, e50, e99, float(drift), l50, l99, float(np.mean([t.cpu_share for t in turns])),
                   max(t.memory_growth_mb for t in turns), sum(t.stops for t in turns), turns[-1].real_time,
                   turns[-1].cameras or None, turns[-1].cpu_share_of or None, jitter.tolist())


def _line(f: Figures) -> str:
    return (f"{f.rate_hz:6g} Hz {f.load}  {f.loop:<6} jitter p50 {f.jitter_ms_p50:.4f} p99 {f.jitter_ms_p99:.3f} p99.9 "
            f"{f.jitter_ms_p999:.3f} ms, missed {f.missed} of {f.ticks}, latency p50 {f.latency_ms_p50:.2f} p99 "
            f"{f.latency_ms_p99:.2f} ms, CPU {f.cpu_share:.0%}")


def _in_a_process(turn: Turn) -> Kept:
    """A turn in a fresh process, which has nothing of the others' in its memory."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_turn, args=(turn, results), daemon=True)
    process.start()
    while not results.empty() or process.is_alive():
        if not results.empty():
            kept: Kept = results.get()
            process.join()
            return kept
        time.sleep(0.05)
    raise RuntimeError(f"loop '{turn.loop}' at {turn.rate_hz:g} Hz ended with status {process.exitcode}")


def _turn(turn: Turn, results: Any) -> None:
    loaded = Policy(policy_file(turn.policy))
    spec = _at(loaded.spec, turn.rate_hz)
    image.prepare(spec)
    run = _timer if turn.loop == "timer" else _ours if turn.loop == "ours" else _sleep
    results.put(run(turn, loaded, spec))


class _Decision:
    """One decision of the real path; a new episode begins whenever one ends."""

    def __init__(self, policy: Policy, spec: PolicySpec) -> None:
        self._policy, self._episode = policy, Episode(spec)
        self._goal = spec.goal.sample(np.random.default_rng(0)) if spec.goal else None
        self._episode.begin(self._goal)
        policy.warm_up()

    def __call__(self, readings: Readings) -> np.ndarray | None:
        """The command (C,), or None where a sensor or a camera is silent."""
        outcome = self._episode.observe(readings)
        if outcome.done:
            self._episode.begin(self._goal)
            self._policy.reset()
            outcome = self._episode.observe(readings)
        return self._episode.act(self._policy(outcome.observation)).sent if outcome.valid else None


class _Watch:
    """Begin and latency of each tick, processor time and memory, from the end of the first few ticks on."""

    def __init__(self, turn: Turn, spec: PolicySpec) -> None:
        most = round(turn.rate_hz * turn.seconds) + 1
        self._seen, self._others, self._stops = Sightings(spec, most), turn.others, 0
        self._used: dict[str, float] = {}
        self._stamps, self._latency = np.zeros(most, np.int64), np.zeros(most)
        self._skip, self._most, self.ticks = WARM_TICKS, most, 0
        self._before = self._began = self._size = 0.0
        self._seconds = turn.seconds

    def note(self, taken_ns: int, readings: Readings, sent: bool) -> bool:
        """One tick, which took its state at `taken_ns` and has published what it could; False: enough."""
        now = time.monotonic_ns()
        if self._skip:
            self._skip -= 1
            self._before, self._began, self._size = _cpu_s(), now * 1e-9, _memory_mb()
            self._used = {name: cpu_s(process) for name, process in self._others.items()}
            return True
        self._stamps[self.ticks], self._latency[self.ticks] = taken_ns, (now - taken_ns) * 1e-9
        self._seen.note(self.ticks, readings)
        self._stops += not sent
        self.ticks += 1
        return self.ticks < self._most and now * 1e-9 - self._began < self._seconds

    def kept(self, real_time: RealTime | None) -> Kept:
        spent = time.monotonic() - self._began
        shares = {name: (cpu_s(process) - self._used[name]) / spent for name, process in self._others.items()}
        return Kept(self._stamps[:self.ticks], self._latency[:self.ticks], (_cpu_s() - self._before) / spent,
                    _memory_mb() - self._size, real_time, self._stops, self._seen.figures(self.ticks), shares)


@contextmanager
def _on_the_bus(turn: Turn, policy: Policy, spec: PolicySpec) -> Iterator[tuple[RobotIO, _Decision, _Watch]]:
    """What a loop of the bus needs, with the robot heard."""
    assert spec.robot is not None
    with connect(turn.kind, NODE, NAMESPACE, turn.domain) as bus:  # type: ignore[arg-type]
        io, decide = RobotIO(spec.robot, bus, spec.cameras, spec.steering), _Decision(policy, spec)
        watch = _Watch(turn, spec)
        io.wait(15.0)
        yield io, decide, watch


def _ours(turn: Turn, policy: Policy, spec: PolicySpec) -> Kept:
    with _on_the_bus(turn, policy, spec) as (io, decide, watch):
        rehearse = Rehearsal(io, policy, spec) if turn.rehearse else None
        ticker = Ticker(turn.rate_hz, 1)
        with steady(turn.cpu) as granted:
            ticker.start()
            while True:
                ticker.wait(rehearse)
                if not _tick(io, decide, watch):
                    return watch.kept(granted)


def _sleep(turn: Turn, policy: Policy, spec: PolicySpec) -> Kept:
    with _on_the_bus(turn, policy, spec) as (io, decide, watch):
        while True:
            taken = time.monotonic_ns()
            if not _tick(io, decide, watch):
                return watch.kept(None)
            time.sleep(max(0.0, 1.0 / turn.rate_hz - (time.monotonic_ns() - taken) * 1e-9))


def _tick(io: RobotIO, decide: _Decision, watch: _Watch) -> bool:
    taken = time.monotonic_ns()
    readings = io.read()
    command = decide(readings)
    if command is not None:
        io.send(command)
    return watch.note(taken, readings, command is not None)


def _timer(turn: Turn, policy: Policy, spec: PolicySpec) -> Kept:
    from hardware.bus.ros import timer_node
    robot = spec.robot
    assert robot is not None
    decide, watch = _Decision(policy, spec), _Watch(turn, spec)

    def tick(newest: dict[str, bytes], publish: Callable[[str, bytes], None]) -> bool:
        taken = time.monotonic_ns()
        if len(newest) < len(robot.sensors):
            return True
        readings = Readings({})
        for sensor in robot.sensors:
            readings.values |= decode(sensor, newest[sensor.topic], robot)
        command = decide(readings)
        if command is not None:
            for topic, data in encode_command(robot, command):
                publish(topic, data)
        return watch.note(taken, readings, command is not None)

    timer_node(NODE, NAMESPACE, turn.domain, [(s.topic, s.type) for s in robot.sensors],
               [(to.topic, to.type) for to in robot.command_topics], turn.rate_hz, tick)
    return watch.kept(None)


@contextmanager
def _kept_to(cores: int) -> Iterator[None]:
    """So many processors for whatever is started inside, 0 for all."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores or len(before)])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _robot(spec: PolicySpec, rate_hz: float, kind: str, domain: int) -> Iterator[dict[str, int]]:
    """A robot's topics in a process of their own, with its cameras in others; the latter by name."""
    if spec.vision:
        with filmed(spec, ["--bus", kind, "--namespace", NAMESPACE, "--domain", str(domain)]) as processes:
            yield {name: process.pid for name, process in processes.items()}
        return
    robot = _at(spec, rate_hz).robot
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_be_robot, args=(msgspec.json.encode(robot), kind, domain, ready), daemon=True)
    process.start()
    try:
        if not ready.wait(30):
            raise TimeoutError("the robot process did not start within 30 s")
        yield {}
    finally:
        process.terminate()
        process.join(5)


def _be_robot(spec: bytes, kind: str, domain: int, ready: Any) -> None:
    """A robot's topics at their rates, at rest in its default pose; commands are read and dropped."""
    robot = msgspec.json.decode(spec, type=RobotSpec)
    with connect(kind, "robot", NAMESPACE, domain) as bus:  # type: ignore[arg-type]
        pubs = [(s, bus.publisher(s.topic, s.type, Qos(reliable=True))) for s in robot.sensors]
        commands = [bus.reader(to.topic, to.type, COMMAND) for to in robot.command_topics]
        rest = np.array([j.default for j in robot.joints])
        ticker = Ticker(max(s.rate_hz for s in robot.sensors))
        ready.set()
        ticker.start()
        while True:
            ticker.wait()
            for reader in commands:
                reader.newest()
            stamp = time.time_ns()
            for sensor, publisher in pubs:
                message = (messages.joint_state(stamp, robot.names, rest, 0 * rest, 0 * rest)
                           if sensor.type == JOINT_STATE else
                           messages.pose_stamped(stamp, sensor.frame, (0.2, 0.0, 0.2), (0.0, 0.0, 0.0, 1.0)))
                publisher.publish(messages.encode(message))


@contextmanager
def _busy(wanted: bool) -> Iterator[None]:
    """A process on each core that never rests."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)] if wanted else []
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join(5)


def _spin() -> None:
    while True:
        pass


def _rclpy() -> bool:
    from importlib.util import find_spec
    return find_spec("rclpy") is not None


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _memory_mb() -> float:
    """What this process holds in memory, MB; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * resource.getpagesize() * 1e-6
