"""Export: a policy module as one ONNX file that carries its contract, checked against torch each time it is written.

File: inputs `obs` (B, O) and `noise` (B, N) float32, output `action` (B, A) float32, B free; where something is carried
from step to step also an input `carry`, zeros at an episode's start, and an output `carry_out`, (B, ...) float32 both;
metadata `robot_rl` (the contract, JSON), a digest of both and `weights_sha256`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from robot_rl.policy import seal

TOLERANCE = 1e-5  # largest allowed difference of an action between torch and ONNX Runtime
INPUTS, OUTPUTS = ["obs", "noise", "carry"], ["action", "carry_out"]
OPSET = 18  # read by the ONNX Runtime of every Python from 3.10 on
_traced: dict[str, onnx.ModelProto] = {}  # graphs of earlier exports: tracing takes seconds, new weights do not


class ExportError(RuntimeError):
    """The file would not do what the module does."""


def export(
    policy: nn.Module,
    obs_size: int,
    noise_size: int,
    contract_json: str,
    path: str | os.PathLike[str],
    examples: np.ndarray | None = None,
    carry: tuple[int, ...] = (),
) -> float:
    """Write `policy` to `path` atomically and return the largest difference to torch that was found.

    The two are compared on random observations and on `examples` (B, O), with and without noise. A difference above
    TOLERANCE is an ExportError, and a file that was at `path` stays. `carry` is the shape, without the batch, of what
    a step hands to the next; () for nothing.
    """
    policy = policy.cpu().eval()
    tests = _tests(obs_size, noise_size, examples)
    key = repr((policy, [(name, value.shape) for name, value in policy.state_dict().items()]))
    model = _traced.get(key) or _trace(policy, obs_size, noise_size, carry)
    _set_weights(model, policy.state_dict())
    del model.metadata_props[:]
    model.metadata_props.add(key="weights_sha256", value=weights_hash(policy))
    content = seal(model.SerializeToString(), contract_json)
    difference = parity(policy, content, tests, carry)
    if not difference <= TOLERANCE:
        raise ExportError(f"{path}: torch and ONNX Runtime differ by {difference:.3g}, {TOLERANCE:g} is allowed")
    _traced[key] = model
    _replace(Path(path), content)
    return difference


def weights_hash(policy: nn.Module) -> str:
    """SHA-256, in hex, of the names and the values of everything that `policy` holds."""
    digest = hashlib.sha256()
    for name, value in sorted(policy.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def parity(policy: nn.Module, content: bytes, tests: list[tuple[Tensor, Tensor]], carry: tuple[int, ...] = ()
           ) -> float:
    """The largest absolute difference of an output between `policy` and the ONNX file `content` on `tests`.

    Where something is carried, each test is of two steps: the first of an episode and one after it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for obs, noise in tests:
        carried = (torch.zeros(len(obs), *carry),) if carry else ()
        for _ in range(1 + len(carried)):
            given = (obs, noise, *carried)
            with torch.inference_mode():
                outputs = policy(*given)
            expected = outputs if isinstance(outputs, tuple) else (outputs,)
            feed = {name: value.numpy() for name, value in zip(INPUTS, given, strict=False)}
            for name, wanted, found in zip(OUTPUTS, expected, session.run(None, feed), strict=False):
                if found.shape != tuple(wanted.shape):
                    raise ExportError(f"ONNX Runtime returned {name} {found.shape}, torch {tuple(wanted.shape)}")
                difference = float(np.abs(found - wanted.numpy()).max())
                worst = max(worst, difference) if np.isfinite(difference) else float("inf")
            carried = expected[1:]
    return worst


def _tests(obs_size: int, noise_size: int, examples: np.ndarray | None) -> list[tuple[Tensor, Tensor]]:
    """(obs, noise) pairs of several batch sizes: random ones of small and large scale, and the examples."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 1.0), (64, 1.0), (64, 10.0))
    batches = [torch.randn(size, obs_size, generator=generator) * scale for size, scale in sizes]
    if examples is not None and len(examples):
        batches.append(torch.as_tensor(np.asarray(examples), dtype=torch.float32).reshape(-1, obs_size))
    noise = [torch.randn(len(obs), noise_size, generator=generator) for obs in batches]
    return [(obs, drawn * scale) for obs, drawn in zip(batches, noise, strict=True) for scale in (0.0, 1.0)]


def _trace(policy: nn.Module, obs_size: int, noise_size: int, carry: tuple[int, ...]) -> onnx.ModelProto:
    """The graph of `policy` with its parameters and buffers as initializers of the same names."""
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # names absent torchvision
    sizes = [(obs_size,), (noise_size,), *([carry] if carry else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            policy,
            tuple(torch.zeros(2, *size) for size in sizes),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # folding would bake weights into constants that a later export could not replace
            verbose=False,
            input_names=INPUTS[: len(sizes)],
            output_names=OUTPUTS[: len(sizes) - 1],
            dynamic_shapes=tuple({0: "batch"} for _ in sizes),
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


def _replace(path: Path, content: bytes) -> None:
    """Write the file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
