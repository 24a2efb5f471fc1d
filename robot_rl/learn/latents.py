"""Latents: what the actor and the critics see of an observation.

Axes: B batch, T time, O observation or its state, C, H, W channels and size of frames, Z latent.
The frames of a batch that learns are floats in [0, 1]; those that come from a robot are bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robot_rl.learn.backups import Tensors
from robot_rl.learn.critics import TwoHot
from robot_rl.learn.encoders import PER_LEVEL, Convolutions, Pretrained
from robot_rl.learn.nets import Mlp, Shape
from robot_rl.replay import Data

LatentMirror = Callable[..., np.ndarray]


class Latent(nn.Module):
    """What the agent needs of a latent: the observation in, what the actor and the critics see out."""

    size: int
    """Numbers that it gives."""

    def observe(self, obs: Tensor) -> None:
        """Take the batch (B, O) into its statistics, if it keeps any."""

    def look(self, batch: Tensors, which: str = "") -> Tensor:
        """A batch (B, ...) -> (B, Z) of obs, or of next_obs where `which` is "next_"."""
        latent: Tensor = self(batch[f"{which}obs"])
        return latent

    def frozen(self) -> nn.Module:
        """A copy that is exported."""
        raise NotImplementedError

    def mirror(self) -> LatentMirror:
        """The same in numpy over the same memory (on the CPU): obs (B, O), perhaps frames uint8 -> (B, Z)."""
        raise NotImplementedError


class Identity(Latent):
    """The observation as it is."""

    def __init__(self, obs_size: int):
        super().__init__()
        self.size = obs_size

    def frozen(self) -> nn.Module:
        """A copy that is exported."""
        return Identity(self.size)

    def mirror(self) -> LatentMirror:
        """The same in numpy."""
        return lambda obs: obs

    def forward(self, obs: Tensor) -> Tensor:
        """(B, O) -> (B, O)."""
        return obs


class RunningNorm(Latent):
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

    def mirror(self) -> LatentMirror:
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


class CameraLatent(Latent):
    """What a state and camera frames hold: the state's latent, then tanh features of the frames."""

    def __init__(self, state: Latent, encoder: Convolutions | Pretrained, features: int, generator: torch.Generator):
        super().__init__()
        self.state, self.encoder = state, encoder
        self.project = Mlp((encoder.size, features), 1, generator)
        self.features, self.size = features, state.size + features

    def observe(self, obs: Tensor) -> None:
        """Take the states (B, O) into the statistics."""
        self.state.observe(obs)

    def look(self, batch: Tensors, which: str = "") -> Tensor:
        """See Latent."""
        latent: Tensor = self(batch[f"{which}obs"], batch[f"{which}frames"])
        return latent

    def forward(self, obs: Tensor, frames: Tensor) -> Tensor:
        """(B, O), (B, C, H, W) in [0, 1] -> (B, Z)."""
        seen = F.layer_norm(self.project(self.encoder(frames))[0], (self.features,)).tanh()
        return torch.cat((self.state(obs), seen), -1)

    def frozen(self) -> nn.Module:
        """A copy that is exported."""
        plain = nn.LayerNorm(self.features, elementwise_affine=False)
        features = nn.Sequential(self.encoder.frozen(), self.project.frozen(), plain, nn.Tanh())
        return Side(self.state.frozen() if self.state.size else None, features)

    def mirror(self) -> LatentMirror:
        """Torch itself: what a convolution costs, numpy would not save."""
        def forward(obs: np.ndarray, frames: np.ndarray) -> np.ndarray:
            device = self.project.parts[0].device
            with torch.inference_mode():
                seen = torch.from_numpy(frames).to(device) * PER_LEVEL
                latent: np.ndarray = self(torch.from_numpy(obs).to(device), seen).cpu().numpy()
            return latent

        return forward


class Side(nn.Module):
    """A state's latent, if any, beside features of frames (B, C, H, W) in [0, 1]."""

    def __init__(self, state: nn.Module | None, features: nn.Module):
        super().__init__()
        self.state, self.features = state, features

    def forward(self, obs: Tensor, frames: Tensor) -> Tensor:
        """(B, O), (B, C, H, W) -> (B, Z)."""
        seen: Tensor = self.features(frames)
        return seen if self.state is None else torch.cat((self.state(obs), seen), -1)


