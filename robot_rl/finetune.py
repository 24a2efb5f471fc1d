"""Learn from what a robot logged: prior bags fill half of each batch, new episodes the other half.

Running on the robot and learning alternate: an episode by the exported policy with its exploration noise, its bag read
back through the contract, some updates, a new export swapped into the running policy process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from robot_rl.bag import BagError, below
from robot_rl.collect import Agent
from robot_rl.episode import Outcome
from robot_rl.evaluate import in_short, summary
from robot_rl.finite import Watched, demand_finite
from robot_rl.log import Log, progress
from robot_rl.replay import Mixture, Replay
from robot_rl.spec import PolicySpec, SpecError
from robot_rl.steplog import EpisodeLog, read_episode


class Robot(Protocol):
    """A running policy process on a robot."""

    def run_episode(self) -> tuple[dict[str, Any], Path]:
        """One exploring episode: its result and its bag."""

    def reload(self) -> None:
        """Take the newly exported policy."""


@dataclass
class Finetuning:
    """A fine-tuning run in progress."""

    agent: Agent
    prior: Replay
    online: Replay
    robot: Robot
    export: Callable[[], None]
    save: Callable[[dict[str, Any]], None]
    log: Log
    ratio: float = 0.5
    repeats: int = 2
    """How many times the recipe's own update budget each robot step is worth."""
    warm_updates: int = 0
    """Offline updates: calls of `update` on the prior bags alone, before the robot moves."""
    hindsight: int = 0
    """Other goals, ones that it came by, by which each episode is learned from too."""
    seed: int = 0
    """Draws those goals."""
    learn_after: int = 0
    """Robot steps before the first other update; the updates that they are worth follow at once."""
    episodes: int = 0
    robot_s: float = 0.0
    transitions: int = 0
    owed: int = 0
    """Robot steps that nothing was learned after yet."""

    def run(self, episodes: int, seconds: float) -> dict[str, Any]:
        """Alternate until so many episodes are done or so much robot time (s) is used up.

        Raises NotFinite before weights or metrics that are not finite reach the robot or a checkpoint.
        """
        data = Watched(Mixture(self.prior, self.online, self.ratio if len(self.prior) else 0.0))
        metrics: dict[str, Any] = {}
        if self.episodes == 0 and self.warm_updates and len(self.prior):
            for _ in progress("learn from the bags", unit="update", items=range(self.warm_updates)):
                metrics = self.agent.update(data, offline=True)
            self._demand_finite(data, metrics)
            self.export()
            self.robot.reload()
        returns, successes, peaks, events = [], [], [], 0
        bar = progress("fine-tune", episodes, "episode", self.episodes)
        while self.episodes < episodes and self.robot_s < seconds:
            result, bag = self.robot.run_episode()
            log = read_episode(bag)
            steps = add_episode(self.online, log, None, self.other_goals(log))
            self.transitions, self.owed = self.transitions + steps, self.owed + steps
            if self.transitions >= self.learn_after:
                for _ in range(self.owed * self.repeats):
                    metrics = self.agent.update(data)
                self.owed = 0
            self._demand_finite(data, metrics)
            self.episodes, self.robot_s = self.episodes + 1, self.robot_s + result["robot_s"]
            returns.append(result["episode_return"])
            successes.append(result["success"])
            peaks.append(result["peak_effort"])
            events += result["safety_events"]
            self._note(result, metrics)
            self.export()  # after what was learned is kept, and says of how many episodes
            self.robot.reload()
            bar.set_postfix_str(f"last 10: {in_short(returns[-10:], successes[-10:])}, "
                                f"{self.robot_s / 60:.1f} robot minutes")
            bar.update()
        bar.close()
        return summary(returns, successes) | {
            "robot_minutes": self.robot_s / 60, "transitions": self.transitions, "safety_events": events,
            "peak_effort": max((peak for peak in peaks if peak is not None), default=None)}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue between two episodes."""
        return {"agent": self.agent.state_dict(), "prior": self.prior.state_dict(),
                "online": self.online.state_dict(), "episodes": self.episodes, "robot_s": self.robot_s,
                "transitions": self.transitions, "owed": self.owed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.agent.load_state_dict(state["agent"])
        self.prior.load_state_dict(state["prior"])
        self.online.load_state_dict(state["online"])
        self.episodes, self.robot_s = state["episodes"], state["robot_s"]
        self.transitions, self.owed = state["transitions"], state["owed"]

    def other_goals(self, log: EpisodeLog, spec: PolicySpec | None = None) -> np.ndarray:
        """(G, 3) goals by which a bag is learned from too; always the same ones for the same episode."""
        return hindsight(log, self.hindsight, np.random.default_rng([self.seed, log.start.get("episode", 0)]), spec)

    def load(self, bags: Iterable[Path], contract: PolicySpec) -> tuple[int, list[str]]:
        """Fill the prior from bags of the same robot and task: (transitions, what was left out and why)."""
        return fill(self.prior, bags, contract, self.other_goals)

    def _demand_finite(self, data: Watched, metrics: dict[str, Any]) -> None:
        state = {"train": metrics, "agent": self.agent.state_dict()}
        demand_finite(state, f"after episode {self.episodes}", data.newest)

    def _note(self, result: dict[str, Any], metrics: dict[str, Any]) -> None:
        self.save(self.state_dict())
        line = {f"train/{k}": float(v) for k, v in metrics.items()}
        line |= {"robot/return": result["episode_return"], "robot/length": result["steps"],
                 "robot/minutes": self.robot_s / 60, "robot/safety_events": result["safety_events"]}
        line |= {f"robot/{name}": float(result[name]) for name in ("success", "peak_effort")
                 if result[name] is not None}
        self.log.write(self.episodes, line)


def fill(replay: Replay, bags: Iterable[Path], contract: PolicySpec,
         others: Callable[[EpisodeLog, PolicySpec], Iterable[np.ndarray]] = lambda log, spec: ()
         ) -> tuple[int, list[str]]:
    """Put bags of the contract's robot, read by the contract, into a replay: (transitions, what was left out and why).

    `others` gives the goals (3,), in m, by which an episode is judged once more each; those are not counted.
    """
    steps, refused = 0, []
    for bag in bags:
        try:
            log = read_episode(bag)
            spec = _matching(contract, log)
            steps += add_episode(replay, log, spec, others(log, spec))
        except (SpecError, BagError) as error:
            refused.append(str(error))
    return steps, refused


def add_episode(replay: Replay, log: EpisodeLog, spec: PolicySpec | None = None, others: Iterable[np.ndarray] = ()
                ) -> int:
    """Put one recorded episode into a replay, from its raw messages; returns how many transitions it gave.

    A step whose outcome was not seen (a sensor failed, the recording broke off) gives none. `others`, goals (3,) in m,
    judge the episode once more each; their transitions are not counted.
    """
    steps = _add(replay, log.replayed(spec))
    for goal in others:
        _add(replay, log.replayed(spec, goal))
    return steps


def _add(replay: Replay, replayed: Iterable[tuple[Outcome, np.ndarray | None]]) -> int:
    action, steps = None, 0
    for outcome, taken in replayed:
        if not outcome.valid:
            break
        seen: Any = outcome.observation  # of the kind that the replay was made for
        if action is None:
            replay.begin(seen)
        else:
            replay.step(action, outcome.reward, seen, outcome.terminated, outcome.truncated)
            steps += 1
        action = taken
        if action is None:
            break
    return steps


def hindsight(log: EpisodeLog, count: int, generator: np.random.Generator, spec: PolicySpec | None = None
              ) -> np.ndarray:
    """`count` goals, (count, 3) in m, that the episode came by, drawn evenly from its steps; (0, 3) without goals.

    What an arm did on the way to one goal is as true of another (Andrychowicz et al. 2017, Hindsight Experience
    Replay), and the contract gives observation, reward and success for any.
    """
    reached = log.reached(spec)
    return reached[generator.integers(len(reached), size=count)] if len(reached) else reached


def bags_in(folder: Path) -> list[Path]:
    """The bags below a folder, by name. Raises SpecError when there is none."""
    bags = below(folder)
    if not bags:
        raise SpecError(f"{folder}: holds no bag (no .mcap file below it)")
    return bags


def _matching(contract: PolicySpec, log: EpisodeLog) -> PolicySpec:
    assert log.spec.robot is not None
    if log.spec.rate_hz != contract.rate_hz:
        raise SpecError(f"{log.folder}: recorded at {log.spec.rate_hz} Hz, the run decides at {contract.rate_hz} Hz")
    merged = contract.on(log.spec.robot, f"the run's contract and {log.folder}")
    return msgspec.structs.replace(merged, robot=log.spec.robot)
