"""Latents: what the actor and the critics see of an observation. Both parts map (B, O) float32 to (B, O) float32."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from robot_rl.learn.nets import Mirror


class Identity(nn.Module):
    """The observation as it is."""

    def observe(self, obs: Tensor) -> None:
        """Nothing to learn from a batch."""

    def frozen(self) -> nn.Module:
        """A copy that is exported."""
        return Identity()

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
        self.bound, self.memory, self.eps = bound, memory, eps
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
