"""The assembly half of the command line: joins environment, agent, replay and robot, and runs them.

The worlds meet here and in cli.py only, inside the functions that need them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from robot_rl import __version__
from robot_rl.finite import rescue
from robot_rl.run import Run, RunConfig
from robot_rl.spec import PolicySpec, SpecError

if TYPE_CHECKING:
    from hardware.deploy import BusOptions
    from robot_rl.evaluate import Act
    from robot_rl.learn.agent import Agent
    from robot_rl.replay import Replay

PRIOR_CAPACITY = 500_000  # rows
SEEN_CAPACITY = 50_000  # of frames
APART = ("seed", "device")  # options of every recipe that the command line has words of its own for


def options(recipe: str, settings: Iterable[str], among: Container[str] | None = None) -> dict[str, Any]:
    """NAME=VALUE settings as keyword arguments of a recipe; values are JSON, other text is taken as it is.

    Only names `among` these are taken, where some are given.
    """
    from robot_rl.learn import recipes
    known = [name for name in recipes.options(recipe) if name not in APART and (among is None or name in among)]
    chosen = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise SpecError(f"--set {setting}: {recipe} takes NAME=VALUE with NAME one of {', '.join(known)}")
        try:
            chosen[name] = json.loads(text)
        except json.JSONDecodeError:
            chosen[name] = text
    return chosen


def train(run: Run, config: RunConfig, device: str, threads: int, resume: bool) -> dict[str, Any]:
    """Train or continue a run; returns the last evaluation."""
    import sim
    from robot_rl.collect import Collector
    from robot_rl.learn import checkpoint
    from robot_rl.log import Log
    from robot_rl.parallel import Parallel
    from robot_rl.replay import Ratio
    from robot_rl.train import Plan, Training
    from sim.remote import RemoteEnv
    use_threads(threads)
    try:
        ratio = Ratio.parse(str(config.prior_ratio))
    except ValueError as error:
        raise SpecError(f"--prior-ratio {config.prior_ratio}: {error}") from error
    if config.envs < 1:
        raise SpecError(f"--envs {config.envs}: there is at least 1 environment")
    if config.offline_updates and (config.prior is None or config.offline_updates < 0):
        raise SpecError(f"--offline-updates {config.offline_updates}: at least 0, and with --prior, which is "
                        f"{config.prior or 'not given'}")
    extra: dict[str, Any] = {}
    if config.latency is not None:
        extra["latency"] = run.latency if resume else Path(config.latency)
    make = partial(sim.make, config.task, config.robot, config.action_repeat, **extra)
    env, evaluation = make(), make()
    contract = sim.env_spec(env, config.task)
    state = checkpoint.load(run.checkpoint) if resume and run.checkpoint.exists() else None
    if state is not None and "collector" not in state:
        raise SpecError(f"--resume {run.folder}: it was fine-tuned; robot-rl finetune with --out {run.folder} goes on")
    config = _renewed(run, config) if resume else suited(config, contract)
    agent = make_agent(config, contract, device)
    prior = None if config.prior is None else _memory(
        agent, config, contract, SEEN_CAPACITY if contract.vision else PRIOR_CAPACITY, config.seed + 1)
    replay = _memory(agent, config, contract, min(config.capacity, 2 * config.steps + 1_000), config.seed)
    _demand_memory(replay, prior)
    if prior is not None and state is None:  # a checkpoint holds what the bags said when the run began
        _read_prior(prior, config, contract)
    _demand_sequences(agent, contract, prior if state is None else None, config.prior)
    if state is None and prior is not None and config.offline_updates and len(prior) < agent.schedule.batch:
        raise SpecError(f"--prior {config.prior}: its bags gave {len(prior)} transitions, --offline-updates "
                        f"{config.offline_updates} learns from {agent.schedule.batch} of them at a time; give more, or "
                        "choose --set batch=N")
    if not resume:
        env.reset(seed=config.seed)  # the first picture, where there is one, may have nothing to draw it
        run.create(config, contract)  # once nothing of it can be refused any more
    else:
        run.write(config)
    remote = [RemoteEnv(make) for _ in range(config.envs if config.envs > 1 else 0)]
    random = 0 if config.offline_updates else config.learn_after
    collector = (Parallel(remote, contract.action_size, agent, replay, config.seed, random) if remote else
                 Collector(env, agent, replay, config.seed, random))
    plan = Plan(config.steps, config.learn_after, config.evaluate_every, config.evaluation_episodes,
                config.checkpoint_every, offline_updates=config.offline_updates)
    log = Log(run.folder, (state["collector"]["steps"] or state["offline"] - config.offline_updates)
              if state else 0)
    training = Training(collector, agent, evaluation, plan, log,
                        lambda state: checkpoint.save(run.checkpoint, state | {"recipe": config.recipe}), prior,
                        ratio)
    if state:
        with fitting(run.checkpoint, state, config):
            training.load_state_dict(state)
        del state  # the file that it is mapped to is to go when the next one is written
    try:
        with rescue(run.folder):
            figures = training.run()
    finally:
        log.close()
        for one in remote:
            one.close()
    return {"run": str(run.folder), "task": config.task} | figures


def suited(config: RunConfig, contract: PolicySpec) -> RunConfig:
    """A new run's configuration, with all of its recipe's options, and a discount that suits its episodes.

    Recipes with a discount of their own keep it.
    """
    from robot_rl.learn import recipes
    from robot_rl.learn.options import Options
    from robot_rl.train import discount_for
    every = {name: value for name, value in recipes.options(config.recipe).items() if name not in APART}
    config = msgspec.structs.replace(config, defaults=every)
    if config.defaults["discount"] != Options.discount:
        return config
    horizon = discount_for(round(contract.time_limit_s * contract.rate_hz))
    return msgspec.structs.replace(config, options={"discount": horizon} | config.options)


def _memory(agent: Agent, config: RunConfig, contract: PolicySpec, capacity: int, seed: int) -> Replay:
    """A memory that draws what the agent's critics were wrong about, holds its plans and smooths rewards, as asked."""
    from robot_rl.frames import memory_for
    from robot_rl.smoothing import Smoothing
    return memory_for(contract, capacity, seed, agent.schedule.prioritized, agent.execution.plan_size,
                      Smoothing.parse(_chosen(config).get("smoothing", "none")))


