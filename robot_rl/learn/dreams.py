"""The lessons of a recurrent world model and of an actor and a critic that learn in what it imagines (DreamerV3).

`fast` makes the pieces of a lesson quicker, see compiled.Fast.
Axes: B batch, T time, N imagined sequences, H steps of these, S state, G groups, K classes, V outputs of a value head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robot_rl.learn.actors import BoundedActor
from robot_rl.learn.backups import Disagreement, Tensors
from robot_rl.learn.compiled import Fast, plain
from robot_rl.learn.critics import Critic, symlog
from robot_rl.learn.objectives import Foresight
from robot_rl.learn.recurrent import Recalled, RecurrentWorld, along, divergence
from robot_rl.learn.world import Spread


class Prices(nn.Module):
    """What each loss of a model counts."""

    def __init__(self, **prices: float):
        super().__init__()
        self.prices = prices

    def forward(self, losses: Tensors) -> Tensor:
        """Losses () by name -> their sum () as they count."""
        return torch.stack([self.prices[name] * value for name, value in losses.items()]).sum()


class Harmony(Prices):
    """Prices that learn, so that what is seen, earned and expected weigh alike (HarmonyDream, method 14).

    A loss is divided by a learned s, and log(1 + s) is paid for that: at rest s is about the size of the loss.
    """

    together = {"state": "seen", "frames": "seen", "reward": "earned", "dynamics": "expected",
                "representation": "expected"}  # the end's loss keeps its price

    def __init__(self, **prices: float):
        super().__init__(**prices)
        self.logs = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in ("seen", "earned", "expected")})

    def forward(self, losses: Tensors) -> Tensor:
        """See Prices."""
        sizes: dict[str, Tensor] = {name: log.exp() for name, log in self.logs.items()}
        parts = [value / sizes[self.together[name]] if name in self.together else value
                 for name, value in losses.items()]
        paid = [self.prices[name] * part for name, part in zip(losses, parts, strict=True)]
        return torch.stack([*paid, *(size.log1p() for size in sizes.values())]).sum()


def told(world: RecurrentWorld, recalled: Recalled, batch: Tensors, free: float) -> Tensors:
    """Losses of each step by name: of what is seen and expected (B, T + 1), of what is earned (B, T).

    State: squared errors of its symlog, frames: of the pixels, both summed; `reward`: its head's; `end`: of the chance;
    `dynamics` and `representation`: how far the posterior is from the prior, as the one and as the other learns from
    it, in nats, at least `free`.
    """
    states, posterior, prior = recalled
    rows, losses = states.flatten(0, 1), {}
    if world.tell is not None:
        seen = along(batch, "obs")
        wanted = symlog(world.state(seen.flatten(0, 1)).detach())
        losses["state"] = (world.tell(rows)[0] - wanted).square().sum(-1).view(seen.shape[:2])
    if world.paint is not None:
        frames = along(batch, "frames")
        losses["frames"] = (world.paint(rows) - frames.flatten(0, 1)).square().sum((1, 2, 3)).view(frames.shape[:2])
    earned, end = world.earned(states[:, 1:].flatten(0, 1))
    losses["reward"] = world.reward.loss(earned[None], batch["reward"].flatten())[0].view_as(batch["reward"])
    ended = (batch["discount"] == 0).float()
    losses["end"] = F.binary_cross_entropy_with_logits(end.view_as(ended), ended, reduction="none")
    losses["dynamics"] = divergence(posterior.detach(), prior).clamp(min=free)
    losses["representation"] = divergence(posterior, prior.detach()).clamp(min=free)
    return losses


class Recall:
    """A recurrent world model learns along sequences to tell what was seen, what was earned, and what would be seen.

    The state begins at zeros where a sequence begins; no sequence goes on past its episode's end, and what fills the
    batch behind it counts for nothing.
    """

    period = 1

    def __init__(self, world: RecurrentWorld, prices: Prices, horizon: int, free: float = 1.0, fast: Fast = plain):
        def tell(recalled: Recalled, batch: Tensors) -> Tensors:
            return told(world, recalled, batch, free)

        self.world, self.prices, self.horizon = world, prices, horizon
        self._follow, self._tell = fast(world.follow), fast(tell)
        self.part = nn.ModuleList([world, prices]) if isinstance(prices, Harmony) else world

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Even numbers (B, T + 1, G)."""
        return torch.rand(batch, self.horizon + 1, self.world.cell.groups, generator=generator, device=generator.device)

    def loss(self, batch: Tensors, draw: Tensor) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson; latent (B, T + 1, U): the codes of all observations."""
        recalled = self.world.recall(batch["latent"], batch["action"], draw, self._follow)
        held = batch["weight"]
        seen = torch.cat((torch.ones_like(held[:, :1]), held), 1)
        steps = self._tell(recalled, batch)
        means = {}
        for name, value in steps.items():
            counts = seen if value.shape == seen.shape else held
            means[name] = (value * counts).sum() / counts.sum()
        loss = self.prices(means)
        metrics = {f"model/{name}": value.detach() for name, value in means.items()}
        error = torch.stack([value[:, -held.shape[1]:] for value in steps.values()]).sum(0).detach() * held
        alive = torch.cat((torch.ones_like(held[:, :1]), (batch["discount"] > 0).float() * held), 1)
        found = {"error": error, "states": recalled.states.detach(), "alive": alive, "latent": batch["latent"].detach()}
        return loss, metrics, found


class Aftersight(Foresight):
    """An ensemble learns to predict the change of recalled states and the reward, of all steps of sequences."""

    def loss(self, batch: Tensors, draw: None) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson; states (B, T + 1, S)."""
        states = batch["states"]
        steps = {"latent": states[:, :-1], "next_latent": states[:, 1:]} | {
            key: batch[key] for key in ("action", "reward", "weight")}
        return super().loss({key: value.flatten(0, 1) for key, value in steps.items()}, draw)


