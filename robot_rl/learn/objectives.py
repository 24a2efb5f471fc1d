"""Lessons: what one step of an update teaches which part. Axes: B batch, E ensemble, O observation (latent), A action.

A lesson names the module that it optimises, draws its chance before the compiled part of an update, and gives a loss.
What it finds out on the way (`Tensors` beside the loss) later lessons of the same update can use.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robot_rl.learn.actors import Actor, DeterministicActor
from robot_rl.learn.backups import Disagreement, Draw, SoftBackup, Tensors
from robot_rl.learn.critics import Chance, CoarseCritic, Critic, Reduction
from robot_rl.learn.latents import Latent
from robot_rl.replay import PRIOR


class Lesson(Protocol):
    """One loss for one part."""

    @property
    def part(self) -> nn.Module:
        """What it optimises."""

    @property
    def period(self) -> int:
        """Updates from one time to the next."""

    def draw(self, batch: int, generator: torch.Generator) -> Any: ...

    def loss(self, batch: Tensors, draw: Any) -> tuple[Tensor, Tensors, Tensors]:
        """A batch (B, ...) with `latent` and `next_latent` -> loss (), metrics () each, what later lessons use."""


class ActorLesson(Lesson, Protocol):
    """One for an actor."""

    @property
    def actor(self) -> Actor: ...


def taught(critic: nn.Module, latent: Latent | None) -> nn.Module:
    """What the critics' loss optimises: the critics, and the latent where it is to learn from them and can learn."""
    learns = latent is not None and any(parameter.requires_grad for parameter in latent.parameters())
    return nn.ModuleList([critic, latent]) if learns and latent is not None else critic


class Bellman:
    """The critics are regressed to a backup's target: critic_step, written once. A `latent` given learns with them."""

    period = 1

    def __init__(self, critic: Critic, backup: SoftBackup, latent: Latent | None = None):
        self.critic, self.backup = critic, backup
        self.part = taught(critic, latent)

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Draw, Chance]:
        """Of the target and of the critics."""
        return self.backup.draw(batch, generator), self.critic.draw(batch, generator)

    def loss(self, batch: Tensors, draw: tuple[Draw, Chance]) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        y, outputs = self.sides(batch, draw)
        head, wanted = self.critic.head, self.critic.head.mean(y)
        gap = wanted - head.decode(outputs.detach())
        loss = (head.loss(outputs, y) * self.critic.tilt(gap) * batch["weight"]).mean(1).sum()
        found = {"error": gap.abs().amax(0), "latent": batch["latent"].detach()}
        return loss, {"critic/loss": loss.detach(), "critic/target": wanted.mean()}, found

    def sides(self, batch: Tensors, draw: tuple[Draw, Chance]) -> tuple[Tensor, Tensor]:
        """The target, (B,) or as the head understands it, and the critics' outputs (E, B, V)."""
        return self.backup.target(batch, draw[0]), self.critic(batch["latent"], batch["action"], draw[1])


class JointBellman(Bellman):
    """This step and the next go through the critics in one batch, so that a batch norm sees both (CrossQ).

    Without target critics the norm alone keeps the critics from running away; with them, as in XQC (Palenicek et al.
    2026), they see the same joint batch.
    """

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Draw, Chance]:
        """The chance is in the next action only."""
        return self.backup.draw(batch, generator), Chance()

    def sides(self, batch: Tensors, draw: tuple[Draw, Chance]) -> tuple[Tensor, Tensor]:
        """See Bellman."""
        with torch.no_grad():
            action, log_density = self.backup.actor.sample(batch["next_latent"], draw[0].noise)
        both = torch.cat((batch["latent"], batch["next_latent"])), torch.cat((batch["action"], action))
        now, following = self.critic(*both, training=True).chunk(2, 1)
        with torch.no_grad():
            if self.backup.critic is not self.critic:
                following = self.backup.critic(*both, training=True).chunk(2, 1)[1]
            bonus = self.backup.bonus(batch["next_latent"], action, log_density)
            y = self.backup.bootstrap(batch, following.detach(), bonus)
        return y, now


