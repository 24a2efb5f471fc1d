"""Backups: everything that changes what the critics are regressed to. `target(batch, draw) -> y`. Axes: B, O, A."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robot_rl.learn.actors import GaussianActor
from robot_rl.learn.critics import Critic, Reduction
from robot_rl.learn.objectives import Temperature

Tensors = dict[str, Tensor]


class Draw(NamedTuple):
    """The chance in one target, drawn before the compiled part of an update."""

    noise: Tensor
    """(B, A) standard normal."""
    members: Tensor | None
    """(E',) int64, the critics to ask; None: all."""


class SoftBackup:
    """y = reward + discount * (reduced target value of a fresh next action - temperature * its log density)."""

    def __init__(
        self,
        actor: GaussianActor,
        target: Critic,
        temperature: Temperature,
        reduction: Reduction,
        entropy_scale: float = 1.0,
    ):
        self.actor, self.critic, self.temperature, self.reduction = actor, target, temperature, reduction
        self.entropy_scale = entropy_scale

    def draw(self, batch: int, generator: torch.Generator) -> Draw:
        """The chance for a batch of that many transitions."""
        noise = torch.randn(batch, self.actor.action_size, generator=generator, device=generator.device)
        return Draw(noise, self.reduction.members(self.critic.members, generator))

    @torch.no_grad()
    def target(self, batch: Tensors, draw: Draw) -> Tensor:
        """reward (B,), discount (B,), next_latent (B, O) -> y (B,)."""
        action, log_density = self.actor.sample(batch["next_latent"], draw.noise)
        value = self.reduction(self.critic.values(batch["next_latent"], action, draw.members))
        bonus = self.entropy_scale * self.temperature() * log_density
        return batch["reward"] + batch["discount"] * (value - bonus)
