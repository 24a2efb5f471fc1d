"""Backups: everything that changes what the critics are regressed to. `target(batch, draw) -> y`.

Axes: B batch, E ensemble, O observation (latent), A action, V outputs of a value head, M atoms of a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robot_rl.learn.actors import Actor
from robot_rl.learn.critics import Chance, Critic, Reduction
from robot_rl.learn.nets import Mlp, Shape

Tensors = dict[str, Tensor]


class Draw(NamedTuple):
    """The chance in one target, drawn before the compiled part of an update."""

    noise: Tensor
    """(B, A) standard normal."""
    critics: Chance = Chance()


class SoftBackup:
    """y = reward + discount * (reduced target value of a fresh next action - temperature * its log density)."""

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
        """reward (B,), discount (B,), next_latent (B, O) -> y (B,)."""
        action, log_density = self.actor.sample(batch["next_latent"], draw.noise)
        return self.bootstrap(batch, self.critic(batch["next_latent"], action, draw.critics), log_density)

    def bootstrap(self, batch: Tensors, outputs: Tensor, log_density: Tensor) -> Tensor:
        """The critics' outputs (E, B, V) for the next action and its log density (B,) -> y (B,)."""
        value = self.reduction(self.critic.head.decode(outputs))
        bonus = self.entropy_scale * self.temperature() * log_density
        y: Tensor = batch["reward"] + batch["discount"] * (value - bonus)
        return y


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
        return (self(latent, action).var(0, correction=0) / self.noise).log1p().mean(-1)


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

    @torch.no_grad()
    def target(self, batch: Tensors, draw: Draw) -> Tensor:
        """reward (B,), discount (B,), next_latent (B, O) -> y (B,)."""
        action, log_density = self.actor.sample(batch["next_latent"], draw.noise)
        outputs = self.critic(batch["next_latent"], action, draw.critics)
        gain = self.curiosity() * self.model.gain(batch["next_latent"], action)
        return self.bootstrap(batch, outputs, log_density) + batch["discount"] * gain


class TruncatedBackup(SoftBackup):
    """The quantiles of all members in one distribution, without the `drop` largest of each (TQC)."""

    def __init__(self, actor: Actor, target: Critic, temperature: nn.Module, reduction: Reduction, drop: int):
        super().__init__(actor, target, temperature, reduction)
        size = target.head.size
        if not 0 <= drop < size:
            raise ValueError(f"drop is {drop}; it is at least 0 and below the {size} quantiles")
        self.kept = target.members * (size - drop)

    def bootstrap(self, batch: Tensors, outputs: Tensor, log_density: Tensor) -> Tensor:
        """The critics' outputs (E, B, V) for the next action and its log density (B,) -> y (B, M)."""
        atoms = outputs.movedim(0, 1).flatten(1).sort(-1).values[:, : self.kept]
        bonus = self.temperature() * log_density
        return batch["reward"][:, None] + batch["discount"][:, None] * (atoms - bonus[:, None])


class RewardScale(nn.Module):
    """The mean size of a reward, by which values are divided; targets keep the scale of their own critics (MR.Q)."""

    mean: Tensor
    value: Tensor
    target: Tensor

    def __init__(self, memory: float = 0.999):
        super().__init__()
        self.memory = memory
        for name in ("mean", "value", "target"):
            self.register_buffer(name, torch.ones(()))

    @torch.no_grad()
    def observe(self, reward: Tensor) -> None:
        """Take the rewards (B,) into the mean, in place."""
        self.mean.lerp_(reward.abs().mean(), 1 - self.memory)

    @torch.no_grad()
    def sync(self) -> None:
        """The target critics are those of now; the critics learn by today's mean from here on."""
        self.target.copy_(self.value)
        self.value.copy_(self.mean.clamp(min=1e-3))


class ScaledBackup(SoftBackup):
    """A soft backup between critics whose values are in units of a `RewardScale`."""

    def __init__(self, actor: Actor, target: Critic, temperature: nn.Module, reduction: Reduction, scale: RewardScale):
        super().__init__(actor, target, temperature, reduction)
        self.scale = scale

    def bootstrap(self, batch: Tensors, outputs: Tensor, log_density: Tensor) -> Tensor:
        """The critics' outputs (E, B, V) for the next action and its log density (B,) -> y (B,)."""
        self.scale.observe(batch["reward"])
        value = self.reduction(self.critic.head.decode(outputs)) * self.scale.target
        y: Tensor = (batch["reward"] + batch["discount"] * value) / self.scale.value
        return y
