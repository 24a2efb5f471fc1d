"""One episode: observation, action map, reward, success and ends, with hand-computed numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import sim
from robot_rl.act import ActionMap
from robot_rl.episode import Episode
from robot_rl.observe import Readings
from robot_rl.reward import Rewards, shape
from robot_rl.safety import Reason
from robot_rl.spec import ActionSpec, Reward, Success, Term, Vision
from tests.robots import CAMERAS, contract, robot

GOAL = np.array([0.2, 0.0, 0.1])


def readings(position=(0.1, 0.2, 0.3), tip=(0.0, 0.0, 0.0), velocity=(1.0, 2.0, 3.0)) -> Readings:
    return Readings({"joints.position": np.array(position), "joints.velocity": np.array(velocity),
                     "joints.effort": np.zeros(3), "tip.position": np.array(tip),
                     "tip.orientation": np.array([0, 0, 0, 1.0])})


def test_observation_by_hand() -> None:
    episode = Episode(contract())
    episode.begin(GOAL)
    first = episode.observe(readings())
    distance = np.hypot(0.2, 0.1)
    np.testing.assert_allclose(first.observation, np.float32(
        [0.1, 0.2, 0.3, 1.0, 0.5, np.sin(0.3), np.cos(0.3), 0, 0, 0, 0, 0, 0, 0, 0, 0, distance]), rtol=1e-6)
    assert first.reward == 0
    command = episode.act(np.array([1.0, -0.5]))  # joints b, a: +0.04, -0.04 rad
    np.testing.assert_allclose(command.sent, [0.06, 0.24])
    second = episode.observe(readings())
    np.testing.assert_allclose(second.observation[7:13], [0, 0, 0, 0, 1.0, -0.5], rtol=1e-6)
    np.testing.assert_allclose(second.observation[13:15], [-0.04, 0.04], rtol=1e-6)
    outside = (distance - 0.1) / 0.5
    assert second.reward == pytest.approx(0.1 ** (outside**2) - 0.1 * 1.25)


def test_success_needs_the_hold_without_a_break_and_ends_the_episode() -> None:
    episode = Episode(contract())
    episode.begin(GOAL)
    episode.observe(readings(tip=GOAL))
    seen = []
    for tip in (GOAL, (0, 0, 0), GOAL, GOAL):
        episode.act(np.zeros(2))
        seen.append(episode.observe(readings(tip=tip)))
    assert [o.terminated for o in seen] == [False, False, False, True]  # 0.1 s is two periods at 20 Hz
    assert [float(o.observation[15]) for o in seen] == pytest.approx([0.05, 0, 0.05, 0.1])
    assert seen[-1].success
    assert seen[-1].reward == pytest.approx(1.0 + 5.0)
    assert not seen[-1].truncated


def test_time_limit_truncates_and_success_at_the_end_counts_when_it_does_not_end() -> None:
    ends = Success(term=contract().success.term, below=0.1, hold_s=0.5, ends_episode=False)
    episode = Episode(contract(success=ends))
    episode.begin(GOAL)
    outcome = episode.observe(readings())
    for step in range(20):
        episode.act(np.zeros(2))
        outcome = episode.observe(readings(tip=GOAL if step >= 10 else (0, 0, 0)))
        assert outcome.done == (step == 19)
    assert outcome.truncated
    assert not outcome.terminated
    assert outcome.success


def test_a_fault_stops_for_good_and_teaches_nothing() -> None:
    episode = Episode(contract())
    episode.begin(GOAL)
    good = episode.observe(readings())
    bad = episode.observe(Readings(readings().values, ages={"joints": 1.0}))
    assert (bad.truncated, bad.valid, bad.faults) == (True, False, Reason.STALE)
    np.testing.assert_array_equal(bad.observation, good.observation)
    assert episode.observe(readings()).truncated


def test_a_nan_action_moves_nothing_and_stops() -> None:
    episode = Episode(contract())
    episode.begin(GOAL)
    episode.observe(readings())
    command = episode.act(np.array([np.nan, 0.0]))
    np.testing.assert_array_equal(command.sent, [0.1, 0.2])
    assert command.reasons == Reason.NONFINITE
    assert episode.observe(readings()).faults == Reason.NONFINITE


def test_goal_must_match_the_contract() -> None:
    with pytest.raises(ValueError, match="triple-reach"):
        Episode(contract()).begin(None)


@given(arrays(float, 2, elements=st.floats(-1, 1)), arrays(float, 2, elements=st.floats(-2, 2)),
       st.sampled_from(["absolute", "delta"]), st.floats(0.05, 1.0))
def test_action_map_is_invertible(action, last, kind, smooth) -> None:
    spec = ActionSpec(kind=kind, joints=("b", "a"), scale=(0.4, 0.2), offset=(0.1, -0.1), filter=smooth)
    mapping = ActionMap(spec, robot())
    np.testing.assert_allclose(mapping.inverse(mapping.target(action, last), last), action, atol=1e-9)


def test_joints_outside_the_action_keep_their_default() -> None:
    mapping = ActionMap(ActionSpec(kind="delta", joints=("b",), scale=(0.1,)), robot())
    np.testing.assert_allclose(mapping.target(np.ones(1), np.array([0.7, 0.2])), [0.1, 0.3])


def test_tolerance_by_hand() -> None:
    reward = Reward(term=Term(name="x", source="hold"), weight=1, shape="tolerance", lower=1, upper=2, margin=2)
    np.testing.assert_allclose(shape(reward, np.array([1.5, 2.0, 4.0, 0.0, 3.0])), [1, 1, 0.1, 0.1**0.25, 0.1**0.25])


EYES = Vision(cameras=("wrist", "front"), height=6, width=8, stack=3)


def seen(step: int, ages: dict[str, float] | None = None) -> Readings:
    """A step's pictures say which camera took them, when, and which colour is which."""
    images = {f"{name}.image": np.full((6, 8, 3), 10 * step + 100 * k + np.arange(3), np.uint8)
              for k, name in enumerate(("front", "wrist"))}
    return Readings(readings().values | images, ages=ages or {})


