"""How many updates and plans a second: a world-model learner of ours against the public TD-MPC2, on the same sizes.

The contestants take turns in processes of their own, as in `bench`, whose program these processes run. The peer's code
is read where it lies, from the folder `tdmpc2` of a checkout (`common/` and `tdmpc2.py`); on a CPU with the name of its
one device changed as it is read. A plan is one decision for one observation, also of a learner whose actor makes it; an
update includes sampling for ours, and not for the peer, which is given one batch again and again.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import statistics
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robot_rl.learn.bench import ACTION, BATCH, OBS, machine, race

FILL, EPISODE = 10_000, 500  # transitions in our replay, and in an episode
KINDS = ("updates", "plans")


def bench(
    agent: str = "tdmpc2",
    repetitions: int = 5,
    seconds: float = 4.0,
    threads: int | None = None,
    device: str = "cpu",
    configuration: dict[str, Any] | None = None,
    peer: Path | None = None,
    peer_python: str = sys.executable,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Medians over `repetitions` turns of `seconds` s each.

    Keys: agent, device, parameters, `updates/...` and `plans/...` with per_s (name -> figure), ms (name -> each, ms),
    cpu_ms (name -> processor time of each, which other work on the machine disturbs less), ratio (ours by the peer's),
    missing (name -> why it did not run), repetitions; hours (steps -> what acting and learning would take in so many
    steps of an environment, by the time that passed and by the processor's); machine. Raises ValueError for a recipe
    without a world model, or a `peer` that is not such a folder or has no learner to compare.
    """
    from robot_rl.learn import recipes
    chosen = recipes.options(agent) | (configuration or {})
    if "horizon" not in chosen:
        raise ValueError(f"bench world: {agent} has no world model; tdmpc2 and dreamer have one")
    if peer is not None and not chosen.get("plan"):
        raise ValueError(f"--peer {peer}: it plans, which {agent} does not; tdmpc2 does")
    if peer is not None and not (peer / "tdmpc2.py").is_file():
        raise ValueError(f"--peer {peer}: no tdmpc2.py there; give the folder tdmpc2 of a checkout")
    figures: dict[str, Any] = {"agent": agent, "device": device}
    for kind in KINDS:
        shared = {"module": __name__, "kind": kind, "threads": threads, "agent": agent, "device": device,
                  "configuration": configuration or {}}
        requests = {"ours": shared} | ({} if peer is None else {"tdmpc2": shared | {
            "peer": str(peer.resolve()), "sizes": {name: chosen[name] for name in SIZES}}})
        turns, missing, facts = race(requests, repetitions, seconds, peer_python,
                                     lambda line, kind=kind: report(f"{kind}: {line}"), f"{kind}/s")  # type: ignore[misc]
        rates = {name: statistics.median(values) for name, values in turns.items()}
        figures["parameters"] = {name: fact["parameters"] for name, fact in facts.items() if fact}
        figures[f"{kind}/cpu_ms"] = {name: statistics.median(fact["cpu_ms"]) for name, fact in facts.items() if fact}
        figures |= {f"{kind}/per_s": rates, f"{kind}/ms": {name: 1000 / rate for name, rate in rates.items()},
                    f"{kind}/repetitions": turns}
        if "tdmpc2" in rates:
            figures[f"{kind}/ratio"] = rates["ours"] / rates["tdmpc2"]
        if missing:
            figures[f"{kind}/missing"] = missing
    figures["hours"] = {
        f"{steps:,}/{kind}": steps / 3.6e6 * (figures[f"plans/{kind}"]["ours"]
                                              + chosen["updates_per_step"] * figures[f"updates/{kind}"]["ours"])
        for steps in (100_000, 1_000_000) for kind in ("ms", "cpu_ms")}
    return figures | {"machine": machine()}


SIZES = {"width": "latent_dim", "critics": "num_q", "horizon": "horizon", "iterations": "iterations",
         "samples": "num_samples", "elites": "num_elites", "proposals": "num_pi_trajs", "dropout": "dropout",
         "categories": "num_bins", "simplex": "simnorm_dim", "hidden": "mlp_dim", "encoder_hidden": "enc_dim"}
"""What the peer calls our options; its layers are all of one width."""


def contestant(request: dict[str, Any]) -> tuple[Callable[[], int], dict[str, Any]]:
    """A function that makes one update or one plan, and the number of parameters."""
    return _ours(request) if request["name"] == "ours" else _peer(request)


