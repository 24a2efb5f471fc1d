"""Observation → action (stage 3 of a step): one ONNX file that carries network, normaliser and contract.

A file with an input `carry` and an output `carry_out` hands the one, (1, ...), to the next step's other. One with an
output `scores` plans: its carry (1, H, A) is the plan, moved on to the next step.
"""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from robot_rl.observe import Observation, blank, state_of
from robot_rl.spec import PolicySpec, SpecError

LARGEST_CARRY = 1 << 24
CONTRACT_KEY, DIGEST_KEY, SIZE_KEY = "robot_rl", "robot_rl_sha256", "robot_rl_graph_bytes"


class Late(TimeoutError):
    """A decision was cut short by `Policy.halt`."""


class Policy:
    """A policy file, checked and ready to act.

    Raises SpecError when the file is missing, damaged, without a contract, or of another size than its contract says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise SpecError(f"policy {path}: cannot be read: {error.strerror}") from error
        try:
            self._session = onnxruntime.InferenceSession(data, _options(), providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:
            raise SpecError(f"policy {path}: not a usable ONNX file: {str(error).splitlines()[0]}") from error
        if CONTRACT_KEY not in metadata:
            raise SpecError(f"policy {path}: no '{CONTRACT_KEY}' contract in its metadata (it has "
                            f"{sorted(metadata) or 'none'}); export it with `robot-rl export`")
        _verify(data, metadata, str(path))
        self.spec = PolicySpec.from_json(metadata[CONTRACT_KEY], f"policy {path}")
        self.hold = self.spec.trained.get("hold", 1)
        """Steps that an exploring noise was held for at most while this was trained."""
        if not isinstance(self.hold, int) or self.hold < 1:
            raise SpecError(f"policy {path}: trained.hold is {self.hold!r}; noise is held for at least 1 step")
        self.sha256 = hashlib.sha256(data).hexdigest()
        shapes = {one.name: one.shape for one in self._session.get_inputs()}
        self._check_sizes(shapes)
        wanted = {"action"} | ({"carry_out"} if "carry" in shapes else set())
        if missing := wanted - {one.name for one in self._session.get_outputs()}:
            raise SpecError(f"policy {path}: the network has no output {', '.join(sorted(missing))}")
        self._feed = {name: np.zeros((1, *shape[1:]), np.uint8 if name == "frames" else np.float32)
                      for name, shape in shapes.items()}
        self._carry = self._feed.get("carry")
        self.plans = "scores" in [one.name for one in self._session.get_outputs()]
        self.steps_left = 0
        """Steps that the newest plan still says something of, if it is one that plans."""
        self._run = onnxruntime.RunOptions()
        self._results = {"action": np.zeros((1, self.spec.action_size), np.float32)}
        if self._carry is not None:
            self._results["carry_out"] = np.zeros_like(self._carry)
        self._binding = self._session.io_binding()  # the network reads and writes these arrays where they lie
        for name, array in self._feed.items():
            self._binding.bind_cpu_input(name, array)
        for name, array in self._results.items():
            self._binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def __call__(self, observation: Observation, noise: np.ndarray | None = None) -> np.ndarray:
        """Action (A,) float32 in [-1, 1] for an observation of the contract.

        Standard normal `noise` (`noise_size`,) gives the action that the learner would explore with; None the best one.
        """
        self._feed["obs"][0] = state_of(observation)
        if isinstance(observation, dict):
            self._feed["frames"][0] = observation["frames"]
        self._feed["noise"][0] = 0.0 if noise is None else noise
        action = self.again().copy()
        if self._carry is not None:
            self._carry[:] = self._results["carry_out"]
        if self.plans and self._carry is not None:
            self.steps_left = self._carry.shape[1] - 1
        return action

    def again(self) -> np.ndarray:
        """The network run on what it saw last, (A,), with nothing carried on: a step's work without the step.

        Raises Late, with nothing carried on either, where `halt` was called meanwhile.
        """
        try:
            self._session.run_with_iobinding(self._binding, self._run)
        except Exception as error:
            if self._run.terminate:
                raise Late(f"policy {self.path}: a decision was cut short") from error
            raise
        return self._results["action"][0]

    def halt(self, now: bool = True) -> None:
        """Cut short the decision that another thread is waiting for, and any to come until `halt(False)`."""
        self._run.terminate = now

    def next_planned(self) -> np.ndarray:
        """What the newest plan says of the next step, (A,), which counts as taken. Raises IndexError at its end."""
        if not self.steps_left or self._carry is None:
            raise IndexError(f"policy {self.path}: there is no plan of this step")
        action: np.ndarray = self._carry[0, 0].copy()
        self._carry[0] = np.roll(self._carry[0], -1, 0)
        self._carry[0, -1] = 0.0
        self.steps_left -= 1
        return action.clip(-1.0, 1.0)

    @property
    def noise_size(self) -> int:
        """Numbers of noise that a step takes: one for each that the actor gives, several actions' where it does so."""
        return self._feed["noise"].shape[1]

    def reset(self) -> None:
        """An episode begins: nothing is carried over from the one before."""
        self.steps_left = 0
        if self._carry is not None:
            self._carry[:] = 0.0

    def warm_up(self, calls: int = 50) -> float:
        """Run the network so that the first control tick is not the slow one, which is an episode's first.

        Returns what a call takes of a processor at best, s: others who are busy here now do not count. Calls that are
        slow are fewer: they end after 2 s, but for the first 5.
        """
        best, began = float("inf"), time.perf_counter()
        for call in range(calls):
            if call >= 5 and time.perf_counter() - began > 2.0:
                break
            start = time.thread_time()
            self(blank(self.spec))
            best = min(best, time.thread_time() - start)
        self.reset()
        return best

    def _check_sizes(self, shapes: dict[str, list[Any]]) -> None:
        """The contract says obs and frames; noise is of one action or of several, and what is carried is free."""
        wanted: dict[str, tuple[int, ...]] = {"obs": (self.spec.observation_size,), "noise": (self.spec.action_size,)}
        if self.spec.vision:
            wanted["frames"] = self.spec.vision.shape
        carry = shapes.get("carry", [1, 1])[1:]
        if not all(isinstance(n, int) and n > 0 for n in carry) or math.prod(carry) > LARGEST_CARRY:
            raise SpecError(f"policy {self.path}: input 'carry' is {shapes['carry']} in the network: known sizes, and "
                            f"at most {LARGEST_CARRY} numbers")
        for name in sorted({*wanted, *shapes} - {"carry"}):
            found = tuple(shapes.get(name, [])[1:])
            chunk = name == "noise" and len(found) == 1 and found[0] % self.spec.action_size == 0
            if name not in shapes or (found != wanted.get(name) and not chunk):
                raise SpecError(f"policy {self.path}: input '{name}' is {shapes.get(name, 'absent')} in the network, "
                                f"{('B', *wanted[name]) if name in wanted else 'absent'} in its contract")


