"""The parts of a learner against numbers worked out by hand, and against torch's own."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robot_rl.learn import compiled
from robot_rl.learn.actors import DeterministicActor, GaussianActor
from robot_rl.learn.backups import (
    CuriousBackup,
    Disagreement,
    Draw,
    ReturnScale,
    RewardScale,
    SoftBackup,
    Survey,
    TruncatedBackup,
)
from robot_rl.learn.critics import (
    Between,
    Chance,
    CoarseCritic,
    Critic,
    First,
    Histogram,
    Mean,
    Minimum,
    Quantiles,
    Scalar,
    Tilt,
    TwoHot,
)
from robot_rl.learn.latents import Identity, RunningNorm, Sync
from robot_rl.learn.matmul import bf16_matmul
from robot_rl.learn.nets import ACTIVATIONS, Adam, BatchNorm, Mlp, Shape, compute_dtype, follow, mish
from robot_rl.learn.noise import Noise
from robot_rl.learn.objectives import (
    Bellman,
    CoarseBellman,
    Curiosity,
    CuriousValue,
    Fading,
    Foresight,
    GreedyValue,
    Imitating,
    JointBellman,
    NoTemperature,
    Smooth,
    SoftValue,
    Temperature,
)
from robot_rl.learn.options import Chain
from robot_rl.replay import ONLINE, PRIOR, Replay
from tests.learn.cases import OBS, fill, first_action, flat, gradient_of, small


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_actor(mean: float, log_std: float) -> GaussianActor:
    """One action; its mean and log std before the tanh are these numbers everywhere."""
    actor = GaussianActor(1, 1, (), generator())
    fill(actor.net, [0.0, 0.0, mean, log_std])
    return actor


def linear_critic(*members: tuple[float, float, float]) -> Critic:
    """Q = a * obs + b * action + c, with (a, b, c) of each member."""
    critic = Critic(1, 1, (), len(members), Scalar(), generator())
    weights = [value for a, b, _ in members for value in (a, b)]
    fill(critic.net, weights + [c for _, _, c in members])
    return critic


def test_log_density_is_that_of_a_squashed_gaussian() -> None:
    actor, noise = linear_actor(0.3, -0.5), torch.tensor([[-1.2], [0.0], [2.0]])
    action, log_density = actor.sample(torch.zeros(3, 1), noise)
    gaussian = torch.distributions.Normal(0.3, math.exp(-0.5))
    squashed = torch.distributions.TransformedDistribution(gaussian, torch.distributions.TanhTransform())
    torch.testing.assert_close(log_density, squashed.log_prob(action)[:, 0], rtol=1e-4, atol=1e-4)


def test_target_worked_out_by_hand() -> None:
    # mean 0, std 1, noise 0: action tanh(0) = 0 with log density -log(2 pi) / 2 - log(1 - 0) = -0.918939
    # members at next_obs 2: 3 * 2 + 1 = 7 and 2 * 2 - 1 = 3, the smaller is 3; temperature 0.5
    # soft value 3 + 0.5 * 0.918939 = 3.459469; y = 1 + 0.9 * 3.459469 = 4.113522, and 5 where the discount is 0
    temperature = Temperature(0.5, -1.0)
    critic = linear_critic((3.0, 10.0, 1.0), (2.0, 10.0, -1.0))
    backup = SoftBackup(linear_actor(0.0, 0.0), critic, temperature, Minimum())
    batch = {
        "next_latent": torch.tensor([[2.0], [2.0]]),
        "reward": torch.tensor([1.0, 5.0]),
        "discount": torch.tensor([0.9, 0.0]),
    }
    y = backup.target(batch, Draw(torch.zeros(2, 1)))
    torch.testing.assert_close(y, torch.tensor([4.113522, 5.0]))
    y = backup.target(batch, Draw(torch.zeros(2, 1), Chance(torch.tensor([0]))))  # the first alone: 1 + 0.9 * 7.459469
    torch.testing.assert_close(y, torch.tensor([7.713522, 5.0]))
    backup.entropy_scale = 0.0  # without the entropy: 1 + 0.9 * 3
    torch.testing.assert_close(backup.target(batch, Draw(torch.zeros(2, 1))), torch.tensor([3.7, 5.0]))


def test_actor_loss_and_its_gradient_worked_out_by_hand() -> None:
    # noise 0, mean 0.3, log std -0.5, a = tanh(0.3) = 0.291313, Q = 2 a, temperature 0.5
    # log density: -0.918939 + 0.5 - log(1 - a^2) = -0.330278; loss: 0.5 * -0.330278 - 0.582625 = -0.747764
    # d/dmean: 0.5 * 2 a - 2 (1 - a^2) = -1.538967; d/dlog_std: -0.5 (the noise is 0)
    actor, temperature = linear_actor(0.3, -0.5), Temperature(0.5, -1.0)
    objective = SoftValue(actor, linear_critic((0.0, 2.0, 0.0), (0.0, 2.0, 9.0)), temperature, Minimum())
    loss, _, _ = objective.loss({"latent": torch.zeros(1, 1)}, (torch.zeros(1, 1), Chance()))
    torch.testing.assert_close(loss, torch.tensor(-0.747764), rtol=0, atol=2e-5)
    gradient = gradient_of(loss, actor.net)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, -1.538967, -0.5]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("log_density, rises", [(3.0, True), (-3.0, False)])
def test_temperature_rises_while_entropy_is_too_low(log_density: float, rises: bool) -> None:
    # target entropy -1: the gradient to the log is -(log density - 1), so -2 and 4
    temperature = Temperature(0.1, -1.0)
    (gradient,) = torch.autograd.grad(temperature.loss(torch.full((5,), log_density)), [temperature.log])
    torch.testing.assert_close(gradient, torch.tensor(-(log_density - 1.0)))
    before = float(temperature())
    Adam(temperature, 0.1).step(temperature.loss(torch.full((5,), log_density)))
    assert (float(temperature()) > before) == rises


def test_critic_loss_is_half_the_squared_error() -> None:
    outputs = torch.tensor([[[1.0], [2.0]], [[0.0], [5.0]]])
    loss = Scalar().loss(outputs, torch.tensor([3.0, 1.0]))
    assert loss.tolist() == [[2.0, 0.5], [4.5, 8.0]]
    # Huber with its corner at 1: 2 - 0.5 for an error of 2, half the square for one of 0.5
    assert Scalar(1.0).loss(torch.tensor([[[1.0], [0.5]]]), torch.tensor([3.0, 1.0])).tolist() == [[1.5, 0.125]]


def test_two_hot_shares_a_target_between_its_neighbours() -> None:
    # atoms of symlog: -2, -1, 0, 1, 2; symlog(e - 1) = 1 is an atom, symlog(e^1.25 - 1) = 1.25 lies between two
    head = TwoHot(5, 2.0)
    coded = head.encode(torch.tensor([math.e - 1, math.exp(1.25) - 1, 1e9, -(math.e - 1)]))
    expected = [[0, 0, 0, 1, 0], [0, 0, 0, 0.75, 0.25], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    torch.testing.assert_close(coded, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0)
    torch.testing.assert_close(head.decode(coded.clamp(min=1e-30).log())[1], torch.tensor(math.exp(1.25) - 1))
    # uniform logits: the cross-entropy is log 5 whatever the target
    loss = head.loss(torch.zeros(2, 3, 5), torch.tensor([0.0, 0.5, -3.0]))
    torch.testing.assert_close(loss, torch.full((2, 3), math.log(5)))


def test_a_histogram_shares_a_target_between_its_neighbours() -> None:
    head = Histogram(5, 2.0)  # -2, -1, 0, 1, 2
    coded = head.encode(torch.tensor([0.25, -1.0, 9.0]))
    torch.testing.assert_close(coded, torch.tensor([[0, 0, 0.75, 0.25, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1.0]]))
    assert head.decode(coded.clamp(min=1e-30).log()).tolist() == pytest.approx([0.25, -1.0, 2.0])
    assert head.mean(coded).tolist() == [0.25, -1.0, 2.0]
    # cross-entropy of (3/4, 1/4) against logits that give (1/2, 1/4) to these two: 0.75 log 2 + 0.25 log 4
    outputs = torch.tensor([0.0625, 0.0625, 0.5, 0.25, 0.125]).log()
    torch.testing.assert_close(head.loss(outputs[None, None], torch.tensor([0.25])),
                               torch.full((1, 1), 0.75 * math.log(2) + 0.25 * math.log(4)))
    with pytest.raises(ValueError, match="at least 2"):
        Histogram(1)


def test_projected_target_worked_out_by_hand() -> None:
    # atoms -1, 0, 1; the members give (1/2, 1/2, 0), mean -1/2, and (0, 1/2, 1/2), mean 1/2; reward 1/4, discount 1/2
    # the atoms move to -1/4, 1/4, 3/4, which are shared as (1/4, 3/4, 0), (0, 3/4, 1/4), (0, 1/4, 3/4)
    head = Histogram(3, 1.0, projected=True)
    critic = Critic(1, 1, (), 2, head, generator())
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    fill(critic.net, torch.cat((torch.zeros(12), shares.clamp(min=1e-30).log().flatten())))
    batch = {"next_latent": torch.ones(1, 1), "reward": torch.tensor([0.25]), "discount": torch.tensor([0.5])}
    targets = []
    for reduction in (Minimum(), Mean(), First()):
        backup = SoftBackup(linear_actor(0.0, 0.0), critic, NoTemperature(), reduction)
        targets.append(backup.target(batch, Draw(torch.zeros(1, 1))))
    torch.testing.assert_close(targets[0], torch.tensor([[0.125, 0.75, 0.125]]))  # half of the first two
    torch.testing.assert_close(targets[1], torch.tensor([[0.0625, 0.625, 0.3125]]))  # a quarter, a half, a quarter
    torch.testing.assert_close(targets[2], targets[0])
    assert [float(head.mean(y)) for y in targets] == pytest.approx([0.0, 0.25, 0.0])  # 1/4 + 1/2 of the member's mean
    torch.testing.assert_close(head.loss(torch.zeros(2, 1, 3), targets[0]), torch.full((2, 1), math.log(3)))


def test_a_projected_symlog_target_keeps_the_place_of_a_sure_value() -> None:
    # all probability on symexp(1) = e - 1: y = 1 + 0.5 (e - 1), of which the symlog is log(2 + (e - 1) / 2) = 1.050521
    head = TwoHot(5, 2.0, projected=True)
    outputs = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]).clamp(min=1e-30).log()[None, None]
    y = head.backup(outputs, Minimum(), torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.0]))
    torch.testing.assert_close(y, torch.tensor([[0.0, 0.0, 0.0, 0.949479, 0.050521]]), rtol=0, atol=2e-6)


def test_tilted_errors_become_even() -> None:
    tilt, gap = Tilt(0.9, 2), torch.tensor([[1.0, -1.0]])
    for expected in ([1.8, 0.2], [1.4, 0.6], [1.0, 1.0], [1.0, 1.0]):
        torch.testing.assert_close(tilt(gap), torch.tensor([expected]))
    with pytest.raises(ValueError, match="optimism is 1"):
        Tilt(1.0, 2)


def test_an_optimistic_critic_weighs_what_is_above_it() -> None:
    # value 3, targets 5 and 2: half squares 2 and 0.5, weights 1.8 and 0.2 at first: (3.6 + 0.1) / 2; 0.5 half way down
    critic = linear_critic((0.0, 0.0, 3.0))
    critic.tilt = Tilt(0.9, 1)
    lesson = Bellman(critic, SoftBackup(linear_actor(0.0, 0.0), critic, NoTemperature(), Minimum()))
    batch = {"latent": torch.ones(2, 1), "next_latent": torch.ones(2, 1), "action": torch.zeros(2, 1),
             "reward": torch.tensor([5.0, 2.0]), "discount": torch.zeros(2), "weight": torch.ones(2)}
    for expected in (1.85, 1.25):
        loss, _, found = lesson.loss(batch, (Draw(torch.zeros(2, 1)), Chance()))
        assert float(loss.detach()) == pytest.approx(expected) and found["error"].tolist() == [2.0, 1.0]


def test_each_critic_of_a_chain_learns_from_the_one_before_it() -> None:
    # the values are 1, 2, 4 and 10 for the slow copy: y = 1 + 0.5 * (10, 1, 2)
    first, second, third, slow = (linear_critic((0.0, 0.0, value)) for value in (1.0, 2.0, 4.0, 10.0))
    chain, actor = Chain([first, second, third], slow), linear_actor(0.0, 0.0)
    batch = {"latent": torch.ones(1, 1), "next_latent": torch.ones(1, 1), "action": torch.zeros(1, 1),
             "reward": torch.tensor([1.0]), "discount": torch.tensor([0.5]), "weight": torch.ones(1)}
    lessons = chain.lessons(lambda target: SoftBackup(actor, target, NoTemperature(), Minimum()), Identity(1))
    found = [lesson.loss(batch, (Draw(torch.zeros(1, 1)), Chance()))[1] for lesson in lessons]
    assert [float(metrics["critic/target"]) for metrics in found] == [6.0, 1.5, 2.0]
    assert [lesson.part for lesson in lessons] == [first, second, third] and chain.last is third
    assert list(chain.parts()) == ["critic", "critic_2", "critic_3", "target"]


def test_smoothness_worked_out_by_hand() -> None:
    # mean actions tanh(0) and tanh(0.5) = 0.462117: change 0.213552, at a price of 2
    actor = DeterministicActor(1, 1, (), generator())
    fill(actor.net, [1.0, 0.0])
    plain = GreedyValue(actor, linear_critic((0.0, 2.0, 0.0)), First())
    batch, draw = {"latent": torch.zeros(1, 1), "next_latent": torch.full((1, 1), 0.5)}, (torch.zeros(1, 1), Chance())
    loss, metrics, _ = Smooth(plain, 2.0).loss(batch, draw)
    torch.testing.assert_close(loss - plain.loss(batch, draw)[0], torch.tensor(0.427104), rtol=0, atol=1e-5)
    assert float(metrics["actor/change"]) == pytest.approx(0.213552, abs=1e-5)
    # of the weight: 4 * 0.462117 * 0.5 * (1 - 0.213552), the value's gradient at an observation of 0 being 0
    gradient = gradient_of(loss, actor.net)
    assert float(gradient[0]) == pytest.approx(4 * 0.462117 * 0.5 * (1 - 0.213552), abs=1e-5)
    assert linear_actor(0.5, 3.0).mean(torch.zeros(1, 1)).item() == pytest.approx(0.462117, abs=1e-5)


def test_prior_data_is_imitated_at_a_price_that_fades() -> None:
    # Q = a, the mean is tanh(0.5) = m; two rows of the prior did 1 and 0, the third is no prior's; 4, then half of it
    actor = DeterministicActor(1, 1, (), generator())
    fill(actor.net, [0.0, 0.5])
    plain = GreedyValue(actor, linear_critic((0.0, 1.0, 0.0)), First())
    batch = {"latent": torch.zeros(3, 1), "action": torch.tensor([[1.0], [0.0], [-1.0]]),
             "source": torch.tensor([PRIOR, PRIOR, ONLINE])}
    draw, lesson, m = (torch.zeros(3, 1), Chance()), Imitating(plain, Fading(4.0, 2)), math.tanh(0.5)
    for price in (4.0, 2.0, 0.0, 0.0):
        loss, metrics, _ = lesson.loss(batch, draw)
        cost = ((1 - m) ** 2 + m**2) / 3
        assert float(metrics["actor/unlike"]) == pytest.approx(cost)
        assert float((loss - plain.loss(batch, draw)[0]).detach()) == pytest.approx(price * (1 + m) * cost, abs=1e-6)
        gradient = gradient_of(loss, actor.net)
        wanted = (1 - m**2) * (-1 + price * (1 + m) * 2 * (m - 1 + m) / 3)
        assert float(gradient[1]) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(ValueError, match="imitation_steps is 0"):
        small("default", imitation=1.0, imitation_steps=0)


def test_noise_is_held_for_as_long_as_it_should_be() -> None:
    held, random, runs = Noise(), generator(), [0]
    noise = [held.draw((1, 2), random, 3) for _ in range(4000)]
    for before, now in itertools.pairwise(noise):
        runs.append(1) if not torch.equal(before, now) else runs.append(runs.pop() + 1)
    lengths = np.bincount(runs[1:-1], minlength=4)
    np.testing.assert_allclose(lengths[1:] / lengths.sum(), np.array([36, 9, 4]) / 49, atol=0.03)  # 1, 1/4, 1/9
    assert torch.stack(noise).std() == pytest.approx(1.0, abs=0.05)
    anew = [held.draw((1, 2), random, 1) for _ in range(100)]  # what was held is let go
    assert not any(torch.equal(before, now) for before, now in itertools.pairwise([noise[-1], *anew]))


def test_rows_hold_noise_of_their_own_and_another_number_of_them_starts_anew() -> None:
    held, random = Noise(), generator()
    before = held.draw((200, 1), random, 16)
    kept = (held.draw((200, 1), random, 16) == before)[:, 0]
    assert 0.2 < kept.float().mean() < 0.55  # that of a run longer than 1, 1 - 1 / 1.584
    assert held.draw((3, 1), random, 16).shape == (3, 1)


def test_quantile_loss_worked_out_by_hand() -> None:
    # shares 1/4 and 3/4, outputs 0 and 1, target 3: errors 3 and 2, Huber 2.5 and 1.5; mean of 0.625 and 1.125
    head = Quantiles(2)
    outputs = torch.tensor([[[0.0, 1.0]]])
    torch.testing.assert_close(head.loss(outputs, torch.tensor([3.0])), torch.tensor([[0.875]]))
    # target -0.5: errors -0.5 and -1.5, Huber 0.125 and 1.0, tilts |1/4 - 1| and |3/4 - 1|: mean of 0.09375 and 0.25
    torch.testing.assert_close(head.loss(outputs, torch.tensor([[-0.5]])), torch.tensor([[0.171875]]))
    assert head.decode(outputs).tolist() == [[0.5]]


def test_truncated_target_worked_out_by_hand() -> None:
    # members at next_obs 1 give the quantiles (1, 5) and (2, 9); one of each two dropped leaves 1 and 2 of 1, 2, 5, 9
    critic = Critic(1, 1, (), 2, Quantiles(2), generator())
    weights = torch.zeros(2, 2, 2)
    fill(critic.net, torch.cat((weights.flatten(), torch.tensor([1.0, 5.0, 2.0, 9.0]))))
    actor, temperature = linear_actor(0.0, 0.0), Temperature(0.5, -1.0)
    backup = TruncatedBackup(actor, critic, temperature, Mean(), 1)
    batch = {"next_latent": torch.ones(1, 1), "reward": torch.tensor([1.0]), "discount": torch.tensor([0.9])}
    # log density at noise 0: -0.918939, so each atom gains 0.459469: 1 + 0.9 * 1.459469 and 1 + 0.9 * 2.459469
    y = backup.target(batch, Draw(torch.zeros(1, 1)))
    torch.testing.assert_close(y, torch.tensor([[2.313522, 3.213522]]))


def test_targets_keep_the_scale_of_their_own_critics() -> None:
    # mean reward sizes 2 and, after the second sync, 4; targets still in units of 2: y = (8 + 0.5 * 3 * 2) / 4
    scale, replay = RewardScale(), Replay(5, 1, 1)
    replay.begin(np.zeros(1))
    for reward in (2.0, -2.0, 8.0):
        replay.step(np.zeros(1), reward, np.zeros(1), False, False)
        if reward != 2.0:
            scale.sync(replay)
    assert (float(scale.target), float(scale.value)) == (2.0, 4.0)
    actor = DeterministicActor(1, 1, (), generator())
    backup = SoftBackup(actor, linear_critic((0.0, 0.0, 3.0), (0.0, 0.0, 7.0)), NoTemperature(), Minimum())
    batch = {"next_latent": torch.ones(1, 1), "reward": torch.tensor([8.0]), "discount": torch.tensor([0.5])}
    torch.testing.assert_close(backup.target(scale(batch), Draw(torch.zeros(1, 1))), torch.tensor([2.75]))


def test_returns_are_scaled_by_their_spread_or_by_the_largest() -> None:
    # returns 0 and 10: spread 5, and 10 / 5 = 2 within a bound of 5; 10 within a bound of 1
    batch = {"reward": torch.tensor([3.0])}
    for bound, size in ((5.0, 5.0), (1.0, 10.0)):
        scale = ReturnScale(bound)
        assert scale(batch)["reward"].tolist() == [3.0]  # nothing is known yet
        scale.take(torch.zeros(2))
        assert scale(batch)["reward"].tolist() == [3.0]  # a sparse reward was not found yet
        scale = ReturnScale(bound)
        scale.take(torch.tensor([0.0, 10.0]))
        assert float(scale.size()) == pytest.approx(size)
        assert scale(batch)["reward"].tolist() == pytest.approx([3.0 / size])
    scale = ReturnScale(5.0)
    for returns in ([0.0, 10.0], [0.0, 0.0]):  # mean 2.5, mean square 25
        scale.take(torch.tensor(returns))
    assert float(scale.size()) == pytest.approx(math.sqrt(25 - 2.5**2))


def test_a_survey_tells_the_scale_discounted_returns() -> None:
    # two horizons of a discount of 0.5 are 4 steps: 1 + 0.5 + 0.25 + 0.125 from where the segment goes on for so long
    replay = Replay(100, 1, 1)
    replay.begin(np.zeros(1))
    for _ in range(50):
        replay.step(np.zeros(1), 1.0, np.zeros(1), False, False)
    scale = ReturnScale(5.0)
    Survey(scale, 64, 0.5)(replay)
    assert float(scale.largest) == 1.875 and 1.7 < float(scale.mean) < 1.875


def test_smoothing_noise_is_bounded_and_the_target_is_td3s() -> None:
    # actor tanh(0.5) = 0.462117; noise 9 * 0.2 is cut to 0.5: 0.962117; Q = 2 a; y = 1 + 0.9 * 2 * 0.962117
    actor = DeterministicActor(1, 1, (), generator(), smooth=0.2, smooth_bound=0.5)
    fill(actor.net, [0.0, 0.5])
    backup = SoftBackup(actor, linear_critic((0.0, 2.0, 0.0), (0.0, 9.0, 9.0)), NoTemperature(), Minimum())
    batch = {"next_latent": torch.ones(1, 1), "reward": torch.tensor([1.0]), "discount": torch.tensor([0.9])}
    y = backup.target(batch, Draw(torch.full((1, 1), 9.0)))
    torch.testing.assert_close(y, torch.tensor([2.731811]))
    loss, _, _ = GreedyValue(actor, linear_critic((0.0, 2.0, 0.0)), First(), price=0.1).loss(
        {"latent": torch.ones(1, 1)}, (torch.zeros(1, 1), Chance(torch.tensor([0]))))
    torch.testing.assert_close(loss, torch.tensor(0.1 * 0.25 - 2 * 0.462117), rtol=0, atol=1e-5)


def test_a_coarse_critic_zooms_in_on_an_action() -> None:
    # [-1, 1] in 5 bins: 0.7 lies in the last, centre 0.8; [0.6, 1] in 5: 0.7 lies in the second, centre 0.72
    critic = CoarseCritic(1, 1, (), 2, 5, Scalar(), generator())
    action, centre = torch.tensor([[0.7]]), torch.zeros(1, 1)
    first = critic.place(centre, 0, action)
    centre = critic.zoom(centre, 0, first)
    second = critic.place(centre, 1, action)
    assert (int(first), int(second)) == (4, 1)
    torch.testing.assert_close(centre, torch.tensor([[0.8]]))
    torch.testing.assert_close(critic.zoom(centre, 1, second), torch.tensor([[0.72]]))


def test_coarse_target_worked_out_by_hand() -> None:
    # one level, two bins, values 1 and 3 by the biases, everything else 0: the best is bin 1, to which the target, of
    # values 7 and 5, gives 5; y = 2 + 0.5 * 5 = 4.5. Action 0.5 lies in bin 1, whose value is 3: loss 0.5 * 1.5**2
    critic = CoarseCritic(1, 1, (), 1, 2, Scalar(), generator())
    target = copy.deepcopy(critic)
    for one, biases in ((critic, [1.0, 3.0]), (target, [7.0, 5.0])):
        fill(one.net, [0.0] * 6 + biases)
    batch = {"latent": torch.ones(1, 1), "next_latent": torch.ones(1, 1), "action": torch.tensor([[0.5]]),
             "reward": torch.tensor([2.0]), "discount": torch.tensor([0.5]), "weight": torch.ones(1)}
    loss, metrics, found = CoarseBellman(critic, target).loss(batch, None)
    assert (float(loss.detach()), float(metrics["critic/target"]), float(found["error"])) == (1.125, 4.5, 1.5)


def test_gain_is_zero_where_all_agree_and_grows_with_the_spread() -> None:
    # two members that predict b and -b of both numbers: variance b**2, so the gain is log(1 + b**2 / noise)
    for spread in (0.0, 0.5, 2.0):
        gain = disagreeing(spread).gain(torch.ones(3, 1), torch.zeros(3, 1))
        torch.testing.assert_close(gain, torch.full((3,), math.log1p(4 * spread**2)))


def disagreeing(spread: float) -> Disagreement:
    """Two members that foresee +-`spread` of both numbers, everywhere."""
    model = Disagreement(1, 1, (), 2, generator(), noise=0.25)
    fill(model.net, torch.cat((torch.zeros(8), torch.tensor([spread, spread, -spread, -spread]))))
    return model


def test_what_an_action_would_teach_is_worth_its_price_in_targets_and_to_the_actor() -> None:
    # the gain is log(1 + 0.5**2 / 0.25) = log 2; at noise 0 the action is 0 and its log density -0.918939:
    # y = 1 + 0.9 * (3 + 0.5 * 0.918939 + 2 log 2), and the actor's loss -0.5 * 0.918939 - 3 - 2 log 2
    actor, critic, price = linear_actor(0.0, 0.0), linear_critic((0.0, 0.0, 3.0), (0.0, 0.0, 7.0)), Temperature(2.0, 0)
    heat, model = Temperature(0.5, -1.0), disagreeing(0.5)
    backup = CuriousBackup(actor, critic, heat, Minimum(), model, price)
    batch = {"latent": torch.ones(1, 1), "next_latent": torch.ones(1, 1), "reward": torch.tensor([1.0]),
             "discount": torch.tensor([0.9])}
    y = backup.target(batch, Draw(torch.zeros(1, 1)))
    torch.testing.assert_close(y, torch.tensor([1 + 0.9 * (3 + 0.5 * 0.918939 + 2 * math.log(2))]))
    lesson = CuriousValue(actor, copy.deepcopy(actor), critic, heat, Minimum(), model, price)
    loss, _, found = lesson.loss(batch, (torch.zeros(1, 1), Chance()))
    torch.testing.assert_close(loss.detach(), torch.tensor(-0.5 * 0.918939 - 3 - 2 * math.log(2)))
    assert float(found["lack"]) == 0.0  # its slow copy's would teach as much


def test_curiosity_costs_more_while_actions_teach_less_than_they_used_to() -> None:
    for lack, sign in ((0.3, 1), (-0.3, -1)):
        price = Temperature(1.0, 0.0)
        loss, _, _ = Curiosity(price).loss({"lack": torch.tensor([lack])}, None)
        Adam(price, 0.01).step(loss)
        assert (float(price()) - 1.0) * sign > 0.005


def test_models_that_foresee_learn_the_change_and_the_reward() -> None:
    # wanted: a change of 2 - 1 = 1 and a reward of 3; said +-0.5 of both: (0.25 + 6.25) / 2 and (2.25 + 12.25) / 2
    batch = {"latent": torch.ones(2, 1), "next_latent": torch.full((2, 1), 2.0), "action": torch.zeros(2, 1),
             "reward": torch.full((2,), 3.0), "weight": torch.tensor([1.0, 0.0])}
    loss, _, _ = Foresight(disagreeing(0.5)).loss(batch, None)
    assert float(loss.detach()) == pytest.approx((3.25 + 7.25) / 2)  # half of the batch counts


def test_copies_become_their_originals_at_once() -> None:
    critic, slow, told = linear_critic((1.0, 2.0, 3.0)), linear_critic((0.0, 0.0, 0.0)), []
    replay = Replay(5, 1, 1)
    Sync(7, [(slow, critic)], [told.append])(replay)
    assert torch.equal(flat(slow.net), flat(critic.net)) and told == [replay]


@pytest.mark.parametrize("slow", [False, True])
def test_a_joint_batch_gives_its_second_half_to_the_target_only(slow: bool) -> None:
    critic = Critic(1, 1, (4,), 2, Scalar(), generator(), Shape("batch"))
    target = Critic(1, 1, (4,), 2, Scalar(), generator(7), Shape("batch")) if slow else critic
    actor = linear_actor(0.0, -30.0)
    lesson = JointBellman(critic, SoftBackup(actor, target, NoTemperature(), Minimum()))
    batch = {"latent": torch.randn(6, 1), "next_latent": torch.randn(6, 1), "action": torch.zeros(6, 1),
             "reward": torch.zeros(6), "discount": torch.ones(6)}
    y, now = lesson.sides(batch, (Draw(torch.zeros(6, 1)), Chance()))
    here, there = (one(torch.cat((batch["latent"], batch["next_latent"])), torch.zeros(12, 1), training=True)[..., 0]
                   for one in (critic, target))
    torch.testing.assert_close(now[..., 0], here[:, :6])
    torch.testing.assert_close(y, there[:, 6:].amin(0))
    assert not y.requires_grad


def test_reductions() -> None:
    values = torch.tensor([[1.0, 5.0], [2.0, 3.0], [6.0, 1.0]])
    assert Minimum()(values).tolist() == [1.0, 1.0] and Mean()(values).tolist() == [3.0, 3.0]
    assert Between(0.0)(values).tolist() == [3.0, 3.0] and Between(1.0)(values).tolist() == [1.0, 1.0]
    assert Between(0.25)(values).tolist() == [2.5, 2.5]
    most, least = 0.25 + 0.75 / 3, 0.75 / 3  # of the smallest, of each other
    torch.testing.assert_close(Between(0.25).shares(values), torch.tensor([[most, least], [least] * 2, [least, most]]))
    falling = Between(0.5, 10)
    for age, share in ((0, 1.0), (5, 0.75), (10, 0.5), (99, 0.5)):
        falling.age.fill_(age)
        assert falling(values).tolist() == pytest.approx(Between(share)(values).tolist())
        torch.testing.assert_close(falling.shares(values), Between(share).shares(values))
    for reduction in (Minimum(), Mean(), Between(0.5)):
        assert reduction.members(3, generator()) is None
    chance, drawn = generator(), []
    for _ in range(3000):
        members = Minimum(2).members(5, chance)
        assert members is not None and len(set(members.tolist())) == 2
        drawn += members.tolist()
    np.testing.assert_allclose(np.bincount(drawn), 1200, rtol=0.1)


SHAPES = [Shape(norm, activation, residual) for norm in ("none", "layer", "rms", "batch")
          for activation in ("relu", "elu") for residual in (False, True)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_members_of_an_ensemble_are_independent_perceptrons(shape: Shape) -> None:
    net = Mlp((4, 8, 8, 3), 5, generator(), shape)
    x = torch.randn(7, 4, generator=generator(1))
    for _ in range(3):
        net(x * 3 + 1, training=True)  # gives a batch norm statistics of its own
    outputs = net(x)
    assert outputs.shape == (5, 7, 3)
    torch.testing.assert_close(net(x, torch.tensor([3, 1])), outputs[[3, 1]])
    torch.testing.assert_close(net(x.expand(5, 7, 4)), outputs)
    torch.testing.assert_close(net.frozen()(x), outputs[0])
    np.testing.assert_allclose(net.mirror()(x.numpy()), outputs[0].detach().numpy(), atol=1e-6)
    learning = [part for part in net.parameters() if part.requires_grad]
    for gradient in torch.autograd.grad(outputs[2].sum(), learning):
        assert not gradient[[0, 1, 3, 4]].any()


def test_batch_norm_is_torchs() -> None:
    net = Mlp((3, 5, 1), 1, generator(), Shape("batch"))
    norm = nn.BatchNorm1d(5, eps=1e-3, momentum=0.01)
    layer = net.layers()
    x = torch.randn(64, 3, generator=generator(1))
    hidden = (x @ layer[0].weight[0] + layer[0].bias[0]).detach()
    expected = norm(hidden).relu() @ layer[1].weight[0] + layer[1].bias[0]
    torch.testing.assert_close(net(x, training=True)[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.mean, norm.running_mean)
    torch.testing.assert_close(net.var, norm.running_var, rtol=0.02, atol=1e-3)  # torch keeps the unbiased one


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("away", [0.0, 300.0])
def test_a_batch_norms_gradient_is_what_autograd_finds(dtype: torch.dtype, near: float, away: float) -> None:
    random, n = generator(), nn.BatchNorm1d(5, eps=1e-3).double()
    x = (torch.randn(2, 64, 5, generator=random) + away).to(dtype).requires_grad_()
    scale, shift = (torch.randn(2, 1, 5, generator=random).requires_grad_() for _ in range(2))
    weights = torch.randn(2, 64, 5, generator=random).to(dtype)
    found, mean, spread = BatchNorm.apply(x, scale, shift)
    assert found.dtype == dtype and not mean.requires_grad and not spread.requires_grad
    exact = [part.detach().double().requires_grad_() for part in (x, scale, shift)]
    torch.testing.assert_close(mean, exact[0].mean(1, keepdim=True), rtol=1e-5, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(spread, exact[0].var(1, correction=0, keepdim=True), rtol=1e-3, atol=0,
                               check_dtype=False)
    wanted = torch.stack([n(rows) for rows in exact[0]]) * exact[1] + exact[2]
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=10 * near)
    ours = torch.autograd.grad((found * weights).sum(), [x, scale, shift])
    theirs = torch.autograd.grad((wanted * weights.double()).sum(), exact)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=20 * near * float(other.abs().max()))


def test_rms_norm_is_torchs() -> None:
    net = Mlp((3, 5, 1), 1, generator(), Shape("rms"))
    x, layer = torch.randn(64, 3, generator=generator(1)), net.layers()
    norm = nn.RMSNorm(5, eps=1e-5)
    hidden = norm(x @ layer[0].weight[0] + layer[0].bias[0]).relu()
    torch.testing.assert_close(net(x)[0], hidden @ layer[1].weight[0] + layer[1].bias[0])


def test_unit_weights_stay_so_while_learning() -> None:
    net = Mlp((3, 8, 8, 2), 2, generator(), Shape("batch", unit=True))
    adam = Adam(net, 0.1)
    for step in range(3):
        adam.step(net(torch.randn(16, 3, generator=generator(step)), training=True).square().sum())
    norms = [layer.weight.norm(dim=1) for layer in net.layers()]
    torch.testing.assert_close(norms[0], torch.ones(2, 8))
    torch.testing.assert_close(norms[1], torch.ones(2, 8))
    torch.testing.assert_close(norms[2], torch.ones(2, 2))


def test_dropout_keeps_the_mean() -> None:
    net = Mlp((3, 64, 64, 1), 2, generator(), Shape(dropout=0.25))
    masks = net.masks(500, generator(1))
    assert [mask.shape for mask in masks] == [(2, 500, 64)] * 2
    left = net.dropped(torch.ones(2, 500, 64), masks[0])
    assert left.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert left.mean((1, 2)).tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    assert left[..., ::2].mean().item() == pytest.approx(left[..., 1::2].mean().item(), abs=0.02)  # two to a word
    x = torch.randn(500, 3, generator=generator(2))
    assert not torch.equal(net(x, masks=masks), net(x))
    torch.testing.assert_close(net(x, torch.tensor([1]), [mask[1:] for mask in masks])[0], net(x, masks=masks)[1])
    assert [mask.shape for mask in net.masks(3, generator(), 1)] == [(1, 3, 64)] * 2
    assert len(Mlp((3, 64, 64, 1), 2, generator(), Shape(dropout=0.25, dropout_first=True)).masks(3, generator())) == 1


def test_critics_that_make_targets_drop_nothing() -> None:
    critic = Critic(2, 1, (8,), 2, Scalar(), generator(), Shape(dropout=0.5))
    assert critic.draw(4, generator()).masks and not critic.slow().draw(4, generator()).masks
    slow = critic.slow().net
    assert torch.equal(flat(slow), flat(critic.net)) and slow.parts[0] is not critic.net.parts[0]


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_adam_is_torchs_adam(clip: float) -> None:
    ours, theirs = Mlp((3, 16, 2), 2, generator()), Mlp((3, 16, 2), 2, generator())
    adam, reference = Adam(ours, 3e-3, clip), torch.optim.Adam(theirs.parameters(), 3e-3)
    for step in range(20):
        x = torch.randn(8, 3, generator=generator(step))
        adam.step(ours(x).square().sum())
        reference.zero_grad()
        theirs(x).square().sum().backward()
        if clip:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        reference.step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-5, atol=1e-6)


def test_target_follows() -> None:
    target, source = linear_critic((0.0, 0.0, 0.0)), linear_critic((1.0, 2.0, 4.0))
    follow(target, source, 0.25)
    assert flat(target.net).tolist() == [0.25, 0.5, 1.0]


def test_running_norm_knows_mean_and_variance_of_all_batches() -> None:
    norm, random = RunningNorm(3), generator()
    batches = [torch.randn(size, 3, generator=random) * torch.tensor([0.1, 1, 50]) + 7 for size in (1, 64, 200)]
    for batch in batches:
        norm.observe(batch)
    every = torch.cat(batches)
    torch.testing.assert_close(norm.mean, every.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.var, every.var(0, correction=0), rtol=1e-4, atol=1e-5)
    outputs = norm(every)
    torch.testing.assert_close(outputs.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(norm.frozen()(every), outputs)
    np.testing.assert_allclose(norm.mirror()(every.numpy()), outputs.numpy(), atol=1e-5)
    assert norm(torch.full((1, 3), 1e9)).tolist() == [[10.0, 10.0, 10.0]]


def test_running_norm_forgets_after_its_memory() -> None:
    norm = RunningNorm(1, memory=100)
    for value in [0.0] * 50 + [1.0] * 50:
        norm.observe(torch.full((10, 1), value))
    assert float(norm.mean) > 0.99 and float(norm.var) < 0.01


def test_bfloat16_stays_close_to_float32() -> None:
    exact = Mlp((4, 32, 32, 3), 2, generator())
    rough = copy.deepcopy(exact)
    rough.shape = Shape(dtype=compute_dtype("bfloat16", "cpu"))
    x = torch.randn(50, 4, generator=generator(1))
    outputs = rough(x)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, exact(x), rtol=0.05, atol=0.01)
    assert not torch.equal(outputs, exact(x))
    with pytest.raises(ValueError, match="float16"):
        compute_dtype("float16", "cpu")


@pytest.mark.parametrize("members", [(), (2,)])
def test_a_bf16_product_rounds_what_it_multiplies_and_neither_its_sums_nor_the_rest(members: tuple[int, ...]) -> None:
    chance = generator()
    x, weight = (torch.randn(*members, *shape, generator=chance).requires_grad_() for shape in ((128, 300), (300, 70)))
    exact = (x.double() @ weight.double()).detach()
    made = bf16_matmul(x, weight)
    rounds_here = compute_dtype("auto", "cpu") == torch.bfloat16 or not torch.allclose(made.double(), exact, atol=2e-5)

    def rounded(of: Tensor) -> Tensor:
        return (of.detach().bfloat16() if rounds_here else of.detach()).double()

    wanted = rounded(x) @ rounded(weight)
    torch.testing.assert_close(made.double(), wanted, atol=2e-5, rtol=1e-6)
    slopes, back = torch.autograd.grad(made, (x, weight), made.detach()), rounded(made)
    for slope, known in zip(slopes, (back @ rounded(weight).mT, rounded(x).mT @ back), strict=True):
        torch.testing.assert_close(slope.double(), known, atol=1e-3, rtol=1e-6)
    torch.testing.assert_close((x @ weight).double().detach(), exact, atol=2e-5, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(bool(compiled.missing_tools()), reason=f"cannot compile: {compiled.missing_tools()}")
def test_a_bf16_product_is_the_same_compiled() -> None:
    weight = torch.randn(64, 32, generator=generator()).requires_grad_()

    def step(x: Tensor) -> dict[str, Tensor]:
        made = bf16_matmul(x.tanh(), weight)
        return {"made": made.detach(), "slope": torch.autograd.grad(made.square().sum(), weight)[0]}

    x = torch.randn(16, 64, generator=generator(1))
    found, known = compiled.Compiled(step)(x), step(x)
    for name, value in known.items():
        torch.testing.assert_close(found[name], value, atol=1e-3, rtol=1e-3)


def test_an_average_of_the_actor_is_what_is_shown() -> None:
    agent, batch = small("sac", average=0.5), {"error": torch.zeros(8)}
    for name, size in (("obs", OBS), ("next_obs", OBS)):
        batch[name] = torch.zeros(8, size)
    batch["reward"] = torch.zeros(8)
    actor, shown = agent.actor, agent.shown
    assert isinstance(actor, GaussianActor) and isinstance(shown, GaussianActor)
    first = flat(actor.net)
    for _ in range(2):
        agent.learn((), batch, [])
        fill(actor.net, flat(actor.net) + 4.0)
    # after the first the average is what the actor was; the second takes it half way to the actor 4 above
    torch.testing.assert_close(flat(shown.net), first + 2.0)
    obs = np.ones((2, OBS), np.float32)
    expected = shown.mean(agent.latent(torch.from_numpy(obs))).detach().numpy()
    np.testing.assert_allclose(agent.act(obs, explore=False)[0], expected, atol=1e-6)
    np.testing.assert_allclose(first_action(agent.policy(), torch.from_numpy(obs)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype, far", [(torch.float32, 3e-6), (torch.bfloat16, 8e-3)])
def test_mish_is_mish_and_so_is_its_slope(dtype: torch.dtype, far: float) -> None:
    x = torch.cat((torch.linspace(-100, 100, 2001), torch.linspace(-3, 3, 601))).to(dtype).requires_grad_()
    other = x.detach().double().requires_grad_()
    (slope,), (known,) = (torch.autograd.grad(of.sum(), at) for of, at in ((mish(x), x), (F.mish(other), other)))
    torch.testing.assert_close(mish(x).double(), F.mish(other), atol=far, rtol=far)
    torch.testing.assert_close(slope.double(), known, atol=far, rtol=far)
    assert mish(x).dtype == dtype
    with torch.no_grad():  # another form there
        torch.testing.assert_close(mish(x).double(), F.mish(other), atol=far, rtol=far)
    np.testing.assert_allclose(ACTIVATIONS["mish"].mirror(other.detach().numpy()), F.mish(other).detach(), atol=1e-7)
