"""How many updates a second: an agent of ours against Stable-Baselines3, sbx and its authors' own code, in one run.

Each contestant lives in a process of its own, because thread pools disturb each other, and they take turns, so that a
busy machine slows all of them. An update is one of critics, actor and temperature, replay sampling included.
This file also is the program of such a process; there it needs only the standard library and the contestant.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

OBS, ACTION, BATCH, HIDDEN = 17, 6, 256, (256, 256)  # the sizes of HalfCheetah
FILL = 10_000  # random transitions in each replay
WARM = 10.0  # seconds after which the first few calls need not be six
PEERS = ("sb3", "sbx", "sbx_20")  # sbx_20: 20 updates a call, the actor updated once in them
COUNTERPARTS = {
    "sac": {"sb3": "SAC", "sbx": "SAC", "sbx_20": "SAC"},
    "td3": {"sb3": "TD3", "sbx": "TD3", "sbx_20": "TD3"},
    "tqc": {"sbx": "TQC", "sbx_20": "TQC"},
    "crossq": {"sbx": "CrossQ", "sbx_20": "CrossQ"},
}
"""What a peer calls the same learner; any other recipe of ours is measured against nobody."""
WIDE = (1024, 1024)  # CrossQ's critics
MODELLED = ("mrq", "mrq_small")
"""Of MR.Q's kind, as wide as they are."""
PERIOD = 5
"""Updates between MR.Q's targets here, ours and theirs, in place of 250, so that a turn has whole periods; in each the
model gets as many batches as the critics, as ever."""


class Public(NamedTuple):
    """Public code that is no package, of which the user gives a checkout."""

    recipes: tuple[str, ...]
    """Ours of the same shape."""
    where: str
    updates: int
    """In a call: those of an environment step, or a period."""


PUBLIC = {
    "rlpd": Public(("rlpd",), "ikostrikov/rlpd", 4),
    "mrq": Public(MODELLED, "facebookresearch/MRQ", PERIOD),
    "xqc": Public(("default",), "danielpalenicek/xqc", 2),
}


def bench(
    agent: str = "sac",
    repetitions: int = 5,
    seconds: float = 4.0,
    threads: int | None = None,
    peers: tuple[str, ...] = PEERS,
    peer_python: str = sys.executable,
    report: Callable[[str], None] = lambda line: None,
    checkouts: Mapping[str, str] = MappingProxyType({}),
    **configuration: Any,
) -> dict[str, Any]:
    """Medians over `repetitions` turns of `seconds` s each.

    Keys: agent, updates_per_s, peers (name -> updates/s), ratio (name -> ours / theirs), cpu_ms (name -> processor time
    of an update over all threads, which other work on the machine disturbs less), missing (name -> why a peer did not
    run), repetitions (name -> updates/s of each turn), machine. `threads` limits everybody to so many cores and
    threads (None: as each library chooses); `peer_python` is the interpreter that has the peers installed; `checkouts`
    are folders of PUBLIC ones by name; `configuration` goes to our recipe.
    """
    from robot_rl.learn.recipes import options
    counterparts = COUNTERPARTS.get(agent, {})
    shared: dict[str, Any] = {"agent": agent, "threads": threads, "configuration": configuration}
    rivals = {name: shared | {"class": counterparts[name]} for name in peers if name in counterparts}
    missing = {name: f"it has no {agent}" for name in (*peers, *checkouts) if name not in rivals}
    for name, public in PUBLIC.items():
        if agent in public.recipes and name in checkouts:
            del missing[name]
            rivals[name] = shared | {"module": "robot_rl.learn.bench_public", "path": checkouts[name],
                                     "updates": public.updates, "options": options(agent) | configuration}
        elif agent in public.recipes:
            missing[name] = f"no checkout of {public.where} was given"
    turns, failed, facts = race({"ours": shared} | rivals, repetitions, seconds, peer_python, report, "updates/s")
    missing |= failed
    rates = {name: statistics.median(values) for name, values in turns.items()}
    ours = rates.pop("ours")
    return {
        "agent": agent,
        "updates_per_s": ours,
        "peers": rates,
        "ratio": {name: ours / rate for name, rate in rates.items()},
        "cpu_ms": {name: statistics.median(fact["cpu_ms"]) for name, fact in facts.items()},
        "missing": missing,
        "repetitions": turns,
        "machine": machine(),
    }


