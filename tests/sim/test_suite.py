"""Environments from elsewhere: spaces, time limits, determinism and errors."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from robot_rl.spec import SpecError
from sim import suite

TASKS = ["dmc:cartpole-swingup", "dmc:cheetah-run", "dmc:ball_in_cup-catch", "dmc:finger-spin", "gym:Pendulum-v1"]


class Counting(gymnasium.Env):
    """Counts steps; the observation is nested, the action a (2, 2) box of its own range."""

    observation_space = gymnasium.spaces.Dict({
        "count": gymnasium.spaces.Box(0, 100, (1,), np.int64),
        "inner": gymnasium.spaces.Tuple((gymnasium.spaces.Box(-1, 1, (2, 2), np.float64),))})
    action_space = gymnasium.spaces.Box(np.array([[0, 0], [-2, 10]], np.float32),
                                        np.array([[4, 1], [2, 20]], np.float32))

    def __init__(self, ends_at: int = 1000) -> None:
        self.ends_at, self.actions = ends_at, []

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return self._see(), {}

    def step(self, action):
        self.count += 1
        self.actions.append(action)
        return self._see(), 1.0, self.count == self.ends_at, False, {}

    def _see(self):
        return {"count": np.array([self.count]), "inner": (np.full((2, 2), 0.5),)}


gymnasium.register("RobotRlCounting-v0", entry_point=Counting, max_episode_steps=10, disable_env_checker=True,
                   order_enforce=False)


def episode(env: gymnasium.Env, seed: int, steps: int = 30) -> np.ndarray:
    """(T, O + 1) observations and rewards under actions that the seed draws."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)
    rows = [np.append(env.reset(seed=seed)[0], 0.0)]
    for action in actions:
        observation, reward, *_ = env.step(action)
        rows.append(np.append(observation, reward))
    return np.array(rows)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_determines_the_episode(task: str) -> None:
    env, other = suite.make(task, action_repeat=2), suite.make(task, action_repeat=2, seed=9)
    first = episode(env, 1)
    episode(env, 2)
    np.testing.assert_array_equal(episode(env, 1), first)
    np.testing.assert_array_equal(episode(other, 1), first)
    assert (episode(env, 2)[0] != first[0]).any()


def test_the_seed_of_make_is_that_of_the_first_reset() -> None:
    first = suite.make("dmc:cartpole-swingup", seed=3).reset()[0]
    np.testing.assert_array_equal(suite.make("dmc:cartpole-swingup").reset(seed=3)[0], first)
    env = suite.make("dmc:cartpole-swingup", seed=3)
    env.reset()
    assert (env.reset()[0] != first).any(), "later episodes differ"


@pytest.mark.parametrize("task", TASKS)
def test_spaces_are_what_training_expects(task: str) -> None:
    env = suite.make(task)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Box observation space m.*imum value is -?infinity")
        check_env(env, skip_render_check=True)
    low, high = env.action_space.low, env.action_space.high
    assert (low == -1).all()
    assert (high == 1).all()
    assert env.action_space.dtype == np.float32
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.float32
    assert observation.ndim == 1
    observation, reward, terminated, truncated, _ = env.step(high)
    assert observation.dtype == np.float32
    assert np.isfinite(observation).all()
    assert type(reward) is float
    assert type(terminated) is bool
    assert type(truncated) is bool


@pytest.mark.parametrize(("task", "repeat", "decisions", "rate"), [
    ("dmc:cartpole-swingup", 4, 250, 25.0), ("dmc:ball_in_cup-catch", 3, 334, 50.0 / 3),
    ("gym:Pendulum-v1", 8, 25, 2.5)])
def test_the_time_limit_truncates(task: str, repeat: int, decisions: int, rate: float) -> None:
    env = suite.make(task, action_repeat=repeat)
    assert env.max_steps == decisions
    assert env.rate_hz == pytest.approx(rate)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    for count in range(1, decisions + 1):
        _, _, terminated, truncated, _ = env.step(action)
        assert not terminated
        assert truncated == (count == decisions)