class Exploration:
    """Standard normal numbers for a policy's noise, each held for up to as many steps as while it was trained."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng([seed, 1])
        self._noise, self._left = np.zeros(0), 0

    def draw(self, policy: Policy) -> np.ndarray:
        """(`policy.noise_size`,) of the step to come."""
        if self._left == 0 or len(self._noise) != policy.noise_size:
            self._noise = self._random.standard_normal(policy.noise_size)
            self._left = 1
            if policy.hold > 1:
                self._left += int(np.searchsorted(held_for(policy.hold), self._random.random()))
        self._left -= 1
        return self._noise


def held_for(longest: int) -> np.ndarray:
    """Chances (longest - 1,) that noise is held for at most k = 1, 2, … steps; that of k itself falls as 1 / k**2.

    A uniform number past so many of them is held for one step more than that.
    """
    chances = np.arange(1, longest + 1, dtype=float) ** -2.0
    return (chances.cumsum() / chances.sum())[:-1]


def seal(graph: bytes, contract: str) -> bytes:
    """The ONNX bytes with the contract and a digest of both attached as metadata.

    Fields of a protobuf message may be appended, so neither torch nor the `onnx` package is needed to do or undo this.
    """
    digest = _digest(graph, contract)
    entries = {CONTRACT_KEY: contract, DIGEST_KEY: digest, SIZE_KEY: str(len(graph))}
    return graph + b"".join(_field(14, _field(1, k.encode()) + _field(2, v.encode())) for k, v in entries.items())


def _digest(graph: bytes, contract: str) -> str:
    return hashlib.sha256(graph + contract.encode()).hexdigest()


def _verify(data: bytes, metadata: dict[str, str], path: str) -> None:
    size = metadata.get(SIZE_KEY, "")
    found = _digest(data[:int(size)], metadata[CONTRACT_KEY]) if size.isdigit() else "none"
    if found != metadata.get(DIGEST_KEY):
        raise SpecError(f"policy {path}: damaged: {DIGEST_KEY} says {metadata.get(DIGEST_KEY)}, the file gives {found}")


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options