def checkouts(given: Sequence[str]) -> dict[str, str]:
    """Folders by name, of NAME=PATH. Raises ValueError for a name that is not in PUBLIC and for what is no folder."""
    found = {}
    for text in given:
        name, _, path = text.partition("=")
        if name not in PUBLIC or not os.path.isdir(path):
            known = ", ".join(f"{name}=PATH of {public.where}" for name, public in PUBLIC.items())
            raise ValueError(f"--peer {text}: it is a checkout of public code, {known}")
        found[name] = os.path.abspath(path)
    return found


def race(
    requests: dict[str, dict[str, Any]],
    repetitions: int,
    seconds: float,
    peer_python: str,
    report: Callable[[str], None],
    unit: str,
) -> tuple[dict[str, list[float]], dict[str, str], dict[str, dict[str, Any]]]:
    """Contestants by name, each in its process, in turns; those whose names start with "ours" run on this Python.

    Returns the rates of each turn, why a contestant did not run, and what each said of itself, by name, with cpu_ms,
    the processor time (ms) of one of whatever it counts in each turn. One is warm before the next starts.
    Raises RuntimeError when "ours" does not start.
    """
    children: dict[str, Child] = {}
    missing: dict[str, str] = {}
    try:
        for name, request in requests.items():
            report(f"starting {name}")
            python = sys.executable if name.startswith("ours") else peer_python
            child = children[name] = Child(python, request | {"name": name})
            if reason := child.ready():
                missing[name] = reason
                children.pop(name).close()
            report(f"{name}: {reason or 'warm'}")
        if "ours" in missing:
            raise RuntimeError(f"the benchmark did not start: {missing['ours']}")
        turns: dict[str, list[float]] = {name: [] for name in children}
        for turn in range(repetitions):
            for name, child in children.items():
                turns[name].append(child.run(seconds))
                report(f"turn {turn + 1}/{repetitions} {name}: {turns[name][-1]:.1f} {unit}")
    finally:
        for child in children.values():
            child.close()
    return turns, missing, {name: child.facts for name, child in children.items()}


