"""Networks: multi-layer perceptrons with an ensemble axis, whose parameters are one vector; and Adam over such vectors.

One vector per network makes the optimiser step and the target's moving average one pointwise pass each, and the
gradient of a whole network one tensor. Axes: E ensemble, B batch, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def compute_dtype(name: str, device: str) -> torch.dtype:
    """`name` ("float32", "bfloat16" or "auto") as a dtype; auto is bfloat16 on a CPU that multiplies it natively."""
    if name == "auto":
        units = torch.cpu.get_capabilities() if device == "cpu" else {}
        fast = units.get("avx512_bf16", False) or units.get("amx_bf16", False)
        return torch.bfloat16 if fast else torch.float32
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {name!r}; it is auto, float32 or bfloat16")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


FilledLayer = TypeVar("FilledLayer", bound=nn.Module)
Mirror = Callable[[np.ndarray], np.ndarray]


class Layer(NamedTuple):
    """The parameters of one layer, as views. Shapes: weight (E, I, O), the others (E, 1, O)."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


class Mlp(nn.Module):
    """`members` independent perceptrons of `sizes` (inputs, hidden..., outputs) with ReLU between the layers.

    `layer_norm` normalises before each ReLU. `final_scale` shrinks the last layer's first weights.
    `dtype` is that of the products between hidden layers. The small first and last ones are float32 always, as are the
    parameters: an observation or a value rounded to bfloat16's 8 bits would cost a robot its last centimetre.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        members: int,
        generator: torch.Generator,
        layer_norm: bool = False,
        final_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.sizes, self.members, self.layer_norm, self.dtype = tuple(sizes), members, layer_norm, dtype
        self.shapes: list[tuple[int, int, int]] = []
        values: list[Tensor] = []
        for depth, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            last = depth == len(sizes) - 2
            bound = (final_scale if last else 1.0) / math.sqrt(inputs)
            for shape in ((members, inputs, outputs), (members, 1, outputs)):
                values.append((torch.rand(shape, generator=generator) * 2 - 1) * bound)
            if layer_norm and not last:
                values += [torch.ones(members, 1, outputs), torch.zeros(members, 1, outputs)]
        self.shapes = [(value.shape[0], value.shape[1], value.shape[2]) for value in values]
        self.flat = nn.Parameter(torch.cat([value.flatten() for value in values]))

    def layers(self) -> list[Layer]:
        """The layers' parameters as views of `flat`."""
        parts = self.flat.split([math.prod(shape) for shape in self.shapes])
        views = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        width = 4 if self.layer_norm else 2
        return [Layer(*views[start : start + width]) for start in range(0, len(views), width)]

    def forward(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """(B, I) or (E, B, I) -> (E, B, O) float32; `members` (E',) int64 evaluates only those, in that order."""
        layers = self.layers()
        if members is not None:
            layers = [Layer(*(part[members] for part in layer if part is not None)) for layer in layers]
        last = len(layers) - 1
        for depth, layer in enumerate(layers):
            x = linear(x, layer, self.dtype if 0 < depth < last else torch.float32)
            if layer.scale is not None and layer.shift is not None:
                x = F.layer_norm(x, x.shape[-1:]) * layer.scale.to(x.dtype) + layer.shift.to(x.dtype)
            if depth < last:
                x = x.relu()
        return x

    def frozen(self) -> nn.Sequential:
        """The first member in plain layers, a copy: (B, I) -> (B, O)."""
        plain: list[nn.Module] = []
        for layer in self.layers():
            inputs, outputs = layer.weight.shape[1:]
            plain.append(_filled(nn.Linear(inputs, outputs), layer.weight[0].T, layer.bias[0, 0]))
            if layer.scale is not None and layer.shift is not None:
                plain.append(_filled(nn.LayerNorm(outputs), layer.scale[0, 0], layer.shift[0, 0]))
            plain.append(nn.ReLU())
        return nn.Sequential(*plain[:-1])

    def mirror(self) -> Mirror:
        """The first member in numpy over the same memory (on the CPU): (B, I) -> (B, O), quick for few rows."""
        layers = [[part[0].detach().cpu().numpy() for part in layer if part is not None] for layer in self.layers()]

        def forward(x: np.ndarray) -> np.ndarray:
            for depth, (weight, bias, *norm) in enumerate(layers):
                x = x @ weight + bias
                if norm:
                    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm[0] + norm[1]
                if depth < len(layers) - 1:
                    np.maximum(x, 0.0, out=x)
            return x

        return forward

    def extra_repr(self) -> str:
        return f"{self.members} x {'-'.join(map(str, self.sizes))}, layer_norm={self.layer_norm}, {self.dtype}"


def _filled(layer: FilledLayer, weight: Tensor, bias: Tensor) -> FilledLayer:
    layer.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return layer


def split_rows(layer: nn.Linear) -> list[nn.Linear]:
    """`layer` as two that give the first and the second half of its outputs."""
    weights, biases = layer.weight.chunk(2), layer.bias.chunk(2)
    halves = [nn.Linear(layer.in_features, len(bias)) for bias in biases]
    return [_filled(half, weight, bias) for half, weight, bias in zip(halves, weights, biases, strict=True)]


def linear(x: Tensor, layer: Layer, dtype: torch.dtype) -> Tensor:
    """(B, I) or (E, B, I) float -> (E, B, O) `dtype`: the product with the layer's weight, plus its bias."""
    x, weight = x.to(dtype), layer.weight.to(dtype)
    if len(weight) == 1:  # a plain product is faster than a batch of one
        return (x.reshape(-1, x.shape[-1]) @ weight[0])[None] + layer.bias.to(dtype)
    return torch.bmm(x.expand(len(weight), *x.shape[-2:]), weight) + layer.bias.to(dtype)


class Adam:
    """Adam over the parameters of `module`, with its state in tensors so that a step needs no number from the device.

    `clip` bounds the norm of the whole gradient (0: not at all).
    """

    def __init__(self, module: nn.Module, lr: float, clip: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)):
        self.parameters = list(module.parameters())
        self.lr, self.clip, self.betas, self.eps = lr, clip, betas, 1e-8
        self.first = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        device = self.parameters[0].device
        self.decay = torch.tensor(betas, device=device, dtype=torch.float64)  # betas**n, n the number of the next step
        self.factors = torch.zeros(2, device=device)  # of the next step: rate / (1 - decay), 1 / sqrt(1 - decay)
        self._advance(self.decay)

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of `loss` ()."""
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            if self.clip:
                norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
                gradients = tuple(g * (self.clip / (norm + 1e-6)).clamp(max=1.0) for g in gradients)
            one, two = self.betas
            every = zip(self.parameters, gradients, self.first, self.second, strict=True)
            for parameter, gradient, first, second in every:
                first.lerp_(gradient, 1 - one)
                second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
                parameter.sub_(self.factors[0] * first / (second.sqrt() * self.factors[1] + self.eps))
            self._advance(torch.stack((self.decay[0] * one, self.decay[1] * two)))

    def _advance(self, decay: Tensor) -> None:
        """Prepare the next step's numbers after this step, so that its pass over the parameters only reads them."""
        self.decay.copy_(decay)
        self.factors.copy_(torch.stack((self.lr / (1 - decay[0]), (1 - decay[1]).rsqrt())))

    def state_dict(self) -> dict[str, Tensor | list[Tensor]]:
        """The moments and the step count's decay."""
        return {"first": self.first, "second": self.second, "decay": self.decay}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor | list[Tensor]]) -> None:
        """Continue from `state`, in place."""
        self._advance(torch.as_tensor(state["decay"]))
        for name in ("first", "second"):
            for mine, saved in zip(getattr(self, name), state[name], strict=True):
                mine.copy_(saved)


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move every parameter of `target` the share `tau` of the way to that of `source`, in place."""
    for mine, other in zip(target.parameters(), source.parameters(), strict=True):
        mine.lerp_(other, tau)
