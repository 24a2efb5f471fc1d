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

from robot_rl.bag import BagError
from robot_rl.collect import Agent
from robot_rl.evaluate import summary
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
    """Calls of `update` on the prior bags alone, before the robot moves."""
    episodes: int = 0
    robot_s: float = 0.0

    def run(self, episodes: int, seconds: float) -> dict[str, Any]:
        """Alternate until so many episodes are done or so much robot time (s) is used up."""
        data = Mixture(self.prior, self.online, self.ratio)
        if self.episodes == 0 and self.warm_updates:
            for _ in progress("learn from the bags", unit="update", items=range(self.warm_updates)):
                self.agent.update(data)
            self.export()
            self.robot.reload()
        returns, successes = [], []
        bar = progress("fine-tune", episodes, "episode", self.episodes)
        while self.episodes < episodes and self.robot_s < seconds:
            result, bag = self.robot.run_episode()
            steps = add_episode(self.online, read_episode(bag))
            metrics: dict[str, Any] = {}
            for _ in range(steps * self.repeats):
                metrics = self.agent.update(data)
            self.export()
            self.robot.reload()
            self.episodes, self.robot_s = self.episodes + 1, self.robot_s + result["robot_s"]
            returns.append(result["episode_return"])
            successes.append(result["success"])
            self._note(result, metrics)
            bar.set_postfix_str(f"success of the last 10 {np.mean(successes[-10:]):.0%}, "
                                f"{self.robot_s / 60:.1f} robot minutes")
            bar.update()
        bar.close()
        return summary(returns, successes) | {"robot_minutes": self.robot_s / 60, "transitions": len(self.online)}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue between two episodes."""
        return {"agent": self.agent.state_dict(), "prior": self.prior.state_dict(),
                "online": self.online.state_dict(), "episodes": self.episodes, "robot_s": self.robot_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.agent.load_state_dict(state["agent"])
        self.prior.load_state_dict(state["prior"])
        self.online.load_state_dict(state["online"])
        self.episodes, self.robot_s = state["episodes"], state["robot_s"]

    def _note(self, result: dict[str, Any], metrics: dict[str, Any]) -> None:
        self.save(self.state_dict())
        line = {f"train/{k}": float(v) for k, v in metrics.items()}
        line |= {"robot/return": result["episode_return"], "robot/success": float(result["success"]),
                 "robot/length": result["steps"], "robot/minutes": self.robot_s / 60}
        self.log.write(self.episodes, line)


def add_episode(replay: Replay, log: EpisodeLog, spec: PolicySpec | None = None) -> int:
    """Put one recorded episode into a replay, from its raw messages; returns how many transitions it gave.

    A step whose outcome was not seen (a sensor failed, the recording broke off) gives none.
    """
    action, steps = None, 0
    for outcome, taken in log.replayed(spec):
        if not outcome.valid:
            break
        if action is None:
            replay.begin(outcome.observation)
        else:
            replay.step(action, outcome.reward, outcome.observation, outcome.terminated, outcome.truncated)
            steps += 1
        action = taken
        if action is None:
            break
    return steps


def bags_in(folder: Path) -> list[Path]:
    """The bags below a folder, in the order of their names. Raises SpecError when there is none."""
    bags = sorted({path.parent for path in folder.rglob("*.mcap")})
    if not bags:
        raise SpecError(f"{folder}: holds no bag (no .mcap file below it)")
    return bags


def load_bags(replay: Replay, bags: Iterable[Path], contract: PolicySpec) -> tuple[int, list[str]]:
    """Fill a replay from bags of the same robot and task: (transitions, what was left out and why)."""
    steps, refused = 0, []
    for bag in bags:
        try:
            log = read_episode(bag)
            spec = _matching(contract, log)
            steps += add_episode(replay, log, spec)
        except (SpecError, BagError) as error:
            refused.append(str(error))
    return steps, refused


def _matching(contract: PolicySpec, log: EpisodeLog) -> PolicySpec:
    assert log.spec.robot is not None
    if log.spec.rate_hz != contract.rate_hz:
        raise SpecError(f"{log.folder}: recorded at {log.spec.rate_hz} Hz, the run decides at {contract.rate_hz} Hz")
    merged = contract.on(log.spec.robot, f"the run's contract and {log.folder}")
    return msgspec.structs.replace(merged, robot=log.spec.robot)
