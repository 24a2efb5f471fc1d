"""Options of recipes, in groups, each with the parts that it alone decides.

A recipe is made of groups and of options of its own; a user sees their fields in one flat list.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from msgspec import Meta
from torch import nn

from robot_rl.learn import chunks
from robot_rl.learn.actors import Actor, DeterministicActor, GaussianActor
from robot_rl.learn.agent import Agent, Schedule, Target
from robot_rl.learn.backups import ReturnScale, SoftBackup, Survey
from robot_rl.learn.compiled import Fast, compiled
from robot_rl.learn.critics import Critic, Even, Head, Histogram, Scalar, Tilt, TwoHot
from robot_rl.learn.dreams import Harmony, Prices
from robot_rl.learn.encoders import Convolutions, Pretrained
from robot_rl.learn.latents import CameraLatent, Identity, Latent, RunningNorm
from robot_rl.learn.nets import Shape, compute_dtype
from robot_rl.learn.objectives import ActorLesson, Bellman, Fading, Imitating, Lesson, Smooth, SoftValue, Temperature
from robot_rl.learn.planner import Planner, Search, WorldModel
from robot_rl.learn.recurrent import RecurrentWorld
from robot_rl.learn.world import Weights, World
from robot_rl.smoothing import Smoothing

Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Price = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Sizes(NamedTuple):
    """What an agent sees and does, in numbers."""

    obs: int
    action: int
    frames: tuple[int, int, int] | None = None
    """(C, H, W) of camera frames, where there are some."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of every learner: seed, data, budget, arithmetic, and how camera frames are seen.

    `beta1` is Adam's first decay rate, `hold` the most actions that one exploring noise is for. In `anneal` updates,
    unless that is 0, returns shorten from `n_step` rewards to 1 and `hold` to 1, in even stretches: long returns learn
    quicker at first and, being of what older actors did, less in the end; held noise finds what is worth something and
    disturbs what is good. An update counts as far as its batch pays, fully where at least a twentieth of the rewards
    is not 0: before, there is something to be found. `features` is the size of what is made of frames by convolutions
    of so many `channels`, or by the file `encoder` (see Pretrained), `shift` how many pixels they are moved by at most
    while learning.
    """

    seed: Natural = 0
    device: str = "cpu"
    hidden: Sequence[Count] = (256, 256)
    batch: Count = 256
    lr: Positive = 3e-4
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    clip: Price = 0.0
    discount: Share = 0.99
    n_step: Count = 1
    anneal: Natural = 0
    updates_per_step: Count = 1
    prioritized: Share = 0.0
    normalize: bool = True
    hold: Count = 1
    features: Count = 64
    channels: Count = 32
    encoder: str | None = None
    shift: Natural = 4
    dtype: str = "auto"
    compile: bool | None = None

    def start(self) -> torch.Generator:
        """What the first weights are drawn from."""
        return torch.Generator().manual_seed(self.seed)

    def plain(self) -> Shape:
        """Of networks without any of the options that shape critics."""
        return Shape(dtype=compute_dtype(self.dtype, self.device))

    def latent(self, sizes: Sizes, start: torch.Generator) -> Latent:
        """What the actor and the critics see of an observation: chosen here only."""
        if self.encoder is not None and sizes.frames is None:
            raise ValueError(f"encoder {self.encoder}: the task shows no camera frames")
        state = RunningNorm(sizes.obs) if self.normalize and sizes.obs else Identity(sizes.obs)
        if sizes.frames is None:
            return state
        encoder = (Convolutions(sizes.frames, self.channels, start, self.plain().dtype) if self.encoder is None else
                   Pretrained(self.encoder, sizes.frames))
        return CameraLatent(state, encoder, self.features, start)

    def steps(self) -> tuple[int, int]:
        """Rewards in a return: at first, and at least."""
        return self.n_step, 1

    def sequence(self) -> int:
        """Steps of the sequences that lessons see; 1: single transitions."""
        return 1

    def build(self, sizes: Sizes) -> Agent:
        """The agent that learns what these options say."""
        raise NotImplementedError

    def agent(self, latent: Latent, actor: Actor, lessons: Sequence[Lesson], start: torch.Generator,
              parts: Mapping[str, nn.Module], **more: Any) -> Agent:
        """The agent of these parts and of the two that every agent has; see Agent."""
        parts = {"latent": latent, "actor": actor, **parts}
        first, least = self.steps()
        plan = Schedule(self.batch, self.sequence(), first, self.discount, self.updates_per_step, self.lr,
                        self.beta1, self.clip, self.prioritized, self.shift, self.anneal, least, self.hold)
        more = {"device": self.device, "compile": self.compile} | more
        return Agent(latent, actor, parts, lessons, plan, start, **more)


@dataclass(frozen=True, kw_only=True)
class Chunked(Options):
    """Of actors that give the next `chunk` actions at once.

    `execute` (open_loop or ensemble) makes steps of them; returns are of as many steps at least.
    """

    chunk: Count = 1
    execute: str = "open_loop"

    def whole(self, sizes: Sizes) -> Sizes:
        """The sizes with a chunk as the action."""
        return sizes._replace(action=sizes.action * self.chunk)

    def steps(self) -> tuple[int, int]:
        """See Options."""
        return max(self.n_step, self.chunk), self.chunk

    def agent(self, latent: Latent, actor: Actor, lessons: Sequence[Lesson], start: torch.Generator,
              parts: Mapping[str, nn.Module], **more: Any) -> Agent:
        """See Options."""
        choices = {"open_loop": chunks.OpenLoop, "ensemble": chunks.Ensemble}
        if self.execute not in choices:
            raise ValueError(f"execute is {self.execute!r}; it is one of {', '.join(choices)}")
        if self.chunk != 1:
            more |= {"execution": choices[self.execute](self.chunk, actor.action_size // self.chunk)}
        return super().agent(latent, actor, lessons, start, parts, **more)


@dataclass(frozen=True, kw_only=True)
class Values(Options):
    """Of critics that see the observation: how their networks are built.

    `returns` above 0 scales rewards until the returns have a standard deviation of 1, and none is beyond +-`returns`.
    """

    norm: str = "none"
    residual: bool = False
    unit: bool = False
    returns: Price = 0.0
    batched: ClassVar[bool] = False
    """Whether the critics see this step and the next in one batch, which a batch norm learns from."""

    def shape(self) -> Shape:
        """Of the critics' networks."""
        if self.norm == "batch" and not self.batched:
            raise ValueError("norm is batch, which crossq and default learn with; others take none, layer or rms")
        return replace(self.plain(), norm=self.norm, residual=self.residual, unit=self.unit)

    def agent(self, latent: Latent, actor: Actor, lessons: Sequence[Lesson], start: torch.Generator,
              parts: Mapping[str, nn.Module], **more: Any) -> Agent:
        """See Options."""
        if self.returns:
            scale = ReturnScale(self.returns)
            parts = {**parts, "scale": scale}
            more |= {"scale": scale, "events": [Survey(scale, self.batch, self.discount)]}
        return super().agent(latent, actor, lessons, start, parts, **more)


