"""One episode, step by step: stages 2, 4 and 5 of a step with reward, success and the end of the episode.

The training environment, the robot's control loop and the log reader all drive this one class:

    episode.begin(goal)
    outcome = episode.observe(readings)      # what the last command led to
    command = episode.act(action)            # what to send now
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robot_rl.act import ActionMap
from robot_rl.observe import Observation, Observer, Quantity, Readings, Speeds, blank
from robot_rl.reward import Rewards, SuccessClock
from robot_rl.safety import Reason, Safety
from robot_rl.spec import CLOCK, GOAL, STEERING, PolicySpec


@dataclass(frozen=True)
class Outcome:
    """What one look at the robot says about the step before it."""

    observation: Observation
    """The last good one where `valid` is False."""
    reward: float
    terminated: bool
    truncated: bool
    success: bool | None
    """None where the task judges none."""
    faults: Reason
    valid: bool
    """False where a sensor failed, so that nothing may be learned from this step."""

    @property
    def done(self) -> bool:
        """The episode is over."""
        return self.terminated or self.truncated


@dataclass(frozen=True)
class Command:
    """What is sent, and how it came about."""

    asked: np.ndarray
    """(A,) the policy's action."""
    action: np.ndarray
    """(A,) the action that the sent command amounts to; this one is learned from."""
    sent: np.ndarray
    """(C,) command of the actuated joints: rad, rad/s or N·m."""
    reasons: Reason


class Episode:
    """The rules of a contract, applied one step at a time at `spec.rate_hz`.

    An endless one is control without episodes: it ends by a fault or `halt` only, not by success or the time limit.
    """

    def __init__(self, spec: PolicySpec, endless: bool = False) -> None:
        assert spec.robot is not None and spec.action is not None
        self.spec, self._endless = spec, endless
        self.steps = 0
        self.last: np.ndarray | None = None
        """Last sent command (C,)."""
        self.faults = Reason.NONE
        self._observer, self._rewards = Observer(spec), Rewards(spec)
        self._speeds = Speeds(spec.robot.joint_sensor, spec.rate_hz)
        self._clock = SuccessClock(spec) if spec.success else None
        self._failure = Quantity(spec.failure.term, spec) if spec.failure else None
        self._map = ActionMap(spec.action, spec.robot)
        self._safety = Safety(spec.robot, spec.rate_hz, spec.cameras)
        self._max_steps = round(spec.time_limit_s * spec.rate_hz)
        self._readings = Readings({})
        self._goal: np.ndarray | None = None
        self._action = np.zeros(spec.action_size)
        self._observation = blank(spec)
        self._fade_steps = 0
        self._push = spec.robot.command.interface != "position"

    @property
    def rewards(self) -> dict[str, float]:
        """What each reward term gave in the last step, by its name; a bonus for success is not among them."""
        return self._rewards.parts

    def begin(self, goal: np.ndarray | None = None, fade_s: float = 0.0) -> None:
        """Start an episode, with the goal position (3,) in m where the contract has one.

        The first command is the one that moves nothing; for `fade_s` from then on the policy has a growing say.
        """
        if (goal is None) != (self.spec.goal is None):
            raise ValueError(f"task {self.spec.task}: goal is {self.spec.goal}, given {goal}")
        self.steps, self.last, self.faults = 0, None, Reason.NONE
        self._fade_steps = round(fade_s * self.spec.rate_hz)
        self._goal, self._action = goal, np.zeros(self.spec.action_size)
        for part in (self._observer, self._rewards, self._speeds, self._clock, self._failure):
            if part is not None:
                part.reset()

    def aim(self, goal: np.ndarray) -> None:
        """Another goal (3,) in m from now on; success has to hold anew."""
        self._goal = goal
        if self._clock is not None:
            self._clock.reset()

    def halt(self, reason: Reason = Reason.STOP) -> None:
        """Stop this episode; the stop stays until the next `begin`."""
        self.faults |= reason

    def observe(self, readings: Readings) -> Outcome:
        """Judge the step that led to these readings; the first call of an episode only observes."""
        readings = self._readings = self._speeds(readings)
        self.faults |= self._safety.check(readings)
        if self.faults & ~Reason.WORKSPACE:
            return Outcome(self._observation, 0.0, False, True, False, self.faults, False)
        first = self.last is None
        if self.last is None:
            self.last = self._safety.start(readings)
        values = readings.values | {"command": self.last, "action": self._action,
                                    CLOCK: np.array([self.steps / self.spec.rate_hz])}
        if self._goal is not None:
            values[GOAL] = self._goal
        if self.spec.steering is not None:
            values[STEERING] = self.spec.steering.within(values.get(STEERING, np.zeros(3)))
        succeeded = self._clock is not None and not first and self._clock(values)
        values["hold"] = np.array([self._clock.hold_s if self._clock else 0.0])
        self._observation = self._observer(values)
        reward = self._rewards(values)
        failed = self._failure is not None and self.spec.failure is not None and self.spec.failure.holds(
            float(self._failure(values)[0]))
        return self._judge(0.0 if first else reward, succeeded, failed)

    def act(self, action: np.ndarray) -> Command:
        """Turn the policy's action (A,) into the command to send now."""
        assert self.last is not None, "act before observe"
        asked = np.asarray(action, dtype=float)
        reasons = Reason.NONE
        if np.isfinite(asked).all():
            target = self._map.target(np.clip(asked, -1.0, 1.0), self.last)
        else:
            target, reasons = self.last, Reason.NONFINITE
            self.halt(Reason.NONFINITE)
        if self.steps < self._fade_steps:
            start = np.zeros_like(target) if self._push else self.last
            target, reasons = start + self.steps / self._fade_steps * (target - start), reasons | Reason.FADE
        sent, limited = self._safety.limit(target, self.last, self._readings)
        return Command(asked, self.took(sent), sent, reasons | limited)

    def took(self, sent: np.ndarray) -> np.ndarray:
        """Note the command (C,) that was really sent; returns the action (A,) that it amounts to."""
        assert self.last is not None, "took before observe"
        self._action = self._map.inverse(sent, self.last)
        self.last = sent
        self.steps += 1
        return self._action

    def stop(self, readings: Readings) -> np.ndarray | None:
        """The stop behaviour's command (C,), or None when none would be safe."""
        return self._safety.stop(readings, self.last)

    def _judge(self, reward: float, succeeded: bool, failed: bool) -> Outcome:
        success = self.spec.success
        if self._endless:
            if succeeded and success is not None and success.ends_episode and self._clock is not None:
                self._clock.reset()  # a policy that ends its episodes has never seen it hold for longer
            judged = succeeded if success else None
            return Outcome(self._observation, reward, False, bool(self.faults), judged, self.faults, True)
        timeout = self.steps >= self._max_steps
        ended = failed or (succeeded and success is not None and success.ends_episode)
        won = succeeded and (ended or timeout) and not failed
        if won and success is not None:
            reward += success.bonus
        truncated = (timeout or bool(self.faults)) and not ended
        return Outcome(self._observation, reward, ended, truncated, won if success else None, self.faults, True)
