"""An environment in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np

KEPT = ("action", "success")  # of a step's info


class RemoteEnv:
    """`make()` in another process. What is asked for is answered in its order; see `robot_rl.parallel`."""

    def __init__(self, make: Callable[[], gymnasium.Env]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make), daemon=True)
        self._process.start()
        other.close()

    def reset(self, seed: int) -> None:
        """Ask for an episode's first observation."""
        self._pipe.send(seed)

    def step(self, action: np.ndarray) -> None:
        """Ask for a step."""
        self._pipe.send(action)

    def answer(self) -> Any:
        """What was asked for first. Raises RuntimeError with what went wrong over there."""
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join(5)
            raise RuntimeError(f"an environment's process ended with status {self._process.exitcode}") from error
        if isinstance(answer, Exception):
            raise RuntimeError(f"an environment failed: {answer}") from answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, make: Callable[[], gymnasium.Env]) -> None:
    """Answer until the other end closes; an integer is a reset's seed, an array an action."""
    try:
        env = make()
        while True:
            asked = pipe.recv()
            if isinstance(asked, int):
                pipe.send(env.reset(seed=asked)[0])
            else:
                observation, reward, terminated, truncated, info = env.step(asked)
                info = {key: info[key] for key in KEPT if key in info}
                pipe.send((observation, float(reward), bool(terminated), bool(truncated), info))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
