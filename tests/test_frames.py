"""The replay of frames against one of `Replay`'s own kind that keeps every stack whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.frames import FrameReplay
from robot_rl.replay import Mixture, NotFinite, Replay
from tests.test_replay import BEGIN, TERMINATE, TRUNCATE, stories

FRAME, STATE = (2, 3, 1), 2  # C, H, W and O


def flat(obs: dict[str, np.ndarray]) -> np.ndarray:
    """An observation as one vector, the state first."""
    return np.concatenate((obs["state"], obs["frames"].ravel().astype(np.float32)))


def seen(frames: np.ndarray) -> dict[str, np.ndarray]:
    """An observation of frames with a state of zeros."""
    return {"state": np.zeros(STATE, np.float32), "frames": frames}


class Pair:
    """The same events for a `FrameReplay` and for a `Replay` of whole stacks as floats, under the same seed."""

    def __init__(self, capacity: int, stack: int, prioritized: float = 0.0):
        self.frames = FrameReplay(capacity, FRAME, stack, STATE, 1, seed=4, prioritized=prioritized)
        self.naive = Replay(capacity, STATE + stack * int(np.prod(FRAME)), 1, seed=4, prioritized=prioritized)
        self.stack, self.count, self.open = stack, 0, False
        self.seen: list[np.ndarray] = []

    def tell(self, event: str) -> None:
        """Add an event; a step outside a segment begins one. Each frame is a number of its own."""
        if event == BEGIN or not self.open:
            self.seen = [self._frame()] * self.stack
            self.frames.begin(self._observation())
            self.naive.begin(flat(self._observation()))
            self.open = True
        if event != BEGIN:
            self.seen = [*self.seen[1:], self._frame()]
            obs, reward = self._observation(), self.count / 8
            ends = event == TERMINATE, event == TRUNCATE
            self.frames.step(np.array([reward]), reward, obs, *ends)
            self.naive.step(np.array([reward]), reward, flat(obs), *ends)
            self.open = not any(ends)

    def _observation(self) -> dict[str, np.ndarray]:
        return {"state": np.arange(STATE, dtype=np.float32) - self.count, "frames": np.concatenate(self.seen)}

    def _frame(self) -> np.ndarray:
        self.count += 1
        return (self.count + np.arange(6)).reshape(FRAME).astype(np.uint8)

    def check(self, batch: int, horizon: int, n_step: int) -> None:
        """Both draw the same, in every key."""
        ours, naive = (replay.sample(batch, horizon, n_step, 0.9) for replay in (self.frames, self.naive))
        for which in ("", "next_"):
            seen, whole = ours.pop(f"{which}frames"), naive[f"{which}obs"]
            assert seen.dtype == np.uint8 and seen.shape[-3:] == (self.stack * FRAME[0], *FRAME[1:])
            np.testing.assert_array_equal(seen, whole[..., STATE:].reshape(seen.shape), which)
            naive[f"{which}obs"] = whole[..., :STATE]
        assert list(ours) == list(naive)
        for key, value in naive.items():
            np.testing.assert_array_equal(ours[key], value, key)


@settings(max_examples=150)
@given(events=stories, capacity=st.integers(2, 25), stack=st.integers(1, 4), n_step=st.integers(1, 3),
       horizon=st.integers(1, 3), prioritized=st.sampled_from([0.0, 1.0]))
def test_stacks_are_those_that_were_seen(events: list[str], capacity: int, stack: int, n_step: int, horizon: int,
                                         prioritized: float) -> None:
    pair = Pair(capacity, stack, prioritized)
    for event in events:
        pair.tell(event)
        assert len(pair.frames) == len(pair.naive)
        if len(pair.naive):
            pair.check(8, horizon, n_step)


@pytest.mark.parametrize("larger", [0, 13])
@pytest.mark.parametrize("steps", [4, 30])
def test_saved_and_loaded_continues_as_if_never_stopped(steps: int, larger: int) -> None:
    pair = Pair(11, 3)
    for number in range(steps):
        pair.tell(TRUNCATE if number % 7 == 6 else "step")
    other = FrameReplay(11 + larger, FRAME, 3, STATE, 1, seed=9)
    other.load_state_dict(pair.frames.state_dict())
    pair.frames = other
    for number in range(20):
        pair.check(16, 1, 1)
        pair.check(16, 2, 2)
        pair.tell(TRUNCATE if number % 5 == 4 else "step")
        if larger and len(other) > len(pair.naive):
            break  # the larger ring keeps more from here on


def test_both_observations_share_their_frames() -> None:
    pair = Pair(20, 3)
    for _ in range(9):
        pair.tell("step")
    batch = pair.frames.sample(5)
    assert np.shares_memory(batch["frames"], batch["next_frames"])
    assert batch["frames"].base.nbytes == 5 * 4 * int(np.prod(FRAME)), "S + 1 frames, not 2 S"


def test_a_step_costs_one_frame() -> None:
    steps, episode = 2_000, 100
    replay = FrameReplay(steps + steps // episode, (3, 8, 8), 3, STATE, 6)
    assert replay.frames_held / steps <= 1.05
    assert replay.nbytes / steps < 1.05 * (3 * 8 * 8 + 4 * (2 + STATE + 6 + 3) + 8)
    obs = seen(np.zeros((9, 8, 8), np.uint8))
    for step in range(steps):
        if step % episode == 0:
            replay.begin(obs)
        replay.step(np.zeros(6), 0.0, obs, False, step % episode == episode - 1)
    assert len(replay) == steps, "they all fit"


def test_a_mixture_of_frames() -> None:
    pairs = Pair(20, 2), Pair(20, 2)
    for pair in pairs:
        pair.tell("step")
    assert Mixture(pairs[0].frames, pairs[1].frames, 0.5).sample(6)["frames"].dtype == np.uint8


def test_what_does_not_fit_is_refused() -> None:
    pair = Pair(11, 3)
    with pytest.raises(ValueError, match=r"float64 \(6, 3, 1\), here they are .* uint8 \(6, 3, 1\)"):
        pair.frames.begin(seen(np.zeros((6, 3, 1))))
    with pytest.raises(ValueError, match=r"uint8 \(2, 3, 1\), .* 3 frames of \(2, 3, 1\)"):
        pair.frames.begin(seen(np.zeros(FRAME, np.uint8)))
    pair.tell("step")
    with pytest.raises(ValueError, match=r"a state \(3,\) .* here they are \(2,\)"):
        pair.frames.begin({"state": np.zeros(3, np.float32), "frames": np.zeros((6, 3, 1), np.uint8)})
    with pytest.raises(NotFinite, match="reward"):
        pair.frames.step(np.zeros(1), np.nan, seen(np.zeros((6, 3, 1), np.uint8)), False, False)
    assert len(pair.frames) == 1
    with pytest.raises(ValueError, match=r"\(3, 2, 3, 1\) \(stack, C, H, W\), here they are \(2, 2, 3, 1\)"):
        FrameReplay(11, FRAME, 2, STATE, 1).load_state_dict(pair.frames.state_dict())
