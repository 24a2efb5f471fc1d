"""Replay memory: transitions in one packed ring of float32 rows, sampled in one gather.

A row holds one observation and, when a step was taken from it, that step:
`[observation | action | reward | alive | taken | plan]`. The observation that a step led to is the next row, so a
segment (an unbroken run of steps) of n steps costs n + 1 rows. `taken` is 0 in the last row of a segment and in the
newest row. A walk along rows that stops there cannot cross the edge of a segment, nor the seam of the ring, where the
newest row meets the oldest.

Axes: B batch, T time (horizon), O observation, A action.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from robot_rl import memory
from robot_rl.observe import Observation
from robot_rl.priorities import Priorities
from robot_rl.smoothing import Smoothing

Batch = dict[str, np.ndarray]
ONLINE, PRIOR = 0, 1  # values of a batch's `source`
NOTHING = np.zeros(0, np.float32)


class Data(Protocol):
    """What a learner pulls batches from."""

    def sample(self, batch: int, horizon: int = 1, n_step: int = 1, discount: float = 0.99) -> Batch: ...

    def prioritise(self, index: np.ndarray, source: np.ndarray, priority: np.ndarray) -> None: ...

    def renew(self, index: np.ndarray, source: np.ndarray, plan: np.ndarray) -> None: ...

    def reward_size(self) -> float: ...

    def __len__(self) -> int: ...


class NotFinite(FloatingPointError):
    """A NaN or an infinity was about to be learned from; `batch` holds the arrays that it was found among."""

    def __init__(self, message: str, batch: Batch) -> None:
        super().__init__(message)
        self.batch = batch


class Replay:
    """A ring of `capacity` rows (one per step and one more per segment); the oldest steps make room for new ones.

    With `prioritized` above 0, the exponent alpha, steps are drawn by what `prioritise` was last told of them. Beside
    each step lie `plan_size` numbers P that say what was planned there, zeros where nothing was. With `smoothing` the
    rewards of a segment are smoothed when it ends.
    """

    def __init__(self, capacity: int, obs_size: int, action_size: int, seed: int = 0, prioritized: float = 0.0,
                 plan_size: int = 0, smoothing: Smoothing | None = None):
        if capacity < 2:
            raise ValueError(f"replay: capacity is {capacity} rows, a step needs at least 2")
        self.capacity, self.obs_size, self.action_size, self.plan_size = capacity, obs_size, action_size, plan_size
        self._reward, self._alive, self._taken, self._plan = (obs_size + action_size + column for column in range(4))
        row = 4 * (self._plan + plan_size) + 8 + (9 if prioritized else 0)  # bytes
        # asked now: the system would promise the memory, and end the process once the pages have filled
        memory.demand(capacity * row, f"replay: {capacity:,} rows of {row} bytes")
        self._rows = np.zeros((capacity, self._plan + plan_size), np.float32)  # pages are used as they fill
        self._starts = np.zeros(capacity, np.int64)  # ring of the row numbers that a step was taken from, in order
        self._head = -1  # number of the newest row, counted since the start and never reused; its place is % capacity
        self._first = self._last = 0  # steps [first, last) are held; step k's row number is _starts[k % capacity]
        self._open, self._begun = False, 0  # the row number that the newest segment begins with
        self._smoothing = smoothing
        self._generator = np.random.default_rng(seed)
        self._priorities = Priorities(capacity, prioritized) if prioritized else None
        self._ranked = 0  # rows before this one have their priority; new ones get theirs together, when it is needed

    def __len__(self) -> int:
        """Transitions held."""
        return self._last - self._first

    @property
    def longest(self) -> int:
        """Steps of the longest segment held; 0 when there is none."""
        starts = self._starts[np.arange(self._first, self._last) % self.capacity]
        edges = np.flatnonzero(np.diff(starts, prepend=-2, append=-1) != 1)  # where a segment begins, and the end
        return int(np.diff(edges).max(initial=0))

    @property
    def nbytes(self) -> int:
        """Memory of a full ring, bytes."""
        return self._rows.nbytes + self._starts.nbytes + (self._priorities.nbytes if self._priorities else 0)

    def begin(self, obs: Observation) -> None:
        """Start a segment at `obs` (O,). A segment that was left open ends as if truncated. Raises NotFinite."""
        self._check(obs, NOTHING, 0.0)
        lone = self._open and not (self._last > self._first and self._newest_start() == self._head - 1)
        if lone:
            self._head -= 1  # the row before was a beginning from which no step was taken
        elif self._open:
            self._smooth()
        self._put(obs)
        self._open, self._begun = True, self._head

    def step(self, action: np.ndarray, reward: float, obs: Observation, terminated: bool, truncated: bool,
             carry: np.ndarray | None = None) -> None:
        """Add the step that took `action` (A,) in [-1, 1] and led to `obs` (O,). Raises NotFinite.

        The last P numbers of `carry`, what the agent handed to its next step, say what was planned for this one.
        """
        if not self._open:
            raise RuntimeError("replay: step() outside a segment: call begin(obs) after an episode has ended")
        self._check(obs, action, reward)
        row = self._rows[self._head % self.capacity]
        row[self.obs_size : self._reward] = action
        row[self._reward] = reward
        row[self._alive] = not terminated
        row[self._taken] = 1.0
        if self.plan_size and carry is not None:
            row[self._plan :] = carry.reshape(-1)[-self.plan_size :]
        self._starts[self._last % self.capacity] = self._head
        self._last += 1
        self._put(obs)
        self._open = not (terminated or truncated)
        if not self._open:
            self._smooth()

    def sample(self, batch: int, horizon: int = 1, n_step: int = 1, discount: float = 0.99) -> Batch:
        """`batch` steps, drawn evenly or by priority, each with up to `n_step` rewards.

        For `horizon` > 1 the steps that follow come with it.

        obs (B, O), action (B, A) float32; reward (B,): the discounted sum of the next n rewards, where n is `n_step` or
        what is left of the segment; next_obs (B, O): the observation after them; discount (B,): discount**n, or 0
        where the n-th step terminated (truncation keeps it, so a learner bootstraps); index (B,) int64: a number that
        is this step's alone; weight (B,) 1.0; source (B,) int64: ONLINE; plan (B, P) where P is not 0.
        With `horizon` T > 1 each has a time axis, (B, T, ...); times after the end of the segment have weight 0,
        reward 0 and discount 0 and hold the segment's last observation.
        """
        if not len(self):
            raise RuntimeError("replay: nothing to sample: no step was added")
        index = self._draw(batch)
        if horizon == 1 and n_step == 1:
            return self._single(index, discount)
        return self._windows(index, horizon, n_step, discount)

    def prioritise(self, index: np.ndarray, source: np.ndarray, priority: np.ndarray) -> None:
        """Say of the steps `index` (B,) how wrong the critics were about them: `priority` (B,), errors of either sign.

        With a time axis, (B, T) each, entries past the end of a segment do not matter. Steps that are no longer held
        are passed over; `source` (B,) is for a `Mixture`. Nothing happens where steps are drawn evenly.
        """
        del source
        if self._priorities is None:
            return
        if not np.isfinite(priority).all():
            raise NotFinite("replay: a priority is not finite", {"index": index, "priority": priority})
        self._rank()
        place = index % self.capacity
        held = (index > self._head - self.capacity) & self._priorities.known(place)
        self._priorities.update(place[held], np.asarray(priority, float)[held])

    def renew(self, index: np.ndarray, source: np.ndarray, plan: np.ndarray) -> None:
        """Say of the steps `index` (B,) what is planned there now: `plan` (B, P). `source` (B,) is for a `Mixture`.

        Steps that are no longer held are passed over.
        """
        del source
        held = index > self._head - self.capacity
        self._rows[index[held] % self.capacity, self._plan :] = plan[held]

    def reward_size(self) -> float:
        """The mean of |reward| over the steps held, however often each is drawn; 0 without any."""
        starts = self._starts[np.arange(self._first, self._last) % self.capacity]
        return float(np.abs(self._rows[starts % self.capacity, self._reward]).mean()) if len(self) else 0.0

    def _draw(self, batch: int) -> np.ndarray:
        """Row numbers (B,) of held steps."""
        if self._priorities is None:
            number = self._generator.integers(self._first, self._last, batch)
            return self._starts[number % self.capacity]
        self._rank()
        place = self._priorities.draw(batch, self._generator)
        return self._head - (self._head - place) % self.capacity

    def _rank(self) -> None:
        """Give the rows that were written since the last time their first priority, in the place of older ones."""
        if self._priorities is not None and self._ranked < self._head:
            place = np.arange(max(self._ranked, self._head + 1 - self.capacity), self._head + 1) % self.capacity
            self._priorities.admit(place, self._rows[place, self._taken])
            self._ranked = self._head  # again: no step was taken from the newest row yet

    def _single(self, index: np.ndarray, discount: float) -> Batch:
        rows = self._rows.take((index[:, None] + np.arange(2)) % self.capacity, axis=0)  # (B, 2, columns)
        now = rows[:, 0]
        return {
            "obs": now[:, : self.obs_size],
            "action": now[:, self.obs_size : self._reward],
            "reward": now[:, self._reward],
            "discount": now[:, self._alive] * np.float32(discount),
            "next_obs": rows[:, 1, : self.obs_size],
            "index": index,
            "weight": now[:, self._taken],
            "source": np.zeros(len(index), np.int64),
        } | self._planned(now)

    def _planned(self, rows: np.ndarray) -> Batch:
        return {"plan": rows[..., self._plan :]} if self.plan_size else {}

    def _windows(self, index: np.ndarray, horizon: int, n_step: int, discount: float) -> Batch:
        """The general case of `sample`; row j of a window is j steps after its start, or the last row it may see."""
        length = horizon + n_step  # rows of a window, the last next_obs included
        window = index[:, None] + np.arange(length)
        taken = np.minimum.accumulate(self._rows[window % self.capacity, self._taken], axis=1)  # (B, length)
        end = taken.sum(1).astype(np.int64)[:, None]  # steps in the window before its segment's end, at least 1
        at = np.minimum(np.arange(length), end)
        rows = self._rows[(index[:, None] + at) % self.capacity]
        reward = rows[:, :, self._reward] * taken
        times = np.arange(horizon)
        returns = np.zeros((len(index), horizon), np.float32)
        for step in range(n_step):
            returns += np.float32(discount**step) * reward[:, times + step]
        last = np.minimum(times + n_step, end)  # (B, T): the row bootstrapped from
        count = last - np.minimum(times, end)
        each = np.arange(len(index))[:, None]
        alive = rows[each, np.maximum(last - 1, 0), self._alive] * (count > 0)
        batch = {
            "obs": rows[:, :horizon, : self.obs_size],
            "action": rows[:, :horizon, self.obs_size : self._reward],
            "reward": returns,
            "discount": (alive * discount**count).astype(np.float32),
            "next_obs": rows[each, last, : self.obs_size],
            "index": index[:, None] + at[:, :horizon],
            "weight": taken[:, :horizon],
            "source": np.zeros((len(index), horizon), np.int64),
        } | self._planned(rows[:, :horizon])
        return batch if horizon > 1 else {key: value[:, 0] for key, value in batch.items()}

    def _check(self, obs: Any, action: np.ndarray, reward: float) -> None:
        """Refuse a NaN or an infinity. The sum of squares, which may overflow, only tells when to look closer."""
        if math.isfinite(reward + obs.dot(obs) + action.dot(action)):
            return
        batch = {"action": np.asarray(action), "reward": np.asarray(reward), "next_obs": np.asarray(obs)}
        for name, value in batch.items():
            bad = np.flatnonzero(~np.isfinite(value))
            if len(bad):
                raise NotFinite(f"replay: {name}[{bad[0]}] is {value.flat[bad[0]]} in step {self._last}", batch)

    def _smooth(self) -> None:
        """Smooth the rewards of the newest segment, which has ended, as far as it is still held."""
        if self._smoothing is not None:
            rows = np.arange(max(self._begun, self._head + 1 - self.capacity), self._head) % self.capacity
            self._rows[rows, self._reward] = self._smoothing(self._rows[rows, self._reward])

    def _newest_start(self) -> int:
        return int(self._starts[(self._last - 1) % self.capacity])

    def _put(self, obs: Any) -> None:
        """Write `obs` as the newest row, over the oldest one once the ring is full."""
        self._head += 1
        gone = self._head - self.capacity
        if gone >= 0 and self._last > self._first and self._starts[self._first % self.capacity] <= gone:
            self._first += 1
        row = self._rows[self._head % self.capacity]
        row[: self.obs_size] = obs
        row[self.obs_size :] = 0.0

    def state_dict(self) -> Batch:
        """Arrays that `load_state_dict` takes: the used rows from the oldest on, counters and the generator.

        Rows that lie in one piece, as they do until the memory is full, are not copied: write them before the next add.
        """
        oldest = max(0, self._head + 1 - self.capacity)
        rows = np.arange(oldest, self._head + 1) % self.capacity
        steps = np.arange(self._first, self._last) % self.capacity
        generator = json.dumps(self._generator.bit_generator.state)
        self._rank()
        ranks = self._priorities.state_dict(rows) if self._priorities is not None else {}
        return ranks | {
            "rows": pick(self._rows, rows),
            "starts": self._starts[steps],
            "counters": np.array([self._head, self._first, self._last, self._open, self._begun], np.int64),
            "generator": np.frombuffer(generator.encode(), np.uint8),
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from `state`. The ring may be larger than the one that was saved, not too small for what it held.

        Steps saved by a replay that drew evenly start with the highest priority in one that does not.
        """
        rows = np.asarray(state["rows"])
        if rows.shape[1] != self._rows.shape[1] or len(rows) > self.capacity:
            raise ValueError(f"replay: the saved memory is {rows.shape} rows x columns, this one is {self._rows.shape}")
        self._head, self._first, self._last, is_open, self._begun = (int(value) for value in state["counters"])
        self._open = bool(is_open)
        places = np.arange(self._head + 1 - len(rows), self._head + 1) % self.capacity
        self._rows[places] = rows
        self._starts[np.arange(self._first, self._last) % self.capacity] = state["starts"]
        self._generator.bit_generator.state = json.loads(np.asarray(state["generator"]).tobytes())
        self._ranked = 0
        if self._priorities is not None:
            self._priorities = Priorities(self.capacity, self._priorities.alpha)
            if "priorities" in state:
                self._priorities.load_state_dict(state, places)
                self._ranked = self._head


