"""Priorities against plain lists: the tree against a running sum, the replay against a dict of what it was told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.priorities import RENEWAL, Priorities, SumTree
from robot_rl.replay import PRIOR, Mixture, Replay
from tests.test_replay import BEGIN, STEP, TERMINATE, TRUNCATE, Story, filled, stories

ALPHA = 0.5


@settings(max_examples=100)
@given(data=st.data(), size=st.one_of(st.integers(1, 40), st.just(5_000), st.just(70_000)))
def test_the_tree_draws_where_a_running_sum_says(data: st.DataObject, size: int) -> None:
    tree, numbers = SumTree(size), np.zeros(size)
    for _ in range(data.draw(st.integers(1, 4))):
        place = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
        number = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(place), max_size=len(place))), float)
        tree.set(place, number)
        numbers[place] = number
    if not numbers.any():
        return
    sums = numbers.cumsum()  # whole numbers: exact
    between = (np.arange(int(sums[-1])) + 0.5) / sums[-1]
    np.testing.assert_array_equal(tree.draw(between), sums.searchsorted(between * sums[-1], "right"))
    edges = tree.draw(np.array([0.0, np.nextafter(1.0, 0.0)]))
    assert edges.tolist() == np.flatnonzero(numbers)[[0, -1]].tolist()


@given(numbers=st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e9)), min_size=1, max_size=300))
def test_a_zero_is_never_drawn_whatever_the_rounding(numbers: list[float]) -> None:
    tree = SumTree(len(numbers))
    tree.set(np.arange(len(numbers)), np.array(numbers))
    if any(numbers):
        drawn = tree.draw(np.linspace(0.0, np.nextafter(1.0, 0.0), 1_001))
        assert (tree.numbers[drawn] > 0).all()


@settings(max_examples=150)
@given(events=st.lists(st.one_of(st.sampled_from([BEGIN, STEP, STEP, STEP, TERMINATE, TRUNCATE]), st.floats(0, 9)),
                       min_size=1, max_size=60), capacity=st.integers(2, 25), horizon=st.integers(1, 3))
def test_each_step_has_the_priority_it_was_last_given(events: list[str | float], capacity: int, horizon: int) -> None:
    """A number among the events is what is said of the steps just sampled; a dict holds what that should lead to."""
    story = Story(capacity, prioritized=ALPHA)
    expected: dict[tuple[int, int], float] = {}
    highest = 1.0
    for event in events:
        if isinstance(event, str):
            story.tell(event)
        elif len(story.replay):
            batch = story.replay.sample(4, horizon)
            errors = np.linspace(-event, event, batch["index"].size).reshape(batch["index"].shape)
            story.replay.prioritise(batch["index"], batch["source"], errors)
            for (segment, step), error, weight in zip(batch["obs"].reshape(-1, 2), errors.flat, batch["weight"].flat,
                                                      strict=True):
                if weight:
                    expected[int(segment), int(step)] = max(abs(error), 1.0) ** ALPHA
                    highest = max(highest, max(abs(error), 1.0) ** ALPHA)
        expected |= {step: highest for step in story.held() if step not in expected}
    state = story.replay.state_dict()
    held = story.rows[-capacity:]
    assert len(state["priorities"]) == len(state["rows"]) == len(held)
    wanted = [expected[row] if row in story.held() else 0.0 for row in held]
    np.testing.assert_allclose(state["priorities"], wanted, rtol=1e-12)
    assert story.replay._priorities is not None
    assert story.replay._priorities._tree.numbers.sum() == pytest.approx(sum(wanted)), "nothing else can be drawn"
    if len(story.replay):
        drawn = story.replay.sample(16)["obs"]
        assert {(int(g), int(t)) for g, t in drawn} <= story.held()


@settings(max_examples=50)
@given(events=stories, capacity=st.integers(2, 25))
def test_untold_priorities_draw_evenly(events: list[str], capacity: int) -> None:
    story = Story(capacity, prioritized=1.0)
    for event in events:
        story.tell(event)
    if len(story.replay):
        _, counts = np.unique(story.replay.sample(4_000)["index"], return_counts=True)
        assert len(counts) == len(story.replay)
        assert (np.abs(counts - 4_000 / len(counts)) < 6 * np.sqrt(4_000 / len(counts)) + 1).all()


def test_steps_are_drawn_in_proportion_to_priority() -> None:
    """Errors 0.5, 2, 4 and alpha 0.5: 1, 1.414 and 2 of 4.414."""
    story = Story(20, prioritized=0.5)
    for _ in range(3):
        story.tell(STEP)
    index = np.unique(story.replay.sample(100)["index"])
    story.replay.prioritise(index, np.zeros(3), np.array([0.5, -2.0, 4.0]))
    drawn = story.replay.sample(40_000)["obs"][:, 1]
    np.testing.assert_allclose(np.bincount(drawn.astype(int)) / 40_000, [0.2265, 0.3204, 0.4531], atol=0.01)


@pytest.mark.parametrize("events", [[STEP] * 7, [STEP] * 40, [STEP, TERMINATE] * 9, [STEP, TRUNCATE, BEGIN, BEGIN] * 5])
def test_saved_and_loaded_draws_bit_for_bit_the_same(events: list[str]) -> None:
    story, other = Story(11, prioritized=0.7), Replay(11, 2, 1, seed=5, prioritized=0.7)
    going_on = story.replay, other
    for event in events:
        story.tell(event)
        learn(story.replay)
    other.load_state_dict(story.replay.state_dict())
    for number in range(30):
        if not story.open:
            for replay in going_on:
                replay.begin(np.array([99.0, number]))
            story.open = True
        batches = [learn(replay) for replay in going_on if len(replay)]
        assert all(np.array_equal(batches[0][key], batches[-1][key]) for key in batches[0])
        for replay in going_on:
            replay.step(np.array([0.5]), 1.0, np.array([99.0, number + 1]), number % 5 == 4, False)
        story.open = number % 5 != 4
    states = [replay.state_dict() for replay in going_on]
    assert all(np.array_equal(states[0][key], states[1][key]) for key in states[0])


def learn(replay: Replay) -> dict[str, np.ndarray]:
    batch = replay.sample(6)
    replay.prioritise(batch["index"], batch["source"], batch["index"] % 7 - 2.5)
    return batch


def test_an_even_memory_and_one_with_priorities_take_each_others_state() -> None:
    story, even = Story(11, prioritized=1.0), Story(11)
    for _ in range(9):
        story.tell(STEP)
        even.tell(STEP)
    learn(story.replay)
    other = Replay(11, 2, 1)
    other.load_state_dict(story.replay.state_dict())
    assert len(other.sample(5)["obs"]) == 5
    story.replay.load_state_dict(even.replay.state_dict())
    assert np.unique(story.replay.state_dict()["priorities"]).tolist() == [0.0, 1.0]


def test_an_early_outlier_is_forgotten() -> None:
    priorities = Priorities(4, 1.0)
    priorities.update(np.array([0]), np.array([50.0]))
    priorities.admit(np.array([1]), np.ones(1))
    for _ in range(RENEWAL):
        priorities.update(np.array([0, 1]), np.array([2.0, 3.0]))
    priorities.admit(np.array([2]), np.ones(1))
    assert priorities.state_dict(np.arange(4))["priorities"].tolist() == [2.0, 3.0, 3.0, 0.0]


def test_a_mixture_tells_each_member_of_its_own() -> None:
    prior, online = (Replay(100, 2, 1, prioritized=1.0) for _ in range(2))
    for replay in (prior, online):
        replay.begin(np.zeros(2))
        for step in range(5):
            replay.step(np.zeros(1), 0.0, np.full(2, step + 1.0), False, False)
    mixture = Mixture(prior, online, 0.5)
    batch = mixture.sample(64)
    mixture.prioritise(batch["index"], batch["source"], np.where(batch["source"] == PRIOR, 7.0, 3.0))
    assert set(prior.state_dict()["priorities"]) == {7.0, 0.0}
    assert set(online.state_dict()["priorities"]) == {3.0, 0.0}


def test_even_sampling_passes_priorities_over_and_draws_as_ever() -> None:
    replay = filled(3, 5)
    replay.prioritise(np.array([0]), np.array([0]), np.array([9.0]))
    numbers = np.random.default_rng(3).integers(0, 5, 8)  # the draws that every run so far was made with
    assert replay.sample(8)["index"].tolist() == numbers.tolist()
    assert "priorities" not in replay.state_dict()


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prioritized is 1\.5"):
        Replay(10, 2, 1, prioritized=1.5)
    story = Story(10, prioritized=1.0)
    story.tell(STEP)
    with pytest.raises(FloatingPointError, match="priority"):
        story.replay.prioritise(np.array([0]), np.array([0]), np.array([np.nan]))
