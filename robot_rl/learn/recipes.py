"""Recipes: which parts make which learner. A configuration is the keyword arguments of a recipe."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from robot_rl.learn.actors import CoarseActor, DeterministicActor, GaussianActor
from robot_rl.learn.agent import Agent, Schedule, Target
from robot_rl.learn.backups import CuriousBackup, Disagreement, RewardScale, ScaledBackup, SoftBackup, TruncatedBackup
from robot_rl.learn.chunks import Chunks, Ensemble, OpenLoop, Steps
from robot_rl.learn.critics import (
    CoarseCritic,
    Critic,
    First,
    Head,
    Mean,
    Minimum,
    PairCritic,
    Quantiles,
    Reduction,
    Scalar,
    SequenceCritic,
    TwoHot,
)
from robot_rl.learn.latents import Identity, ModelLatent, ModelStudy, RunningNorm, Sync
from robot_rl.learn.nets import Shape, compute_dtype
from robot_rl.learn.objectives import (
    Bellman,
    CoarseBellman,
    Curiosity,
    CuriousValue,
    Foresight,
    GreedyValue,
    JointBellman,
    Lesson,
    NoTemperature,
    SequenceBellman,
    SoftValue,
    Temperature,
    Tuning,
)


def sac(
    obs_size: int,
    action_size: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    hidden: Sequence[int] = (256, 256),
    critics: int = 2,
    categories: int = 0,
    subset: int | None = None,
    batch: int = 256,
    lr: float = 3e-4,
    clip: float = 0.0,
    discount: float = 0.99,
    n_step: int = 1,
    chunk: int = 1,
    execute: str = "open_loop",
    tau: float = 0.005,
    updates_per_step: int = 1,
    actor_period: int = 1,
    actor_asks: str = "minimum",
    temperature: float = 1.0,
    target_entropy: float | None = None,
    entropy_share: float = 1.0,
    entropy_scale: float = 1.0,
    prioritized: float = 0.0,
    normalize: bool = True,
    norm: str = "none",
    dropout: float = 0.0,
    residual: bool = False,
    dtype: str = "auto",
    compile: bool | None = None,
) -> Agent:
    """Soft actor-critic: the smallest of two critics, a tuned temperature.

    `target_entropy` is -A times `entropy_share` unless given. `subset` critics, drawn anew, make a target;
    `entropy_scale` 0 leaves the entropy out of it. `norm`, `dropout`, `residual` and `categories` (above 0: so many,
    categorical) shape the critics, `actor_asks` (minimum or mean) is the actor's view of them. `chunk` above 1: the
    actor gives so many actions at once, of which `execute` (open_loop or ensemble) makes steps; returns then are of as
    many steps at least, and A is that of a chunk.
    """
    start, plain = torch.Generator().manual_seed(seed), Shape(dtype=compute_dtype(dtype, device))
    execution = Steps() if chunk == 1 else _chunks(execute, chunk, action_size)
    action_size, n_step = action_size * chunk, max(n_step, chunk)
    shape = Shape(norm, residual=residual, dropout=dropout, dtype=plain.dtype)
    latent = _latent(obs_size, normalize)
    actor = GaussianActor(obs_size, action_size, hidden, start, plain)
    critic = Critic(obs_size, action_size, hidden, critics, _head(categories, device), start, shape)
    target, heat = copy.deepcopy(critic), Temperature(temperature, _or(target_entropy, -action_size * entropy_share))
    lessons: list[Lesson] = [
        Bellman(critic, SoftBackup(actor, target, heat, Minimum(subset), entropy_scale)),
        SoftValue(actor, critic, heat, _reduction(actor_asks), actor_period),
        Tuning(heat, actor_period),
    ]
    parts = {"latent": latent, "actor": actor, "critic": critic, "target": target, "temperature": heat}
    plan = Schedule(batch, n_step, discount, updates_per_step, lr, clip, prioritized)
    return Agent(latent, actor, parts, lessons, plan, start, targets=[Target(target, critic, tau)],
                 execution=execution, device=device, compile=compile)


def maxinfo(
    obs_size: int,
    action_size: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    hidden: Sequence[int] = (256, 256),
    critics: int = 2,
    models: int = 5,
    curiosity: float = 1.0,
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
    norm: str = "none",
    dtype: str = "auto",
    compile: bool | None = None,
) -> Agent:
    """MaxInfoRL on SAC (method 74): also worth something is what an action would teach an ensemble of `models`."""
    start, plain = torch.Generator().manual_seed(seed), Shape(dtype=compute_dtype(dtype, device))
    latent = _latent(obs_size, normalize)
    actor = GaussianActor(obs_size, action_size, hidden, start, plain)
    critic = Critic(obs_size, action_size, hidden, critics, Scalar(), start, Shape(norm, dtype=plain.dtype))
    model = Disagreement(obs_size, action_size, hidden, models, start, plain)
    target, slow = copy.deepcopy(critic), copy.deepcopy(actor)
    heat, price = Temperature(temperature, _or(target_entropy, -float(action_size))), Temperature(curiosity, 0.0)
    lessons: list[Lesson] = [
        Foresight(model),
        Bellman(critic, CuriousBackup(actor, target, heat, Minimum(), model, price)),
        CuriousValue(actor, slow, critic, heat, Minimum(), model, price, actor_period),
        Tuning(heat, actor_period),
        Curiosity(price, actor_period),
    ]
    parts = {"latent": latent, "actor": actor, "slow_actor": slow, "critic": critic, "target": target, "model": model,
             "temperature": heat, "curiosity": price}
    plan = Schedule(batch, n_step, discount, updates_per_step, lr, clip)
    targets = [Target(target, critic, tau), Target(slow, actor, tau)]
    return Agent(latent, actor, parts, lessons, plan, start, targets=targets, device=device, compile=compile)


def td3(
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
    actor_period: int = 2,
    explore: float = 0.1,
    smooth: float = 0.2,
    smooth_bound: float = 0.5,
    normalize: bool = True,
    norm: str = "none",
    dtype: str = "auto",
    compile: bool | None = None,
) -> Agent:
    """Twin delayed DDPG (Fujimoto et al. 2018): a deterministic actor with a slow copy, noise-smoothed targets."""
    start, shape = torch.Generator().manual_seed(seed), Shape(norm, dtype=compute_dtype(dtype, device))
    latent = _latent(obs_size, normalize)
    actor = DeterministicActor(obs_size, action_size, hidden, start, shape, explore, smooth, smooth_bound)
    critic = Critic(obs_size, action_size, hidden, critics, Scalar(), start, shape)
    target, slow = copy.deepcopy(critic), copy.deepcopy(actor)
    lessons: list[Lesson] = [
        Bellman(critic, SoftBackup(slow, target, NoTemperature(), Minimum())),
        GreedyValue(actor, critic, First(), actor_period),
    ]
    parts = {"latent": latent, "actor": actor, "critic": critic, "target": target, "slow_actor": slow}
    plan = Schedule(batch, n_step, discount, updates_per_step, lr, clip)
    targets = [Target(target, critic, tau), Target(slow, actor, tau)]
    return Agent(latent, actor, parts, lessons, plan, start, targets=targets, device=device, compile=compile)


def tqc(
    obs_size: int,
    action_size: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    hidden: Sequence[int] = (256, 256),
    critics: int = 5,
    quantiles: int = 25,
    drop: int = 2,
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
    norm: str = "none",
    dtype: str = "auto",
    compile: bool | None = None,
) -> Agent:
    """Truncated quantile critics (Kuznetsov et al. 2020): SAC whose target leaves out the most hopeful quantiles."""
    start, shape = torch.Generator().manual_seed(seed), Shape(norm, dtype=compute_dtype(dtype, device))
    latent = _latent(obs_size, normalize)
    actor = GaussianActor(obs_size, action_size, hidden, start, Shape(dtype=shape.dtype))
    critic = Critic(obs_size, action_size, hidden, critics, Quantiles(quantiles, device), start, shape)
    target, heat = copy.deepcopy(critic), Temperature(temperature, _or(target_entropy, -float(action_size)))
    lessons: list[Lesson] = [
        Bellman(critic, TruncatedBackup(actor, target, heat, Mean(), drop)),
        SoftValue(actor, critic, heat, Mean(), actor_period),
        Tuning(heat, actor_period),
    ]
    parts = {"latent": latent, "actor": actor, "critic": critic, "target": target, "temperature": heat}
    plan = Schedule(batch, n_step, discount, updates_per_step, lr, clip)
    return Agent(latent, actor, parts, lessons, plan, start, targets=[Target(target, critic, tau)], device=device,
                 compile=compile)


def crossq(
    obs_size: int,
    action_size: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    hidden: Sequence[int] = (256, 256),
    critic_hidden: Sequence[int] = (1024, 1024),
    critics: int = 2,
    categories: int = 0,
    batch: int = 256,
    lr: float = 1e-3,
    clip: float = 0.0,
    discount: float = 0.99,
    n_step: int = 1,
    updates_per_step: int = 1,
    actor_period: int = 3,
    temperature: float = 1.0,
    target_entropy: float | None = None,
    normalize: bool = True,
    unit: bool = False,
    dtype: str = "auto",
    compile: bool | None = None,
) -> Agent:
    """CrossQ (Bhatt et al. 2024): wide batch-normalised critics that need no target network.

    `categories` > 0 makes the critics categorical; `unit` keeps their hidden weights at norm 1.
    """
    start, shape = torch.Generator().manual_seed(seed), Shape("batch", unit=unit, dtype=compute_dtype(dtype, device))
    latent = _latent(obs_size, normalize)
    actor = GaussianActor(obs_size, action_size, hidden, start, shape)
    critic = Critic(obs_size, action_size, critic_hidden, critics, _head(categories, device), start, shape)
    heat = Temperature(temperature, _or(target_entropy, -float(action_size)))
    lessons: list[Lesson] = [
        JointBellman(critic, SoftBackup(actor, critic, heat, Minimum())),
        SoftValue(actor, critic, heat, Minimum(), actor_period),
        Tuning(heat, actor_period),
    ]
    parts = {"latent": latent, "actor": actor, "critic": critic, "temperature": heat}
    plan = Schedule(batch, n_step, discount, updates_per_step, lr, clip)
    return Agent(latent, actor, parts, lessons, plan, start, device=device, compile=compile)


def mrq(
    obs_size: int,
    action_size: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    hidden: Sequence[int] = (512, 512, 512),
    width: int = 512,
    critics: int = 2,
    batch: int = 256,
    lr: float = 3e-4,
    model_lr: float = 1e-4,
    clip: float = 20.0,
    discount: float = 0.99,
    n_step: int = 3,
    horizon: int = 5,
    target_period: int = 250,
    updates_per_step: int = 1,
    explore: float = 0.2,
    smooth: float = 0.2,
    smooth_bound: float = 0.3,
    price: float = 1e-5,
    prioritized: float = 0.4,
    normalize: bool = True,
    dtype: str = "auto",
    compile: bool | None = None,
) -> Agent:
    """MR.Q (method 24): a deterministic actor and critics on latents that a model trains.

    Every `target_period` updates the targets are replaced at once and the model learns from as many batches.
    """
    start, compute = torch.Generator().manual_seed(seed), compute_dtype(dtype, device)
    latent = ModelLatent(obs_size, action_size, width, start, normalize, compute)
    shape, slow_latent = Shape("layer", "elu", dtype=compute), copy.deepcopy(latent)
    actor = DeterministicActor(width, action_size, hidden, start, Shape("layer", dtype=compute), explore, smooth,
                               smooth_bound)
    critic, target = (PairCritic(one.pair, width, hidden, critics, Scalar(1.0), start, shape)
                      for one in (latent, slow_latent))
    slow, scale = copy.deepcopy(actor), RewardScale()
    sync = Sync(target_period, [(target, critic), (slow, actor), (slow_latent, latent)], [scale.sync])
    study = ModelStudy(latent, slow_latent, target_period, horizon, model_lr)
    lessons: list[Lesson] = [
        Bellman(critic, ScaledBackup(slow, target, NoTemperature(), Minimum(), scale)),
        GreedyValue(actor, critic, Mean(), price=price),
    ]
    parts = {"latent": latent, "actor": actor, "critic": critic, "target": target, "slow_actor": slow,
             "slow_latent": slow_latent, "scale": scale}
    plan = Schedule(batch, n_step, discount, updates_per_step, lr, clip, prioritized)
    return Agent(latent, actor, parts, lessons, plan, start, events=[sync], studies=[study], target_latent=slow_latent,
                 device=device, compile=compile)


def cqn(
    obs_size: int,
    action_size: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    hidden: Sequence[int] = (256, 256),
    levels: int = 3,
    bins: int = 5,
    categories: int = 101,
    batch: int = 256,
    lr: float = 3e-4,
    clip: float = 0.0,
    discount: float = 0.99,
    n_step: int = 3,
    tau: float = 0.02,
    updates_per_step: int = 1,
    explore: float = 0.1,
    normalize: bool = True,
    norm: str = "layer",
    dtype: str = "auto",
    compile: bool | None = None,
) -> Agent:
    """Coarse-to-fine Q-network (method 284): no actor; the critic's best interval, cut again, `levels` times."""
    start, shape = torch.Generator().manual_seed(seed), Shape(norm, dtype=compute_dtype(dtype, device))
    latent = _latent(obs_size, normalize)
    critic = CoarseCritic(obs_size, action_size, hidden, levels, bins, _head(categories, device), start, shape)
    target, actor = copy.deepcopy(critic), CoarseActor(critic, explore)
    parts = {"latent": latent, "critic": critic, "target": target}
    plan = Schedule(batch, n_step, discount, updates_per_step, lr, clip)
    return Agent(latent, actor, parts, [CoarseBellman(critic, target)], plan, start,
                 targets=[Target(target, critic, tau)], device=device, compile=compile)