def _chosen(config: RunConfig) -> dict[str, Any]:
    """Every option of a run's recipe, as the run has it: asked for, or as it was when the run began."""
    from robot_rl.learn import recipes
    known = recipes.options(config.recipe)
    begun = {name: value for name, value in config.defaults.items() if name in known}  # others have gone since
    return {name: value for name, value in (known | begun | config.options).items() if name not in APART}


def _renewed(run: Run, config: RunConfig) -> RunConfig:
    """`config` with the options that its recipe did not have when the run began, if it says which it had; says so."""
    every = _chosen(config)
    new = every.keys() - config.defaults.keys() - config.options.keys() if config.defaults else set()
    if new:
        told = ", ".join(f"{name}={every[name]}" for name in sorted(new))
        print(f"{run.folder}: began before {config.recipe} had these options, and goes on with them: {told}",
              file=sys.stderr)
    return msgspec.structs.replace(config, defaults=config.defaults | {name: every[name] for name in new})


def _read_prior(prior: Replay, config: RunConfig, contract: PolicySpec) -> None:
    """Fill the memory of a configuration's bags. Raises SpecError where these give nothing."""
    from robot_rl.finetune import bags_in, fill
    steps, refused = fill(prior, bags_in(Path(str(config.prior))), contract)
    _demand_steps("train", f"--prior {config.prior}", steps, refused, contract)


def _demand_steps(command: str, source: str, steps: int, refused: list[str], contract: PolicySpec) -> None:
    """Say which bags were left out; raise SpecError where the others gave nothing."""
    for line in refused:
        print(f"{command}: left out: {line}", file=sys.stderr)
    if not steps:
        raise SpecError(f"{source}: none of its bags gave a transition to {contract.task}")


def _demand_memory(*memories: Replay | None) -> None:
    """Raise SpecError unless they fit together, once each does alone; none of them has been filled yet."""
    from robot_rl import memory
    held = [one for one in memories if one is not None]
    try:
        memory.demand(sum(one.nbytes for one in held), f"replay: {' and '.join(f'{one.capacity:,}' for one in held)} "
                                                       "rows")
    except ValueError as error:
        raise SpecError(str(error)) from error


