"""Replay against a plain list of segments, with observations that say which segment and step they are from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.replay import ONLINE, PRIOR, Mixture, NotFinite, Ratio, Replay

DISCOUNT = 0.9
BEGIN, STEP, TERMINATE, TRUNCATE = "begin", "step", "terminate", "truncate"


class Story:
    """What was put into a replay, kept as lists: `rows` of (segment, step), the rewards and the end of each segment."""

    def __init__(self, capacity: int, seed: int = 0, prioritized: float = 0.0):
        self.replay = Replay(capacity, obs_size=2, action_size=1, seed=seed, prioritized=prioritized)
        self.rows: list[tuple[int, int]] = []
        self.rewards: dict[int, list[float]] = {}
        self.terminated: set[int] = set()
        self.open = False

    def tell(self, event: str) -> None:
        """Add an event; a step outside a segment begins one."""
        if event == BEGIN or not self.open:
            segment = len(self.rewards)
            if self.open and not self.rewards[segment - 1]:
                self.rows.pop()  # no step was taken from the beginning before
            self.rewards[segment] = []
            self.replay.begin(np.array([segment, 0.0]))
            self.rows.append((segment, 0))
            self.open = True
        if event != BEGIN:
            segment, step = self.rows[-1]
            reward = 1.0 + segment + 0.01 * step
            self.rewards[segment].append(reward)
            ends = event == TERMINATE, event == TRUNCATE
            self.replay.step(np.array([segment + 0.001 * step]), reward, np.array([segment, step + 1.0]), *ends)
            self.rows.append((segment, step + 1))
            self.terminated |= {segment} if ends[0] else set()
            self.open = not any(ends)

    def held(self) -> set[tuple[int, int]]:
        """The (segment, step) that a step was taken from and whose row is among the newest `capacity`."""
        return {(g, t) for g, t in self.rows[-self.replay.capacity :] if t < len(self.rewards[g])}

    def expected(self, segment: int, step: int, n_step: int) -> tuple[float, float, list[float]]:
        """reward, discount and next_obs of a step, straight from the lists."""
        end = len(self.rewards[segment])
        count = min(n_step, end - step)
        reward = sum(DISCOUNT**j * self.rewards[segment][step + j] for j in range(count))
        dead = segment in self.terminated and step + count == end
        return reward, 0.0 if dead else DISCOUNT**count, [segment, step + count]


stories = st.lists(st.sampled_from([BEGIN, STEP, STEP, STEP, STEP, TERMINATE, TRUNCATE]), min_size=1, max_size=60)


@settings(max_examples=150)
@given(events=stories, capacity=st.integers(2, 25), n_step=st.integers(1, 5), horizon=st.integers(1, 4))
def test_samples_are_what_was_put_in(events: list[str], capacity: int, n_step: int, horizon: int) -> None:
    story = Story(capacity)
    seen: dict[int, tuple[int, int]] = {}
    for event in events:
        story.tell(event)
        assert len(story.replay) == len(story.held())
        if not len(story.replay):
            with pytest.raises(RuntimeError, match="nothing to sample"):
                story.replay.sample(1)
            continue
        batch = story.replay.sample(8, horizon, n_step, DISCOUNT)
        if horizon == 1:
            batch = {key: value[:, None] for key, value in batch.items()}
        for row in range(8):
            segment, start = (int(value) for value in batch["obs"][row, 0])
            assert (segment, start) in story.held()
            for time in range(horizon):
                entry = {key: value[row, time] for key, value in batch.items()}
                check_entry(story, entry, segment, start + time, n_step)
                if entry["weight"]:
                    assert seen.setdefault(int(entry["index"]), (segment, start + time)) == (segment, start + time)


def check_entry(story: Story, entry: dict[str, np.ndarray], segment: int, step: int, n_step: int) -> None:
    end = len(story.rewards[segment])
    if step >= end:  # past the segment's end: weightless, and never another segment's data
        assert entry["weight"] == entry["reward"] == entry["discount"] == 0
        assert entry["obs"].tolist() == entry["next_obs"].tolist() == [segment, end]
        return
    reward, discount, next_obs = story.expected(segment, step, n_step)
    assert entry["weight"] == 1 and entry["source"] == ONLINE
    assert entry["obs"].tolist() == [segment, step] and entry["next_obs"].tolist() == next_obs
    np.testing.assert_allclose(entry["action"], [segment + 0.001 * step], rtol=1e-6)
    np.testing.assert_allclose([entry["reward"], entry["discount"]], [reward, discount], rtol=1e-5)


def test_every_held_step_is_drawn_evenly() -> None:
    story = Story(20)
    for event in [STEP, STEP, TRUNCATE, STEP, TERMINATE, STEP, STEP, STEP, STEP, TRUNCATE, BEGIN, STEP] * 3:
        story.tell(event)
    drawn = story.replay.sample(40_000)["obs"]
    steps, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {(int(g), int(t)) for g, t in steps} == story.held()
    np.testing.assert_allclose(counts, 40_000 / len(story.held()), rtol=0.1)


@pytest.mark.parametrize("events", [[STEP] * 7, [STEP] * 30, [STEP, TERMINATE] * 9, [STEP, TRUNCATE, BEGIN, BEGIN] * 5])
@pytest.mark.parametrize("larger", [0, 13])
def test_saved_and_loaded_continues_as_if_never_stopped(events: list[str], larger: int) -> None:
    story, other = Story(11), Replay(11 + larger, 2, 1, seed=5)
    for event in events:
        story.tell(event)
    story.replay.sample(3)
    state = story.replay.state_dict()
    assert len(state["rows"]) == min(len(story.rows), 11)
    other.load_state_dict(state)
    going_on = story.replay, other
    for number in range(20):
        if not story.open:
            for replay in going_on:
                replay.begin(np.array([99.0, number]))
            story.open = True
        if larger and len(other) > len(story.replay):
            break  # the larger ring keeps more from here on
        batches = [replay.sample(16, 2, 3) for replay in going_on if len(replay)]
        assert all(np.array_equal(batches[0][key], batches[-1][key]) for key in batches[0])
        for replay in going_on:
            replay.step(np.array([0.5]), 1.0, np.array([99.0, number + 1]), number % 5 == 4, False)
        story.open = number % 5 != 4


def test_a_smaller_or_different_memory_refuses_the_state() -> None:
    story = Story(11)
    for _ in range(30):
        story.tell(STEP)
    for replay in (Replay(10, 2, 1), Replay(11, 3, 1)):
        with pytest.raises(ValueError, match=r"\(11, 6\)"):
            replay.load_state_dict(story.replay.state_dict())


def test_a_step_after_the_end_needs_a_beginning() -> None:
    replay = Replay(10, 2, 1)
    with pytest.raises(RuntimeError, match="begin"):
        replay.step(np.zeros(1), 0.0, np.zeros(2), False, False)
    replay.begin(np.zeros(2))
    replay.step(np.zeros(1), 0.0, np.zeros(2), False, True)
    with pytest.raises(RuntimeError, match="begin"):
        replay.step(np.zeros(1), 0.0, np.zeros(2), False, False)


def filled(segment: float, steps: int) -> Replay:
    replay = Replay(100, 2, 1, seed=int(segment))
    replay.begin(np.array([segment, 0.0]))
    for step in range(steps):
        replay.step(np.zeros(1), 0.0, np.array([segment, step + 1.0]), False, False)
    return replay


@given(batch=st.integers(1, 64), ratio=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), horizon=st.integers(1, 3))
def test_mixture_keeps_its_ratio_and_tells_the_source(batch: int, ratio: float, horizon: int) -> None:
    mixture = Mixture(filled(7, 9), filled(3, 5), ratio)
    sample = mixture.sample(batch, horizon, 2)
    segment = sample["obs"][..., 0]
    assert len(mixture) == 14 and len(segment) == batch
    assert np.array_equal(np.where(sample["source"] == PRIOR, 7, 3), segment)
    assert abs((segment == 7).reshape(batch, -1)[:, 0].sum() - batch * ratio) <= 0.5


@pytest.mark.parametrize("ratio, prior, online", [(0.5, 9, 0), (0.5, 0, 9), (0.0, 0, 9), (1.0, 9, 0)])
def test_mixture_with_one_side_empty(ratio: float, prior: int, online: int) -> None:
    sample = Mixture(filled(7, prior), filled(3, online), ratio).sample(10)
    assert (sample["obs"][:, 0] == (7 if prior else 3)).all()


def test_a_ratio_that_changes_goes_by_the_steps() -> None:
    ratio, now = Ratio.parse("0.5:0:20000"), 0
    mixture = Mixture(filled(7, 9), filled(3, 9), ratio, lambda: now)
    for now, prior in ((0, 5), (8_000, 3), (20_000, 0), (90_000, 0)):  # the mixture asks for it
        assert (mixture.sample(10)["source"] == PRIOR).sum() == prior == round(10 * ratio.at(now))
    assert Ratio.parse("0.25").at(7) == 0.25 and (str(ratio), str(Ratio.parse("0.25"))) == ("0.5:0:20000", "0.25")


def test_the_size_of_rewards_is_that_of_what_is_held() -> None:
    replay = Replay(6, 1, 1)
    assert replay.reward_size() == 0.0
    for _ in range(2):  # the second segment drives out all but the last row of the first
        replay.begin(np.zeros(1))
        for reward in (9.0, -2.0, 4.0, 0.0):
            replay.step(np.zeros(1), reward, np.zeros(1), False, False)
    assert len(replay) == 4 and replay.reward_size() == pytest.approx(15 / 4)
    assert Mixture(replay, filled(3, 5), 0.2).reward_size() == pytest.approx(0.2 * 15 / 4)


@pytest.mark.parametrize("text", ["half", "0.5:0", "0.5:0:9.5", "0.5:0:0", "1.5", "0.5:-1:9", "nan", "0.1:0.2:3:4"])
def test_a_ratio_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ratio"):
        Ratio.parse(text)


def test_mixture_asked_for_only_prior_data_says_when_there_is_none() -> None:
    with pytest.raises(RuntimeError, match="nothing to sample"):
        Mixture(filled(7, 0), filled(3, 9), 1.0).sample(4)
    with pytest.raises(ValueError, match="ratio"):
        Mixture(filled(7, 1), filled(3, 1), 1.5)


def test_a_step_costs_one_row() -> None:
    replay = Replay(1000, obs_size=17, action_size=6)
    assert replay.state_dict()["rows"].size == 0
    per_step = (replay._rows.nbytes + replay._starts.nbytes) / replay.capacity
    assert per_step <= 4 * (17 + 6 + 3) + 8


@pytest.mark.parametrize("obs, action, reward, words", [
    ([0.0, np.nan], [0.0], 0.0, r"next_obs\[1\] is nan in step 1"),
    ([np.inf, 0.0], [0.0], 0.0, r"next_obs\[0\] is inf"),
    ([0.0, 0.0], [-np.inf], 0.0, r"action\[0\] is -inf"),
    ([0.0, 0.0], [0.0], np.nan, r"reward\[0\] is nan"),
])
def test_what_is_not_finite_is_refused_at_the_door(obs: list[float], action: list[float], reward: float, words: str
                                                   ) -> None:
    replay = filled(1, 1)
    with pytest.raises(NotFinite, match=words) as caught:
        replay.step(np.array(action), reward, np.array(obs, np.float32), False, False)
    assert np.array_equal(caught.value.batch["next_obs"], obs, equal_nan=True)
    if action[0] == 0.0 == reward:
        with pytest.raises(NotFinite):
            replay.begin(np.array(obs))
    assert len(replay) == 1 and np.isfinite(replay.sample(50)["next_obs"]).all()


def test_large_numbers_are_not_mistaken_for_infinite_ones() -> None:
    replay = filled(1, 1)
    with np.errstate(over="ignore"):
        replay.step(np.full(1, 1e30), 1e30, np.full(2, 3e38, np.float32), False, False)
    assert len(replay) == 2


def planned(prioritized: float = 0.0) -> Replay:
    """Segments of 2, 3 and 4 steps in 9 rows; step k of segment g carries (9, g, k), but for the first of each."""
    replay = Replay(9, 2, 1, seed=1, prioritized=prioritized, plan_size=2)
    for segment in range(3):
        replay.begin(np.array([segment, 0.0]))
        for step in range(segment + 2):
            carry = np.array([[9.0], [segment], [step]]) if step else None
            replay.step(np.zeros(1), 0.0, np.array([segment, step + 1.0]), False, step == segment + 1, carry)
    return replay


@pytest.mark.parametrize("prioritized", [0.0, 0.5])
def test_plans_lie_beside_their_steps_and_can_be_renewed(prioritized: float) -> None:
    replay = planned(prioritized)
    for batch in (replay.sample(100), replay.sample(100, 3)):
        held = batch["weight"] > 0
        wanted = np.where(batch["obs"][..., 1:] > 0, batch["obs"], 0.0)  # zeros where nothing was planned
        np.testing.assert_array_equal(batch["plan"][held], wanted[held])
    old = planned(prioritized).sample(100, 3)
    replay.begin(np.array([3.0, 0.0]))  # writes over the oldest row left, a step of segment 1
    gone = old["index"].min()
    batch = replay.sample(100)
    assert gone < batch["index"].min()
    replay.renew(np.array([gone, *batch["index"]]), np.zeros(101), np.vstack((np.full((1, 2), 7.0), -batch["obs"])))
    after = replay.sample(200)
    seen = np.isin(after["index"], batch["index"])
    np.testing.assert_array_equal(after["plan"][seen], -after["obs"][seen])
    assert (replay.state_dict()["rows"][:, -2:] != 7.0).all()
    again = Replay(9, 2, 1, prioritized=prioritized, plan_size=2)
    again.load_state_dict(replay.state_dict())
    np.testing.assert_array_equal(again.sample(50)["plan"], replay.sample(50)["plan"])


def test_a_mixture_renews_each_part() -> None:
    prior, online = planned(), planned()
    mixture = Mixture(prior, online, 0.5)
    batch = mixture.sample(200)
    mixture.renew(batch["index"], batch["source"], np.stack((batch["source"] + 1.0, batch["obs"][:, 1]), 1))
    for part, mark in ((prior, PRIOR + 1.0), (online, ONLINE + 1.0)):
        assert (part.sample(100)["plan"][:, 0] == mark).all()
