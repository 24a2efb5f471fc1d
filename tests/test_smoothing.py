"""Reward smoothing worked out by hand, and where in a memory it happens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robot_rl.replay import Replay
from robot_rl.smoothing import Smoothing


def smoothed(text: str, *rewards: float) -> list[float]:
    smoothing = Smoothing.parse(text)
    assert smoothing is not None
    return smoothing(np.array(rewards, np.float32)).tolist()


def test_kernels_worked_out_by_hand() -> None:
    assert smoothed("uniform:3", 0, 0, 3, 0, 0) == pytest.approx([0, 1, 1, 1, 0])
    assert smoothed("ema:0.5", 0, 4, 0, 0) == pytest.approx([0, 4 / 1.75, 2 / 1.75, 1 / 1.75])  # never before it came
    one, two = math.exp(-0.5), math.exp(-2.0)
    tail = sum(math.exp(-0.5 * k**2) for k in (3, 4))
    whole = 1 + 2 * (one + two + tail)
    assert smoothed("gaussian:1", *[0] * 6, 1, *[0] * 6)[4:7] == pytest.approx([two / whole, one / whole, 1 / whole])
    assert Smoothing.parse("none") is None


@pytest.mark.parametrize("text", ["uniform:3", "uniform:99", "gaussian:2", "gaussian:0.3", "ema:0.3", "ema:0.99"])
def test_nothing_is_lost_at_the_ends_nor_in_a_short_segment(text: str) -> None:
    random = np.random.default_rng(0)
    for count in (1, 2, 7, 300):
        rewards = random.normal(size=count)
        assert sum(smoothed(text, *rewards)) == pytest.approx(float(np.float32(rewards).sum()), abs=1e-5)
    assert smoothed("ema:0.5", 0, 0, 4) == [0, 0, 4] and smoothed("uniform:3", 0, 0, 3) == [0, 1.5, 1.5]


@pytest.mark.parametrize("text", ["gaussian", "gaussian:0", "gaussian:nan", "uniform:4", "uniform:2.5", "ema:1",
                                  "box:3"])
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"smoothing is '{text}'; .*gaussian:STD.*uniform:WIDTH.*ema:SHARE"):
        Smoothing.parse(text)


def rewards(replay: Replay) -> list[float]:
    """Of the steps held, in order."""
    rows = replay._starts[np.arange(replay._first, replay._last) % replay.capacity] % replay.capacity
    return replay._rows[rows, replay._reward].tolist()


def add(replay: Replay, *rewards: float, ends: bool = True) -> None:
    for number, reward in enumerate(rewards, 1):
        replay.step(np.zeros(1), reward, np.zeros(1), ends and number == len(rewards), False)


def test_a_memory_smooths_a_segment_when_it_ends_and_none_reaches_into_another() -> None:
    replay = Replay(20, 1, 1, smoothing=Smoothing.parse("uniform:3"))
    replay.begin(np.zeros(1))
    add(replay, 0, 0, 3)
    replay.begin(np.zeros(1))
    add(replay, 6, 0, 0, ends=False)
    assert rewards(replay) == [0, 1.5, 1.5, 6, 0, 0]
    again = Replay(30, 1, 1, smoothing=Smoothing.parse("uniform:3"))
    again.load_state_dict(replay.state_dict())
    for one in (replay, again):
        one.begin(np.zeros(1))  # ends the open one as if truncated
        one.begin(np.zeros(1))
        assert rewards(one) == [0, 1.5, 1.5, 3, 3, 0]
        add(one, 9)
        assert rewards(one) == [0, 1.5, 1.5, 3, 3, 0, 9]


def test_a_segment_that_is_longer_than_the_memory_is_smoothed_as_far_as_it_is_held() -> None:
    replay = Replay(6, 1, 1, smoothing=Smoothing.parse("uniform:3"))
    replay.begin(np.zeros(1))
    add(replay, *range(20))
    assert rewards(replay) == pytest.approx(smoothed("uniform:3", *range(15, 20)))
    replay.begin(np.zeros(1))
    add(replay, 0, 3)
    assert rewards(replay)[-2:] == [1.5, 1.5]
