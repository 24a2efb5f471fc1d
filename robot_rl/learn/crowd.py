"""Several actors, each with a critic of its own, and a planner that goes no further than they do (MoDem-V2, method 16).

Axes: B batch, E pairs of an actor and a critic, N rows, H steps of a plan, A action, Z latent, V outputs of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robot_rl.learn.actors import DeterministicActor
from robot_rl.learn.backups import Draw, SoftBackup, Tensors
from robot_rl.learn.critics import Chance, Critic, Mean
from robot_rl.learn.latents import Latent
from robot_rl.learn.objectives import NoTemperature
from robot_rl.learn.planner import Act, Drawn, ModelWrapper, Planner
from robot_rl.learn.world import Spread, alive


def own_values(critic: Critic, latent: Tensor, action: Tensor, chance: Chance) -> Tensor:
    """What each critic's head says (E, N, V) of a latent (N, Z) and its own actor's action (E, N, A)."""
    outputs: Tensor = critic.net(torch.cat((latent.expand(len(action), -1, -1), action), -1), chance.members,
                                 chance.masks)
    return outputs


class CrowdBackup(SoftBackup):
    """y = reward + discount * the mean of what each critic says of its own actor's action, with smoothing noise."""

    actor: DeterministicActor

    def __init__(self, actor: DeterministicActor, target: Critic):
        super().__init__(actor, target, NoTemperature(), Mean())

    @torch.no_grad()
    def target(self, batch: Tensors, draw: Draw) -> Tensor:
        """See SoftBackup."""
        latent = batch["next_latent"]
        action = (self.actor.every(latent) + self.actor.jitter(draw.noise)).clamp(-1.0, 1.0)
        outputs = own_values(self.critic, latent, action, draw.critics)
        return self.bootstrap(batch, outputs, torch.zeros_like(batch["reward"]))


class CrowdValue:
    """Each actor maximises what its own critic says, in units of the spread, at every latent of unrolled sequences.

    `price` is that of the squared action before the tanh.
    """

    period = 1

    def __init__(self, actor: DeterministicActor, critic: Critic, spread: Spread, horizon: int, rho: float,
                 price: float = 0.0):
        self.part = self.actor = actor
        self.critic, self.spread, self.horizon, self.rho, self.price = critic, spread, horizon, rho, price

    def draw(self, batch: int, generator: torch.Generator) -> Chance:
        """The critics' chance."""
        return self.critic.draw(batch * (self.horizon + 1), generator)

    def loss(self, batch: Tensors, draw: Chance) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson; latents (B, T + 1, Z)."""
        latents = batch["latents"]
        rows, times = latents.shape[:2]
        seen = latents.flatten(0, 1)
        raw = self.actor.net(seen, training=True)
        action = raw.tanh()
        values = self.critic.head.decode(own_values(self.critic, seen, action, draw)).view(-1, rows, times)
        self.spread.observe(values.detach()[:, :, 0].flatten())
        worth = values / self.spread() - self.price * raw.square().mean(-1).view_as(values)
        loss = -(worth * alive(batch, latents, self.rho)).sum(2).mean(1).sum()
        apart = action.detach().std(0).mean()
        return loss, {"actor/loss": loss.detach(), "actor/apart": apart, "actor/spread": self.spread()}, {}


class Apart(nn.Module):
    """Networks of which each sees its own rows."""

    def __init__(self, nets: Iterable[nn.Module]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I) for all, or (E, N, I) -> (E, N, O)."""
        return torch.stack([net(x if x.dim() == 2 else x[i]) for i, net in enumerate(self.nets)])


