"""A recurrent state-space model: what was seen and done so far as a state that is carried on (DreamerV3).

A state is (B, S): a deterministic part of `width` numbers, then `groups` of `classes`, of which one in each group is 1.
The prior says of the groups what the deterministic part alone lets expect, the posterior what the observation shows.
Zeros are the state and the action before an episode's first observation.
Axes: B batch, T time, O observation, A action, S state, G groups, K classes of a group, U code of an observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robot_rl.learn.actors import Actor
from robot_rl.learn.backups import Tensors
from robot_rl.learn.chunks import Execute
from robot_rl.learn.critics import Head, symlog
from robot_rl.learn.latents import After, CameraLatent, Latent, LatentMirror
from robot_rl.learn.nets import Members, Mlp, Shape
from robot_rl.replay import Batch

MIX = 0.01  # share of an even distribution in every categorical one: no class is ever impossible, no loss infinite


class Nets(NamedTuple):
    """Of a cell: what makes one layer of state and action, the unit's gates, the posterior: Mlps, or plain layers."""

    enter: nn.Module
    gates: nn.Module
    posterior: nn.Module


class Cell(nn.Module):
    """A step of the state: the deterministic part by a gated recurrent unit in blocks, the groups by the posterior.

    Each block of the unit sees its own part of the state and what one layer makes of the whole and of the action.
    """

    def __init__(self, nets: Nets, width: int, blocks: int, groups: int, classes: int):
        """The nets are Mlps, or the same in plain layers."""
        super().__init__()
        self.enter, self.gates, self.posterior = nets
        self.width, self.blocks, self.groups, self.classes = width, blocks, groups, classes
        self.size = width + groups * classes

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(B, S), (B, A) -> the deterministic part of the next state (B, W)."""
        seen = self.enter(torch.cat((state, action), -1))[0]
        before = state[:, : self.width].unflatten(-1, (self.blocks, -1)).movedim(1, 0)  # (blocks, B, W / blocks)
        both = torch.cat((before, seen[None].expand(self.blocks, -1, -1)), -1)
        reset, new, update = self.gates(both).chunk(3, -1)
        new = (reset.sigmoid() * new).tanh()
        after = before + (update - 1).sigmoid() * (new - before)
        return after.movedim(0, 1).flatten(1)

    def shares(self, logits: Tensor) -> Tensor:
        """Logits (..., G * K) -> probabilities (..., G, K)."""
        return (1 - MIX) * logits.unflatten(-1, (self.groups, self.classes)).softmax(-1) + MIX / self.classes

    def seen(self, deterministic: Tensor, code: Tensor) -> Tensor:
        """The deterministic part (B, W) and what the observation encodes to (B, U) -> the posterior (B, G, K)."""
        return self.shares(self.posterior(torch.cat((deterministic, code), -1))[0])

    def likeliest(self, state: Tensor, action: Tensor, code: Tensor) -> Tensor:
        """The state (B, S) after an action (B, A) that led to what encodes to (B, U), of the likeliest classes."""
        deterministic = self(state, action)
        chosen = one_hot(self.seen(deterministic, code).argmax(-1), self.classes)
        return torch.cat((deterministic, chosen.flatten(1)), -1)

    def frozen(self) -> Cell:
        """A copy in plain layers."""
        nets = Nets(*(Members(net) for net in (self.enter, self.gates, self.posterior) if isinstance(net, Mlp)))
        return Cell(nets, self.width, self.blocks, self.groups, self.classes)

    def extra_repr(self) -> str:
        return f"{self.width} in {self.blocks} blocks, {self.groups} groups of {self.classes}"


def one_hot(index: Tensor, classes: int) -> Tensor:
    """int64 (...) -> float32 (..., K)."""
    return (index[..., None] == torch.arange(classes, device=index.device)).float()


def drawn(shares: Tensor, chance: Tensor) -> Tensor:
    """Probabilities (..., G, K), even numbers in [0, 1) (..., G) -> the classes that these choose, one-hot.

    The gradient is that of the probabilities (straight through: Bengio et al. 2013).
    """
    index = (shares.detach().cumsum(-1) <= chance[..., None]).sum(-1).clamp(max=shares.shape[-1] - 1)
    return one_hot(index, shares.shape[-1]) + shares - shares.detach()


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Kullback and Leibler's, of probabilities (..., G, K) from others, summed over the groups: (...), nats."""
    return (one * (one.log() - other.log())).sum((-2, -1))


