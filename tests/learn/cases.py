"""What the learners' tests share: small agents, random data, and a task that needs no simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robot_rl.collect import Greedy
from robot_rl.learn import recipes
from robot_rl.learn.actors import Policy
from robot_rl.learn.agent import Agent
from robot_rl.learn.planner import Planner
from robot_rl.replay import Mixture, Replay

OBS, ACTION = 3, 2


SMALL: dict[str, Any] = {
    "hidden": (32, 32), "critic_hidden": (32, 32), "width": 32, "target_period": 5, "quantiles": 7, "batch": 64,
    "updates_per_step": 2, "actor_period": 2, "encoder_hidden": (32,), "samples": 24, "proposals": 4, "elites": 6,
    "iterations": 2, "groups": 4, "classes": 4, "imagined": 3, "compile": False, "replan_rows": 8,
}


def small(recipe: str, frames: tuple[int, int, int] | None = None, **configuration: Any) -> Agent:
    """An agent that learns quickly, uncompiled unless asked otherwise."""
    known = recipes.options(recipe)
    sizes = {name: value for name, value in SMALL.items() if name in known}
    sizes |= {"horizon": 5} if "imagined" in known else {}
    sizes |= {"iterations": 1} if recipe == "modem_v2" else {}  # it takes no other
    return recipes.make(recipe, OBS, ACTION, frames, **sizes | configuration)


def first_action(policy: Policy, obs: Tensor, noise: Tensor | None = None) -> Tensor:
    """What `policy` does at an episode's start, (B, A), without noise unless it is given."""
    noise = torch.zeros(len(obs), policy.noise_size) if noise is None else noise
    carry = torch.zeros(len(obs), *policy.carry) if policy.carry else None
    executed = policy(obs, noise, carry=carry)
    action: Tensor = executed[0] if policy.carry else executed
    return action


def flat(net: nn.Module) -> Tensor:
    """The parameters of a network, a copy: all numbers in the order of its layers."""
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def fill(net: nn.Module, numbers: Sequence[float] | Tensor) -> None:
    """Set the parameters of a network to as many numbers, in the order of `flat`."""
    parts = list(net.parameters())
    for part, values in zip(parts, torch.as_tensor(numbers).split([part.numel() for part in parts]), strict=True):
        part.data.copy_(values.view(part.shape))


def gradient_of(loss: Tensor, net: nn.Module) -> Tensor:
    """The gradient of `loss` by the parameters of a network, in the order of `flat`."""
    return nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(net.parameters())))


def stored_draws(patch: pytest.MonkeyPatch) -> None:
    """Planners that are made already try the candidates that they store, as in a file, while training explores too."""
    patch.setattr(Planner, "draw", lambda self, chance: self.stored)


def random_replay(steps: int = 500, seed: int = 0, obs_size: int = OBS, action_size: int = ACTION,
                  prioritized: float = 0.0) -> Replay:
    """Transitions between random observations; every tenth ends its episode, half of those in truncation.

    Two in three have a plan beside them.
    """
    random, planned = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    replay = Replay(10_000, obs_size, action_size, seed, prioritized, 2 * action_size)
    replay.begin(random.normal(size=obs_size))
    for step in range(steps):
        ends = step % 10 == 9
        terminated = ends and step % 20 == 19
        action = random.uniform(-1, 1, action_size)
        plan = np.stack((planned.uniform(-1, 1, action_size), planned.uniform(0.2, 1, action_size)))
        replay.step(action, float(random.normal()), random.normal(size=obs_size), terminated, ends and not terminated,
                    plan if step % 3 else None)
        if ends:
            replay.begin(random.normal(size=obs_size))
    return replay


class Corridor:
    """A point in [-1, 1] m that moves by its action times 0.1 m a step, until it is within 0.1 m of the mark at 0.5 m.

    Every step costs 1, reaching the mark terminates, 30 steps truncate. So a policy is good only if it learned, through
    bootstrapping, how far away the end of the costs is. Observations (2,): position and a constant, as contracts have.
    """

    steps, mark, obs_size, action_size = 30, 0.5, 2, 1

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)

    def reset(self, position: float | None = None) -> np.ndarray:
        """Start at `position`, or anywhere outside the mark."""
        self.time = 0
        self.position = self.mark
        while abs(self.position - self.mark) < 0.1:
            self.position = float(self.random.uniform(-1, 1)) if position is None else position
        return self.observe()

    def observe(self) -> np.ndarray:
        return np.array([self.position, 1.0], np.float32)

    def step(self, action: float) -> tuple[np.ndarray, float, bool, bool]:
        """Returns the observation, the reward, terminated and truncated."""
        self.position = float(np.clip(self.position + 0.1 * action, -1, 1))
        self.time += 1
        reached = abs(self.position - self.mark) < 0.1
        return self.observe(), -1.0, reached, not reached and self.time >= self.steps


def train(agent: Agent, steps: int, seed: int = 0, prior: Replay | None = None) -> None:
    """The plain loop: 100 random steps, then one step and one `update` in turn."""
    task, random = Corridor(seed), np.random.default_rng(seed)
    plan = agent.execution.plan_size
    replay = Replay(steps + steps // 2 + 2, task.obs_size, task.action_size, seed, plan_size=plan)
    data = replay if prior is None else Mixture(prior, replay, 0.5)
    obs, carry = task.reset(), None
    replay.begin(obs)
    for step in range(steps):
        if step < 100:
            action = random.uniform(-1, 1, 1)
        else:
            actions, carry = agent.act(obs[None], carry)
            action = actions[0]
        obs, reward, terminated, truncated = task.step(float(action[0]))
        replay.step(action, reward, obs, terminated, truncated, carry)
        if terminated or truncated:
            obs, carry = task.reset(), None
            replay.begin(obs)
        if step >= 100:
            agent.update(data)


def mean_cost(agent: Agent) -> float:
    """Steps to the mark without noise, on average over starts along the corridor; at best 5.5, at worst 30."""
    task, act = Corridor(0), Greedy(agent)
    starts, total = [x for x in np.linspace(-1, 1, 21) if abs(x - task.mark) > 0.1], 0.0
    for start in starts:
        obs, ended = task.reset(float(start)), False
        act.reset()
        while not ended:
            obs, reward, terminated, truncated = task.step(float(act(obs)[0]))
            total, ended = total - reward, terminated or truncated
    return total / len(starts)
