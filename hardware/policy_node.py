"""A policy on a robot over the bus, at control rate: the one control loop, which tells of every step.

Each tick: newest readings → observation → action → safe command → publish; then the step is told on `policy/step`.
Stage 7, the recorder, is another process with readers of its own, so that nothing here waits for a disk. What is asked
of the process (reload, start, stop, diagnostics) is answered in another thread.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from hardware import messages
from hardware.bus import EVENTS, LATCHED, Bus, Sample
from hardware.either import BOOL, Either, Switch
from hardware.loop import Alarm, Ticker, percentiles, steady
from hardware.rehearsal import Rehearsal
from hardware.robot_io import RobotIO, heard_on
from robot_rl import image, stop
from robot_rl.episode import Command, Episode, Outcome
from robot_rl.observe import Observation, Readings
from robot_rl.policy import Exploration, Late, Policy
from robot_rl.safety import Reason
from robot_rl.spec import POSE, PolicySpec, RobotSpec, SpecError, Steering
from robot_rl.steplog import EPISODE_TOPIC, STEP_TOPIC, STEP_TYPE, TEXT_TYPE, step_record

INFO = "~/policy_info"
FRESH_TIMEOUT_S = 5.0
SUPERVISOR_SILENT_S = 0.75
"""A supervisor, which speaks ten times a second, is gone when nothing was heard of it for so long."""
STOP_S = 0.25
"""How long the stop behaviour is commanded when continuous control ends, before there is silence."""
BUDGET = 0.8
"""Share of a period that a decision may take: one that takes longer at its best is refused, a plan is cut short."""


@dataclass(frozen=True)
class EpisodeResult:
    """One episode on the robot, or one stretch of continuous control."""

    episode: int
    steps: int
    episode_return: float
    success: bool | None
    """None where the task judges none."""
    faults: str
    """Names of the faults that ended it, or 'none'."""
    robot_s: float
    """Time that the robot was in use for it, reset included, s."""
    start_unix: float
    safety_events: int
    """Ticks at which the safety layer changed a command, or something was wrong with what came in."""
    peak_effort: float | None
    """The largest effort of any joint, N·m; 0 or None where the robot tells none."""


def forever() -> bool:
    """Nobody wants it to end."""
    return True


class PolicyNode:
    """A policy bound to a robot on a bus. Raises SpecError when they do not fit.

    It runs episodes, whose goals it draws and publishes, or with `endless` continuous control, to goals that it hears.
    """

    def __init__(self, policy: Policy, robot: RobotSpec, bus: Bus, seed: int = 0, explore: bool = False,
                 endless: bool = False, acknowledged: bool = False) -> None:
        """`acknowledged`: somebody knows that nobody downstream stops a position robot when commands stop."""
        policy.spec.on(robot, f"policy {policy.path}")  # before there is anything on the bus
        _demand_watchdog(robot, acknowledged)
        self.bus, self.explore, self._endless = bus, explore, endless
        self.robot = robot
        prepared = self._prepare(policy)
        self._stops = [Switch(bus, topic) for topic in robot.stop_topics]
        self._supervisor = self._stops[-1] if robot.supervised else None
        self._steps = bus.publisher(STEP_TOPIC, STEP_TYPE, EVENTS)
        self._events = bus.publisher(EPISODE_TOPIC, TEXT_TYPE, EVENTS)
        self._info = bus.publisher(INFO, TEXT_TYPE, LATCHED)
        self.policy, self.spec = self._use(*prepared)
        assert self.spec.robot is not None  # with the joints in the policy's order
        self._io = RobotIO(self.spec.robot, bus, self.spec.cameras, self.spec.steering)
        goal = self.spec.goal
        self._goals_out = bus.publisher(goal.topic, POSE, LATCHED) if goal and not endless else None
        self._goals_in = Either(bus, goal.topic, POSE) if goal and endless else None
        self._goal_heard: Sample | None = None
        self._goal: np.ndarray | None = None
        self._draws = np.random.default_rng([seed, 0])
        self._noise = Exploration(seed)
        self._pending: tuple[Policy, PolicySpec, bytes] | None = None
        self.episodes = self.safety_events = self.swaps = 0
        self.late_plans = 0
        """Ticks that went by the plan of the tick before, since theirs was not ready in time."""
        self._alarm = Alarm(lambda: self.policy.halt())
        self._peak_effort: float | None = None
        self._events_before = 0
        self.reasons: Counter[int] = Counter()
        """Ticks by what `Reason` says of them."""
        self.goal_refused = ""
        """Why the newest goal is not followed."""
        self.ages: dict[str, float] = {}
        """Of every input at the last tick, s."""
        self.behind_s: dict[str, float] = {}
        """How much earlier than the joints each camera's image was taken, at the last tick, s."""
        self.ticker = Ticker(self.spec.rate_hz)
        self.latency_s = np.zeros(len(self.ticker.late), np.float64)
        """Of the newest ticks, as `ticker.late` holds them."""

    def connect(self, timeout_s: float = 10.0) -> None:
        """Wait for the robot, and for the supervisor if there is one. Raises TimeoutError naming the silent topics."""
        end = time.monotonic() + timeout_s
        self._io.wait(timeout_s)
        while silence := self._silence():
            if time.monotonic() > end:
                raise TimeoutError(silence)
            time.sleep(0.01)
        self.look()

    def close(self) -> None:
        """Leave every topic."""
        for end in (*self._stops, self._goals_in, self._steps, self._events, self._info, self._goals_out):
            if end is not None:
                end.close()
        self._io.close()
        self._alarm.close()

    def stopped(self) -> Reason:
        """Why nothing may move now: a stop is pressed, the protective one or the supervisor's, or that one is gone."""
        reason = Reason.STOP if any(stop.on() for stop in self._stops) else Reason.NONE
        return reason | Reason.UNSUPERVISED if self._silence() else reason

    def ready(self, timeout_s: float = FRESH_TIMEOUT_S) -> None:
        """Wait for all that continuous control begins with: fresh inputs, a goal where the task has one, no stop.

        Raises TimeoutError or SpecError naming the topics on which something is missing or wrong.
        """
        end = time.monotonic() + timeout_s
        self.connect(timeout_s)
        if pressed := self._pressed():
            raise SpecError(f"the protective stop is pressed on {pressed}")
        while self._goals_in:
            self._hear_goal()
            if self.goal_refused:
                raise SpecError(self.goal_refused)
            if self._goal is not None:
                return
            if time.monotonic() > end:
                assert self.spec.goal is not None
                raise TimeoutError(f"task {self.spec.task}: no goal heard on {self.bus.resolve(self.spec.goal.topic)} "
                                   f"({POSE}) for {timeout_s:g} s")
            time.sleep(0.01)

    def look(self) -> tuple[dict[str, float], dict[str, float]]:
        """`ages` of the inputs that have spoken, and `behind_s`, while no control runs."""
        self._see(self._io.read())
        return self.ages, self.behind_s

    def run_episode(self, goal: np.ndarray | None = None, wanted: Callable[[], bool] = forever) -> EpisodeResult:
        """Reset the robot, run one episode and stop. Raises TimeoutError when the robot does not answer.

        Once it is not wanted any more the episode ends as by a protective stop.
        """
        began, wall = time.monotonic(), time.time()
        if self.spec.goal and goal is None:
            goal = self.spec.goal.sample(self._draws)
        self._reset_robot()
        self._publish_goal(goal)
        episode = Episode(self.spec)
        episode.begin(goal)
        number = self._begin(goal, f"episode_{self.episodes:04d}")
        with steady():
            outcome, total = self._control(episode, number, wanted)
        return self._end(number, episode.steps, total, outcome, began, wall)

    def run(self, wanted: Callable[[], bool], fade_s: float = 0.0) -> str:
        """Continuous control from the measured pose on, with the policy faded in, for as long as it is wanted.

        Then the stop behaviour, and silence. Returns why it ended if it was still wanted, else ''. Call `ready` first.
        """
        began, wall = time.monotonic(), time.time()
        episode = Episode(self.spec, endless=True)
        episode.begin(self._goal, fade_s)
        number = self._begin(self._goal, time.strftime("run_%Y%m%d_%H%M%S", time.localtime(wall)), continuous=True)
        outcome, total = Outcome(np.zeros(0), 0.0, False, True, False, Reason.STOP, False), 0.0
        try:
            with steady():
                try:
                    outcome, total = self._control(episode, number, wanted)
                finally:
                    self._keep_stopping(episode)
        finally:
            self._end(number, episode.steps, total, outcome, began, wall)
        return "" if outcome.faults == Reason.STOP and not wanted() else self.explain(outcome.faults)

    def reload(self) -> str:
        """Read the policy file again, beside the running loop, whose next tick uses it; returns its hash.

        Raises SpecError for a policy that cannot take over from the one that runs.
        """
        policy = Policy(self.policy.path)
        spec = policy.spec.on(self.robot, f"policy {policy.path}")
        for key in ("robot", "rate_hz", "vision", "observations", "action", "goal", "steering"):
            ours, theirs = getattr(self.spec, key), getattr(spec, key)
            if ours != theirs:
                raise SpecError(f"policy {policy.path}: {key} {theirs}, running with {ours}")
        self._pending = self._prepare(policy)
        return policy.sha256

    def swap(self) -> None:
        """Make a policy that was reloaded the one that acts; the control loop does so itself."""
        if self._pending is not None:
            (self.policy, self.spec), self._pending = self._use(*self._pending), None
            self.swaps += 1

    def timing(self) -> dict[str, Any]:
        """Loop figures since the start: rate, ticks, missed deadlines, latency and lateness percentiles in ms."""
        p50, p99 = percentiles(self.latency_ms, 50, 99)
        jitter = percentiles(self.ticker.lateness_ms, 99)[0]
        return {"rate_hz": self.spec.rate_hz, "ticks": self.ticker.ticks, "missed_deadlines": self.ticker.missed,
                "latency_ms_p50": p50, "latency_ms_p99": p99, "jitter_ms_p99": jitter, "late_plans": self.late_plans,
                "safety_events": self.safety_events}

    @property
    def lateness_ms(self) -> np.ndarray:
        """(ticks,) lateness of every tick, ms."""
        return self.ticker.lateness_ms

    @property
    def latency_ms(self) -> np.ndarray:
        """(ticks,) from the take of the newest state to the return of publish, ms."""
        return self.latency_s[:min(self.ticker.ticks, len(self.latency_s))] * 1e3

    def _control(self, episode: Episode, number: int, wanted: Callable[[], bool]) -> tuple[Outcome, float]:
        """The control loop, until the episode is over: returns its last outcome and its return.

        However it ends, the last command is the stop behaviour.
        """
        total, readings = 0.0, Readings({})
        self.policy.reset()
        idle = np.full(self.spec.action_size, np.nan)
        rehearse = Rehearsal(self._io, self.policy, self.spec)
        self.ticker.start()
        try:
            while True:
                self.ticker.wait(rehearse)
                taken, stamp = time.perf_counter(), self.bus.now_ns()
                if reason := self.stopped() | (Reason.NONE if wanted() else Reason.STOP):
                    episode.halt(reason)
                if self._goals_in and self._hear_goal() and self._goal is not None:
                    episode.aim(self._goal)
                    self._tell(event="goal", episode=number, tick=self.ticker.ticks, goal=_listed(self._goal))
                readings = self._io.read()
                outcome = episode.observe(readings)
                total += outcome.reward
                command = None
                if not outcome.done:
                    command = episode.act(self._decide(outcome.observation, taken + BUDGET / self.spec.rate_hz))
                    self._io.send(command.sent)
                else:
                    self._safe_stop(episode, readings)
                latency = time.perf_counter() - taken
                self._note(number, stamp, readings, outcome, command, idle, latency)
                if command is None:
                    return outcome, total
                self.swap()
        except BaseException:
            self._safe_stop(episode, readings)
            raise

    def _decide(self, observation: Observation, due: float) -> np.ndarray:
        """The policy's action (A,); if a plan is not ready by `due`, s, what the one before says of this step.

        There is no hurry where there was none, as in an episode's first tick.
        """
        noise = self._draw()
        if not self.policy.steps_left:
            return self.policy(observation, noise)
        self._alarm.set(due)
        try:
            return self.policy(observation, noise)
        except Late:
            self.late_plans += 1
            return self.policy.next_planned()
        finally:
            self._alarm.set(None)
            self.policy.halt(False)

    def _note(self, number: int, stamp: int, readings: Readings, outcome: Outcome, command: Command | None,
              idle: np.ndarray, latency: float) -> None:
        """Count one tick and tell of it."""
        self.latency_s[(self.ticker.ticks - 1) % len(self.latency_s)] = latency
        self._see(readings)
        efforts = readings.values.get(f"{self.robot.joint_sensor.name}.effort")
        if efforts is not None and np.isfinite(efforts).all():
            self._peak_effort = max(self._peak_effort or 0.0, float(np.abs(efforts).max()))
        reasons = command.reasons if command else Reason.NONE
        self.reasons[int(reasons | outcome.faults)] += 1
        self.safety_events += bool((reasons | outcome.faults) & ~Reason.FADE)
        record = step_record(
            self.spec, tick=self.ticker.ticks, episode=number, stamp_ns=stamp, stamps=readings.stamps,
            outcome=outcome, asked=command.asked if command else idle, action=command.action if command else idle,
            sent=command.sent if command else np.full(len(self.robot.actuated), np.nan), reasons=reasons,
            lateness_s=self.ticker.late_ns * 1e-9, latency_s=latency)
        self._steps.publish(record.encode())

    def _see(self, readings: Readings) -> None:
        """Keep what diagnostics tell of readings."""
        self.ages, joints = readings.ages, self.robot.joint_sensor.name
        self.behind_s = {camera.name: readings.behind_s(camera.name, joints) for camera in self.spec.cameras
                         if {camera.name, joints} <= readings.acquired.keys()}

    def _silence(self) -> str:
        """Why the supervisor that commands go to is taken for gone; '' while it speaks, or where there is none."""
        if self._supervisor is None:
            return ""
        newest = self._supervisor.newest()
        age = None if newest is None else (time.monotonic_ns() - newest.arrival_ns) * 1e-9
        if age is not None and age <= SUPERVISOR_SILENT_S:
            return ""
        heard = "has not spoken" if age is None else f"silent for {age:.3g} s, at most {SUPERVISOR_SILENT_S:g} s"
        return f"supervisor on {self.bus.resolve(self._supervisor.topic)} ({BOOL}) {heard}"

    def _pressed(self) -> str:
        """The topics on which a stop is pressed, as a text."""
        return ", ".join(self.bus.resolve(stop.topic) for stop in self._stops if stop.on())

    def _safe_stop(self, episode: Episode, readings: Readings) -> None:
        command = episode.stop(readings)
        if command is not None:
            self._io.stop(command)

    def _keep_stopping(self, episode: Episode) -> None:
        """The stop behaviour for a while: a brake follows the speed, while a pose to hold is chosen once."""
        readings = self._io.read()
        for _ in range(round(STOP_S * self.spec.rate_hz)):
            self.ticker.wait()
            if self.robot.stop == "damping":
                readings = self._io.read()
            self._safe_stop(episode, readings)

    def _hear_goal(self) -> bool:
        """Take a goal that is new and one that the policy knows."""
        newest = self._goals_in.newest() if self._goals_in else None
        if newest is None or (self._goal_heard and newest.stamp_ns <= self._goal_heard.stamp_ns):
            return False
        self._goal_heard = newest
        assert self.spec.goal is not None
        try:
            message = messages.decode(newest.data, POSE)
            place = message.pose.position
            goal = np.array([place.x, place.y, place.z])
            self.spec.goal.check(goal, message.header.frame_id)
        except ValueError as error:
            self.goal_refused = f"{self.bus.resolve(self.spec.goal.topic)}: {error}"
            return False
        self._goal, self.goal_refused = goal, ""
        return True

    def explain(self, faults: Reason) -> str:
        """What is wrong, with the topics that it shows on."""
        words = [faults.words()]
        for sensor in self.spec.inputs:
            if isinstance(sensor, Steering):  # nobody has to steer
                continue
            age = self.ages.get(sensor.name)
            where = f"{sensor.name} on {self.bus.resolve(heard_on(sensor)[0])}"
            if age is None:
                words.append(f"{where} has not spoken")
            elif age > sensor.stale_after_s:
                words.append(f"{where} silent for {age:.3g} s, at most {sensor.stale_after_s:g} s")
        if faults & Reason.STOP:
            where = self._pressed() or ", ".join(self.bus.resolve(topic) for topic in self.robot.stop_topics)
            words.append(f"pressed on {where}")
        if faults & Reason.UNSUPERVISED:
            words.append(self._silence() or "it has spoken again")
        return ", ".join([*words, *self._io.refused.values()])

    def _draw(self) -> np.ndarray | None:
        return self._noise.draw(self.policy) if self.explore else None

    def _reset_robot(self) -> None:
        done, said = self.bus.call(self.robot.reset_service, self.robot.reset_timeout_s)
        if not done:
            raise TimeoutError(f"robot {self.robot.robot}: service '{self.robot.reset_service}' refused: {said}")
        self._io.wait(FRESH_TIMEOUT_S)

    def _publish_goal(self, goal: np.ndarray | None) -> None:
        if self._goals_out is not None and goal is not None and self.spec.goal is not None:
            stamp, upright = self.bus.now_ns(), np.array([0.0, 0.0, 0.0, 1.0])
            self._goals_out.publish(messages.encode(messages.pose_stamped(stamp, self.spec.goal.frame, goal, upright)))

    def _begin(self, goal: np.ndarray | None, bag: str, **more: Any) -> int:
        """Tell that an episode begins; returns its number."""
        number, self.episodes = self.episodes, self.episodes + 1
        self._events_before, self._peak_effort = self.safety_events, None
        self._tell(event="start", episode=number, bag=bag, goal=_listed(goal), task=self.spec.task,
                   policy=self.policy.sha256, **more)
        return number

    def _end(self, number: int, steps: int, total: float, outcome: Outcome, began: float, wall: float) -> EpisodeResult:
        """Tell that an episode is over."""
        result = EpisodeResult(number, steps, total, outcome.success, outcome.faults.words(),
                               time.monotonic() - began, wall, self.safety_events - self._events_before,
                               self._peak_effort)
        self._tell(event="end", terminated=outcome.terminated, truncated=outcome.truncated,
                   **msgspec.to_builtins(result))
        return result

    def _tell(self, **event: Any) -> None:
        self._events.publish(messages.encode(messages.string(json.dumps(event))))

    def _prepare(self, policy: Policy) -> tuple[Policy, PolicySpec, bytes]:
        """Warm up a policy; with its contract and what is told of it, with the topics' absolute names."""
        spec = policy.spec.on(self.robot, f"policy {policy.path}")
        image.prepare(spec)
        best, period = policy.warm_up(), 1 / spec.rate_hz
        if best > BUDGET * period:
            raise SpecError(f"policy {policy.path}: a decision takes {best * 1e3:.3g} ms here at its best, at "
                            f"rate_hz {spec.rate_hz:g} it may take {BUDGET * period * 1e3:.3g} ms. Plan with fewer "
                            "samples or iterations, or export the actor without its planner")
        contract = json.loads(_resolved(spec, self.bus).to_json())
        info = {"policy": policy.path.name, "sha256": policy.sha256, "contract": contract}
        return policy, spec, messages.encode(messages.string(json.dumps(info)))

    def _use(self, policy: Policy, spec: PolicySpec, info: bytes) -> tuple[Policy, PolicySpec]:
        """Say on the latched topic that a policy is the one that acts from now on."""
        self._info.publish(info)
        return policy, spec


