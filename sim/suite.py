"""Environments from elsewhere, in the form that training expects: `dmc:<domain>-<task>` and `gym:<id>`.

`dmc-pixels:<domain>-<task>` shows the task's camera, three stacked images of 84 x 84, and no state.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from robot_rl.spec import SpecError, Vision
from sim.offscreen import Offscreen

CAMERAS = {"quadruped": 2}  # the camera of published results from pixels, where it is not the first
UNBOUNDED = 1e6  # suites write a missing bound as infinity or as a huge number
Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


def make(task: str, action_repeat: int = 1, seed: int | None = None, render_mode: str | None = None) -> gymnasium.Env:
    """A suite task: observation (O,) float32, action (A,) float32 in [-1, 1], each held for `action_repeat` steps.

    `seed` is that of the first reset where reset brings none. Beyond Gymnasium's interface the environment has
    `rate_hz` (decisions a second) and `max_steps` (decisions an episode), either None where the suite says nothing.
    Raises SpecError for a name that is unknown, with the closest ones, or spaces that are not boxes.
    """
    if action_repeat < 1:
        raise SpecError(f"action_repeat={action_repeat} must be at least 1")
    suite, _, name = task.partition(":")
    if suite not in ("dmc", "dmc-pixels", "gym"):
        raise SpecError(f"task '{task}': suites are dmc:<domain>-<task>, dmc-pixels:<domain>-<task> and gym:<id>")
    with _quiet():
        env: gymnasium.Env = _gym(name, render_mode) if suite == "gym" else _Dmc(name, render_mode)
    flat = Suite(env, task, action_repeat, seed)
    return Seen(flat, env) if suite == "dmc-pixels" and isinstance(env, _Dmc) else flat


class Suite(gymnasium.Env[np.ndarray, np.ndarray]):
    """Flat float32 observations, actions in [-1, 1], action repeat. Raises SpecError for spaces that are not boxes."""

    def __init__(self, env: gymnasium.Env, task: str, action_repeat: int, seed: int | None) -> None:
        rate, limit = _rate_hz(env), _step_limit(env)
        self.metadata, self.render_mode = env.metadata, env.render_mode
        # steps are counted here rather than by Gymnasium's own wrappers, each of which costs every step a call
        self._env = env = _bare(env)
        self._limit, self._steps = limit, 0
        action = env.action_space
        if not isinstance(action, spaces.Box) or np.max(np.abs([action.low, action.high])) > UNBOUNDED:
            raise SpecError(f"{task}: action space {action}: only bounded boxes can be commanded")
        if not all(isinstance(leaf, spaces.Box) for leaf in _leaves(env.observation_space)):
            raise SpecError(f"{task}: observation space {env.observation_space}: only boxes can be observed")
        flat = spaces.flatten_space(env.observation_space)
        assert isinstance(flat, spaces.Box)
        assert action.shape is not None
        self._low, self._span, self._shape = action.low, (action.high - action.low) / 2, action.shape
        self._same = bool((action.low == -1).all() and (action.high == 1).all()) and len(action.shape) == 1
        self._bounds = np.full(action.low.size, -1, action.dtype), np.full(action.low.size, 1, action.dtype)
        self._vector = isinstance(env.observation_space, spaces.Box) and len(env.observation_space.shape) == 1
        self._repeat, self._seed = action_repeat, seed
        self.observation_space = spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (int(np.prod(action.shape)),), np.float32)
        self.rate_hz = rate / action_repeat if rate else None
        self.max_steps = -(-limit // action_repeat) if limit else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; a seed determines it wholly, together with the actions."""
        seed, self._seed = (self._seed if seed is None else seed), None
        super().reset(seed=seed)
        observation, info = self._env.reset(seed=seed, options=options)
        self._steps = 0
        return self._flat(observation), info

    def step(self, action: np.ndarray) -> Step:
        """Hold an action (A,) in [-1, 1]; rewards of the held steps add up, and the episode's end cuts them short."""
        command = np.minimum(np.maximum(action, self._bounds[0]), self._bounds[1])  # at this size faster than clip
        if not self._same:
            command = self._low + (command.reshape(self._shape) + 1.0) * self._span
        command = command.astype(self._low.dtype, copy=False)
        total = 0.0
        for _ in range(self._repeat):
            observation, reward, terminated, truncated, info = self._env.step(command)
            total += float(reward)
            self._steps += 1
            truncated = truncated or self._steps == self._limit
            if terminated or truncated:
                break
        return self._flat(observation), total, bool(terminated), bool(truncated), info

    def render(self) -> Any:
        """(H, W, 3) uint8 rgb where `render_mode` is rgb_array."""
        return self._env.render()

    def close(self) -> None:
        """Free what the environment holds."""
        self._env.close()

    def _flat(self, observation: Any) -> np.ndarray:
        if self._vector:
            return observation.astype(np.float32)
        return np.asarray(spaces.flatten(self._env.observation_space, observation), dtype=np.float32)


