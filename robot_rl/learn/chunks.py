"""Chunks: actors that give the next K actions at once, what of them is executed, and what is learned from.

What a step hands to the next is its `carry`, zeros at an episode's start. Axes: B batch, K steps of a chunk, A action.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robot_rl.learn.actors import Actor
from robot_rl.replay import Batch

Execute = Callable[[np.ndarray, np.ndarray, Any], tuple[np.ndarray, Any]]
"""Latent (B, Z), noise and carry, None at an episode's start -> actions (B, A) and the carry of the next step."""


class Execution(Protocol):
    """What the agent needs of the way from a latent and an actor to an action; it is a module too."""

    length: int
    """Actions that one output of the actor holds."""
    carry: tuple[int, ...]
    """Shape, without the batch, of what a step hands to the next; () for nothing."""
    plan_size: int
    """How many of a row's carry, its last, say what was planned for this step; see `Replay.step`."""

    @property
    def bare(self) -> Execution:
        """The way without a planner; itself where it has none."""

    def cut(self, batch: Batch) -> Batch: ...

    def mirror(self, actor: Actor) -> Execute: ...

    def frozen(self) -> nn.Module:
        """A copy that is exported: forward(frozen actor, latent, noise, carry) -> action, or action and carry."""


class Steps(nn.Module):
    """The actor's output is the action of one step."""

    length: int = 1
    carry: tuple[int, ...] = ()
    plan_size = 0

    def cut(self, batch: Batch) -> Batch:
        """Transitions (B, ...) as they are."""
        return batch

    @property
    def bare(self) -> Steps:
        """See Execution."""
        return self

    def mirror(self, actor: Actor) -> Execute:
        """The actor's action (B, A) as it is; nothing is carried."""
        act = actor.mirror()
        return lambda latent, noise, carry: (act(latent, noise), None)

    def frozen(self) -> nn.Module:
        """A copy that is exported."""
        return copy.deepcopy(self)

    def forward(self, actor: nn.Module, latent: Tensor, noise: Tensor, carry: None = None) -> Tensor:
        """-> (B, A)."""
        action: Tensor = actor(latent, noise)
        return action


class Chunks(nn.Module):
    """The actor's output is `length` actions, (B, K * A).

    Carried are, for each of the K - 1 steps after this one, the sum of what earlier chunks say of it, by their weights,
    and the sum of these weights: (B, K - 1, A + 1).
    """

    carry: tuple[int, ...]
    plan_size = 0

    def __init__(self, length: int, action_size: int):
        super().__init__()
        if length < 2:
            raise ValueError(f"chunk is {length}; a chunk holds at least 2 actions")
        self.length, self.action_size, self.carry = length, action_size, (length - 1, action_size + 1)

    def cut(self, batch: Batch) -> Batch:
        """Sequences (B, K, ...) -> their first steps (B, ...), the action being all of them, (B, K * A).

        After the end of an episode the last action is repeated, and `held` (B, K) is 0.
        """
        held = batch["weight"]
        last = (held > 0).sum(1, keepdims=True) - 1
        at = np.minimum(np.arange(self.length), last)
        action = np.take_along_axis(batch["action"], at[..., None], 1)
        return {key: value[:, 0] for key, value in batch.items()} | {
            "action": action.reshape(len(action), -1), "held": held}

    @property
    def bare(self) -> Chunks:
        """See Execution."""
        return self

    def mirror(self, actor: Actor) -> Execute:
        """See Execution."""
        act = actor.mirror()

        def execute(latent: np.ndarray, noise: np.ndarray, carry: Any) -> tuple[np.ndarray, Any]:
            before = np.zeros((len(latent), *self.carry), np.float32) if carry is None else carry
            action, after = self.step(torch.from_numpy(act(latent, noise)), torch.from_numpy(before))
            return action.numpy(), after.numpy()

        return execute

    def frozen(self) -> nn.Module:
        """A copy that is exported."""
        return copy.deepcopy(self)

    def forward(self, actor: nn.Module, latent: Tensor, noise: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """Carry (B, K - 1, A + 1) -> action (B, A) and the carry."""
        return self.step(actor(latent, noise), carry)

    def step(self, chunk: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """A chunk (B, K * A), (B, K - 1, A + 1) -> action (B, A) and the carry."""
        raise NotImplementedError

    def planned(self, chunk: Tensor) -> Tensor:
        """(B, K * A) -> (B, K, A + 1): the actions, each with a weight of 1."""
        return F.pad(chunk.unflatten(-1, (self.length, self.action_size)), (0, 1), value=1.0)

    def extra_repr(self) -> str:
        return f"{self.length} x {self.action_size}"


class Ensemble(Chunks):
    """A new chunk each step; executed is the weighted mean of what it and the chunks before say of this step.

    A prediction made k steps ago weighs exp(k * gain), as in temporal ensembling (ACT, Zhao et al. 2023; method 341).
    """

    weights: Tensor

    def __init__(self, length: int, action_size: int, gain: float = 0.01):
        super().__init__(length, action_size)
        self.register_buffer("weights", (gain * torch.arange(length)).exp()[:, None])

    def step(self, chunk: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K * A), (B, K - 1, A + 1) -> action (B, A) and the carry."""
        sums = self.planned(chunk) * self.weights + F.pad(carry, (0, 0, 0, 1))
        return sums[:, 0, :-1] / sums[:, 0, -1:], sums[:, 1:]


class OpenLoop(Chunks):
    """A chunk is executed to its end, whatever is seen meanwhile; then comes the next."""

    def step(self, chunk: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K * A), (B, K - 1, A + 1) -> action (B, A) and the carry."""
        rest = torch.where(carry[:, :1, -1:] > 0, F.pad(carry, (0, 0, 0, 1)), self.planned(chunk))
        return rest[:, 0, :-1], rest[:, 1:]
