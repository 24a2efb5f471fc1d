"""World models: a latent that predicts what an action makes of it, and the lessons that teach it along sequences.

Axes: B batch, T time (horizon), E ensemble, O observation, A action, Z latent, V outputs of a value head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robot_rl.learn.actors import Actor
from robot_rl.learn.backups import Draw, SoftBackup, Tensors
from robot_rl.learn.critics import Chance, Critic, Head, Reduction
from robot_rl.learn.latents import After, Latent, LatentMirror
from robot_rl.learn.nets import NORM_EPS, Mlp, Shape


class Simplex(nn.Module):
    """A latent in groups of `size` numbers that are at least 0 and sum to 1 (SimNorm of TD-MPC2, method 53).

    A bounded latent keeps a model that is unrolled on its own predictions from running away. Of a group are numbers
    that lie `width` / `size` apart: a sum over neighbours is made number by number, five times as slowly.
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        if size < 1 or width % size:
            raise ValueError(f"simplex is {size}; it divides the latent's width of {width}")
        self.width, self.size = width, size
        self.norm = nn.LayerNorm(width, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Z) -> (B, Z)."""
        shares: Tensor = self.norm(x).unflatten(-1, (self.size, -1)).softmax(-2)
        return shares.flatten(-2)

    def mirror(self) -> LatentMirror:
        """The same in numpy over the same memory (on the CPU)."""
        scale, shift = self.norm.weight.detach().cpu().numpy(), self.norm.bias.detach().cpu().numpy()

        def forward(x: np.ndarray) -> np.ndarray:
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(NORM_EPS)) * scale + shift
            groups = x.reshape(len(x), self.size, -1)
            shares = np.exp(groups - groups.max(1, keepdims=True))
            return (shares / shares.sum(1, keepdims=True)).reshape(x.shape)

        return forward

    def extra_repr(self) -> str:
        return f"{self.width}, size={self.size}"


class Step(NamedTuple):
    """What a model says of a step."""

    reward: Tensor
    """Outputs of the reward's head (B, V)."""
    end: Tensor
    """Logit (B,) of the chance that the episode ends there."""


class World(Latent):
    """A latent of what another saw, and a model of what an action makes of it and earns (TD-MPC2, method 53).

    Nothing is decoded: the model is true to the latents of what really came, not to observations.
    """

    def __init__(
        self,
        inner: Latent,
        action_size: int,
        width: int,
        hidden: Sequence[int],
        simplex: int,
        reward: Head,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        encoder: Sequence[int] = (256,),
        pace: float = 1.0,
    ):
        super().__init__()
        shape = Shape("layer", "mish", dtype=dtype, last="rounded")
        self.inner, self.reward, self.size = inner, reward, width
        # what acts and what is exported have it in float32
        self.encoder = Mlp((inner.size, *encoder, width), 1, generator, replace(shape, last="float32"))
        self.encoder.pace = pace
        shape = replace(shape, sees_hidden=True)
        self.dynamics = Mlp((width + action_size, *hidden, width), 1, generator, shape)
        self.outcome = Mlp((width + action_size, *hidden, reward.size + 1), 1, generator,
                           replace(shape, last=reward.last), final_scale=0.0)
        self.seen, self.predicted = Simplex(width, simplex), Simplex(width, simplex)

    def observe(self, obs: Tensor) -> None:
        """Take a batch (B, O), or the first steps of one (B, T, O), into the statistics."""
        self.inner.observe(obs if obs.dim() == 2 else obs[:, 0])

    def look(self, batch: Tensors, which: str = "") -> Tensor:
        """(B, Z) as of any latent; of sequences (B, T, ...) where they begin (B, Z), or all that followed (B, T, Z)."""
        if batch["reward"].dim() == 1:
            return self._of(self.inner.look(batch, which))
        steps = batch["reward"].shape[1] if which else 1
        flat = {key: value[:, :steps].flatten(0, 1) for key, value in batch.items()}
        seen = self._of(self.inner.look(flat, which))
        return seen.unflatten(0, (-1, steps)) if which else seen

    def forward(self, *seen: Tensor) -> Tensor:
        """What the inner latent takes -> (B, Z)."""
        return self._of(self.inner(*seen))

    def _of(self, inner: Tensor) -> Tensor:
        latent: Tensor = self.seen(self.encoder(inner)[0])
        return latent

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        """(B, Z), (B, A) -> the latent that follows (B, Z)."""
        following: Tensor = self.predicted(self.dynamics(torch.cat((latent, action), -1))[0])
        return following

    def step(self, latent: Tensor, action: Tensor) -> Step:
        """(B, Z), (B, A) -> what the step brings."""
        outputs = self.outcome(torch.cat((latent, action), -1))[0]
        return Step(outputs[..., :-1], outputs[..., -1])

    def unroll(self, latent: Tensor, action: Tensor) -> Tensor:
        """From (B, Z) along actions (B, T, A) -> the latents from that one to the last predicted, (B, T + 1, Z)."""
        latents = [latent]
        for t in range(action.shape[1]):
            latents.append(self.next(latents[-1], action[:, t]))
        return torch.stack(latents, 1)

    def frozen(self) -> nn.Module:
        """A copy of the observation's latent, which is exported."""
        return After(self.inner.frozen(), nn.Sequential(self.encoder.frozen(), copy.deepcopy(self.seen)))

    def mirror(self) -> LatentMirror:
        """The observation's latent in numpy over the same memory (on the CPU)."""
        inner, encoder, seen = self.inner.mirror(), self.encoder.mirror(), self.seen.mirror()
        return lambda *given: seen(encoder(inner(*given)))


