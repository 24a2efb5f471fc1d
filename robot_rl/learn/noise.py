"""Exploring noise: what acting gives to an actor beside the observation. Axes: B rows of observations, A action."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from robot_rl.policy import held_for


class Noise(Protocol):
    """Standard normal numbers for acting; what it remembers between calls is saved with the agent."""

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class White:
    """Drawn anew for every action."""

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """(B, A)."""
        return torch.randn(shape, generator=generator, device=generator.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing is remembered."""


class Held:
    """Held for a random number of actions, k of at most `longest` with a chance that falls as 1 / k**2.

    Noise that is new in every step shakes a robot more than it moves it; this one goes somewhere now and then (as in
    FlashSAC). Each row of observations holds its own; another number of rows starts anew.
    """

    def __init__(self, longest: int):
        if longest < 1:
            raise ValueError(f"hold is {longest}; noise is held for at least 1 action")
        self.edges = torch.from_numpy(held_for(longest)).float()
        self.noise, self.left = torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """(B, A)."""
        fresh = torch.randn(shape, generator=generator, device=generator.device)
        chance = torch.rand(shape[0], generator=generator, device=generator.device)
        spans = torch.bucketize(chance, self.edges.to(chance.device)) + 1
        if self.noise.shape != shape:
            self.noise, self.left = fresh, torch.zeros_like(spans)
        over = self.left == 0
        self.noise = torch.where(over[:, None], fresh, self.noise)
        self.left = torch.where(over, spans, self.left) - 1
        return self.noise

    def state_dict(self) -> dict[str, Tensor]:
        """What is held, (B, A), and for how many more actions, (B,)."""
        return {"noise": self.noise.clone(), "left": self.left.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`; noise of a run that held none starts anew."""
        if state:
            self.noise, self.left = state["noise"].clone(), state["left"].clone()
