"""Environment → replay, one step at a time, every episode under its own seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from robot_rl.evaluate import episode_seed
from robot_rl.observe import Observation, alone
from robot_rl.replay import Replay

if TYPE_CHECKING:
    import gymnasium

BLOCK = 256  # random actions drawn at a time


class Agent(Protocol):
    """The four verbs of a learner; everything that trains or acts here knows no more of it than this."""

    def act(self, obs: Observation, carry: Any = None, explore: bool = True) -> tuple[np.ndarray, Any]:
        """Observations (B, O) → actions (B, A), and the carry of the next call; None begins an episode."""

    def update(self, data: Any, offline: bool = False) -> dict[str, Any]:
        """Learn from `data.sample`; `offline` from prior data alone, before anything is collected."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""


class Greedy:
    """An agent without its exploration noise, one observation at a time: what evaluations run."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.reset()

    def reset(self) -> None:
        """An episode begins."""
        self._carry: Any = None

    def __call__(self, observation: Observation) -> np.ndarray:
        """Action (A,) in [-1, 1]."""
        actions, self._carry = self.agent.act(alone(observation), self._carry, explore=False)
        return actions[0]


@dataclass(frozen=True)
class EpisodeEnd:
    """A finished training episode."""

    episode_return: float
    length: int
    success: bool | None


class Collector:
    """Drives one environment with an agent and fills a replay.

    The action learned from is the one that was really sent (`info["action"]`). Because each episode is seeded by
    (seed, episode), a run that continues at an episode's start continues exactly.
    """

    def __init__(self, env: gymnasium.Env, agent: Agent, replay: Replay, seed: int, random_steps: int) -> None:
        self.env, self.agent, self.replay = env, agent, replay
        self.seed, self.random_steps = seed, random_steps
        self.steps = self.episodes = 0
        self._rng = np.random.default_rng([seed, 7])
        self._drawn: list[np.ndarray] = []  # random actions to come, the next one last: drawn together, 20 times faster
        self._observation: Observation | None = None
        self._carry: Any = None
        self._return, self._length = 0.0, 0

    def step(self) -> EpisodeEnd | None:
        """One environment step; returns the episode that it ended, if any."""
        observation = self._begin() if self._observation is None else self._observation
        action = self._random() if self.steps < self.random_steps else self._act(observation)
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = float(reward)
        carry = None if self._carry is None else self._carry[0]
        self.replay.step(info.get("action", action), reward, observation, terminated, truncated, carry)
        self.steps += 1
        self._return += reward
        self._length += 1
        if not (terminated or truncated):
            self._observation = observation
            return None
        self._observation = None
        self.episodes += 1
        return EpisodeEnd(self._return, self._length, info.get("success"))

    @property
    def at_start(self) -> bool:
        """Between two episodes, where a run can be continued exactly."""
        return self._observation is None

    def settle(self) -> None:
        """Nothing: one environment waits for no other (see `Parallel`)."""

    def state_dict(self) -> dict[str, Any]:
        """Counters and generator; only between episodes."""
        assert self.at_start
        return {"steps": self.steps, "episodes": self.episodes, "rng": self._rng.bit_generator.state,
                "drawn": np.array(self._drawn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.steps, self.episodes = state["steps"], state["episodes"]
        self._rng.bit_generator.state = state["rng"]
        self._drawn = list(state["drawn"])

    def _begin(self) -> Observation:
        observation, _ = self.env.reset(seed=episode_seed(self.seed, self.episodes))
        self._return, self._length, self._carry = 0.0, 0, None
        self.replay.begin(observation)
        return observation

    def _random(self) -> np.ndarray:
        if not self._drawn:
            shape = min(BLOCK, self.random_steps - self.steps), *(self.env.action_space.shape or ())
            self._drawn = list(self._rng.uniform(-1.0, 1.0, shape).astype(np.float32)[::-1])
        return self._drawn.pop()

    def _act(self, observation: Observation) -> np.ndarray:
        actions, self._carry = self.agent.act(alone(observation), self._carry, explore=True)
        return actions[0]
