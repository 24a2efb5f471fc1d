"""Backups: everything that changes what the critics are regressed to. `target(batch, draw) -> y`.

Axes: B batch, E ensemble, O observation (latent), A action, V outputs of a value head, M atoms of a target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robot_rl.learn.actors import Actor
from robot_rl.learn.critics import Chance, Critic, Reduction
from robot_rl.learn.nets import Mlp, Shape
from robot_rl.replay import Data

Tensors = dict[str, Tensor]


class Draw(NamedTuple):
    """The chance in one target, drawn before the compiled part of an update."""

    noise: Tensor
    """(B, A) standard normal."""
    critics: Chance = Chance()


class SoftBackup:
    """y = reward + discount * (reduced target value of a fresh next action - temperature * its log density).

    Only what a next action is worth beside its value (`bonus`), or how outputs become a target, is another's to change.
    """

    def __init__(
        self, actor: Actor, target: Critic, temperature: nn.Module, reduction: Reduction, entropy_scale: float = 1.0
    ):
        self.actor, self.critic, self.temperature, self.reduction = actor, target, temperature, reduction
        self.entropy_scale = entropy_scale

    def draw(self, batch: int, generator: torch.Generator) -> Draw:
        """The chance for a batch of that many transitions."""
        noise = torch.randn(batch, self.actor.action_size, generator=generator, device=generator.device)
        return Draw(noise, self.critic.draw(batch, generator, self.reduction))

    @torch.no_grad()
    def target(self, batch: Tensors, draw: Draw) -> Tensor:
        """reward (B,), discount (B,), next_latent (B, O) -> y (B,), or what else the head gives."""
        latent = batch["next_latent"]
        action, log_density = self.actor.sample(latent, draw.noise)
        outputs = self.critic(latent, action, draw.critics)
        return self.bootstrap(batch, outputs, self.bonus(latent, action, log_density))

    def bonus(self, latent: Tensor, action: Tensor, log_density: Tensor) -> Tensor:
        """What the action (B, A) at a latent (B, O), of this log density (B,), is worth beside its value, (B,)."""
        worth: Tensor = -self.entropy_scale * self.temperature() * log_density
        return worth

    def bootstrap(self, batch: Tensors, outputs: Tensor, bonus: Tensor) -> Tensor:
        """The critics' outputs (E, B, V) for the next action and its bonus (B,) -> y."""
        return self.critic.head.backup(outputs, self.reduction, batch["reward"], batch["discount"], bonus)


class Disagreement(nn.Module):
    """An ensemble that predicts what an action changes and earns, and how much a try would teach it.

    The gain of (latent, action) is the mean over the predicted numbers of log(1 + variance over the members / noise),
    which falls as the members come to agree (MaxInfoRL, method 74).
    """

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        hidden: Sequence[int],
        members: int,
        generator: torch.Generator,
        shape: Shape = Shape(),  # noqa: B008  # frozen
        noise: float = 1e-2,
    ):
        super().__init__()
        self.noise = noise
        self.net = Mlp((obs_size + action_size, *hidden, obs_size + 1), members, generator, shape)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """(B, O), (B, A) -> change of the latent and reward (E, B, O + 1)."""
        outputs: Tensor = self.net(torch.cat((latent, action), -1))
        return outputs

    def gain(self, latent: Tensor, action: Tensor) -> Tensor:
        """(B, O), (B, A) -> (B,), at least 0."""
        return _gain(self(latent, action), self.noise)

    def frozen(self) -> FrozenDisagreement:
        """A copy in plain layers."""
        return FrozenDisagreement(self)


class FrozenDisagreement(nn.Module):
    """What an ensemble would learn, in plain layers, in float32."""

    def __init__(self, model: Disagreement):
        super().__init__()
        self.noise = model.noise
        self.members = nn.ModuleList(model.net.frozen(member) for member in range(model.net.members))

    def gain(self, latent: Tensor, action: Tensor) -> Tensor:
        """See Disagreement."""
        both = torch.cat((latent, action), -1)
        return _gain(torch.stack([member(both) for member in self.members]), self.noise)


def _gain(said: Tensor, noise: float) -> Tensor:
    return ((said - said.mean(0)).square().mean(0) / noise).log1p().mean(-1)


