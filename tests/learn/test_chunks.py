"""Chunks of actions: what is executed of them and what is learned from, worked out by hand; the file carries on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robot_rl.learn import recipes
from robot_rl.learn.actors import Actor, ActorMirror
from robot_rl.learn.chunks import Chunks, Ensemble, OpenLoop
from robot_rl.learn.critics import CoarseCritic, Scalar, SequenceCritic
from robot_rl.learn.export import TOLERANCE, export
from robot_rl.learn.nets import Recurrent, Shape
from robot_rl.learn.objectives import SequenceBellman
from robot_rl.policy import Policy
from robot_rl.replay import Mixture, Replay
from robot_rl.spec import PolicySpec, SpecError
from tests.learn.cases import ACTION, OBS, fill, flat, random_replay, small

CHUNKED: dict[str, dict[str, Any]] = {
    "cqn_as": {}, "cqn_as open loop": {"execute": "open_loop"}, "sac": {"chunk": 3},
    "default": {"chunk": 2, "execute": "ensemble"},
}
CONTRACT = PolicySpec(task="test", rate_hz=20.0, time_limit_s=1.0, observation_size=OBS, action_size=ACTION)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Echo(Actor):
    """Gives what it sees."""

    def mirror(self) -> ActorMirror:
        return lambda latent, noise: latent


def executed(chunks: Chunks, outputs: list[list[float]]) -> list[float]:
    """The actions of an episode in which the actor gives these chunks of single numbers."""
    execute, carry, actions = chunks.mirror(Echo()), None, []
    for output in outputs:
        action, carry = execute(np.array([output], np.float32), np.zeros((1, 1), np.float32), carry)
        assert action.shape == (1, 1) and action.dtype == np.float32
        actions.append(float(action[0, 0]))
    return actions


def test_an_ensemble_is_the_weighted_mean_of_what_chunks_said_of_a_step() -> None:
    # weights 1, 2, 4 for predictions made now, one and two steps ago
    chunks = Ensemble(3, 1, np.log(2))
    got = executed(chunks, [[0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [0.9, 1.0, -1.0], [0.0, 0.4, 0.8]])
    third = (4 * 0.3 + 2 * 0.6 + 0.9) / 7
    assert got == pytest.approx([0.1, (2 * 0.2 + 0.5) / 3, third, (4 * 0.7 + 2 * 1.0 + 0.0) / 7])
    assert executed(chunks, [[0.1, 0.2, 0.3]]) == pytest.approx([0.1])  # a new episode knows nothing of the last


def test_open_loop_executes_each_chunk_to_its_end() -> None:
    outputs = [[0.1 * k, 0.1 * k + 0.01, 0.1 * k + 0.02] for k in range(7)]
    assert executed(OpenLoop(3, 1), outputs) == pytest.approx([0.0, 0.01, 0.02, 0.3, 0.31, 0.32, 0.6])


def test_rows_are_episodes_of_their_own() -> None:
    for chunks in (Ensemble(2, 2), OpenLoop(2, 2)):
        carry = torch.tensor([[[0.5, -0.5, 1.0]], [[0.0, 0.0, 0.0]]])
        action, after = chunks.step(torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2), carry)
        torch.testing.assert_close(action[1], torch.tensor([0.1, 0.2]))  # this one begins
        assert action[0, 0] > 0.2 and after.shape == carry.shape


def test_a_chunk_is_cut_from_an_episode_worked_out_by_hand() -> None:
    # three steps from observations 0, 1, 2 with actions 0.1, 0.2, 0.3 and rewards 1, 2, 4, then the end; discount 0.5
    for terminated in (True, False):
        replay = Replay(20, 1, 1, 0)
        replay.begin(np.zeros(1))
        for step in range(3):
            replay.step(np.array([0.1 * (step + 1)]), 2.0**step, np.array([step + 1.0]),
                        terminated and step == 2, not terminated and step == 2)
        replay.begin(np.full(1, 9.0))
        replay.step(np.array([0.9]), 100.0, np.full(1, 9.0), False, False)
        batch = OpenLoop(2, 1).cut(replay.sample(200, 2, 2, 0.5))
        end = 0.0 if terminated else 0.5
        wanted = {  # action, held, reward, discount, next_obs
            0.0: ([0.1, 0.2], [1, 1], 1 + 0.5 * 2, 0.25, 2.0),
            1.0: ([0.2, 0.3], [1, 1], 2 + 0.5 * 4, end / 2, 3.0),
            2.0: ([0.3, 0.3], [1, 0], 4.0, end, 3.0),  # one step is left: the last action again, which counts nothing
            9.0: ([0.9, 0.9], [1, 0], 100.0, 0.5, 9.0),
        }
        assert batch["action"].shape == (200, 2) and batch["weight"].tolist() == [1.0] * 200
        assert set(batch["obs"][:, 0]) == set(wanted)
        for i, obs in enumerate(batch["obs"][:, 0]):
            action, held, reward, discount, following = wanted[float(obs)]
            assert batch["action"][i].tolist() == pytest.approx(action) and batch["held"][i].tolist() == held
            found = np.array([batch["reward"][i], batch["discount"][i], batch["next_obs"][i, 0]])
            assert found.tolist() == pytest.approx([reward, discount, following])


def constant_critic(values: tuple[float, float]) -> SequenceCritic:
    """Of two steps of one action in one level of two bins, which it values so at any observation and step."""
    critic = SequenceCritic(1, 1, 2, (2,), 1, 2, Scalar(), generator())
    for net in (critic.net.before, critic.net.along, critic.net.head):
        fill(net, torch.zeros_like(flat(net)))
    critic.net.head.layers()[-1].bias.data.copy_(torch.tensor([[values]]))
    return critic


def test_sequence_target_worked_out_by_hand() -> None:
    # the best of 1 and 3 is 3: y = 2 + 0.5 * 3 = 3.5 for both steps. Actions 0.5 and -0.5 lie in bins 1 and 0, valued
    # 3 and 1: losses 0.125 and 3.125. The second row's second step was not taken: 0.125 alone of the two that it has
    critic = constant_critic((1.0, 3.0))
    batch = {"latent": torch.ones(2, 1), "next_latent": torch.ones(2, 1), "weight": torch.ones(2),
             "action": torch.tensor([[0.5, -0.5], [0.5, -0.5]]), "reward": torch.full((2,), 2.0),
             "discount": torch.full((2,), 0.5), "held": torch.tensor([[1.0, 1.0], [1.0, 0.0]])}
    loss, metrics, found = SequenceBellman(critic, critic).loss(batch, None)
    assert float(metrics["critic/target"]) == 3.5
    assert float(loss.detach()) == pytest.approx(((0.125 + 3.125) / 2 + 0.125 / 2) / 2)
    assert found["error"].tolist() == pytest.approx([(0.5 + 2.5) / 2, 0.5 / 2])


def test_a_later_step_of_a_sequence_knows_the_earlier_ones_and_not_the_other_way_round() -> None:
    critic = SequenceCritic(OBS, ACTION, 3, (16, 16), 2, 5, Scalar(), generator(), Shape("layer"))
    latent, centre = torch.randn(4, OBS, generator=generator(1)), torch.zeros(4, 3 * ACTION)
    before = critic(latent, 1, centre)
    assert before.shape == (4, 3 * ACTION, 5, 1)
    centre[:, ACTION] = 0.2  # the second step's interval
    changed = (critic(latent, 1, centre) - before).abs().amax((0, 2, 3)).view(3, ACTION).amax(1)
    assert changed[0] == 0 and (changed[1:] > 1e-4).all()
    assert isinstance(critic, CoarseCritic) and critic.zoom(centre, 0, torch.zeros(4, 6).long()).shape == (4, 6)


def test_the_recurrent_net_is_torchs_unit_between_two_layers() -> None:
    net, unit = Recurrent(4, (3, 8, 5, 2), generator()), nn.GRU(5, 5, batch_first=True)
    before, along = net.before.layers(), net.along.layers()[0]
    with torch.no_grad():
        unit.weight_ih_l0.copy_(before[-1].weight[0].T @ torch.eye(5))
        unit.bias_ih_l0.copy_(before[-1].bias[0, 0])
        unit.weight_hh_l0.copy_(along.weight[0].T)
        unit.bias_hh_l0.copy_(along.bias[0, 0])
    x = torch.randn(7, 4, 3, generator=generator(1))
    hidden = (x @ before[0].weight[0] + before[0].bias[0]).relu()
    hidden = (hidden @ before[1].weight[0] + before[1].bias[0]).relu()
    head = net.head.layers()[0]
    expected = (unit(hidden)[0] @ head.weight[0] + head.bias[0]).flatten(1)
    outputs = net(x.flatten(1))
    assert outputs.shape == (1, 7, 8)
    torch.testing.assert_close(outputs[0], expected)
    torch.testing.assert_close(net.frozen()(x.flatten(1)), expected)
    np.testing.assert_allclose(net.mirror()(x.flatten(1).numpy()), expected.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("name", list(CHUNKED))
def test_the_file_carries_from_step_to_step_as_acting_does(name: str, tmp_path: Path) -> None:
    agent, path = small(name.split()[0], **CHUNKED[name]), tmp_path / "policy.onnx"
    for _ in range(3):
        metrics = agent.update(Mixture(random_replay(seed=1), random_replay(seed=2), 0.5))
    assert all(torch.isfinite(value) for value in metrics.values())
    policy, length = agent.policy(), agent.execution.length
    assert policy.noise_size == ACTION * length and policy.carry == (length - 1, ACTION + 1)
    export(policy, OBS, policy.noise_size, CONTRACT.to_json(), path, carry=policy.carry)
    loaded, random = Policy(path), np.random.default_rng(0)
    loaded.warm_up(5)
    starts = (0,) if isinstance(agent.execution, Ensemble) else range(0, 9, length)
    for _ in range(2):
        loaded.reset()
        carry = None
        for step in range(9):
            obs, noise = random.normal(size=OBS).astype(np.float32), None
            fresh = agent.act(obs[None], None, explore=False)[0][0]  # what an episode that begins here would do
            if step == 4 and agent.shown is agent.actor:
                twin = torch.Generator()
                twin.set_state(agent.generator.get_state())
                noise = torch.randn(1, policy.noise_size, generator=twin)[0].numpy()
            actions, carry = agent.act(obs[None], carry, noise is not None)
            np.testing.assert_allclose(loaded(obs, noise), actions[0], atol=TOLERANCE)
            if noise is None:
                assert np.allclose(actions[0], fresh, atol=1e-4) == (step in starts)


def test_a_file_whose_noise_is_not_that_of_whole_actions_is_refused(tmp_path: Path) -> None:
    policy, path = small("sac", chunk=3).policy(), tmp_path / "policy.onnx"
    other = PolicySpec(task="test", rate_hz=20.0, time_limit_s=1.0, observation_size=OBS, action_size=4)
    export(policy, OBS, policy.noise_size, other.to_json(), path, carry=policy.carry)
    with pytest.raises(SpecError, match=r"'noise' is .*6.*\('B', 4\) in its contract"):
        Policy(path)


def test_chunks_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk is 1"):
        recipes.make("cqn_as", OBS, ACTION, chunk=1)
    with pytest.raises(ValueError, match=r"'backwards'.*open_loop, ensemble"):
        recipes.make("sac", OBS, ACTION, chunk=2, execute="backwards")
