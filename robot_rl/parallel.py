"""Several environments at once → one replay: they act on one batch and step in processes of their own.

The learner goes on while they step: an environment's step is asked for when the round's actions are known and taken
when its turn comes, one environment step at a time, so the updates to a step are as many as with one environment. What
is taken, and in which order, does not depend on how fast the processes are. Axes: N environments, O observation,
A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from robot_rl.collect import Agent, EpisodeEnd
from robot_rl.evaluate import episode_seed
from robot_rl.observe import Observation
from robot_rl.replay import Replay

PIECE = 100  # steps of an episode that come to the replay together


class Remote(Protocol):
    """An environment elsewhere: what is asked for is answered in its order."""

    def reset(self, seed: int) -> None:
        """Ask for an episode's first observation."""

    def step(self, action: np.ndarray) -> None:
        """Ask for a step."""

    def answer(self) -> Any:
        """The observation of a reset, or (observation, reward, terminated, truncated, info) of a step."""


class _Lane:
    """The episode of one environment, and what of it the replay does not have yet."""

    def __init__(self) -> None:
        self.observation: Observation | None = None
        self.total, self.length = 0.0, 0
        self._first: Observation | None = None
        self._steps: list[tuple[np.ndarray, float, Observation, bool, np.ndarray | None]] = []

    def begin(self, observation: Observation) -> None:
        """An episode begins."""
        self.observation = self._first = observation
        self.total, self.length = 0.0, 0

    def take(self, action: np.ndarray, reward: float, observation: Observation, terminated: bool, ends: bool,
             carry: np.ndarray | None, replay: Replay) -> None:
        """A step; it goes to the replay with the others of its piece, an unbroken run of steps.

        An episode that is seen comes as a whole, since a piece's first frame has no older ones beside it.
        """
        self._steps.append((action, reward, observation, terminated, carry))
        self.total, self.length = self.total + reward, self.length + 1
        self.observation = None if ends else observation
        if not ends and (len(self._steps) < PIECE or isinstance(observation, dict)):
            return
        assert self._first is not None
        replay.begin(self._first)
        for number, (action, reward, observation, terminated, carry) in enumerate(self._steps, 1):
            replay.step(action, reward, observation, terminated, number == len(self._steps) and not terminated, carry)
        self._first, self._steps = observation, []


class Parallel:
    """As `Collector`, with N environments, of which the one whose turn it is takes a step.

    Episode k is the k-th to begin, under the seed (seed, k). A run can be continued exactly where all are between two
    episodes, which `settle` brings about: those that end their episode wait for the others.
    """

    def __init__(self, envs: Sequence[Remote], action_size: int, agent: Agent, replay: Replay, seed: int,
                 random_steps: int) -> None:
        self.envs, self.agent, self.replay = envs, agent, replay
        self.seed, self.random_steps = seed, random_steps
        self.steps = self.episodes = 0
        self._rng = np.random.default_rng([seed, 7])
        self._shape = len(envs), action_size
        self._lanes = [_Lane() for _ in envs]
        self._seen: list[Observation] = []  # newest of each; of one that waits, its last
        self._turns: list[int] = []  # environments whose step was asked for, in the order of their answers
        self._carry: Any = None
        self._settling = False

    def step(self) -> EpisodeEnd | None:
        """One environment step; returns the episode that it ended, if any."""
        if not self._turns:
            self._ask()
        turn = self._turns.pop(0)
        lane = self._lanes[turn]
        observation, reward, terminated, truncated, info = self.envs[turn].answer()
        ends = terminated or truncated
        action = info["action"] if "action" in info else self._actions[turn]
        carry = None if self._carry is None else self._carry[turn]
        lane.take(action, float(reward), observation, terminated, ends, carry, self.replay)
        self._seen[turn] = observation
        self.steps += 1
        return EpisodeEnd(lane.total, lane.length, info.get("success")) if ends else None

    @property
    def at_start(self) -> bool:
        """Between the episodes of all."""
        return all(lane.observation is None for lane in self._lanes) and not self._turns

    def settle(self) -> None:
        """Begin no episode until all are between two."""
        self._settling = True

    def state_dict(self) -> dict[str, Any]:
        """Counters and generator; only where all are between two episodes."""
        assert self.at_start
        return {"steps": self.steps, "episodes": self.episodes, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.steps, self.episodes = state["steps"], state["episodes"]
        self._rng.bit_generator.state = state["rng"]

    def _ask(self) -> None:
        """A round: begin what is to begin, choose all actions at once, have them taken."""
        if self.at_start:
            self._settling = False
        if not self._settling:
            self._begin([turn for turn, lane in enumerate(self._lanes) if lane.observation is None])
        self._actions = self._random() if self.steps < self.random_steps else self._act()
        self._turns = [turn for turn, lane in enumerate(self._lanes) if lane.observation is not None]
        for turn in self._turns:
            self.envs[turn].step(self._actions[turn])

    def _begin(self, turns: list[int]) -> None:
        for turn in turns:
            self.envs[turn].reset(episode_seed(self.seed, self.episodes))
            self.episodes += 1
        first = {turn: self.envs[turn].answer() for turn in turns}
        for turn, observation in first.items():
            self._lanes[turn].begin(observation)
        if len(first) == len(self._lanes):
            self._seen, self._carry = list(first.values()), None
            return
        for turn, observation in first.items():
            self._seen[turn] = observation
            if self._carry is not None:
                self._carry[turn] = 0.0

    def _random(self) -> np.ndarray:
        return self._rng.uniform(-1.0, 1.0, self._shape).astype(np.float32)

    def _act(self) -> np.ndarray:
        """(N, A); those that wait are asked too: an exploring noise is held row by row."""
        batch: Observation
        if isinstance(self._seen[0], dict):
            batch = {key: np.stack([one[key] for one in self._seen]) for key in self._seen[0]}  # type: ignore[index]
        else:
            batch = np.stack(self._seen)  # type: ignore[arg-type]
        actions, carry = self.agent.act(batch, self._carry, explore=True)
        self._carry = None if carry is None else np.array(carry)
        return actions
