"""The parts of a learner against numbers worked out by hand, and against torch's own."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from robot_rl.learn.actors import GaussianActor
from robot_rl.learn.backups import Draw, SoftBackup
from robot_rl.learn.critics import Critic, Mean, Minimum, Scalar
from robot_rl.learn.latents import RunningNorm
from robot_rl.learn.nets import Adam, Mlp, compute_dtype, follow
from robot_rl.learn.objectives import SoftValue, Temperature


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_actor(mean: float, log_std: float) -> GaussianActor:
    """One action; its mean and log std before the tanh are these numbers everywhere."""
    actor = GaussianActor(1, 1, (), generator())
    actor.net.flat.data.copy_(torch.tensor([0.0, 0.0, mean, log_std]))
    return actor


def linear_critic(*members: tuple[float, float, float]) -> Critic:
    """Q = a * obs + b * action + c, with (a, b, c) of each member."""
    critic = Critic(1, 1, (), len(members), Scalar(), generator())
    weights = [value for a, b, _ in members for value in (a, b)]
    critic.net.flat.data.copy_(torch.tensor(weights + [c for _, _, c in members]))
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
    y = backup.target(batch, Draw(torch.zeros(2, 1), None))
    torch.testing.assert_close(y, torch.tensor([4.113522, 5.0]))
    y = backup.target(batch, Draw(torch.zeros(2, 1), torch.tensor([0])))  # the first member alone: 1 + 0.9 * 7.459469
    torch.testing.assert_close(y, torch.tensor([7.713522, 5.0]))
    backup.entropy_scale = 0.0  # without the entropy: 1 + 0.9 * 3
    torch.testing.assert_close(backup.target(batch, Draw(torch.zeros(2, 1), None)), torch.tensor([3.7, 5.0]))


def test_actor_loss_and_its_gradient_worked_out_by_hand() -> None:
    # noise 0, mean 0.3, log std -0.5, a = tanh(0.3) = 0.291313, Q = 2 a, temperature 0.5
    # log density: -0.918939 + 0.5 - log(1 - a^2) = -0.330278; loss: 0.5 * -0.330278 - 0.582625 = -0.747764
    # d/dmean: 0.5 * 2 a - 2 (1 - a^2) = -1.538967; d/dlog_std: -0.5 (the noise is 0)
    actor, temperature = linear_actor(0.3, -0.5), Temperature(0.5, -1.0)
    objective = SoftValue(actor, linear_critic((0.0, 2.0, 0.0), (0.0, 2.0, 9.0)), temperature, Minimum())
    loss, _ = objective.loss(torch.zeros(1, 1), torch.zeros(1, 1))
    torch.testing.assert_close(loss, torch.tensor(-0.747764), rtol=0, atol=2e-5)
    (gradient,) = torch.autograd.grad(loss, [actor.net.flat])
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
    assert torch.equal(Scalar().decode(Scalar().encode(torch.tensor([3.0, 1.0]))), torch.tensor([3.0, 1.0]))


def test_reductions() -> None:
    values = torch.tensor([[1.0, 5.0], [2.0, 3.0], [6.0, 1.0]])
    assert Minimum()(values).tolist() == [1.0, 1.0] and Mean()(values).tolist() == [3.0, 3.0]
    assert Minimum().members(3, generator()) is None and Mean().members(3, generator()) is None
    chance, drawn = generator(), []
    for _ in range(3000):
        members = Minimum(2).members(5, chance)
        assert members is not None and len(set(members.tolist())) == 2
        drawn += members.tolist()
    np.testing.assert_allclose(np.bincount(drawn), 1200, rtol=0.1)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_members_of_an_ensemble_are_independent_perceptrons(layer_norm: bool) -> None:
    net = Mlp((4, 8, 8, 3), 5, generator(), layer_norm)
    x = torch.randn(7, 4, generator=generator(1))
    outputs = net(x)
    assert outputs.shape == (5, 7, 3)
    torch.testing.assert_close(net(x, torch.tensor([3, 1])), outputs[[3, 1]])
    torch.testing.assert_close(net(x.expand(5, 7, 4)), outputs)
    torch.testing.assert_close(net.frozen()(x), outputs[0])
    np.testing.assert_allclose(net.mirror()(x.numpy()), outputs[0].detach().numpy(), atol=1e-6)
    (gradient,) = torch.autograd.grad(outputs[2].sum(), [net.flat])
    layers = [part for layer in net.layers() for part in layer if part is not None]
    parts = zip(gradient.split([part.numel() for part in layers]), layers, strict=True)
    for part, like in parts:
        assert not part.view(like.shape)[[0, 1, 3, 4]].any()


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
    torch.testing.assert_close(ours.flat, theirs.flat, rtol=1e-5, atol=1e-6)


def test_target_follows() -> None:
    target, source = linear_critic((0.0, 0.0, 0.0)), linear_critic((1.0, 2.0, 4.0))
    follow(target, source, 0.25)
    assert target.net.flat.tolist() == [0.25, 0.5, 1.0]


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
    rough.dtype = compute_dtype("bfloat16", "cpu")
    x = torch.randn(50, 4, generator=generator(1))
    outputs = rough(x)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, exact(x), rtol=0.05, atol=0.01)
    assert not torch.equal(outputs, exact(x))
    with pytest.raises(ValueError, match="float16"):
        compute_dtype("float16", "cpu")