def _demand_sequences(agent: Agent, contract: PolicySpec, prior: Replay | None, source: Any) -> None:
    """Raise SpecError unless episodes, and the prior data where it is given, hold what the agent learns from."""
    steps = round(contract.time_limit_s * contract.rate_hz)
    if 0 < steps < agent.horizon:
        raise SpecError(f"horizon: the learner's sequences have {agent.horizon} steps, an episode of {contract.task} "
                        f"at most {steps}; choose a shorter one with --set horizon=N")
    if prior is not None and len(prior) and prior.longest < agent.horizon:
        raise SpecError(f"{source}: the longest unbroken run in these bags has {prior.longest} steps, the learner's "
                        f"sequences have {agent.horizon}; record longer ones, or choose --set horizon=N")


def evaluate(policy: Path, episodes: int, robot: str | None, seed: int, gap: str, action_repeat: int,
             latency: Path | None = None) -> dict[str, Any]:
    """Evaluate an exported policy, or a run's newest checkpoint, in simulation."""
    import sim
    from robot_rl.collect import Greedy
    from robot_rl.evaluate import evaluate as run_episodes
    extra: dict[str, Any] = {}
    act: Act
    if gap:
        from sim.randomize import Gap
        extra["gap"] = replace(Gap.parse(gap), seed=seed)
    if latency is not None:
        extra["latency"] = latency
    if policy.is_dir():
        run = Run(policy)
        agent, config, _ = load_agent(run)
        contract, act = run.contract, Greedy(agent)
        robot, action_repeat = robot or config.robot, config.action_repeat
    else:
        from robot_rl.policy import Policy
        loaded = Policy(policy)
        contract, act = loaded.spec, loaded
        action_repeat = loaded.spec.trained.get("action_repeat", action_repeat)
    env = sim.make(contract.task, robot, action_repeat, **extra)
    return {"task": contract.task} | run_episodes(env, act, episodes, seed)


