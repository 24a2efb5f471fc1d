"""The agent: four verbs over the parts of a recipe. It holds no environment, replay, logger or path. Axes: B, O, A."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from robot_rl import memory
from robot_rl.learn.actors import Actor, Policy
from robot_rl.learn.backups import NoScale, Tensors
from robot_rl.learn.chunks import Execute, Execution, Steps
from robot_rl.learn.compiled import compiled
from robot_rl.learn.crowd import Guide
from robot_rl.learn.latents import Latent, LatentMirror
from robot_rl.learn.nets import Adam, follow
from robot_rl.learn.noise import Noise
from robot_rl.learn.objectives import Lesson
from robot_rl.learn.pixels import Pixels
from robot_rl.observe import Observation
from robot_rl.replay import Batch, Data, NotFinite

USED = ("obs", "action", "reward", "discount", "next_obs", "weight", "held", "plan", "source")
PAYING = 0.05  # share of rewards that are not 0 in a batch of which nothing is left to be found
LOOKS_EVERY = 50  # updates from one look at a GPU's losses to the next: each makes the host wait


@dataclasses.dataclass
class Schedule:
    """How much is learned from how much data."""

    batch: int = 256
    horizon: int = 1
    """Steps of the sequences (B, T, ...) that lessons see; 1: single transitions (B, ...)."""
    n_step: int = 1
    """Rewards in a return."""
    discount: float = 0.99
    updates_per_step: int = 1
    """Updates in one call of `update`, which a trainer makes once per environment step."""
    lr: float = 3e-4
    beta1: float = 0.9
    """What Adam's average of the gradients keeps of itself."""
    clip: float = 0.0
    """Bound on the norm of each gradient; 0: none."""
    prioritized: float = 0.0
    """Exponent by which transitions that the critics were wrong about are drawn more often; 0: all alike."""
    shift: int = 0
    """Pixels by which camera frames are moved at most."""
    anneal: int = 0
    """Updates in which returns shorten from `n_step` to `least` rewards, and `hold` to 1, in even stretches; 0: they do
    not. An update counts as far as its batch pays: fully where the share `PAYING` of the rewards or more is not 0."""
    least: int = 1
    hold: int = 1
    """Actions that one exploring noise is for, at most."""

    def n_step_at(self, updates: float) -> int:
        """Rewards in a return after updates that count as so many."""
        return self._shortened(self.n_step, self.least, updates)

    def hold_at(self, updates: float) -> int:
        """The most actions that one exploring noise is for, likewise."""
        return self._shortened(self.hold, 1, updates)

    def _shortened(self, first: int, last: int, updates: float) -> int:
        lengths = first - last + 1
        return first - min(int(updates * lengths / self.anneal), lengths - 1) if self.anneal else first


@dataclasses.dataclass(frozen=True)
class Target:
    """A slow copy of a part."""

    copy: nn.Module
    source: nn.Module
    tau: float = 0.005
    """Share of the way that the copy moves to its source in each update."""


class Event(Protocol):
    """Something rare that happens between updates, such as a target that is replaced at once."""

    period: int
    """Updates from one time to the next."""

    def __call__(self, data: Data) -> None: ...


class Scale(Protocol):
    """Units of rewards and values; it is a module too."""

    def __call__(self, batch: Tensors) -> Tensors: ...


class Study(Protocol):
    """A lesson with batches of its own, such as a model's: sequences, and many at a time."""

    @property
    def part(self) -> nn.Module: ...

    period: int
    repeats: int
    """Batches each time."""
    horizon: int
    lr: float

    def loss(self, batch: Tensors) -> tuple[Tensor, Tensors]: ...


class Aging(Protocol):
    """A part that changes with the updates, as far as their batches pay (see Schedule)."""

    age: Tensor


