"""Several environments at once: what they collect is right at every edge, the same each time, and continues exactly."""

from __future__ import annotations

import copy
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from robot_rl import parallel, session
from robot_rl.log import Log
from robot_rl.parallel import Parallel
from robot_rl.replay import Replay
from robot_rl.run import Run, RunConfig
from robot_rl.spec import SpecError
from robot_rl.train import Plan, Training
from sim.remote import RemoteEnv

SEEDS = 1_000


class Uneven(gymnasium.Env):
    """Observation (episode's seed, step); episodes of 3 to 9 steps by their seed, a third of which terminate."""

    def reset(self, *, seed=None, options=None):
        self.episode, self.count = seed % SEEDS, 0
        return np.array([self.episode, 0.0], np.float32), {}

    def step(self, action):
        self.count += 1
        last = self.count == length(self.episode)
        ends = last and self.episode % 3 == 0
        info = {"action": np.array([self.count / 100 + action[0]]), "success": ends}
        return np.array([self.episode, self.count], np.float32), float(self.episode + self.count), ends, last, info


def length(episode: int) -> int:
    return 3 + episode % 7


class Failing(Uneven):
    """Breaks in its second step."""

    def step(self, action):
        if self.count == 1:
            raise ValueError("the gripper fell off")
        return super().step(action)


class Here:
    """What a remote environment does, in this process."""

    def __init__(self) -> None:
        self.env, self.answers = Uneven(), deque[Any]()

    def reset(self, seed: int) -> None:
        self.answers.append(self.env.reset(seed=seed)[0])

    def step(self, action: np.ndarray) -> None:
        self.answers.append(self.env.step(action))

    def answer(self) -> Any:
        return self.answers.popleft()


class Checking:
    """Acts with what it carries, which must be the row's count, and checks every batch."""

    def __init__(self, rows: int) -> None:
        self.rows, self.learned, self.sampled = rows, 0, list[np.ndarray]()

    def act(self, obs: np.ndarray, carry: Any = None, explore: bool = True):
        if not explore:
            return np.zeros((1, 1), np.float32), None
        assert obs.shape == (self.rows, 2)
        carry = np.zeros((self.rows, 1), np.float32) if carry is None else carry
        going = obs[:, 1] < np.array([length(int(episode)) for episode in obs[:, 0]])
        np.testing.assert_array_equal(carry[going, 0], obs[going, 1])
        return np.zeros((self.rows, 1), np.float32), carry + 1

    def update(self, data: Any) -> dict[str, float]:
        batch = data.sample(16, n_step=2, discount=0.9)
        episode, step = batch["obs"].T
        self.sampled.append(batch["obs"])
        np.testing.assert_allclose(batch["action"][:, 0], (step + 1) / 100, rtol=1e-6)
        np.testing.assert_array_equal(batch["plan"][:, 0], step + 1)  # what it carried on
        np.testing.assert_array_equal(batch["next_obs"][:, 0], episode)
        count = batch["next_obs"][:, 1] - step
        reward = episode + step + 1 + np.where(count == 2, 0.9 * (episode + step + 2), 0.0)
        np.testing.assert_allclose(batch["reward"], reward, rtol=1e-6)
        ended = (episode % 3 == 0) & (batch["next_obs"][:, 1] == 3 + episode % 7)
        np.testing.assert_allclose(batch["discount"], np.where(ended, 0.0, 0.9**count), rtol=1e-6)
        self.learned += 1
        return {}

    def state_dict(self):
        return {"learned": self.learned}

    def load_state_dict(self, state):
        self.learned = state["learned"]


def training(folder: Path, envs: list[Any], steps: int = 150, save: Any = lambda state: None, capacity: int = 90
             ) -> Training:
    agent = Checking(len(envs))
    collector = Parallel(envs, 1, agent, Replay(capacity, 2, 1, seed=2, plan_size=1), seed=3, random_steps=0)
    plan = Plan(steps, learn_after=30, evaluate_every=0, evaluation_episodes=1, checkpoint_every=40, log_every=50)
    return Training(collector, agent, Uneven(), plan, Log(folder), save)


@pytest.mark.parametrize(("piece", "capacity"), [(2, 90), (2, 1_000), (100, 1_000)])
def test_every_batch_is_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, capacity: int
                                      ) -> None:
    monkeypatch.setattr(parallel, "PIECE", piece)
    run = training(tmp_path, [Here() for _ in range(3)], capacity=capacity)
    figures = run.run()
    assert figures["steps"] >= 150 and run.collector.at_start
    assert run.agent.learned == figures["steps"] - 29, "as many updates a step as with one environment"
    if capacity > figures["steps"]:
        assert len(run.collector.replay) == figures["steps"], "nothing is left behind in an environment"


def test_a_run_that_continues_is_one_that_never_stopped(tmp_path: Path) -> None:
    saved: list[dict[str, Any]] = []
    whole = training(tmp_path / "whole", [Here() for _ in range(3)],
                     save=lambda state: saved.append(copy.deepcopy(state)))
    whole.run()
    assert len(saved) >= 3
    again = training(tmp_path / "again", [Here() for _ in range(3)])
    again.load_state_dict(saved[0])
    again.run()
    assert again.collector.steps == whole.collector.steps
    rest = whole.agent.sampled[saved[0]["agent"]["learned"]:]
    assert len(rest) > 20
    np.testing.assert_array_equal(again.agent.sampled, rest)


def test_processes_give_what_one_process_gives_and_say_what_went_wrong(tmp_path: Path) -> None:
    remote = [RemoteEnv(Uneven) for _ in range(2)]
    broken = RemoteEnv(Failing)
    try:
        far, near = training(tmp_path / "far", remote, 60), training(tmp_path / "near", [Here(), Here()], 60)
        for run in (far, near):
            run.run()
        np.testing.assert_array_equal(far.agent.sampled, near.agent.sampled)
        broken.reset(1)
        broken.answer()
        for _ in range(2):
            broken.step(np.zeros(1))
        broken.answer()
        with pytest.raises(RuntimeError, match="ValueError: the gripper fell off"):
            broken.answer()
        with pytest.raises(RuntimeError, match="ended with status 0"):
            broken.answer()
    finally:
        for one in (*remote, broken):
            one.close()


def test_no_environment_at_all_is_refused(tmp_path: Path) -> None:
    config = RunConfig(task="furuta-swingup", recipe="sac", steps=10, learn_after=1, evaluate_every=10,
                       evaluation_episodes=1, checkpoint_every=10, envs=0)
    with pytest.raises(SpecError, match="--envs 0: there is at least 1 environment"):
        session.train(Run(tmp_path / "run"), config, "cpu", 1, resume=False)
    assert not (tmp_path / "run").exists()
