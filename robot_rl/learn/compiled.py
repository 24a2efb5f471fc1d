"""Compilation of an agent's steps, where this machine can: an update, or a piece of it, as one graph of fused loops."""

from __future__ import annotations

import functools
import os
import shutil
import sysconfig
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException


class Compiled:
    """`function`, or a method, compiled at its first call; if that fails, as it is, with one warning.

    Between calls only tensors are compared with those of the first call (and lead to another compilation when their
    sizes differ): what else it reads must never change, nor whether it is called with gradients. Torch keeps what it
    compiled with the code object, so each Compiled has its own: otherwise two agents, or two closures of one agent,
    would run each other's steps.
    """

    def __init__(self, function: Callable[..., dict[str, torch.Tensor]], device: str = "cpu"):
        self.plain = function
        owner, of = getattr(function, "__self__", None), getattr(function, "__func__", function)
        assert isinstance(of, types.FunctionType), f"{function} has no code of its own to compile"
        own = types.FunctionType(of.__code__.replace(), of.__globals__, of.__name__, of.__defaults__, of.__closure__)
        torch._dynamo.config.trace_autograd_ops = True  # gradients are taken inside the graph
        torch._functorch.config.force_non_lazy_backward_lowering = True  # or behind it: what fails then fails here
        # kernels called from C++, not Python: 3 to 15% of an update; for a GPU that would take CUDA's own compiler
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe,
                                   "cpp_wrapper": torch.device(device).type == "cpu"}
        self.fast: Callable[..., dict[str, torch.Tensor]] | None = torch.compile(
            own if owner is None else types.MethodType(own, owner), fullgraph=True, dynamic=False, options=options
        )

    def __call__(self, *args: Any) -> dict[str, torch.Tensor]:
        if self.fast is None:
            return self.plain(*args)
        try:
            return self.fast(*args)
        except TorchDynamoException as error:
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            warn_once(first)
            self.fast = None
            return self.plain(*args)


Fast = Callable[[Callable[..., dict[str, torch.Tensor]]], Callable[..., dict[str, torch.Tensor]]]
"""Makes a function quicker, such as `compiled` with its choices made."""


def plain(function: Callable[..., dict[str, torch.Tensor]]) -> Callable[..., dict[str, torch.Tensor]]:
    """A function as it is."""
    return function


def compiled(
    function: Callable[..., dict[str, torch.Tensor]], wanted: bool | None, device: str
) -> Callable[..., dict[str, torch.Tensor]]:
    """`function` compiled, unless `wanted` is False or this machine lacks a compiler (then with a warning)."""
    if wanted is False:
        return function
    lacking = missing_tools() if torch.device(device).type == "cpu" else ""
    if lacking:
        warn_once(lacking)
        return function
    return Compiled(function, device)


@functools.cache
def warn_once(reason: str) -> None:
    """Say why learning runs uncompiled."""
    warnings.warn(f"learning runs uncompiled, about half as fast: {reason}", stacklevel=3)


def missing_tools() -> str:
    """What compiling for the CPU lacks on this machine, and how to get it; nothing when it lacks nothing."""
    compiler = os.environ.get("CXX", "g++")
    if not any(shutil.which(name) for name in (compiler, "g++", "clang++")):
        return "no C++ compiler was found (on Debian and Ubuntu: apt install g++ python3-dev)"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"{header} is not there (on Debian and Ubuntu: apt install python3-dev)"
    return ""