def _ours(request: dict[str, Any]) -> tuple[Callable[[], int], dict[str, Any]]:
    import numpy as np

    from robot_rl.learn import recipes
    from robot_rl.replay import Replay

    agent = recipes.make(request["agent"], OBS, ACTION, **{"device": request["device"]} | request["configuration"])
    random, replay = np.random.default_rng(0), Replay(2 * FILL, OBS, ACTION, plan_size=agent.execution.plan_size)
    replay.begin(random.normal(size=OBS))
    for step in range(FILL):
        ends = step % EPISODE == EPISODE - 1
        replay.step(random.uniform(-1, 1, ACTION), random.normal(), random.normal(size=OBS), False, ends)
        if ends:
            replay.begin(random.normal(size=OBS))
    obs, carry = random.normal(size=(1, OBS)).astype(np.float32), None

    def update() -> int:
        metrics = agent.update(replay)
        float(metrics["critic/loss"])  # it is done
        return agent.schedule.updates_per_step

    def plan() -> int:
        nonlocal carry
        _, carry = agent.act(obs, carry)
        return 1

    learned = ("latent", "actor", "critic")
    count = sum(value.numel() for name in learned for value in agent.modules[name].parameters())
    return update if request["kind"] == "updates" else plan, {"parameters": count}


class _Elsewhere(importlib.abc.MetaPathFinder):
    """Finds the peer's modules in its folder."""

    def __init__(self, folder: Path, device: str):
        self.folder, self.device = folder, device

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
                  ) -> importlib.machinery.ModuleSpec | None:
        """The module's place, where it is one of the peer's."""
        place = self.folder.joinpath(*fullname.split("."))
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if not file.is_file():
            return None
        loader = _Changed(fullname, str(file), self.device)
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)


class _Changed(importlib.machinery.SourceFileLoader):
    """A source file that names another device."""

    def __init__(self, name: str, path: str, device: str):
        super().__init__(name, path)
        self.device = device

    def get_code(self, fullname: str) -> types.CodeType:
        """Compiled from the changed text; nothing is kept beside the file."""
        text = Path(self.path).read_text().replace("cuda:0", self.device)
        return compile(text, self.path, "exec")


def _peer(request: dict[str, Any]) -> tuple[Callable[[], int], dict[str, Any]]:
    import torch

    folder, device = Path(request["peer"]), {"cuda": "cuda:0"}.get(request["device"], request["device"])
    sys.meta_path.insert(0, _Elsewhere(folder, device))
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    sizes = {theirs: request["sizes"][ours] for ours, theirs in SIZES.items()}
    sizes |= {name: sizes[name][0] for name in ("mlp_dim", "enc_dim")}
    # the values of its configuration file that are no sizes
    config = types.SimpleNamespace(
        task="cheetah-run", obs="state", episodic=False, multitask=False, task_dim=0, num_enc_layers=2, mpc=True,
        reward_coef=0.1, value_coef=0.1, termination_coef=1.0, consistency_coef=20.0, rho=0.5, lr=3e-4,
        enc_lr_scale=0.3, grad_clip_norm=20.0, tau=0.01, discount_denom=5, discount_min=0.95, discount_max=0.995,
        min_std=0.05, max_std=2.0, temperature=0.5, log_std_min=-10.0, log_std_max=2.0, entropy_coef=1e-4, vmin=-10.0,
        vmax=10.0, bin_size=20.0 / (sizes["num_bins"] - 1), episode_length=EPISODE, batch_size=BATCH, action_dim=ACTION,
        obs_shape={"state": (OBS,)}, compile=True, num_channels=32, **sizes)
    config.get = lambda name, default=None: getattr(config, name, default)
    agent = importlib.import_module("tdmpc2").TDMPC2(config)
    shape = config.horizon, BATCH
    drawn = (torch.randn(shape[0] + 1, BATCH, OBS), torch.rand(*shape, ACTION) * 2 - 1, torch.randn(*shape, 1),
             torch.zeros(*shape, 1))
    batch = [one.to(device) for one in drawn]
    obs = torch.randn(OBS)

    def update() -> int:
        float(agent._update(*batch)["total_loss"])
        return 1

    def plan() -> int:
        agent.act(obs)
        return 1

    count = sum(value.numel() for value in agent.model.parameters() if value.requires_grad)
    return update if request["kind"] == "updates" else plan, {"parameters": count}