@dataclass(frozen=True)
class Ratio:
    """The share of prior data in [0, 1]: `start` at first, `end` after `steps` steps, on a straight line between."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if not (0.0 <= self.start <= 1.0 and 0.0 <= self.end <= 1.0):
            raise ValueError(f"mixture: ratio is {self}, the share of prior data lies in [0, 1]")
        if self.steps < 1:
            raise ValueError(f"mixture: ratio is {self}, it takes at least 1 step to its end")

    @classmethod
    def parse(cls, text: str) -> Ratio:
        """From "0.5", which stays, or "from:to:steps" such as "0.5:0:20000". Raises ValueError."""
        try:
            start, end, steps = text.split(":") if ":" in text else (text, text, "1")
            numbers = float(start), float(end), int(steps)
        except ValueError as error:
            raise ValueError(f"ratio {text!r}: it is a share of prior data or FROM:TO:STEPS, as 0.5:0:20000"
                             ) from error
        return cls(*numbers)

    def at(self, step: int) -> float:
        """The share at a step."""
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)

    def __str__(self) -> str:
        return f"{self.start:g}" if self.start == self.end else f"{self.start:g}:{self.end:g}:{self.steps}"


class Mixture:
    """Batches of which the share `ratio` comes from `prior` and the rest from `online`; samples as either does.

    A ratio that changes goes by `step`, the number of steps so far. With 0 < ratio < 1, while one of the two is still
    empty, everything comes from the other.
    """

    def __init__(self, prior: Data, online: Data, ratio: float | Ratio, step: Callable[[], int] = lambda: 0):
        self.prior, self.online, self.step = prior, online, step
        self.ratio = ratio if isinstance(ratio, Ratio) else Ratio(ratio, ratio, 1)

    def __len__(self) -> int:
        """Transitions held by both."""
        return len(self.prior) + len(self.online)

    def sample(self, batch: int, horizon: int = 1, n_step: int = 1, discount: float = 0.99) -> Batch:
        """As `Replay.sample`; the first round(batch * share) entries come from `prior` and have source PRIOR."""
        from_prior = round(batch * self._share())
        parts = []
        for data, count, source in ((self.prior, from_prior, PRIOR), (self.online, batch - from_prior, ONLINE)):
            if count:
                part = data.sample(count, horizon, n_step, discount)
                parts.append(part | {"source": np.full_like(part["source"], source)})
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def prioritise(self, index: np.ndarray, source: np.ndarray, priority: np.ndarray) -> None:
        """As `Replay.prioritise`, to whichever of the two each entry of a batch is from by its `source`."""
        for data, number in ((self.prior, PRIOR), (self.online, ONLINE)):
            own = source == number
            if own.any():
                data.prioritise(index[own], source[own], priority[own])

    def renew(self, index: np.ndarray, source: np.ndarray, plan: np.ndarray) -> None:
        """As `Replay.renew`, to whichever of the two each entry of a batch is from by its `source`."""
        for data, number in ((self.prior, PRIOR), (self.online, ONLINE)):
            data.renew(index[source == number], source[source == number], plan[source == number])

    def reward_size(self) -> float:
        """As `Replay.reward_size`, the two weighed by their shares of a batch."""
        share = self._share()
        return share * self.prior.reward_size() + (1.0 - share) * self.online.reward_size()

    def _share(self) -> float:
        ratio = self.ratio.at(self.step())
        if 0.0 < ratio < 1.0 and not (len(self.prior) and len(self.online)):
            return float(len(self.prior) > 0)
        return ratio


def pick(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`array` at successive `places` of a ring: itself where they lie in one piece, a copy where they do not."""
    first, end = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
    return array[first:end] if end - first == len(places) else array[places]