class Painter(nn.Module):
    """From a state to frames (B, C, H, W): a coarse grid, three times doubled by transposed 4 x 4 convolutions."""

    def __init__(self, size: int, frames: tuple[int, int, int], channels: int, generator: torch.Generator,
                 dtype: torch.dtype = torch.float32):
        """Products are made in `dtype`."""
        super().__init__()
        self.dtype, (colours, *self.side) = dtype, frames
        self.grid = (channels, *(math.ceil(one / 8) for one in self.side))
        self.plane = Mlp((size, math.prod(self.grid)), 1, generator)
        self.layers = nn.ModuleList(nn.ConvTranspose2d(channels, out, 4, 2, 1)
                                    for out in (channels, channels, colours))
        for parameter in self.layers.parameters():  # each pixel is a sum over 2 x 2 places
            bound = (3.0 / (4 * channels)) ** 0.5 if parameter.dim() > 1 else 0.0
            parameter.data.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)

    def forward(self, state: Tensor) -> Tensor:
        """(B, S) -> (B, C, H, W), about 0 to 1."""
        x = self.plane(state)[0].unflatten(-1, self.grid).to(self.dtype, memory_format=torch.channels_last)
        for layer in self.layers:
            assert isinstance(layer, nn.ConvTranspose2d) and layer.bias is not None
            x = F.conv_transpose2d(F.silu(x), layer.weight.to(self.dtype), layer.bias.to(self.dtype), 2, 1)
        height, width = self.side
        return x[..., :height, :width].float() + 0.5


class Recalled(NamedTuple):
    """What a model makes of sequences of T + 1 observations."""

    states: Tensor
    """(B, T + 1, S)."""
    posterior: Tensor
    """(B, T + 1, G, K)."""
    prior: Tensor
    """(B, T + 1, G, K)."""


