"""Actors: from a latent to an action in [-1, 1]. Axes: B batch, O observation (latent), A action."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robot_rl.learn.critics import CoarseCritic
from robot_rl.learn.encoders import PER_LEVEL
from robot_rl.learn.nets import Mlp, Shape, split_rows

if TYPE_CHECKING:
    from robot_rl.learn.chunks import Execution

ActorMirror = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Actor(nn.Module):
    """What backups, objectives and the agent need of an actor."""

    action_size: int

    def sample(self, latent: Tensor, noise: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """(B, O), standard normal (B, A) -> action (B, A) and the log of its density (B,)."""
        raise NotImplementedError

    def mean(self, latent: Tensor) -> Tensor:
        """(B, O) -> the action without noise (B, A)."""
        raise NotImplementedError

    def mirror(self) -> ActorMirror:
        """(B, O), noise (B, A) -> action (B, A), in numpy over the same memory (on the CPU): quick for few rows."""
        raise NotImplementedError

    def frozen(self) -> nn.Module:
        """A copy that is exported: forward(latent (B, O), noise (B, A)) -> action (B, A)."""
        raise NotImplementedError


class GaussianActor(Actor):
    """tanh(mean + std * noise), with mean and std from one perceptron of the latent; the std begins near `std`."""

    log_std_range = (-10.0, 2.0)

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        shape: Shape = Shape(),  # noqa: B008  # frozen
        std: float = 1.0,
    ):
        super().__init__()
        self.action_size = action_size
        sizes = (obs_size, *hidden, 2 * action_size)
        self.net = Mlp(sizes, 1, generator, shape, final_scale=0.01)  # starts near 0
        with torch.no_grad():
            self.net.layers()[-1].bias[..., action_size:] += math.log(std)

    def moments(self, latent: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """(B, O) -> mean and log std before the tanh, (B, A) each."""
        mean, log_std = self.net(latent, training=training)[0].chunk(2, -1)
        return mean, log_std.clamp(*self.log_std_range)

    def sample(self, latent: Tensor, noise: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """(B, O), (B, A) -> action (B, A) and the log of its density (B,)."""
        mean, log_std = self.moments(latent, training)
        raw = mean + log_std.exp() * noise
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))  # log of tanh's slope, without its overflow
        return raw.tanh(), (density - squash).sum(-1)

    def mean(self, latent: Tensor) -> Tensor:
        """(B, O) -> the action without noise (B, A)."""
        return self.moments(latent)[0].tanh()

    def mirror(self) -> ActorMirror:
        """(B, O), noise (B, A) -> action (B, A), in numpy over the same memory (on the CPU): quick for few rows."""
        net = self.net.mirror()
        low, high = self.log_std_range

        def forward(latent: np.ndarray, noise: np.ndarray) -> np.ndarray:
            outputs = net(latent)
            log_std = np.minimum(np.maximum(outputs[:, self.action_size :], low), high)
            action: np.ndarray = np.tanh(outputs[:, : self.action_size] + np.exp(log_std) * noise)
            return action

        return forward

    def frozen(self) -> nn.Module:
        """A copy that is exported: forward(latent (B, O), noise (B, A)) -> action (B, A)."""
        return FrozenGaussian(self)


class FrozenGaussian(nn.Module):
    """A Gaussian actor in plain layers."""

    def __init__(self, actor: GaussianActor):
        super().__init__()
        *hidden, last = cast(nn.Sequential, actor.net.frozen())
        self.net = nn.Sequential(*hidden)
        self.mean, self.log_std = split_rows(cast(nn.Linear, last))
        self.log_std_range = actor.log_std_range

    def forward(self, latent: Tensor, noise: Tensor) -> Tensor:
        """(B, O), (B, A) -> (B, A)."""
        hidden = self.net(latent)
        std = self.log_std(hidden).clamp(*self.log_std_range).exp()
        action: Tensor = (self.mean(hidden) + std * noise).tanh()
        return action


class ClippedActor(GaussianActor):
    """tanh(mean) + std * noise, bounded to [-1, 1]: a Gaussian of the action itself, as planners draw (BMPC, 127).

    The log of the std lies smoothly within its range; the density is the one before the bound.
    """

    log_std_range = (-3.0, 1.0)

    def moments(self, latent: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """(B, O) -> mean in [-1, 1] and log std, (B, A) each."""
        mean, share = self.net(latent, training=training)[0].chunk(2, -1)
        low, high = self.log_std_range
        return mean.tanh(), low + 0.5 * (high - low) * (1 + share.tanh())

    def sample(self, latent: Tensor, noise: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """(B, O), (B, A) -> action (B, A) and the log of its density (B,)."""
        mean, log_std = self.moments(latent, training)
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        return (mean + log_std.exp() * noise).clamp(-1.0, 1.0), density.sum(-1)

    def mean(self, latent: Tensor) -> Tensor:
        """(B, O) -> the action without noise (B, A)."""
        return self.moments(latent)[0]

    def mirror(self) -> ActorMirror:
        """(B, O), noise (B, A) -> action (B, A), in numpy over the same memory (on the CPU): quick for few rows."""
        net = self.net.mirror()
        low, high = self.log_std_range

        def forward(latent: np.ndarray, noise: np.ndarray) -> np.ndarray:
            mean, share = np.split(np.tanh(net(latent)), 2, -1)
            std = np.exp(np.float32(low) + np.float32(0.5 * (high - low)) * (1 + share))
            return np.minimum(np.maximum(mean + std * noise, -1.0), 1.0)

        return forward

    def frozen(self) -> nn.Module:
        """A copy that is exported: forward(latent (B, O), noise (B, A)) -> action (B, A)."""
        return FrozenClipped(self)


class FrozenClipped(FrozenGaussian):
    """A clipped Gaussian actor in plain layers."""

    def forward(self, latent: Tensor, noise: Tensor) -> Tensor:
        """(B, O), (B, A) -> (B, A)."""
        hidden = self.net(latent)
        low, high = self.log_std_range
        std = (low + 0.5 * (high - low) * (1 + self.log_std(hidden).tanh())).exp()
        return (self.mean(hidden).tanh() + std * noise).clamp(-1.0, 1.0)


class DeterministicActor(Actor):
    """tanh of a perceptron, plus noise of a fixed size, bounded to [-1, 1] (TD3, Fujimoto et al. 2018).

    `explore` is the standard deviation of the noise that acting adds; `smooth` that of the noise in targets, which is
    bounded to +-`smooth_bound`. Its log density is taken as 0: there is no entropy to reward. Of several `members` the
    first is meant wherever one is asked.
    """

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        shape: Shape = Shape(),  # noqa: B008  # frozen
        explore: float = 0.1,
        smooth: float = 0.2,
        smooth_bound: float = 0.5,
        members: int = 1,
    ):
        super().__init__()
        self.action_size, self.explore, self.smooth, self.smooth_bound = action_size, explore, smooth, smooth_bound
        self.net = Mlp((obs_size, *hidden, action_size), members, generator, shape, final_scale=0.01)

    def raw(self, latent: Tensor, training: bool = False) -> Tensor:
        """(B, O) -> (B, A) before the tanh."""
        outputs: Tensor = self.net(latent, training=training)[0]
        return outputs

    def sample(self, latent: Tensor, noise: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """(B, O), (B, A) -> action with the smoothing noise of targets (B, A), and zeros (B,)."""
        action = (self.raw(latent, training).tanh() + self.jitter(noise)).clamp(-1.0, 1.0)
        return action, torch.zeros_like(action[:, 0])

    def every(self, latent: Tensor, training: bool = False) -> Tensor:
        """(B, O) -> the action of each member, without noise (E, B, A)."""
        return self.net(latent, training=training).tanh()

    def jitter(self, noise: Tensor) -> Tensor:
        """Standard normal noise (B, A) -> that of targets."""
        return (self.smooth * noise).clamp(-self.smooth_bound, self.smooth_bound)

    def mean(self, latent: Tensor) -> Tensor:
        """(B, O) -> the action without noise (B, A)."""
        return self.raw(latent).tanh()

    def mirror(self) -> ActorMirror:
        """(B, O), noise (B, A) -> action (B, A), in numpy over the same memory (on the CPU)."""
        net, explore = self.net.mirror(), np.float32(self.explore)

        def forward(latent: np.ndarray, noise: np.ndarray) -> np.ndarray:
            return np.minimum(np.maximum(np.tanh(net(latent)) + explore * noise, -1.0), 1.0)

        return forward

    def frozen(self) -> nn.Module:
        """A copy that is exported: forward(latent (B, O), noise (B, A)) -> action (B, A)."""
        return FrozenDeterministic(self.net.frozen(), self.explore)


class FrozenDeterministic(nn.Module):
    """A deterministic actor in plain layers."""

    def __init__(self, net: nn.Module, explore: float):
        super().__init__()
        self.net, self.explore = net, explore

    def forward(self, latent: Tensor, noise: Tensor) -> Tensor:
        """(B, O), (B, A) -> (B, A)."""
        action: Tensor = (self.net(latent).tanh() + self.explore * noise).clamp(-1.0, 1.0)
        return action

    def extra_repr(self) -> str:
        return f"explore={self.explore}"


class BoundedActor(Actor):
    """A normal distribution about tanh of a perceptron, std from 0.1 to 1; what lies beyond [-1, 1] is cut (DreamerV3).

    The density is that before the cut, which belongs to the world: what learns by it needs no gradient through a model.
    """

    std_range = (0.1, 1.0)

    def __init__(self, obs_size: int, action_size: int, hidden: Sequence[int], generator: torch.Generator,
                 shape: Shape = Shape()):  # noqa: B008  # frozen
        super().__init__()
        self.action_size = action_size
        self.net = Mlp((obs_size, *hidden, 2 * action_size), 1, generator, shape, final_scale=0.01)

    def moments(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(B, O) -> mean and std, (B, A) each."""
        mean, spread = self.net(latent)[0].chunk(2, -1)
        return mean.tanh(), bounded_std(spread, self.std_range)

    def sample(self, latent: Tensor, noise: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """See Actor; the density is that of the action before it is cut."""
        mean, std = self.moments(latent)
        return (mean + std * noise).clamp(-1.0, 1.0), _normal(noise, std)

    def drawn(self, latent: Tensor, noise: Tensor) -> Tensor:
        """(B, O), standard normal (B, A) -> the action before it is cut (B, A)."""
        mean, std = self.moments(latent)
        return mean + std * noise

    def judge(self, latent: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """(B, O), actions before they were cut (B, A) -> the log of their density (B,) and the entropy (B,)."""
        mean, std = self.moments(latent)
        return _normal((drawn - mean) / std, std), (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def mean(self, latent: Tensor) -> Tensor:
        """(B, O) -> the action without noise (B, A)."""
        return self.moments(latent)[0]

    def mirror(self) -> ActorMirror:
        """(B, O), noise (B, A) -> action (B, A), in numpy over the same memory (on the CPU)."""
        net = self.net.mirror()
        low, high = self.std_range

        def forward(latent: np.ndarray, noise: np.ndarray) -> np.ndarray:
            mean, spread = np.split(net(latent), 2, -1)
            std = low + (high - low) * (0.5 + 0.5 * np.tanh(0.5 * (spread + 2)))
            return np.minimum(np.maximum(np.tanh(mean) + std * noise, -1.0), 1.0)

        return forward

    def frozen(self) -> nn.Module:
        """A copy that is exported: forward(latent (B, O), noise (B, A)) -> action (B, A)."""
        return FrozenBounded(self)


def bounded_std(spread: Tensor, std_range: tuple[float, float]) -> Tensor:
    """Any number -> a standard deviation in the range, 0.89 of the way up for 0."""
    low, high = std_range
    return low + (high - low) * (spread + 2).sigmoid()


def _normal(noise: Tensor, std: Tensor) -> Tensor:
    """The log density (B,) of mean + std * noise, (B, A) each."""
    return (-0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


class FrozenBounded(nn.Module):
    """A bounded actor in plain layers."""

    def __init__(self, actor: BoundedActor):
        super().__init__()
        *hidden, last = cast(nn.Sequential, actor.net.frozen())
        self.net = nn.Sequential(*hidden)
        self.mean, self.spread = split_rows(cast(nn.Linear, last))
        self.std_range = actor.std_range

    def forward(self, latent: Tensor, noise: Tensor) -> Tensor:
        """(B, O), (B, A) -> (B, A)."""
        hidden = self.net(latent)
        std = bounded_std(self.spread(hidden), self.std_range)
        action: Tensor = (self.mean(hidden).tanh() + std * noise).clamp(-1.0, 1.0)
        return action


class CoarseActor(Actor):
    """The best interval at each level of a coarse-to-fine critic, plus exploring noise of a fixed size.

    It has no parameters of its own: the critic's are saved with the critic.
    """

    def __init__(self, critic: CoarseCritic, explore: float = 0.1):
        super().__init__()
        self.action_size, self.explore, self._critic = critic.action_size, explore, [critic]  # a list: not a submodule

    def mirror(self) -> ActorMirror:
        """(B, O), noise (B, A) -> action (B, A), in numpy over the same memory (on the CPU)."""
        critic, explore = self._critic[0], np.float32(self.explore)
        net = critic.net.mirror()

        def forward(latent: np.ndarray, noise: np.ndarray) -> np.ndarray:
            seen, centre = torch.from_numpy(latent), torch.zeros(len(latent), critic.action_size)
            for level in range(critic.levels):
                flat = net(critic.inputs(seen, level, centre).numpy())
                values = critic.head.decode(critic.outputs(torch.from_numpy(flat)))
                centre = critic.zoom(centre, level, values.argmax(-1))
            return np.minimum(np.maximum(centre.numpy() + explore * noise, -1.0), 1.0)

        return forward

    def frozen(self) -> nn.Module:
        """A copy that is exported: forward(latent (B, O), noise (B, A)) -> action (B, A)."""
        return FrozenCoarse(self._critic[0], self.explore)


class FrozenCoarse(nn.Module):
    """A coarse-to-fine choice in plain layers."""

    def __init__(self, critic: CoarseCritic, explore: float):
        super().__init__()
        self.net, self.explore = critic.net.frozen(), explore
        self.critic = copy.copy(critic)  # its arithmetic, without its parameters
        self.critic._modules = {}

    def forward(self, latent: Tensor, noise: Tensor) -> Tensor:
        """(B, O), (B, A) -> (B, A)."""
        centre = torch.zeros_like(noise)
        for level in range(self.critic.levels):
            outputs = self.critic.outputs(self.net(self.critic.inputs(latent, level, centre)))
            centre = self.critic.zoom(centre, level, self.critic.head.decode(outputs).argmax(-1))
        return (centre + self.explore * noise).clamp(-1.0, 1.0)

    def extra_repr(self) -> str:
        return f"{self.critic.levels} levels, {self.critic.bins} bins, explore={self.explore}"


class Policy(nn.Module):
    """A frozen copy, on the CPU, of a latent, an actor and the way its output is executed: what is exported.

    Noise is (B, `noise_size`), a number for each that the actor gives; `carry` is the shape of a row's carry.
    """

    def __init__(self, latent: nn.Module, actor: nn.Module, execution: Execution, noise_size: int):
        super().__init__()
        self.latent, self.actor, self.execution = latent, actor, execution.frozen()
        self.noise_size, self.carry = noise_size, cast("tuple[int, ...]", self.execution.carry)
        self.plans = execution.bare is not execution
        self.cpu().eval().requires_grad_(False)

    def forward(self, obs: Tensor, noise: Tensor, frames: Tensor | None = None, carry: Tensor | None = None
                ) -> Tensor | tuple[Tensor, ...]:
        """obs (B, O), noise, perhaps frames (B, C, H, W) uint8 -> action (B, A) in [-1, 1].

        Noise of zeros gives the deterministic action. Where the execution carries something, that goes in, zeros at
        first, and comes out after the action; then come a planner's scores, if it has one.
        """
        latent = self.latent(obs) if frames is None else self.latent(obs, frames * PER_LEVEL)
        executed: Tensor | tuple[Tensor, ...] = self.execution(self.actor, latent, noise, carry)
        return executed