class CoarseBellman:
    """Every level of a coarse-to-fine critic learns the value of the interval that the action fell in (method 284).

    The target of a level and a dimension is the best interval's value there, at the next observation's own choices.
    """

    period = 1

    def __init__(self, critic: CoarseCritic, target: CoarseCritic, latent: Latent | None = None):
        self.critic, self.target = critic, target
        self.part = taught(critic, latent)

    def draw(self, batch: int, generator: torch.Generator) -> None:
        """Nothing is random here."""

    def loss(self, batch: Tensors, draw: None) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        critic, head = self.critic, self.critic.head
        zero = torch.zeros_like(batch["action"])
        here, there, taken, best = [zero], [zero], [], []  # centres and choices of each level
        with torch.no_grad():
            for level in range(critic.levels):
                taken.append(critic.place(here[-1], level, batch["action"]))
                here.append(critic.zoom(here[-1], level, taken[-1]))
                values = head.decode(critic(batch["next_latent"], level, there[-1]))  # the online critic chooses
                best.append(values.argmax(-1))
                there.append(critic.zoom(there[-1], level, best[-1]))
            value = head.decode(self.of(self.target.every(batch["next_latent"], there[:-1]), best))
            y = batch["reward"][:, None] + batch["discount"][:, None] * value  # (L, B, A)
        chosen, weights = self.of(critic.every(batch["latent"], here[:-1]), taken), self.weights(batch)
        loss = (head.loss(chosen.flatten(0, 2)[None], y.flatten()).view(y.shape) * weights).mean((1, 2)).sum()
        error = ((head.decode(chosen.detach()) - y).abs() * weights).mean(-1).amax(0)
        return loss, {"critic/loss": loss.detach(), "critic/target": y.mean()}, {"error": error}

    def of(self, outputs: Tensor, bins: list[Tensor]) -> Tensor:
        """Outputs (L, B, A, N, V) of these bins, (B, A) int64 for each level -> (L, B, A, V)."""
        index = torch.stack(bins)[..., None, None]
        return outputs.gather(-2, index.expand(*index.shape[:-1], outputs.shape[-1]))[..., 0, :]

    def weights(self, batch: Tensors) -> Tensor:
        """How much the loss of each number of the action counts, (B, A) or (B, 1)."""
        return batch["weight"][:, None]


class SequenceBellman(CoarseBellman):
    """The same for sequences of actions, but nothing is learned of the actions after an episode's end (method 341)."""

    def weights(self, batch: Tensors) -> Tensor:
        """See CoarseBellman; (B, K * A)."""
        held = batch["held"]
        return held.repeat_interleave(batch["action"].shape[1] // held.shape[1], 1)


class SoftValue:
    """The actor maximises the reduced value of its action plus temperature times its entropy."""

    def __init__(
        self, actor: Actor, critic: Critic, temperature: nn.Module, reduction: Reduction, period: int = 1
    ):
        self.part = self.actor = actor
        self.critic, self.temperature, self.reduction, self.period = critic, temperature, reduction, period

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Chance]:
        """(B, A) standard normal noise, and the critics' chance."""
        noise = torch.randn(batch, self.actor.action_size, generator=generator, device=generator.device)
        return noise, self.critic.draw(batch, generator, self.reduction)

    def loss(self, batch: Tensors, draw: tuple[Tensor, Chance]) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        action, log_density = self.actor.sample(batch["latent"], draw[0], training=True)
        value = self.reduction(self.critic.values(batch["latent"], action, draw[1]))
        loss = (self.temperature() * log_density - value).mean()
        density = log_density.detach()
        return loss, {"actor/loss": loss.detach(), "actor/entropy": -density.mean()}, {"log_density": density}


