"""A decision that is thrown away, run just before the real one: see Ticker.wait."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hardware.robot_io import RobotIO, encode_command
from robot_rl.episode import Episode
from robot_rl.policy import Policy
from robot_rl.spec import PolicySpec


def rehearsal(io: RobotIO, policy: Policy, spec: PolicySpec) -> Callable[[], None]:
    """Everything that a tick does but publishing, on an episode of its own; the policy carries nothing on.

    A policy that plans is left out: what takes long anyway would only make the tick late.
    """
    twin, idle = Episode(spec), np.zeros(spec.action_size)
    goal = spec.goal.sample(np.random.default_rng(0)) if spec.goal else None

    def rehearse() -> None:
        twin.begin(goal)
        if not twin.observe(io.read()).done:
            encode_command(io.robot, twin.act(idle if policy.plans else policy.again()).sent)
    return rehearse
