"""Checkpoints: one file, written atomically, loaded without running any code from it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl import __version__
from robot_rl.log import atomic

FORMAT = 2
"""Of what is saved; raised when runs begun before can no longer go on. 2: each layer's weights are tensors by
themselves."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts of tensors, arrays, numbers and text, without a copy; a crash leaves the old file."""
    try:
        with atomic(path) as file:
            torch.save(_to_tensors(state | {"format": FORMAT, "robot_rl": __version__}), file)
    except RuntimeError as error:  # torch's own, which follows from what the disk said
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote; arrays come back as arrays, which the file is mapped to as long as they live.

    Raises ValueError naming the file when it is damaged, or of another format.
    """
    try:
        with zipfile.ZipFile(path) as parts:  # torch itself does not look at the checksums
            if bad := parts.testzip():
                raise ValueError(f"{bad} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f"checkpoint {path}: cannot be read: {error}") from error
    found, made = state.pop("format", 1), state.pop("robot_rl", "before formats had a number")
    if found != FORMAT:
        raise ValueError(f"checkpoint {path}: has format {found}, this version of robot_rl reads format {FORMAT}: go "
                         f"on with the version that made it ({made}), or train anew; exported policies still run")
    return _to_arrays(state)


def _to_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_tensors(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_to_tensors(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()  # numpy's own would not be read again
    if not isinstance(value, np.ndarray):
        return value
    return {"__array__": torch.from_numpy(np.require(value, requirements=("C", "W")))}


def _to_arrays(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_arrays(v) for v in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"__array__"}:
        return value["__array__"].cpu().numpy()
    return {k: _to_arrays(v) for k, v in value.items()}
