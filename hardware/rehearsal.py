"""A decision that is thrown away, again and again until just before the real one: see Ticker.wait."""

from __future__ import annotations

import time

import numpy as np

from hardware.robot_io import RobotIO, encode_command
from robot_rl.episode import Episode, Outcome
from robot_rl.observe import Readings
from robot_rl.policy import Policy
from robot_rl.spec import PolicySpec

PASSES_NS = 3_000_000  # one that starts cold and a few that do not


class Rehearsal:
    """Everything that a tick does but publishing, on an episode of its own; the policy carries nothing on.

    It goes in parts, so that the last one ends close to the deadline: what was run a millisecond ago is half forgotten,
    whatever the processor did since. The network of a policy that plans is left out, since it takes long anyway.
    """

    def __init__(self, io: RobotIO, policy: Policy, spec: PolicySpec) -> None:
        self._io, self._policy, self._twin = io, policy, Episode(spec)
        self._goal = spec.goal.sample(np.random.default_rng(0)) if spec.goal else None
        self._readings = Readings({})
        self._outcome: Outcome | None = None
        self._action = np.zeros(spec.action_size)
        self._parts = [self._see, self._send] if policy.plans else [self._see, self._decide, self._send]
        self._typical_ns = [0] * len(self._parts)  # a low quantile of late: a stall is not the part's own
        self._read_ns = 0
        for _ in range(3):
            self._read()
            self._through(time.monotonic_ns() + 1_000_000_000)

    @property
    def ahead_ns(self) -> int:
        """How long before a deadline to begin, ns: for what may have come since, and for some passes."""
        return self._read_ns + PASSES_NS

    def __call__(self, until_ns: int) -> None:
        """Parts as long as there is time for one, on the clock of time.monotonic_ns."""
        began = time.monotonic_ns()
        self._read()
        self._read_ns = max(time.monotonic_ns() - began, self._read_ns * 15 // 16)  # the longest of late
        while self._through(until_ns):
            if not self._io.cameras:  # an image that came just now would take longer than is left
                self._read()

    def _through(self, until_ns: int) -> bool:
        """Each part for which there is time, once; whether there was for any."""
        ran, now = False, time.monotonic_ns()
        for i, part in enumerate(self._parts):
            typical = self._typical_ns[i]
            if now + 2 * typical < until_ns:
                part()
                began, now, ran = now, time.monotonic_ns(), True
                self._typical_ns[i] = min(now - began, typical + typical // 32) if typical else now - began
        return ran

    def _read(self) -> None:
        self._readings = self._io.read()

    def _see(self) -> None:
        self._twin.begin(self._goal)
        self._outcome = self._twin.observe(self._readings)

    def _decide(self) -> None:
        self._action = self._policy.again()

    def _send(self) -> None:
        if self._outcome is not None and not self._outcome.done:
            encode_command(self._io.robot, self._twin.act(self._action).sent)
