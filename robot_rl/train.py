"""The training loop: collect, update, evaluate, keep."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.collect import Agent, Collector, EpisodeEnd, Greedy
from robot_rl.evaluate import evaluate
from robot_rl.finite import Watched, demand_finite
from robot_rl.log import Log, progress
from robot_rl.parallel import Parallel
from robot_rl.replay import Mixture, Ratio, Replay

if TYPE_CHECKING:
    import gymnasium

EVALUATION_SEED = 1_000_003


@dataclass(frozen=True)
class Plan:
    """When things happen, in environment steps (decisions)."""

    steps: int
    learn_after: int = 1_000
    """Steps before the first update: random actions or, after offline updates, a seed by what these taught."""
    evaluate_every: int = 10_000
    evaluation_episodes: int = 10
    checkpoint_every: int = 10_000
    log_every: int = 1_000
    offline_updates: int = 0
    """Calls of `update` on the prior alone, before the first step. The seed then is followed by one for each step."""


def discount_for(steps: int) -> float:
    """A discount for episodes of so many decisions: 1 - 5 / steps, within [0.95, 0.995]; 0.99 without a limit."""
    return min(0.995, max(0.95, 1.0 - 5.0 / steps)) if steps > 0 else 0.99


Save = Callable[[dict[str, Any]], None]
"""Writes a checkpoint of {name: state}, atomically."""


@dataclass
class Training:
    """A run in progress. `save` is called between episodes, so that `load_state_dict` continues exactly."""

    collector: Collector | Parallel
    agent: Agent
    evaluation: gymnasium.Env
    schedule: Plan
    log: Log
    save: Save
    prior: Replay | None = None
    """What is learned from beside what is collected."""
    prior_ratio: float | Ratio = 0.5
    """The share of each batch that comes from there; one that changes goes by the steps collected."""
    seconds: float = 0.0
    """Wall time spent in earlier sittings of this run."""
    _metrics: dict[str, Any] = field(default_factory=dict)
    _ended: list[EpisodeEnd] = field(default_factory=list)
    _saved: int = 0
    _data: Watched | None = None
    _offline: int = 0

    def run(self) -> dict[str, Any]:
        """Train to the last step; returns the last evaluation's figures with steps and seconds.

        Raises NotFinite, with the newest batch, for metrics when they are written and for the agent before a checkpoint
        keeps it; the agent raises it for losses and actions, the replay for what is collected.
        """
        schedule, collector = self.schedule, self.collector
        data = collector.replay if self.prior is None else Mixture(
            self.prior, collector.replay, self.prior_ratio, lambda: collector.steps)
        began = time.monotonic() - self.seconds
        if self.prior is not None and self._offline < schedule.offline_updates:
            self._learn_offline(self.prior, began)
        self._data = Watched(data)
        bar = progress("train", schedule.steps, "step", collector.steps)
        while collector.steps < schedule.steps or not collector.at_start:
            ended = collector.step()
            step = collector.steps
            if ended:
                self._ended.append(ended)
            seeded = schedule.offline_updates > 0 and step == schedule.learn_after
            for _ in range(step if seeded else int(step >= schedule.learn_after)):
                self._metrics = self.agent.update(self._data)
            self.seconds = time.monotonic() - began
            if step % schedule.log_every == 0:
                self._write(step)
            if schedule.evaluate_every and step % schedule.evaluate_every == 0 and step < schedule.steps:
                bar.set_postfix_str(_short(self._evaluate(step)))
            due = step - self._saved >= schedule.checkpoint_every
            if due or step >= schedule.steps:
                collector.settle()
            if due and collector.at_start:
                self._keep()
            bar.update()
        self._keep()
        bar.close()
        figures = self._evaluate(collector.steps)
        return figures | {"steps": collector.steps, "seconds": self.seconds}

    def _learn_offline(self, prior: Replay, began: float) -> None:
        """What comes before the first step; an update is written as so many steps before it. Then an evaluation."""
        self._data, total = Watched(prior), self.schedule.offline_updates
        bar = progress("learn from the bags", total, "update", self._offline)
        while self._offline < total:
            self._metrics = self.agent.update(self._data, offline=True)
            self._offline += 1
            self.seconds = time.monotonic() - began
            if self._offline % self.schedule.log_every == 0:
                self._write(self._offline - total)
            if self._offline % self.schedule.checkpoint_every == 0:
                self._keep()
            bar.update()
        bar.close()
        self._evaluate(0)

    def state_dict(self) -> dict[str, Any]:
        """Everything: agent, replay, counters, generators."""
        state = {"agent": self.agent.state_dict(), "replay": self.collector.replay.state_dict(),
                 "collector": self.collector.state_dict(), "seconds": self.seconds, "offline": self._offline}
        return state if self.prior is None else state | {"prior": self.prior.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a run from its checkpoint."""
        self.agent.load_state_dict(state["agent"])
        self.collector.replay.load_state_dict(state["replay"])
        if self.prior is not None:
            self.prior.load_state_dict(state["prior"])
        self.collector.load_state_dict(state["collector"])
        self.seconds, self._saved = state["seconds"], self.collector.steps
        self._offline = state["offline"]

    def _keep(self) -> None:
        state = self.state_dict()
        self._demand_finite(self.collector.steps, {"train": self._metrics, "agent": state["agent"]})
        self._saved = self.collector.steps
        self.save(state)

    def _demand_finite(self, step: int, state: dict[str, Any]) -> None:
        demand_finite(state, f"step {step}", self._data.newest if self._data else {})

    def _evaluate(self, step: int) -> dict[str, Any]:
        figures = evaluate(self.evaluation, Greedy(self.agent), self.schedule.evaluation_episodes, EVALUATION_SEED,
                           show=False)
        numbers = {f"evaluate/{k}": v for k, v in figures.items() if isinstance(v, int | float)}
        self._demand_finite(step, numbers)
        self.log.write(step, numbers | {"time/seconds": self.seconds})
        return figures

    def _write(self, step: int) -> None:
        """One line of what was learned and collected since the last."""
        line = {f"train/{k}": float(v) for k, v in self._metrics.items()}
        if self._ended:
            line["collect/return"] = float(np.mean([e.episode_return for e in self._ended]))
            line["collect/length"] = float(np.mean([e.length for e in self._ended]))
            if self._ended[0].success is not None:
                line["collect/success"] = float(np.mean([bool(e.success) for e in self._ended]))
        self._ended.clear()
        self._demand_finite(step, line)
        self.log.write(step, line | {"time/seconds": self.seconds})


def _short(figures: dict[str, Any]) -> str:
    success = figures["success_rate"]
    return f"return {figures['return_mean']:.1f}" + ("" if success is None else f", success {success:.0%}")
