"""The planner: model predictive path integral control with a world model (MPPI, Williams et al. 2015; method 53).

Axes: B rows of observations, I iterations, N candidates of a row, H steps of a plan, A action, Z latent.

What is random in planning is drawn once and stored, so that planning is a function: the same observation and the same
previous plan give the same action, in training, on a robot and in ONNX Runtime. `noise` only explores, by the spread
that the last iteration leaves; of zeros it gives the plan itself. Were `noise` what candidates are drawn from, zeros
would make all of them the same. While training explores they are drawn anew for each plan, for many directions are
missing from those that are stored.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from robot_rl.learn.actors import Actor
from robot_rl.learn.chunks import Execute, Steps
from robot_rl.learn.compiled import compiled
from robot_rl.learn.critics import Chance, Critic
from robot_rl.learn.world import World
from robot_rl.replay import Batch, Data

EVEN, NEAR = 0.1, 10.0  # weight that all candidates share that are nearly as good as the best, and how near
EXPLORE = math.sqrt(2)  # TD-MPC2 adds the noise to one of the elites, which lies as far from the mean itself
Drawn = tuple[Tensor, Tensor]
"""Standard normal numbers: of the candidates of each iteration (I, N - P, H, A), and of the actor's P (P, H, A)."""
ALL = slice(None)
Act = Callable[[Tensor, Tensor], Tensor]
"""A latent (R, Z) and noise (R, A) -> action (R, A)."""


@dataclasses.dataclass(frozen=True)
class Search:
    """How a planner looks for a plan."""

    horizon: int = 3
    iterations: int = 6
    samples: int = 512
    """Candidates in each iteration, those of the actor included."""
    proposals: int = 24
    """Candidates that the actor makes, once."""
    elites: int = 64
    sharpness: float = 0.5
    """Elites weigh exp(sharpness * value)."""
    least: float = 0.05
    """The standard deviation that candidates are drawn with is at least this, and at first `most`."""
    most: float = 2.0

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.iterations < 1:
            raise ValueError(f"horizon is {self.horizon} and iterations {self.iterations}; a plan takes at least 1 of "
                             "each")
        if not 0 <= self.proposals < self.samples:
            raise ValueError(f"proposals is {self.proposals}; it is at least 0 and below the {self.samples} samples")
        if not 1 <= self.elites < self.samples:
            raise ValueError(f"elites is {self.elites}; it is at least 1 and below the {self.samples} samples")
        if self.sharpness <= 0 or not 0 < self.least <= self.most:
            raise ValueError(f"sharpness is {self.sharpness}, least {self.least} and most {self.most}; sharpness is "
                             "above 0 and 0 < least <= most")


