"""Export: a policy module as one ONNX file that carries its contract, checked against torch each time it is written.

File: inputs `obs` (B, O) and `noise` (B, N) float32, of a policy that sees also `frames` (B, C, H, W) uint8; output
`action` (B, A) float32, B free (1 of a planner); where something is carried from step to step also an input `carry`,
zeros at an episode's start, and an output `carry_out`, (B, ...) float32 both; of a planner also an output `scores`
(B, N), the values of its first candidates; metadata `robot_rl` (the contract, JSON), a digest of both and
`weights_sha256`.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from robot_rl.learn.actors import Policy
from robot_rl.log import write_atomic
from robot_rl.policy import seal

TOLERANCE = 1e-5  # largest allowed difference of an action between torch and ONNX Runtime
SEEING_TOLERANCE = 1e-4  # of a policy with convolutions, or with a planner
OUTPUTS = ["action", "carry_out", "scores"]
OPSET = 18  # read by the ONNX Runtime of every Python from 3.10 on
Inputs = dict[str, Tensor]
_traced: dict[str, onnx.ModelProto] = {}  # graphs of earlier exports: tracing takes seconds, new weights do not


class ExportError(ValueError):
    """The file would not do what the module does."""


def export(
    policy: nn.Module,
    obs_size: int,
    noise_size: int,
    contract_json: str,
    path: str | os.PathLike[str],
    frames: tuple[int, int, int] | None = None,
    examples: Mapping[str, np.ndarray] | None = None,
    carry: tuple[int, ...] = (),
) -> float:
    """Write `policy` to `path` atomically and return the largest difference to torch that was found.

    The two are compared on random observations, with `frames` (C, H, W) where the policy sees, and on `examples`, a
    batch's obs (B, O) and frames, with and without noise. A difference above TOLERANCE (SEEING_TOLERANCE with frames
    or a planner, or where torch itself is a quarter as far from double precision) is an ExportError, and a file that
    was at `path` stays. `carry` is the shape, without the batch, of what a step hands to the next; () for nothing.
    """
    policy = policy.cpu().eval()
    tests = _tests(obs_size, noise_size, frames, examples, carry)
    if plans(policy):  # a graph of many steps, traced for one row: several times as quick
        tests = [{name: value[row:row + 1] for name, value in test.items()} for test in tests for row in range(4)
                 if row < len(test["obs"])]
    key = repr((policy, [(name, value.shape) for name, value in policy.state_dict().items()]))
    model = _traced.get(key) or _trace(policy, tests[-1])
    _set_weights(model, policy.state_dict())
    del model.metadata_props[:]
    model.metadata_props.add(key="weights_sha256", value=weights_hash(policy))
    content = seal(model.SerializeToString(), contract_json)
    difference = parity(policy, content, tests)
    allowed = SEEING_TOLERANCE if frames is not None or plans(policy) else TOLERANCE
    if allowed < difference:
        allowed = min(max(allowed, 4 * rounding(policy, tests)), SEEING_TOLERANCE)
    if not difference <= allowed:
        raise ExportError(f"{path}: torch and ONNX Runtime differ by {difference:.3g}, {allowed:g} is allowed")
    _traced[key] = model
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return difference


def weights_hash(policy: nn.Module) -> str:
    """SHA-256, in hex, of the names and the values of everything that `policy` holds."""
    digest = hashlib.sha256()
    for name, value in sorted(policy.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def parity(policy: nn.Module, content: bytes, tests: list[Inputs]) -> float:
    """The largest absolute difference of an output between `policy` and the ONNX file `content` on `tests`.

    Where something is carried, each test is of two steps: the first of an episode and one after it. What a
    planner gives is in units of 1 plus its largest score, since it weighs candidates by what their scores differ by.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for inputs in tests:
        for _ in range(2 if "carry" in inputs else 1):
            with torch.inference_mode():
                outputs = policy(**inputs)
            expected = outputs if isinstance(outputs, tuple) else (outputs,)
            size = 1 + float(expected[-1].abs().max()) if plans(policy) else 1.0
            feed = {name: value.numpy() for name, value in inputs.items()}
            for name, wanted, found in zip(OUTPUTS, expected, session.run(None, feed), strict=False):
                if found.shape != tuple(wanted.shape):
                    raise ExportError(f"ONNX Runtime returned {name} {found.shape}, torch {tuple(wanted.shape)}")
                difference = float(np.abs(found - wanted.numpy()).max()) / size
                worst = max(worst, difference) if np.isfinite(difference) else float("inf")
            inputs = inputs | dict(zip(("carry",), expected[1:], strict=False))
    return worst


def plans(policy: nn.Module) -> bool:
    """Whether a planner is in it."""
    return isinstance(policy, Policy) and policy.plans


def rounding(policy: nn.Module, tests: list[Inputs]) -> float:
    """The largest absolute difference of the first output on `tests` between `policy` and its copy in float64."""
    exact, worst = copy.deepcopy(policy).double(), 0.0
    for inputs in tests:
        with torch.inference_mode():
            both = [one(**seen) for one, seen in ((policy, inputs), (exact, {
                name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}))]
        first, second = (outputs[0] if isinstance(outputs, tuple) else outputs for outputs in both)
        worst = max(worst, float((first - second).abs().max()))
    return worst


def _tests(obs_size: int, noise_size: int, frames: tuple[int, int, int] | None,
           examples: Mapping[str, np.ndarray] | None, carry: tuple[int, ...]) -> list[Inputs]:
    """Inputs of several sizes, random ones of small and large scale and the examples, each with and without noise."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for size, scale in ((64, 10.0), (64, 1.0), (1, 1.0), (2, 1.0)):
        seen = torch.randint(256, (size, *(frames or (0, 0, 0))), generator=generator, dtype=torch.uint8)
        batches.append((torch.randn(size, obs_size, generator=generator) * scale, seen))
    if examples is not None:
        obs = torch.as_tensor(examples["obs"])
        batches.insert(0, (obs, torch.as_tensor(examples.get("frames", np.zeros(len(obs), np.uint8)))))
    tests = []
    for obs, seen in batches:
        noise = torch.randn(len(obs), noise_size, generator=generator)
        more = ({} if frames is None else {"frames": seen}) | (
            {"carry": torch.zeros(len(obs), *carry)} if carry else {})
        tests += [{"obs": obs, "noise": noise * scale} | more for scale in (0.0, 1.0)]
    return tests


def _trace(policy: nn.Module, example: Inputs) -> onnx.ModelProto:
    """The graph of `policy` with its parameters and buffers as initializers of the same names."""
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # names absent torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            policy,
            kwargs=example,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # folding would bake weights into constants that a later export could not replace
            verbose=False,
            input_names=list(example),
            output_names=OUTPUTS[: 1 + ("carry" in example) + plans(policy)],
            dynamic_shapes=None if plans(policy) else {name: {0: "batch"} for name in example},
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.doc_string = ""  # the exporter notes source files of the machine that it ran on
        del part.metadata_props[:]
    del model.graph.metadata_props[:]
    return model


def _set_weights(model: onnx.ModelProto, state: dict[str, Tensor]) -> None:
    for initializer in model.graph.initializer:
        if initializer.name in state:
            value = state[initializer.name].detach().cpu().contiguous().numpy()
            initializer.CopyFrom(onnx.numpy_helper.from_array(value, initializer.name))
