"""Recipes: which parts make which learner. A configuration is the keyword arguments of a recipe."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from robot_rl.learn.actors import GaussianActor
from robot_rl.learn.agent import Agent, Schedule
from robot_rl.learn.backups import SoftBackup
from robot_rl.learn.critics import Critic, Mean, Minimum, Scalar
from robot_rl.learn.latents import Identity, RunningNorm
from robot_rl.learn.nets import compute_dtype
from robot_rl.learn.objectives import SoftValue, Temperature


def sac(
    obs_size: int,
    action_size: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    hidden: Sequence[int] = (256, 256),
    critics: int = 2,
    batch: int = 256,
    lr: float = 3e-4,
    clip: float = 0.0,
    discount: float = 0.99,
    n_step: int = 1,
    tau: float = 0.005,
    updates_per_step: int = 1,
    actor_period: int = 1,
    temperature: float = 1.0,
    target_entropy: float | None = None,
    normalize: bool = True,
    dtype: str = "auto",
    compile: bool | None = None,
) -> Agent:
    """Soft actor-critic: the smaller of two critics, a tuned temperature; `target_entropy` is -A unless given."""
    start = torch.Generator().manual_seed(seed)
    compute = compute_dtype(dtype, device)
    latent = _latent(obs_size, normalize)
    actor = GaussianActor(obs_size, action_size, hidden, start, dtype=compute)
    critic = Critic(obs_size, action_size, hidden, critics, Scalar(), start, dtype=compute)
    target, heat = copy.deepcopy(critic), Temperature(temperature, _or(target_entropy, -float(action_size)))
    backup = SoftBackup(actor, target, heat, Minimum())
    objective = SoftValue(actor, critic, heat, Minimum())
    plan = Schedule(batch, n_step, discount, updates_per_step, actor_period, tau, lr, clip)
    return Agent(latent, actor, critic, target, heat, backup, objective, plan, start, device, compile)


def rlpd(
    obs_size: int,
    action_size: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    hidden: Sequence[int] = (256, 256),
    critics: int = 10,
    subset: int = 2,
    batch: int = 256,
    lr: float = 3e-4,
    clip: float = 0.0,
    discount: float = 0.99,
    n_step: int = 1,
    tau: float = 0.005,
    updates_per_step: int = 4,
    actor_period: int = 4,
    temperature: float = 1.0,
    target_entropy: float | None = None,
    entropy_scale: float = 1.0,
    normalize: bool = True,
    dtype: str = "auto",
    compile: bool | None = None,
) -> Agent:
    """RL with prior data: many layer-normalised critics, the target from a random subset, several updates a step.

    Half of each batch from prior data is the data's part: sample from a `Mixture`. `target_entropy` is -A/2 unless
    given; `entropy_scale` 0 leaves the entropy out of the target.
    """
    start = torch.Generator().manual_seed(seed)
    compute = compute_dtype(dtype, device)
    latent = _latent(obs_size, normalize)
    actor = GaussianActor(obs_size, action_size, hidden, start, dtype=compute)
    critic = Critic(obs_size, action_size, hidden, critics, Scalar(), start, layer_norm=True, dtype=compute)
    target, heat = copy.deepcopy(critic), Temperature(temperature, _or(target_entropy, -action_size / 2))
    backup = SoftBackup(actor, target, heat, Minimum(subset), entropy_scale)
    objective = SoftValue(actor, critic, heat, Mean())
    plan = Schedule(batch, n_step, discount, updates_per_step, actor_period, tau, lr, clip)
    return Agent(latent, actor, critic, target, heat, backup, objective, plan, start, device, compile)


RECIPES: dict[str, Callable[..., Agent]] = {"sac": sac, "rlpd": rlpd}


def options(recipe: str) -> dict[str, Any]:
    """The keyword arguments of `recipe` with their defaults."""
    if recipe not in RECIPES:
        raise ValueError(f"no recipe is named {recipe!r}; there are {', '.join(RECIPES)}")
    parameters = inspect.signature(RECIPES[recipe]).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def make(recipe: str, obs_size: int, action_size: int, **configuration: Any) -> Agent:
    """The agent of `recipe`; an unknown recipe or option is an error that lists the choices."""
    known = options(recipe)
    unknown = [name for name in configuration if name not in known]
    if unknown:
        raise ValueError(f"{recipe} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return RECIPES[recipe](obs_size, action_size, **configuration)


def _latent(obs_size: int, normalize: bool) -> Identity | RunningNorm:
    return RunningNorm(obs_size) if normalize else Identity()


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