def returns(reward: Tensor, discount: Tensor, values: Tensor, share: float) -> Tensor:
    """Lambda-returns (H, N) of rewards and discounts (H, N) and the values (H + 1, N) of all states, the last too.

    What follows a step is `share` of the next return and the rest of the next value.
    """
    result = [values[-1]]
    for t in range(len(reward) - 1, -1, -1):
        result.append(reward[t] + discount[t] * ((1 - share) * values[t + 1] + share * result[-1]))
    return torch.stack(result[:0:-1])


class Fancy(NamedTuple):
    """The chance in what is imagined."""

    noise: Tensor
    """(H, N, A) standard normal."""
    classes: Tensor
    """(H, N, G) even."""


class Imagine:
    """The actor learns from what it imagines after every state of a batch, at the price `entropy` for its own.

    Actions that led to more than the critic expected become likelier, in units of the returns' spread (Reinforce,
    Williams 1992). States at which an episode ended, and those past it, are not gone on from. At the price `imitation`
    the actor also keeps to what was really done, and what an `ensemble` would learn from an imagined step costs
    `caution` (as in MOTO, method 38, and the conservative roll-outs of COPlanner, method 56).
    """

    period = 1

    def __init__(self, world: RecurrentWorld, actor: BoundedActor, critic: Critic, spread: Spread, horizon: int,
                 steps: int, discount: float, share: float, entropy: float, imitation: float = 0.0,
                 ensemble: Disagreement | None = None, caution: float = 0.0, fast: Fast = plain):
        def onward(state: Tensor, noise: Tensor, classes: Tensor) -> Tensors:
            action = actor.drawn(state, noise)
            return {"action": action, "state": world.imagine(state, action.clamp(-1.0, 1.0), classes)}

        self._onward, self._judge = fast(onward), fast(self.judge)
        self.part = self.actor = actor
        self.imitation, self.ensemble, self.caution = imitation, ensemble, caution
        self.world, self.critic, self.spread = world, critic, spread
        self.horizon, self.steps, self.discount, self.share, self.price = horizon, steps, discount, share, entropy

    def draw(self, batch: int, generator: torch.Generator) -> Fancy:
        """For so many sequences of the replay."""
        rows = self.steps, batch * (self.horizon + 1)
        options = {"generator": generator, "device": generator.device}
        return Fancy(torch.randn(*rows, self.actor.action_size, **options),  # type: ignore[call-overload]
                     torch.rand(*rows, self.world.cell.groups, **options))  # type: ignore[call-overload]

    @torch.no_grad()
    def dream(self, state: Tensor, chance: Fancy) -> tuple[Tensor, Tensor]:
        """From (N, S) on -> states (H + 1, N, S), actions before their cut (H, N, A)."""
        states, actions = [state], []
        for noise, classes in zip(chance.noise, chance.classes, strict=True):
            step = self._onward(states[-1], noise, classes)
            states.append(step["state"])
            actions.append(step["action"])
        return torch.stack(states), torch.stack(actions)

    @torch.no_grad()
    def income(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """What was dreamt, see `dream` -> rewards and discounts (H, N)."""
        earned, end = self.world.earned(states[1:].flatten(0, 1))
        shape = actions.shape[:2]
        reward = self.world.reward.decode(earned).view(shape)
        if self.ensemble:
            taken = actions.flatten(0, 1).clamp(-1.0, 1.0)
            reward = reward - self.caution * self.ensemble.gain(states[:-1].flatten(0, 1), taken).view(shape)
        return reward, self.discount * torch.sigmoid(-end).view(shape)

    def judge(self, alive: Tensor, states: Tensor, actions: Tensor) -> Tensors:
        """What was dreamt, see `dream`, from states that are alive or not, (N,) -> loss, metrics, what was found."""
        with torch.no_grad():
            reward, discount = self.income(states, actions)
            values = worth(self.critic, states.flatten(0, 1)).view(states.shape[:2])
            ahead = returns(reward, discount, values, self.share)
            counts = torch.cat((alive[None], discount[:-1])).cumprod(0)
            self.spread.observe(ahead.flatten())
            advantage = (ahead - values[:-1]) / self.spread()
        rows = states[:-1].flatten(0, 1)
        density, entropy = self.actor.judge(rows, actions.flatten(0, 1))
        gain = advantage.flatten() * density + self.price * entropy
        loss = -(gain * counts.flatten()).sum() / counts.sum()
        return {"loss": loss, "imagined": rows, "returns": ahead.flatten(), "counts": counts.flatten(),
                "actor/entropy": entropy.detach().mean(), "actor/spread": self.spread(), "actor/value": values.mean()}

    def loss(self, batch: Tensors, draw: Fancy) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson; states (B, T + 1, S), alive (B, T + 1)."""
        alive = batch["alive"]
        start = torch.where(alive[..., None] > 0, batch["states"], batch["states"][:, :1])  # real ones for the spread
        judged = self._judge(alive.flatten(), *self.dream(start.flatten(0, 1), draw))
        loss = judged.pop("loss")
        if self.imitation:
            done, _ = self.actor.judge(batch["states"][:, :-1].flatten(0, 1), batch["action"].flatten(0, 1))
            held = batch["weight"].flatten()
            loss = loss - self.imitation * (done * held).sum() / held.sum()
        found = {name: judged.pop(name) for name in ("imagined", "returns", "counts")}
        return loss, judged | {"actor/loss": loss.detach()}, found


def worth(critic: Critic, states: Tensor) -> Tensor:
    """Of states (N, S), by a critic that sees no action, (N,)."""
    return critic.values(states, states[:, :0])[0]


class ImaginedValue:
    """The critic learns the returns of what was imagined, and to keep to its slow copy, at the price `slowly`."""

    period = 1

    def __init__(self, critic: Critic, slow: Critic, slowly: float, fast: Fast = plain):
        self.part = self.critic = critic
        self.slow, self.slowly, self._judge = slow, slowly, fast(self.judge)

    def draw(self, batch: int, generator: torch.Generator) -> None:
        """Nothing is random here."""

    def judge(self, states: Tensor, returned: Tensor, counts: Tensor) -> Tensors:
        """Of imagined states (N, S), their returns and how much they count, (N,): the loss and metrics."""
        with torch.no_grad():
            before = worth(self.slow, states)
        head, outputs, counts = self.critic.head, self.critic(states, states[:, :0]), counts / counts.sum()
        wrong = (head.loss(outputs, returned)[0] * counts).sum()
        moved = (head.loss(outputs, before)[0] * counts).sum()
        return {"loss": wrong + self.slowly * moved, "critic/loss": wrong.detach(), "critic/moved": moved.detach(),
                "critic/target": (returned * counts).sum()}

    def loss(self, batch: Tensors, draw: None) -> tuple[Tensor, Tensors, Tensors]:
        """See Lesson; imagined (N, S), their returns and how much they count, (N,)."""
        judged = self._judge(*(batch[name] for name in ("imagined", "returns", "counts")))
        return judged.pop("loss"), judged, {}