def export(folder: Path, out: Path, planner: bool = False, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Export a run's newest checkpoint; returns the file and the largest difference to torch.

    `changes` are NAME=VALUE settings by which its planner searches in place of those it was trained with.
    """
    from robot_rl.learn.options import SEARCHES
    run = Run(folder)
    if changes and not planner:
        raise SpecError(f"--set {changes[0]} without --planner: a network without one has nothing left to set")
    agent, config, steps = load_agent(run, options(run.config.recipe, changes, SEARCHES))
    return {"policy": str(out)} | write_policy(agent, stamped(run.contract, config, steps, agent), out, planner)


def write_policy(agent: Agent, contract: PolicySpec, out: Path, planner: bool = False, guided: bool = False
                 ) -> dict[str, Any]:
    """One ONNX file from an agent, or from its `planner` or guide, checked against torch, renamed into place."""
    from robot_rl.learn.export import export as write
    policy = agent.policy(planner, guided)
    difference = write(policy, contract.observation_size, policy.noise_size, contract.to_json(), out,
                       contract.frames, carry=policy.carry)
    return {"largest_difference": difference, "bytes": out.stat().st_size}


def stamped(contract: PolicySpec, config: RunConfig, steps: int, agent: Agent) -> PolicySpec:
    """The contract with where the policy comes from, and how it explores by now."""
    trained = {"recipe": config.recipe, "options": _chosen(config), "seed": config.seed,
               "steps": steps, "hold": agent.hold, "action_repeat": config.action_repeat, "robot_rl": __version__}
    return msgspec.structs.replace(contract, trained=trained)


def make_agent(config: RunConfig, contract: PolicySpec, device: str = "auto") -> Agent:
    """The agent that a configuration asks for."""
    import torch

    from robot_rl.learn import recipes
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return recipes.make(config.recipe, contract.observation_size, contract.action_size, contract.frames,
                        **_chosen(config) | {"seed": config.seed, "device": where})


def acting(task: str, recipe: str) -> Agent:
    """An untrained agent of a recipe for a task, on one CPU thread."""
    import sim
    from robot_rl.learn import recipes
    use_threads(1)
    contract = sim.env_spec(sim.make(task), task)
    return recipes.make(recipe, contract.observation_size, contract.action_size, contract.frames)


def camera_policy(out: Path, cameras: int) -> Path:
    """An untrained policy of the default recipe that sees through so many VGA cameras at 30 Hz, for benchmarks."""
    import sim
    from robot_rl.spec import mjcf_file
    use_threads(1)
    contract, robot = sim.task_spec("so101-lift-camera")
    assert contract.robot is not None and contract.vision is not None
    known = contract.vision.cameras
    if not 1 <= cameras <= len(known):
        raise SpecError(f"--cameras {cameras}: {contract.robot.robot} has {len(known)} ({mjcf_file(robot)})")
    larger = tuple(msgspec.structs.replace(c, width=640, height=480, rate_hz=30.0) for c in contract.robot.cameras)
    contract = msgspec.structs.replace(contract, robot=msgspec.structs.replace(contract.robot, cameras=larger),
                                       vision=msgspec.structs.replace(contract.vision, cameras=known[:cameras]))
    config = RunConfig(task=contract.task, recipe="default", steps=0, learn_after=0, evaluate_every=0,
                       evaluation_episodes=0, checkpoint_every=0)
    agent = make_agent(config, contract, "cpu")
    write_policy(agent, stamped(contract, config, 0, agent), out)
    return out


def load_agent(run: Run, changes: Mapping[str, Any] | None = None) -> tuple[Agent, RunConfig, int]:
    """A run's agent at its newest checkpoint, its configuration and its steps. Raises SpecError without one.

    `changes` are options in place of the run's.
    """
    from robot_rl.learn import checkpoint
    config = msgspec.structs.replace(run.config, options=run.config.options | dict(changes or {}))
    if not run.checkpoint.exists():
        raise SpecError(f"{run.checkpoint}: no checkpoint yet")
    state = checkpoint.load(run.checkpoint)
    config = _renewed(run, config)
    agent = make_agent(config, run.contract, "cpu")
    with fitting(run.checkpoint, state, config):
        agent.load_state_dict(state["agent"])
    return agent, config, state["collector"]["steps"] if "collector" in state else state["episodes"]


@contextmanager
def fitting(checkpoint: Path, state: dict[str, Any], config: RunConfig) -> Iterator[None]:
    """Load `state` inside; a checkpoint of another recipe, or of other sizes, is a SpecError that names both."""
    if state["recipe"] != config.recipe:
        raise SpecError(f"{checkpoint}: a checkpoint of recipe {state['recipe']}, the run is of {config.recipe}")
    try:
        yield
    except (KeyError, RuntimeError, ValueError) as error:
        raise SpecError(f"{checkpoint}: does not fit {config.recipe} {json.dumps(config.options)}: "
                        f"{' '.join(str(error).split())}") from error


def use_threads(threads: int) -> None:
    """Bound the learner's CPU threads; 0 means one for each core this process may use."""
    import torch
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


class ServedRobot:
    """A policy process that runs an episode when asked, on whatever robot is on the bus. A context manager.

    `cameras` are recorded where the policy learns from them.
    """

    def __init__(self, policy: Path, robot: str, bags: Path, where: BusOptions, seed: int, cameras: bool,
                 acknowledged: bool) -> None:
        from hardware.bus import EVENTS
        from robot_rl.steplog import TEXT_TYPE
        command = [sys.executable, "-m", "robot_rl.cli", "deploy", str(policy), "--robot", robot, "--serve",
                   "--explore", "--record", str(bags), "--seed", str(seed), *where.arguments()]
        command += [] if cameras else ["--no-cameras"]
        command += ["--acknowledge-no-watchdog"] if acknowledged else []
        self._bus = where.connect("learner")
        self._bags = self._bus.reader("recorder/bag", TEXT_TYPE, EVENTS)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> ServedRobot:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "deploy: ready" in line:
                return self
        raise SpecError(f"the policy process ended with status {self._process.wait()} before it was ready")

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._bus.close()

    def run_episode(self) -> tuple[dict[str, Any], Path]:
        """One episode: its result and its bag. Raises TimeoutError when robot, policy or recorder do not answer."""
        from hardware.deploy import RUN_SERVICE
        done, said = self._bus.call(RUN_SERVICE, 120.0)
        if not done:
            raise TimeoutError(said)
        result = json.loads(said)
        return result, self._bag(result["episode"])

    def reload(self) -> None:
        """Swap the exported file into the running process."""
        done, said = self._bus.call("policy/reload", 20.0)
        if not done:
            raise SpecError(f"the policy process refused the new policy: {said}")

    def _bag(self, episode: int, timeout_s: float = 10.0) -> Path:
        from robot_rl.steplog import read_info
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for sample in self._bags.take():
                told = read_info(sample.data)
                if told["episode"] == episode:
                    return Path(told["bag"])
            time.sleep(0.005)
        raise TimeoutError(f"the recorder did not finish the bag of episode {episode} within {timeout_s:g} s")


def finetune(source: Path, robot: str, data: Path | None, *, episodes: int, minutes: float, out: Path, repeats: int,
             warm_updates: int, learn_after: int, ratio: float, hindsight: int, changes: list[str], where: BusOptions,
             seed: int, threads: int, acknowledged: bool = False) -> dict[str, Any]:
    """Fine-tune a run on a robot; the new run in `out` continues where it broke off when it exists.

    `policy.onnx` there is what was learned. Where a planner takes over from what was cloned, `acting.onnx` is what runs
    on the robot: a guide takes its share by whole episodes.
    """
    from robot_rl.finetune import Finetuning, bags_in
    from robot_rl.learn import checkpoint
    from robot_rl.log import Log
    from robot_rl.spec import load_robot
    use_threads(threads)
    origin, run = Run(source), Run(out)
    resuming = run.checkpoint.exists()
    going = run if resuming else origin
    begun, state = going.config, checkpoint.load(going.checkpoint)
    base = _renewed(going, begun)
    if resuming:
        run.write(base)
    config = msgspec.structs.replace(base, options=base.options | options(base.recipe, changes))
    contract = origin.contract.on(load_robot(robot), f"run {source}")
    agent = make_agent(config, contract)
    prior, online = (_memory(agent, config, contract, SEEN_CAPACITY if contract.vision else capacity, seed + k)
                     for k, capacity in enumerate((PRIOR_CAPACITY, 200_000)))
    _demand_memory(prior, online)
    with fitting(going.checkpoint, state, config):
        agent.load_state_dict(state["agent"])
    policy, takes_over = run.folder / "policy.onnx", agent.plans and bool(agent.offline)
    acting = run.folder / "acting.onnx" if takes_over else policy

    def write(out: Path, planner: bool, guided: bool = False) -> None:
        write_policy(agent, stamped(contract, config, tuning.episodes, agent), out, planner, guided)

    def write_both() -> None:
        planner = agent.plans and not agent.unmodelled
        write(policy, planner)
        if takes_over:
            guided = agent.guided()
            write(acting, planner and not guided, guided)

    def save(state: dict[str, Any]) -> None:
        checkpoint.save(run.checkpoint, state | {"recipe": config.recipe})

    tuning = Finetuning(agent, prior, online, None, write_both, save, None,  # type: ignore[arg-type]
                        ratio, repeats, warm_updates, hindsight, seed, learn_after)
    loaded = 0
    if resuming:
        tuning.load_state_dict(state)
        del state  # the file that it is mapped to is to go when the next one is written
        print(f"finetune: {out} is continued after episode {tuning.episodes}; {len(prior):,} steps of bags are in its "
              f"checkpoint{', --data is not read again' if data else ''}", file=sys.stderr)
    else:
        if data:
            loaded, refused = tuning.load(bags_in(data), contract)
            _demand_steps("finetune", f"--data {data}", loaded, refused, contract)
        _demand_sequences(agent, contract, prior, data)
        run.demand_new()
    log = tuning.log = Log(run.folder, tuning.episodes)
    if takes_over:
        write(acting, planner=True)  # a plan has to be in time before a clone moves anything
    else:
        write_both()
    began = time.monotonic()
    served_by = ServedRobot(acting, robot, run.folder / "bags", where, seed, bool(contract.vision), acknowledged)
    with served_by as served, rescue(run.folder):
        if takes_over:
            write_both()
            served.reload()
        if not resuming:
            run.create(config, contract)  # once nothing of it can be refused any more, as a plan that takes too long
        tuning.robot = served
        figures = tuning.run(episodes, minutes * 60)
    log.close()
    return {"run": str(out), "policy": str(policy), "prior_transitions": len(prior), "prior_loaded": loaded,
            "seconds": time.monotonic() - began} | figures
