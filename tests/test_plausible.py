"""Joint states that cannot be true: which are told from which, on a clock that is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robot_rl.observe import Readings
from robot_rl.plausible import RESPONSE_S, Plausible
from tests.robots import robot

PERIOD = 0.01


class Told:
    """Joint states of the robot with a, b and c, one each 10 ms, and the commands of a and b in between."""

    def __init__(self, **changes: Any) -> None:
        self.plausible, self.now, self.count = Plausible(robot(**changes)), 100.0, 0

    def __call__(self, position: Any, command: Any = None, gap: float = PERIOD) -> tuple[bool, bool]:
        self.now += gap
        self.count += 1
        values = {f"joints.{key}": np.array(position, float) for key in ("position", "velocity", "effort")}
        got = self.plausible.judge(Readings(values, {"joints": self.count}, {"joints": 0.0},
                                            {"joints": round(self.now * 1e9)}), self.now)
        if command is not None:
            self.plausible.sent(np.array(command, float), self.now)
        return got


def test_repeats_under_moving_commands_are_frozen_and_only_those() -> None:
    told = Told()
    assert not any(told([0, 0, 0], [0.0, 0.0])[1] for _ in range(200)), "at rest, to the last bit"
    assert not any(told([0, 0, 0], [0.05, 0.0])[1] for _ in range(200)), "within a dead band"
    found = [told([0, 0, 0], [0.15, 0.0])[1] for _ in range(50)]
    assert found.index(True) == pytest.approx(RESPONSE_S / PERIOD, abs=2)
    assert sum(found) == 1, "told of once; the next time needs commands that move anew"
    told([0, 0, 0], [0.0, 0.0])
    assert any(told([0, 0, 0], [0.15, 0.0])[1] for _ in range(50))


def test_a_noisy_or_blocked_robot_is_not_frozen() -> None:
    told, noise = Told(), np.random.default_rng(0)
    assert not any(told(1e-6 * noise.standard_normal(3), [0.01 * n, 0.0])[1] for n in range(100))
    assert not any(told([0, 0, 1e-9 * n], [0.01 * n, 0.0])[1] for n in range(100)), "any joint that changes will do"


def test_one_message_that_is_read_again_and_silence_are_not_frozen() -> None:
    told = Told()
    told([0, 0, 0], [0.0, 0.0])
    told.plausible.sent(np.array([0.3, 0.0]), told.now)
    for _ in range(100):
        told.count -= 1  # the same message
        assert told([0, 0, 0]) == (False, False)


def test_efforts_say_nothing_of_where_a_joint_has_to_be() -> None:
    told = Told(interface="effort")
    assert not any(told([0, 0, 0], [0.01 * n, 0.0])[1] for n in range(100))


@pytest.mark.parametrize(("before", "after", "gap", "jumps"), [
    ([0, 0, 0], [0.1, 0, 0], PERIOD, False), ([0, 0, 0], [0.5, 0, 0], PERIOD, True),
    ([0, 0, 0], [0.5, 0, 0], 0.1, False), ([0, 0, 0], [0, np.nan, 0], PERIOD, False),
    ([0, 0, 3.1], [0, 0, -3.1], PERIOD, False), ([0, 0, 0], [0, -0.4, 0], PERIOD, True)])
def test_a_joint_jumps_when_it_cannot_have_come_so_far(before, after, gap: float, jumps: bool) -> None:
    """a, b and c are limited to 2, 1 and 50 rad/s; c turns without end."""
    told = Told()
    assert told(before) == (False, False)
    assert told(after, gap=gap)[0] == jumps


def test_a_message_that_came_late_does_not_jump_for_it() -> None:
    """0.1 s of way arrive 1 ms after the message before, as after a stall; its stamp tells."""
    told = Told()
    told([0, 0, 0])
    told.now += 0.1
    values = {f"joints.{key}": np.array([0.4, 0, 0]) for key in ("position", "velocity", "effort")}
    late = Readings(values, {"joints": 99}, {"joints": 0.099}, {"joints": round(told.now * 1e9)})
    assert told.plausible.judge(late, told.now) == (False, False)