@dataclass(frozen=True, kw_only=True)
class Headed(Options):
    """Of critics whose value is a number, or with `categories` above 0 a distribution over so many.

    The categories lie evenly within +-`bound`: the values (`support` linear) or their symlogs (symlog).
    """

    categories: Natural = 0
    support: str = "symlog"
    bound: Positive = 10.0

    def head(self, projected: bool = False) -> Head:
        """What the outputs of the critics mean."""
        choices = {"symlog": TwoHot, "linear": Histogram}
        if self.support not in choices:
            raise ValueError(f"support is {self.support!r}; it is one of {', '.join(choices)}")
        if projected and (not self.categories or self.support != "linear"):
            raise ValueError(f"projected is for critics with categories and support linear, not {self.categories} and "
                             f"{self.support}: a distribution keeps its mean there only")
        if not self.categories:
            return Scalar()
        return choices[self.support](self.categories, self.bound, self.device, projected)


@dataclass(frozen=True, kw_only=True)
class Projecting(Headed):
    """Of heads whose targets can be distributions: with `projected`, of those with categories, they are."""

    projected: bool = False

    def head(self, projected: bool = False) -> Head:
        """See Headed."""
        return super().head(projected or self.projected)


@dataclass(frozen=True, kw_only=True)
class Imitative(Options):
    """Of an actor that may keep to prior data: to act unlike it has the price `imitation`.

    The price falls to 0 in `imitation_steps` of the actor's updates.
    """

    imitation: Price = 0.0
    imitation_steps: Count = 20_000

    def imitating(self, lesson: ActorLesson) -> ActorLesson:
        """An actor's lesson with that price."""
        return Imitating(lesson, Fading(self.imitation, self.imitation_steps)) if self.imitation else lesson

    def agent(self, latent: Latent, actor: Actor, lessons: Sequence[Lesson], start: torch.Generator,
              parts: Mapping[str, nn.Module], **more: Any) -> Agent:
        """See Options."""
        prices = [lesson.price for lesson in lessons if isinstance(lesson, Imitating)]
        parts = {**parts, **dict(zip(["imitation"], prices, strict=False))}
        return super().agent(latent, actor, lessons, start, parts, **more)