class Seen(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A task of the dm_control suite as its camera shows it: {"state": (0,), "frames": (9, 84, 84) uint8}."""

    vision = Vision(cameras=("task",), height=84, width=84, stack=3)  # what published results from pixels use

    def __init__(self, suite: Suite, inner: _Dmc) -> None:
        self._suite, self._inner, self.rate_hz, self.max_steps = suite, inner, suite.rate_hz, suite.max_steps
        self.metadata, self.render_mode, self.action_space = suite.metadata, suite.render_mode, suite.action_space
        self.observation_space = spaces.Dict({  # type: ignore[assignment]
            "state": spaces.Box(-np.inf, np.inf, (0,), np.float32),
            "frames": spaces.Box(0, 255, self.vision.shape, np.uint8)})
        self._frames = np.zeros((self.vision.stack, *self.vision.frame), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode, whose first image fills the stack."""
        _, info = self._suite.reset(seed=seed, options=options)
        self._frames[:] = self._look()
        return self._observation(), info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """As the suite's, with the image after the held steps."""
        _, reward, terminated, truncated, info = self._suite.step(action)
        self._frames[:-1] = self._frames[1:]
        self._frames[-1] = self._look()
        return self._observation(), reward, terminated, truncated, info

    def render(self) -> Any:
        """As the suite's."""
        return self._suite.render()

    def close(self) -> None:
        """Free what the environment holds."""
        self._suite.close()

    def _look(self) -> np.ndarray:
        return self._inner.picture(self.vision.width, self.vision.height).transpose(2, 0, 1)

    def _observation(self) -> dict[str, np.ndarray]:
        return {"state": np.zeros(0, np.float32), "frames": self._frames.reshape(self.vision.shape).copy()}


class _Dmc(gymnasium.Env[np.ndarray, np.ndarray]):
    """A task of the dm_control suite. Its time limit truncates; only a discount of 0 terminates."""

    def __init__(self, name: str, render_mode: str | None) -> None:
        suite = _dm_control()
        known = {f"{domain}-{task}": (domain, task) for domain, task in suite.ALL_TASKS}
        if name not in known:
            raise SpecError(f"dmc:{name} is unknown; {_close(name, known)}")
        # a fixed seed here, because some tasks draw their model with it, and reset(seed) must determine everything
        self._env = suite.load(*known[name], task_kwargs={"random": 0})
        self.render_mode = render_mode
        self._camera = CAMERAS.get(known[name][0], 0)
        self._pictures: dict[tuple[int, int], Offscreen] = {}
        seconds = self._env.control_timestep()
        self.rate_hz = 1.0 / seconds
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(self.rate_hz)}
        limit = self._env._step_limit
        self.max_steps = int(np.ceil(limit)) if np.isfinite(limit) else None
        action = self._env.action_spec()
        self.action_space = spaces.Box(action.minimum.astype(np.float64), action.maximum.astype(np.float64),
                                       dtype=np.float64)
        shapes = [spec.shape for spec in self._env.observation_spec().values()]
        size = sum(int(np.prod(shape)) for shape in shapes)
        self._vectors = all(len(shape) == 1 for shape in shapes)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._env.task._random = np.random.RandomState(seed % 2**32)
        return self._observe(self._env.reset().observation), {}

    def step(self, action: np.ndarray) -> Step:
        step = self._env.step(action)
        terminated = step.last() and step.discount == 0.0
        return self._observe(step.observation), step.reward or 0.0, terminated, step.last() and not terminated, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """(240, 320, 3) uint8 rgb of the task's camera."""
        return self.picture(320, 240)

    def picture(self, width: int, height: int) -> np.ndarray:
        """(H, W, 3) uint8 rgb of the task's camera."""
        model = self._env.physics.model.ptr
        if (width, height) not in self._pictures:
            self._pictures[width, height] = Offscreen(model, width, height)
        return self._pictures[width, height].render(self._env.physics.data.ptr, self._camera if model.ncam else -1)

    def close(self) -> None:
        for picture in self._pictures.values():
            picture.close()
        self._pictures.clear()

    def _observe(self, observation: dict[str, Any]) -> np.ndarray:
        parts = observation.values() if self._vectors else [np.ravel(value) for value in observation.values()]
        return np.concatenate([*parts], dtype=np.float32, casting="same_kind")


