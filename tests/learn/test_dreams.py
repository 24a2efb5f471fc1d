"""Recurrent world models: each loss and head worked out by hand, edges of episodes, what is carried and exported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robot_rl.learn import recipes
from robot_rl.learn.actors import BoundedActor
from robot_rl.learn.agent import Agent
from robot_rl.learn.backups import Disagreement
from robot_rl.learn.critics import Critic, Scalar
from robot_rl.learn.dreams import Aftersight, Fancy, Harmony, Imagine, ImaginedValue, Prices, Recall, returns, told
from robot_rl.learn.export import TOLERANCE, export
from robot_rl.learn.latents import Identity
from robot_rl.learn.recurrent import Cell, Nets, Painter, Recalled, RecurrentWorld, divergence, drawn
from robot_rl.learn.world import Spread
from robot_rl.policy import Policy
from robot_rl.spec import PolicySpec
from tests.learn.cases import ACTION, OBS, fill, flat, gradient_of, random_replay, small

CONTRACT = PolicySpec(task="test", rate_hz=20.0, time_limit_s=1.0, observation_size=OBS, action_size=ACTION)
PRICES = {"state": 1.0, "frames": 1.0, "reward": 1.0, "end": 1.0, "dynamics": 1.0, "representation": 0.1}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank(world: torch.nn.Module) -> None:
    """All weights 0."""
    for parameter in world.parameters():
        parameter.data.zero_()


class Line(RecurrentWorld):
    """A world whose state is a number, that an action adds to and that is the reward; even odds of the end."""

    def __init__(self) -> None:
        super().__init__(Identity(1), 1, 1, 1, 1, 2, (4,), Scalar(), generator())
        blank(self)

    def imagine(self, state: Tensor, action: Tensor, chance: Tensor) -> Tensor:
        return state + torch.nn.functional.pad(action, (0, 2))

    def earned(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return state[:, :1], torch.zeros_like(state[:, 0])


def sequence() -> dict[str, Tensor]:
    """Two steps, of which the second was not taken; symlogs of what was seen: 1, then 0, then (past the end) 2."""
    return {
        "obs": torch.tensor([[[math.e - 1], [0.0]]]), "next_obs": torch.tensor([[[0.0], [math.e**2 - 1]]]),
        "action": torch.zeros(1, 2, 1), "reward": torch.tensor([[2.0, 9.0]]),
        "discount": torch.tensor([[0.5, 0.0]]), "weight": torch.tensor([[1.0, 0.0]]),
    }


def test_categories_worked_out_by_hand() -> None:
    cell = Cell(Nets(*(torch.nn.Identity() for _ in range(3))), 1, 1, 1, 2)
    shares = cell.shares(torch.tensor([[0.0, math.log(3.0)]]))  # 1/4 and 3/4, of which 1 % is shared evenly
    torch.testing.assert_close(shares, torch.tensor([[[0.99 / 4 + 0.005, 0.99 * 3 / 4 + 0.005]]]))
    given = torch.tensor([[0.25, 0.75]], requires_grad=True)
    for chance, wanted in ((0.0, [1.0, 0.0]), (0.24, [1.0, 0.0]), (0.26, [0.0, 1.0]), (0.9999999, [0.0, 1.0])):
        assert drawn(given, torch.tensor([chance])).tolist() == [wanted]
    (gradient,) = torch.autograd.grad((drawn(given, torch.tensor([0.9])) * torch.tensor([[3.0, 5.0]])).sum(), [given])
    assert gradient.tolist() == [[3.0, 5.0]]  # as if the probabilities themselves went on
    even = drawn(torch.tensor([0.2, 0.3, 0.5]).expand(6000, 3), torch.rand(6000, generator=generator())).mean(0)
    torch.testing.assert_close(even, torch.tensor([0.2, 0.3, 0.5]), atol=0.02, rtol=0)


def test_divergence_worked_out_by_hand() -> None:
    one = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    other = torch.tensor([[0.5, 0.5], [0.5, 0.5]])  # the second group agrees
    assert float(divergence(one, other)) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_a_step_of_the_recurrent_unit_worked_out_by_hand() -> None:
    # reset 1/2 of 2 is new tanh(1); an update logit of 1, less 1, is half of the way: (h + tanh 1) / 2
    world = Line()
    world.cell.gates.layers()[-1].bias.data.copy_(torch.tensor([[[0.0, 2.0, 1.0]]]))
    after = world.cell(torch.tensor([[0.4, 1.0, 0.0]]), torch.zeros(1, 1))
    assert after.tolist() == [[pytest.approx((0.4 + math.tanh(1.0)) / 2)]]


def test_blocks_see_their_own_part_of_the_state() -> None:
    world = RecurrentWorld(Identity(1), 1, 8, 4, 1, 2, (4,), Scalar(), generator())
    fill(world.cell.enter, torch.zeros_like(flat(world.cell.enter)))
    state = torch.randn(1, 10, generator=generator())
    other = state.clone()
    other[:, 2:4] += 1.0  # the second of four blocks
    changed = world.cell(state, torch.zeros(1, 1)) != world.cell(other, torch.zeros(1, 1))
    assert changed.tolist() == [[False, False, True, True, False, False, False, False]]


def test_model_losses_worked_out_by_hand() -> None:
    # nothing is told but zeros: squares 1 and 0; half of 2**2; log 2; posterior and prior agree, so `free` nats each
    world, batch = RecurrentWorld(Identity(1), 1, 1, 1, 1, 2, (4,), Scalar(), generator()), sequence()
    blank(world)
    lesson = Recall(world, Prices(**PRICES | {"reward": 3.0}), 2, free=0.7)
    batch |= {"latent": world.look(batch)}
    loss, metrics, found = lesson.loss(batch, lesson.draw(1, generator()))
    values = {name.removeprefix("model/"): float(value) for name, value in metrics.items()}
    assert values == pytest.approx({"state": 0.5, "reward": 2.0, "end": math.log(2), "dynamics": 0.7,
                                    "representation": 0.7})
    assert float(loss.detach()) == pytest.approx(0.5 + 3 * 2.0 + math.log(2) + 0.7 + 0.1 * 0.7)
    assert found["alive"].tolist() == [[1.0, 1.0, 0.0]] and found["states"].shape == (1, 3, 3)
    assert float(found["error"][0, 1]) == 0.0 and float(found["error"][0, 0]) > 0


def test_each_side_of_the_divergence_teaches_its_own_and_free_nats_teach_nothing() -> None:
    world = Line()
    posterior, prior = (torch.tensor([[[[a, 1 - a]]] * 1]).expand(1, 3, 1, 2).clone().requires_grad_()
                        for a in (0.9, 0.2))
    recalled = Recalled(torch.zeros(1, 3, 3), posterior, prior)
    size = 0.9 * math.log(0.9 / 0.2) + 0.1 * math.log(0.1 / 0.8)
    for name, learns, rests in (("dynamics", prior, posterior), ("representation", posterior, prior)):
        loss = told(world, recalled, sequence(), 0.5)[name]
        assert loss.tolist() == [pytest.approx([size] * 3)]
        mine, others = torch.autograd.grad(loss.sum(), [learns, rests], allow_unused=True)
        assert float(mine.abs().min()) > 0 and others is None
        (none,) = torch.autograd.grad(told(world, recalled, sequence(), 2.0)[name].sum(), [learns])
        assert float(none.abs().max()) == 0.0


def test_frames_are_told_by_squared_errors_of_pixels() -> None:
    painter = Painter(3, (6, 20, 12), 4, generator())  # two cameras
    assert painter(torch.zeros(5, 3)).shape == (5, 6, 20, 12)
    world = RecurrentWorld(Identity(1), 1, 1, 1, 1, 2, (4,), Scalar(), generator(), (6, 20, 12), 4)
    blank(world)  # paints 0.5
    batch = sequence() | {"frames": torch.zeros(1, 2, 6, 20, 12), "next_frames": torch.ones(1, 2, 6, 20, 12)}
    batch["frames"][0, 0, :, 0, 0] = 0.5
    recalled = Recalled(torch.zeros(1, 3, 3), *(torch.full((1, 3, 1, 2), 0.5) for _ in range(2)))
    whole = 0.25 * 6 * 20 * 12
    assert told(world, recalled, batch, 1.0)["frames"].tolist() == [pytest.approx([whole - 0.25 * 6, whole, whole])]


def test_learned_prices_worked_out_by_hand() -> None:
    # sizes 2, 4 and 1: 3 / 2 + 5 / 4 + (0.5 + 0.1 * 0.6) / 1 + 7, and the logs of 3, 5 and 2
    harmony = Harmony(**PRICES)
    for name, size in (("seen", 2.0), ("earned", 4.0), ("expected", 1.0)):
        harmony.logs[name].data.fill_(math.log(size))
    losses = {"state": 3.0, "reward": 5.0, "end": 7.0, "dynamics": 0.5, "representation": 0.6}
    total = harmony({name: torch.tensor(value) for name, value in losses.items()})
    wanted = 1.5 + 1.25 + 7.0 + 0.56 + math.log(3) + math.log(5) + math.log(2)
    assert float(total.detach()) == pytest.approx(wanted)
    agent = small("dreamer_tiny", harmony=True)
    before = agent.modules["prices"].logs["seen"].item()
    agent.update(random_replay())
    assert agent.modules["prices"].logs["seen"].item() != before


def test_returns_worked_out_by_hand() -> None:
    # last: 1 + 0.5 * 4 = 3; first: 2 + 0.5 * (0.25 * 8 + 0.75 * 3) = 4.125
    found = returns(torch.tensor([[2.0], [1.0]]), torch.full((2, 1), 0.5), torch.tensor([[9.0], [8.0], [4.0]]), 0.75)
    assert found.tolist() == [[4.125], [3.0]]


def line_critic(slope: float) -> Critic:
    critic = Critic(3, 0, (), 1, Scalar(), generator())
    fill(critic.net, [slope, 0.0, 0.0, 0.0])
    return critic


def test_the_actors_loss_worked_out_by_hand() -> None:
    # the actor's mean is 0 and its std s; noise 1, then -1, so from 1 it goes to 1 + s and back, earning 1 + s and 1.
    # Values are twice the number, discounts 0.5 * 0.5. The second start was past the end.
    world, spread, actor = Line(), Spread(0.0), BoundedActor(3, 1, (4,), generator())
    blank(actor)
    spread.value.fill_(2.0)
    lesson = Imagine(world, actor, line_critic(2.0), spread, 1, 2, 0.5, 0.5, 0.1)
    batch = {"states": torch.tensor([[[1.0, 0.0, 0.0], [7.0, 0.0, 0.0]]]), "alive": torch.tensor([[1.0, 0.0]])}
    chance = Fancy(torch.tensor([1.0, -1.0])[:, None, None].expand(2, 2, 1), torch.zeros(2, 2, 1))
    loss, metrics, found = lesson.loss(batch, chance)
    s = 0.1 + 0.9 / (1 + math.exp(-2))
    second = 1 + 0.25 * 2
    first = 1 + s + 0.25 * (0.5 * 2 * (1 + s) + 0.5 * second)
    density = -0.5 - math.log(s) - 0.5 * math.log(2 * math.pi)
    entropy = math.log(s) + 0.5 * math.log(2 * math.pi * math.e)
    gains = [(value - was) / 2 * density + 0.1 * entropy for value, was in ((first, 2.0), (second, 2 + 2 * s))]
    assert float(loss.detach()) == pytest.approx(-(gains[0] + 0.25 * gains[1]) / 1.25, rel=1e-5)
    assert float(metrics["actor/entropy"]) == pytest.approx(entropy)
    assert found["returns"].tolist() == pytest.approx([first, first, second, second])  # from a real state again
    assert found["counts"].tolist() == pytest.approx([1.0, 0.0, 0.25, 0.0])
    assert found["imagined"][:, 0].tolist() == pytest.approx([1.0, 1.0, 1 + s, 1 + s])
    lesson.imitation = 0.2  # of an action of s, the only one that was taken: a noise of 1, as above
    batch |= {"action": torch.tensor([[[s]]]), "weight": torch.ones(1, 1)}
    assert float(lesson.loss(batch, chance)[0].detach()) == pytest.approx(float(loss.detach()) - 0.2 * density)


def apart(noise: float = 0.5) -> Disagreement:
    """Two members, of whom one says 0 and the other that the first number of three changes by twice the action."""
    ensemble = Disagreement(3, 1, (), 2, generator(), noise=noise)
    blank(ensemble)
    ensemble.net.layers()[0].weight.data[1, 3, 0] = 2.0
    return ensemble


def test_steps_that_an_ensemble_would_learn_from_cost_caution() -> None:
    # actions cut to 1 and to -1 where the ensemble is apart by 2: a variance of 1 in one of four numbers
    world, actor = Line(), BoundedActor(3, 1, (4,), generator())
    blank(actor)
    chance = Fancy(torch.tensor([9.0, -9.0])[:, None, None], torch.zeros(2, 1, 1))
    lessons = [Imagine(world, actor, line_critic(2.0), Spread(0.0), 1, 2, 0.5, 0.5, 0.1, ensemble=apart(),
                       caution=caution) for caution in (0.0, 3.0)]
    rewards = [lesson.income(*lesson.dream(torch.zeros(1, 3), chance))[0] for lesson in lessons]
    assert (rewards[0] - rewards[1]).flatten().tolist() == pytest.approx([3.0 * math.log(1 + 1 / 0.5) / 4] * 2)


def test_what_an_ensemble_learns_of_recalled_states_worked_out_by_hand() -> None:
    # the first step changes (1, 0, 0) to (4, 0, 0), by action 1, and earns 2; the second was not taken.
    # Squares 9 + 4 of the one, 1 + 4 of the other, a fourth of each
    batch = sequence() | {"states": torch.tensor([[[1.0, 0, 0], [4.0, 0, 0], [9.0, 9, 9]]]),
                          "action": torch.ones(1, 2, 1)}
    loss, _, _ = Aftersight(apart()).loss(batch, None)
    assert float(loss.detach()) == pytest.approx((13 + 5) / 4 / 2)  # two steps, one of weight
    agent, replay = small("dreamer_tiny", models=3, caution=0.5, lr=1e-2), random_replay()
    said = [float(agent.update(replay)["model/foresight"]) for _ in range(30)]
    assert sum(said[-5:]) < 0.8 * sum(said[:5])


def test_an_action_that_earned_more_than_expected_becomes_likelier() -> None:
    world, spread, actor = Line(), Spread(0.0), BoundedActor(3, 1, (4,), generator())
    lesson = Imagine(world, actor, line_critic(0.0), spread, 1, 1, 0.5, 0.5, 0.0)
    batch = {"states": torch.zeros(1, 2, 3), "alive": torch.ones(1, 2)}
    loss, _, _ = lesson.loss(batch, Fancy(torch.tensor([[[1.0], [-1.0]]]), torch.zeros(1, 2, 1)))
    gradient = gradient_of(loss, actor.net)
    assert float(gradient[-2]) < 0  # the last two are the biases of mean and spread: up with the mean


def test_the_critics_loss_worked_out_by_hand() -> None:
    # values 1 and 3 where returns are 2 and 5: halves of 1 and 4; the slow copy said 0.5 and 1.5: of 0.25 and 2.25
    lesson = ImaginedValue(line_critic(1.0), line_critic(0.5), 0.1)
    batch = {"imagined": torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]), "returns": torch.tensor([2.0, 5.0]),
             "counts": torch.tensor([3.0, 1.0])}
    loss, metrics, _ = lesson.loss(batch, None)
    wrong, moved = (3 * 0.5 + 2.0) / 4, (3 * 0.125 + 1.125) / 4
    assert float(metrics["critic/loss"]) == pytest.approx(wrong)
    assert float(loss.detach()) == pytest.approx(wrong + 0.1 * moved)
    assert float(metrics["critic/target"]) == pytest.approx((3 * 2 + 5) / 4)


def test_a_bounded_actor_is_cut_normal() -> None:
    actor, latent = BoundedActor(2, 1, (4,), generator()), torch.randn(3, 2, generator=generator())
    noise = torch.tensor([[0.3], [5.0], [-1.0]])
    mean, std = actor.moments(latent)
    normal = torch.distributions.Normal(mean, std)
    before = actor.drawn(latent, noise)
    density, entropy = actor.judge(latent, before)
    torch.testing.assert_close(density, normal.log_prob(before)[:, 0])
    torch.testing.assert_close(entropy, normal.entropy()[:, 0])
    action, same = actor.sample(latent, noise)
    torch.testing.assert_close(same, density)
    assert float(action[1].detach()) == 1.0 and (std > 0.1).all() and (std < 1.0).all()


def test_what_lies_past_an_episodes_end_teaches_nothing() -> None:
    agent = small("dreamer_tiny", batch=3)
    held = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], np.float32)
    sampled = random_replay().sample(3, 5) | {"weight": held}
    draws = [lesson.draw(3, generator()) for lesson in agent.lessons]
    losses = []
    for garbage in (0.0, 5.0):
        changed = {key: value.copy() for key, value in sampled.items()}
        for key in ("reward", "next_obs", "action"):
            changed[key][held == 0] = garbage
        changed["obs"][:, 1:] = garbage  # what a step began with is what the one before led to
        changed["discount"][held == 0] = 0.0
        batch = agent._tensors(changed)
        batch |= {"latent": agent.latent.look(batch)}
        for lesson, draw in zip(agent.lessons, draws, strict=True):
            loss, _, found = lesson.loss(batch, draw)
            batch |= found
            losses.append(float(loss.detach()))
    assert losses[:3] == pytest.approx(losses[3:], abs=1e-7) and losses[0] != 0.0


def learned(**chosen: Any) -> Agent:
    agent, replay = small("dreamer_tiny", lr=3e-3, **chosen), random_replay()
    for _ in range(5):
        agent.update(replay)
    return agent


def test_acting_step_by_step_is_recalling_the_sequence() -> None:
    agent = learned()
    world = agent.latent
    fill(world.cell.posterior, 30 * flat(world.cell.posterior))  # so sure that half of all chance is the likeliest
    agent._mirror = None
    random = np.random.default_rng(0)
    seen = random.normal(size=(4, 6, OBS)).astype(np.float32)
    carry, actions, states = None, [], []
    for t in range(6):
        action, carry = agent.act(seen[:, t], carry, explore=False)
        actions.append(action)
        states.append(carry[:, : world.size])
        np.testing.assert_array_equal(carry[:, world.size :], action)
    codes = world(torch.as_tensor(seen).flatten(0, 1)).unflatten(0, (4, 6))
    recalled = world.recall(codes, torch.as_tensor(np.stack(actions[:-1], 1)), torch.full((4, 6, 4), 0.5))
    sure = recalled.posterior.amax(-1).min()
    assert float(sure.detach()) > 0.5
    np.testing.assert_allclose(np.stack(states, 1), recalled.states.detach().numpy(), atol=1e-5)


def test_an_episode_begins_with_nothing_remembered_and_rows_are_episodes_of_their_own() -> None:
    agent, random = learned(), np.random.default_rng(0)
    obs = random.normal(size=(2, OBS)).astype(np.float32)
    first, carry = agent.act(obs, None, explore=False)
    again, _ = agent.act(obs, np.zeros_like(carry), explore=False)
    later, _ = agent.act(obs, carry, explore=False)
    assert np.array_equal(first, again) and not np.array_equal(first, later)
    carry[0] = 0.0  # as a new episode of one environment among several begins
    mixed, _ = agent.act(obs, carry, explore=False)
    np.testing.assert_allclose(mixed, np.stack((first[0], later[1])), atol=1e-6)


def test_the_file_remembers_as_the_agent_does(tmp_path: Path) -> None:
    agent, path, random = learned(), tmp_path / "policy.onnx", np.random.default_rng(0)
    policy = agent.policy()
    assert export(policy, OBS, policy.noise_size, CONTRACT.to_json(), path, carry=policy.carry) <= TOLERANCE
    loaded = Policy(path)
    for _ in range(2):
        carry = None
        loaded.reset()
        for _ in range(6):
            obs = random.normal(size=OBS).astype(np.float32)
            actions, carry = agent.act(obs[None], carry, explore=False)
            np.testing.assert_allclose(loaded(obs), actions[0], atol=TOLERANCE)


@pytest.mark.parametrize("chosen, message", [
    ({"blocks": 5}, "blocks is 5.*32"), ({"classes": 1}, "classes 1"), ({"groups": 0}, "groups is 0"),
    ({"horizon": 1}, "horizon is 1"), ({"smoothing": "gaus:3"}, "smoothing is 'gaus:3'.*gaussian"),
    ({"n_step": 3}, "n_step is 3.*single"), ({"models": 1}, "models is 1.*2 to disagree"),
    ({"caution": 0.1}, "models is 0 with caution 0.1"), ({"models": 3}, "models is 3 with caution 0.0")])
def test_models_that_make_no_sense_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("dreamer", **chosen)


@pytest.mark.parametrize("recipe, frames, low, high", [
    ("dreamer", (6, 64, 64), 11e6, 14e6), ("dreamer_tiny", None, 0.4e6, 0.6e6)])
def test_sizes(recipe: str, frames: tuple[int, int, int] | None, low: float, high: float) -> None:
    agent = recipes.make(recipe, 17, 6, frames, compile=False)
    count = sum(value.numel() for name in ("latent", "actor", "critic") for value in agent.modules[name].parameters())
    assert low < count < high