class GreedyValue(SoftValue):
    """A deterministic actor maximises the reduced value of its action.

    `price` is that of the squared action before the tanh.
    """

    actor: DeterministicActor

    def __init__(
        self, actor: DeterministicActor, critic: Critic, reduction: Reduction, period: int = 1, price: float = 0.0
    ):
        super().__init__(actor, critic, NoTemperature(), reduction, period)
        self.price = price

    def loss(self, batch: Tensors, draw: tuple[Tensor, Chance]) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        raw = self.actor.raw(batch["latent"], training=True)
        value = self.reduction(self.critic.values(batch["latent"], raw.tanh(), draw[1]))
        loss = self.price * raw.square().mean() - value.mean()
        return loss, {"actor/loss": loss.detach()}, {}


class CuriousValue(SoftValue):
    """A soft value plus what the action would teach a model, at the price `curiosity` (MaxInfoRL, method 74).

    It also finds what the actions of a slow copy of the actor would teach, for `Curiosity` to compare with.
    """

    def __init__(
        self,
        actor: Actor,
        slow: Actor,
        critic: Critic,
        temperature: nn.Module,
        reduction: Reduction,
        model: Disagreement,
        curiosity: nn.Module,
        period: int = 1,
    ):
        super().__init__(actor, critic, temperature, reduction, period)
        self.slow, self.model, self.curiosity = slow, model, curiosity

    def loss(self, batch: Tensors, draw: tuple[Tensor, Chance]) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        latent = batch["latent"]
        action, log_density = self.actor.sample(latent, draw[0], training=True)
        value = self.reduction(self.critic.values(latent, action, draw[1]))
        gain = self.model.gain(latent, action)
        loss = (self.temperature() * log_density - value - self.curiosity() * gain).mean()
        with torch.no_grad():
            usual = self.model.gain(latent, self.slow.sample(latent, draw[0])[0])
        density = log_density.detach()
        metrics = {"actor/loss": loss.detach(), "actor/entropy": -density.mean(), "actor/gain": gain.detach().mean()}
        return loss, metrics, {"log_density": density, "lack": (usual - gain.detach())}


class Paying:
    """The lesson of an actor, which also pays a `cost`."""

    actor: Actor
    part: nn.Module
    period: int

    def __init__(self, lesson: ActorLesson):
        self.lesson, self.actor = lesson, lesson.actor
        self.part, self.period = lesson.part, lesson.period

    def draw(self, batch: int, generator: torch.Generator) -> Any:
        """The lesson's."""
        return self.lesson.draw(batch, generator)

    def loss(self, batch: Tensors, draw: Any) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        loss, metrics, found = self.lesson.loss(batch, draw)
        cost, said = self.cost(batch, loss.detach())
        return loss + cost, metrics | said, found

    def cost(self, batch: Tensors, loss: Tensor) -> tuple[Tensor, Tensors]:
        """A batch and the lesson's own loss () -> what is paid (), and metrics."""
        raise NotImplementedError


class Smooth(Paying):
    """Pays `price` times the squared change of the mean action, summed over A.

    The change is that from an observation to the one bootstrapped from, n steps later (CAPS, Mysore et al. 2021).
    """

    def __init__(self, lesson: ActorLesson, price: float):
        super().__init__(lesson)
        self.price = price

    def cost(self, batch: Tensors, loss: Tensor) -> tuple[Tensor, Tensors]:
        """See Paying."""
        change = (self.actor.mean(batch["next_latent"]) - self.actor.mean(batch["latent"])).square().sum(-1).mean()
        return self.price * change, {"actor/change": change.detach()}


class Fading(nn.Module):
    """A price that falls to 0 in so many losses."""

    count: Tensor

    def __init__(self, first: float, steps: int):
        super().__init__()
        if steps < 1:
            raise ValueError(f"imitation_steps is {steps}; a price falls in at least 1 update")
        self.first, self.steps = first, steps
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def forward(self) -> Tensor:
        """The price () of this loss."""
        price: Tensor = self.first * (1 - self.count / self.steps).clamp(min=0)
        self.count.add_(1)
        return price


