"""The benchmark of collection, short."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from sim import collect_bench

gymnasium.register("RobotRlQuick-v0", entry_point="tests.sim.test_collect_bench:Quick", max_episode_steps=30,
                   disable_env_checker=True)


class Quick(gymnasium.Env):
    """Costs nothing."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(3), {}

    def step(self, action):
        return np.zeros(3), 0.0, False, False, {}


class Still:
    """Acts with zeros."""

    def act(self, obs, carry=None, explore=True):
        return np.zeros((len(obs), 2), np.float32), carry


class Steady:
    """Acts with zeros, of the cheetah."""

    def act(self, obs, carry=None, explore=True):
        return np.zeros((len(obs), 6), np.float32), carry


def test_every_figure_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_bench, "parallel", lambda task, processes, seconds, repetitions: [7.0] * repetitions)
    monkeypatch.setattr(collect_bench, "together", lambda task, agent, *numbers: [5.0] * numbers[-1])
    figures = collect_bench.bench("gym:RobotRlQuick-v0", Still(), seconds=0.01, repetitions=2, processes=3)
    rates = figures["steps_per_s"]
    assert list(rates) == ["bare", "random", "policy", "envs", "parallel"]
    assert figures["share"] == {name: rates[name] / rates["bare"] for name in ("random", "policy")}
    assert rates["parallel"] == 7.0 and rates["envs"] == 5.0 and figures["processes"] == 3
    assert all(len(turns) == 2 for turns in figures["repetitions"].values())


def test_dm_control_by_itself_and_in_a_process() -> None:
    collect_bench.bare("dmc:cheetah-run")()
    assert collect_bench.parallel("dmc:cheetah-run", 1, 0.01, 1)[0] > 0
    assert collect_bench.together("dmc:cheetah-run", Steady(), 1, 0.01, 1)[0] > 0