class ModelLatent(Latent):
    """A latent of what another saw, and one of it with an action, that predict what comes (MR.Q, method 24).

    From the second a linear head predicts the reward, the next latent, and whether the episode ends. Both are (B, Z).
    """

    def __init__(
        self,
        inner: Latent,
        action_size: int,
        width: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        shape = Shape("layer", "elu", dtype=dtype, last="rounded")
        inside = replace(shape, sees_hidden=True)
        self.inner = inner
        self.reward = TwoHot(65)
        self.size = self.width = width
        self.state = Mlp((inner.size, width, width, width), 1, generator, shape)
        self.action = Mlp((action_size, width // 2), 1, generator, shape)
        self.both = Mlp((width + width // 2, width, width, width), 1, generator, inside)
        self.head = Mlp((width, self.reward.size + width + 1), 1, generator, inside)

    def observe(self, obs: Tensor) -> None:
        """Take a batch (B, O) into the statistics."""
        self.inner.observe(obs)

    def look(self, batch: Tensors, which: str = "") -> Tensor:
        """See Latent."""
        return self._of(self.inner.look(batch, which))

    def forward(self, *seen: Tensor) -> Tensor:
        """What the inner latent takes -> (B, Z)."""
        return self._of(self.inner(*seen))

    def _of(self, inner: Tensor) -> Tensor:
        return F.elu(F.layer_norm(self.state(inner)[0], (self.width,)))

    def pair(self, latent: Tensor, action: Tensor) -> Tensor:
        """(B, Z), (B, A) -> the latent of both (B, Z)."""
        both: Tensor = self.both(torch.cat((latent, F.elu(self.action(action)[0])), -1))[0]
        return both

    def predict(self, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, Z) -> logits of the reward (B, V), the next latent (B, Z), the end (B,), 1 where the episode ends."""
        reward, latent, end = self.head(pair)[0].split((self.reward.size, self.width, 1), -1)
        return reward, latent, end[..., 0]

    def frozen(self) -> nn.Module:
        """A copy of the observation's latent, which is exported."""
        plain = nn.LayerNorm(self.width, elementwise_affine=False)
        return After(self.inner.frozen(), nn.Sequential(self.state.frozen(), plain, nn.ELU()))

    def mirror(self) -> LatentMirror:
        """The observation's latent in numpy over the same memory (on the CPU)."""
        inner, state = self.inner.mirror(), self.state.mirror()

        def forward(*seen: np.ndarray) -> np.ndarray:
            x = state(inner(*seen))
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(1e-5))
            return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

        return forward


class After(nn.Module):
    """outer(inner(...))."""

    def __init__(self, inner: nn.Module, outer: nn.Module):
        super().__init__()
        self.inner, self.outer = inner, outer

    def forward(self, *seen: Tensor) -> Tensor:
        """Whatever the inner takes -> (B, Z)."""
        latent: Tensor = self.outer(self.inner(*seen))
        return latent


class ModelStudy:
    """The latent learns to predict along sequences: the next latent of a slow copy, the reward, the end."""

    def __init__(self, latent: ModelLatent, slow: ModelLatent, period: int, horizon: int, lr: float):
        self.part = self.latent = latent
        self.slow, self.horizon, self.lr = slow, horizon, lr
        self.period = self.repeats = period
        self.weights = {"dynamics": 1.0, "reward": 0.1, "end": 0.1}

    def loss(self, batch: Tensors) -> tuple[Tensor, Tensors]:
        """obs (B, T, O), action (B, T, A), ... -> loss (), metrics () each."""
        with torch.no_grad():
            flat = {key: value.flatten(0, 1) for key, value in batch.items()}
            following = self.slow.look(flat, "next_").view(*batch["reward"].shape, -1)
        ended = (batch["discount"] == 0).float()
        latent = self.latent.look({key: value[:, 0] for key, value in batch.items()})
        losses = dict.fromkeys(self.weights, torch.zeros(()))
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

    def __init__(self, period: int, pairs: list[tuple[nn.Module, nn.Module]], besides: list[Callable[[Data], None]]):
        self.period, self.pairs, self.besides = period, pairs, besides

    @torch.no_grad()
    def __call__(self, data: Data) -> None:
        """See Event."""
        for copy, source in self.pairs:
            copy.load_state_dict(source.state_dict())
        for act in self.besides:
            act(data)
