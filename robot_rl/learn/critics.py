"""Critics: an ensemble of action values, the head that says what their outputs mean, and reductions over the ensemble.

Axes: E ensemble, B batch, O observation (latent), A action, V outputs of a value head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from robot_rl.learn.nets import Mlp


class Head(Protocol):
    """What the V outputs of a critic mean. Backups and objectives see scalars or `loss` only."""

    size: int

    def decode(self, outputs: Tensor) -> Tensor: ...

    def encode(self, values: Tensor) -> Tensor: ...

    def loss(self, outputs: Tensor, values: Tensor) -> Tensor: ...


class Scalar:
    """The output is the value; the loss is half the squared error."""

    size = 1

    def decode(self, outputs: Tensor) -> Tensor:
        """(E, B, 1) -> (E, B)."""
        return outputs[..., 0]

    def encode(self, values: Tensor) -> Tensor:
        """(B,) -> (B, 1)."""
        return values[..., None]

    def loss(self, outputs: Tensor, values: Tensor) -> Tensor:
        """outputs (E, B, 1), values (B,) -> (E, B)."""
        return 0.5 * (outputs - self.encode(values))[..., 0].square()


class Critic(nn.Module):
    """`members` critics of (latent, action)."""

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        hidden: Sequence[int],
        members: int,
        head: Head,
        generator: torch.Generator,
        layer_norm: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.head, self.members = head, members
        self.net = Mlp((obs_size + action_size, *hidden, head.size), members, generator, layer_norm, dtype=dtype)

    def forward(self, latent: Tensor, action: Tensor, members: Tensor | None = None) -> Tensor:
        """(B, O), (B, A) -> outputs of the head (E, B, V); `members` (E',) evaluates only those."""
        outputs: Tensor = self.net(torch.cat((latent, action), -1), members)
        return outputs

    def values(self, latent: Tensor, action: Tensor, members: Tensor | None = None) -> Tensor:
        """(B, O), (B, A) -> action values (E, B)."""
        return self.head.decode(self(latent, action, members))


class Reduction(Protocol):
    """How an ensemble's values (E, B) become one (B,)."""

    def members(self, ensemble: int, generator: torch.Generator) -> Tensor | None: ...

    def __call__(self, values: Tensor) -> Tensor: ...


class Minimum:
    """The smallest value; of `subset` members drawn anew each time, when it is given."""

    def __init__(self, subset: int | None = None):
        self.subset = subset

    def members(self, ensemble: int, generator: torch.Generator) -> Tensor | None:
        """The members to evaluate, (subset,) int64 without repetition; None for all."""
        if self.subset is None:
            return None
        order = torch.rand(ensemble, generator=generator, device=generator.device).argsort()
        return order[: self.subset]

    def __call__(self, values: Tensor) -> Tensor:
        """(E, B) -> (B,)."""
        return values.amin(0)


class Mean:
    """The mean of all members."""

    def members(self, ensemble: int, generator: torch.Generator) -> Tensor | None:
        """None: all."""
        return None

    def __call__(self, values: Tensor) -> Tensor:
        """(E, B) -> (B,)."""
        return values.mean(0)