class Model(Protocol):
    """What a planner asks of a model, for R rows at once."""

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        """(R, Z), (R, A) -> the latent that follows (R, Z)."""

    def outcome(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """(R, Z), (R, A) -> reward (R,), the chance to go on (R,)."""

    def value(self, latent: Tensor, action: Tensor, turn: int) -> Tensor:
        """(R, Z), (R, A) -> the worth (R,) of what comes from there on, to the planner's iteration `turn`."""


class WorldModel(nn.Module):
    """A world model, and the critics that value where a plan ends: the mean of those that are asked, in one pass.

    Each iteration asks `asked` of them, the next ones in turn (0: all of them).
    """

    def __init__(self, world: World, critic: Critic, asked: int = 0):
        super().__init__()
        self.world, self.critic, self.asked = world, critic, asked

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        """See Model."""
        return self.world.next(latent, action)

    def outcome(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """See Model."""
        said = self.world.step(latent, action)
        return self.world.reward.decode(said.reward), torch.sigmoid(-said.end)

    def value(self, latent: Tensor, action: Tensor, turn: int) -> Tensor:
        """See Model."""
        return self.values(latent, action, in_turn(turn, self.asked, self.critic.members)).mean(0)

    def values(self, latent: Tensor, action: Tensor, members: slice = ALL) -> Tensor:
        """(R, Z), (R, A) -> what each of these critics says (E, R)."""
        return self.critic.values(latent, action, Chance(members))

    def frozen(self) -> FrozenModel:
        """A copy in plain layers."""
        return FrozenModel(self.world, self.critic, self.asked)


class FrozenModel(nn.Module):
    """A world model and critics in plain layers, in float32."""

    def __init__(self, world: World, critic: Critic, asked: int):
        super().__init__()
        self.heads, self.inputs, self.asked = (world.reward, critic.head), critic.inputs, asked
        self.dynamics = nn.Sequential(world.dynamics.frozen(), copy.deepcopy(world.predicted))
        self.said = world.outcome.frozen()
        self.critics = nn.ModuleList(critic.net.frozen(member) for member in range(critic.members))

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        """See Model."""
        following: Tensor = self.dynamics(torch.cat((latent, action), -1))
        return following

    def outcome(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """See Model."""
        said = self.said(torch.cat((latent, action), -1))
        return self.heads[0].decode(said[:, :-1]), torch.sigmoid(-said[:, -1])

    def value(self, latent: Tensor, action: Tensor, turn: int) -> Tensor:
        """See Model."""
        return self.values(latent, action, in_turn(turn, self.asked, len(self.critics))).mean(0)

    def values(self, latent: Tensor, action: Tensor, members: slice = ALL) -> Tensor:
        """(R, Z), (R, A) -> what each of these critics says (E, R)."""
        seen = self.inputs(latent, action)
        return self.heads[1].decode(torch.stack([critic(seen) for critic in self.critics[members]]))


def in_turn(turn: int, asked: int, members: int) -> slice:
    """Which of so many critics the planner's iteration `turn` asks: `asked` of them, one further on each time."""
    if not asked:
        return ALL
    first = turn % (members - asked + 1)
    return slice(first, first + asked)


class ModelWrapper(nn.Module):
    """A model that goes on as the one in it does."""

    def __init__(self, model: Any):
        """`model` is a WorldModel or a frozen one."""
        super().__init__()
        self.model = model

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        """See Model."""
        following: Tensor = self.model.next(latent, action)
        return following

    def outcome(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """See Model."""
        said: tuple[Tensor, Tensor] = self.model.outcome(latent, action)
        return said

    def value(self, latent: Tensor, action: Tensor, turn: int) -> Tensor:
        """See Model."""
        worth: Tensor = self.model.value(latent, action, turn)
        return worth


class Wary(ModelWrapper):
    """A model whose critics' disagreement costs `price` times its standard deviation, at every step and at the end.

    So a planner keeps to what the data knows (FOWM, method 65).
    """

    def __init__(self, model: Any, price: float):
        """See ModelWrapper."""
        super().__init__(model)
        self.price = price

    def outcome(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """See Model."""
        reward, going = super().outcome(latent, action)
        return reward - self.price * self.model.values(latent, action).std(0), going

    def value(self, latent: Tensor, action: Tensor, turn: int) -> Tensor:
        """See Model; all critics are asked."""
        values = self.model.values(latent, action)
        return values.mean(0) - self.price * values.std(0)

    def frozen(self) -> Wary:
        """A copy in plain layers."""
        return Wary(self.model.frozen(), self.price)


class Valued(ModelWrapper):
    """A model in which what an ensemble would learn from a step is worth `price` times as much, along the whole way.

    Above 0 a planner explores by it, below 0 it keeps to what is known, and so do roll-outs (COPlanner, method 56).
    """

    def __init__(self, model: Any, ensemble: Any, price: float):
        """`model` is a WorldModel and `ensemble` a Disagreement, or both are frozen ones."""
        super().__init__(model)
        self.ensemble, self.price = ensemble, price

    def outcome(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """See Model."""
        reward, going = super().outcome(latent, action)
        return reward + self.price * self.ensemble.gain(latent, action), going

    def frozen(self) -> Valued:
        """A copy in plain layers."""
        return Valued(self.model.frozen(), self.ensemble.frozen(), self.price)


class Ways(NamedTuple):
    """Where the actions of N candidates lead, by the model."""

    actions: Tensor
    """(B, N, H, A)."""
    earned: Tensor
    """(B, N): what the steps earn."""
    going: Tensor
    """(B, N): how much of what comes from the end on counts."""
    latent: Tensor
    """(B, N, Z): of the end."""
    last: Tensor
    """(B, N, A): what the actor would do there."""


class Planner(nn.Module):
    """Plans anew in each step, from the plan of the step before; executed is the plan's first action.

    Each iteration draws candidates around the plan, values them along the model and moves the plan to the mean of the
    best, by weight. Some candidates are what the actor would do; they are valued once. The carry is the plan (B, H, A)
    moved on by one step, zeros in its last; zeros at an episode's start.
    """

    length = 1
    carry: tuple[int, ...]
    plan_size = 0
    draws: Tensor
    proposed: Tensor

    def __init__(self, model: Any, action_size: int, search: Search, discount: float,
                 compile: bool | None = False, device: str = "cpu"):
        """`model` is a Model."""
        super().__init__()
        self.model, self.action_size, self.search, self.discount = model, action_size, search, discount
        self.carry = (search.horizon, action_size)
        self._compile, self._device = compile, device
        # a constant of the method, the same for every seed of a run
        draws, proposed = self.draw(torch.Generator().manual_seed(0))
        self.register_buffer("draws", draws)
        self.register_buffer("proposed", proposed)

    def draw(self, chance: torch.Generator) -> Drawn:
        """What candidates are made of, on the planner's device; their mean is 0, for they come in pairs."""
        search, size = self.search, self.action_size
        drawn = search.samples - search.proposals
        half = torch.randn(search.iterations, -(-drawn // 2), search.horizon, size, generator=chance)
        proposed = torch.randn(search.proposals, search.horizon, size, generator=chance)
        return torch.cat((half, -half), 1)[:, :drawn].to(self._device), proposed.to(self._device)

    @property
    def stored(self) -> Drawn:
        """What was drawn once."""
        return self.draws, self.proposed

    @property
    def bare(self) -> Steps:
        """The actor without a planner."""
        return Steps()

    def cut(self, batch: Batch) -> Batch:
        """Batches as they are."""
        return batch

    def mirror(self, actor: Actor) -> Execute:
        """See Execution: torch itself, whose products are most of the work; compiled where learning is."""

        def run(latent: Tensor, noise: Tensor, carry: Tensor, draws: Tensor, proposed: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                action, carry, _ = self(lambda seen, noise: actor.sample(seen, noise)[0], latent, noise, carry,
                                        (draws, proposed))
            return {"action": action, "carry": carry}

        plan = compiled(run, self._compile, self._device)

        def execute(latent: np.ndarray, noise: np.ndarray, carry: Any) -> tuple[np.ndarray, Any]:
            before = np.zeros((len(latent), *self.carry), np.float32) if carry is None else carry
            drawn = self.stored
            if noise.any():  # by what is random already, so that a run is repeated exactly
                drawn = self.draw(torch.Generator().manual_seed(zlib.crc32(noise.tobytes())))
            given = (torch.from_numpy(one).to(self.draws.device) for one in (latent, noise, before))
            planned = plan(*given, *drawn)
            return planned["action"].cpu().numpy(), planned["carry"].cpu().numpy()

        return execute

    def frozen(self) -> Planner:
        """A copy that is exported."""
        return Planner(self.model.frozen(), self.action_size, self.search, self.discount)

    def forward(self, actor: Act, latent: Tensor, noise: Tensor, carry: Tensor,
                drawn: Drawn | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Latent (B, Z), noise (B, A), the carry -> action (B, A) in [-1, 1], the next carry, the first scores (B, N).
        """
        plan, std, scores = self.plan(actor, latent, carry, drawn)
        return self.explored(plan, std, noise), moved_on(plan), scores

    def explored(self, plan: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """The first action (B, A) of a plan and its standard deviation (B, H, A), with noise (B, A)."""
        return (plan[:, 0] + EXPLORE * std[:, 0] * noise).clamp(-1.0, 1.0)

    def plan(self, actor: Act, latent: Tensor, carry: Tensor,
             drawn: Drawn | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """-> the plan (B, H, A), its standard deviation (B, H, A), and the first candidates' values (B, N).

        Candidates are of what is `drawn`, or stored.
        """
        search, mean, std = self.search, carry, torch.full_like(carry, self.search.most)
        draws, proposed = drawn or self.stored
        proposals, first = self.propose(actor, latent, proposed), torch.empty(0)
        for i in range(search.iterations):
            ways = self.tried(actor, latent, (mean[:, None] + std[:, None] * draws[i]).clamp(-1.0, 1.0))
            ways = Ways(*(torch.cat(pair, 1) for pair in zip(proposals, ways, strict=True)))
            values = self.value(ways, i)
            first = first if i else values
            mean, std = self.weigh(ways.actions, values)
        return mean, std, first

    def weigh(self, candidates: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, H, A) and their values (B, N) -> mean and bounded standard deviation (B, H, A) by their shares."""
        shares = self.shares(values)[..., None, None]
        mean = (shares * candidates).sum(1)
        std = (shares * (candidates - mean[:, None]).square()).sum(1).sqrt()
        return mean, std.clamp(self.search.least, self.search.most)

    def shares(self, values: Tensor) -> Tensor:
        """Values (B, N) -> how much each candidate counts (B, N): elites by their value, others hardly.

        An elite weighs what its value gives it more than the best that is none. So nothing jumps where candidates
        change places, and a value that another runtime rounds otherwise moves the plan by no more than that; nor where
        values hardly differ, since those near the best share a small weight besides.
        """
        best = values.topk(self.search.elites + 1, 1).values
        weight, least = ((self.search.sharpness * (one - best[:, :1])).exp() for one in (values, best[:, -1:]))
        weight = (weight - least).clamp(min=0) + EVEN / self.search.samples * weight**NEAR
        return weight / weight.sum(1, keepdim=True)

    def propose(self, actor: Act, latent: Tensor, proposed: Tensor) -> Ways:
        """What the actor would do from (B, Z) on with noise (P, H, A)."""
        count, rows = self.search.proposals, latent.shape[0]
        seen, taken = [latent[:, None].expand(-1, count, -1).flatten(0, 1)], []
        for t in range(self.search.horizon):
            taken.append(actor(seen[-1], proposed[:, t].expand(rows, -1, -1).flatten(0, 1)))
            seen.append(self.model.next(seen[-1], taken[-1]))
        return self.ways(actor, seen, taken, rows)

    def tried(self, actor: Act, latent: Tensor, candidates: Tensor) -> Ways:
        """Where (B, N, H, A) lead to from (B, Z) on, all at once."""
        rows, count = candidates.shape[:2]
        seen, taken = [latent[:, None].expand(-1, count, -1).flatten(0, 1)], candidates.flatten(0, 1).unbind(1)
        for action in taken:
            seen.append(self.model.next(seen[-1], action))
        return self.ways(actor, seen, taken, rows)

    def ways(self, actor: Act, seen: Sequence[Tensor], taken: Sequence[Tensor], rows: int) -> Ways:
        """Of `rows` times N that go through H + 1 latents (B N, Z) by H actions (B N, A).

        They end by the actor's best action. What the steps earn is asked of the model once, for all of them.
        """
        rewards, chances = (said.unflatten(0, (len(taken), -1))
                            for said in self.model.outcome(torch.cat(list(seen[:-1])), torch.cat(list(taken))))
        earned, going = torch.zeros_like(rewards[0]), torch.ones_like(rewards[0])
        for reward, chance in zip(rewards, chances, strict=True):
            earned, going = earned + going * reward, going * self.discount * chance
        last = actor(seen[-1], torch.zeros_like(seen[-1][:, :1]).expand(-1, self.action_size))
        return Ways(*(one.unflatten(0, (rows, -1)) for one in (torch.stack(tuple(taken), 1), earned, going, seen[-1],
                                                               last)))

    def value(self, ways: Ways, turn: int) -> Tensor:
        """What each is worth (B, N) to iteration `turn`."""
        worth = self.model.value(ways.latent.flatten(0, 1), ways.last.flatten(0, 1), turn)
        return ways.earned + ways.going * worth.view_as(ways.going)

    def extra_repr(self) -> str:
        return f"{self.search}, action_size={self.action_size}, discount={self.discount}"


class Telling(Planner):
    """A planner whose carry also tells what was planned for this step: (B, H + 2, A), the plan moved on, mean and std.

    What is exported of it does not.
    """

    def __init__(self, model: Any, action_size: int, search: Search, discount: float,
                 compile: bool | None = False, device: str = "cpu"):
        """See Planner."""
        super().__init__(model, action_size, search, discount, compile, device)
        self.carry, self.plan_size = (search.horizon + 2, action_size), 2 * action_size

    def forward(self, actor: Act, latent: Tensor, noise: Tensor, carry: Tensor,
                drawn: Drawn | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """See Planner."""
        plan, std, scores = self.plan(actor, latent, carry[:, :-2], drawn)
        return self.explored(plan, std, noise), torch.cat((moved_on(plan), plan[:, :1], std[:, :1]), 1), scores


def moved_on(plan: Tensor) -> Tensor:
    """A plan (B, H, A) a step later, (B, H, A): zeros in its last."""
    return torch.cat((plan[:, 1:], torch.zeros_like(plan[:, :1])), 1)


class Replan:
    """Every `period` updates `rows` of the steps that are held get a plan of now (lazy re-planning, BMPC, method 127).

    Each begins as at an episode's start. Steps without any plan, such as those of a robot's bags, get one so.
    """

    def __init__(self, world: World, actor: Actor, planner: Telling, rows: int, period: int):
        if rows < 1 or period < 1:
            raise ValueError(f"replan is {period} and replan_rows {rows}; at least 1 step in every so many updates")
        self.world, self.rows, self.period = world, rows, period
        self._execute = planner.mirror(actor)
        self._action_size = planner.action_size

    def __call__(self, data: Data) -> None:
        """See Event."""
        batch = data.sample(self.rows)
        seen = [batch[key] for key in ("obs", "frames") if key in batch]
        _, carry = self._execute(self.world.mirror()(*seen), np.zeros((self.rows, self._action_size), np.float32), None)
        data.renew(batch["index"], batch["source"], carry[:, -2:].reshape(self.rows, -1))