class Imitating(Paying):
    """Pays for acting unlike prior data, at a price that fades.

    Paid for is the squared distance of the mean action, averaged over A, from that of rows of the prior, in units of
    the lesson's own loss (as TD3+BC weighs the two, Fujimoto and Gu 2021).
    """

    def __init__(self, lesson: ActorLesson, price: Fading):
        super().__init__(lesson)
        self.price = price

    def cost(self, batch: Tensors, loss: Tensor) -> tuple[Tensor, Tensors]:
        """See Paying; source (B,), of sequences (B, T): there the first step counts."""
        action, source = batch["action"], batch["source"]
        if source.dim() == 2:
            action, source = action[:, 0], source[:, 0]
        off = (self.actor.mean(batch["latent"]) - action).square().mean(-1)
        cost = (off * (source == PRIOR)).mean()
        return self.price() * (1 + loss.abs()) * cost, {"actor/unlike": cost.detach()}


class Foresight:
    """An ensemble learns to predict the change of the latent and the reward."""

    period = 1

    def __init__(self, model: Disagreement):
        self.part = self.model = model

    def draw(self, batch: int, generator: torch.Generator) -> None:
        """Nothing is random here: the members differ by their first weights."""

    def loss(self, batch: Tensors, draw: None) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson; of sequences (B, T, ...) the first step counts."""
        keys = "next_latent", "action", "reward", "weight"
        following, action, reward, weight = (
            batch[key][:, 0] if batch["reward"].dim() == 2 else batch[key] for key in keys)
        latent = batch["latent"].detach()
        wanted = torch.cat((following - latent, reward[:, None]), -1)
        error = (self.model(latent, action) - wanted).square().mean(-1)  # (E, B)
        loss = (error * weight).mean(1).sum()
        return loss, {"model/foresight": loss.detach()}, {}


class Curiosity:
    """The price of what actions teach rises while the actor's teach less than those of its slow copy."""

    def __init__(self, price: Temperature, period: int = 1):
        self.part = self.price = price
        self.period = period

    def draw(self, batch: int, generator: torch.Generator) -> None:
        """Nothing is random here."""

    def loss(self, batch: Tensors, draw: None) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        return -self.price.log * batch["lack"].mean(), {"actor/curiosity": self.price()}, {}


class Temperature(nn.Module):
    """The price of entropy, tuned so that the policy's entropy stays at `target_entropy` (nats, of all A together)."""

    def __init__(self, initial: float, target_entropy: float):
        super().__init__()
        if initial <= 0:
            raise ValueError(f"temperature: the initial value is {initial}, it must be above 0")
        self.log = nn.Parameter(torch.tensor(math.log(initial)))
        self.target_entropy = target_entropy

    def forward(self) -> Tensor:
        """The temperature () without gradient."""
        return self.log.detach().exp()

    def loss(self, log_density: Tensor) -> Tensor:
        """(B,) -> (): falls as the temperature rises while the entropy is below its target, and the other way round."""
        return -self.log * (log_density.detach().mean() + self.target_entropy)


class NoTemperature(nn.Module):
    """Entropy is worth nothing."""

    def forward(self) -> float:
        """0."""
        return 0.0


class Tuning:
    """The temperature follows the entropy that the actor's lesson of the same update found."""

    def __init__(self, temperature: Temperature, period: int = 1):
        self.part = self.temperature = temperature
        self.period = period

    def draw(self, batch: int, generator: torch.Generator) -> None:
        """Nothing is random here."""

    def loss(self, batch: Tensors, draw: None) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        return self.temperature.loss(batch["log_density"]), {"actor/temperature": self.temperature()}, {}
