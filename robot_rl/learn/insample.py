"""Learning from data without asking what no data knows: every target is of actions that were taken (FOWM, method 65).

Axes: B batch, T time (horizon), E ensemble, A action, Z latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robot_rl.learn.actors import Actor, DeterministicActor
from robot_rl.learn.backups import Draw, SoftBackup, Tensors
from robot_rl.learn.critics import Chance, Critic, Mean, Minimum, PairCritic
from robot_rl.learn.objectives import NoTemperature
from robot_rl.learn.world import Weights

MOST = 100.0
"""What an action that was better than expected counts at most, beside 1 for one that was as good."""


class InSampleBackup(SoftBackup):
    """y = reward + discount * V(next latent), of state values that need no action."""

    def __init__(self, actor: Actor, value: PairCritic):
        super().__init__(actor, value, NoTemperature(), Mean())

    def draw(self, batch: int, generator: torch.Generator) -> Draw:
        """Of the values alone."""
        return Draw(torch.empty(0), self.critic.draw(batch, generator))

    @torch.no_grad()
    def target(self, batch: Tensors, draw: Draw) -> Tensor:
        """See SoftBackup."""
        latent, reward = batch["next_latent"], batch["reward"]
        return self.bootstrap(batch, self.critic(latent, latent, draw.critics), torch.zeros_like(reward))


class Expectile:
    """State values learn an expectile of what slow critics say of the actions that were taken, the smaller of two.

    Above 0.5 it is near the best of what the data did there. The latents are those of an unrolled sequence.
    """

    period = 1

    def __init__(self, value: PairCritic, critic: Critic, expectile: float, rho: float):
        if not 0.5 <= expectile < 1.0:
            raise ValueError(f"expectile is {expectile}; it is at least 0.5 and below 1")
        self.part = self.value = value
        self.critic, self.expectile, self.rho = critic, expectile, rho

    def draw(self, batch: int, generator: torch.Generator) -> Chance:
        """Which two critics are asked."""
        return Chance(Minimum(2).members(self.critic.members, generator))

    def loss(self, batch: Tensors, draw: Chance) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson; it also finds by how much each action was better than expected (B, T)."""
        latent, action = batch["latents"][:, :-1].flatten(0, 1), batch["action"].flatten(0, 1)
        with torch.no_grad():
            wanted = self.critic.values(latent, action, draw).amin(0)
        outputs, head = self.value(latent, latent), self.value.head
        gap = wanted - head.decode(outputs.detach())
        tilt = 2 * torch.where(gap > 0, self.expectile, 1 - self.expectile)
        errors = (head.loss(outputs, wanted) * tilt).mean(0).view_as(batch["reward"])
        loss = (errors * Weights(rho=self.rho).along(batch["weight"])).sum(1).mean()
        return loss, {"value/loss": loss.detach()}, {"advantage": gap.mean(0).view_as(batch["reward"])}


class Regression:
    """The actor comes to do what was done, the more so the better it was (advantage-weighted regression).

    The squared distance from an action counts exp(`sharpness` * advantage), at most MOST.
    """

    period = 1

    def __init__(self, actor: DeterministicActor, sharpness: float, rho: float):
        self.part = self.actor = actor
        self.sharpness, self.rho = sharpness, rho

    def draw(self, batch: int, generator: torch.Generator) -> None:
        """Nothing is random here."""

    def loss(self, batch: Tensors, draw: None) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        done = self.actor.raw(batch["latents"][:, :-1].flatten(0, 1), training=True).tanh()
        off = 0.5 * (batch["action"].flatten(0, 1) - done).square().mean(-1).view_as(batch["reward"])
        counts = (self.sharpness * batch["advantage"]).exp().clamp(max=MOST)
        loss = (off * counts * Weights(rho=self.rho).along(batch["weight"])).sum(1).mean()
        return loss, {"actor/loss": loss.detach(), "actor/error": off.detach().mean()}, {}