def test_frames_are_stacked_by_time_then_camera_then_colour_and_filled_at_the_start() -> None:
    episode = Episode(contract(body=robot(cameras=CAMERAS), vision=EYES))
    for first in (1, 5):  # the second episode knows nothing of the first
        episode.begin(GOAL)
        kept = []
        for step in range(first, first + 4):
            observation = episode.observe(seen(step)).observation
            assert isinstance(observation, dict) and observation["frames"].shape == EYES.shape
            assert (observation["frames"].dtype, observation["state"].dtype) == (np.uint8, np.float32)
            times = [max(first, step - back) for back in (2, 1, 0)]
            wanted = [10 * t + c for t in times for c in (100, 101, 102, 0, 1, 2)]
            np.testing.assert_array_equal(observation["frames"][:, 3, 5], wanted)
            np.testing.assert_array_equal(np.ptp(observation["frames"], axis=(1, 2)), 0)
            kept.append((observation["frames"], observation["frames"].copy()))
            episode.act(np.zeros(2))
        for frames, copy in kept:
            np.testing.assert_array_equal(frames, copy)  # nobody wrote to what was handed out


def test_the_state_is_the_one_without_vision() -> None:
    plain, with_eyes = Episode(contract()), Episode(contract(body=robot(cameras=CAMERAS), vision=EYES))
    for episode in (plain, with_eyes):
        episode.begin(GOAL)
    observation = with_eyes.observe(seen(0)).observation
    assert isinstance(observation, dict)
    np.testing.assert_array_equal(observation["state"], plain.observe(readings()).observation)


@pytest.mark.parametrize(("now", "fault"), [
    (seen(1, {"front": 0.31}), Reason.STALE),
    (Readings({k: v for k, v in seen(1).values.items() if k != "wrist.image"}), Reason.MISSING),
])
def test_a_camera_in_use_that_falls_silent_stops_the_robot(now, fault) -> None:
    episode = Episode(contract(body=robot(cameras=CAMERAS), vision=EYES))
    episode.begin(GOAL)
    good = episode.observe(seen(0, {"front": 0.29}))
    bad = episode.observe(now)
    assert (good.faults, bad.faults, bad.truncated, bad.valid) == (Reason.NONE, fault, True, False)
    assert isinstance(good.observation, dict) and bad.observation is good.observation


def test_a_camera_that_is_not_in_use_may_be_silent() -> None:
    episode = Episode(contract(body=robot(cameras=CAMERAS)))
    episode.begin(GOAL)
    assert episode.observe(Readings(readings().values, ages={"front": 99.0})).faults == Reason.NONE


@pytest.mark.parametrize(("interface", "kind", "first", "second"), [
    ("position", "delta", [0.1, 0.2], [0.06, 0.22]),  # half of -0.08 and of 0.04 rad has a say in the second step
    ("effort", "absolute", [0.0, 0.0], [-0.04, 0.02]),  # half of the effort
])
def test_a_policy_is_faded_in_from_what_moves_nothing(interface, kind, first, second) -> None:
    episode = Episode(contract(interface, kind), endless=True)
    episode.begin(GOAL, fade_s=2 / 20)
    action = np.array([1.0, -1.0])  # of the joints b, a: 0.04, 0.08 rad or N·m
    seen = []
    for _ in range(3):
        outcome = episode.observe(readings(velocity=(0.0, 0.0, 0.0)))
        seen.append(episode.act(action))
    assert not outcome.done
    np.testing.assert_allclose([c.sent for c in seen[:2]], [first, second])
    assert [bool(c.reasons & Reason.FADE) for c in seen] == [True, True, False]
    np.testing.assert_allclose(seen[1].action, 0.5 * action)  # what the sent command amounts to
    np.testing.assert_allclose(seen[2].action, action)


def test_an_endless_episode_ends_by_a_fault_only_and_follows_its_goal() -> None:
    episode = Episode(contract(), endless=True)
    episode.begin(GOAL)
    for step in range(30):  # beyond the time limit of 1 s
        outcome = episode.observe(readings(tip=GOAL))
        assert not outcome.done
        assert outcome.success == (step > 0 and step % 2 == 0)  # held for 0.1 s, again and again
        episode.act(np.zeros(2))
    episode.aim(GOAL + 0.5)
    outcome = episode.observe(readings(tip=GOAL))
    assert outcome.observation[-1] == pytest.approx(np.sqrt(3) * 0.5) and not outcome.success
    episode.halt()
    assert episode.observe(readings()).truncated


def test_two_rewards_of_one_term_both_count() -> None:
    spec, _ = sim.task_spec("so101-reach")
    rewards = Rewards(spec)
    values = {"goal.position": np.array([0.3, 0.0, 0.1]), "tip.position": np.array([0.2, 0.0, 0.1]),
              "action": np.full(spec.action_size, 0.5)}
    far, near = (1 - 0.1 ** (miss / margin) ** 2 for miss, margin in ((0.1, 0.3), (0.095, 0.03)))
    effort = -0.01 * 0.25 * spec.action_size
    assert rewards(values) == pytest.approx(-0.5 * far - 0.5 * near + effort)
    assert rewards.parts == pytest.approx({"distance": -0.5 * far - 0.5 * near, "effort": effort})
