"""The exported file against the module it came from, for every recipe, and what happens when they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from robot_rl.learn import recipes
from robot_rl.learn.export import SEEING_TOLERANCE, TOLERANCE, ExportError, export, rounding, weights_hash
from robot_rl.policy import Policy
from robot_rl.spec import PolicySpec
from tests.learn.cases import ACTION, OBS, first_action, random_replay, small

CONTRACT = PolicySpec(task="x", rate_hz=50, time_limit_s=10, observation_size=OBS, action_size=ACTION).to_json()


@pytest.mark.parametrize("recipe", list(recipes.RECIPES))
def test_file_does_what_the_policy_does(recipe: str, tmp_path: Path) -> None:
    path, replay = tmp_path / "policy.onnx", random_replay()
    for seed in (0, 1):  # the second export reuses the traced graph with other weights
        agent = small(recipe, seed=seed)
        for _ in range(3):
            agent.update(replay)
        policy = agent.policy()
        examples = replay.sample(50)["obs"] * 3
        difference = export(policy, OBS, policy.noise_size, CONTRACT, path, examples={"obs": examples},
                            carry=policy.carry)
        assert difference <= TOLERANCE
        session = onnxruntime.InferenceSession(path)
        shapes = {"obs": (OBS,), "noise": (policy.noise_size,)} | ({"carry": policy.carry} if policy.carry else {})
        assert {one.name: tuple(one.shape[1:]) for one in session.get_inputs()} == shapes
        assert {one.type for one in session.get_inputs()} == {"tensor(float)"}
        assert [one.name for one in session.get_outputs()] == ["action", "carry_out"][: len(shapes) - 1]
        for count in (1, 3, 50):
            noise = np.random.default_rng(count).normal(size=(count, policy.noise_size)).astype(np.float32)
            feed = {"obs": examples[:count], "noise": noise, "carry": np.zeros((count, *policy.carry), np.float32)}
            action, *_ = session.run(None, {name: feed[name] for name in shapes})
            expected = first_action(policy, torch.as_tensor(examples[:count]), torch.as_tensor(noise)).numpy()
            np.testing.assert_allclose(action, expected, atol=TOLERANCE)
        metadata = session.get_modelmeta().custom_metadata_map
        assert metadata["robot_rl"] == CONTRACT and metadata["weights_sha256"] == weights_hash(policy)
        deployed = Policy(path)  # as `deploy` does
        np.testing.assert_allclose(deployed(examples[0], noise[0]), expected[0], atol=TOLERANCE)
    assert [file.name for file in tmp_path.iterdir()] == ["policy.onnx"]


def test_the_file_is_one_that_older_runtimes_read(tmp_path: Path) -> None:
    export(small("sac").policy(), OBS, ACTION, "{}", tmp_path / "policy.onnx")
    model = onnx.load(tmp_path / "policy.onnx")
    onnx.checker.check_model(model)
    assert model.ir_version <= 10 and [one.version for one in model.opset_import if one.domain == ""] == [18]


class Fickle(nn.Module):
    """Does something else each time it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            self.count += 1
        return noise * 0.0 + obs.sum(1, keepdim=True) * 0.0 + self.count


def test_a_difference_is_an_error_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=r"policy\.onnx.*differ by"):
        export(Fickle(), OBS, ACTION, "{}", path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


class Steep(nn.Module):
    """Sines of long sums, which float32 rounds by more the larger the weights are."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.there, self.back = nn.Linear(OBS, 256), nn.Linear(256, ACTION)
        for layer in (self.there, self.back):
            layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=random) * steepness)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.back(self.there(obs).tanh()).sin() + noise * 0.0


def test_rounding_that_torch_has_too_is_allowed_and_no_more(tmp_path: Path) -> None:
    mild, wild = Steep(3.0), Steep(100.0)
    assert TOLERANCE < export(mild, OBS, ACTION, "{}", tmp_path / "mild.onnx") <= SEEING_TOLERANCE
    with pytest.raises(ExportError, match=r"wild\.onnx.*differ by .*0\.0001 is allowed"):
        export(wild, OBS, ACTION, "{}", tmp_path / "wild.onnx")


def test_rounding_is_found_where_values_are_those_of_categories() -> None:
    policy, inputs = small("cqn").policy(), {"obs": torch.randn(4, OBS), "noise": torch.zeros(4, ACTION)}
    assert 0 < rounding(policy, [inputs]) < TOLERANCE


def test_weights_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    policy = small("sac").policy()
    policy.actor.mean.bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="inf"):
        export(policy, OBS, ACTION, "{}", tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
