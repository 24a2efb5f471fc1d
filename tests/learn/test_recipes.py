"""Every recipe, swept: shapes, finiteness, seeds, a falling loss, resuming, acting as exported, compiled as eager."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.learn import compiled, recipes
from robot_rl.learn.actors import Policy
from robot_rl.learn.agent import Agent
from robot_rl.learn.nets import Mlp
from robot_rl.replay import Batch, Mixture, NotFinite, Replay
from tests.learn.cases import ACTION, OBS, first_action, random_replay, small, stored_draws

every_recipe = pytest.mark.parametrize("recipe", list(recipes.RECIPES))
KINDS = {recipes.RECIPES[name].kind: name for name in reversed(recipes.RECIPES)}.values()  # one recipe of each
PARTS: dict[str, dict[str, Any]] = {
    "prioritized": {"prioritized": 0.6},
    "hold": {"hold": 8},
    "returns": {"returns": 1.0},
    "linear": {"categories": 21, "support": "linear", "bound": 5.0},
    "projected": {"categories": 21, "support": "linear", "bound": 5.0, "projected": True},
    "optimism": {"optimism": 0.9, "optimism_steps": 8},
    "smoothness": {"smoothness": 0.5},
    "average": {"average": 0.2},
    "chain": {"chain": 3},
    "chunk": {"chunk": 2},
    "dropout": {"dropout": 0.1},
    "subset": {"subset": 1},
    "tau": {"tau": 0.03},
    "harmony": {"harmony": True},
    "imitation": {"imitation": 0.1},
    "returns of two rewards": {"n_step": 2},
    "rms": {"norm": "rms", "residual": True, "unit": True},
    "alike": {"norm": "rms", "residual": True, "actor_alike": True},
}
REFUSED = {("bmpc", "imitation"), ("modem_v2", "imitation"), ("bmpc", "returns of two rewards"),
           ("dreamer", "returns of two rewards"), ("cqn_as", "returns of two rewards")}  # whose returns are longer
every_part = pytest.mark.parametrize(
    "recipe, part", [(recipe, part) for recipe in KINDS for part, chosen in PARTS.items()
                     if chosen.keys() <= recipes.options(recipe).keys() and (recipe, part) not in REFUSED])


class OneBatch:
    """The same batch each time."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def sample(self, batch: int, horizon: int = 1, n_step: int = 1, discount: float = 0.99) -> Batch:
        whole = self.batch["reward"].ndim == (2 if horizon > 1 else 1)
        return self.batch if whole else {key: value[:batch, 0] for key, value in self.batch.items()}

    def renew(self, index: np.ndarray, source: np.ndarray, plan: np.ndarray) -> None:
        assert len(index) == len(plan)

    def prioritise(self, index: np.ndarray, source: np.ndarray, priority: np.ndarray) -> None:
        assert len(index) == len(priority)

    def reward_size(self) -> float:
        return float(np.abs(self.batch["reward"]).mean())

    def __len__(self) -> int:
        return len(self.batch["reward"])


def learn(agent: Agent, updates: int, replay: Replay | None = None) -> dict[str, float]:
    replay = random_replay() if replay is None else replay
    metrics: dict[str, torch.Tensor] = {}
    for _ in range(updates):
        metrics = agent.update(replay)
    return {name: float(value) for name, value in metrics.items()}


def weights(agent: Agent) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in agent.modules.state_dict().values()])


@every_recipe
def test_shapes_and_finiteness(recipe: str) -> None:
    agent = small(recipe)
    metrics = learn(agent, 5)
    assert "critic/loss" in metrics
    assert all(np.isfinite(value) for value in metrics.values()) and torch.isfinite(weights(agent)).all()
    assert agent.updates == 10
    for count in (1, 7):
        for explore in (False, True):
            action, carry = agent.act(np.zeros((count, OBS), np.float32), explore=explore)
            assert action.shape == (count, ACTION) and action.dtype == np.float32
            assert carry.shape == (count, *agent.execution.carry) if agent.execution.carry else carry is None
            assert (np.abs(action) <= 1).all()


@every_recipe
def test_loss_falls_on_a_fixed_batch(recipe: str) -> None:
    agent = small(recipe, lr=1e-3)
    batch = OneBatch(random_replay().sample(64, agent.schedule.horizon * agent.execution.length))
    agent.studies, agent._study_steps = (), []  # what the critics see stays too
    batch.batch["discount"] = np.zeros_like(batch.batch["discount"])  # the target then is the reward, which stays
    first = float(agent.update(batch)["critic/loss"])
    for _ in range(200):
        last = float(agent.update(batch)["critic/loss"])
    assert last < 0.5 * first


