"""The policy process: runs a policy on a robot over the bus, at control rate, and tells of every step.

Each tick: newest readings → observation → action → safe command → publish; then the step is told on `policy/step`.
Stage 7, the recorder, is another process with readers of its own, so that nothing here waits for a disk.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from hardware import messages
from hardware.bus import EVENTS, LATCHED, SENSOR, Bus
from hardware.loop import Ticker, percentiles, steady
from hardware.robot_io import RobotIO
from robot_rl import image
from robot_rl.episode import Command, Episode, Outcome
from robot_rl.observe import Readings
from robot_rl.policy import Policy
from robot_rl.safety import Reason
from robot_rl.spec import POSE, RobotSpec, SpecError
from robot_rl.steplog import EPISODE_TOPIC, INFO_TOPIC, STEP_TOPIC, STEP_TYPE, TEXT_TYPE, step_record

BOOL = "std_msgs/msg/Bool"
FRESH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class EpisodeResult:
    """One episode on the robot."""

    episode: int
    steps: int
    episode_return: float
    success: bool
    faults: str
    """Names of the faults that ended it, or 'none'."""
    robot_s: float
    """Time that the robot was in use for it, reset included, s."""
    start_unix: float


class PolicyNode:
    """A policy bound to a robot on a bus. Raises SpecError when they do not fit."""

    def __init__(self, policy: Policy, robot: RobotSpec, bus: Bus, seed: int = 0, explore: bool = False) -> None:
        self.bus, self.explore = bus, explore
        self._robot = robot
        # a latched reader does not match a volatile publisher, and a stop must never be missed: listen both ways
        self._stops = [bus.reader(topic, BOOL, qos) for topic in robot.stop_topics for qos in (LATCHED, SENSOR)]
        self._steps = bus.publisher(STEP_TOPIC, STEP_TYPE, EVENTS)
        self._events = bus.publisher(EPISODE_TOPIC, TEXT_TYPE, EVENTS)
        self._info = bus.publisher(INFO_TOPIC, TEXT_TYPE, LATCHED)
        self._reloads = bus.service("policy/reload")
        self._use(policy)
        self._io = RobotIO(robot, bus, self._spec.cameras)
        self._goal = bus.publisher(self._spec.goal.topic, POSE, LATCHED) if self._spec.goal else None
        self._goals = np.random.default_rng([seed, 0])
        self._noise = np.random.default_rng([seed, 1])
        self._pending: Policy | None = None
        self.episodes = 0
        self.safety_events = 0
        self.swaps = 0
        self.ticker = Ticker(self._spec.rate_hz)
        self._latency = np.zeros(len(self.ticker.late), np.float64)

    def connect(self, timeout_s: float = 10.0) -> None:
        """Wait for the robot. Raises TimeoutError naming the silent topics."""
        self._io.wait(timeout_s)

    def stopped(self) -> bool:
        """Whether the protective stop is pressed."""
        samples = [reader.newest() for reader in self._stops]
        return any(bool(messages.decode(s.data, BOOL).data) for s in samples if s is not None)

    def run_episode(self, goal: np.ndarray | None = None) -> EpisodeResult:
        """Reset the robot, run one episode and stop. Raises TimeoutError when the robot does not answer."""
        began, wall = time.monotonic(), time.time()
        if self._spec.goal and goal is None:
            goal = self._spec.goal.sample(self._goals)
        self._reset_robot()
        self._publish_goal(goal)
        number, self.episodes = self.episodes, self.episodes + 1
        listed = None if goal is None else [float(x) for x in goal]
        self._tell(event="start", episode=number, bag=f"episode_{number:04d}", goal=listed, task=self._spec.task,
                   policy=self._policy.sha256)
        with steady():
            outcome, steps, total = self._control(number, goal)
        result = EpisodeResult(number, steps, total, outcome.success, outcome.faults.words(),
                               time.monotonic() - began, wall)
        self._tell(event="end", terminated=outcome.terminated, truncated=outcome.truncated,
                   **msgspec.to_builtins(result))
        return result

    def timing(self) -> dict[str, Any]:
        """Loop figures since the start: rate, ticks, missed deadlines, latency and lateness percentiles in ms."""
        p50, p99 = percentiles(self.latency_ms, 50, 99)
        jitter = percentiles(self.ticker.lateness_ms, 99)[0]
        return {"rate_hz": self._spec.rate_hz, "ticks": self.ticker.ticks, "missed_deadlines": self.ticker.missed,
                "latency_ms_p50": p50, "latency_ms_p99": p99, "jitter_ms_p99": jitter,
                "safety_events": self.safety_events}

    @property
    def lateness_ms(self) -> np.ndarray:
        """(ticks,) lateness of every tick, ms."""
        return self.ticker.lateness_ms

    @property
    def latency_ms(self) -> np.ndarray:
        """(ticks,) from the take of the newest state to the return of publish, ms."""
        return self._latency[:min(self.ticker.ticks, len(self._latency))] * 1e3

    def poll(self) -> None:
        """Serve what may be asked at any time: swap the policy file in without stopping."""
        if (request := self._reloads.take()) is not None:
            threading.Thread(target=self._load, args=(request,), daemon=True).start()
        if self._pending is not None:
            policy, self._pending = self._pending, None
            self._use(policy)
            self.swaps += 1

    def _control(self, number: int, goal: np.ndarray | None) -> tuple[Outcome, int, float]:
        """The control loop of one episode: returns its last outcome, its steps and its return."""
        episode, total = Episode(self._spec), 0.0
        episode.begin(goal)
        self._policy.reset()
        idle = np.full(self._spec.action_size, np.nan)
        self.ticker.start()
        while True:
            self.ticker.wait()
            taken, stamp = time.perf_counter(), time.time_ns()
            if self.stopped():
                episode.halt(Reason.STOP)
            readings = self._io.read()
            outcome = episode.observe(readings)
            total += outcome.reward
            command = None
            if not outcome.done:
                command = episode.act(self._policy(outcome.observation, self._draw()))
                self._io.send(command.sent)
            else:
                self._safe_stop(episode, readings)
            latency = time.perf_counter() - taken
            self._note(number, stamp, readings, outcome, command, idle, latency)
            if command is None:
                return outcome, episode.steps, total
            self.poll()

    def _note(self, number: int, stamp: int, readings: Readings, outcome: Outcome, command: Command | None,
              idle: np.ndarray, latency: float) -> None:
        """Count one tick and tell of it."""
        self._latency[(self.ticker.ticks - 1) % len(self._latency)] = latency
        reasons = command.reasons if command else Reason.NONE
        self.safety_events += bool(reasons | outcome.faults)
        record = step_record(
            self._spec, tick=self.ticker.ticks, episode=number, stamp_ns=stamp, stamps=readings.stamps,
            outcome=outcome, asked=command.asked if command else idle, action=command.action if command else idle,
            sent=command.sent if command else np.full(len(self._robot.actuated), np.nan), reasons=reasons,
            lateness_s=self.ticker.late_ns * 1e-9, latency_s=latency)
        self._steps.publish(record.encode())

    def _safe_stop(self, episode: Episode, readings: Readings) -> None:
        command = episode.stop(readings)
        if command is not None:
            self._io.send(command)

    def _draw(self) -> np.ndarray | None:
        return self._noise.standard_normal(self._policy.noise_size) if self.explore else None

    def _reset_robot(self) -> None:
        done, said = self.bus.call(self._robot.reset_service, self._robot.reset_timeout_s)
        if not done:
            raise TimeoutError(f"robot {self._robot.robot}: service '{self._robot.reset_service}' refused: {said}")
        self._io.wait(FRESH_TIMEOUT_S)

    def _publish_goal(self, goal: np.ndarray | None) -> None:
        if self._goal is not None and goal is not None and self._spec.goal is not None:
            pose = messages.pose_stamped(time.time_ns(), self._spec.goal.frame, goal, np.array([0.0, 0.0, 0.0, 1.0]))
            self._goal.publish(messages.encode(pose))

    def _tell(self, **event: Any) -> None:
        self._events.publish(messages.encode(messages.string(json.dumps(event))))

    def _use(self, policy: Policy) -> None:
        """Make `policy` the one that acts, and say so on the latched info topic."""
        spec = policy.spec.on(self._robot, f"policy {policy.path}")
        image.prepare(spec)
        policy.warm_up()
        self._policy, self._spec = policy, spec
        info = {"policy": policy.path.name, "sha256": policy.sha256, "contract": json.loads(spec.to_json())}
        self._info.publish(messages.encode(messages.string(json.dumps(info))))

    def _load(self, request: Any) -> None:
        """Read the policy file again, beside the running loop; the next tick uses it."""
        try:
            policy = Policy(self._policy.path)
            policy.spec.on(self._robot, f"policy {policy.path}")
            if policy.spec.rate_hz != self._spec.rate_hz:
                raise SpecError(f"policy {policy.path}: rate_hz {policy.spec.rate_hz}, running at {self._spec.rate_hz}")
            if policy.spec.vision != self._spec.vision:
                raise SpecError(f"policy {policy.path}: vision {policy.spec.vision}, running with {self._spec.vision}")
        except SpecError as error:
            request.reply(False, str(error))
            return
        self._pending = policy
        request.reply(True, policy.sha256)
