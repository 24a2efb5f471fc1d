"""Recipes: which parts make which learner. A recipe is its options; a configuration, the values of some of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, NamedTuple

import msgspec
import torch
from msgspec import Meta
from torch import nn

from robot_rl.learn.actors import Actor, BoundedActor, ClippedActor, CoarseActor, GaussianActor
from robot_rl.learn.agent import Agent, Target
from robot_rl.learn.backups import CuriousBackup, Disagreement, RewardScale, SoftBackup, TruncatedBackup
from robot_rl.learn.chunks import Steps
from robot_rl.learn.critics import (
    Between,
    CoarseCritic,
    Critic,
    First,
    Mean,
    Minimum,
    PairCritic,
    Quantiles,
    Reduction,
    Scalar,
    SequenceCritic,
    alone,
)
from robot_rl.learn.crowd import Centred, Crowd, CrowdBackup, CrowdValue, Guide
from robot_rl.learn.dreams import Aftersight, Imagine, ImaginedValue, Recall
from robot_rl.learn.imitation import Cloning, ImaginedBackup, Imitation
from robot_rl.learn.insample import Expectile, InSampleBackup, Regression
from robot_rl.learn.latents import Latent, ModelLatent, ModelStudy, Sync
from robot_rl.learn.nets import Shape
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
from robot_rl.learn.options import (
    Acting,
    Chunked,
    Count,
    Ensemble,
    Greedy,
    Headed,
    Imitative,
    Modelled,
    Natural,
    Options,
    Planned,
    Positive,
    Price,
    Projecting,
    Remembering,
    Share,
    Sizes,
    Slow,
    Soft,
    Values,
)
from robot_rl.learn.planner import Model, Replan, Telling, Valued, Wary
from robot_rl.learn.recurrent import Remember
from robot_rl.learn.world import Consistency, PriorValue, Spread, Unroll, World


@dataclass(frozen=True, kw_only=True)
class Sac(Chunked, Slow, Projecting, Soft):
    """Soft actor-critic: the smallest of two critics, a tuned temperature.

    `subset` critics, drawn anew, make a target; `entropy_scale` 0 leaves the entropy out of it. `actor_asks`
    (minimum or mean) is the actor's view of the critics.
    """

    subset: Count | None = None
    entropy_scale: Price = 1.0
    actor_asks: str = "minimum"

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        sizes = self.whole(sizes)
        if self.subset is not None and not 1 <= self.subset <= self.critics:
            raise ValueError(f"subset is {self.subset}; it is between 1 and the {self.critics} critics")
        start, heat = self.start(), self.heat(sizes)
        latent = self.latent(sizes, start)
        actor = self.gaussian(latent, sizes, start)
        chain, reduction = self.chained(latent, sizes, self.head(), start), Minimum(self.subset)
        lessons = [
            *chain.lessons(lambda target: SoftBackup(actor, target, heat, reduction, self.entropy_scale), latent),
            self.smoothed(SoftValue(actor, chain.last, heat, _reduction(self.actor_asks), self.actor_period)),
            Tuning(heat, self.actor_period),
        ]
        parts = {**chain.parts(), "temperature": heat}
        return self.agent(latent, actor, lessons, start, parts, targets=[self.follow(chain)])


@dataclass(frozen=True, kw_only=True)
class MaxInfo(Slow, Projecting, Soft):
    """MaxInfoRL on SAC (method 74): also worth something is what an action would teach an ensemble of models.

    `models` predict what comes; `curiosity` is the first price of what an action would teach them.
    """

    models: Annotated[int, Meta(ge=2)] = 5
    curiosity: Positive = 1.0

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        start, heat, price = self.start(), self.heat(sizes), Temperature(self.curiosity, 0.0)
        latent = self.latent(sizes, start)
        actor = self.gaussian(latent, sizes, start)
        chain = self.chained(latent, sizes, self.head(), start)
        model = Disagreement(latent.size, sizes.action, self.hidden, self.models, start, self.plain())
        slow = copy.deepcopy(actor)
        lessons = [
            Foresight(model),
            *chain.lessons(lambda target: CuriousBackup(actor, target, heat, Minimum(), model, price), latent),
            self.smoothed(CuriousValue(actor, slow, chain.last, heat, Minimum(), model, price, self.actor_period)),
            Tuning(heat, self.actor_period),
            Curiosity(price, self.actor_period),
        ]
        parts = {**chain.parts(), "slow_actor": slow, "model": model, "temperature": heat, "curiosity": price}
        targets = [self.follow(chain), Target(slow, actor, self.tau)]
        return self.agent(latent, actor, lessons, start, parts, targets=targets)


@dataclass(frozen=True, kw_only=True)
class Td3(Slow, Projecting, Greedy):
    """Twin delayed DDPG (Fujimoto et al. 2018): a deterministic actor with a slow copy, noise-smoothed targets.

    The actor learns in every second update.
    """

    actor_period: Count = 2
    actor_alike: bool = True

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        start = self.start()
        latent = self.latent(sizes, start)
        actor = self.deterministic(latent, sizes, start, self.actor_shape())
        chain, slow = self.chained(latent, sizes, self.head(), start), copy.deepcopy(actor)
        lessons = [
            *chain.lessons(lambda target: SoftBackup(slow, target, NoTemperature(), Minimum()), latent),
            self.smoothed(GreedyValue(actor, chain.last, First(), self.actor_period)),
        ]
        parts = {**chain.parts(), "slow_actor": slow}
        targets = [self.follow(chain), Target(slow, actor, self.tau)]
        return self.agent(latent, actor, lessons, start, parts, targets=targets)


@dataclass(frozen=True, kw_only=True)
class Tqc(Slow, Soft):
    """Truncated quantile critics (Kuznetsov et al. 2020): SAC whose target leaves out the most hopeful quantiles.

    Each critic gives so many quantiles; the target is without the `drop` largest of each.
    """

    critics: Count = 5
    quantiles: Count = 25
    drop: Natural = 2

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        start, heat = self.start(), self.heat(sizes)
        latent = self.latent(sizes, start)
        actor = self.gaussian(latent, sizes, start)
        chain = self.chained(latent, sizes, Quantiles(self.quantiles, self.device), start)
        lessons = [
            *chain.lessons(lambda target: TruncatedBackup(actor, target, heat, Mean(), self.drop), latent),
            self.smoothed(SoftValue(actor, chain.last, heat, Mean(), self.actor_period)),
            Tuning(heat, self.actor_period),
        ]
        parts = {**chain.parts(), "temperature": heat}
        return self.agent(latent, actor, lessons, start, parts, targets=[self.follow(chain)])


@dataclass(frozen=True, kw_only=True)
class CrossQ(Chunked, Ensemble, Projecting, Soft):
    """CrossQ (Bhatt et al. 2024): wide batch-normalised critics that need no target network.

    The norm of a whole batch stands in for the target network; with `tau` above 0 there is one all the same, that much
    of the way behind. `pessimism` is how far targets and the actor go from the critics' mean (0) to the smallest (1);
    with `anneal` they begin with the smallest and get there in so many updates.
    """

    lr: Positive = 1e-3
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    pessimism: Share = 1.0
    tau: Share = 0.0
    norm: str = "batch"
    batched: ClassVar[bool] = True
    critic_hidden: Sequence[Count] | None = (1024, 1024)
    actor_alike: bool = True
    actor_period: Count = 3

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        sizes = self.whole(sizes)
        start, heat, reduction = self.start(), self.heat(sizes), Between(self.pessimism, self.anneal)
        latent = self.latent(sizes, start)
        actor = self.gaussian(latent, sizes, start)
        critic = self.ensemble(latent, sizes, self.head(), start)
        target = copy.deepcopy(critic) if self.tau else critic
        lessons: list[Lesson] = [
            JointBellman(critic, SoftBackup(actor, target, heat, reduction), latent),
            self.smoothed(SoftValue(actor, critic, heat, reduction, self.actor_period)),
            Tuning(heat, self.actor_period),
        ]
        parts, targets = {"critic": critic, "temperature": heat, "reduction": reduction}, []
        if self.tau:
            parts, targets = {**parts, "target": target}, [Target(target, critic, self.tau)]
        return self.agent(latent, actor, lessons, start, parts, targets=targets, aging=[reduction])


@dataclass(frozen=True, kw_only=True)
class MrQ(Acting, Greedy):
    """MR.Q (method 24): a deterministic actor and critics on latents that a model trains.

    Every `target_period` updates the targets are replaced at once and the model learns from as many batches.
    `width` is the latents'; `price` that of the squared action before the tanh.
    """

    hidden: Sequence[Count] = (512, 512, 512)
    width: Count = 512
    model_lr: Positive = 1e-4
    clip: Price = 20.0
    n_step: Count = 3
    horizon: Count = 5
    target_period: Count = 250
    explore: Price = 0.2
    smooth_bound: Price = 0.3
    price: Price = 1e-5
    prioritized: Share = 0.4

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        start, dtype = self.start(), self.plain().dtype
        latent = ModelLatent(self.latent(sizes, start), sizes.action, self.width, start, dtype)
        actor = self.deterministic(latent, sizes, start, Shape("layer", dtype=dtype, sees_hidden=True))
        slow, slow_latent, scale = copy.deepcopy(actor), copy.deepcopy(latent), RewardScale()
        shape = Shape("layer", "elu", dtype=dtype, sees_hidden=True)
        critic, target = (
            PairCritic(one.pair, self.width, self.hidden, self.critics, Scalar(1.0), start, shape, self.tilt())
            for one in (latent, slow_latent))
        sync = Sync(self.target_period, [(target, critic), (slow, actor), (slow_latent, latent)], [scale.sync])
        lessons: list[Lesson] = [
            Bellman(critic, SoftBackup(slow, target, NoTemperature(), Minimum())),
            self.smoothed(GreedyValue(actor, critic, Mean(), self.actor_period, price=self.price)),
        ]
        parts = {"critic": critic, "target": target, "slow_actor": slow, "slow_latent": slow_latent,
                 "scale": scale}
        study = ModelStudy(latent, slow_latent, self.target_period, self.horizon, self.model_lr)
        return self.agent(latent, actor, lessons, start, parts, events=[sync], studies=[study],
                          target_latent=slow_latent, scale=scale)


@dataclass(frozen=True, kw_only=True)
class TdMpc2(Imitative, Planned):
    """TD-MPC2 (method 53): a world model, critics and an actor of its latents, and a planner that acts by all three.

    Two of `critics`, drawn anew, make a target, the smaller of them counts; the mean of two teaches the actor, and that
    of `asked` says what a plan's end is worth. `value_price` weighs the critics' loss, `entropy` is the price of the
    actor's. `models` predict the next latent besides: what a step would teach them is worth `venture` to the planner
    while it explores and costs it `caution` otherwise (conservative roll-outs and optimistic exploration, COPlanner,
    method 56).
    """

    asked: Natural = 2
    dropout: Share = 0.01
    tau: Share = 0.01
    value_price: Price = 0.1
    entropy: Price = 1e-4
    models: Natural = 0
    venture: float = 0.0
    caution: float = 0.0

    def sequence(self) -> int:
        """See Options."""
        return self.horizon

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        start, subset = self.bounded(self.horizon), min(2, self.critics)
        world = self.world(sizes, start)
        ensembles = self.foreseeing(sizes, start)
        actor, offline = self.pupil(world, sizes, start)
        critic = self.judges(sizes, start)
        target, spread = critic.slow(), Spread(self.tau)
        backup = SoftBackup(actor, target, NoTemperature(), Minimum(subset))
        lessons: list[Lesson] = [
            Unroll(world, critic, backup, self.horizon, self.weights(self.value_price), self.n_step),
            self.imitating(PriorValue(actor, critic, Mean(subset), spread, self.horizon, self.rho, self.entropy)),
            *map(Foresight, ensembles.values()),
        ]
        parts = {"critic": critic, "target": target, "spread": spread, **ensembles}
        model, *planning = self.planning(world, critic, sizes.action)
        execution, exploring = (self.acting((self.priced(model, ensembles, price), *planning))
                                for price in (-self.caution, self.venture))
        return self.agent(world, actor, lessons, start, parts, targets=[Target(target, critic, self.tau)],
                          execution=execution, exploring=exploring, offline=offline)

    def foreseeing(self, sizes: Sizes, start: torch.Generator) -> dict[str, Disagreement]:
        """The ensemble that predicts besides, by its name, where there is one."""
        if self.models == 1 or (not self.models and (self.venture or self.caution)):
            raise ValueError(f"models is {self.models} with venture {self.venture} and caution {self.caution}; it "
                             "takes at least 2 to disagree")
        if not self.models:
            return {}
        shape = replace(self.modern(), sees_hidden=False)  # members differ by less than what bfloat16 rounds away
        return {"ensemble": Disagreement(self.width, sizes.action, (self.width,), self.models, start, shape, 1e-4)}

    def priced(self, model: Model, ensembles: Mapping[str, Disagreement], price: float) -> Model:
        """A model in which what the ensemble would learn has a price; the model itself without one."""
        return Valued(model, ensembles["ensemble"], price) if ensembles and price else model

    def pupil(self, world: World, sizes: Sizes, start: torch.Generator) -> tuple[Actor, list[Lesson]]:
        """The actor, and what offline updates teach it if not the same as others."""
        last = 0.1 if self.plan else 1.0
        return GaussianActor(self.width, sizes.action, self.hidden, start, self.modern(), last), []


@dataclass(frozen=True, kw_only=True)
class MoDem(TdMpc2):
    """MoDem (method 34): TD-MPC2 from a few demonstrations, which a deterministic actor learns to repeat at first.

    That is what offline updates teach. With noise `explore` it collects the seed for the model, then the planner acts.
    `entropy` counts for nothing.
    """

    explore: Price = 0.1
    entropy: Price = 0.0

    def pupil(self, world: World, sizes: Sizes, start: torch.Generator) -> tuple[Actor, list[Lesson]]:
        """See TdMpc2."""
        actor = self.proposing(sizes, start, self.explore)
        return actor, [Cloning(actor, world)]


@dataclass(frozen=True, kw_only=True)
class MoDemV2(MoDem):
    """MoDem-V2 (method 16): MoDem for real robots, with `critics` pairs of an actor and a critic, all cloned at first.

    Plans go no further than `proposals` of each actor, and `doubt` is the price of the critics' disagreement. After
    the offline updates a copy of the cloned actor goes on acting; the planner's share of the steps of training rises
    from 0 to `ceiling` between so many updates (`handover_from`, `handover_to`). Unlike in the authors' code the pairs
    share one latent, the clone makes no candidates, and the squared action before the tanh has a `price` (as in MR.Q):
    candidates lie near the actors, so one that is stuck at a bound would never be shown to be wrong.
    """

    asked: Natural = 0
    iterations: Count = 1
    proposals: Count = 24
    elites: Count = 24
    doubt: Price = 10.0
    handover_from: Natural = 5_000
    handover_to: Natural = 105_000
    ceiling: Share = 1.0
    price: Price = 1e-3

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        if self.critics < 2 or self.iterations != 1:
            raise ValueError(f"critics is {self.critics} and iterations {self.iterations}; it takes at least 2 to "
                             "disagree, and what actors propose is valued once")
        if self.imitation:
            raise ValueError(f"imitation is {self.imitation}; here the clone that goes on acting is what is kept to")
        if self.models or self.venture or self.caution:
            raise ValueError(f"models is {self.models}, venture {self.venture} and caution {self.caution}; the critics "
                             "alone disagree here, at the price doubt")
        self.ask_all()
        start = self.bounded(self.horizon)
        world, spread = self.world(sizes, start), Spread(self.tau)
        actor = self.proposing(sizes, start, self.explore, self.critics)
        critic = self.judges(sizes, start)
        target, guide = critic.slow(), Guide(world, actor, self.handover_from, self.handover_to, self.ceiling)
        lessons: list[Lesson] = [
            Unroll(world, critic, CrowdBackup(actor, target), self.horizon, self.weights(self.value_price),
                   self.n_step),
            CrowdValue(actor, critic, spread, self.horizon, self.rho, self.price),
        ]
        model, *planning = replace(self, samples=self.critics * self.proposals).planning(world, critic, sizes.action)
        planner = Centred(Crowd(model, actor.net, self.doubt), *planning, explore=self.explore)
        parts = {"critic": critic, "target": target, "spread": spread, "guide": guide}
        return self.agent(world, actor, lessons, start, parts, targets=[Target(target, critic, self.tau)], guide=guide,
                          execution=planner if self.plan else Steps(), offline=[Cloning(actor, world)])


@dataclass(frozen=True, kw_only=True)
class Bmpc(TdMpc2):
    """BMPC (method 127): the actor imitates the planner, so that alone it does nearly as well; values are the actor's.

    Plans are stored beside the steps; in every `replan`-th update `replan_rows` of them are renewed.
    """

    critics: Count = 2
    replan: Count = 10
    replan_rows: Count = 60

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        if not self.plan:
            raise ValueError("plan is false; bmpc learns from what it plans. Its actor alone is what `export` writes")
        if self.imitation:
            raise ValueError(f"imitation is {self.imitation}; bmpc imitates what it plans, not what data did")
        if self.venture:
            raise ValueError(f"venture is {self.venture}; bmpc imitates what it plans, and would imitate exploring")
        start, spread = self.bounded(1), Spread(self.tau)
        world = self.world(sizes, start)
        actor = ClippedActor(self.width, sizes.action, self.hidden, start, self.modern())
        critic = PairCritic(alone, self.width, self.hidden, self.critics, self.head(), start, self.judging(),
                            final_scale=0.0)
        target, ensembles = critic.slow(), self.foreseeing(sizes, start)
        model, *planning = self.planning(world, critic, sizes.action)
        model = self.priced(model, ensembles, -self.caution)
        planner, backup = Telling(model, *planning), ImaginedBackup(actor, target, model, Mean(), self.discount)
        lessons: list[Lesson] = [
            Unroll(world, critic, backup, self.horizon, self.weights(self.value_price)),
            Imitation(actor, spread, self.rho, self.entropy),
            *map(Foresight, ensembles.values()),
        ]
        parts = {"critic": critic, "target": target, "spread": spread, **ensembles}
        return self.agent(world, actor, lessons, start, parts, targets=[Target(target, critic, self.tau)],
                          execution=planner, events=[Replan(world, actor, planner, self.replan_rows, self.replan)])


@dataclass(frozen=True, kw_only=True)
class Fowm(Planned):
    """FOWM (method 65): a world model that learns from logs without asking beyond them, and a planner wary of the rest.

    State values learn the `expectile` of what the critics say of actions that were taken; the actor repeats these, by
    exp(`advantage` * how much better one was). `doubt` is the price, to the planner, of the critics' disagreement, and
    `explore` the noise of what the actor proposes to it.
    """

    horizon: Count = 5
    iterations: Count = 1
    elites: Count = 50
    tau: Share = 0.01
    value_price: Price = 0.1
    prioritized: Share = 0.6
    expectile: Annotated[float, Meta(gt=0, lt=1)] = 0.7
    advantage: Price = 3.0
    doubt: Price = 1.0
    explore: Price = 0.05

    def sequence(self) -> int:
        """See Options."""
        return self.horizon

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        if self.critics < 2:
            raise ValueError(f"critics is {self.critics}; it takes at least 2 to disagree")
        self.ask_all()
        start = self.bounded(self.horizon)
        world = self.world(sizes, start)
        actor = self.proposing(sizes, start, self.explore)
        critic = self.judges(sizes, start)
        value = PairCritic(alone, self.width, self.hidden, 1, self.head(), start, self.modern(), final_scale=0.0)
        target = critic.slow()
        lessons: list[Lesson] = [
            Unroll(world, critic, InSampleBackup(actor, value), self.horizon, self.weights(self.value_price),
                   self.n_step),
            Expectile(value, target, self.expectile, self.rho),
            Regression(actor, self.advantage, self.rho),
        ]
        parts = {"critic": critic, "target": target, "value": value}
        return self.agent(world, actor, lessons, start, parts, targets=[Target(target, critic, self.tau)],
                          execution=self.acting(self.planning(world, critic, sizes.action)))

    def planning(self, world: World, critic: Critic, action_size: int) -> tuple[Any, ...]:
        """See Planned."""
        model, *more = super().planning(world, critic, action_size)
        return Wary(model, self.doubt), *more


@dataclass(frozen=True, kw_only=True)
class Tcrl(Modelled, Acting, Greedy):
    """TCRL (method 33): a deterministic actor and critics of latents that a world model alone trains; no planner.

    The model is to be true to a slow copy of itself; slow copies follow by `tau`. `price` is that of the squared action
    before the tanh.
    """

    horizon: Count = 5
    n_step: Count = 3
    tau: Share = 0.01
    encoder_pace: Positive = 1.0
    actor_period: Count = 2
    price: Price = 1e-5

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        start = self.start()
        world = self.world(sizes, start)
        actor = self.deterministic(world, sizes, start, self.modern())
        critic = Critic(self.width, sizes.action, self.hidden, self.critics, self.head(), start, self.modern(),
                        self.tilt())
        target, slow_actor, slow_world = copy.deepcopy(critic), copy.deepcopy(actor), copy.deepcopy(world)
        lessons: list[Lesson] = [
            Bellman(critic, SoftBackup(slow_actor, target, NoTemperature(), Minimum())),
            self.smoothed(GreedyValue(actor, critic, Minimum(), self.actor_period, price=self.price)),
        ]
        pairs = ((target, critic), (slow_actor, actor), (slow_world, world))
        parts = {"critic": critic, "target": target, "slow_actor": slow_actor, "slow_latent": slow_world}
        return self.agent(world, actor, lessons, start, parts, target_latent=slow_world,
                          targets=[Target(slow, now, self.tau) for slow, now in pairs],
                          studies=[Consistency(world, slow_world, self.horizon, self.lr, self.weights(0.0))])


@dataclass(frozen=True, kw_only=True)
class Dreamer(Remembering):
    """DreamerV3 (Hafner et al. 2023): an actor and a critic that learn in what a recurrent world model imagines.

    `imagined` steps follow each state of a batch, `share` is lambda of their returns, `entropy` the price of the
    actor's, `imitation` that of acting as the data's actions do, `caution` that of imagined steps on which `models`
    disagree (as in MOTO, method 38). The critic's slow copy follows by `tau` and is to be kept to at the price
    `slowly`. Actor and critic learn at the shares `actor_pace` and `critic_pace` of `lr`.
    """

    imagined: Count = 15
    discount: Share = 0.997
    share: Share = 0.95
    entropy: Price = 3e-4
    imitation: Price = 0.0
    models: Natural = 0
    caution: Price = 0.0
    tau: Share = 0.02
    slowly: Price = 1.0
    actor_pace: Positive = 0.3
    critic_pace: Positive = 0.3

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        if self.n_step != 1:
            raise ValueError(f"n_step is {self.n_step}; a world model learns from single steps, horizon of them a time")
        if self.models == 1 or bool(self.models) != bool(self.caution):
            raise ValueError(f"models is {self.models} with caution {self.caution}; it takes at least 2 to disagree, "
                             "and a price")
        start, shape = self.start(), replace(self.plain(), norm="rms", activation="silu")
        world, prices = self.remembered(sizes, start), self.prices()
        actor = BoundedActor(world.size, sizes.action, self.hidden, start, shape)
        critic = Critic(world.size, 0, self.hidden, 1, self.head(), start, shape, final_scale=0.0)
        actor.net.pace, critic.net.pace = self.actor_pace, self.critic_pace
        slow, spread = copy.deepcopy(critic), Spread(0.01)
        ensemble = (Disagreement(world.size, sizes.action, self.hidden, self.models, start, shape) if self.models
                    else None)
        lessons: list[Lesson] = [
            Recall(world, prices, self.horizon, self.free, self.fast()),
            *([Aftersight(ensemble)] if ensemble else []),
            Imagine(world, actor, critic, spread, self.horizon, self.imagined, self.discount, self.share, self.entropy,
                    self.imitation, ensemble, self.caution, self.fast()),
            ImaginedValue(critic, slow, self.slowly, self.fast()),
        ]
        parts: dict[str, nn.Module] = {"critic": critic, "slow": slow, "spread": spread, "prices": prices}
        parts |= {"ensemble": ensemble} if ensemble else {}
        return self.agent(world, actor, lessons, start, parts, targets=[Target(slow, critic, self.tau)],
                          execution=Remember(world.cell, sizes.action), compile=False)


@dataclass(frozen=True, kw_only=True)
class Cqn(Values, Headed):
    """Coarse-to-fine Q-network (method 284): no actor; the critic's best interval, cut again, level by level.

    `levels` times the best of `bins` intervals is cut again; `explore` is the noise that acting adds.
    """

    levels: Count = 3
    bins: Annotated[int, Meta(ge=2)] = 5
    categories: Natural = 101
    n_step: Count = 3
    tau: Share = 0.02
    explore: Price = 0.1
    norm: str = "layer"
    lesson: ClassVar[type[CoarseBellman]] = CoarseBellman

    def build(self, sizes: Sizes) -> Agent:
        """See Options."""
        start = self.start()
        latent = self.latent(sizes, start)
        critic = self.coarse(latent, sizes, start)
        target, actor = copy.deepcopy(critic), CoarseActor(critic, self.explore)
        parts = {"critic": critic, "target": target}
        return self.agent(latent, actor, [self.lesson(critic, target, latent)], start, parts,
                          targets=[Target(target, critic, self.tau)])

    def coarse(self, latent: Latent, sizes: Sizes, start: torch.Generator) -> CoarseCritic:
        """The critic."""
        return CoarseCritic(latent.size, sizes.action, self.hidden, self.levels, self.bins, self.head(), start,
                            self.shape())


@dataclass(frozen=True, kw_only=True)
class CqnAs(Chunked, Cqn):
    """Coarse-to-fine Q-network with action sequences (method 341): CQN whose critic values the next actions together.

    What the chunks of the last steps say of this one is averaged, or each is executed to its end. The noise of
    `explore` is in each prediction, so an ensemble averages some of it away.
    """

    chunk: Count = 4
    execute: str = "ensemble"
    n_step: Count = 4
    lesson: ClassVar[type[CoarseBellman]] = SequenceBellman

    def coarse(self, latent: Latent, sizes: Sizes, start: torch.Generator) -> CoarseCritic:
        """See Cqn."""
        if self.chunk < 2:
            raise ValueError(f"chunk is {self.chunk}; cqn_as values at least 2 actions together")
        return SequenceCritic(latent.size, sizes.action, self.chunk, self.hidden, self.levels, self.bins, self.head(),
                              start, self.shape())


class Recipe(NamedTuple):
    """How an agent is built: a class of options, and those in which this recipe differs from its defaults."""

    kind: type[Options]
    about: str
    changes: dict[str, Any]

    def options(self) -> dict[str, Any]:
        """The keyword arguments with their defaults."""
        return {one.name: one.default for one in dataclasses.fields(self.kind)} | self.changes


RECIPES = {
    "sac": Recipe(Sac, "soft actor-critic", {}),
    "default": Recipe(
        CrossQ, "what we would ship: SAC with batch-normalised categorical critics of unit weights and scaled returns "
        "(as XQC, Palenicek et al. 2026, at half of its width, but at first with returns of three steps, held noise "
        "and the smaller critic, later with the mean of both)",
        {"critic_hidden": (256, 256, 256), "tau": 0.005, "unit": True, "categories": 101, "support": "linear",
         "bound": 5.0, "projected": True, "returns": 5.0, "lr": 3e-4, "beta1": 0.9, "n_step": 3, "anneal": 30_000,
         "updates_per_step": 2, "temperature": 0.01, "entropy_share": 0.5, "hold": 16, "pessimism": 0.0}),
    "td3": Recipe(Td3, "twin delayed deterministic policy gradient", {}),
    "drq": Recipe(
        Td3, "DrQ-v2: cameras, whose frames are shifted, and returns of three steps (Yarats et al. 2022)",
        {"hidden": (1024, 1024), "features": 50, "lr": 1e-4, "n_step": 3, "tau": 0.01, "actor_period": 1,
         "explore": 0.2, "smooth_bound": 0.3}),
    "redq": Recipe(
        Sac, "ten critics, a random pair in each target, 20 updates a step (Chen et al. 2021)",
        {"critics": 10, "subset": 2, "updates_per_step": 20, "actor_period": 20, "actor_asks": "mean"}),
    "droq": Recipe(
        Sac, "two critics with dropout and layer norm, 20 updates a step (Hiraoka et al. 2022)",
        {"norm": "layer", "dropout": 0.01, "updates_per_step": 20, "actor_period": 20, "actor_asks": "mean"}),
    "rlpd": Recipe(
        Sac, "ten layer-normalised critics, 4 updates a step; half of each batch may be prior data (method 316)",
        {"critics": 10, "subset": 2, "norm": "layer", "updates_per_step": 4, "actor_period": 4, "actor_asks": "mean",
         "entropy_share": 0.5}),
    "scaled": Recipe(
        Sac, "norm-bounded residual networks, categorical critics of scaled returns (as SimbaV2, XQC and FlashSAC)",
        {"hidden": (128,), "critic_hidden": (256, 256), "norm": "rms", "residual": True, "unit": True,
         "actor_alike": True, "categories": 101, "support": "linear", "bound": 5.0, "projected": True, "returns": 5.0,
         "hold": 16, "entropy_share": 0.5, "temperature": 0.01}),
    "tqc": Recipe(Tqc, "truncated quantile critics", {}),
    "crossq": Recipe(CrossQ, "batch-normalised critics without a target network", {}),
    "maxinfo": Recipe(MaxInfo, "SAC that also seeks what it would learn most from (method 74)", {}),
    "cqn": Recipe(Cqn, "coarse-to-fine critic without an actor (method 284)", {}),
    "cqn_as": Recipe(CqnAs, "the same of chunks of actions (method 341)", {}),
    "mrq": Recipe(MrQ, "MR.Q: values of latents that a model trains (method 24)", {}),
    "mrq_small": Recipe(
        MrQ, "the same at half of the width and five times the rate: a shorter model, targets replaced sooner, and a "
        "dearer action before the tanh",
        {"hidden": (256, 256, 256), "width": 256, "horizon": 3, "actor_period": 2, "target_period": 100,
         "price": 1e-3}),
    "tdmpc2": Recipe(TdMpc2, "TD-MPC2: plans with a world model of latents (method 53)", {}),
    "tdmpc2_small": Recipe(
        TdMpc2, "the same with 1 million parameters in place of 5",
        {"width": 128, "hidden": (384, 384), "critics": 2, "dropout": 0.0}),
    "modem": Recipe(MoDem, "MoDem: the same from a few demonstrations, in three phases (method 34)", {}),
    "modem_v2": Recipe(
        MoDemV2, "MoDem-V2: the same for real robots: wary plans near several actors that take over slowly (method 16)",
        {}),
    "bmpc": Recipe(Bmpc, "BMPC: the actor learns to do what the planner does, so it alone can be exported (method 127)",
                   {}),
    "fowm": Recipe(Fowm, "FOWM: a world model of logs and a planner that keeps to what they know (method 65)",
                   {}),
    "tcrl": Recipe(Tcrl, "TCRL: values of latents that a world model trains, without planning (method 33)", {}),
    "dreamer": Recipe(Dreamer, "DreamerV3: acts by what it imagines with a recurrent world model, 12M parameters", {}),
    "dreamer_tiny": Recipe(
        Dreamer, "the same with half a million parameters",
        {"width": 256, "groups": 8, "classes": 8, "hidden": (128, 128), "horizon": 32, "categories": 101}),
}


def options(recipe: str) -> dict[str, Any]:
    """The keyword arguments of `recipe` with their defaults."""
    if recipe not in RECIPES:
        raise ValueError(f"no recipe is named {recipe!r}; there are {', '.join(RECIPES)}")
    return RECIPES[recipe].options()


def make(recipe: str, obs_size: int, action_size: int, frames: tuple[int, int, int] | None = None,
         **configuration: Any) -> Agent:
    """The agent of `recipe` for observations (O,), and frames (C, H, W) where they are given, and actions (A,).

    An unknown recipe or option is an error that lists the choices, a value of another type or range one that says both.
    """
    known = options(recipe)
    unknown = [name for name in configuration if name not in known]
    if unknown:
        raise ValueError(f"{recipe} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return _checked(recipe, known | configuration).build(Sizes(obs_size, action_size, frames))


def _checked(recipe: str, values: dict[str, Any]) -> Options:
    """The options of `recipe` with these values, of which each has the type and the range that is written beside it."""
    whole = {name for name, value in options(recipe).items() if type(value) is int}
    values = {name: int(value) if name in whole and isinstance(value, float) and value.is_integer() else value
              for name, value in values.items()}  # 2e4 is a float in JSON
    try:
        return msgspec.convert(values, RECIPES[recipe].kind)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`")  # of a list's element with its place
        value = values.get(name.partition("[")[0])
        raise ValueError(f"{recipe}: {name} is {value!r}: {said}" if path else f"{recipe}: {said}") from error


def _reduction(name: str) -> Reduction:
    choices: dict[str, Reduction] = {"minimum": Minimum(), "mean": Mean()}
    if name not in choices:
        raise ValueError(f"actor_asks is {name!r}; it is one of {', '.join(choices)}")
    return choices[name]