class Weights(NamedTuple):
    """How much each loss of a world model counts; `rho` is what each step further on counts less by."""

    consistency: float = 20.0
    reward: float = 0.1
    value: float = 0.1
    end: float = 1.0
    rho: float = 0.5

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Losses () by name -> their weighted sum ()."""
        return torch.stack([self._asdict()[name] * value for name, value in losses.items()]).sum()

    def along(self, held: Tensor) -> Tensor:
        """`held` (B, T), 1 for the steps that were taken -> what each counts, rho**t / T of those."""
        steps = held.shape[1]
        return held * self.rho ** torch.arange(steps, device=held.device, dtype=held.dtype) / steps


def alive(batch: Tensors, latents: Tensor, rho: float) -> Tensor:
    """What each of the latents (B, T + 1, Z) of unrolled sequences counts, (B, T + 1); those past the end nothing."""
    going = torch.cat((torch.ones_like(latents[:, :1, 0]), (batch["discount"] > 0).float()), 1)
    return Weights(rho=rho).along(going)


def foretold(world: World, latents: Tensor, following: Tensor, batch: Tensors, weights: Weights) -> dict[str, Tensor]:
    """Losses () of what a model said: `latents` (B, T + 1, Z) unrolled, against `following` (B, T, Z) and the batch."""
    counts = weights.along(batch["weight"])
    said = world.step(latents[:, :-1].flatten(0, 1), batch["action"].flatten(0, 1))
    ended = (batch["discount"] == 0).float()
    losses = {
        "consistency": (latents[:, 1:] - following).square().mean(-1),
        "reward": world.reward.loss(said.reward[None], batch["reward"].flatten())[0].view_as(counts),
        "end": F.binary_cross_entropy_with_logits(said.end.view_as(counts), ended, reduction="none"),
    }
    return {name: (loss * counts).sum(1).mean() for name, loss in losses.items()}


def summed(batch: Tensors, n_step: int) -> Tensors:
    """Of a batch of sequences: returns and discounts (B, T) of up to `n_step` steps, and the latents (B, T, Z) after.

    A return ends where its sequence or the episode does.
    """
    found = {key: batch[key].clone() for key in ("reward", "discount", "next_latent")}
    for ahead in range(1, min(n_step, batch["weight"].shape[1])):
        taken = batch["weight"][:, ahead:] > 0
        reward, discount, latent = (found[key][:, :-ahead] for key in ("reward", "discount", "next_latent"))
        reward.addcmul_(discount, batch["reward"][:, ahead:] * taken)
        discount.copy_(torch.where(taken, discount * batch["discount"][:, ahead:], discount))
        latent.copy_(torch.where(taken[..., None], batch["next_latent"][:, ahead:], latent))
    return found


class Unroll:
    """A world model and its critics learn along sequences from one loss (TD-MPC2, method 53).

    From the first observation on, the model goes by its own predictions: they are to agree with the latents of what was
    seen (which do not learn from it), to give the rewards and the ends, and to be valued by a backup's target, after
    `n_step` rewards or as many as the sequence still has. Steps past an episode's end count for nothing, and nothing is
    bootstrapped past a termination.
    """

    period = 1

    def __init__(self, world: World, critic: Critic, backup: SoftBackup, horizon: int, weights: Weights,
                 n_step: int = 1):
        self.world, self.critic, self.backup, self.horizon, self.weights = world, critic, backup, horizon, weights
        self.n_step = n_step
        self.part = nn.ModuleList([critic, world])

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Draw, Chance]:
        """Of the target and of the critics, for every step of the sequences."""
        steps = batch * self.horizon
        return self.backup.draw(steps, generator), self.critic.draw(steps, generator)

    def loss(self, batch: Tensors, draw: tuple[Draw, Chance]) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson; obs (B, T, O), latent (B, Z), next_latent (B, T, Z), ..."""
        head, reward = self.critic.head, batch["reward"]
        seen = torch.cat((batch["latent"].detach()[:, None], batch["next_latent"][:, :-1]), 1)
        flat = {key: value.flatten(0, 1) for key, value in summed(batch, self.n_step).items()}
        flat["latent"] = seen.flatten(0, 1)
        y = self.backup.target(flat, draw[0])
        latents = self.world.unroll(batch["latent"], batch["action"])
        losses = foretold(self.world, latents, batch["next_latent"], batch, self.weights)
        outputs = self.critic(latents[:, :-1].flatten(0, 1), batch["action"].flatten(0, 1), draw[1])
        errors = head.loss(outputs, y).mean(0).view_as(reward)  # over the ensemble
        losses["value"] = (errors * self.weights.along(batch["weight"])).sum(1).mean()
        loss = self.weights.total(losses)
        gap = (head.mean(y) - head.decode(outputs.detach())).abs().amax(0)
        metrics = {f"model/{name}": value.detach() for name, value in losses.items() if name != "value"}
        metrics |= {"critic/loss": losses["value"].detach(), "critic/target": head.mean(y).mean()}
        found = {"error": gap.view_as(reward), "latents": latents.detach(), "latent": batch["latent"].detach()}
        return loss, metrics, found


