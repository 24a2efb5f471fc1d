"""Encoders: from camera frames to features. Axes: B batch, C channels of all frames, H height, W width, Z features."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (2, 2, 2, 1)
PER_LEVEL = 1.0 / 255.0  # frames as bytes times this are the numbers in [0, 1] that encoders take
KERNEL = 3


class Convolutions(nn.Module):
    """Four 3 x 3 convolutions with ReLU: 64 x 64 pixels become 5 x 5 places of `channels` numbers."""

    def __init__(self, shape: tuple[int, int, int], channels: int, generator: torch.Generator,
                 dtype: torch.dtype = torch.float32):
        """`shape` is (C, H, W); products are made in `dtype`. Raises ValueError for frames that are too small."""
        super().__init__()
        self.dtype, (first, *side) = dtype, shape
        for stride in STRIDES:
            side = [(one - KERNEL) // stride + 1 for one in side]
        if min(side) < 1:
            raise ValueError(f"frames of {shape[1]} x {shape[2]} pixels are too small for {len(STRIDES)} convolutions")
        widths = itertools.pairwise((first, *(channels,) * len(STRIDES)))
        self.layers = nn.Sequential(*(nn.Conv2d(*pair, KERNEL, stride)
                                      for pair, stride in zip(widths, STRIDES, strict=True)))
        for parameter in self.parameters():
            bound = (3.0 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.0
            parameter.data.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
        self.size = channels * side[0] * side[1]

    def forward(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, Z) float32."""
        x = (frames - 0.5).to(self.dtype, memory_format=torch.channels_last)  # twice as fast on processors
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            x = F.conv2d(x, layer.weight.to(self.dtype), layer.bias.to(self.dtype), layer.stride).relu()
        return x.flatten(1).float()

    def frozen(self) -> Convolutions:
        """A copy that is exported, in float32."""
        plain = copy.deepcopy(self)
        plain.dtype = torch.float32
        return plain


class Pretrained(nn.Module):
    """An encoder from a file of `torch.export.save`, which learns no more.

    It takes one rgb image (B, 3, H, W) in [0, 1] at the policy's size and gives (B, Z); each image of the frames goes
    through it by itself.
    """

    def __init__(self, path: str, shape: tuple[int, int, int]):
        """`shape` is (C, H, W). Raises ValueError for a file that does not do this."""
        super().__init__()
        self.images = shape[0] // 3
        if not Path(path).is_file():
            raise ValueError(f"encoder {path}: no such file")
        try:
            self.inner = torch.export.load(path).module()
            with torch.no_grad():
                self.size = int(self(torch.zeros(2, *shape)).shape[1])
        except Exception as error:
            said = (str(error) or repr(error)).splitlines()[0]
            raise ValueError(f"encoder {path}: not a torch.export file that takes (B, 3, {shape[1]}, {shape[2]}) and "
                             f"gives (B, Z), B free: {said}") from error
        self.requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, Z) float32."""
        images = frames.unflatten(1, (self.images, 3)).flatten(0, 1)
        features: Tensor = self.inner(images)
        return features.reshape(frames.shape[0], -1)

    def train(self, mode: bool = True) -> Pretrained:
        """Nothing: an exported program is in the mode that it was exported in."""
        return self

    def frozen(self) -> Pretrained:
        """A copy that is exported."""
        return copy.deepcopy(self)