@dataclass(frozen=True, kw_only=True)
class Acting(Imitative):
    """Of critics beside an actor, which learns in every `actor_period`-th update.

    `smoothness` is the price of a change of its mean. `optimism` above 0.5 is the expectile that critics go by at
    first; it falls to 0.5, the mean, in `optimism_steps` updates. With `average` above 0 an average of the actor acts
    without exploring and is exported (a robot explores by it too); it moves by that share in each update, which evens
    out what an actor unlearns.
    """

    critics: Count = 2
    actor_period: Count = 1
    average: Share = 0.0
    smoothness: Price = 0.0
    optimism: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    optimism_steps: Count = 100_000

    def tilt(self) -> Even | Tilt:
        """How much the errors of critics weigh."""
        return Tilt(self.optimism, self.optimism_steps) if self.optimism != 0.5 else Even()

    def smoothed(self, lesson: SoftValue) -> Lesson:
        """An actor's lesson with the prices of change and of acting unlike prior data."""
        return self.imitating(Smooth(lesson, self.smoothness) if self.smoothness else lesson)

    def agent(self, latent: Latent, actor: Actor, lessons: Sequence[Lesson], start: torch.Generator,
              parts: Mapping[str, nn.Module], *, targets: Sequence[Target] = (), **more: Any) -> Agent:
        """See Options."""
        if self.average:
            shown = copy.deepcopy(actor)
            parts, targets = {**parts, "average": shown}, [*targets, Target(shown, actor, self.average)]
            more |= {"shown": shown}
        return super().agent(latent, actor, lessons, start, parts, targets=targets, **more)


@dataclass(frozen=True, kw_only=True)
class Ensemble(Acting, Values):
    """Of an ensemble of critics; `actor_alike` gives the actor the shape of their networks."""

    critic_hidden: Sequence[Count] | None = None
    actor_alike: bool = False

    def actor_shape(self) -> Shape:
        """Of the actor's network."""
        return self.shape() if self.actor_alike else self.plain()

    def gaussian(self, latent: Latent, sizes: Sizes, start: torch.Generator) -> GaussianActor:
        """A stochastic actor."""
        return GaussianActor(latent.size, sizes.action, self.hidden, start, self.actor_shape())

    def ensemble(self, latent: Latent, sizes: Sizes, head: Head, start: torch.Generator) -> Critic:
        """The critics."""
        hidden = self.critic_hidden or self.hidden
        return Critic(latent.size, sizes.action, hidden, self.critics, head, start, self.shape(), self.tilt())


class Chain(NamedTuple):
    """Ensembles of which the first learns from `target`, its slow copy, and each other from the one before it (444).

    The last has seen as many more Bellman updates as there are others.
    """

    ensembles: list[Critic]
    target: Critic

    @property
    def last(self) -> Critic:
        """The one that actors ask."""
        return self.ensembles[-1]

    def lessons(self, backup: Callable[[Critic], SoftBackup], latent: Latent) -> list[Lesson]:
        """One for each, given the backup from a critic of what follows; the first's teaches the latent too."""
        sources, latents = (self.target, *self.ensembles[:-1]), (latent, *(None,) * (len(self.ensembles) - 1))
        return [Bellman(critic, backup(source), taught) for critic, source, taught in
                zip(self.ensembles, sources, latents, strict=True)]

    def parts(self) -> dict[str, nn.Module]:
        """All, by name."""
        others = {f"critic_{k}": critic for k, critic in enumerate(self.ensembles[1:], 2)}
        return {"critic": self.ensembles[0], **others, "target": self.target}


