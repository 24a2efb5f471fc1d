"""World models: losses and targets worked out by hand, planning against known optima, what is exported of it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robot_rl.learn import export as module
from robot_rl.learn import recipes
from robot_rl.learn.actors import ClippedActor, DeterministicActor, GaussianActor
from robot_rl.learn.agent import Agent
from robot_rl.learn.backups import Draw, SoftBackup
from robot_rl.learn.critics import Chance, Mean, Minimum, PairCritic, Scalar, alone
from robot_rl.learn.crowd import Centred, Crowd, CrowdBackup, CrowdValue, Guide
from robot_rl.learn.export import SEEING_TOLERANCE, ExportError, export
from robot_rl.learn.imitation import Cloning, ImaginedBackup, Imitation, divergence
from robot_rl.learn.insample import Expectile, InSampleBackup, Regression
from robot_rl.learn.latents import Identity
from robot_rl.learn.nets import Adam, Mlp
from robot_rl.learn.objectives import Fading, Imitating, NoTemperature
from robot_rl.learn.planner import Planner, Search, Telling, Valued, Wary, WorldModel
from robot_rl.learn.world import PriorValue, Simplex, Spread, Step, Unroll, Weights, World, foretold, summed
from robot_rl.policy import Policy
from robot_rl.replay import ONLINE, PRIOR, Replay
from robot_rl.spec import PolicySpec
from tests.learn.cases import ACTION, OBS, fill, first_action, flat, random_replay, small, stored_draws
from tests.learn.test_parts import linear_actor, linear_critic

CONTRACT = PolicySpec(task="test", rate_hz=20.0, time_limit_s=1.0, observation_size=OBS, action_size=ACTION)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Line(World):
    """A world of one number that an action adds to; foretold are twice the number as reward, and even odds of the end.
    """

    def __init__(self) -> None:
        super().__init__(Identity(1), 1, 1, (), 1, Scalar(), generator())

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        return latent + action

    def step(self, latent: Tensor, action: Tensor) -> Step:
        return Step(2 * latent, torch.zeros_like(latent[:, 0]))


def sequence(held: tuple[float, float] = (1.0, 1.0)) -> dict[str, Tensor]:
    """Two steps from 1 with actions 0.5 and -1, so foretold are 1.5 and 0.5; what came are 2 and 0, then the end."""
    return {
        "latent": torch.tensor([[1.0]]), "next_latent": torch.tensor([[[2.0], [0.0]]]),
        "action": torch.tensor([[[0.5], [-1.0]]]), "reward": torch.tensor([[1.0, 1.0]]),
        "discount": torch.tensor([[0.5, 0.0]]), "weight": torch.tensor([held]),
    }


def test_simplex_worked_out_by_hand() -> None:
    # (1, 2, 3, 2) has mean 2 and variance 1/2; doubled: groups (-2s, 2s) and (0, 0) with s = sqrt(2)
    simplex = Simplex(4, 2)
    simplex.norm.weight.data.fill_(2.0)
    high = 1 / (1 + math.exp(-4 * math.sqrt(2)))
    given = torch.tensor([[1.0, 2.0, 3.0, 2.0]])
    torch.testing.assert_close(simplex(given), torch.tensor([[1 - high, 0.5, high, 0.5]]), atol=1e-4, rtol=0)
    np.testing.assert_allclose(simplex.mirror()(given.numpy()), simplex(given).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("held, consistency, reward, end", [
    # squares 0.25 and 0.25; halves of (2 - 1)**2 and (3 - 1)**2; log 2 each. A step counts 1/2, the next 1/4
    ((1.0, 1.0), 0.25 * 0.75, 0.5 / 2 + 2 / 4, math.log(2) * 0.75),
    ((1.0, 0.0), 0.25 * 0.5, 0.5 / 2, math.log(2) * 0.5)])
def test_model_losses_worked_out_by_hand(held: tuple[float, float], consistency: float, reward: float, end: float
                                         ) -> None:
    world, batch = Line(), sequence(held)
    latents = world.unroll(batch["latent"], batch["action"])
    assert latents.flatten().tolist() == [1.0, 1.5, 0.5]
    losses = foretold(world, latents, batch["next_latent"], batch, Weights(rho=0.5))
    found = [float(losses[name]) for name in ("consistency", "reward", "end")]
    assert found == pytest.approx([consistency, reward, end])


def test_values_along_a_sequence_worked_out_by_hand() -> None:
    # Q is the latent. Targets 1 + 0.5 * 2 = 2, and 1 past the end; values 1 and 1.5 of what was foretold
    world, critic, actor = Line(), linear_critic((1, 0, 0), (1, 0, 0)), linear_actor(0.0, 0.0)
    backup = SoftBackup(actor, critic, NoTemperature(), Minimum())
    weights = Weights(consistency=2.0, reward=3.0, value=4.0, end=5.0, rho=0.5)
    lesson = Unroll(world, critic, backup, 2, weights)
    loss, metrics, found = lesson.loss(sequence(), (Draw(torch.zeros(2, 1)), Chance()))
    value = 0.5 / 2 + 0.125 / 4
    assert float(metrics["critic/loss"]) == pytest.approx(value) and float(metrics["critic/target"]) == 1.5
    assert float(loss.detach()) == pytest.approx(2 * 0.25 * 0.75 + 3 * 0.75 + 4 * value + 5 * math.log(2) * 0.75)
    assert found["error"].tolist() == [[1.0, 0.5]] and found["latents"].flatten().tolist() == [1.0, 1.5, 0.5]


@pytest.mark.parametrize("n_step, held, rewards, discounts, last", [
    (1, (1, 1, 1), (1.0, 2.0, 4.0), (0.5, 0.5, 0.5), (1.0, 2.0, 3.0)),
    (2, (1, 1, 1), (2.0, 4.0, 4.0), (0.25, 0.25, 0.5), (2.0, 3.0, 3.0)),
    (3, (1, 1, 1), (3.0, 4.0, 4.0), (0.125, 0.25, 0.5), (3.0, 3.0, 3.0)),
    (9, (1, 1, 1), (3.0, 4.0, 4.0), (0.125, 0.25, 0.5), (3.0, 3.0, 3.0)),
    (3, (1, 1, 0), (2.0, 2.0, 4.0), (0.25, 0.5, 0.5), (2.0, 2.0, 3.0)),  # what is past a truncation is none of it
    (3, (1, 0, 0), (1.0, 2.0, 4.0), (0.5, 0.5, 0.5), (1.0, 2.0, 3.0))])
def test_returns_along_a_sequence_worked_out_by_hand(n_step: int, held: tuple[int, ...], rewards: tuple[float, ...],
                                                     discounts: tuple[float, ...], last: tuple[float, ...]) -> None:
    batch = {"reward": torch.tensor([[1.0, 2.0, 4.0]]), "discount": torch.full((1, 3), 0.5),
             "next_latent": torch.tensor([[[1.0], [2.0], [3.0]]]), "weight": torch.tensor([held], dtype=torch.float32)}
    found = summed(batch, n_step)
    assert found["reward"][0].tolist() == list(rewards) and found["discount"][0].tolist() == list(discounts)
    assert found["next_latent"].flatten().tolist() == list(last)
    assert batch["reward"][0].tolist() == [1.0, 2.0, 4.0] and batch["next_latent"].flatten().tolist() == [1.0, 2.0, 3.0]


def test_a_termination_ends_a_return() -> None:
    batch = {"reward": torch.tensor([[1.0, 2.0]]), "discount": torch.tensor([[0.5, 0.0]]),
             "next_latent": torch.tensor([[[1.0], [2.0]]]), "weight": torch.ones(1, 2)}
    found = summed(batch, 2)
    assert found["reward"][0].tolist() == [2.0, 2.0] and found["discount"][0].tolist() == [0.0, 0.0]


def test_values_along_a_sequence_of_two_rewards_worked_out_by_hand() -> None:
    # targets 1 + 0.5 * 1, the end after two rewards, and 1; values 1 and 1.5 of what was foretold
    world, critic, actor = Line(), linear_critic((1, 0, 0), (1, 0, 0)), linear_actor(0.0, 0.0)
    lesson = Unroll(world, critic, SoftBackup(actor, critic, NoTemperature(), Minimum()), 2, Weights(rho=0.5), 2)
    _, metrics, found = lesson.loss(sequence(), (Draw(torch.zeros(2, 1)), Chance()))
    assert float(metrics["critic/target"]) == 1.25 and found["error"].tolist() == [[0.5, 0.5]]
    assert float(metrics["model/reward"]) == pytest.approx(0.75)  # the model's rewards are of single steps


def test_an_actor_of_a_world_model_imitates_prior_data() -> None:
    # Q = z + a, a = tanh(0.3); of the sequences the first steps did 0.5 and -1, the second is no prior's
    actor, critic, spread = linear_actor(0.3, -20.0), linear_critic((1, 1, 0)), Spread(0.0)
    one = sequence() | {"latents": torch.tensor([[[1.0], [1.5], [9.0]]]), "source": torch.full((1, 2), PRIOR)}
    other = one | {"action": torch.tensor([[[-1.0], [0.5]]]), "source": torch.full((1, 2), ONLINE)}
    batch = {key: torch.cat((one[key], other[key])) for key in one}
    plain = PriorValue(actor, critic, Mean(), spread, 2, 0.5, 0.0)
    draw = (torch.zeros(6, 1), Chance())
    loss, metrics, _ = Imitating(plain, Fading(2.0, 10)).loss(batch, draw)
    usual, cost = float(plain.loss(batch, draw)[0].detach()), (math.tanh(0.3) - 0.5) ** 2 / 2
    assert float(metrics["actor/unlike"]) == pytest.approx(cost)
    assert float(loss.detach()) == pytest.approx(usual + 2 * (1 + abs(usual)) * cost)


def test_the_actors_loss_worked_out_by_hand() -> None:
    # Q = z + a, a = tanh(0.3); latents 1, 1.5 and one past the end, which does not count; spread 2; price 0
    actor, critic, spread = linear_actor(0.3, -20.0), linear_critic((1, 1, 0)), Spread(0.0)
    spread.value.fill_(2.0)
    lesson = PriorValue(actor, critic, Mean(), spread, 2, 0.5, 0.0)
    batch = sequence() | {"latents": torch.tensor([[[1.0], [1.5], [9.0]]])}
    loss, _, _ = lesson.loss(batch, (torch.zeros(3, 1), Chance()))
    a = math.tanh(0.3)
    assert float(loss.detach()) == pytest.approx(-((1 + a) + 0.5 * (1.5 + a)) / 2 / 3)
    price = PriorValue(actor, critic, Mean(), spread, 2, 0.5, 0.1)
    density = actor.sample(torch.ones(1, 1), torch.zeros(1, 1))[1]
    more = float((price.loss(batch, (torch.zeros(3, 1), Chance()))[0] - loss).detach())
    assert more == pytest.approx(0.1 * float(density.detach()) * 1.5 / 3, rel=1e-4)


def test_spread_is_that_between_percentiles_and_at_least_1() -> None:
    spread = Spread(0.5)
    spread.observe(torch.arange(101.0))  # from 5 to 95: 90
    assert float(spread()) == pytest.approx((1 + 90) / 2)
    for _ in range(40):
        spread.observe(torch.zeros(10))
    assert float(spread()) == pytest.approx(1.0)


def test_what_is_no_number_does_not_count_in_the_spread() -> None:
    spread = Spread(1.0)
    spread.observe(torch.cat((torch.arange(101.0), torch.full((50,), math.nan))))
    assert float(spread()) == pytest.approx(90)
    spread.observe(torch.full((50,), math.nan))
    assert float(spread()) == 1.0


def test_divergence_of_two_gaussians_worked_out_by_hand() -> None:
    # log(2 / 1) + (1 + 0.5**2) / (2 * 2**2) - 1/2
    found = divergence(torch.tensor(0.5), torch.tensor(0.0), torch.tensor(0.0), torch.tensor(2.0))
    assert float(found) == pytest.approx(math.log(2) + 1.25 / 8 - 0.5)
    assert float(divergence(torch.tensor(0.3), torch.tensor(-1.0), torch.tensor(0.3), torch.tensor(math.exp(-1)))) == 0


def clipped(mean: float, share: float) -> ClippedActor:
    """One action; what its network says before the tanh is these numbers everywhere."""
    actor = ClippedActor(1, 1, (), generator())
    fill(actor.net, [0.0, 0.0, mean, share])
    return actor


def test_an_actor_that_is_clipped_worked_out_by_hand() -> None:
    # the log std goes from -3 to 1, so at 0 it is -1
    actor, latent, noise = clipped(0.5, 0.0), torch.zeros(3, 1), torch.tensor([[0.0], [1.0], [9.0]])
    action, density = actor.sample(latent, noise)
    mean, std = math.tanh(0.5), math.exp(-1)
    assert action[:, 0].tolist() == pytest.approx([mean, mean + std, 1.0])
    wanted = torch.distributions.Normal(mean, std).log_prob(mean + std * noise)[:, 0]
    torch.testing.assert_close(density, wanted)
    np.testing.assert_allclose(actor.mirror()(latent.numpy(), noise.numpy()), action.detach().numpy(), atol=1e-6)
    torch.testing.assert_close(actor.frozen()(latent, noise), action)


@pytest.mark.parametrize("held", [(1.0, 1.0), (1.0, 0.0)])
def test_imitation_worked_out_by_hand(held: tuple[float, float]) -> None:
    # mean 0 and std exp(-1); planned are 0.5 with std 1, then nothing in one row and 0 with std exp(-1) in the other
    actor, spread = clipped(0.0, 0.0), Spread(0.0)
    spread.value.fill_(2.0)
    plan = torch.tensor([[[0.5, 1.0], [0.0, 0.0]], [[0.0, math.exp(-1)], [0.5, 1.0]]])
    batch = {"latents": torch.ones(2, 3, 1), "plan": plan, "weight": torch.tensor([[1.0, 1.0], held])}
    far = 1 + (math.exp(-2) + 0.25) / 2 - 0.5
    wanted = (far * 0.5 + 0.0 * 0.5 + far * 0.25 * held[1]) / 2 / 2  # a step counts 1/2, the next 1/4; two rows
    loss, metrics, _ = Imitation(actor, spread, 0.5, 0.0).loss(batch, None)
    assert float(loss.detach()) == pytest.approx(wanted) and float(metrics["actor/planned"]) == 0.75
    entropy, counts = 0.5 * math.log(2 * math.pi * math.e) - 1, (0.5 + 0.5 + 0.25 * held[1]) / 2
    dear = Imitation(actor, spread, 0.5, 0.1).loss(batch, None)[0]
    assert float((dear - loss).detach()) == pytest.approx(-0.1 * entropy * counts)
    batch["plan"] = torch.zeros(2, 2, 2)
    loss, _, _ = Imitation(actor, Spread(0.1), 0.5, 0.1).loss(batch, None)
    loss.backward()  # nothing was planned, so nothing is learned
    assert float(loss.detach()) == 0 and not any(part.grad.any() for part in actor.net.parameters())


def test_cloning_worked_out_by_hand() -> None:
    # tanh(0.5) and tanh(-0.5) in place of 0.5 and 0.2, then of -1 and 0 which counts half; what follows does not count
    actor = DeterministicActor(1, 2, (), generator())
    fill(actor.net, [0.0, 0.0, 0.5, -0.5])
    action = torch.tensor([[[0.5, 0.2], [9.0, 9.0]], [[-1.0, 0.0], [9.0, 9.0]]])
    batch = {"latent": torch.ones(2, 1), "action": action, "reward": torch.ones(2, 2),
             "weight": torch.tensor([[1.0, 1.0], [0.5, 0.0]])}
    loss, metrics, found = Cloning(actor, Line()).loss(batch, None)
    a = math.tanh(0.5)
    wanted = ((a - 0.5) ** 2 + (a + 0.2) ** 2 + ((a + 1) ** 2 + a**2) / 2) / 2
    assert float(loss.detach()) == pytest.approx(wanted) == float(metrics["actor/loss"])
    assert found["error"].shape == (2, 2)


def test_an_imagined_target_worked_out_by_hand() -> None:
    # from 1 and 3 with tanh(0.3): rewards 2 and 6, even odds to go on to a value of what follows
    critic = PairCritic(alone, 1, (), 1, Scalar(), generator())
    fill(critic.net, [2.0, 1.0])  # V(z) = 2 z + 1
    backup = ImaginedBackup(linear_actor(0.3, -20.0), critic, WorldModel(Line(), critic), Mean(), 0.8)
    latent = torch.tensor([[1.0], [3.0]])
    y = backup.target({"latent": latent}, Draw(torch.zeros(2, 1)))
    a = math.tanh(0.3)
    wanted = [2 + 0.4 * (2 * (1 + a) + 1), 6 + 0.4 * (2 * (3 + a) + 1)]
    assert y.tolist() == pytest.approx(wanted)
    assert torch.equal(critic(latent, torch.zeros(2, 1)), critic(latent, torch.ones(2, 1)))


def test_a_sequences_targets_are_of_what_was_seen_in_it() -> None:
    critic, actor = linear_critic((1, 0, 0)), linear_actor(0.0, -20.0)
    backup = ImaginedBackup(actor, critic, WorldModel(Line(), critic), Mean(), 0.5)
    lesson = Unroll(Line(), critic, backup, 2, Weights())
    _, metrics, _ = lesson.loss(sequence(), (Draw(torch.zeros(2, 1)), Chance()))
    # seen are 1 and 2: targets 2 + 0.25 * 1 and 4 + 0.25 * 2; rewards and ends that were seen do not matter
    assert float(metrics["critic/target"]) == pytest.approx((2.25 + 4.5) / 2)


def state_values(slope: float, offset: float) -> PairCritic:
    """V = slope * z + offset."""
    value = PairCritic(alone, 1, (), 1, Scalar(), generator())
    fill(value.net, [slope, offset])
    return value


def test_targets_from_state_values_worked_out_by_hand() -> None:
    # V(2) = 5 and V(0) = 1 of what followed, half of the first, none of the second, which ended; rewards 1 each
    backup = InSampleBackup(linear_actor(0.3, -0.5), state_values(2.0, 1.0))
    batch = sequence()
    flat = {key: batch[key].flatten(0, 1) for key in ("next_latent", "reward", "discount")}
    assert backup.target(flat, backup.draw(2, generator())).tolist() == [1 + 0.5 * 5, 1.0]


@pytest.mark.parametrize("held", [(1.0, 1.0), (1.0, 0.0)])
def test_expectiles_and_advantages_worked_out_by_hand(held: tuple[float, float]) -> None:
    # Q of the two is z + 2 a and z + 3 a: at 1 with 0.5, 2; at 1.5 with -1, -1.5. V = z: 1 and 1.5
    batch = sequence(held) | {"latents": torch.tensor([[[1.0], [1.5], [9.0]]])}
    lesson = Expectile(state_values(1.0, 0.0), linear_critic((1, 2, 0), (1, 3, 0)), 0.9, 0.5)
    loss, _, found = lesson.loss(batch, Chance())
    assert found["advantage"].tolist() == [[1.0, -3.0]]
    wanted = 1.8 * 0.5 * 0.5 + 0.2 * 4.5 * 0.25 * held[1]  # by 2 e and 2 (1 - e); times 1/2, then 1/4
    assert float(loss.detach()) == pytest.approx(wanted)


def test_a_random_pair_of_critics_says_what_an_action_was_worth() -> None:
    batch = sequence() | {"latents": torch.tensor([[[1.0], [1.5], [9.0]]])}
    critic = linear_critic((0, 0, 1), (0, 0, 2), (0, 0, 3))
    lesson, chance = Expectile(state_values(0.0, 0.0), critic, 0.9, 0.5), generator()
    found = {float(lesson.loss(batch, lesson.draw(2, chance))[2]["advantage"][0, 0]) for _ in range(30)}
    assert found == {1.0, 2.0}  # the third counts only beside a smaller one


def test_regression_by_advantage_worked_out_by_hand() -> None:
    # the actor does 0; actions 0.5 and -1 count exp(0.5 * 1) and exp(0.5 * -3); the third, 100, by its bound
    batch = sequence() | {"latents": torch.ones(1, 3, 1), "advantage": torch.tensor([[1.0, -3.0]])}
    actor = DeterministicActor(1, 1, (), generator())
    fill(actor.net, torch.zeros_like(flat(actor.net)))
    lesson = Regression(actor, 0.5, 0.5)
    wanted = 0.5 * (math.exp(0.5) * 0.25 * 0.5 + math.exp(-1.5) * 1.0 * 0.25)
    assert float(lesson.loss(batch, None)[0].detach()) == pytest.approx(wanted)
    batch["advantage"] = torch.tensor([[1e3, -1e3]])
    assert float(lesson.loss(batch, None)[0].detach()) == pytest.approx(0.5 * 100 * 0.25 * 0.5)


def test_what_critics_disagree_about_costs_a_wary_planner() -> None:
    model = Wary(WorldModel(Line(), linear_critic((1, 1, 0), (1, 3, 0))), 2.0)
    latent, action = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [0.5]])
    apart = [0.0, 2.0 * 1.0 / math.sqrt(2)]  # values 1.5 and 2.5
    reward, going = model.outcome(latent, action)
    assert reward.tolist() == pytest.approx([2.0, 2.0 - apart[1]])
    assert going.tolist() == [0.5, 0.5] and model.next(latent, action).flatten().tolist() == [1.0, 1.5]
    assert model.value(latent, action, 0).tolist() == pytest.approx([1.0, 2.0 - apart[1]])


def test_iterations_ask_critics_in_turn() -> None:
    critics = [(1, 1, 0), (2, 0, 0), (0, 3, 0)]  # of latent 2 and action 1: 3, 4 and 3
    latent, action = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    for asked, wanted in ((0, [10 / 3] * 4), (1, [3.0, 4.0, 3.0, 3.0]), (2, [3.5, 3.5, 3.5, 3.5]), (3, [10 / 3] * 4)):
        model = WorldModel(Line(), linear_critic(*critics), asked)
        said = [float(model.value(latent, action, turn).detach()) for turn in range(4)]
        assert said == pytest.approx(wanted)
    model = WorldModel(Line(), linear_critic((1, 0, 0), (2, 0, 0), (4, 0, 0)), 2)
    planner = Planner(model, 1, Search(horizon=1, samples=4, proposals=1, elites=2), 1.0)
    ways = planner.tried(lambda seen, noise: noise, latent, torch.tensor([[[[0.0]]]]))  # earns 4 and goes on by half
    assert [float(planner.value(ways, turn).detach()) for turn in range(3)] == pytest.approx([5.5, 7.0, 5.5])


class Bent(nn.Module):
    """Would learn as much as an action is large."""

    def gain(self, latent: Tensor, action: Tensor) -> Tensor:
        return action.abs().sum(-1)


def test_what_an_ensemble_would_learn_has_a_price_along_the_whole_plan() -> None:
    plain = WorldModel(Line(), linear_critic((1, 1, 0)))
    latent, action = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [-0.5]])
    for price in (3.0, -3.0):
        model = Valued(plain, Bent(), price)
        assert model.outcome(latent, action)[0].tolist() == pytest.approx([2.0, 2.0 + 0.5 * price])
        assert model.value(latent, action, 0).tolist() == plain.value(latent, action, 0).tolist()
        planner = Planner(model, 1, Search(horizon=2, samples=8, proposals=0, elites=2), 0.5)
        plans = torch.tensor([[[[0.2], [-0.4]]]])
        worth, without = (float(one.value(one.tried(lambda seen, noise: noise, latent[:1], plans), 0).detach())
                          for one in (planner, Planner(plain, 1, planner.search, 0.5)))
        wanted = price * (0.2 + 0.5 * 0.5 * 0.4)  # discount, and even odds to go on
        assert worth - without == pytest.approx(wanted)


def test_an_ensemble_comes_to_agree_on_what_was_seen_and_training_seeks_the_rest() -> None:
    agent = learned(1, models=3, venture=20.0, caution=20.0, lr=3e-3)
    replay, ensemble = random_replay(), agent.modules["ensemble"]
    batch = replay.sample(64)
    obs, action = torch.as_tensor(batch["obs"]), torch.as_tensor(batch["action"])

    def gain(action: Tensor) -> float:
        with torch.no_grad():
            return float(ensemble.gain(agent.latent(obs), action).mean())

    before = gain(action)
    for _ in range(60):
        agent.update(replay)
    assert gain(action) < 0.5 * before
    agent.noise.draw = lambda shape, *rest: torch.zeros(shape)  # type: ignore[method-assign]
    taken = {explore: torch.as_tensor(agent.act(obs.numpy(), explore=explore)[0]) for explore in (True, False)}
    assert gain(taken[True]) > 1.2 * gain(taken[False])
    with torch.no_grad():
        frozen = ensemble.frozen().gain(agent.latent(obs), action)
        torch.testing.assert_close(frozen, ensemble.gain(agent.latent(obs), action), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("recipe, chosen, message", [
    ("tdmpc2", {"models": 1}, "models is 1.*2 to disagree"), ("tdmpc2", {"venture": 0.1}, "models is 0 with venture"),
    ("bmpc", {"models": 3, "venture": 0.1}, "imitates what it plans"), ("fowm", {"asked": 2}, "asked is 2; here all"),
    ("modem_v2", {"asked": 1}, "asked is 1; here all")])
def test_prices_and_questions_that_make_no_sense_are_refused(recipe: str, chosen: dict[str, Any],
                                                             message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(recipe, **chosen)


def pair(first: tuple[float, float], second: tuple[float, float]) -> DeterministicActor:
    """Two actors of one number, tanh(w z + b) each."""
    actor = DeterministicActor(1, 1, (), generator(), explore=0.1, smooth=0.0, members=2)
    fill(actor.net, [first[0], second[0], first[1], second[1]])
    return actor


def test_a_crowds_worth_is_what_others_would_do_less_their_disagreement() -> None:
    # at 1 the actors do tanh(0.5) = p and tanh(-0.3) = q; Q0 = z + a and Q1 = 2 z - a: of the other's, 1 + q and 2 - p
    actor, critic = pair((0.5, 0.0), (0.0, -0.3)), linear_critic((1, 1, 0), (2, -1, 0))
    model = Crowd(WorldModel(Line(), critic), actor.net, 0.5)
    p, q = math.tanh(0.5), math.tanh(-0.3)
    told = model.value(torch.tensor([[1.0]]), torch.tensor([[9.0]]), 0)
    one, two = 1 + q, 2 - p
    assert told.tolist() == pytest.approx([(one + two) / 2 - 0.5 * abs(one - two) / math.sqrt(2)])
    torch.testing.assert_close(model.frozen().value(torch.tensor([[1.0], [-2.0]]), torch.zeros(2, 1), 0),
                               model.value(torch.tensor([[1.0], [-2.0]]), torch.zeros(2, 1), 0))
    backup = CrowdBackup(actor, critic)
    y = backup.target({"next_latent": torch.tensor([[1.0]]), "reward": torch.tensor([0.5]),
                       "discount": torch.tensor([0.9])}, Draw(torch.ones(1, 1)))
    assert y.tolist() == pytest.approx([0.5 + 0.9 * (1 + p + 2 - q) / 2])  # here each is asked of its own


def test_plans_of_a_crowd_lie_near_its_actors() -> None:
    actor, critic = pair((0.0, 0.8), (0.0, -0.6)), linear_critic((0, 0, 0), (0, 0, 0))
    search = Search(horizon=2, iterations=1, samples=16, proposals=8, elites=8)
    still = Line()
    still.step = lambda latent, action: Step(0 * latent, torch.zeros_like(latent[:, 0]))  # type: ignore[method-assign]
    planner = Centred(Crowd(WorldModel(still, critic), actor.net, 1.0), 1, search, 0.9, explore=0.0)
    plan, std, values = planner.plan(lambda seen, noise: noise, torch.ones(3, 1), torch.zeros(3, 2, 1))
    high, low = math.tanh(0.8), math.tanh(-0.6)
    assert values.shape == (3, 16) and plan.flatten().tolist() == pytest.approx([(high + low) / 2] * 6)  # all alike
    assert std.flatten().tolist() == pytest.approx([(high - low) / 2] * 6)
    better = Centred(Crowd(WorldModel(Line(), critic), actor.net, 1.0), 1, search, 0.9, explore=0.0)  # reward 2 z
    plan, _, _ = better.plan(lambda seen, noise: noise, 5 * torch.ones(1, 1), torch.zeros(1, 2, 1))
    assert (high + low) / 2 < float(plan[0, 0].detach()) <= high + 1e-6


def test_each_actor_learns_from_its_own_critic() -> None:
    actor, critic = pair((0.0, 0.0), (0.0, 0.0)), linear_critic((0, 1, 0), (0, -1, 0))
    lesson, batch = CrowdValue(actor, critic, Spread(0.01), 2, 0.5), sequence() | {"latents": torch.ones(1, 3, 1)}
    loss, metrics, _ = lesson.loss(batch, Chance())
    Adam(actor.net, 0.1).step(loss)
    one, two = actor.every(torch.ones(1, 1)).flatten().tolist()
    assert one > 0.05 and two < -0.05 and float(metrics["actor/apart"]) == 0.0


def test_control_is_handed_over_slowly_and_up_to_a_ceiling() -> None:
    guide = Guide(Identity(1), pair((0, 0), (0, 0)), 10, 30, 0.5)
    assert [guide.share(n) for n in (0, 10, 20, 30, 99)] == [0.0, 0.0, 0.25, 0.5, 0.5]
    replay, obs = random_replay(), np.random.default_rng(3).normal(size=(40, OBS)).astype(np.float32)
    agent = small("modem_v2", lr=1e-2, handover_from=10, handover_to=11, ceiling=0.5)
    for _ in range(5):
        agent.update(replay, offline=True)
    cloned = agent.act(obs, explore=False)[0]
    for _ in range(4):
        agent.update(replay)

    def is_clone() -> bool:
        action, carry = agent.act(obs)
        apart = action - cloned
        assert (carry is None) == bool(abs(apart.mean()) < 0.05 and 0.05 < apart.std() < 0.15)
        return carry is None

    assert all(is_clone() for _ in range(10))
    for _ in range(4):
        agent.update(replay)
    taken = [is_clone() for _ in range(60)]
    assert 12 < sum(taken) < 48  # it keeps half of the steps for good
    assert agent.act(obs, explore=False)[1] is not None  # without exploring the planner alone acts
    again = small("modem_v2", seed=5, handover_from=10, handover_to=11, ceiling=0.0)
    again.load_state_dict(agent.state_dict())
    assert abs((again.act(obs)[0] - cloned).mean()) < 0.05


@pytest.mark.parametrize("chosen, message", [
    ({"critics": 1}, "critics is 1"), ({"iterations": 2}, "iterations 2"), ({"models": 3}, "models is 3"),
    ({"imitation": 1.0}, r"imitation is 1\.0.*clone"), ({"n_step": 4}, "n_step is 4"),
    ({"ceiling": 1.5}, r"ceiling is 1\.5"), ({"handover_from": 9, "handover_to": 9}, "handover_from is 9")])
def test_crowds_that_make_no_sense_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("modem_v2", **chosen)


def test_a_part_of_the_rate_is_a_part_of_the_step() -> None:
    steps = []
    for pace in (1.0, 0.25):
        net = Mlp((2, 3, 1), 1, generator())
        net.pace = pace
        before = flat(net)
        Adam(net, 1e-2).step(net(torch.ones(4, 2)).sum())
        steps.append(flat(net) - before)
    torch.testing.assert_close(steps[1], 0.25 * steps[0])


def test_what_lies_past_an_episodes_end_teaches_nothing() -> None:
    agent = small("tdmpc2", batch=8)
    lesson = agent.lessons[0]
    held = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
    sampled = random_replay().sample(3, 3) | {"weight": held}
    losses = []
    for garbage in (0.0, 5.0):
        changed = {key: value.copy() for key, value in sampled.items()}
        for key in ("reward", "next_obs", "action"):
            changed[key][held == 0] = garbage
        changed["obs"][:, 1:] = garbage  # a model sees where a sequence begins, and must foretell the rest
        changed["discount"][held == 0] = 0.0
        batch = agent._tensors(changed)
        batch |= {"latent": agent.latent.look(batch), "next_latent": agent.latent.look(batch, "next_").detach()}
        losses.append(float(lesson.loss(batch, lesson.draw(3, generator()))[0].detach()))
    assert losses[0] == losses[1] != 0.0


def test_sequences_stay_within_an_episode_and_in_order() -> None:
    replay, random, time = Replay(60, 2, 1, 0), np.random.default_rng(0), 0
    for episode in range(40):  # the ring is written over several times
        replay.begin(np.array([episode, time]))
        for step in range(int(random.integers(1, 7))):
            time += 1
            replay.step(np.array([time / 1000]), float(time), np.array([episode, time]), step % 2 == 0, False)
            if step % 2 == 0:
                break
        time += 1
    batch = replay.sample(500, 4)
    held = batch["weight"] > 0
    assert held[:, 0].all() and (held[:, 1:] <= held[:, :-1]).all()
    assert (batch["obs"][..., 0] == batch["obs"][:, :1, 0])[held].all()  # of one episode
    assert (batch["obs"][..., 1] == batch["obs"][:, :1, 1] + np.arange(4))[held].all()
    np.testing.assert_allclose(batch["reward"][held], batch["obs"][..., 1][held] + 1)
    np.testing.assert_allclose(batch["next_obs"][..., 1][held], batch["obs"][..., 1][held] + 1)


def test_the_longest_sequence_of_a_memory() -> None:
    replay = Replay(12, 1, 1)
    assert replay.longest == 0
    for steps in (2, 5, 3):
        replay.begin(np.zeros(1))
        assert replay.longest == {2: 0, 5: 2, 3: 5}[steps]
        for step in range(steps):
            replay.step(np.zeros(1), 0.0, np.zeros(1), False, step == steps - 1)
    for step in range(6):  # writes over the five
        if not step:
            replay.begin(np.zeros(1))
        replay.step(np.zeros(1), 0.0, np.zeros(1), step == 5, False)
    assert replay.longest == 6


class Rest(nn.Module):
    """An actor that does nothing, but for noise."""

    def forward(self, latent: Tensor, noise: Tensor) -> Tensor:
        return (0.3 * noise).clamp(-1, 1)


class Quadratic(nn.Module):
    """A point that an action moves by half of it; a step costs its squared distance from `goal` and 0.3 a**2."""

    def __init__(self, goal: tuple[float, float]):
        super().__init__()
        self.goal = torch.tensor(goal)

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        return latent + 0.5 * action

    def outcome(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        cost = (self.next(latent, action) - self.goal).square().sum(-1) + 0.3 * action.square().sum(-1)
        return -cost, torch.ones_like(cost)

    def value(self, latent: Tensor, action: Tensor, turn: int) -> Tensor:
        return -2.0 * (latent - self.goal).square().sum(-1)


FINE = Search(horizon=3, iterations=12, samples=256, proposals=8, elites=24, sharpness=4.0, least=1e-3)


def optimum(start: float, goal: float, discount: float) -> np.ndarray:
    """The best three actions of one dimension of `Quadratic`, by least squares."""
    moves = 0.5 * np.tril(np.ones((3, 3)))
    worth = np.sqrt([1.0, discount, discount**2])
    rows = np.vstack((worth[:, None] * moves, np.sqrt(2 * discount**3) * moves[2:],
                      worth[:, None] * math.sqrt(0.3) * np.eye(3)))
    wanted = np.concatenate((worth * (goal - start), [np.sqrt(2 * discount**3) * (goal - start)], np.zeros(3)))
    return np.linalg.lstsq(rows, wanted, rcond=None)[0]


def test_planner_finds_the_optimum_of_a_quadratic_problem() -> None:
    planner = Planner(Quadratic((0.4, -0.2)), 2, FINE, 0.9)
    starts = torch.tensor([[0.0, 0.0], [0.5, 0.3]])
    plan, std, scores = planner.plan(Rest(), starts, torch.zeros(2, 3, 2))
    for row, start in enumerate(starts.tolist()):
        wanted = np.stack([optimum(x, goal, 0.9) for x, goal in zip(start, (0.4, -0.2), strict=True)], 1)
        assert (np.abs(wanted) < 0.9).all()  # not at the edge of what an action can be
        np.testing.assert_allclose(plan[row].numpy(), wanted, atol=0.02)
    assert scores.shape == (2, 256) and (std < 0.1).all()
    alone = planner.plan(Rest(), starts[1:], torch.zeros(1, 3, 2))[0]  # rows do not disturb each other
    torch.testing.assert_close(plan[1:], alone, atol=1e-4, rtol=0)


def test_values_of_candidates_worked_out_by_hand() -> None:
    # from 0 to goal (1, 0): moves of 0.5 and 0: costs 0.25 + 0.3 and 0.25; worth at the end -2 * 0.25; discount 0.5
    search = dataclasses.replace(FINE, horizon=2, samples=4, proposals=1, elites=2)
    planner = Planner(Quadratic((1.0, 0.0)), 2, search, 0.5)
    candidate = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    ways = planner.tried(Rest(), torch.zeros(1, 2), candidate)
    assert float(planner.value(ways, 0)) == pytest.approx(-0.55 - 0.5 * 0.25 - 0.25 * 0.5)


def test_elites_count_by_their_value_and_equal_candidates_alike() -> None:
    search = Search(samples=4, proposals=0, elites=2, sharpness=0.5)
    planner = Planner(Quadratic((0.0, 0.0)), 2, search, 0.9)
    shares = planner.shares(torch.tensor([[1.0, 3.0, 0.0, 2.0], [7.0, 7.0, 7.0, 7.0]]))
    first, second = 1 - math.exp(-1.0), math.exp(-0.5) - math.exp(-1.0)  # less what the best of the others has
    wanted = torch.tensor([[0.0, first, 0.0, second], [0.0] * 4])
    wanted += 0.1 / 4 * torch.tensor([[-10.0, 0.0, -15.0, -5.0], [0.0] * 4]).exp()  # what is near the best
    torch.testing.assert_close(shares, wanted / wanted.sum(1, keepdim=True))
    one, other = (planner.shares(torch.tensor([[3.0, 2.0, middle, 0.0]])) for middle in (2.0 - 1e-6, 2.0 + 1e-6))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)  # the second and the third change places


class Trap(nn.Module):
    """An action above 0 earns 1 and ends the episode; others earn 0.6. Nothing comes after a plan."""

    def next(self, latent: Tensor, action: Tensor) -> Tensor:
        return latent

    def outcome(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        over = (action[:, 0] > 0).float()
        return 0.6 + 0.4 * over, 1 - over

    def value(self, latent: Tensor, action: Tensor, turn: int) -> Tensor:
        return torch.zeros_like(latent[:, 0])


def test_nothing_is_earned_past_an_end() -> None:
    planner = Planner(Trap(), 1, dataclasses.replace(FINE, iterations=2), 0.9)
    plan, *_ = planner.plan(Rest(), torch.zeros(1, 1), torch.zeros(1, 3, 1))
    assert (plan[0, :2] < 0).all() and plan[0, 2] > 0  # to the last step but one it pays to go on


def test_the_previous_plan_is_where_the_next_begins() -> None:
    planner = Planner(Quadratic((0.4, -0.2)), 2, dataclasses.replace(FINE, iterations=2), 0.9)
    start, zero = torch.zeros(1, 2), torch.zeros(1, 2)
    action, carry, _ = planner(Rest(), start, zero, torch.zeros(1, 3, 2))
    plan, std, _ = planner.plan(Rest(), start, torch.zeros(1, 3, 2))
    assert torch.equal(action, plan[:, 0]) and torch.equal(carry, torch.cat((plan[:, 1:], torch.zeros(1, 1, 2)), 1))
    later = planner(Rest(), start, zero, carry)[0]
    assert not torch.equal(later, action)
    noisy = planner(Rest(), start, torch.ones(1, 2), torch.zeros(1, 3, 2))[0]
    torch.testing.assert_close(noisy, (action + 2**0.5 * std[:, 0]).clamp(-1, 1))


def test_exploring_tries_other_candidates_each_time_and_all_else_the_same() -> None:
    agent = small("tdmpc2", samples=16, elites=4)
    latent, zero = np.full((1, agent.latent.size), 0.5, np.float32), np.zeros((1, ACTION), np.float32)
    execute = agent.exploring.mirror(agent.actor)
    still = execute(latent, zero, None)[0]
    one, again, other = (execute(latent, zero + np.float32(tiny), None)[0] for tiny in (1e-20, 1e-20, 2e-20))
    np.testing.assert_array_equal(execute(latent, zero, None)[0], still)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3 and np.abs(one - still).max() > 1e-3


@pytest.mark.parametrize("recipe, exact", [("tdmpc2", True), ("bmpc", True), ("fowm", True), ("default", False)])
def test_what_a_planner_compares_has_float32_sums(recipe: str, exact: bool) -> None:
    agent = recipes.make(recipe, OBS, ACTION, dtype="bfloat16", compile=False)
    net = agent.modules["critic"].net
    with torch.no_grad():
        fill(net, torch.empty_like(flat(net)).uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0)))
        outputs = net(torch.rand(4, net.sizes[0]))
    assert torch.equal(outputs, outputs.bfloat16().float()) is not exact


def test_a_planner_that_tells_plans_as_any_and_carries_what_it_planned() -> None:
    search = dataclasses.replace(FINE, iterations=2)
    plain, telling = (kind(Quadratic((0.4, -0.2)), 2, search, 0.9) for kind in (Planner, Telling))
    start, carries = torch.zeros(1, 2), [torch.zeros(1, *one.carry) for one in (plain, telling)]
    for noise in (torch.zeros(1, 2), torch.ones(1, 2)):
        plan, std, _ = plain.plan(Rest(), start, carries[0])
        action, carries[0], _ = plain(Rest(), start, noise, carries[0])
        told, carries[1], _ = telling(Rest(), start, noise, carries[1])
        assert torch.equal(action, told) and torch.equal(carries[0], carries[1][:, :-2])
        assert torch.equal(carries[1][:, -2], plan[:, 0]) and torch.equal(carries[1][:, -1], std[:, 0])


def test_plans_are_renewed_by_what_is_known_now() -> None:
    agent, replay = small("bmpc", replan_rows=200), random_replay(60)
    assert agent.events[0].period == 10
    before = replay.state_dict()["rows"][:, -2 * ACTION :].copy()
    agent.events[0](replay)
    batch = replay.sample(100)
    latent = agent.latent(torch.as_tensor(batch["obs"]))
    plan, std, _ = agent.execution.plan(lambda *seen: agent.actor.sample(*seen)[0], latent, torch.zeros(100, 3, ACTION))
    renewed = (batch["plan"] != before[batch["index"]]).any(1)
    assert renewed.mean() > 0.9
    wanted = torch.cat((plan[:, 0], std[:, 0]), 1).detach().numpy()
    np.testing.assert_allclose(batch["plan"][renewed], wanted[renewed], atol=1e-4)


def test_the_actor_alone_comes_to_do_what_is_planned() -> None:
    agent, replay = small("bmpc", lr=3e-3, replan=1_000), random_replay()
    replay.renew(np.arange(600), np.zeros(600), np.tile([0.5, -0.25, 0.1, 0.3], (600, 1)))
    agent.events = ()
    for _ in range(60):
        agent.update(replay)
    obs = torch.as_tensor(replay.sample(20)["obs"])
    mean, log_std = agent.actor.moments(agent.latent(obs))
    np.testing.assert_allclose(mean.detach().numpy(), np.tile([0.5, -0.25], (20, 1)), atol=0.1)
    np.testing.assert_allclose(log_std.exp().detach().numpy(), np.tile([0.1, 0.3], (20, 1)), atol=0.1)


def test_offline_updates_teach_to_repeat_what_was_done_and_nothing_else() -> None:
    agent, replay, random = small("modem", lr=1e-2, prioritized=0.6), Replay(600, OBS, ACTION, 0, 0.6), generator()
    obs = torch.randn(501, OBS, generator=random).numpy()
    replay.begin(obs[0])
    for now, following in itertools.pairwise(obs):
        replay.step(np.tanh(now[:ACTION]), float(following[0]), following, False, False)
    rows = replay.sample(500)
    before = {name: value.clone() for name, value in agent.modules.state_dict().items()}
    for _ in range(100):
        metrics = agent.update(replay, offline=True)
    changed = {name.rsplit(".", 1)[0] for name, value in agent.modules.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed == {"latent.inner", "latent.encoder.parts", "latent.seen.norm", "actor.net.parts"}
    assert not any(name.startswith(("critic/loss", "model/")) for name in metrics)
    obs = rows["obs"]
    action, carry = agent.act(obs, explore=False)
    assert carry is None and np.abs(action - rows["action"]).mean() < 0.1  # the actor acts, not the planner
    np.testing.assert_allclose(action, first_action(agent.policy(), torch.as_tensor(obs)), atol=1e-5)
    explored = agent.act(obs)[0] - action
    assert 0.05 < explored[np.abs(action) < 0.5].std() < 0.15
    again = small("modem", seed=5)
    again.load_state_dict(agent.state_dict())
    assert np.array_equal(again.act(obs, explore=False)[0], action)
    assert "model/consistency" in agent.update(replay)
    planned, carry = agent.act(obs, explore=False)
    assert carry is not None and not np.allclose(planned, action, atol=1e-2)


def test_values_of_data_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expectile is 1\.0"):
        small("fowm", expectile=1.0)
    with pytest.raises(ValueError, match=r"critics is 1.*2 to disagree"):
        small("fowm", critics=1)


@pytest.mark.parametrize("chosen, message", [
    ({"replan": 0}, "replan is 0"), ({"replan_rows": 0}, "replan_rows is 0"), ({"plan": False}, "plan is false.*bmpc"),
    ({"n_step": 3}, "n_step is 3.*for 1 "), ({"imitation": 1.0}, r"imitation is 1\.0.*bmpc")])
def test_imitation_that_makes_no_sense_is_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("bmpc", **chosen)


@pytest.mark.parametrize("chosen, message", [
    ({"elites": 0}, "elites is 0"), ({"elites": 24}, "elites is 24.*24 sam"), ({"iterations": 0}, "iterations is 0"),
    ({"proposals": 24}, "proposals is 24"), ({"sharpness": 0.0}, r"sharpness is 0\.0"), ({"least": 3.0}, r"least 3\.0"),
    ({"horizon": 0}, "horizon is 0"), ({"simplex": 5}, "simplex is 5.*32"), ({"n_step": 4}, "n_step is 4.*for 3 "),
    ({"n_step": 2, "anneal": 9}, "anneal is 9.*shorten"), ({"imitation": 1.0, "imitation_steps": 0}, "_steps is 0")])
def test_planners_and_models_that_make_no_sense_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("tdmpc2", **chosen)


def learned(updates: int = 20, recipe: str = "tdmpc2", **chosen: Any) -> Agent:
    agent, replay = small(recipe, **chosen), random_replay()
    for _ in range(updates):
        agent.update(replay)
    return agent


def test_an_episode_begins_without_a_plan() -> None:
    agent, obs = learned(), np.ones((1, OBS), np.float32)
    first, carry = agent.act(obs, None, explore=False)
    assert carry.shape == (1, 3, ACTION) and (carry[:, -1] == 0).all() and np.abs(carry[:, :-1]).max() > 0
    second, _ = agent.act(obs, carry, explore=False)
    again, _ = agent.act(obs, None, explore=False)
    zeros, _ = agent.act(obs, np.zeros((1, 3, ACTION), np.float32), explore=False)
    assert np.array_equal(first, again) and np.array_equal(first, zeros) and not np.array_equal(first, second)


def test_without_a_plan_the_actor_acts_and_there_is_no_planner_to_export() -> None:
    agent = learned(2, plan=False)
    obs = np.ones((2, OBS), np.float32)
    action, carry = agent.act(obs, explore=False)
    assert carry is None and isinstance(agent.actor, GaussianActor)
    np.testing.assert_allclose(action, first_action(agent.policy(), torch.as_tensor(obs)).numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="no planner"):
        agent.policy(planner=True)


@pytest.mark.parametrize("recipe, chosen", [
    ("tdmpc2", {}), ("modem", {}), ("modem_v2", {}), ("bmpc", {}), ("fowm", {}),
    ("tdmpc2", {"models": 2, "caution": 0.5, "venture": -0.5})])  # as cautious in training
def test_the_planners_file_plans_as_torch_does_and_carries_the_plan(recipe: str, chosen: dict[str, Any], tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    agent, path = learned(recipe=recipe, horizon=2, critics=2, dtype="float32", **chosen), tmp_path / "planner.onnx"
    random = np.random.default_rng(0)
    policy = agent.policy(planner=True)
    assert export(policy, OBS, policy.noise_size, CONTRACT.to_json(), path, carry=policy.carry) <= SEEING_TOLERANCE
    stored_draws(monkeypatch)
    loaded = Policy(path)
    loaded.warm_up(2)
    for _ in range(2):
        carry = None
        loaded.reset()
        for step in range(6):
            obs, noise = random.normal(size=OBS).astype(np.float32), None
            if step == 3:
                twin = torch.Generator()
                twin.set_state(agent.generator.get_state())
                noise = torch.randn(1, ACTION, generator=twin)[0].numpy()
            actions, carry = agent.act(obs[None], carry, noise is not None)
            np.testing.assert_allclose(loaded(obs, noise), actions[0], atol=SEEING_TOLERANCE)
    monkeypatch.setattr(module, "_set_weights", lambda model, state: None)  # the file keeps what it had
    for value in policy.execution.parameters():
        value.mul_(1.1)
    with pytest.raises(ExportError, match="differ by"):
        export(policy, OBS, policy.noise_size, "{}", tmp_path / "other.onnx", carry=policy.carry)


def test_small_has_a_million_parameters() -> None:
    agent = recipes.make("tdmpc2_small", 17, 6, compile=False)
    learn = ("latent", "actor", "critic")
    count = sum(value.numel() for name in learn for value in agent.modules[name].parameters())
    assert 0.8e6 < count < 1.3e6
