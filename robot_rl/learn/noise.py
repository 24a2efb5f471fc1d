"""Exploring noise: what acting gives to an actor beside the observation. Axes: B rows of observations, A action."""

from __future__ import annotations

import torch
from torch import Tensor

from robot_rl.policy import held_for


class Noise:
    """Standard normal numbers, held for a random number of actions, k of them with a chance that falls as 1 / k**2.

    Noise that is new in every step shakes a robot more than it moves it; this one goes somewhere now and then (as in
    FlashSAC). Each row of observations holds its own; another number of rows starts anew.
    """

    def __init__(self) -> None:
        self.held, self.left = torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)

    def draw(self, shape: tuple[int, int], generator: torch.Generator, longest: int) -> Tensor:
        """(B, A), held for at most `longest` actions; with 1 all is drawn anew."""
        fresh = torch.randn(shape, generator=generator, device=generator.device)
        if longest == 1:
            self.held = self.held[:0]
            return fresh
        chance = torch.rand(shape[0], generator=generator, device=generator.device)
        spans = torch.bucketize(chance, torch.from_numpy(held_for(longest)).float().to(chance.device)) + 1
        if self.held.shape != shape:
            self.held, self.left = fresh, torch.zeros_like(spans)
        over = self.left == 0
        self.held = torch.where(over[:, None], fresh, self.held)
        self.left = torch.where(over, spans, self.left) - 1
        return self.held

    def state_dict(self) -> dict[str, Tensor]:
        """What is held, (B, A), and for how many more actions, (B,)."""
        return {"noise": self.held.clone(), "left": self.left.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`; noise of a run that held none starts anew."""
        if state:
            self.held, self.left = state["noise"].clone(), state["left"].clone()