def _demand_watchdog(robot: RobotSpec, acknowledged: bool) -> None:
    """Refuse, as a supervisor refuses to be armed, a robot that nobody stops when commands stop. SpecError says so."""
    if robot.supervised:  # which sees to it itself
        return
    interface = robot.command.interface
    against = stop.objections(stop.unwatched(robot.watchdog.kind, interface, acknowledged), stop.DEFAULTS)
    if against:
        hint = "; --acknowledge-no-watchdog runs it all the same" if interface == "position" else ""
        raise SpecError(f"robot {robot.robot}: watchdog.kind={robot.watchdog.kind}, command.interface={interface}: "
                        f"{'; '.join(against)}{hint}")


def _resolved(spec: PolicySpec, bus: Bus) -> PolicySpec:
    """The contract with the names that its topics have on this bus: what a bag is read by."""
    replace, robot = msgspec.structs.replace, spec.robot
    assert robot is not None
    sensors, cameras = (tuple(replace(one, topic=bus.resolve(one.topic)) for one in many)  # type: ignore[type-var]
                        for many in (robot.sensors, robot.cameras))
    groups = tuple(replace(group, topic=bus.resolve(group.topic)) for group in robot.command.groups)
    command = replace(robot.command, topic=bus.resolve(robot.command.topic), groups=groups)
    steering = replace(spec.steering, topic=bus.resolve(spec.steering.topic)) if spec.steering else None
    return replace(spec, steering=steering, robot=replace(robot, sensors=sensors, cameras=cameras, command=command))


def _listed(goal: np.ndarray | None) -> list[float] | None:
    return None if goal is None else [float(x) for x in goal]