def _dm_control() -> Any:
    """The suite module, imported when first asked for, without a window system: `offscreen` draws its pictures."""
    chosen = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        from dm_control import suite
    except ImportError as error:
        raise SpecError(f"dmc: tasks need dm_control (pip install 'robot-rl[sim]'): {error}") from error
    finally:
        os.environ.pop("MUJOCO_GL")
        if chosen is not None:
            os.environ["MUJOCO_GL"] = chosen
    return suite


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MuJoCo's remarks on how the suite's own models are written."""
    from absl import logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _gym(name: str, render_mode: str | None) -> gymnasium.Env:
    options: dict[str, Any] = {"render_mode": render_mode} if render_mode else {}  # not every environment takes it
    try:
        return gymnasium.make(name, disable_env_checker=True, **options)
    except gymnasium.error.UnregisteredEnv as error:
        raise SpecError(f"gym:{name} is unknown; {_close(name, gymnasium.registry)}") from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise SpecError(f"gym:{name} cannot start: {error}") from error


def _close(name: str, known: Iterable[str]) -> str:
    """The known names that are closest, as part of an error."""
    names = {known.lower(): known for known in known}
    close = difflib.get_close_matches(name.lower(), names, 5, 0.5)
    return f"did you mean {', '.join(names[c] for c in close)}?" if close else f"there are {', '.join(sorted(known))}"


def _leaves(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    """The spaces inside nested dicts and tuples."""
    if isinstance(space, spaces.Dict):
        return [leaf for inner in space.values() for leaf in _leaves(inner)]
    if isinstance(space, spaces.Tuple):
        return [leaf for inner in space.spaces for leaf in _leaves(inner)]
    return [space]


def _bare(env: gymnasium.Env) -> gymnasium.Env:
    """An environment without the wrappers that only check and count its steps."""
    while isinstance(env, gymnasium.wrappers.OrderEnforcing | gymnasium.wrappers.TimeLimit):
        env = env.env
    return env


def _rate_hz(env: gymnasium.Env) -> float | None:
    """Steps a second, as far as the environment says."""
    inner = env.unwrapped
    if isinstance(inner, _Dmc):
        return inner.rate_hz
    seconds = getattr(inner, "dt", None)
    if isinstance(seconds, float) and seconds > 0:
        return 1.0 / seconds
    frames = inner.metadata.get("render_fps")
    return float(frames) if frames else None


def _step_limit(env: gymnasium.Env) -> int | None:
    """Steps an episode at most, as far as the environment says."""
    if isinstance(env.unwrapped, _Dmc):
        return env.unwrapped.max_steps
    return env.spec.max_episode_steps if env.spec else None
