"""Replay memory for cameras: every frame is kept once, as bytes, and stacked when it is sampled.

The rows, segments and draws are those of `Replay`; before the state a row holds where its frame lies and how many
frames of the segment came before it, as far as a stack reaches back.

Axes: B batch, T time, S stack, C channels of one frame, H height, W width, O state, A action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from robot_rl import memory
from robot_rl.observe import Observation
from robot_rl.replay import Batch, Replay, pick
from robot_rl.smoothing import Smoothing
from robot_rl.spec import PolicySpec

EXACT = 2**24  # below this every whole number is a float32
PLACE = 2  # columns of a row before the state: the frame's place, and its age in the segment


class FrameReplay(Replay):
    """A ring of `capacity` rows of observations {"state": (O,), "frames": (S * C, H, W) uint8}, newest frame last.

    At a segment's start the first frame is repeated, as environments do at a reset: older frames in the observation
    given to `begin` are not kept. A step costs one frame, a segment one more, the ring S - 1 more.
    """

    def __init__(self, capacity: int, frame: tuple[int, int, int], stack: int, state_size: int, action_size: int,
                 seed: int = 0, prioritized: float = 0.0, plan_size: int = 0, smoothing: Smoothing | None = None
                 ) -> None:
        """`frame` is (C, H, W), `stack` is S, `state_size` O, which may be 0."""
        if stack < 1 or capacity + stack > EXACT:
            raise ValueError(f"replay: {capacity} rows of {stack} stacked frames; at least 1, together at most {EXACT}")
        size = int(np.prod(frame))
        memory.demand(capacity * size, f"replay: {capacity:,} frames of {size:,} bytes")
        super().__init__(capacity, PLACE + state_size, action_size, seed, prioritized, plan_size, smoothing)
        self.frame, self.stack = frame, stack
        self._frames = np.zeros((capacity + stack - 1, *frame), np.uint8)  # the oldest row's stack reaches S - 1 back
        self._age = 0  # frames before the newest in its segment, at most S - 1

    @property
    def nbytes(self) -> int:
        """Memory of a full ring, bytes."""
        return super().nbytes + self._frames.nbytes

    @property
    def frames_held(self) -> int:
        """Frames that a full ring has room for."""
        return len(self._frames)

    def begin(self, obs: Observation) -> None:
        """Start a segment at `obs`. A segment that was left open ends as if truncated. Raises NotFinite."""
        self._age = 0
        super().begin(obs)

    def step(self, action: np.ndarray, reward: float, obs: Observation, terminated: bool, truncated: bool,
             carry: np.ndarray | None = None) -> None:
        """As `Replay.step`."""
        self._age = min(int(self._rows[self._head % self.capacity, 1]) + 1, self.stack - 1)
        super().step(action, reward, obs, terminated, truncated, carry)

    def sample(self, batch: int, horizon: int = 1, n_step: int = 1, discount: float = 0.99) -> Batch:
        """As `Replay.sample`, with the states as obs and next_obs, and beside them what was seen.

        frames and next_frames are (B, S * C, H, W) or (B, T, S * C, H, W) uint8. With one step and no horizon they are
        views of the same frames, (B, S + 1, C, H, W), not to be written to.
        """
        drawn = super().sample(batch, horizon, n_step, discount)
        places = {"frames": drawn["obs"][..., :PLACE], "next_frames": drawn["next_obs"][..., :PLACE]}
        drawn |= {key: drawn[key][..., PLACE:] for key in ("obs", "next_obs")}
        if horizon == 1 and n_step == 1:
            frames = self._gather(places["frames"], np.arange(self.stack - 1, -2, -1))
            return drawn | {"frames": _merge(frames[:, :-1]), "next_frames": _merge(frames[:, 1:])}
        back = np.arange(self.stack - 1, -1, -1)
        return drawn | {key: _merge(self._gather(where, back)) for key, where in places.items()}

    def _gather(self, where: np.ndarray, back: np.ndarray) -> np.ndarray:
        """The frames `back` (S',) before those at `where` (..., 2), none before its segment: (..., S', C, H, W)."""
        place, age = (where[..., column, None].astype(np.int64) for column in range(2))
        return self._frames.take((place - np.minimum(back, age)) % len(self._frames), axis=0)

    def _check(self, obs: Any, action: np.ndarray, reward: float) -> None:
        channels, height, width = self.frame
        wanted = (self.obs_size - PLACE,), (self.stack * channels, height, width)
        state, frames = obs["state"], obs["frames"]
        if (state.shape, frames.shape) != wanted or frames.dtype != np.uint8:
            raise ValueError(f"replay: an observation is a state {state.shape} and {frames.dtype} {frames.shape}, here "
                             f"they are {wanted[0]} and uint8 {wanted[1]}, {self.stack} frames of {self.frame}")
        super()._check(state, action, reward)

    def _put(self, obs: Any) -> None:
        place = (self._head + 1) % len(self._frames)
        self._frames[place] = obs["frames"][-self.frame[0] :]
        super()._put(np.concatenate(((place, self._age), obs["state"]), dtype=np.float32))

    def state_dict(self) -> Batch:
        """As `Replay.state_dict`, with the frames in use, from the oldest on."""
        state = super().state_dict()
        return state | {"frames": pick(self._frames, self._places(len(state["rows"]))), "stack": np.array(self.stack)}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from `state`; the ring may be larger than the one that was saved."""
        frames, rows = np.asarray(state["frames"]), np.array(state["rows"])
        if (saved := (int(state["stack"]), *frames.shape[1:])) != (here := (self.stack, *self.frame)):
            raise ValueError(f"replay: the saved frames are {saved} (stack, C, H, W), here they are {here}")
        head = int(state["counters"][0])
        rows[:, 0] = np.arange(head + 1 - len(rows), head + 1) % len(self._frames)  # they may lie elsewhere here
        super().load_state_dict({**state, "rows": rows})
        self._frames[self._places(len(rows))] = frames

    def _places(self, rows: int) -> np.ndarray:
        """Where the frames of the newest so many rows lie, and those that their stacks reach back to."""
        first = max(0, self._head + 1 - rows - (self.stack - 1))
        return np.arange(first, self._head + 1) % len(self._frames)


def memory_for(contract: PolicySpec, capacity: int, seed: int = 0, prioritized: float = 0.0, plan_size: int = 0,
               smoothing: Smoothing | None = None) -> Replay:
    """A memory of `capacity` rows for what a contract's policy observes."""
    state, action, vision = contract.observation_size, contract.action_size, contract.vision
    if vision is None:
        return Replay(capacity, state, action, seed, prioritized, plan_size, smoothing)
    return FrameReplay(capacity, vision.frame, vision.stack, state, action, seed, prioritized, plan_size, smoothing)


def shared(batch: Batch) -> np.ndarray | None:
    """The frames (B, S + 1, C, H, W) of which a batch's two are views; None where they are not."""
    now, following = batch["frames"], batch["next_frames"]
    return now.base if now.base is not None and now.base is following.base and now.base.ndim == 5 else None


def _merge(frames: np.ndarray) -> np.ndarray:
    """(..., S, C, H, W) as (..., S * C, H, W), without a copy."""
    return frames.reshape(*frames.shape[:-4], -1, *frames.shape[-2:])