class CuriousBackup(SoftBackup):
    """A soft backup that also rewards what the next action would teach, at the price `curiosity`."""

    def __init__(
        self,
        actor: Actor,
        target: Critic,
        temperature: nn.Module,
        reduction: Reduction,
        model: Disagreement,
        curiosity: nn.Module,
    ):
        super().__init__(actor, target, temperature, reduction)
        self.model, self.curiosity = model, curiosity

    def bonus(self, latent: Tensor, action: Tensor, log_density: Tensor) -> Tensor:
        """See SoftBackup."""
        worth: Tensor = super().bonus(latent, action, log_density) + self.curiosity() * self.model.gain(latent, action)
        return worth


class TruncatedBackup(SoftBackup):
    """The quantiles of all members in one distribution, without the `drop` largest of each (TQC)."""

    def __init__(self, actor: Actor, target: Critic, temperature: nn.Module, reduction: Reduction, drop: int):
        super().__init__(actor, target, temperature, reduction)
        size = target.head.size
        if not 0 <= drop < size:
            raise ValueError(f"drop is {drop}; it is at least 0 and below the {size} quantiles")
        self.kept = target.members * (size - drop)

    def bootstrap(self, batch: Tensors, outputs: Tensor, bonus: Tensor) -> Tensor:
        """The critics' outputs (E, B, V) for the next action and its bonus (B,) -> y (B, M)."""
        atoms = outputs.movedim(0, 1).flatten(1).sort(-1).values[:, : self.kept]
        return batch["reward"][:, None] + batch["discount"][:, None] * (atoms + bonus[:, None])


class NoScale(nn.Module):
    """Rewards as they are."""

    def forward(self, batch: Tensors) -> Tensors:
        """The batch."""
        return batch


class ReturnScale(NoScale):
    """The size of discounted returns, by which rewards are divided.

    It is the standard deviation of the returns, or what it takes to have the largest one so far within +-`bound`, if
    that is more: values then fit a head of fixed support whatever the task's rewards (as in SimbaV2).
    """

    mean: Tensor
    square: Tensor
    largest: Tensor
    count: Tensor

    def __init__(self, bound: float, memory: float = 0.99):
        super().__init__()
        if bound <= 0:
            raise ValueError(f"returns are to lie within +-{bound}, which must be above 0")
        self.bound, self.memory = bound, memory
        for name in ("mean", "square", "largest", "count"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def take(self, returns: Tensor) -> None:
        """Take the returns (B,) into the statistics, in place."""
        share = (1 / self.count.add_(1)).clamp(min=1 - self.memory)
        self.mean.lerp_(returns.mean(), share)
        self.square.lerp_(returns.square().mean(), share)
        self.largest.copy_(torch.maximum(self.largest, returns.abs().max()))

    def size(self) -> Tensor:
        """What rewards are divided by, (); 1 while no reward was seen."""
        size = torch.maximum((self.square - self.mean.square()).clamp(min=0).sqrt(), self.largest / self.bound)
        return torch.where(size > 0, size, 1.0)

    def forward(self, batch: Tensors) -> Tensors:
        """The batch with its rewards scaled."""
        return batch | {"reward": batch["reward"] / self.size()}


class Survey:
    """Every `period` updates a scale learns from the returns over `steps` steps from where a batch begins."""

    def __init__(self, scale: ReturnScale, batch: int, discount: float, period: int = 100):
        self.scale, self.batch, self.discount, self.period = scale, batch, discount, period
        self.steps = min(1000, math.ceil(2 / max(1 - discount, 1e-3)))  # what comes later is below e**-2 of its worth

    def __call__(self, data: Data) -> None:
        """See Event."""
        returns = data.sample(self.batch, 1, self.steps, self.discount)["reward"]
        self.scale.take(torch.as_tensor(returns, device=self.scale.mean.device))


class RewardScale(NoScale):
    """The mean size of a reward, by which values are divided; targets keep the scale of their own critics (MR.Q)."""

    value: Tensor
    target: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("value", "target"):
            self.register_buffer(name, torch.ones(()))

    @torch.no_grad()
    def sync(self, data: Data) -> None:
        """The target critics are those of now; the critics learn by the mean size in `data` from here on."""
        self.target.copy_(self.value)
        self.value.fill_(max(data.reward_size(), 1e-3))

    def forward(self, batch: Tensors) -> Tensors:
        """The batch in units of today's critics: rewards, and discounts of values in units of the target critics."""
        return batch | {"reward": batch["reward"] / self.value,
                        "discount": batch["discount"] * (self.target / self.value)}
