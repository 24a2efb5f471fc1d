"""The driver process of an arm on serial servos: joint states out, commands in, torque only on request.

One round on the wire each tick: feedback of all servos, then their goals. Services (std_srvs/Trigger): `arm` (torque on
where the arm is), `reset` (arm, then the checked path to the default pose, then the operator's word where objects are
to be placed), `reset/confirm`, `park` (slowly to the rest pose, then torque off). Commands count only after `arm` or
`reset`. What goes wrong is said, published as the protective stop, and stays until the cause is gone and somebody asks
for `arm`, `reset` or `park` again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hardware import diagnostics, messages
from hardware.arm import Arm, ArmState
from hardware.bus import COMMAND, LATCHED, Bus, Qos, Request, Sample
from hardware.calibration import load_calibration
from hardware.either import BOOL, Switch
from hardware.feetech import BusError, PortLost, faults
from hardware.loop import Ticker, percentiles
from hardware.operator import Operator, say
from hardware.robot_io import decode_command, encode
from robot_rl.homing import CLOSE, Homing
from robot_rl.kinematics import chains
from robot_rl.observe import Readings, Values
from robot_rl.safety import Reason, Safety
from robot_rl.spec import PD, RobotSpec, SpecError

STATE = Qos(reliable=True)  # drivers publish reliably; consumers choose (REP 2003)
COMMAND_TIMEOUT_S = 0.5  # commands that stop coming: the arm holds where it is
SILENT_S, MISSES = 1.0, 5  # without one good round, and so many bad ones: a servo or the cable is gone
RETRY_S = 0.5
PARK_SPEED = 0.5  # rad/s
RESET_SPEED = 1.0  # rad/s
JUMP = 0.35  # rad: a first command further than this from the arm is a mistake
WARM, COOL = 5.0, 15.0  # K below a servo's own limit: too hot; cool enough again
EXIT_S = 20.0
STILL_NS = 200_000_000  # of rest at the end of a path
OWN_NS = 5_000_000  # by which a reader may see a stamp of ours later than we do; see Publisher

Mode = Literal["limp", "ready", "resetting", "confirming", "parking", "fault", "lost"]


@dataclass
class Options:
    """How the driver behaves."""

    command_timeout_s: float = COMMAND_TIMEOUT_S
    confirm: bool = True
    """Whether a reset waits for the operator where the robot has objects to place."""


class ServoDriver:
    """The driver of one arm on a bus. Raises SpecError before anything moves when robot, file and arm disagree."""

    def __init__(self, robot: RobotSpec, mjcf: Path, calibration: Path, port: str, bus: Bus,
                 options: Options | None = None) -> None:
        if robot.command.interface != "position" or len(robot.actuated) != len(robot.joints):
            raise SpecError(f"robot '{robot.robot}': command.interface={robot.command.interface} for "
                            f"{len(robot.actuated)} of {len(robot.joints)} joints; these servos take position, one "
                            "for each joint")
        self.robot, self.options = robot, options or Options()
        self._calibration, self._file, self._port = load_calibration(calibration, robot), calibration, port
        chain = chains(robot, mjcf)
        self._poses = [(s, chain[s.name], bus.publisher(s.topic, s.type, STATE)) for s in robot.sensors
                       if s.name in chain]
        self._guarded = chain.get(robot.workspace.sensor) if robot.workspace else None
        try:
            self.arm: Arm | None = Arm(robot, self._calibration, calibration, port)
        except BusError as error:
            raise SpecError(str(error)) from error
        sensor = robot.joint_sensor
        self.ticker = Ticker(sensor.rate_hz)
        self._safety = Safety(robot, sensor.rate_hz)
        self._states = bus.publisher(sensor.topic, sensor.type, STATE)
        self._to, *others = robot.command_topics
        if others or self._to.type == PD:
            raise SpecError(f"robot '{robot.robot}': command: this arm takes positions on one topic, not {PD} and not "
                            f"{', '.join(to.topic for to in robot.command_topics)}")
        self._commands = bus.reader(self._to.topic, self._to.type, COMMAND)
        self._stops = Switch(bus, robot.stop_topic)
        self._stop = bus.publisher(robot.stop_topic, BOOL, LATCHED)
        self._our_stop_ns = 0
        self._diagnostics = bus.publisher(diagnostics.TOPIC, diagnostics.TYPE, COMMAND)
        self._services = {name: bus.service(service) for name, service in (
            ("arm", "arm"), ("park", "park"), ("reset", robot.reset_service),
            ("confirm", f"{robot.reset_service}/confirm"))}
        self._operator = Operator()
        self.mode: Mode = "limp"
        self.why = ""
        """The cause of a fault."""
        self._goal: np.ndarray | None = None  # what the servos were told last
        self._target: np.ndarray | None = None  # what the newest command asks for
        self._sample: Sample | None = None  # the newest command
        self._places: dict[str, np.ndarray] = {}
        self._motion: Homing | None = None
        self._still = 0  # ticks at rest at its end
        self._request: Request | None = None  # whom the end of the motion is to be told
        self._seen: ArmState | None = None
        self._heard, self._misses = time.monotonic(), 0
        self._armed_ns = 0  # commands that came before count for nothing
        self._taken_ns = 0  # arrival of the newest command obeyed
        self._streaming = False
        self._writers = 0
        self._rounds = np.zeros(1000)
        self._clamps = Reason.NONE
        self._begin()

    def run(self, stop: Callable[[], bool]) -> None:
        """Drive the arm until `stop()`, then park it and take the torque off."""
        self.ticker.start()
        try:
            while not stop():
                self.ticker.wait()
                self.tick()
            self._leave()
        finally:
            if self.arm is not None:
                self.arm.bus.close()

    def tick(self) -> None:
        """One round: feedback, what was asked for, goals."""
        now = time.monotonic()
        self._read(now)
        self._sample = self._commands.newest()  # taken in every mode, or it would seem to arrive later
        if self.ticker.ticks % 10 == 0:
            self._watch_writers()
        self._serve()
        if self.arm is not None and self._seen is not None and self.mode not in ("limp", "lost"):
            self._move(self.arm, self._seen, now)
        if self.ticker.ticks % max(1, round(1e9 / self.ticker.period_ns)) == 0:
            self._diagnose()

    def _begin(self) -> None:
        """An arm that already holds itself, after a crash say, is not dropped."""
        assert self.arm is not None
        if self.arm.has_torque():
            self._take_hold("torque was on")

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read(self, now: float) -> None:
        if self.arm is None:
            self._reconnect(now)
            return
        began = time.perf_counter()
        try:
            self._seen = self.arm.read()
        except BusError as error:
            self._misses += 1
            if isinstance(error, PortLost) or (now - self._heard > SILENT_S and self._misses > MISSES):
                self._lose(error)
            return
        self._rounds[self.ticker.ticks % len(self._rounds)] = time.perf_counter() - began
        self._heard, self._misses = now, 0
        self._publish(self._seen)
        self._check_servos(self._seen)

    def _publish(self, seen: ArmState) -> None:
        joints = self.robot.joint_sensor
        for sensor, chain, publisher in self._poses:
            position, orientation = chain.pose(seen.position)
            self._places[sensor.name] = position
            pose = {f"{sensor.name}.position": position, f"{sensor.name}.orientation": orientation}
            publisher.publish(encode(sensor, pose, seen.stamp_ns, self.robot))
        self._states.publish(encode(joints, self._values(seen), seen.stamp_ns, self.robot))

    def _values(self, seen: ArmState) -> Values:
        name = self.robot.joint_sensor.name
        return {f"{name}.position": seen.position, f"{name}.velocity": seen.velocity, f"{name}.effort": seen.effort}

    def _check_servos(self, seen: ArmState) -> None:
        """Stop for what a servo reports; park the arm while it still can when one gets hot."""
        assert self.arm is not None
        bad = bool(seen.status.any())
        if self.mode in ("limp", "fault") or (self.mode == "parking" and not bad):
            return
        if why := self._complaint(seen, self.arm.hottest - WARM):
            self._fault(why)
            if not bad:
                self._try_to_park()

    def _complaint(self, seen: ArmState, hottest: np.ndarray) -> str:
        """What the servos report, or ''."""
        assert self.arm is not None
        bad = [f"{self.arm.servo(i)}: {faults(int(s))}" for i, s in enumerate(seen.status) if s]
        bad += [f"{self.arm.servo(int(i))}: {seen.temperature[i]} degrees C, from {hottest[i]:g} on it is too hot"
                for i in np.flatnonzero(seen.temperature >= hottest)]
        return "; ".join(bad)

    def _lose(self, error: BusError) -> None:
        """The cable or a servo is gone: servos that still have power hold their last goal."""
        assert self.arm is not None
        say(f"driver: lost: {error}; trying again every {RETRY_S:g} s")
        self.arm.bus.close()
        self.arm, self._seen, self.why = None, None, str(error)
        self._end_motion(False, f"lost: {error}")
        self.mode = "lost"
        self._press_stop()

    def _reconnect(self, now: float) -> None:
        if now - self._heard < RETRY_S:
            return
        self._heard = now
        try:
            arm = Arm(self.robot, self._calibration, self._file, self._port)
            torque = arm.has_torque()
        except (BusError, SpecError) as error:
            if str(error) != self.why:
                say(f"driver: {error}")
            self.why = str(error)
            return
        self.arm, self._heard, self._misses = arm, time.monotonic(), 0
        self.mode, self.why = "fault" if torque else "limp", "the servos were lost and are back"
        say(f"driver: {self.why}, {'with' if torque else 'without'} torque: ask for arm, reset or park")

    # -- what is asked for --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        for name, service in self._services.items():
            if (request := service.take()) is None:
                continue
            try:
                self._do(name, request)
            except (SpecError, BusError) as error:
                request.reply(False, str(error))

    def _do(self, name: str, request: Request) -> None:
        if name == "confirm":
            if self.mode != "confirming":
                raise SpecError("no reset waits for a confirmation")
            self._confirmed()
            request.reply(True, "confirmed")
            return
        if self.arm is None or self._seen is None:
            raise SpecError(f"the servos are lost: {self.why}")
        if self.mode in ("resetting", "parking"):
            raise SpecError(f"busy: {self.mode}")
        if self._stopped():
            raise SpecError(f"the protective stop on {self.robot.stop_topic} is pressed")
        if name == "park":
            self._start_park(request)
            return
        self._writers = 0
        self._watch_writers()
        if (bad := self._complaint(self._seen, self.arm.hottest - COOL)):
            raise SpecError(bad)
        homing = self._path(None, RESET_SPEED) if name == "reset" else None  # checked before there is torque
        self._take_hold(name)
        if homing is None:
            request.reply(True, "holding the pose")
        else:
            self._set_out("resetting", homing, request)

    def _take_hold(self, why: str) -> None:
        """Torque on where the arm is; a fault whose cause is gone is over."""
        assert self.arm is not None
        if self.mode not in ("ready", "confirming"):
            try:
                self._goal = self.arm.hold()
            except (BusError, SpecError):
                if self.mode == "limp":
                    self.arm.let_go()
                raise
        self._end_motion(False, f"{why} was asked for")
        self._release_stop()
        self.mode, self.why = "ready", ""
        self._rest()
        say(f"driver: holding the arm ({why})")

    def _start_park(self, request: Request | None) -> None:
        """Slowly to the rest pose. Raises SpecError where there is no path; without torque there is nothing to do."""
        assert self.arm is not None and self._seen is not None
        if self.mode == "limp" or not self.arm.has_torque():
            self.mode = "limp"
            if request:
                request.reply(True, "there was no torque")
            return
        self._set_out("parking", self._path(self.arm.rest, PARK_SPEED), request)

    def _path(self, goal: np.ndarray | None, speed: float) -> Homing:
        """A checked path from where the arm is told to be, or else is, to a goal or to the default pose."""
        assert self._seen is not None
        start = self._seen.position
        if self.mode == "ready" and self._goal is not None and np.all(np.abs(self._goal - start) < CLOSE):
            start = self._goal  # where it hangs below its goal, it shall not sag further
        return Homing(self.robot, start, time.monotonic(), goal, speed, self._guarded, enter=goal is None)

    def _try_to_park(self) -> None:
        try:
            self._start_park(None)
        except (SpecError, BusError) as error:
            say(f"driver: not parked: {error}")

    def _set_out(self, mode: Mode, homing: Homing, request: Request | None) -> None:
        self._end_motion(False, f"{mode} instead")
        self.mode, self._motion, self._request, self._still = mode, homing, request, 0

    def _end_motion(self, done: bool, said: str) -> None:
        request, self._motion, self._request = self._request, None, None
        if request is not None:
            request.reply(done, said)

    def _rest(self) -> None:
        """From now on new commands count, old ones do not."""
        self._armed_ns = self._taken_ns = time.monotonic_ns()
        self._streaming = False

    # -- moving -------------------------------------------------------------------------------------------------------

    def _move(self, arm: Arm, seen: ArmState, now: float) -> None:
        """One goal, by what the arm is at."""
        try:
            if self._stopped() and self.mode in ("ready", "resetting", "confirming", "parking"):
                self._fault(f"the protective stop on {self.robot.stop_topic} is pressed", press=False)
            if self._motion is not None:
                self._follow(arm, seen, now)
            elif self.mode == "confirming":
                if self._operator.entered():
                    self._confirmed()
            elif self.mode == "ready":
                self._obey(arm, seen)
        except BusError as error:  # the next round tells whether it is gone for good
            say(f"driver: {error}")

    def _follow(self, arm: Arm, seen: ArmState, now: float) -> None:
        motion, mode = self._motion, self.mode
        assert motion is not None
        self._send(arm, motion.command(seen.position, seen.velocity, now))
        done = motion.finished(seen.position, seen.velocity, now)
        self._still = self._still + 1 if done else 0
        if self._still * self.ticker.period_ns < STILL_NS:
            return
        away = np.abs(seen.position - motion.goal)
        if motion.late(now) and mode == "resetting":
            worst = int(np.argmax(away))
            self._end_motion(False, f"not at rest: joint '{self.robot.names[worst]}' is {away[worst]:.3f} rad from its "
                                    "place")
            self.mode = "ready"
            self._rest()
        elif mode == "parking":
            arm.let_go()
            self._end_motion(True, "parked, torque off")
            self.mode = "limp"
            say("driver: parked, torque off")
        elif self.robot.objects and self.options.confirm:
            self._motion, self.mode = None, "confirming"
            things = ", ".join(o.object for o in self.robot.objects)
            self._operator.ask(f"driver: at the default pose; place {things}, then press Enter or call "
                               f"{self.robot.reset_service}/confirm")
        else:
            self._confirmed()

    def _confirmed(self) -> None:
        self.mode = "ready"
        self._rest()
        self._end_motion(True, "at the default pose")

    def _obey(self, arm: Arm, seen: ArmState) -> None:
        """Follow the newest command within the limits; hold when commands stop coming."""
        assert self._goal is not None
        sample = self._sample
        if self._outside():
            if self._streaming:
                say("driver: holding: the workspace was left; a reset brings the arm back")
                self._hold()
            return
        if self._writers > 1 or sample is None or sample.arrival_ns <= self._armed_ns:
            return
        if sample.arrival_ns > self._taken_ns:
            try:
                target = decode_command(self.robot, self._to, sample.data).target
            except ValueError as error:
                say(f"driver: command refused: {error}")
                self._rest()
                return
            if not self._streaming and not np.all(np.abs(target - self._goal) < JUMP):
                say(f"driver: command refused: {np.round(target, 3).tolist()} is more than {JUMP} rad from the arm at "
                    f"{np.round(self._goal, 3).tolist()}; go there first (robot-rl jog, robot-rl home)")
                self._rest()
                return
            self._target, self._taken_ns, self._streaming = target, sample.arrival_ns, True
        if self._streaming and self._target is not None:
            age = (time.monotonic_ns() - self._taken_ns) * 1e-9
            if age > self.options.command_timeout_s:
                say(f"driver: holding: no command for {age:.2f} s")
                self._hold()
                return
            goal, reasons = self._safety.limit(self._target, self._goal, Readings(self._values(seen)))
            self._clamps |= reasons
            self._send(arm, goal)

    def _hold(self) -> None:
        """Stay where the arm is now; commands count again when new ones come."""
        self._rest()
        if self.arm is None or self._seen is None or self._goal is None:
            return
        held = self._safety.stop(Readings(self._values(self._seen)), self._goal)
        assert held is not None  # there is a goal
        try:
            self._send(self.arm, held)
        except BusError as error:
            say(f"driver: {error}")

    def _send(self, arm: Arm, goal: np.ndarray) -> None:
        self._goal = goal
        arm.go(goal)

    def _outside(self) -> bool:
        """Whether the workspace was left."""
        box = self.robot.workspace
        place = self._places.get(box.sensor) if box is not None else None
        if box is None or place is None:
            return False
        return bool(np.any(place < box.lower) or np.any(place > box.upper))

    # -- stopping -----------------------------------------------------------------------------------------------------

    def _fault(self, why: str, press: bool = True) -> None:
        """Hold where the arm is, say so to everybody, and wait for somebody who asks again."""
        say(f"driver: stopped: {why}")
        self._end_motion(False, why)
        self.mode, self.why = "fault", why
        if press:
            self._press_stop()
        self._hold()

    def _watch_writers(self) -> None:
        """One publisher of commands at a time: two would fight over the arm."""
        writers = self._commands.matched()
        if writers > 1 and self._writers <= 1:
            say(f"driver: holding: {writers} publishers on {self._to.topic}; commands count when one is left")
            if self._streaming:
                self._hold()
        elif writers <= 1 < self._writers:
            self._rest()
        self._writers = writers

    def _stopped(self) -> bool:
        """Whether somebody else presses the protective stop."""
        return any(not 0 <= sample.stamp_ns - self._our_stop_ns < OWN_NS for sample in self._stops.on())

    def _press_stop(self) -> None:
        if not self._our_stop_ns and not self._stopped():
            self._our_stop_ns = self._stop.publish(messages.encode(messages.boolean(True)))

    def _release_stop(self) -> None:
        if self._our_stop_ns:
            self._our_stop_ns = 0
            self._stop.publish(messages.encode(messages.boolean(False)))

    def _leave(self) -> None:
        """Park and take the torque off; under a protective stop, or where there is no path, the arm keeps holding."""
        if self.arm is None or self.mode == "limp":
            return
        if self._stopped():
            say("driver: left holding, with torque: the protective stop is pressed")
            return
        if self._seen is not None and self.mode != "parking":
            self._try_to_park()
        end = time.monotonic() + EXIT_S
        while self.mode == "parking" and time.monotonic() < end:
            self.ticker.wait()
            self.tick()
        if self.mode != "limp":
            say("driver: left holding, with torque on")

    def _diagnose(self) -> None:
        """One status a second on /diagnostics."""
        p50, p99 = percentiles(self._rounds[self._rounds > 0] * 1e3, 50, 99)
        counts = self.arm.bus.counts if self.arm else None
        level = {"fault": 2, "lost": 2}.get(self.mode, 1 if self._writers > 1 else 0)
        values: dict[str, Any] = {
            "mode": self.mode, "arm": self._calibration.arm, "port": self._port, "round_ms_p50": f"{p50:.2f}",
            "round_ms_p99": f"{p99:.2f}", "missed_deadlines": self.ticker.missed, "command_publishers": self._writers,
            "clamped": self._clamps.words()}
        if counts:
            values |= {"requests": counts.requests, "failed_requests": counts.failed}
        if self._seen is not None:
            values |= {"voltage_V": np.round(self._seen.voltage, 1).tolist(),
                       "temperature_C": self._seen.temperature.tolist()}
        self._clamps = Reason.NONE
        said = self.why or self.mode
        self._diagnostics.publish(messages.encode(diagnostics.diagnostic(
            time.time_ns(), "driver: servos", level, said, values)))
