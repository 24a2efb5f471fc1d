"""How much of the environment's own speed is left when its steps are collected: `Collector` against bare `env.step`.

One process and one core for each: the suite's environment by itself, with random actions drawn beforehand; the
collector with random actions; the collector with a policy acting. These three take turns. Then one policy in several
environments at once, and collectors with random actions in several processes, each with a replay of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from robot_rl.collect import Agent, Collector
from robot_rl.frames import memory_for
from robot_rl.parallel import Parallel
from sim import env_spec, make
from sim.remote import RemoteEnv

CAPACITY = 100_000  # rows of each replay
ACTIONS = 1_000  # drawn for the bare environment
FOREVER = 2**62
_collector: Collector | None = None  # of a process of the last kind


def bench(task: str, agent: Agent | None = None, seconds: float = 1.0, repetitions: int = 5, processes: int = 0,
          report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Medians of `repetitions` turns of `seconds` s; without an `agent` no policy acts; 0 processes: one a core.

    Keys: task, steps_per_s (bare, random, policy, envs, parallel -> steps/s; parallel is the sum of processes, envs
    those of one policy as `train --envs` runs them), share (random, policy -> of bare), processes, repetitions (name ->
    steps/s of each turn).
    """
    steps: dict[str, Callable[[], object]] = {"bare": bare(task), "random": collector(task).step}
    if agent is not None:
        steps["policy"] = collector(task, agent).step
    for step in steps.values():
        rate(step, min(seconds, 0.5))
    turns: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repetitions):
        for name, step in steps.items():
            turns[name].append(rate(step, seconds))
            report(f"turn {turn + 1}/{repetitions} {task} {name}: {turns[name][-1]:,.0f} steps/s")
    processes = processes or len(os.sched_getaffinity(0))
    if agent is not None:
        turns["envs"] = together(task, agent, processes, seconds, repetitions)
        report(f"{task}, {processes} environments of one policy: {statistics.median(turns['envs']):,.0f} steps/s")
    turns["parallel"] = parallel(task, processes, seconds, repetitions)
    report(f"{task}, {processes} processes: {statistics.median(turns['parallel']):,.0f} steps/s")
    rates = {name: statistics.median(values) for name, values in turns.items()}
    share = {name: rates[name] / rates["bare"] for name in steps if name != "bare"}
    return {"task": task, "steps_per_s": rates, "share": share, "processes": processes, "repetitions": turns}


def rate(step: Callable[[], object], seconds: float) -> float:
    """Calls a second over `seconds` s."""
    count, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        for _ in range(100):  # so that looking at the clock does not count
            step()
        count += 100
    return count / elapsed


def bare(task: str) -> Callable[[], object]:
    """A step of the suite's own environment, reset when its episode ends."""
    suite, _, name = task.partition(":")
    if suite == "dmc":
        return _bare_dmc(make(task), name)
    env = gymnasium.make(name, disable_env_checker=True) if suite == "gym" else make(task)
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    actions = np.random.default_rng(0).uniform(env.action_space.low, env.action_space.high,
                                               (ACTIONS, *env.action_space.shape)).astype(env.action_space.dtype)
    env.reset(seed=0)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        _, _, terminated, truncated, _ = env.step(actions[count % ACTIONS])
        if terminated or truncated:
            env.reset()

    return step


def _bare_dmc(known: gymnasium.Env, name: str) -> Callable[[], object]:
    """Of dm_control; `known` is the same task as ours, which has checked the name."""
    from dm_control import suite
    env = suite.load(*name.split("-", 1), task_kwargs={"random": 0})
    low, high = env.action_spec().minimum, env.action_spec().maximum
    actions = np.random.default_rng(0).uniform(low, high, (ACTIONS, *(known.action_space.shape or ())))
    env.reset()
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if env.step(actions[count % ACTIONS]).last():
            env.reset()

    return step


def collector(task: str, agent: Agent | None = None) -> Collector:
    """A collector into a replay of its own; without an agent it acts at random for ever."""
    env = make(task)
    replay = memory_for(env_spec(env, task), CAPACITY)
    return Collector(env, agent, replay, 0, FOREVER if agent is None else 0)  # type: ignore[arg-type]


def together(task: str, agent: Agent, processes: int, seconds: float, repetitions: int) -> list[float]:
    """Steps a second of one policy in so many environments at once, for each turn of `seconds` s."""
    env = make(task)
    spec = env_spec(env, task)
    remote = [RemoteEnv(partial(make, task)) for _ in range(processes)]
    step = Parallel(remote, spec.action_size, agent, memory_for(spec, CAPACITY), 0, 0).step
    try:
        rate(step, min(seconds, 0.5))
        return [rate(step, seconds) for _ in range(repetitions)]
    finally:
        for one in remote:
            one.close()


def parallel(task: str, processes: int, seconds: float, repetitions: int) -> list[float]:
    """Steps a second of so many processes together, for each turn of `seconds` s."""
    with multiprocessing.get_context("spawn").Pool(processes, _start, (task,)) as pool:
        pool.map(_turn, [min(seconds, 0.5)] * processes, chunksize=1)
        return [sum(pool.map(_turn, [seconds] * processes, chunksize=1)) for _ in range(repetitions)]


def _start(task: str) -> None:
    global _collector
    _collector = collector(task)


def _turn(seconds: float) -> float:
    assert _collector is not None
    return rate(_collector.step, seconds)