class Child:
    """A process that warms one contestant up and then runs it for some seconds whenever asked."""

    def __init__(self, python: str, request: dict[str, Any]):
        """`request` has threads, and what `contestant` of the module in it needs [default: this one]."""
        self.facts: dict[str, Any] = {}
        environment = dict(os.environ)
        if request["threads"]:
            count = str(request["threads"])
            environment |= {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
        self.process = subprocess.Popen(
            [python, os.path.abspath(__file__), json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ready(self) -> str:
        """Wait for the warm-up; returns why it failed, or nothing."""
        answer = self._read()
        self.facts = answer.get("facts", {})
        return "" if answer.get("ready") else str(answer.get("error", "it ended without an answer"))

    def run(self, seconds: float) -> float:
        """Updates/s over `seconds` s."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        answer = self._read()
        if "updates" not in answer:
            raise RuntimeError(f"a benchmark process failed: {answer}")
        self.facts.setdefault("cpu_ms", []).append(1e3 * float(answer["cpu_s"]) / float(answer["updates"]))
        return float(answer["updates"]) / float(answer["seconds"])

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # a library may print lines of its own
                answer: dict[str, Any] = json.loads(line)
                return answer
        return {}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    flags: set[str] = set()
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        model, flags = fields.get("model name", model), set(fields.get("flags", "").split())
    except OSError:
        pass  # not Linux: the processor's name is all there is
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return {"processor": model, "cores": os.cpu_count(), "units": units, "python": platform.python_version()}


def contestant(request: dict[str, Any]) -> tuple[Callable[[], int], dict[str, Any]]:
    """What a process runs again and again, which returns how many updates that were, and facts to report."""
    return _ours(request) if request["name"] == "ours" else _baselines(request), {}


def _ours(request: dict[str, Any]) -> Callable[[], int]:
    import numpy as np

    from robot_rl.learn import recipes
    from robot_rl.replay import Replay

    sizes: dict[str, Any] = {"hidden": HIDDEN, "batch": BATCH}
    if request["agent"] == "tqc":
        sizes |= {"critics": 2}  # as many as sbx has
    if request["agent"] in MODELLED:
        sizes = {"batch": BATCH, "target_period": PERIOD}
    agent = recipes.make(request["agent"], OBS, ACTION, **sizes | request["configuration"])
    calls = PERIOD if request["agent"] in MODELLED else 1
    replay = Replay(2 * FILL, OBS, ACTION, 0, agent.schedule.prioritized, agent.execution.plan_size)
    random = np.random.default_rng(0)
    replay.begin(random.normal(size=OBS))
    for step in range(FILL):
        ends = step % 1000 == 999
        replay.step(random.uniform(-1, 1, ACTION), random.normal(), random.normal(size=OBS), False, ends)
        if ends:
            replay.begin(random.normal(size=OBS))

    def call() -> int:
        for _ in range(calls):
            agent.update(replay)
        return calls * agent.schedule.updates_per_step

    return call


def _baselines(request: dict[str, Any]) -> Callable[[], int]:
    """SB3's and sbx's `train`, which share their interface."""
    import gymnasium
    import numpy as np

    calls = 20 if request["name"] == "sbx_20" else 1

    class Spaces(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)

        def reset(self, **kwargs: Any) -> Any:
            return np.zeros(OBS, np.float32), {}

        def step(self, action: Any) -> Any:
            return np.zeros(OBS, np.float32), 0.0, False, False, {}

    sizes = {"pi": list(HIDDEN), "qf": list(WIDE if request["agent"] == "crossq" else HIDDEN)}
    common: dict[str, Any] = {"batch_size": BATCH, "buffer_size": 2 * FILL, "policy_kwargs": {"net_arch": sizes}}
    if request["name"] == "sb3":
        import stable_baselines3 as library
        import torch

        if request["threads"]:
            torch.set_num_threads(request["threads"])
    else:
        import sbx as library

        delay = calls if calls > 1 or request["agent"] == "sac" else 3 if request["agent"] == "crossq" else None
        common |= {"policy_delay": delay} if delay else {}
    model: Any = getattr(library, request["class"])("MlpPolicy", Spaces(), **common)
    model.learn(1)  # sets up its logger and its buffers
    random = np.random.default_rng(0)
    for _ in range(FILL):
        obs, following = random.normal(size=(2, 1, OBS)).astype(np.float32)
        action = random.uniform(-1, 1, (1, ACTION)).astype(np.float32)
        model.replay_buffer.add(obs, following, action, random.normal(size=1), np.zeros(1), [{}])

    def call() -> int:
        model.train(gradient_steps=calls, batch_size=BATCH)
        return calls

    return call


def _child(request: dict[str, Any]) -> None:
    """Warm up, say so, then answer each line on stdin (seconds) with a line of JSON."""
    if request["threads"] and hasattr(os, "sched_setaffinity"):  # XLA's pool has a thread for each core that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-request["threads"] :])
    try:
        module = importlib.import_module(request.get("module", "robot_rl.learn.bench"))
        call, facts = module.contestant(request)
        begun, calls = time.perf_counter(), 0
        while calls < 3 or (calls < 6 and time.perf_counter() - begun < WARM):  # all that there is to compile
            call()
            calls += 1
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        return
    print(json.dumps({"ready": True, "facts": facts}), flush=True)
    for line in sys.stdin:
        updates, start, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < float(line):
            updates += call()
        elapsed = time.perf_counter() - start
        print(json.dumps({"updates": updates, "seconds": elapsed, "cpu_s": time.process_time() - used}), flush=True)


if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    _child(json.loads(sys.argv[1]))
