"""The supervisor: a process between policies and the robot, with a copy of the spec and a look at the robot of its own.

A policy's commands go to `supervisor/<command topic>`, of each of the robot's command topics. While it is armed they
are limited again and passed on, once every topic has told of its joints; when something is wrong the robot gets its
stop behaviour instead, and a latched stop lasts until somebody resets it.
`robot_rl/stop.py` decides, this file sees and does. Every command that goes out is told of on `supervisor/sent`.

Services (std_srvs/Trigger): `supervisor/arm`, `disarm`, `stop`, `reset`. Topics: `supervisor/state` (JSON, latched),
`supervisor/stopped` (latched, and again ten times a second; true unless armed: policies end their episode by it, and
by its silence), `/diagnostics`.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from hardware import messages
from hardware.bus import COMMAND, EVENTS, LATCHED, Bus, Qos, Reader, Request, Sample
from hardware.diagnostics import TOPIC as DIAGNOSTICS_TOPIC
from hardware.diagnostics import TYPE as DIAGNOSTICS
from hardware.diagnostics import ages, diagnostic
from hardware.either import BOOL, Switch, is_true
from hardware.loop import percentiles, steady
from hardware.robot_io import Order, RobotIO, decode_command
from robot_rl import stop
from robot_rl.guard import Guard
from robot_rl.observe import Readings, Speeds
from robot_rl.plausible import Plausible
from robot_rl.safety import CLAMPS, Reason, Safety
from robot_rl.spec import SUPERVISOR_STATE, SUPERVISOR_STOPPED, CommandTopic, RobotSpec, load_robot, robot_file
from robot_rl.steplog import SENT_TOPIC, STEP_TOPIC, STEP_TYPE, TEXT_TYPE, SentRecord, StepRecord, on_the_wire, split_ns
from robot_rl.stop import Flag, Stand, State

if TYPE_CHECKING:
    from hardware.deploy import BusOptions

TICK_S = 0.005  # it looks at least so often
STOP_PERIOD_S = 0.01  # between commands of the stop behaviour
POSE_S = 0.02  # between looks at how far apart links are
GRAPH_S = 0.1  # between looks at who else is there
BEAT_S = 0.1  # between words on `supervisor/stopped`, by whose silence policies know that nobody is here
LATE_S = 0.05  # without a look for longer, it was late
EVENT_S, CLAMPED_S = 0.5, 1.0  # how long what happened in a moment counts as a flag
BURST = 10  # commands that may come at once whatever the rate
QUEUE = Qos(reliable=True, depth=256)
SETTLED = 0.05  # rad/s (m/s)
MOVED = 0.2  # rad (m): a joint this far from the pose that is held was moved by somebody else
SLACK = 1.2  # a command may come a little early
LEAVE_S = 2.0
TAIL_NS = 1_000_000_000  # after the end of an episode, commands of the stop behaviour follow for less than this

SEEN = {Reason.MISSING: Flag.SENSORS, Reason.STALE: Flag.SENSORS, Reason.NONFINITE: Flag.READINGS,
        Reason.WORKSPACE: Flag.WORKSPACE}
LEVELS = {State.ARMED: 0, State.INACTIVE: 0, State.STOPPING: 1, State.STOPPED: 2}


class Line:
    """One command topic: what policies send there, and who else there is."""

    def __init__(self, robot: RobotSpec, to: CommandTopic, bus: Bus) -> None:
        self.to = to
        places = {joint.name: i for i, joint in enumerate(robot.actuated)}
        self.index = np.array([places[name] for name in to.joints], dtype=np.intp)
        told = msgspec.structs.replace(robot, supervised=True).commands_of_policies(to.topic)
        self.name = bus.resolve(told)
        self.commands: Reader = bus.reader(told, to.type, QUEUE)
        self._rivals = bus.reader(to.topic, to.type, COMMAND)
        # twice the rate for 0.1 s, and more
        self._stamps: deque[int] = deque(maxlen=BURST + round(0.2 * robot.joint_sensor.rate_hz))

    def take(self) -> tuple[list[Sample], bool]:
        """What came, and whether it is too much."""
        samples = self.commands.take()
        self._stamps.extend(sample.stamp_ns for sample in samples)
        full = len(self._stamps) == self._stamps.maxlen
        return samples, bool(samples) and full and self._stamps[-1] - self._stamps[0] < 100_000_000

    def contested(self) -> bool:
        """Whether somebody else commands the robot, or more than one policy us; one of the first is ours."""
        return self._rivals.matched() > 1 or self.commands.matched() > 1


class Supervisor:
    """One robot's supervisor on a bus whose node is named `supervisor`."""

    def __init__(self, robot: RobotSpec, mjcf: Path, bus: Bus, acknowledged: bool = False) -> None:
        """`acknowledged`: somebody knows that nobody behind it stops a position robot when commands stop."""
        robot = msgspec.structs.replace(robot, supervised=False)  # what it sends goes to the robot itself
        self.robot, self._told = robot, robot.supervisor
        self._table = stop.actions(self._told.actions)
        self._io = RobotIO(robot, bus)
        self._bus, self._wire = bus, on_the_wire(robot)
        self._lines = [Line(robot, to, bus) for to in robot.command_topics]
        self._speeds = Speeds(robot.joint_sensor, robot.joint_sensor.rate_hz)
        self._steps = bus.reader(STEP_TOPIC, STEP_TYPE, EVENTS)
        self._stop = Switch(bus, robot.stop_topic)
        deadman = self._told.deadman
        self._deadman = Switch(bus, deadman) if deadman else None
        self._services = {request: bus.service(f"supervisor/{request.value}") for request in stop.Request
                          if request is not stop.Request.NONE}
        self._sent = bus.publisher(SENT_TOPIC, STEP_TYPE, EVENTS)
        self._state = bus.publisher(SUPERVISOR_STATE, TEXT_TYPE, LATCHED)
        self._stopped = bus.publisher(SUPERVISOR_STOPPED, BOOL, LATCHED)
        self._diagnostics = bus.publisher(DIAGNOSTICS_TOPIC, DIAGNOSTICS, COMMAND)
        self._rate = robot.joint_sensor.rate_hz
        self._safety, self._guard, self._plausible = Safety(robot, self._rate), Guard(robot, mjcf), Plausible(robot)
        self._position = f"{robot.joint_sensor.name}.position"
        self._standing = stop.unwatched(robot.watchdog.kind, robot.command.interface, acknowledged)
        self.stand, self.flags = Stand(since_s=time.monotonic()), Flag.NONE
        self._until: dict[Flag, float] = {}  # when what happened in a moment is over
        self._graph = self._pose = Flag.NONE
        self._asked: Request | None = None
        self._armed_ns = 0  # commands that came before count for nothing
        self._waiting: dict[str, Sample] = {}  # of a decision, until every topic has told of its joints
        self._newest: dict[str, int] = {}  # by topic, when the policy's newest command since it was armed came, ns
        self._before_ns = 0  # source stamp of the command before
        self._over_ns = 0  # when the policy told of the end of its episode; 0: it is in one
        self._last: np.ndarray | None = None  # the last command sent, while they follow each other
        self._held: np.ndarray | None = None
        self._looked = self._told_s = self._graph_s = self._pose_s = self._stop_s = self._beat_s = time.monotonic()
        self._ages: dict[str, float] = {}
        self._passed: deque[float] = deque(maxlen=1000)
        self._refused = ""
        self._tell(None)

    def run(self, over: Callable[[], bool]) -> None:
        """Supervise until `over()`; a robot that is commanded then is stopped first."""
        with steady():
            while not over():
                self.tick()
            end = time.monotonic() + LEAVE_S
            self._advance(self._read(), stop.Request.DISARM)
            while self.stand.state is State.STOPPING and time.monotonic() < end:
                self.tick()
        print(f"supervisor: {self.robot.robot}: left {self.stand.state.value}", flush=True)

    def tick(self) -> None:
        """Wait for a command, or a while; look; decide; pass the command on or stop the robot."""
        if self.stand.state is State.ARMED:
            next(line for line in reversed(self._lines) if line.to.topic not in self._waiting).commands.wait(TICK_S)
        else:  # nobody waits for what is not passed on
            time.sleep(TICK_S)
        heard = time.time_ns()
        samples = self._take()
        readings = self._read()
        self._asked = None
        self._advance(readings, self._request())
        if self._asked is not None:
            refused = self.stand.refused
            self._asked.reply(not refused, "; ".join(refused) or self.stand.state.value)
        now = time.monotonic()
        if self.stand.state is State.ARMED and samples:
            self._forward(samples, readings, heard)
        elif self.stand.state in (State.STOPPING, State.STOPPED) and now >= self._stop_s:
            self._stop_s = now + STOP_PERIOD_S
            self._brake(readings, heard)
        if now - self._beat_s >= BEAT_S:
            self._beat()
        if now - self._told_s >= 1.0:
            self._told_s = now
            self._diagnose()

    def _read(self) -> Readings:
        return self._speeds(self._io.read())

    def _advance(self, readings: Readings, request: stop.Request) -> None:
        """Let the machine decide; what changes is done and told."""
        before, now = self.stand, time.monotonic()
        self.flags = self._look(readings, now)
        self.stand = stop.advance(before, self.flags, now, resting=self._resting(readings), request=request,
                                  table=self._table)
        if self.stand.state is before.state:
            return
        if self.stand.state is State.ARMED:
            self._armed_ns, self._over_ns, self._last = time.monotonic_ns(), 0, None
            self._newest, self._waiting = {}, {}
            self._plausible.begin()
        elif self.stand.state is State.STOPPING:
            self._stop_s, self._held = 0.0, None
        self._tell(before)

    def _take(self) -> dict[str, Sample]:
        """The newest command, a message of each topic, once it is whole; and what the policy says of its episodes."""
        for line in self._lines:
            samples, flood = line.take()
            if flood:
                self._until[Flag.FLOOD] = time.monotonic() + EVENT_S
            samples = [sample for sample in samples if sample.arrival_ns > self._armed_ns]
            if samples and self.stand.state is State.ARMED:
                if not self._newest:  # from now on every topic has to be told of
                    self._newest = {one.to.topic: samples[-1].arrival_ns for one in self._lines}
                self._newest[line.to.topic] = samples[-1].arrival_ns
                self._waiting[line.to.topic] = samples[-1]
        steps = self._steps.take()
        if steps:
            try:
                ends = StepRecord.decode(steps[-1].data).ends
                self._over_ns = steps[-1].arrival_ns if ends[0] or ends[1] else 0
            except Exception as error:  # outside bytes, whatever the decoder makes of them
                self._refused = f"{STEP_TOPIC}: {error!r}"
        if len(self._waiting) < len(self._lines):
            return {}
        whole, self._waiting = self._waiting, {}
        return whole

    def _request(self) -> stop.Request:
        """What is asked for, one thing at a time; a stop goes first."""
        for request in (stop.Request.STOP, stop.Request.DISARM, stop.Request.RESET, stop.Request.ARM):
            asked = self._services[request].take()
            if asked is not None:
                self._asked = asked
                return request
        return stop.Request.NONE

    def _look(self, readings: Readings, now: float) -> Flag:
        """Everything that is wrong now."""
        if now - self._looked > LATE_S:
            self._until[Flag.OVERRUN] = now + CLAMPED_S
        self._looked = now
        if now >= self._graph_s:
            self._graph_s = now + GRAPH_S
            self._graph = Flag.AUTHORITY if any(line.contested() for line in self._lines) else Flag.NONE
        if now >= self._pose_s and self._position in readings.values:
            self._pose_s = now + POSE_S
            self._pose = self._guard.check(readings.values[self._position])
        for flag, true in zip((Flag.READINGS, Flag.FROZEN), self._plausible.judge(readings, now), strict=True):
            if true:
                self._until[flag] = now + EVENT_S
        flags = self._standing | self._graph | self._pose
        self._ages = readings.ages
        faults = self._safety.check(readings)
        for reason, flag in SEEN.items():
            flags |= flag if reason in faults else Flag.NONE
        for flag, until in self._until.items():
            flags |= flag if now < until else Flag.NONE
        if self._stop.on():
            flags |= Flag.PROTECTIVE_STOP
        if self._deadman and not self._alive(now):
            flags |= Flag.DEADMAN
        if self.stand.state is State.ARMED and self._silent(now):
            flags |= Flag.HEARTBEAT
        return flags

    def _silent(self, now: float) -> bool:
        """Whether commands have stopped coming, other than at the end of an episode, which a policy's steps tell of."""
        if not self._newest or now - min(self._newest.values()) * 1e-9 <= self._told.heartbeat_s:
            return False
        return not self._over_ns or max(self._newest.values()) - self._over_ns > TAIL_NS

    def _alive(self, now: float) -> bool:
        """Whether the deadman switch is held, and was heard of just now."""
        newest = self._deadman.newest() if self._deadman else None
        return (newest is not None and now - newest.arrival_ns * 1e-9 <= self._told.deadman_s
                and is_true(newest, otherwise=False))

    def _resting(self, readings: Readings) -> bool:
        velocity = readings.values.get(f"{self.robot.joint_sensor.name}.velocity")
        return velocity is not None and bool(np.all(np.abs(velocity[self.robot.actuated_index]) < SETTLED))

    def _forward(self, samples: dict[str, Sample], readings: Readings, heard: int) -> None:
        """Limit a command and send it; a bad one is for the next look to see."""
        stamp_ns = samples[self._lines[0].to.topic].stamp_ns
        gap = (stamp_ns - self._before_ns) * 1e-9
        self._before_ns = stamp_ns
        if self._last is None or not 0 < gap <= self._told.heartbeat_s:
            self._last, gap = self._safety.start(readings), TICK_S
        target, brakes = np.empty(len(self._wire)), False
        for line in self._lines:
            try:
                order = decode_command(self.robot, line.to, samples[line.to.topic].data)
                brakes |= self._brakes(line, order)
            except Exception as error:  # outside bytes, whatever the decoder makes of them
                self._bad(f"{line.name}: {error}")
                return
            if not np.isfinite(order.target).all():
                self._bad(f"{line.name}: {order.target} is not finite")
                return
            target[line.index] = order.target
        command, reasons = self._safety.limit(target, self._last, readings, gap * self._rate * SLACK)
        command, held = self._guard.limit(command, self._last, readings.values[self._position], gap * SLACK)
        reasons |= held
        self._last = command
        self._publish(command, reasons, stamp_ns, heard, brakes)
        self._plausible.sent(command, time.monotonic())
        self._passed.append((time.time_ns() - heard) * 1e-6)
        if reasons & CLAMPS:
            self._until[Flag.CLAMPED] = time.monotonic() + CLAMPED_S

    def _brakes(self, line: Line, order: Order) -> bool:
        """Whether an order is the brake of the stop behaviour. Raises ValueError for gains that are not the robot's."""
        if order.gains is None:
            return False
        joints = [self.robot.actuated[i] for i in line.index]
        if np.allclose(order.gains, [[j.kp for j in joints], [j.kd for j in joints]]):
            return False
        if self.robot.stop == "damping" and np.allclose(order.gains, [[0.0] * len(joints), [j.brake for j in joints]]):
            return True
        kp, kd = order.gains
        raise ValueError(f"kp={kp.tolist()}, kd={kd.tolist()} are not the robot's: kp={[j.kp for j in joints]}, "
                         f"kd={[j.kd for j in joints]}")

    def _bad(self, why: str) -> None:
        self._refused = why
        self._until[Flag.COMMAND] = time.monotonic() + EVENT_S

    def _brake(self, readings: Readings, heard: int) -> None:
        """The stop behaviour: a pose to hold is chosen once, unless somebody else has moved the robot since.

        Where readings are not to be trusted it is the last command.
        """
        command = self._safety.stop(Readings({}) if Flag.READINGS in self.flags else readings, self._last)
        if command is None:
            return
        if self.robot.stop == "hold":
            if self._held is not None and np.all(np.abs(command - self._held) < MOVED):
                command = self._held
            self._held = command
        self._publish(command, Reason.STOP, 0, heard, True)

    def _publish(self, command: np.ndarray, reasons: Reason, stamp_ns: int, heard: int, brakes: bool) -> None:
        sent_ns = self._io.stop(command) if brakes else self._io.send(command)
        self._sent.publish(SentRecord(
            np.array(split_ns(stamp_ns), float), np.array(split_ns(heard), float), np.array(split_ns(sent_ns), float),
            command[self._wire], np.array([float(reasons)])).encode())

    def _tell(self, before: Stand | None) -> None:
        """Say where the machine stands, on the latched topics and to whoever reads its output."""
        stand = self.stand
        told = {"state": stand.state.value, "cause": stand.cause.names(), "latched": stand.latched,
                "flags": self.flags.names()}
        self._state.publish(messages.encode(messages.string(json.dumps(told))))
        self._beat()
        if before is not None:
            why = f" ({', '.join(stand.cause.names())})" if stand.cause else ""
            print(f"supervisor: {self.robot.robot}: {before.state.value} to {stand.state.value}{why}",
                  file=sys.stderr, flush=True)

    def _beat(self) -> None:
        """Say that it is here, and whether policies may act."""
        self._beat_s = time.monotonic()
        self._stopped.publish(messages.encode(messages.boolean(self.stand.state is not State.ARMED)))

    def _diagnose(self) -> None:
        """How it is, once a second."""
        stand, warned = self.stand, self.flags
        level = max(LEVELS[stand.state], 1 if warned else 0)
        why = " + ".join(stand.cause.names() or self.flags.names())
        p50, p99 = percentiles(np.array(self._passed), 50, 99)
        values: dict[str, object] = {"state": stand.state.value, "cause": "+".join(stand.cause.names()) or "none",
                                     "latched": stand.latched, "forwarding_ms_p50": f"{p50:.3f}",
                                     "forwarding_ms_p99": f"{p99:.3f}", "last_refused": self._refused or "none"}
        values |= ages(self.robot.sensors, self._ages)
        values |= {f"flag {flag.name.lower()}": flag in self.flags for flag in stop.FLAGS if flag.name}
        message = diagnostic(self._bus.now_ns(), "supervisor: stop logic", level,
                             f"{stand.state.value}{': ' + why if why else ''}", values, self.robot.robot)
        self._diagnostics.publish(messages.encode(message))


def supervise(robot: str, where: BusOptions, acknowledged: bool, over: Callable[[], bool]) -> None:
    """Run a supervisor until `over()`. Raises SpecError before anything moves."""
    spec = load_robot(robot)
    with where.connect("supervisor") as bus:
        supervisor = Supervisor(spec, robot_file(robot).parent / spec.mjcf, bus, acknowledged)
        print(f"supervisor: {spec.robot} ready", flush=True)
        supervisor.run(over)