class Agent:
    """Parts that learn off policy by lessons; which ones is the recipe's choice."""

    def __init__(
        self,
        latent: Latent,
        actor: Actor,
        parts: Mapping[str, nn.Module],
        lessons: Sequence[Lesson],
        schedule: Schedule,
        start: torch.Generator,
        *,
        targets: Sequence[Target] = (),
        events: Sequence[Event] = (),
        studies: Sequence[Study] = (),
        target_latent: Latent | None = None,
        scale: Scale | None = None,
        execution: Execution = Steps(),  # noqa: B008  # holds nothing
        exploring: Execution | None = None,
        guide: Guide | None = None,
        offline: Sequence[Lesson] = (),
        aging: Sequence[Aging] = (),
        shown: Actor | None = None,
        device: str = "cpu",
        compile: bool | None = None,
    ):
        """`parts` is everything that is saved, by name. `start` made the first weights and seeds the agent's own
        generator, which all later chance comes from. `target_latent` sees next observations where it is given;
        `scale` changes rewards before any lesson sees them, `execution` is the way from the actor's output to the
        action of a step and `exploring` that of training, if it is another (with the same carry); `shown` the actor
        that is exported and acts without exploring, if it is another. After offline updates `guide` takes a share of
        the steps of training. `offline` are the lessons of offline updates, where these have their own, that teach the
        actor but no model; `aging` those of the parts that are told how many updates count, see Schedule.
        """
        memory.keep_freed()
        self.latent, self.actor, self.schedule, self.execution = latent, actor, schedule, execution
        self.exploring, self.guide = exploring or execution, guide
        self.shown = shown or actor
        self.target_latent, self.scale, self.noise = target_latent or latent, scale or NoScale(), Noise()
        self.lessons, self.targets, self.events, self.studies = lessons, targets, events, studies
        self.offline, self.aging, self._every = offline, aging, (*lessons, *offline)
        self.modules = nn.ModuleDict(parts).to(device)
        for target in targets:
            target.copy.requires_grad_(False)
        within = {id(part): name for name, part in self.modules.named_modules()}
        self._names = within | {id(part): name for name, part in parts.items()}
        rates = {self._name(lesson.part): (lesson.part, schedule.lr) for lesson in self._every}
        rates |= {self._name(study.part): (study.part, study.lr) for study in studies}
        self.optimisers = {name: Adam(part, lr, schedule.clip, (schedule.beta1, 0.999))
                           for name, (part, lr) in rates.items()}
        seed = int(torch.randint(2**62, (), generator=start))
        self.generator = torch.Generator(device).manual_seed(seed)
        self.updates = self.prepared = 0
        self.blind = 0.0  # updates that do not count, for their batches did not pay
        self._mirror: tuple[LatentMirror, dict[bool, Execute]] | None = None
        self._guided: Callable[..., np.ndarray] | None = None
        self._pixels = Pixels(schedule.shift, device=device)
        self._newest: Batch = {}
        self._device, self._compile = device, compile
        every = tuple(range(len(lessons)))
        self._steps = {every: compiled(self._step_of(every), compile, device)}  # warns early, if at all
        self._study_steps = [compiled(self._study_of(study), compile, device) for study in studies]

    def act(self, obs: Observation, carry: Any = None, explore: bool = True) -> tuple[np.ndarray, Any]:
        """obs (B, O) float32, or {"state", "frames"} of B, -> action (B, A) float32 in [-1, 1], and the next carry.

        The carry is None at an episode's start, and stays so where nothing is handed from step to step. Raises
        NotFinite, with the newest batch learned from, rather than give an action that is none.
        """
        seen = (obs["state"], obs["frames"]) if isinstance(obs, dict) else (np.asarray(obs, np.float32),)
        shape = len(seen[0]), self.actor.action_size
        noise = np.zeros(shape, np.float32)
        if explore:
            noise = self.noise.draw(shape, self.generator, self.hold).cpu().numpy()
        if explore and self.guide and self.guided():
            self._guided = self._guided or self.guide.mirror()
            return self._real(self._guided(noise, *seen)), None
        if self._mirror is None:
            ways = {True: (self.actor, self.exploring), False: (self.shown, self.execution)}
            self._mirror = self.latent.mirror(), {
                key: (execution.bare if self.unmodelled else execution).mirror(actor)
                for key, (actor, execution) in ways.items()}
        latent, execute = self._mirror
        action, carry = execute[explore](latent(*seen), noise, carry)
        return self._real(action), carry

    def guided(self) -> bool:
        """Draw whether the guide, if there is one, is what acts next in training."""
        if not self.guide or not 0 < self.prepared < self.updates:
            return False
        chance = float(torch.rand((), generator=self.generator, device=self.generator.device))
        return chance >= self.guide.share(self.updates - self.prepared)

    def _real(self, action: np.ndarray) -> np.ndarray:
        if not np.isfinite(action).all():
            raise NotFinite(f"update {self.updates}: the policy's action is {action.tolist()}", self._newest)
        return action

    @property
    def hold(self) -> int:
        """The most actions that one exploring noise is for, by now."""
        return self.schedule.hold_at(self.updates - self.blind)

    @property
    def plans(self) -> bool:
        """Whether a planner acts, once there is a model."""
        return self.execution.bare is not self.execution

    @property
    def unmodelled(self) -> bool:
        """Whether there were only updates by the `offline` lessons: no planner acts yet."""
        return 0 < self.prepared == self.updates

    @property
    def horizon(self) -> int:
        """The longest sequence that a batch of single steps holds for it."""
        return max(self.schedule.horizon * self.execution.length, *(study.horizon for study in self.studies), 1)

    def update(self, data: Data, offline: bool = False) -> Tensors:
        """Learn from `updates_per_step` batches of `data`; returns the last one's metrics, () each, on the device.

        `offline` says that `data` is prior data alone, before anything is collected; what has learned otherwise before
        goes on so. Raises NotFinite, with the batch, for a loss that is none; on a GPU only every so often, with the
        newest batch then.
        """
        metrics: Tensors = {}
        plan, before = self.schedule, self.unmodelled
        apart, every = offline and bool(self.offline) and self.updates == self.prepared, self._every
        numbers = range(len(self.lessons), len(every)) if apart else range(len(self.lessons))
        if self.guide and before and not apart:
            self.guide.take(self.latent, self.actor)
        for _ in range(plan.updates_per_step):
            for event in self.events:
                if self.updates % event.period == 0:
                    event(data)
            for study, step in zip(self.studies, self._study_steps, strict=True):
                for _ in range(study.repeats if self.updates % study.period == 0 else 0):
                    sampled = data.sample(plan.batch, study.horizon, 1, plan.discount)
                    metrics |= step(self._tensors(sampled))
            self.updates += 1
            self.prepared += apart
            length = plan.horizon * self.execution.length  # one of the two is 1
            age = self.updates - 1 - self.blind
            n_step = plan.n_step_at(age)
            for part in self.aging:
                part.age.fill_(age)
            sampled = self.execution.cut(data.sample(plan.batch, length, n_step, plan.discount))
            if plan.anneal:
                self.blind += 1 - min(1.0, float(np.mean(sampled["reward"] != 0)) / PAYING)
            due = tuple(i for i in numbers if self.updates % every[i].period == 0)
            draws = [every[i].draw(plan.batch, self.generator) for i in due]
            metrics |= self._step(due)(self._tensors(sampled), draws)
            self._newest, error = sampled, metrics.pop("error")
            if self.generator.device.type == "cpu" or self.updates % LOOKS_EVERY == 0:
                self._demand_finite(metrics)
            if plan.prioritized and not apart:
                data.prioritise(sampled["index"], sampled["source"], error.cpu().numpy())
        self._changed(before != self.unmodelled)
        return metrics

    def _demand_finite(self, metrics: Tensors) -> None:
        finite = torch.stack([value.float() for value in metrics.values()]).isfinite()
        if not finite.all():
            bad = [name for name, fine in zip(metrics, finite.tolist(), strict=True) if not fine]
            raise NotFinite(f"update {self.updates}: {', '.join(bad)} not finite", self._newest)

    def learn(self, due: tuple[int, ...], batch: Tensors, draws: list[Any]) -> Tensors:
        """One step of the lessons that are due, and of the targets, on a batch (B, ...): metrics, and `error` (B,).

        Of sequences, (B, T, ...), the error is (B, T).
        """
        self.latent.observe(batch["obs"])
        with torch.no_grad():
            following = self.target_latent.look(batch, "next_")
            metrics = {"critic/reward": batch["reward"].mean()}
            batch = self.scale(batch)
        batch = batch | {"latent": self.latent.look(batch), "next_latent": following}
        for i, draw in zip(due, draws, strict=True):
            lesson = self._every[i]
            loss, said, found = lesson.loss(batch, draw)
            self.optimisers[self._name(lesson.part)].step(loss)
            metrics, batch = metrics | said, batch | found
        metrics["error"] = batch["error"]
        for target in self.targets:
            follow(target.copy, target.source, target.tau)
        return metrics

    def study_step(self, study: Study, batch: Tensors) -> Tensors:
        """One step of a study on sequences (B, T, ...)."""
        loss, metrics = study.loss(batch)
        self.optimisers[self._name(study.part)].step(loss)
        return metrics

    def _step(self, due: tuple[int, ...]) -> Callable[..., Tensors]:
        """The step of the lessons that are due, compiled for just these."""
        if due not in self._steps:
            self._steps[due] = compiled(self._step_of(due), self._compile, self._device)
        return self._steps[due]

    def _step_of(self, due: tuple[int, ...]) -> Callable[..., Tensors]:
        def step(batch: Tensors, draws: list[Any]) -> Tensors:
            return self.learn(due, batch, draws)

        return step

    def _study_of(self, study: Study) -> Callable[..., Tensors]:
        def step(batch: Tensors) -> Tensors:
            return self.study_step(study, batch)

        return step

    def _name(self, part: nn.Module) -> str:
        """The name of a part, or of several that learn from one loss."""
        together = part if isinstance(part, nn.ModuleList) else (part,)
        return "+".join(self._names[id(one)] for one in together)

    def _tensors(self, sampled: Batch) -> Tensors:
        """A batch on the device."""
        tensors = {key: torch.as_tensor(sampled[key], device=self.generator.device) for key in USED if key in sampled}
        if "frames" in sampled:
            tensors |= self._pixels(sampled, self.generator)
        return tensors

    def _changed(self, another: bool = False) -> None:
        """On the CPU what acts shares memory with what learns, until `another` acts; from elsewhere it is copied."""
        if another or self.generator.device.type != "cpu":
            self._mirror = self._guided = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to continue as if never stopped: tensors and numbers."""
        return {
            "modules": self.modules.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "generator": self.generator.get_state(),
            "device": self.generator.device.type,
            "noise": self.noise.state_dict(),
            "updates": self.updates,
            "prepared": self.prepared,
            "blind": self.blind,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, in place; an error names parts that are missing, unknown or of another size."""
        self.modules.load_state_dict(state["modules"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        if state["device"] == self.generator.device.type:
            self.generator.set_state(state["generator"].cpu())  # elsewhere chance goes on from the seed
        device = self.generator.device
        self.noise.load_state_dict({name: value.to(device) for name, value in state["noise"].items()})
        self.updates, self.prepared, self.blind = state["updates"], state["prepared"], state["blind"]
        self._changed(another=True)

    def policy(self, planner: bool = False, guided: bool = False) -> Policy:
        """A frozen copy, on the CPU, of what acts without exploring: with its `planner`, or the actor alone.

        Or, `guided`, of the guide. Raises ValueError when there is no planner, or no guide.
        """
        if guided:
            if not self.guide:
                raise ValueError("this agent has no guide to export; one that hands over to a planner has")
            return Policy(self.guide.latent.frozen(), self.guide.actor.frozen(), self.execution.bare,
                          self.actor.action_size)
        execution = self.execution if planner else self.execution.bare
        if planner and not self.plans:
            raise ValueError("this agent has no planner to export; a recipe that plans, with plan=true, has one")
        return Policy(self.latent.frozen(), self.shown.frozen(), execution, self.actor.action_size)
