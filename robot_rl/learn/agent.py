"""The agent: four verbs over the parts of a recipe. It holds no environment, replay, logger or path. Axes: B, O, A."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robot_rl.learn.actors import GaussianActor, Policy
from robot_rl.learn.backups import Draw, SoftBackup, Tensors
from robot_rl.learn.compiled import compiled
from robot_rl.learn.critics import Critic
from robot_rl.learn.latents import Identity, RunningNorm
from robot_rl.learn.nets import Adam, Mirror, follow
from robot_rl.learn.objectives import SoftValue, Temperature
from robot_rl.replay import Data

USED = ("obs", "action", "reward", "discount", "next_obs", "weight")


@dataclasses.dataclass
class Schedule:
    """How much is learned from how much data."""

    batch: int = 256
    n_step: int = 1
    discount: float = 0.99
    updates_per_step: int = 1
    """Critic updates in one `update`, which a trainer calls once per environment step."""
    actor_period: int = 1
    """Critic updates to one update of the actor and the temperature."""
    tau: float = 0.005
    """Share of the way that the target critics move to the critics in each update."""
    lr: float = 3e-4
    clip: float = 0.0
    """Bound on the norm of each gradient; 0: none."""


class Agent:
    """An actor and an ensemble of critics learning off policy; the parts are the recipe's."""

    def __init__(
        self,
        latent: Identity | RunningNorm,
        actor: GaussianActor,
        critic: Critic,
        target: Critic,
        temperature: Temperature,
        backup: SoftBackup,
        objective: SoftValue,
        schedule: Schedule,
        start: torch.Generator,
        device: str = "cpu",
        compile: bool | None = None,
    ):
        """`start` made the first weights and seeds the agent's own generator, which all later chance comes from."""
        self.latent, self.actor, self.critic, self.target = latent, actor, critic, target
        self.temperature, self.backup, self.objective, self.schedule = temperature, backup, objective, schedule
        parts = {"latent": latent, "actor": actor, "critic": critic, "target": target, "temperature": temperature}
        self.modules = nn.ModuleDict(parts).to(device)
        target.requires_grad_(False)
        optimised = {"actor": actor, "critic": critic, "temperature": temperature}
        self.optimisers = {name: Adam(part, schedule.lr, schedule.clip) for name, part in optimised.items()}
        seed = int(torch.randint(2**62, (), generator=start))
        self.generator = torch.Generator(device).manual_seed(seed)
        self.updates = 0
        self._mirror: tuple[Mirror, Callable[[np.ndarray, np.ndarray], np.ndarray]] | None = None
        self._critic_only, self._both = (compiled(step, compile, device) for step in (self.critic_step, self.full_step))

    def act(self, obs: np.ndarray, carry: Any = None, explore: bool = True) -> tuple[np.ndarray, Any]:
        """obs (B, O) float32 -> action (B, A) float32 in [-1, 1], and the carry, which is None here."""
        shape = len(obs), self.actor.action_size
        noise = np.zeros(shape, np.float32)
        if explore:
            noise = torch.randn(shape, generator=self.generator, device=self.generator.device).cpu().numpy()
        if self._mirror is None:
            self._mirror = self.latent.mirror(), self.actor.mirror()
        latent, actor = self._mirror
        return actor(latent(np.asarray(obs, np.float32)), noise), carry

    def update(self, data: Data) -> Tensors:
        """Learn from `updates_per_step` batches of `data`; returns the last one's metrics, () each, on the device."""
        metrics: Tensors = {}
        plan = self.schedule
        for _ in range(plan.updates_per_step):
            sampled = data.sample(plan.batch, 1, plan.n_step, plan.discount)
            batch = {key: torch.as_tensor(sampled[key], device=self.generator.device) for key in USED}
            self.updates += 1
            draw = self.backup.draw(plan.batch, self.generator)
            if self.updates % plan.actor_period:
                metrics |= self._critic_only(batch, draw)
            else:
                metrics |= self._both(batch, draw, self.objective.draw(plan.batch, self.generator))
        self._changed()
        return metrics

    def _changed(self) -> None:
        """On the CPU what acts shares memory with what learns; from elsewhere it is copied before it next acts."""
        if self.generator.device.type != "cpu":
            self._mirror = None

    def critic_step(self, batch: Tensors, draw: Draw) -> Tensors:
        """One step of the critics and of their target on a batch (B, ...)."""
        self.latent.observe(batch["obs"])
        seen = batch | {"latent": self.latent(batch["obs"]), "next_latent": self.latent(batch["next_obs"])}
        y = self.backup.target(seen, draw)
        outputs = self.critic(seen["latent"], batch["action"])
        loss = (self.critic.head.loss(outputs, y) * batch["weight"]).mean(1).sum()
        self.optimisers["critic"].step(loss)
        follow(self.target, self.critic, self.schedule.tau)
        return {"critic/loss": loss.detach(), "critic/target": y.mean(), "critic/reward": batch["reward"].mean()}

    def actor_step(self, batch: Tensors, noise: Tensor) -> Tensors:
        """One step of the actor and of the temperature on a batch (B, ...)."""
        loss, log_density = self.objective.loss(self.latent(batch["obs"]), noise)
        self.optimisers["actor"].step(loss)
        entropy, temperature = -log_density.detach().mean(), self.temperature()
        self.optimisers["temperature"].step(self.temperature.loss(log_density))
        return {"actor/loss": loss.detach(), "actor/entropy": entropy, "actor/temperature": temperature}

    def full_step(self, batch: Tensors, draw: Draw, noise: Tensor) -> Tensors:
        """A step of everything."""
        return self.critic_step(batch, draw) | self.actor_step(batch, noise)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to continue as if never stopped: tensors and integers."""
        return {
            "modules": self.modules.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "generator": self.generator.get_state(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, in place; an error names parts that are missing, unknown or of another size."""
        self.modules.load_state_dict(state["modules"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.generator.set_state(state["generator"].cpu())
        self.updates = state["updates"]
        self._changed()

    def policy(self) -> Policy:
        """A frozen copy, on the CPU, of what acts: forward(obs (B, O), noise (B, A)) -> action (B, A)."""
        return Policy(self.latent, self.actor)
