"""Every registered task: spec conformity, Gymnasium's checker, determinism under a seed, the time limit."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sim
from robot_rl.observe import Observation, state_of
from robot_rl.safety import Reason
from robot_rl.spec import PolicySpec, SpecError
from sim.offscreen import RenderError, backend

TASKS = sim.tasks()


@pytest.fixture(autouse=True)
def opengl(request: pytest.FixtureRequest) -> None:
    """Skip the tasks that see where nothing can be drawn."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name and sim.task_spec(name)[0].vision:
        try:
            backend()
        except RenderError as error:
            pytest.skip(str(error))


def flat(observation: Observation) -> np.ndarray:
    return np.concatenate([part.ravel() for part in observation.values()]) if isinstance(observation, dict) \
        else observation


def rollout(name: str, seed: int, steps: int = 40) -> np.ndarray:
    env = sim.make(name)
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    rows = [flat(observation)]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        rows += [flat(observation), np.atleast_1d(reward)]
        if terminated or truncated:
            break
    return np.concatenate(rows)


@pytest.mark.parametrize("name", TASKS)
def test_passes_gymnasiums_checker_by_its_registered_id(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*render.*")
        warnings.filterwarnings("ignore", message=".*infinity.*")
        check_env(gymnasium.make(f"robot_rl/{name}-v0").unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", TASKS)
def test_spec_matches_the_environment(name: str) -> None:
    env = sim.make(name)
    spec = sim.env_spec(env, name)
    assert PolicySpec.from_json(spec.to_json()) == spec
    observation, info = env.reset(seed=0)
    assert state_of(observation).shape == (spec.observation_size,)
    assert state_of(observation).dtype == np.float32
    assert isinstance(observation, dict) == (spec.vision is not None)
    if spec.vision:
        assert (observation["frames"].shape, observation["frames"].dtype) == (spec.vision.shape, np.uint8)
    assert env.observation_space.contains(observation)
    assert info["action"].shape == (spec.action_size,)


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_fixes_the_episode(name: str) -> None:
    np.testing.assert_array_equal(rollout(name, 5), rollout(name, 5))
    assert not np.array_equal(rollout(name, 5), rollout(name, 6))


@pytest.mark.parametrize("name", TASKS)
def test_time_limit_truncates_and_does_not_terminate(name: str) -> None:
    env = sim.make(name)
    spec = sim.env_spec(env, name)
    env.reset(seed=1)
    steps = round(spec.time_limit_s * spec.rate_hz)
    for _ in range(steps - 1):
        assert not any(env.step(np.zeros(spec.action_size, np.float32))[2:4])
    _, _, terminated, truncated, info = env.step(np.zeros(spec.action_size, np.float32))
    assert truncated
    assert not terminated
    assert info["faults"] == Reason.NONE


def test_an_action_repeat_is_a_lower_rate_of_the_contract() -> None:
    env, usual = (sim.make("furuta-swingup", action_repeat=repeat) for repeat in (2, 1))
    assert sim.env_spec(env, "furuta-swingup").rate_hz == 50.0
    ends = []
    for one in (env, usual):
        one.reset(seed=4)
        steps, truncated = 0, False
        while not truncated:
            observation, *_, truncated, _ = one.step(np.zeros(1))
            steps += 1
        ends.append((steps, observation))
    assert [steps for steps, _ in ends] == [500, 1000]  # of the same 10 s
    np.testing.assert_allclose(ends[0][1], ends[1][1], atol=0.05)
    with pytest.raises(SpecError, match="--action-repeat 0: it is at least 1"):
        sim.make("furuta-swingup", action_repeat=0)


def test_sent_action_differs_from_the_asked_one_where_safety_clips() -> None:
    env = sim.make("so101-reach")
    env.reset(seed=0)
    asked, clipped = np.ones(5, np.float32), False
    for _ in range(20):
        _, _, _, truncated, info = env.step(asked)
        clipped |= bool(info["reasons"] & (Reason.POSITION | Reason.EFFORT)) and not np.allclose(info["action"], asked)
        if truncated:
            break
    assert clipped


def test_unknown_task_suggests_the_close_one() -> None:
    with pytest.raises(SpecError, match="did you mean so101-reach"):
        sim.make("so101-reech")


def test_a_task_on_a_robot_without_its_joints_names_them() -> None:
    with pytest.raises(SpecError, match=r"shoulder_pan.*arm"):
        sim.make("so101-reach", robot="furuta")
