"""The hand-written CPU kernels of kernels.cpp: compiled once for this processor, kept in the user's cache, and called."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-std=c++17", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None, with one warning that says what is lacking, where they cannot be had."""
    compiler = next((path for name in (os.environ.get("CXX"), "g++", "clang++") if name and (path := shutil.which(name))), None)
    if compiler is None:
        return _without("no C++ compiler was found (on Debian and Ubuntu: apt install g++)")
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return _without(f"{compiler} could not compile {SOURCE.name}: {said.strip().splitlines()[-1] if said else error}")


def _without(reason: str) -> None:
    warnings.warn(f"learning runs without its compiled kernels, about half as fast: {reason}", stacklevel=4)


def _built(compiler: str) -> Path:
    """The shared library, from the cache when this source was compiled for this processor by this compiler before."""
    units = sorted(name for name, there in torch.cpu.get_capabilities().items() if there)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(repr((SOURCE.read_text(), FLAGS, units, version)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "robot_rl")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir(), f"robot_rl_{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"kernels_{key}.so"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(partial)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        os.replace(partial, path)
    return path


def address(tensor: Tensor | None) -> ctypes.c_void_p | None:
    """Where a contiguous CPU tensor's numbers lie; None stays None."""
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
