"""Latents: what the actor and the critics see of an observation. Both parts map (B, O) float32 to (B, O) float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robot_rl.learn.critics import TwoHot
from robot_rl.learn.nets import Mirror, Mlp, Shape
from robot_rl.replay import Data


class Latent(Protocol):
    """What the agent needs of a latent; it is a module too."""

    size: int
    """Numbers in a latent, O of what it gives."""

    def observe(self, obs: Tensor) -> None: ...

    def frozen(self) -> nn.Module: ...

    def mirror(self) -> Mirror: ...

    def __call__(self, obs: Tensor) -> Tensor: ...


class Identity(nn.Module):
    """The observation as it is."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def observe(self, obs: Tensor) -> None:
        """Nothing to learn from a batch."""

    def frozen(self) -> nn.Module:
        """A copy that is exported."""
        return Identity(self.size)

    def mirror(self) -> Mirror:
        """The same in numpy."""
        return lambda obs: obs

    def forward(self, obs: Tensor) -> Tensor:
        """(B, O) -> (B, O)."""
        return obs


class RunningNorm(nn.Module):
    """The observation with the mean and the variance of the batches seen so far taken out, bounded to +-`bound`.

    The statistics are those of all batches until `memory` observations, then a moving average over about that many.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, obs_size: int, bound: float = 10.0, memory: float = 1e6, eps: float = 1e-6):
        super().__init__()
        self.size, self.bound, self.memory, self.eps = obs_size, bound, memory, eps
        self.register_buffer("mean", torch.zeros(obs_size))
        self.register_buffer("var", torch.ones(obs_size))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def observe(self, obs: Tensor) -> None:
        """Take the batch (B, O) into the statistics, in place."""
        self.count.add_(obs.shape[0]).clamp_(max=self.memory)
        share = (obs.shape[0] / self.count).clamp(max=1.0)
        offset = obs.mean(0) - self.mean
        spread = obs.var(0, correction=0) + offset.square() * (1 - share)
        self.var.lerp_(spread, share)
        self.mean.add_(offset * share)

    def forward(self, obs: Tensor) -> Tensor:
        """(B, O) -> (B, O)."""
        return ((obs - self.mean) * (self.var + self.eps).rsqrt()).clamp(-self.bound, self.bound)

    def frozen(self) -> nn.Module:
        """A copy that is exported."""
        return Scaler(self.mean.clone(), (self.var + self.eps).rsqrt(), self.bound)

    def mirror(self) -> Mirror:
        """The same in numpy over the same memory (on the CPU)."""
        mean, var = self.mean.cpu().numpy(), self.var.cpu().numpy()

        def forward(obs: np.ndarray) -> np.ndarray:
            return np.minimum(np.maximum((obs - mean) / np.sqrt(var + np.float32(self.eps)), -self.bound), self.bound)

        return forward


class Scaler(nn.Module):
    """clamp((obs - mean) * scale, -bound, bound) with constants."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, bound: float):
        super().__init__()
        self.bound = bound
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, obs: Tensor) -> Tensor:
        """(B, O) -> (B, O)."""
        return ((obs - self.mean) * self.scale).clamp(-self.bound, self.bound)


class ModelLatent(nn.Module):
    """A latent of what `norm` gives, and one of it with an action, that predict what comes (MR.Q, method 24).

    From the second a linear head predicts the reward, the next latent, and whether the episode ends. Both are (B, Z).
    """

    def __init__(
        self,
        norm: Identity | RunningNorm,
        action_size: int,
        width: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        shape = Shape("layer", "elu", dtype=dtype)
        self.norm = norm
        self.reward = TwoHot(65)
        self.size = width
        self.state = Mlp((norm.size, width, width, width), 1, generator, shape)
        self.action = Mlp((action_size, width // 2), 1, generator, shape)
        self.both = Mlp((width + width // 2, width, width, width), 1, generator, shape)
        self.head = Mlp((width, self.reward.size + width + 1), 1, generator, shape)

    def observe(self, obs: Tensor) -> None:
        """Take a batch (B, O) into the statistics."""
        self.norm.observe(obs)

    def forward(self, obs: Tensor) -> Tensor:
        """(B, O) -> (B, Z)."""
        return F.elu(F.layer_norm(self.state(self.norm(obs))[0], (self.size,)))

    def pair(self, latent: Tensor, action: Tensor) -> Tensor:
        """(B, Z), (B, A) -> the latent of both (B, Z)."""
        both: Tensor = self.both(torch.cat((latent, F.elu(self.action(action)[0])), -1))[0]
        return both

    def predict(self, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, Z) -> logits of the reward (B, V), the next latent (B, Z), the end (B,), 1 where the episode ends."""
        reward, latent, end = self.head(pair)[0].split((self.reward.size, self.size, 1), -1)
        return reward, latent, end[..., 0]

    def frozen(self) -> nn.Module:
        """A copy of the observation's latent, which is exported."""
        plain = nn.LayerNorm(self.size, elementwise_affine=False)
        return nn.Sequential(self.norm.frozen(), self.state.frozen(), plain, nn.ELU())

    def mirror(self) -> Mirror:
        """The observation's latent in numpy over the same memory (on the CPU)."""
        norm, state = self.norm.mirror(), self.state.mirror()

        def forward(obs: np.ndarray) -> np.ndarray:
            x = state(norm(obs))
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(1e-5))
            return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

        return forward


class ModelStudy:
    """The latent learns to predict along sequences: the next latent of a slow copy, the reward, the end."""

    def __init__(self, latent: ModelLatent, slow: ModelLatent, period: int, horizon: int, lr: float):
        self.part = self.latent = latent
        self.slow, self.horizon, self.lr = slow, horizon, lr
        self.period = self.repeats = period
        self.weights = {"dynamics": 1.0, "reward": 0.1, "end": 0.1}

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """obs (B, T, O), action (B, T, A), ... -> loss (), metrics () each."""
        with torch.no_grad():
            following = self.slow(batch["next_obs"].flatten(0, 1)).view(*batch["next_obs"].shape[:2], -1)
        ended = (batch["discount"] == 0).float()
        latent, losses = self.latent(batch["obs"][:, 0]), dict.fromkeys(self.weights, torch.zeros(()))
        for t in range(self.horizon):
            reward, latent, end = self.latent.predict(self.latent.pair(latent, batch["action"][:, t]))
            held = batch["weight"][:, t]
            errors = {
                "dynamics": (latent - following[:, t]).square().mean(-1),
                "reward": self.latent.reward.loss(reward, batch["reward"][:, t]),
                "end": (end - ended[:, t]).square(),
            }
            losses = {name: losses[name] + (errors[name] * held).mean() for name in errors}
        loss = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()
        return loss, {f"model/{name}": value.detach() for name, value in losses.items()}


class Sync:
    """Every `period` updates the copies become their originals at once, and what is given besides is done."""

    def __init__(self, period: int, pairs: list[tuple[nn.Module, nn.Module]], besides: list[Callable[[], None]]):
        self.period, self.pairs, self.besides = period, pairs, besides

    @torch.no_grad()
    def __call__(self, data: Data) -> None:
        """See Event."""
        del data
        for copy, source in self.pairs:
            copy.load_state_dict(source.state_dict())
        for act in self.besides:
            act()
