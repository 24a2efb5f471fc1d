"""Frames as bytes -> numbers in [0, 1] for a network. Axes: B batch, S stack, C channels, H height, W width."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robot_rl.frames import shared
from robot_rl.replay import Batch

CHUNK = 8  # samples converted at a time, so that the second pass over them finds them in the processor's cache


class Pixels:
    """Converts the frames of a batch into buffers of its own, which the next call fills anew.

    New memory for each batch, 87 MB for 256 times four 84 x 84 x 3 frames, takes longer than the conversion itself.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """frames and next_frames (B, S * C, H, W) of a `FrameReplay`'s batch as floats; shared ones converted once."""
        frames = shared(batch)
        if frames is None:
            return {key: self._convert(key, batch[key]) for key in ("frames", "next_frames")}
        both = self._convert("both", frames)
        return {"frames": both[:, :-1].flatten(1, 2), "next_frames": both[:, 1:].flatten(1, 2)}

    def _convert(self, name: str, frames: np.ndarray) -> Tensor:
        source = torch.from_numpy(frames).to(self.device)  # to a GPU as bytes
        out = self._buffers.get(name)
        if out is None or out.shape != source.shape:
            out = self._buffers[name] = torch.empty(source.shape, dtype=self.dtype, device=self.device)
        step = CHUNK if self.device.type == "cpu" else len(source)
        for first in range(0, len(source), step):
            out[first : first + step].copy_(source[first : first + step]).mul_(1.0 / 255.0)
        return out
