"""Actors: what turns a latent observation and a draw of noise into an action in [-1, 1]. Axes: B, O, A."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robot_rl.learn.latents import Identity, RunningNorm
from robot_rl.learn.nets import Mlp, split_rows


class GaussianActor(nn.Module):
    """tanh(mean + std * noise), with mean and std from one perceptron of the latent."""

    log_std_range = (-10.0, 2.0)

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        layer_norm: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.action_size = action_size
        sizes = (obs_size, *hidden, 2 * action_size)
        self.net = Mlp(sizes, 1, generator, layer_norm, final_scale=0.01, dtype=dtype)  # starts near 0 with std near 1

    def moments(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(B, O) -> mean and log std before the tanh, (B, A) each."""
        mean, log_std = self.net(latent)[0].chunk(2, -1)
        return mean, log_std.clamp(*self.log_std_range)

    def sample(self, latent: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(B, O), (B, A) -> action (B, A) and the log of its density (B,)."""
        mean, log_std = self.moments(latent)
        raw = mean + log_std.exp() * noise
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))  # log of tanh's slope, without its overflow
        return raw.tanh(), (density - squash).sum(-1)

    def mirror(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """(B, O), noise (B, A) -> action (B, A), in numpy over the same memory (on the CPU): quick for few rows."""
        net = self.net.mirror()
        low, high = self.log_std_range

        def forward(latent: np.ndarray, noise: np.ndarray) -> np.ndarray:
            outputs = net(latent)
            log_std = np.minimum(np.maximum(outputs[:, self.action_size :], low), high)
            action: np.ndarray = np.tanh(outputs[:, : self.action_size] + np.exp(log_std) * noise)
            return action

        return forward


class Policy(nn.Module):
    """A frozen copy of a latent and an actor in plain layers: what is exported."""

    def __init__(self, latent: Identity | RunningNorm, actor: GaussianActor):
        super().__init__()
        *hidden, last = actor.net.frozen()
        self.latent, self.net = latent.frozen(), nn.Sequential(*hidden)
        self.mean, self.log_std = split_rows(cast(nn.Linear, last))
        self.log_std_range = actor.log_std_range
        self.cpu().eval().requires_grad_(False)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """obs (B, O), noise (B, A) -> action (B, A) in [-1, 1]; noise of zeros gives the deterministic action."""
        hidden = self.net(self.latent(obs))
        std = self.log_std(hidden).clamp(*self.log_std_range).exp()
        action: Tensor = (self.mean(hidden) + std * noise).tanh()
        return action