@every_recipe
def test_same_seed_same_weights(recipe: str) -> None:
    results = []
    for seed in (3, 3, 4):
        agent = small(recipe, seed=seed)
        learn(agent, 4)
        results.append((weights(agent), agent.act(np.ones((2, OBS), np.float32))[0]))
    assert torch.equal(results[0][0], results[1][0]) and np.array_equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


@every_recipe
def test_saved_loaded_and_continued_equals_never_stopped(recipe: str) -> None:
    continues(recipe)


@every_part
def test_every_part_learns_continues_and_leaves_acting_to_the_policy(recipe: str, part: str) -> None:
    agent = continues(recipe, dtype="float32", **PARTS[part])  # planners act in the learner's type, files do not
    assert torch.isfinite(weights(agent)).all()
    policy, obs = acting(agent), np.random.default_rng(0).normal(size=(6, OBS)).astype(np.float32)
    expected = first_action(policy, torch.as_tensor(obs)).numpy()
    np.testing.assert_allclose(agent.act(obs, explore=False)[0], expected, atol=1e-4 if policy.plans else 1e-6)
    assert {name.split(".")[0] for name in policy.state_dict()} <= {"latent", "actor", "execution"}


@every_part
def test_every_part_makes_a_difference(recipe: str, part: str) -> None:
    results = []
    for chosen in ({}, PARTS[part]):
        agent, replay = small(recipe, seed=1, **chosen), random_replay(prioritized=chosen.get("prioritized", 0.0))
        learn(agent, 3, replay)
        obs = np.ones((1, OBS), np.float32)
        results.append((weights(agent), np.array([agent.act(obs)[0] for _ in range(8)])))
    same = results[0][0].shape == results[1][0].shape and torch.equal(results[0][0], results[1][0])
    assert not same or not np.array_equal(results[0][1], results[1][1])


def continues(recipe: str, **chosen: Any) -> Agent:
    """An agent that was saved, loaded and continued is the one that was not, bit for bit, which it returns."""
    prioritized = chosen.get("prioritized", 0.0)
    straight, replay = small(recipe, seed=1, **chosen), random_replay(prioritized=prioritized)
    learn(straight, 3, replay)
    for _ in range(5):
        straight.act(np.ones((4, OBS), np.float32))
    file = io.BytesIO()
    torch.save({"agent": straight.state_dict(), "replay": replay.state_dict()["counters"].tolist()}, file)
    kept = {key: value.copy() for key, value in replay.state_dict().items()}
    resumed, again = small(recipe, seed=9, **chosen), Replay(10_000, OBS, ACTION, 0, prioritized, 2 * ACTION)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True)["agent"])
    again.load_state_dict(kept)
    for agent, data in ((straight, replay), (resumed, again)):
        learn(agent, 3, data)
    assert torch.equal(weights(straight), weights(resumed)) and straight.updates == resumed.updates
    obs = np.ones((4, OBS), np.float32)
    for _ in range(20):
        assert np.array_equal(straight.act(obs)[0], resumed.act(obs)[0])
    return straight


@every_recipe
def test_a_checkpoint_of_another_agent_is_refused(recipe: str) -> None:
    other = next(name for name in recipes.RECIPES if name != recipe)
    for stranger in (small(recipe, hidden=(16, 16)), small(other), small(recipe, normalize=False)):
        with pytest.raises((RuntimeError, ValueError), match=r"size|shape|key|Key"):
            small(recipe).load_state_dict(stranger.state_dict())