@dataclass(frozen=True, kw_only=True)
class Slow(Ensemble):
    """Of critics with slow copies, `tau` of the way behind, and the share `dropout` of their units left out.

    `chain` ensembles learn at once, each from the one before it.
    """

    tau: Share = 0.005
    dropout: Share = 0.0
    chain: Count = 1

    def chained(self, latent: Latent, sizes: Sizes, head: Head, start: torch.Generator) -> Chain:
        """The critics and the slow copy."""
        ensembles = [self.ensemble(latent, sizes, head, start) for _ in range(self.chain)]
        return Chain(ensembles, copy.deepcopy(ensembles[0]))

    def follow(self, chain: Chain) -> Target:
        """How the slow copy follows."""
        return Target(chain.target, chain.ensembles[0], self.tau)

    def shape(self) -> Shape:
        """Of the critics' networks."""
        return replace(super().shape(), dropout=self.dropout)


@dataclass(frozen=True, kw_only=True)
class Smoothed(Options):
    """Of rewards that are spread in time as an episode enters the memory (DreamSmooth, method 0).

    `smoothing` is none, gaussian:STD, uniform:WIDTH or ema:SHARE, see Smoothing; returns are reported as they were.
    """

    smoothing: str = "none"

    def __post_init__(self) -> None:
        Smoothing.parse(self.smoothing)


@dataclass(frozen=True, kw_only=True)
class Modelled(Headed):
    """Of a world model of latents of `width` numbers, in groups of `simplex` that sum to 1.

    It is unrolled for `horizon` steps, each of which counts `rho` times the one before; `consistency`, `reward_price`
    and `end_price` weigh its losses. What encodes an observation is `encoder_hidden` wide and learns at the share
    `encoder_pace` of `lr`.
    """

    width: Count = 512
    hidden: Sequence[Count] = (512, 512)
    encoder_hidden: Sequence[Count] = (256,)
    encoder_pace: Positive = 0.3
    simplex: Count = 8
    horizon: Count = 3
    rho: Share = 0.5
    consistency: Price = 20.0
    reward_price: Price = 0.1
    end_price: Price = 1.0
    categories: Natural = 101
    clip: Price = 20.0

    def world(self, sizes: Sizes, start: torch.Generator) -> World:
        """The latent and its model."""
        return World(self.latent(sizes, start), sizes.action, self.width, self.hidden, self.simplex, self.head(), start,
                     self.plain().dtype, self.encoder_hidden, self.encoder_pace)

    def weights(self, value: float) -> Weights:
        """Of the losses, that of the values being `value`."""
        return Weights(self.consistency, self.reward_price, value, self.end_price, self.rho)

    def modern(self) -> Shape:
        """Of the networks that see these latents."""
        return replace(self.plain(), norm="layer", activation="mish", sees_hidden=True)


SEARCHES = ("horizon", "iterations", "samples", "proposals", "elites", "sharpness", "least", "most", "asked", "doubt")
"""Options that say how a planner searches, of which no weights know."""


@dataclass(frozen=True, kw_only=True)
class Planned(Smoothed, Modelled):
    """Of a planner: `plan` acts with it, in training as without exploring; else the actor acts.

    In `iterations`, `samples` candidates are valued, of which the actor makes `proposals`, and `elites` make the plan
    by exp(`sharpness` * value), with a standard deviation of `least` to `most`. The values are those of `critics`
    whose networks do without the share `dropout` of their first hidden units; each iteration asks `asked` of them, one
    further on each time, or all of them (0). They learn from returns of `n_step` rewards, or as many as a sequence of
    `horizon` steps still has; the model learns from single steps.
    """

    critics: Count = 5
    asked: Natural = 0
    dropout: Share = 0.0
    plan: bool = True
    iterations: Count = 6
    samples: Count = 512
    proposals: Natural = 24
    elites: Count = 64
    sharpness: Positive = 0.5
    least: Positive = 0.05
    most: Positive = 2.0

    def steps(self) -> tuple[int, int]:
        """See Options; of what is sampled."""
        return 1, 1

    def bounded(self, most: int) -> torch.Generator:
        """What the first weights are drawn from. Refuses returns of more than so many rewards, or that shorten."""
        if self.n_step > most:
            raise ValueError(f"n_step is {self.n_step}; returns go on for {most} here at most")
        if self.n_step > 1 and self.anneal:
            raise ValueError(f"anneal is {self.anneal}; returns along the sequences of a world model do not shorten")
        return self.start()

    def ask_all(self) -> None:
        """Refuse to ask some of the critics, where all of them are to say how far they disagree."""
        if self.asked:
            raise ValueError(f"asked is {self.asked}; here all critics are asked how far they disagree")

    def judges(self, sizes: Sizes, start: torch.Generator) -> Critic:
        """Critics of the model's latents."""
        return Critic(self.width, sizes.action, self.hidden, self.critics, self.head(), start, self.judging(),
                      final_scale=0.0)

    def judging(self) -> Shape:
        """Of the critics' networks."""
        return replace(self.modern(), dropout=self.dropout, dropout_first=True)

    def proposing(self, sizes: Sizes, start: torch.Generator, explore: float, members: int = 1) -> DeterministicActor:
        """An actor of the model's latents, with the same noise wherever some is drawn."""
        return DeterministicActor(self.width, sizes.action, self.hidden, start, self.modern(), explore, smooth=explore,
                                  smooth_bound=2.0, members=members)

    def acting(self, planning: Sequence[Any]) -> Planner | chunks.Steps:
        """What acts, of what a planner is made of."""
        return Planner(*planning) if self.plan else chunks.Steps()

    def planning(self, world: World, critic: Critic, action_size: int) -> tuple[Any, ...]:
        """What a planner is made of."""
        search = Search(self.horizon, self.iterations, self.samples, self.proposals, self.elites, self.sharpness,
                        self.least, self.most)
        model = WorldModel(world, critic, min(self.asked, self.critics))
        return model, action_size, search, self.discount, self.compile, self.device