class RecurrentWorld(Latent):
    """A latent of what another saw, and the model that makes states of it and tells from a state what was seen.

    What it gives for an observation is what that encodes to; `size` is that of a state, which the actor sees.
    """

    def __init__(self, inner: Latent, action_size: int, width: int, blocks: int, groups: int, classes: int,
                 hidden: Sequence[int], reward: Head, generator: torch.Generator,
                 frames: tuple[int, int, int] | None = None, channels: int = 32, dtype: torch.dtype = torch.float32):
        super().__init__()
        if width % blocks or blocks < 1:
            raise ValueError(f"blocks is {blocks}; it divides the state's width of {width}")
        if classes < 2 or groups < 1:
            raise ValueError(f"groups is {groups} and classes {classes}; there is at least 1 group of at least 2")
        shape = Shape("rms", "silu", dtype=dtype)
        unit, codes, part = hidden[-1], groups * classes, width // blocks
        self.inner, self.reward, self.action_size = inner, reward, action_size
        self.encoder = Mlp((inner.size, *hidden, unit), 1, generator, shape)
        enter = Mlp((width + codes + action_size, unit, unit), 1, generator, shape)
        gates = Mlp((part + unit, part, 3 * part), blocks, generator, shape)
        posterior = Mlp((width + unit, unit, codes), 1, generator, shape)
        self.cell = Cell(Nets(enter, gates, posterior), width, blocks, groups, classes)
        self.size = self.cell.size
        self.expect = Mlp((width, unit, unit, codes), 1, generator, shape)
        self.outcome = Mlp((self.size, unit, reward.size + 1), 1, generator, shape, final_scale=0.0)
        self.tell = Mlp((self.size, *hidden, self.state.size), 1, generator, shape) if self.state.size else None
        self.paint = None if frames is None else Painter(self.size, frames, channels, generator, dtype)

    @property
    def state(self) -> Latent:
        """What the state (B, O) of an observation is seen by."""
        return self.inner.state if isinstance(self.inner, CameraLatent) else self.inner

    def observe(self, obs: Tensor) -> None:
        """Take a batch (B, O), or the first steps of one (B, T, O), into the statistics."""
        self.inner.observe(obs if obs.dim() == 2 else obs[:, 0])

    def look(self, batch: Tensors, which: str = "") -> Tensor:
        """Sequences (B, T, ...) -> the codes of all observations, the first and what each step led to, (B, T + 1, U).

        So there is nothing left to see of `next_`.
        """
        if which:
            return batch["reward"][..., :0]
        together = {key: along(batch, key) for key in ("obs", "frames") if key in batch}
        codes = self._code(self.inner.look({key: value.flatten(0, 1) for key, value in together.items()}))
        return codes.unflatten(0, together["obs"].shape[:2])

    def forward(self, *seen: Tensor) -> Tensor:
        """What the inner latent takes -> (B, U)."""
        return self._code(self.inner(*seen))

    def _code(self, inner: Tensor) -> Tensor:
        code: Tensor = self.encoder(symlog(inner))[0]
        return code

    def follow(self, state: Tensor, action: Tensor, code: Tensor, chance: Tensor) -> Tensors:
        """(B, S), (B, A) and what it led to, (B, U), even numbers (B, G) -> `state` (B, S), `posterior` (B, G, K)."""
        deterministic = self.cell(state, action)
        posterior = self.cell.seen(deterministic, code)
        return {"state": torch.cat((deterministic, drawn(posterior, chance).flatten(1)), -1), "posterior": posterior}

    def recall(self, codes: Tensor, action: Tensor, chance: Tensor, follow: Callable[..., Tensors] | None = None
               ) -> Recalled:
        """Codes (B, T + 1, U), the actions between (B, T, A), even numbers (B, T + 1, G) -> states from zeros on.

        `follow` is the method of that name, or does the same.
        """
        before = torch.cat((torch.zeros_like(action[:, :1]), action), 1)
        state = codes.new_zeros(codes.shape[0], self.size, requires_grad=True)  # as all others: compiled once for all
        steps = []
        for t in range(codes.shape[1]):
            steps.append((follow or self.follow)(state, before[:, t], codes[:, t], chance[:, t]))
            state = steps[-1]["state"]
        every, posterior = (torch.stack([step[name] for step in steps], 1) for name in ("state", "posterior"))
        return Recalled(every, posterior, self.prior(every))

    def prior(self, states: Tensor) -> Tensor:
        """(B, T, S), or their deterministic parts -> (B, T, G, K)."""
        flat = states[..., : self.cell.width].flatten(0, 1)
        return self.cell.shares(self.expect(flat)[0]).unflatten(0, states.shape[:2])

    def imagine(self, state: Tensor, action: Tensor, chance: Tensor) -> Tensor:
        """(B, S), (B, A), even numbers (B, G) -> a state that may follow, (B, S)."""
        deterministic = self.cell(state, action)
        chosen = drawn(self.prior(deterministic[:, None])[:, 0], chance)
        return torch.cat((deterministic, chosen.flatten(1)), -1)

    def earned(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> of the step that led there: outputs of the reward's head (B, V), the end's logit (B,)."""
        outputs = self.outcome(state)[0]
        return outputs[:, :-1], outputs[:, -1]

    def frozen(self) -> nn.Module:
        """A copy of the observation's code, which is exported."""
        return After(self.inner.frozen(), nn.Sequential(Symlog(), self.encoder.frozen()))

    def mirror(self) -> LatentMirror:
        """The observation's code in numpy over the same memory (on the CPU)."""
        inner, encoder = self.inner.mirror(), self.encoder.mirror()

        def forward(*seen: np.ndarray) -> np.ndarray:
            x = inner(*seen)
            return encoder(np.sign(x) * np.log1p(np.abs(x)))

        return forward


def along(batch: Tensors, key: str) -> Tensor:
    """What was seen where sequences (B, T, ...) begin, and what each step led to, (B, T + 1, ...)."""
    return torch.cat((batch[key][:, :1], batch[f"next_{key}"]), 1)


class Symlog(nn.Module):
    """sign(x) log(1 + |x|)."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return symlog(x)


class Remember(nn.Module):
    """The state goes from step to step, and the action that was taken: what is carried is (B, S + A).

    Acting takes the likeliest classes of the posterior, so that it is a function of what was seen and done.
    """

    length, plan_size = 1, 0

    def __init__(self, cell: Cell, action_size: int):
        super().__init__()
        self.cell, self.action_size, self.carry = cell, action_size, (cell.size + action_size,)

    @property
    def bare(self) -> Remember:
        """See Execution."""
        return self

    def cut(self, batch: Batch) -> Batch:
        """Batches as they are."""
        return batch

    def mirror(self, actor: Actor) -> Execute:
        """See Execution: the state by torch itself."""
        act = actor.mirror()

        def execute(code: np.ndarray, noise: np.ndarray, carry: Any) -> tuple[np.ndarray, Any]:
            before = np.zeros((len(code), *self.carry), np.float32) if carry is None else carry
            with torch.no_grad():
                given = torch.from_numpy(before).split((self.cell.size, self.action_size), -1)
                device = next(self.cell.parameters()).device
                state = self.cell.likeliest(*(one.to(device) for one in (*given, torch.from_numpy(code)))).cpu().numpy()
            action = act(state, noise)
            return action, np.concatenate((state, action), -1)

        return execute

    def frozen(self) -> Remember:
        """A copy that is exported."""
        return Remember(self.cell.frozen(), self.action_size)

    def forward(self, actor: nn.Module, code: Tensor, noise: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """Code (B, U), noise (B, A), carry (B, S + A) -> action (B, A) and the carry."""
        state, before = carry.split((self.cell.size, self.action_size), -1)
        state = self.cell.likeliest(state, before, code)
        action = actor(state, noise)
        return action, torch.cat((state, action), -1)