def cqn_as(
    obs_size: int,
    action_size: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    hidden: Sequence[int] = (256, 256),
    levels: int = 3,
    bins: int = 5,
    categories: int = 101,
    chunk: int = 4,
    execute: str = "ensemble",
    batch: int = 256,
    lr: float = 3e-4,
    clip: float = 0.0,
    discount: float = 0.99,
    n_step: int = 4,
    tau: float = 0.02,
    updates_per_step: int = 1,
    explore: float = 0.1,
    normalize: bool = True,
    norm: str = "layer",
    dtype: str = "auto",
    compile: bool | None = None,
) -> Agent:
    """Coarse-to-fine Q-network with action sequences (method 341): CQN whose critic values the next `chunk` actions.

    What the chunks of the last steps say of this one is averaged (`execute` ensemble), or each is executed to its end
    (open_loop). The noise of `explore` is in each prediction, so an ensemble averages some of it away.
    """
    start, shape = torch.Generator().manual_seed(seed), Shape(norm, dtype=compute_dtype(dtype, device))
    execution, latent = _chunks(execute, chunk, action_size), _latent(obs_size, normalize)
    critic = SequenceCritic(obs_size, action_size, chunk, hidden, levels, bins, _head(categories, device), start, shape)
    target, actor = copy.deepcopy(critic), CoarseActor(critic, explore)
    parts = {"latent": latent, "critic": critic, "target": target}
    plan = Schedule(batch, n_step, discount, updates_per_step, lr, clip)
    return Agent(latent, actor, parts, [SequenceBellman(critic, target)], plan, start,
                 targets=[Target(target, critic, tau)], execution=execution, device=device, compile=compile)


