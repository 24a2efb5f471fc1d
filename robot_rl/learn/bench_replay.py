"""How many batches a second, and how much memory a transition: our replays against Stable-Baselines3's `ReplayBuffer`.

A batch is one that a network can take: tensors of the learner's floating type, pixels scaled to [0, 1]. The contestants
take turns in processes of their own, as in `bench`, whose program these processes run; one thread each.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

from robot_rl.learn.bench import ACTION, BATCH, OBS, machine, race

FILL, EPISODE = 10_000, 1_000  # transitions in each replay, and in an episode
FRAME, STACK = (3, 84, 84), 3
CONTESTANTS = {"state": ("ours", "ours_prioritized", "sb3"), "frames": ("ours", "ours_float32", "sb3", "sb3_shared")}
"""`ours`: the learner's own type, bfloat16 where the processor multiplies it. `ours_prioritized`: priorities are drawn
by and updated too. `sb3_shared`: its memory-saving variant, which mixes up episodes that were cut off."""


def bench(repetitions: int = 5, seconds: float = 2.0, peer_python: str = sys.executable,
          report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Medians over `repetitions` turns of `seconds` s each; keys `state/...`, `frames/...` and `machine`.

    Of each kind: batches_per_s and bytes_per_transition (name -> figure), frames_per_step and dtype of ours, ratio
    (name of the other -> our batches/s by its), missing (name -> why it did not run), repetitions (name -> batches/s
    of each turn).
    """
    figures: dict[str, Any] = {}
    for kind in CONTESTANTS:
        found = _bench(kind, repetitions, seconds, peer_python, report)
        figures |= {f"{kind}/{key}": value for key, value in found.items() if value}
    return figures | {"machine": machine()}


def _bench(kind: str, repetitions: int, seconds: float, peer_python: str, report: Callable[[str], None]
           ) -> dict[str, Any]:
    requests = {name: {"module": __name__, "kind": kind, "threads": 1} for name in CONTESTANTS[kind]}
    turns, missing, facts = race(requests, repetitions, seconds, peer_python, lambda line: report(f"{kind}: {line}"),
                                 "batches/s")
    rates = {name: statistics.median(values) for name, values in turns.items()}
    return {
        "batches_per_s": rates,
        "bytes_per_transition": {name: fact["bytes"] for name, fact in facts.items()},
        "frames_per_step": {name: fact["frames"] for name, fact in facts.items() if "frames" in fact},
        "dtype": {name: fact["dtype"] for name, fact in facts.items() if "dtype" in fact},
        "ratio": {name: rates["ours"] / rate for name, rate in rates.items() if name != "ours"},
        "missing": missing,
        "repetitions": turns,
    }


def contestant(request: dict[str, Any]) -> tuple[Callable[[], int], dict[str, Any]]:
    """A function that makes one batch, and the memory that a transition takes (bytes)."""
    ours = request["name"].startswith("ours")
    if request["kind"] == "state":
        return _our_state(request["name"]) if ours else _baselines_state()
    return _our_frames(request["name"]) if ours else _baselines_frames(request["name"])


def _our_state(name: str) -> tuple[Callable[[], int], dict[str, Any]]:
    import numpy as np
    import torch

    from robot_rl.replay import Replay

    replay = Replay(FILL + FILL // EPISODE, OBS, ACTION, prioritized=0.4 if name == "ours_prioritized" else 0.0)
    random = np.random.default_rng(0)
    for step in range(FILL):
        if step % EPISODE == 0:
            replay.begin(random.normal(size=OBS))
        ends = step % EPISODE == EPISODE - 1
        replay.step(random.uniform(-1, 1, ACTION), random.normal(), random.normal(size=OBS), False, ends)
    errors = np.abs(random.normal(size=BATCH)) * 3

    def call() -> int:
        batch = replay.sample(BATCH)
        tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
        assert tensors["obs"].dtype == torch.float32
        replay.prioritise(batch["index"], batch["source"], errors)
        return 1

    return call, {"bytes": replay.nbytes / FILL}


def _our_frames(name: str) -> tuple[Callable[[], int], dict[str, Any]]:
    import numpy as np
    import torch

    from robot_rl.frames import FrameReplay
    from robot_rl.learn.nets import compute_dtype
    from robot_rl.learn.pixels import Pixels

    torch.set_num_threads(1)
    replay = FrameReplay(FILL + FILL // EPISODE, FRAME, STACK, 0, ACTION)
    random, stack = np.random.default_rng(0), np.zeros((STACK * FRAME[0], *FRAME[1:]), np.uint8)
    obs: dict[str, Any] = {"state": np.zeros(0, np.float32), "frames": stack}
    for step in range(FILL):
        if step % EPISODE == 0:
            replay.begin(obs)
        stack[-FRAME[0] :] = random.integers(0, 256, FRAME, np.uint8)
        replay.step(random.uniform(-1, 1, ACTION), random.normal(), obs, False, step % EPISODE == EPISODE - 1)
    pixels = Pixels(dtype=compute_dtype("float32" if name == "ours_float32" else "auto", "cpu"))
    generator = torch.Generator()

    def call() -> int:
        batch = replay.sample(BATCH)
        pixels(batch, generator)
        for key in ("action", "reward", "discount"):
            torch.from_numpy(batch[key])
        return 1

    return call, {"bytes": replay.nbytes / FILL, "frames": replay.frames_held / FILL, "dtype": str(pixels.dtype)}


def _baselines_state() -> tuple[Callable[[], int], dict[str, Any]]:
    import gymnasium
    import numpy as np

    random = np.random.default_rng(0)
    space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    buffer = _buffer(space, {}, lambda: random.normal(size=(1, OBS)).astype(np.float32))

    def call() -> int:
        buffer.sample(BATCH)
        return 1

    return call, {"bytes": _bytes(buffer)}


def _baselines_frames(name: str) -> tuple[Callable[[], int], dict[str, Any]]:
    import gymnasium
    import numpy as np
    import torch
    from stable_baselines3.common.preprocessing import preprocess_obs

    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    shape = STACK * FRAME[0], *FRAME[1:]
    space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
    options = {"optimize_memory_usage": True, "handle_timeout_termination": False} if name == "sb3_shared" else {}
    buffer = _buffer(space, options, lambda: random.integers(0, 256, (1, *shape), np.uint8))

    def call() -> int:
        batch = buffer.sample(BATCH)
        preprocess_obs(batch.observations, space)  # as its feature extractor does: float32 by 255
        preprocess_obs(batch.next_observations, space)
        return 1

    return call, {"bytes": _bytes(buffer)}


def _buffer(space: Any, options: dict[str, Any], obs: Callable[[], Any]) -> Any:
    """Stable-Baselines3's replay, full of what `obs` gives."""
    import gymnasium
    import numpy as np
    from stable_baselines3.common.buffers import ReplayBuffer

    buffer = ReplayBuffer(FILL, space, gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32), device="cpu", **options)
    action, zero = np.zeros((1, ACTION), np.float32), np.zeros(1)
    for _ in range(FILL):
        buffer.add(obs(), obs(), action, zero, zero, [{}])
    return buffer


def _bytes(buffer: Any) -> float:
    """Memory of a transition."""
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    return float(sum(getattr(buffer, name).nbytes for name in names if hasattr(buffer, name)) / FILL)
