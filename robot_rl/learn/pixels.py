"""Frames as bytes -> numbers in [0, 1] for a network. Axes: B batch, S stack, C channels, H height, W width."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robot_rl.frames import shared
from robot_rl.learn.encoders import PER_LEVEL
from robot_rl.replay import Batch

CHUNK = 8  # samples converted at a time, so that the second pass over them finds them in the processor's cache


class Pixels:
    """Converts the frames of a batch into buffers of its own, which the next call fills anew.

    New memory for each batch, 87 MB for 256 times four 84 x 84 x 3 frames, takes longer than the conversion itself.
    With `most` above 0 each observation is moved by up to so many pixels, edges repeated (random shift: Yarats et al.
    2021, DrQ-v2).
    """

    def __init__(self, most: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.most, self.dtype, self.device = most, dtype, torch.device(device)
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """frames and next_frames (B, S * C, H, W) or (B, T, S * C, H, W) of a `FrameReplay`'s batch as floats."""
        if self.most:
            return {key: self._moved(key, batch[key], generator) for key in ("frames", "next_frames")}
        frames = shared(batch)
        if frames is None:
            return {key: self._convert(key, batch[key]) for key in ("frames", "next_frames")}
        both = self._convert("both", frames)  # once for both
        return {"frames": both[:, :-1].flatten(1, 2), "next_frames": both[:, 1:].flatten(1, 2)}

    def _convert(self, name: str, frames: np.ndarray) -> Tensor:
        source, out = torch.from_numpy(frames).to(self.device), self._buffer(name, frames.shape)  # to a GPU as bytes
        step = CHUNK if self.device.type == "cpu" else len(source)
        for first in range(0, len(source), step):
            out[first : first + step].copy_(source[first : first + step]).mul_(PER_LEVEL)
        return out

    def _moved(self, name: str, frames: np.ndarray, generator: torch.Generator) -> Tensor:
        alone = frames.reshape(-1, *frames.shape[-3:])
        shift = torch.randint(2 * self.most + 1, (len(alone), 2), generator=generator, device=generator.device)
        out = self._buffer(name, alone.shape)
        if self.device.type == "cpu":  # slices of a padded batch: ten times as fast here as one gather
            wide = torch.from_numpy(np.pad(alone, ((0, 0), (0, 0), (self.most,) * 2, (self.most,) * 2), "edge"))
            height, width = alone.shape[-2:]
            for to, seen, (down, right) in zip(out, wide, shift.tolist(), strict=True):
                to.copy_(seen[:, down : down + height, right : right + width]).mul_(PER_LEVEL)
        else:
            out.copy_(shifted(torch.from_numpy(alone).to(self.device), shift, self.most)).mul_(PER_LEVEL)
        return out.view(frames.shape)

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        out = self._buffers.get(name)
        if out is None or out.shape != shape:
            out = self._buffers[name] = torch.empty(shape, dtype=self.dtype, device=self.device)
        return out


def shifted(frames: Tensor, shift: Tensor, most: int) -> Tensor:
    """(B, C, H, W) moved by `shift` (B, 2) int64 in 0 .. 2 `most` minus `most` pixels, edges repeated."""
    rows, columns = (
        (torch.arange(size, device=frames.device) + shift[:, axis, None] - most).clamp(0, size - 1)
        for axis, size in enumerate(frames.shape[-2:])
    )
    batch = torch.arange(frames.shape[0], device=frames.device)[:, None, None, None]
    channel = torch.arange(frames.shape[1], device=frames.device)[:, None, None]
    return frames[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]