@every_recipe
def test_acting_and_the_policy_are_the_same_function(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = small(recipe)
    learn(agent, 3)
    policy, obs = acting(agent), np.random.default_rng(0).normal(size=(6, OBS)).astype(np.float32)
    action, _ = agent.act(obs, explore=False)
    near = 1e-4 if policy.plans else 1e-6
    np.testing.assert_allclose(action, first_action(policy, torch.as_tensor(obs)).numpy(), atol=near)
    if agent.shown is not agent.actor:  # a robot explores by what is exported, a simulator by what learns
        return
    stored_draws(monkeypatch)
    noise = torch.randn(6, policy.noise_size, generator=copy_of(agent.generator))
    action, _ = agent.act(obs, explore=True)
    np.testing.assert_allclose(action, first_action(policy, torch.as_tensor(obs), noise).numpy(), atol=near)


def acting(agent: Agent) -> Policy:
    """The policy that does what `act` does."""
    return agent.policy(planner=agent.plans)


def copy_of(generator: torch.Generator) -> torch.Generator:
    twin = torch.Generator()
    twin.set_state(generator.get_state())
    return twin


@every_recipe
def test_a_policy_is_frozen(recipe: str) -> None:
    agent = small(recipe)
    policy, obs = agent.policy(), torch.ones(1, OBS)
    before = first_action(policy, obs)
    learn(agent, 3)
    assert torch.equal(first_action(policy, obs), before)
    assert not any(parameter.requires_grad for parameter in policy.parameters())


@every_recipe
def test_every_lesson_comes_at_its_period(recipe: str) -> None:
    agent = small(recipe, updates_per_step=4)
    calls: list[tuple[int, ...]] = []
    agent._step = lambda due: lambda *args: calls.append(due) or {  # type: ignore[method-assign]
        "error": torch.zeros(1), "loss": torch.zeros(())}
    agent.update(random_replay())
    every = range(len(agent.lessons))
    assert calls == [tuple(i for i in every if n % agent.lessons[i].period == 0) for n in (1, 2, 3, 4)]
    assert agent.updates == 4 and calls[0][0] == 0  # the critics learn in each


@every_recipe
def test_prior_data_and_several_steps(recipe: str) -> None:
    single = issubclass(recipes.RECIPES[recipe].kind, (recipes.Planned, recipes.Dreamer))  # refuse others
    agent = small(recipe, n_step=1 if single else 3, batch=10)
    metrics = agent.update(Mixture(random_replay(seed=1), random_replay(seed=2), 0.5))
    assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("prioritized", [0.0, 0.6])
def test_a_loss_that_is_not_finite_stops_with_its_batch(prioritized: float) -> None:
    agent, replay = small("sac", prioritized=prioritized), Replay(1_000, OBS, ACTION, 0, prioritized)
    replay.begin(np.zeros(OBS))
    for step in range(200):
        replay.step(np.zeros(ACTION), 1e38 if step == 199 else 0.0, np.zeros(OBS), False, False)
    with pytest.raises(NotFinite, match=r"update \d+: critic/loss.* not finite") as caught:
        learn(agent, 1000, replay)
    assert caught.value.batch["reward"].max() > 1e37 and set(caught.value.batch) >= {"obs", "action", "next_obs"}


def test_weights_that_are_not_finite_give_no_action() -> None:
    agent = small("sac")
    learn(agent, 2)
    with torch.no_grad():
        next(agent.actor.parameters()).fill_(torch.nan)
    with pytest.raises(NotFinite, match=r"update \d+: the policy's action is") as caught:
        agent.act(np.zeros((1, OBS), np.float32))
    assert len(caught.value.batch["obs"]) == agent.schedule.batch


@pytest.mark.parametrize("recipe, chosen, words", [
    ("sac", {"hidden": 64}, r"sac: hidden is 64: Expected `array`, got `int`"),
    ("sac", {"hidden": [64, 0]}, r"hidden\[1\] is \[64, 0\]: Expected `int` >= 1"),
    ("default", {"lr": "x"}, r"lr is 'x': Expected `float`, got `str`"),
    ("default", {"lr": float("nan")}, r"lr is nan: Expected `float` > 0"),
    ("rlpd", {"n_step": 0}, r"n_step is 0: Expected `int` >= 1"),
    ("rlpd", {"updates_per_step": 0}, r"updates_per_step is 0"),
    ("rlpd", {"imitation_steps": 2.5}, r"imitation_steps is 2\.5: Expected `int`, got `float`"),
    ("maxinfo", {"models": 1}, r"models is 1: Expected `int` >= 2"),
    ("td3", {"discount": 2}, r"discount is 2: Expected `float` <= 1"),
    ("mrq", {"batch": True}, r"batch is True: Expected `int`, got `bool`"),
    ("sac", {"subset": 3}, r"subset is 3; it is between 1 and the 2 critics"),
    ("tdmpc2", {"smoothing": "wide"}, r"smoothing is 'wide'; it is none, gaussian"),
])
def test_options_of_another_type_or_range_are_refused(recipe: str, chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipes.make(recipe, OBS, ACTION, **chosen)
    assert recipes.make("sac", OBS, ACTION, batch=2e1).schedule.batch == 20  # as JSON may say it


@pytest.mark.parametrize("chosen, lengths", [
    ({"n_step": 3}, [3] * 8), ({"n_step": 3, "anneal": 6}, [3, 3, 2, 2, 1, 1, 1, 1]),
    ({"n_step": 3, "anneal": 4, "chunk": 2}, [3, 3, 2, 2, 2, 2, 2, 2])])  # of a chunk they are of its steps at least
def test_returns_shorten(chosen: dict[str, Any], lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    agent, replay, asked = small("sac", batch=10, **chosen), random_replay(), []
    sample = replay.sample

    def noted(batch: int, horizon: int = 1, n_step: int = 1, discount: float = 0.99) -> Batch:
        asked.append(n_step)
        return sample(batch, horizon, n_step, discount)
    monkeypatch.setattr(replay, "sample", noted)
    while agent.updates < 8:
        agent.update(replay)
    assert asked == lengths


def test_noise_is_held_for_less_and_less() -> None:
    agent, replay, longest = small("sac", batch=10, hold=4, anneal=16), random_replay(), []
    while agent.updates < 20:  # two in a step
        longest.append(agent.hold)
        agent.update(replay)
    assert longest == [4, 4, 3, 3, 2, 2, 1, 1, 1, 1]
    assert small("sac", hold=4).hold == 4


def test_an_update_counts_as_far_as_its_batch_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, replay, longest = small("sac", batch=40, hold=4, anneal=8), random_replay(), []
    sample = replay.sample

    def paying(*asked: Any) -> Batch:
        return sample(*asked) | {"reward": np.eye(40, dtype=np.float32)[0]}  # one in 40, and two would do
    monkeypatch.setattr(replay, "sample", paying)
    while agent.updates < 16:  # two in a step
        longest.append(agent.hold)
        agent.update(replay)
    assert longest == [4, 4, 3, 3, 2, 2, 1, 1]
    assert agent.blind == 8.0 and type(agent.blind) is float  # as a checkpoint can hold it


def test_nothing_shortens_before_the_first_reward() -> None:
    chosen = {"batch": 10, "hold": 4, "anneal": 16, "pessimism": 0.0}
    agent, replay = small("crossq", **chosen), Replay(50, OBS, ACTION)
    replay.begin(np.zeros(OBS))

    def shares(*agents: Agent) -> list[float]:
        return [16 * float(one.modules["reduction"].share()) for one in agents]

    def earn(reward: float) -> None:
        for _ in range(50):
            replay.step(np.zeros(ACTION), reward, np.zeros(OBS), False, False)
        learn(agent, 4, replay)  # two updates each

    earn(0.0)
    assert (agent.hold, agent.updates, shares(agent)) == (4, 8, [16])
    again = small("crossq", **chosen, seed=9)
    again.load_state_dict(agent.state_dict())
    for step in range(50):
        replay.step(np.zeros(ACTION), float(step % 2), np.zeros(OBS), False, False)
    assert [(learn(one, 2, replay), one.hold)[1] for one in (agent, again)] == [3, 3]
    assert shares(agent, again) == [13, 13]  # as the last of four updates had it
    earn(0.0)  # what it found once is forgotten
    assert agent.hold == 3 and shares(agent) == [12]


def test_averages_of_units_that_never_fire_become_zero_not_denormal() -> None:
    agent, replay = small("sac"), random_replay()
    averages = agent.optimisers["critic"].second
    with torch.no_grad():
        for net in agent.modules["critic"].modules():
            if isinstance(net, Mlp):
                net.layers()[0].bias.fill_(-1e3)
        for second in averages:
            second.fill_(1e-39)
    agent.update(replay)
    assert (averages[0] == 0).any() and not any(((second > 0) & (second < 1e-38)).any() for second in averages)


@pytest.mark.parametrize("options", [{}, {"residual": True}])
def test_only_biases_that_no_norm_takes_away_learn(options: dict[str, Any]) -> None:
    agent = small("crossq", **options)
    before = copy.deepcopy(agent.modules["critic"])
    learn(agent, 3)
    nets = [net for net in agent.modules["critic"].modules() if isinstance(net, Mlp)]
    for net, old in zip(nets, [net for net in before.modules() if isinstance(net, Mlp)], strict=True):
        same = [torch.equal(new.bias, was.bias) for new, was in zip(net.layers(), old.layers(), strict=True)]
        last = len(same) - 1
        assert same == [depth < last and not (options and depth % 2) for depth in range(last + 1)]


@pytest.mark.parametrize("recipe", ["sac", "mrq"])
def test_what_the_critics_were_wrong_about_is_drawn_more_often(recipe: str) -> None:
    agent = small(recipe, prioritized=1.0)
    replay = Replay(1_000, OBS, ACTION, 0, 1.0)
    replay.begin(np.zeros(OBS))
    for step in range(200):  # one reward in ten cannot be foreseen
        replay.step(np.zeros(ACTION), 50.0 * (step % 10 == 0), np.full(OBS, step % 10 / 10), False, False)
    learn(agent, 60, replay)
    drawn = replay.sample(2_000)["reward"]
    assert (drawn > 0).mean() > 0.2


@every_recipe
def test_bfloat16_learns_about_the_same(recipe: str) -> None:
    exact, rough = (small(recipe, dtype=dtype) for dtype in ("float32", "bfloat16"))
    for agent in (exact, rough):
        learn(agent, 5)
    difference = (weights(exact) - weights(rough)).abs().max()
    assert 0 < difference < 0.02


def test_unknown_names_are_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'sca'.*sac, default"):
        recipes.make("sca", OBS, ACTION)
    with pytest.raises(ValueError, match=r"no option lrate.*discount"):
        recipes.make("sac", OBS, ACTION, lrate=1)


@pytest.mark.parametrize("chosen, message", [
    ({"norm": "lyer"}, "norm is 'lyer'.*none, layer, rms, batch"),
    ({"support": "log"}, "support is 'log'.*symlog, linear"),
    ({"projected": True}, "projected.*categories"), ({"projected": True, "categories": 21}, "support linear.*symlog"),
    ({"norm": "batch"}, "crossq and default"), ({"average": 2.0}, r"average is 2\.0"), ({"chunk": 0}, "chunk is 0"),
    ({"subset": 3}, "subset is 3.*2 critics"), ({"shift": -1}, "shift is -1"), ({"encoder": "a.pt2"}, "no camera"),
    ({"chain": 0}, "chain is 0"), ({"hold": 0}, "hold is 0"), ({"anneal": -1}, "anneal is -1"),
    ({"optimism": 1.5}, r"optimism is 1\.5"), ({"returns": -1.0}, r"returns.*-1\.0")])
def test_values_that_make_no_sense_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("sac", **chosen)


def test_configuration_is_the_keyword_arguments() -> None:
    assert recipes.options("sac")["lr"] == 3e-4 and recipes.options("rlpd")["critics"] == 10
    assert "obs_size" not in recipes.options("sac")


def test_target_entropy_defaults() -> None:
    def target(agent: Agent) -> object:
        return agent.modules["temperature"].target_entropy

    assert target(small("sac")) == -ACTION and target(small("rlpd")) == -ACTION / 2
    assert target(small("rlpd", target_entropy=-0.1)) == -0.1


def test_without_a_compiler_it_learns_uncompiled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    compiled.warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"uncompiled.*g\+\+") as caught:
        agent = small("sac", compile=None)
    assert len(caught) == 1
    assert np.isfinite(learn(agent, 1)["critic/loss"])


@pytest.mark.slow
@pytest.mark.skipif(bool(compiled.missing_tools()), reason=f"cannot compile: {compiled.missing_tools()}")
@every_recipe
def test_compiled_learns_as_uncompiled_does(recipe: str) -> None:
    options: dict[str, Any] = {"dtype": "float32"}
    plain, fast = small(recipe, **options), small(recipe, compile=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a failed compilation only warns
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")  # the compiler's, where no one sees it
        for agent in (plain, fast):
            learn(agent, 3)
    torch.testing.assert_close(weights(plain), weights(fast), rtol=1e-3, atol=1e-4)
    obs = np.ones((2, OBS), np.float32)
    np.testing.assert_allclose(plain.act(obs)[0], fast.act(obs)[0], atol=1e-3)
    frozen = copy.deepcopy(fast.state_dict())
    learn(fast, 2, random_replay(seed=3))
    after = weights(fast)
    fast.load_state_dict(frozen)  # in place: the compiled steps go on with it
    learn(fast, 2, random_replay(seed=3))
    assert torch.equal(weights(fast), after)
