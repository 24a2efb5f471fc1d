"""Checkpoints: one file, written atomically, loaded without running any code from it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.log import write_atomic


def save(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts of tensors, arrays, numbers and text; a crash leaves the old file."""
    buffer = io.BytesIO()
    torch.save(_to_tensors(state), buffer)
    write_atomic(path, buffer.getvalue())


def load(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Read what `save` wrote; arrays come back as arrays. Raises ValueError naming the file when it is damaged."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint {path}: cannot be read: {error}") from error
    return _to_arrays(state)


def _to_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_tensors(v) for k, v in value.items()}
    return {"__array__": torch.from_numpy(np.array(value))} if isinstance(value, np.ndarray) else value


def _to_arrays(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if set(value) == {"__array__"}:
        return value["__array__"].cpu().numpy()
    return {k: _to_arrays(v) for k, v in value.items()}