def test_discount_zero_terminates() -> None:
    env = suite._Dmc("cartpole-balance", None)
    env.reset(seed=0)
    env._env.task.get_termination = lambda physics: 0.0
    _, _, terminated, truncated, _ = env.step(np.zeros(1))
    assert terminated
    assert not truncated


def test_repeat_sums_rewards_and_stops_at_the_end() -> None:
    env = suite.make("gym:RobotRlCounting-v0", action_repeat=4)
    assert env.max_steps == 3
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [0, 0.5, 0.5, 0.5, 0.5]
    seen = [env.step(np.zeros(4, np.float32)) for _ in range(3)]
    assert [(int(o[0]), r, te, tr) for o, r, te, tr, _ in seen] == [
        (4, 4.0, False, False), (8, 4.0, False, False), (10, 2.0, False, True)]


def test_termination_of_a_repeated_step_is_kept() -> None:
    env = suite.Suite(Counting(ends_at=6), "counting", 4, None)
    env.reset(seed=0)
    env.step(np.zeros(4, np.float32))
    observation, reward, terminated, truncated, _ = env.step(np.zeros(4, np.float32))
    assert (observation[0], reward, terminated, truncated) == (6, 2.0, True, False)


def test_actions_span_the_range_of_the_suite() -> None:
    inner = Counting()
    env = suite.Suite(inner, "counting", 1, None)
    env.reset(seed=0)
    for action in ([-1, -1, -1, -1], [1, 1, 1, 1], [0, 0, 0, 0], [5, -5, 0.5, 0]):
        env.step(np.array(action, np.float32))
    expected = [[[0, 0], [-2, 10]], [[4, 1], [2, 20]], [[2, 0.5], [0, 15]], [[4, 0], [1, 15]]]
    np.testing.assert_allclose(inner.actions, expected)
    assert inner.actions[0].dtype == np.float32


@pytest.mark.parametrize(("task", "said"), [
    ("dmc:cheetah-runn", "dmc:cheetah-runn is unknown; did you mean cheetah-run"),
    ("dmc:xyz", "there are acrobot-swingup"),
    ("gym:Pendulim-v1", "gym:Pendulim-v1 is unknown; did you mean Pendulum-v1"),
    ("gym:CartPole-v1", "action space Discrete"),
    ("dmc:lqr-lqr_2_1", "only bounded boxes"),
    ("cheetah-run", "suites are dmc:<domain>-<task>, dmc-pixels:<domain>-<task> and gym:<id>"),
])
def test_names_and_spaces_that_cannot_be_used(task: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        suite.make(task)


def test_observations_that_are_no_boxes_are_refused() -> None:
    env = Counting()
    env.observation_space = gymnasium.spaces.Dict({"kind": gymnasium.spaces.Discrete(3)})
    with pytest.raises(SpecError, match="observation space"):
        suite.Suite(env, "counting", 1, None)
    with pytest.raises(SpecError, match="action_repeat=0"):
        suite.make("gym:Pendulum-v1", action_repeat=0)


def test_state_tasks_need_no_opengl() -> None:
    """Without MUJOCO_GL, no binding of OpenGL is loaded, nothing is said and the variable stays unset."""
    code = ("import os, sys\nfrom sim import suite\nenv = suite.make('dmc:cheetah-run')\n"
            "env.reset(seed=0); env.step(env.action_space.sample())\n"
            "print([m for m in sys.modules if m.split('.')[0] == 'OpenGL'], 'MUJOCO_GL' in os.environ)")
    env = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"
    assert done.stderr == ""


def test_pictures_of_suite_tasks() -> None:
    from sim.offscreen import RenderError
    env = suite.make("dmc:cartpole-swingup", render_mode="rgb_array")
    env.reset(seed=0)
    try:
        picture = env.render()
    except RenderError as error:
        pytest.skip(str(error))
    assert picture.shape == (240, 320, 3)
    assert picture.std() > 10
    env.close()
