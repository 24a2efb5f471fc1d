"""How good is a policy: episodes under fixed seeds, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from robot_rl.log import progress
from robot_rl.observe import Observation

if TYPE_CHECKING:
    import gymnasium

Z95 = 1.959963984540054


class Act(Protocol):
    """What is evaluated."""

    def reset(self) -> None:
        """An episode begins: nothing of the one before may be kept."""

    def __call__(self, observation: Observation) -> np.ndarray:
        """Observation → action (A,) in [-1, 1]."""


def evaluate(env: gymnasium.Env, act: Act, episodes: int, seed: int, show: bool = True) -> dict[str, Any]:
    """Run deterministic episodes, episode k under the seed (seed, k); returns `summary`'s and `effort`'s figures.

    With these: `failure_rate`, the share of episodes that ended early without success, as by a fall, and `rewards`, the
    mean over all steps of what each reward term gave, of tasks that name theirs.
    """
    returns, successes, actions = [], [], list[np.ndarray]()
    failures, rewards = 0, dict[str, float]()
    for k in progress("evaluate", unit="episode", items=range(episodes)) if show else range(episodes):
        total, done, taken = 0.0, False, []
        observation, info = env.reset(seed=episode_seed(seed, k))
        act.reset()
        while not done:
            taken.append(np.array(act(observation)))  # a copy: it may be a view of what the next call writes
            observation, reward, terminated, truncated, info = env.step(taken[-1])
            total, done = total + float(reward), terminated or truncated
            for name, part in info.get("rewards", {}).items():
                rewards[name] = rewards.get(name, 0.0) + part
        failures += bool(terminated and not info.get("success"))
        returns.append(total)
        successes.append(info.get("success"))
        actions.append(np.array(taken, float))
    steps = sum(map(len, actions))
    figures = summary(returns, successes) | effort(actions)
    figures["failure_rate"] = failures / episodes if episodes else None
    if rewards:
        figures["rewards"] = {name: total / steps for name, total in rewards.items()}
    return figures


def effort(actions: Sequence[np.ndarray]) -> dict[str, float | None]:
    """`action_rate` and `energy` of episodes (T, A), of the actions as the policy gave them, in [-1, 1].

    The rate is the mean of |a_t - a_(t-1)|, a step being a decision; the energy is the mean of a². Both are means over
    all steps and the parts of the action, so that tasks compare. None where there is no step to speak of.
    """
    changes = [np.abs(np.diff(a, axis=0)).ravel() for a in actions if len(a) > 1]
    squares = [np.square(a).ravel() for a in actions if len(a)]
    return {"action_rate": float(np.concatenate(changes).mean()) if changes else None,
            "energy": float(np.concatenate(squares).mean()) if squares else None}


def summary(returns: Sequence[float], successes: Sequence[bool | None]) -> dict[str, Any]:
    """`episodes, return_mean, return_ci95, success_rate, success_ci95`; success is null where the task has none.

    The return's interval is the mean's normal approximation; the success rate's is Wilson's.
    """
    n = len(returns)
    mean = float(np.mean(returns)) if n else None
    interval: list[float] | None = None  # one episode says nothing of the spread
    if mean is not None and n > 1:
        half = Z95 * float(np.std(returns, ddof=1)) / math.sqrt(n)
        interval = [mean - half, mean + half]
    figures: dict[str, Any] = {"episodes": n, "return_mean": mean, "return_ci95": interval,
                               "success_rate": None, "success_ci95": None}
    known = [s for s in successes if s is not None]
    if known:
        figures |= {"success_rate": sum(known) / len(known), "success_ci95": list(wilson(sum(known), len(known)))}
    return figures


def in_short(returns: Sequence[float], successes: Sequence[bool | None]) -> str:
    """Mean success of episodes for a progress bar, or the mean return where the task judges none."""
    known = [s for s in successes if s is not None]
    return f"success {np.mean(known):.0%}" if known else f"return {np.mean(returns):,.1f}"


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate."""
    if trials == 0:
        return 0.0, 1.0
    p, z2 = successes / trials, Z95 * Z95
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def episode_seed(seed: int, episode: int) -> int:
    """A seed for one episode, so that an episode does not depend on the ones before it."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0])