class Spread(nn.Module):
    """How far values lie apart, from their 5th to their 95th percentile: a moving average, at least 1."""

    value: Tensor
    shares: Tensor

    def __init__(self, tau: float):
        super().__init__()
        self.tau = tau
        self.register_buffer("value", torch.ones(()))
        self.register_buffer("shares", torch.tensor([0.05, 0.95]))

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Take the values (B,), NaN for what is none, into the average, in place."""
        low, high = torch.nanquantile(values.float(), self.shares)
        self.value.lerp_((high - low).nan_to_num(nan=1.0).clamp(min=1.0), self.tau)

    def forward(self) -> Tensor:
        """The size ()."""
        return self.value.clone()


class PriorValue:
    """The actor maximises the value, in units of its spread, at every latent of an unrolled sequence (method 53).

    The price of its entropy, for each number of the action, is fixed; latents past the end do not count.
    """

    period = 1

    def __init__(self, actor: Actor, critic: Critic, reduction: Reduction, spread: Spread, horizon: int, rho: float,
                 entropy: float):
        self.part = self.actor = actor
        self.critic, self.reduction, self.spread = critic, reduction, spread
        self.horizon, self.rho, self.price = horizon, rho, entropy * actor.action_size

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Chance]:
        """Standard normal noise (B * (T + 1), A), and the critics' chance."""
        rows = batch * (self.horizon + 1)
        noise = torch.randn(rows, self.actor.action_size, generator=generator, device=generator.device)
        return noise, self.critic.draw(rows, generator, self.reduction)

    def loss(self, batch: Tensors, draw: tuple[Tensor, Chance]) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson."""
        latents = batch["latents"]
        rows, times = latents.shape[:2]
        action, log_density = self.actor.sample(latents.flatten(0, 1), draw[0], training=True)
        values = self.reduction(self.critic.values(latents.flatten(0, 1), action, draw[1])).view(rows, times)
        self.spread.observe(values.detach()[:, 0])
        counts = alive(batch, latents, self.rho)
        loss = ((self.price * log_density.view(rows, times) - values / self.spread()) * counts).sum(1).mean()
        metrics = {"actor/loss": loss.detach(), "actor/entropy": -log_density.detach().mean(),
                   "actor/spread": self.spread()}
        return loss, metrics, {}


class Consistency:
    """A study in which a world model alone learns along sequences (TCRL, method 33).

    It is to be true to the latents that a slow copy of it has of what followed, and to give rewards and ends.
    """

    period = repeats = 1

    def __init__(self, world: World, slow: World, horizon: int, lr: float, weights: Weights):
        self.part = self.world = world
        self.slow, self.horizon, self.lr, self.weights = slow, horizon, lr, weights

    def loss(self, batch: Tensors) -> tuple[Tensor, Tensors]:
        """obs (B, T, O), action (B, T, A), ... -> loss (), metrics () each."""
        with torch.no_grad():
            following = self.slow.look(batch, "next_")
        latents = self.world.unroll(self.world.look(batch), batch["action"])
        losses = foretold(self.world, latents, following, batch, self.weights)
        loss = self.weights.total(losses)
        return loss, {f"model/{name}": value.detach() for name, value in losses.items()}