class Recipe(NamedTuple):
    """How an agent is built: a function, and the options in which this recipe differs from the function's defaults."""

    build: Callable[..., Agent]
    about: str
    changes: dict[str, Any]

    def options(self) -> dict[str, Any]:
        """The keyword arguments with their defaults."""
        parameters = inspect.signature(self.build).parameters.values()
        defaults = {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
        return defaults | self.changes


RECIPES = {
    "sac": Recipe(sac, "soft actor-critic", {}),
    "default": Recipe(
        sac, "what we would ship: SAC with layer-normalised critics, three-step returns, two updates a step",
        {"norm": "layer", "n_step": 3, "updates_per_step": 2, "actor_period": 2, "temperature": 0.02}),
    "td3": Recipe(td3, "twin delayed deterministic policy gradient", {}),
    "redq": Recipe(
        sac, "ten critics, a random pair in each target, 20 updates a step (Chen et al. 2021)",
        {"critics": 10, "subset": 2, "updates_per_step": 20, "actor_period": 20, "actor_asks": "mean"}),
    "droq": Recipe(
        sac, "two critics with dropout and layer norm, 20 updates a step (Hiraoka et al. 2022)",
        {"norm": "layer", "dropout": 0.01, "updates_per_step": 20, "actor_period": 20, "actor_asks": "mean"}),
    "rlpd": Recipe(
        sac, "ten layer-normalised critics, 4 updates a step; half of each batch may be prior data (method 316)",
        {"critics": 10, "subset": 2, "norm": "layer", "updates_per_step": 4, "actor_period": 4, "actor_asks": "mean",
         "entropy_share": 0.5}),
    "tqc": Recipe(tqc, "truncated quantile critics", {}),
    "crossq": Recipe(crossq, "batch-normalised critics without a target network", {}),
    "maxinfo": Recipe(maxinfo, "SAC that also seeks what it would learn most from (method 74)", {}),
    "cqn": Recipe(cqn, "coarse-to-fine critic without an actor (method 284)", {}),
    "cqn_as": Recipe(cqn_as, "coarse-to-fine critic of the next few actions at once (method 341)", {}),
    "mrq": Recipe(mrq, "MR.Q: values of latents that a model trains (method 24)", {}),
}


def options(recipe: str) -> dict[str, Any]:
    """The keyword arguments of `recipe` with their defaults."""
    if recipe not in RECIPES:
        raise ValueError(f"no recipe is named {recipe!r}; there are {', '.join(RECIPES)}")
    return RECIPES[recipe].options()


def make(recipe: str, obs_size: int, action_size: int, **configuration: Any) -> Agent:
    """The agent of `recipe`; an unknown recipe or option is an error that lists the choices."""
    known = options(recipe)
    unknown = [name for name in configuration if name not in known]
    if unknown:
        raise ValueError(f"{recipe} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return RECIPES[recipe].build(obs_size, action_size, **known | configuration)


def _latent(obs_size: int, normalize: bool) -> Identity | RunningNorm:
    return RunningNorm(obs_size) if normalize else Identity()


def _head(categories: int, device: str) -> Head:
    return TwoHot(categories, device=device) if categories else Scalar()


def _chunks(execute: str, chunk: int, action_size: int) -> Chunks:
    choices = {"open_loop": OpenLoop, "ensemble": Ensemble}
    if execute not in choices:
        raise ValueError(f"execute is {execute!r}; it is one of {', '.join(choices)}")
    return choices[execute](chunk, action_size)


def _reduction(name: str) -> Reduction:
    choices: dict[str, Reduction] = {"minimum": Minimum(), "mean": Mean()}
    if name not in choices:
        raise ValueError(f"actor_asks is {name!r}; it is one of {', '.join(choices)}")
    return choices[name]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