class Crowd(ModelWrapper):
    """A model whose actors, one for each of its critics, say where plans may go.

    The worth of where a plan ends is the mean over the critics less `price` times their standard deviation, each of the
    best action that another's actor takes there: none is asked what its own actor has learned to please it with.
    """

    def __init__(self, model: Any, actors: nn.Module, price: float):
        """`model` is a WorldModel or a frozen one; `actors` map (N, Z) or (E, N, Z) to (E, N, A) before the tanh."""
        super().__init__(model)
        self.actors, self.price = actors, price

    def value(self, latent: Tensor, action: Tensor, turn: int) -> Tensor:
        """See Model; neither the action nor the turn is asked for."""
        actions = self.actors(latent).tanh()
        members, rows, size = actions.shape
        every = self.model.values(latent.repeat(members, 1), actions.reshape(-1, size))
        values = every.view(members, members, rows)  # of each critic, of each actor's action
        own = torch.eye(members, device=latent.device)[..., None]
        best = (values - 1e9 * own).amax(1)
        return best.mean(0) - self.price * best.std(0)

    def frozen(self) -> Crowd:
        """A copy in plain layers."""
        nets: Any = self.actors
        return Crowd(self.model.frozen(), Apart(nets.frozen(member) for member in range(nets.members)), self.price)


class Centred(Planner):
    """A planner whose candidates are what each actor would do, with noise of `explore`, and nothing else.

    `proposals` of each actor are valued, once; the plan before is not looked at.
    """

    def __init__(self, *planning: Any, explore: float):
        """See Planner; its model is a Crowd."""
        super().__init__(*planning)
        self.explore, self._planning = explore, planning

    def plan(self, actor: Act, latent: Tensor, carry: Tensor,
             drawn: Drawn | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """See Planner."""
        search, rows, size = self.search, latent.shape[0], latent.shape[1]
        members, (_, proposed) = search.samples // search.proposals, drawn or self.stored
        first = latent[:, None].expand(-1, search.proposals, -1).reshape(1, -1, size).repeat(members, 1, 1)
        seen, taken = [first.flatten(0, 1)], []
        for t in range(search.horizon):
            noise = self.explore * proposed[:, t].repeat(rows, 1)
            done = self.model.actors(seen[-1].view_as(first)).tanh() + noise
            taken.append(done.clamp(-1.0, 1.0).flatten(0, 1))
            seen.append(self.model.next(seen[-1], taken[-1]))
        ways = self.ways(actor, seen, taken, members * rows)
        values, candidates = (one.unflatten(0, (members, rows)).transpose(0, 1).flatten(1, 2)
                              for one in (self.value(ways, 0), ways.actions))
        return *self.weigh(candidates, values), values

    def frozen(self) -> Centred:
        """A copy that is exported."""
        return Centred(self.model.frozen(), *self._planning[1:4], explore=self.explore)


class Guide(nn.Module):
    """Acts in training until the planner is trusted: a copy, which learns no more, of an actor and of what it sees.

    The planner's share of the steps rises from 0 to `ceiling` between so many updates after the offline ones.
    """

    def __init__(self, latent: Latent, actor: DeterministicActor, first: int, last: int, ceiling: float):
        super().__init__()
        if not 0 <= first < last or not 0 <= ceiling <= 1:
            raise ValueError(f"handover_from is {first}, handover_to {last} and ceiling {ceiling}; the first is below "
                             "the second, and a share lies in [0, 1]")
        self.latent, self.actor = copy.deepcopy(latent), copy.deepcopy(actor)
        self.first, self.last, self.ceiling = first, last, ceiling
        self.requires_grad_(False)

    def take(self, latent: nn.Module, actor: nn.Module) -> None:
        """Become what these are now."""
        self.latent.load_state_dict(latent.state_dict())
        self.actor.load_state_dict(actor.state_dict())

    def share(self, updates: int) -> float:
        """Of the steps that the planner takes after so many updates."""
        return self.ceiling * min(max((updates - self.first) / (self.last - self.first), 0.0), 1.0)

    def mirror(self) -> Callable[..., np.ndarray]:
        """(noise (B, A), what is seen of B) -> its action (B, A), in numpy over the same memory (on the CPU)."""
        latent, actor = self.latent.mirror(), self.actor.mirror()
        return lambda noise, *seen: actor(latent(*seen), noise)
