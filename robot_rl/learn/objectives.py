"""Objectives: what actors are trained for. Axes: B batch, E ensemble, O observation (latent), A action."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robot_rl.learn.actors import GaussianActor
from robot_rl.learn.critics import Critic, Reduction


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


class SoftValue:
    """The actor maximises the reduced value of its action plus temperature times its entropy."""

    def __init__(self, actor: GaussianActor, critic: Critic, temperature: Temperature, reduction: Reduction):
        self.actor, self.critic, self.temperature, self.reduction = actor, critic, temperature, reduction

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """(B, A) standard normal noise."""
        return torch.randn(batch, self.actor.action_size, generator=generator, device=generator.device)

    def loss(self, latent: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """latent (B, O), noise (B, A) -> loss () and the log density of the actions (B,)."""
        action, log_density = self.actor.sample(latent, noise)
        value = self.reduction(self.critic.values(latent, action))
        return (self.temperature() * log_density - value).mean(), log_density