@dataclass(frozen=True, kw_only=True)
class Remembering(Smoothed, Headed):
    """Of a recurrent world model: a state of `width` numbers in `blocks`, and `groups` of so many `classes`.

    It learns along `horizon` steps. What is earned counts 1, what is seen `seen_price`, and `dynamics_price` and
    `representation_price` weigh how far the posterior is from the prior, of which `free` nats cost nothing; `harmony`
    learns what these losses count beside (HarmonyDream, method 14). Compiled are the single steps, what is told and
    imagined, and the critic's loss: a graph of all the steps takes minutes to make.
    """

    width: Count = 2048
    blocks: Count = 8
    groups: Count = 32
    classes: Count = 16
    hidden: Sequence[Count] = (256, 256, 256)
    horizon: Count = 64
    seen_price: Price = 1.0
    dynamics_price: Price = 1.0
    representation_price: Price = 0.1
    free: Price = 1.0
    harmony: bool = False
    categories: Natural = 255
    bound: Positive = 20.0
    batch: Count = 16
    lr: Positive = 1e-4
    clip: Price = 100.0
    shift: Natural = 0

    def sequence(self) -> int:
        """See Options."""
        return self.horizon

    def remembered(self, sizes: Sizes, start: torch.Generator) -> RecurrentWorld:
        """The latent and its model."""
        if self.horizon < 2:
            raise ValueError(f"horizon is {self.horizon}; a recurrent model learns along at least 2 steps")
        return RecurrentWorld(self.latent(sizes, start), sizes.action, self.width, self.blocks, self.groups,
                              self.classes, self.hidden, self.head(), start, sizes.frames, self.channels,
                              self.plain().dtype)

    def fast(self) -> Fast:
        """What compiles the lessons' pieces."""
        return partial(compiled, wanted=self.compile, device=self.device)

    def prices(self) -> Prices:
        """What the model's losses count."""
        kind = Harmony if self.harmony else Prices
        return kind(state=self.seen_price, frames=self.seen_price, reward=1.0, end=1.0, dynamics=self.dynamics_price,
                    representation=self.representation_price)


@dataclass(frozen=True, kw_only=True)
class Soft(Options):
    """Of a tuned price of entropy; the target entropy is -A times `entropy_share` unless it is given."""

    temperature: Positive = 1.0
    target_entropy: float | None = None
    entropy_share: Price = 1.0

    def heat(self, sizes: Sizes) -> Temperature:
        """The price."""
        usual = -sizes.action * self.entropy_share
        return Temperature(self.temperature, usual if self.target_entropy is None else self.target_entropy)


@dataclass(frozen=True, kw_only=True)
class Greedy(Options):
    """Of a deterministic actor: the noise that acting adds, and the bounded noise in targets."""

    explore: Price = 0.1
    smooth: Price = 0.2
    smooth_bound: Price = 0.5

    def deterministic(self, latent: Latent, sizes: Sizes, start: torch.Generator, shape: Shape) -> DeterministicActor:
        """The actor."""
        return DeterministicActor(latent.size, sizes.action, self.hidden, start, shape, self.explore, self.smooth,
                                  self.smooth_bound)
