"""Learning from camera frames: every recipe takes them; they are shifted, encoded, learned from and exported."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from robot_rl.frames import FrameReplay
from robot_rl.learn import recipes
from robot_rl.learn.agent import Agent
from robot_rl.learn.encoders import Convolutions
from robot_rl.learn.export import SEEING_TOLERANCE, export
from robot_rl.learn.planner import Planner
from tests.learn.cases import ACTION, OBS, small

FRAME, STACK = (3, 32, 36), 2
SHAPE = (STACK * FRAME[0], *FRAME[1:])
every_recipe = pytest.mark.parametrize("recipe", list(recipes.RECIPES))


def observation(random: np.random.Generator, state: int = OBS) -> dict[str, np.ndarray]:
    return {"state": random.normal(size=state).astype(np.float32), "frames": random.integers(0, 256, SHAPE, np.uint8)}


def replay(state: int = OBS, steps: int = 60) -> FrameReplay:
    """Random steps whose reward is how red the newest frame is, in episodes of ten."""
    random, memory = np.random.default_rng(0), FrameReplay(200, FRAME, STACK, state, ACTION, plan_size=2 * ACTION)
    for step in range(steps):
        if step % 10 == 0:
            memory.begin(observation(random, state))
        seen = observation(random, state)
        seen["frames"][-3] = 255 * (red := random.integers(2))
        memory.step(random.uniform(-1, 1, ACTION), float(red), seen, step % 20 == 19, step % 10 == 9)
    return memory


def seeing(recipe: str, **options: object) -> Agent:
    plans = "plan" in recipes.options(recipe) and recipe != "bmpc"  # which learns from its plans
    alone = {"plan": False} if plans else {}  # a planner's file takes one observation at a time
    return small(recipe, frames=SHAPE, features=8, channels=4, **{"batch": 16} | alone | options)


def learn(agent: Agent, updates: int, state: int = OBS) -> dict[str, float]:
    memory = replay(state)
    metrics: dict[str, torch.Tensor] = {}
    for _ in range(updates):
        metrics = agent.update(memory)
    return {name: float(value) for name, value in metrics.items()}


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in module.state_dict().values()])


@every_recipe
def test_every_recipe_learns_from_frames_and_exports(recipe: str, tmp_path: Path) -> None:
    agent, path = seeing(recipe, dtype="float32"), tmp_path / "policy.onnx"  # as the file
    encoder = next(module for module in agent.latent.modules() if isinstance(module, Convolutions))
    before = weights(encoder)
    assert all(np.isfinite(value) for value in learn(agent, 2).values())
    assert not torch.equal(weights(encoder), before), "the encoder learns"
    random = np.random.default_rng(1)
    seen = [observation(random) for _ in range(5)]
    batch = {key: np.stack([one[key] for one in seen]) for key in ("state", "frames")}
    examples = {"obs": batch["state"], "frames": batch["frames"]}
    policy = agent.policy()
    assert export(policy, OBS, policy.noise_size, "{}", path, SHAPE, examples, policy.carry) <= SEEING_TOLERANCE
    session = onnxruntime.InferenceSession(path)
    feed = examples | {"noise": np.zeros((5, policy.noise_size), np.float32)}
    feed |= {"carry": np.zeros((5, *policy.carry), np.float32)} if policy.carry else {}
    types = {"frames": "tensor(uint8)"}
    assert {one.name: one.type for one in session.get_inputs()} == {n: types.get(n, "tensor(float)") for n in feed}
    if isinstance(agent.execution, Planner):
        agent.execution, agent._mirror = agent.execution.bare, None
    action, _ = agent.act(batch, explore=False)
    exported, *_ = session.run(None, feed)
    np.testing.assert_allclose(action, exported, atol=SEEING_TOLERANCE)


@pytest.mark.parametrize("recipe", ["tdmpc2", "fowm"])
def test_a_planner_that_sees_is_one_file_too(recipe: str, tmp_path: Path) -> None:
    agent, path = seeing(recipe, dtype="float32", plan=True), tmp_path / "planner.onnx"
    learn(agent, 2)
    policy, seen = agent.policy(planner=True), observation(np.random.default_rng(1))
    export(policy, OBS, policy.noise_size, "{}", path, SHAPE, None, policy.carry)
    feed = {"obs": seen["state"][None], "frames": seen["frames"][None],
            "noise": np.zeros((1, policy.noise_size), np.float32), "carry": np.zeros((1, *policy.carry), np.float32)}
    planned, *_ = onnxruntime.InferenceSession(path).run(None, feed)
    action, _ = agent.act({key: value[None] for key, value in seen.items()}, explore=False)
    np.testing.assert_allclose(action, planned, atol=SEEING_TOLERANCE)


@pytest.mark.parametrize("recipe", ["default", "mrq", "cqn"])
def test_saved_loaded_and_continued_equals_never_stopped(recipe: str) -> None:
    straight, resumed = seeing(recipe, seed=1), seeing(recipe, seed=2)
    learn(straight, 2)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for agent in (straight, resumed):
        learn(agent, 2)
    assert torch.equal(weights(straight.modules), weights(resumed.modules))


def test_cloning_teaches_what_sees_the_frames() -> None:
    agent, memory = seeing("modem"), replay()
    encoder = agent.latent.inner.encoder
    before = weights(encoder)
    assert np.isfinite(float(agent.update(memory, offline=True)["actor/loss"]))
    assert not torch.equal(weights(encoder), before)


def test_without_a_state_the_frames_are_all() -> None:
    agent = recipes.make("sac", 0, ACTION, SHAPE, hidden=(16,), batch=16, features=8, channels=4, compile=False)
    learn(agent, 2, state=0)
    action, _ = agent.act(observation(np.random.default_rng(0), 0) | {
        "state": np.zeros((1, 0), np.float32), "frames": np.zeros((1, *SHAPE), np.uint8)})
    assert action.shape == (1, ACTION)


def test_the_reward_that_only_the_frames_show_is_learned() -> None:
    agent, memory = seeing("sac", lr=1e-3, discount=0.0, batch=60, shift=2, n_step=1), replay(steps=200)
    # of the frame that a step was taken from, which neither state nor action tells
    memory._rows[:, memory._reward] = memory._frames[: memory.capacity, 0, 0, 0] / 255.0
    losses = [float(agent.update(memory)["critic/loss"]) for _ in range(120)]
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:10])


def test_frames_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="20 x 64 pixels are too small"):
        recipes.make("sac", OBS, ACTION, (3, 20, 64))


class Halves(nn.Module):
    """An encoder of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Linear(3, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.plane(image.mean((2, 3)))


def test_an_encoder_from_a_file_sees_and_does_not_learn(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pt2"
    image = torch.zeros(2, *FRAME)
    torch.export.save(torch.export.export(Halves(), (image,), dynamic_shapes=({0: torch.export.Dim("batch")},)), path)
    agent = small("sac", frames=SHAPE, features=8, encoder=str(path), batch=16)
    encoder = agent.latent.encoder  # type: ignore[attr-defined]
    before = weights(encoder)
    project = copy.deepcopy(weights(agent.latent.project))  # type: ignore[attr-defined]
    learn(agent, 2)
    assert torch.equal(weights(encoder), before) and encoder.size == 2 * 5
    assert not torch.equal(weights(agent.latent.project), project)  # type: ignore[attr-defined]
    assert export(agent.policy(), OBS, ACTION, "{}", tmp_path / "policy.onnx", SHAPE) <= SEEING_TOLERANCE
    with pytest.raises(ValueError, match=r"encoder .*absent.pt2: no such file"):
        small("sac", frames=SHAPE, encoder=str(tmp_path / "absent.pt2"))
    (tmp_path / "none.pt2").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"encoder .*none.pt2: not a torch.export file that takes \(B, 3, 32, 36\)"):
        small("sac", frames=SHAPE, encoder=str(tmp_path / "none.pt2"))
