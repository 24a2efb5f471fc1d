"""The actor learns to do what the planner does, and values are the actor's (BMPC, method 127); or what data does.

Axes: B batch, T time (horizon), A action, Z latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robot_rl.learn.actors import Actor, ClippedActor, DeterministicActor
from robot_rl.learn.backups import Draw, SoftBackup, Tensors
from robot_rl.learn.critics import Critic, Reduction
from robot_rl.learn.objectives import NoTemperature
from robot_rl.learn.planner import Model
from robot_rl.learn.world import Spread, Weights, World


class ImaginedBackup(SoftBackup):
    """What the actor would earn from a latent on, by a step that the model imagines: y = reward + discount * value.

    So values are those of the actor, whoever took the steps that were seen (model-based TD of BMPC, method 127).
    """

    def __init__(self, actor: Actor, target: Critic, model: Model, reduction: Reduction, discount: float):
        super().__init__(actor, target, NoTemperature(), reduction)
        self.model, self.discount = model, discount

    @torch.no_grad()
    def target(self, batch: Tensors, draw: Draw) -> Tensor:
        """Only the latents (B, Z) of the batch count."""
        action, _ = self.actor.sample(batch["latent"], draw.noise)
        reward, going = self.model.outcome(batch["latent"], action)
        outputs = self.critic(self.model.next(batch["latent"], action), action, draw.critics)
        return self.bootstrap({"reward": reward, "discount": self.discount * going}, outputs, torch.zeros_like(reward))


class Imitation:
    """The actor becomes like the planner, whose plans lie beside the steps, along an unrolled sequence (BMPC, 127).

    Its divergence from the Gaussian that was planned, the mean over the numbers of the action, is in units of its
    spread. Steps without a plan and those past an episode's end count for nothing. The price of the entropy, for each
    number of the action, is fixed.
    """

    period = 1

    def __init__(self, actor: ClippedActor, spread: Spread, rho: float, entropy: float):
        self.part = self.actor = actor
        self.spread, self.rho, self.price = spread, rho, entropy * actor.action_size

    def draw(self, batch: int, generator: torch.Generator) -> None:
        """Nothing is random here."""

    def loss(self, batch: Tensors, draw: None) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson; plan (B, T, 2 A): the means, then the standard deviations, zeros where nothing was planned."""
        wanted, std = batch["plan"].chunk(2, -1)
        known = (std > 0).all(-1)
        mean, log_std = self.actor.moments(batch["latents"][:, :-1].flatten(0, 1), training=True)
        mean, log_std = mean.view_as(wanted), log_std.view_as(wanted)
        far = divergence(mean, log_std, wanted, torch.where(known[..., None], std, 1.0)).mean(-1)
        self.spread.observe(torch.where(known, far.detach(), torch.nan)[:, 0])
        entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        counts = Weights(rho=self.rho).along(batch["weight"]) * known
        loss = ((far / self.spread() - self.price * entropy) * counts).sum(1).mean()
        metrics = {"actor/loss": loss.detach(), "actor/entropy": entropy.detach().mean(),
                   "actor/divergence": (far.detach() * known).sum() / known.sum().clamp(min=1),
                   "actor/planned": known.float().mean()}
        return loss, metrics, {}


class Cloning:
    """The actor, and what the world makes of observations, learn to do what was done (behaviour cloning, MoDem, 34).

    The error is the squared distance to the action that was taken first in each sequence, summed over A and over the
    members of the actor.
    """

    period = 1

    def __init__(self, actor: DeterministicActor, world: World):
        self.part = nn.ModuleList([actor, world.inner, world.encoder, world.seen])
        self.actor = actor

    def draw(self, batch: int, generator: torch.Generator) -> None:
        """Nothing is random here."""

    def loss(self, batch: Tensors, draw: None) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        action = self.actor.every(batch["latent"], training=True)
        off = (action - batch["action"][:, 0]).square().sum(-1).sum(0)
        loss = (off * batch["weight"][:, 0]).mean()
        return loss, {"actor/loss": loss.detach()}, {"error": torch.zeros_like(batch["reward"])}


def divergence(mean: Tensor, log_std: Tensor, other: Tensor, other_std: Tensor) -> Tensor:
    """Kullback and Leibler's of a Gaussian from another, number by number, (...) each -> (...)."""
    share = 2 * (log_std - other_std.log())
    return 0.5 * (share.exp() + ((mean - other) / other_std).square() - 1 - share)
