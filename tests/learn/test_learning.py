"""Every recipe learns a task whose costs end far ahead, and would not if target, entropy or discount were broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from robot_rl.learn import agent as agent_module
from robot_rl.learn import recipes, world
from robot_rl.learn.agent import Agent
from robot_rl.learn.backups import Tensors
from robot_rl.learn.latents import Sync
from robot_rl.learn.objectives import Temperature
from robot_rl.replay import Batch, Replay
from tests.learn.cases import Corridor, mean_cost, train

GOOD, STEPS = 9.0, 500


# an actor as quick as its model settles on the side that most starts are on before the other is known, and a high price
# of entropy drives its spread to where it is stuck
DREAMS: dict[str, Any] = {"groups": 16, "classes": 4, "horizon": 3, "imagined": 5, "batch": 32, "actor_pace": 0.05,
                          "entropy": 0.003, "updates_per_step": 1, "categories": 101, "bound": 10.0, "lr": 5e-3,
                          "tau": 0.1, "slowly": 0.3, "critic_pace": 1.0, "seen_price": 10.0}


def learner(recipe: str, seed: int, **chosen: Any) -> Agent:
    configuration: dict[str, Any] = {
        "hidden": (32, 32), "critic_hidden": (32, 32), "width": 32, "quantiles": 9, "drop": 1, "batch": 64, "lr": 3e-3,
        "model_lr": 3e-3, "tau": 0.05, "target_period": 50, "discount": 0.9, "temperature": 0.1, "explore": 0.3,
        "updates_per_step": 2, "actor_period": 2, "encoder_hidden": (32,), "samples": 32, "proposals": 8, "elites": 6,
        "iterations": 2, "replan_rows": 16,
    }
    if recipe == "tqc":
        configuration["critics"] = 2
    if recipe == "modem_v2":
        configuration |= {"iterations": 1, "handover_from": 0, "handover_to": 200}
    if recipe in ("mrq", "tcrl"):
        configuration["price"] = 0.01  # else most seeds' actors stay where tanh is flat
    if recipe == "default":
        configuration["anneal"] = 1_000  # else actions are held to the end, and a machine's rounding decides
    if recipe == "drq":
        configuration |= {"lr": 1e-3, "explore": 0.5}  # else half of the seeds' actors stay where tanh is flat
    if recipe == "cqn_as":
        configuration["categories"] = 0
    if recipe == "dreamer_tiny":
        configuration |= DREAMS
    known = recipes.options(recipe)
    chosen = {name: value for name, value in configuration.items() if name in known} | chosen
    return recipes.make(recipe, Corridor.obs_size, Corridor.action_size, seed=seed, compile=False, **chosen)


# models that learn before the critics do; categories that are sorted out first; targets that run ahead
SLOW = ("mrq", "mrq_small", "default", "crossq", "tdmpc2", "tdmpc2_small", "bmpc", "fowm", "tcrl", "dreamer_tiny")
QUICK = ("sac", "rlpd", "mrq", "default")


def steps(recipe: str) -> int:
    """Which every seed tried learns in, not the luckiest."""
    return STEPS * (3 if recipe == "dreamer_tiny" else 2 if recipe in SLOW else 1)


@pytest.mark.parametrize(
    "recipe", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in recipes.RECIPES
               if name not in ("dreamer", "modem", "modem_v2")])  # that is dreamer_tiny, these go by demonstrations
def test_learns_the_corridor(recipe: str) -> None:
    agent = learner(recipe, seed=0)
    train(agent, steps(recipe))
    assert mean_cost(agent) < GOOD


@pytest.mark.slow
def test_an_actor_that_imitates_its_planner_learns_the_corridor_too() -> None:
    agent = learner("bmpc", seed=0)
    train(agent, 2 * STEPS)
    agent.execution, agent._mirror = agent.execution.bare, None
    assert mean_cost(agent) < GOOD


def demonstrations(episodes: int = 20) -> Replay:
    """Of somebody who walks towards the mark at half of the speed, and not steadily."""
    task, random, replay = Corridor(3), np.random.default_rng(3), Replay(2_000, Corridor.obs_size, Corridor.action_size)
    for _ in range(episodes):
        replay.begin(task.reset())
        ended = False
        while not ended:
            action = np.clip([0.5 * np.sign(task.mark - task.position) + 0.3 * random.normal()], -1, 1)
            obs, reward, terminated, truncated = task.step(float(action[0]))
            replay.step(action, reward, obs, terminated, truncated)
            ended = terminated or truncated
    return replay


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["modem", "modem_v2"])
def test_what_plans_with_a_clone_becomes_better_than_the_clone(recipe: str) -> None:
    agent, prior = learner(recipe, seed=0), demonstrations()
    for _ in range(100):
        agent.update(prior, offline=True)
    cloned = mean_cost(agent)
    train(agent, 2 * STEPS, prior=prior)
    assert mean_cost(agent) < GOOD < cloned < 20


def no_target(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(agent_module, "follow", lambda target, source, tau: None)
    patch.setattr(Sync, "__call__", lambda self, data: None)


def entropy_upside_down(patch: pytest.MonkeyPatch) -> None:
    right = Temperature.loss
    patch.setattr(Temperature, "loss", lambda self, log_density: -right(self, log_density))


def changed_discount(patch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray]) -> None:
    right = Replay.sample

    def sample(self: Replay, batch: int, horizon: int = 1, n_step: int = 1, discount: float = 0.99) -> Batch:
        sampled = right(self, batch, horizon, n_step, discount)
        return sampled | {"discount": change(sampled["discount"])}

    patch.setattr(Replay, "sample", sample)


def beyond_the_end(patch: pytest.MonkeyPatch) -> None:
    changed_discount(patch, lambda discount: np.full_like(discount, discount.max()))


def short_sighted(patch: pytest.MonkeyPatch) -> None:
    changed_discount(patch, np.zeros_like)


@pytest.mark.parametrize("recipe, broken", [
    pytest.param(recipe, broken, marks=[] if recipe == "sac" else pytest.mark.slow)
    for recipe in ("sac", "rlpd", "default", "mrq", "cqn")
    for broken in (no_target, beyond_the_end, short_sighted, entropy_upside_down)
    if broken is not entropy_upside_down or recipe not in ("mrq", "cqn")])  # which have none
def test_a_broken_learner_does_not(recipe: str, broken: Callable[[pytest.MonkeyPatch], None],
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    agent = learner(recipe, seed=0)
    train(agent, steps(recipe))
    assert mean_cost(agent) > GOOD


def another_rows_future(patch: pytest.MonkeyPatch) -> None:
    """The model is to be true to what followed elsewhere."""
    right = world.foretold

    def foretold(model: world.World, latents: Tensor, following: Tensor, batch: Tensors, weights: world.Weights
                 ) -> dict[str, Tensor]:
        return right(model, latents, following.roll(1, 0), batch, weights)

    patch.setattr(world, "foretold", foretold)


TRUE_MODEL = {"consistency": 200.0}
"""At the usual price the reward and the values alone make latents that are good enough for a corridor."""


@pytest.mark.slow
def test_a_world_model_that_is_true_above_all_learns_the_corridor() -> None:
    agent = learner("tdmpc2", seed=0, **TRUE_MODEL)
    train(agent, 2 * STEPS)
    assert mean_cost(agent) < GOOD


@pytest.mark.slow
@pytest.mark.parametrize("broken, chosen", [(no_target, {}), (beyond_the_end, {}), (short_sighted, {}),
                                            (another_rows_future, TRUE_MODEL)])
def test_a_broken_world_model_does_not(broken: Callable[[pytest.MonkeyPatch], None], chosen: dict[str, Any],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    agent = learner("tdmpc2", seed=0, **chosen)
    train(agent, 2 * STEPS)
    assert mean_cost(agent) > GOOD


@pytest.mark.slow
def test_a_short_sighted_dreamer_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    short_sighted(monkeypatch)
    agent = learner("dreamer_tiny", seed=0)
    train(agent, steps("dreamer_tiny"))
    assert mean_cost(agent) > GOOD
