"""Networks: multi-layer perceptrons with an ensemble axis; and Adam.

Axes: E ensemble, B batch, I inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robot_rl.learn.matmul import bf16_matmul


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
    """The parameters of one layer. Shapes: weight (E, I, O), the others (E, 1, O)."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Shape:
    """How a perceptron is built, apart from its sizes; a recipe says it once for all of its networks."""

    norm: str = "none"
    """Before each activation: "none", "layer", "rms" (layer without taking the mean out) or "batch" (whose statistics
    are those of the batch while training)."""
    activation: str = "relu"
    """"relu", "elu", "mish" or "silu"."""
    residual: bool = False
    """After the first layer, blocks x + V act(W norm(x)), four times as wide inside (SimBa, Lee et al. 2024)."""
    dropout: float = 0.0
    """Share of the hidden units that each batch does without."""
    dropout_first: bool = False
    """Only the first hidden layer's."""
    unit: bool = False
    """The weights into each normalised unit are kept at norm 1, so that the learning rate keeps its meaning."""
    dtype: torch.dtype = torch.float32
    """Of the products between hidden layers. The first is float32, as are the parameters, and the last unless `last`
    says otherwise: an observation, an action or a value rounded to bfloat16's 8 bits would cost a robot its last
    centimetre."""
    sees_hidden: bool = False
    """What goes in are hidden units of another network, so that the first product is of `dtype` too."""
    last: str = "float32"
    """The last product: "float32"; "sums", whose sums are, but what goes in and the weights are rounded to `dtype`; or
    "rounded", what comes out too, which hidden units and logits of a distribution may be."""

    def __post_init__(self) -> None:
        for name, value, choices in (("norm", self.norm, ("none", "layer", "rms", "batch")),
                                     ("activation", self.activation, tuple(ACTIVATIONS)),
                                     ("last", self.last, ("float32", "sums", "rounded"))):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; it is one of {', '.join(choices)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it is at least 0 and below 1")


def mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)) (Misra 2019) as x (1 - s^2) / (1 + s^2) with s = 1 / (1 + e^x).

    One exponential in place of three such functions, and nothing overflows. Compiled, it takes half as long as the same
    by e^x, which has to be bounded: the compiler makes slow code of that. Without a gradient it need not be, and takes
    one quotient in place of two.
    """
    if x.dtype != torch.float32:
        return mish(x.float()).to(x.dtype)
    if not torch.is_grad_enabled():
        return x - 2 * x / ((1 + x.exp()).square() + 1)
    square = torch.sigmoid(-x).square()
    return x * ((1 - square) / (1 + square))


class Mish(nn.Module):
    """The activation `mish`."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return mish(x)


def _mish_of_arrays(x: np.ndarray) -> np.ndarray:
    square = np.square(0.5 - 0.5 * np.tanh(0.5 * x))
    return x * ((1 - square) / (1 + square))


class Activation(NamedTuple):
    """What stands between two layers: on tensors, as a plain layer, and in numpy."""

    apply: Callable[[Tensor], Tensor]
    layer: type[nn.Module]
    mirror: Mirror


ACTIVATIONS = {
    "relu": Activation(F.relu, nn.ReLU, lambda x: np.maximum(x, 0.0)),
    "elu": Activation(F.elu, nn.ELU, lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))),
    "mish": Activation(mish, Mish, _mish_of_arrays),
    "silu": Activation(F.silu, nn.SiLU, lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x))),
}
NORM_EPS = 1e-5
BATCH_EPS, NORM_MEMORY = 1e-3, 0.99  # a unit that hardly varies in a batch is not to be blown up (as in CrossQ, XQC)
WIDENING = 4  # of a residual block


class Mlp(nn.Module):
    """`members` independent perceptrons of `sizes` (inputs, hidden..., outputs).

    `final_scale` shrinks the last layer's first weights.
    """

    mean: Tensor
    var: Tensor
    pace: float = 1.0
    """Share of its optimiser's learning rate at which it learns."""

    def __init__(
        self,
        sizes: Sequence[int],
        members: int,
        generator: torch.Generator,
        shape: Shape = Shape(),  # frozen
        final_scale: float = 1.0,
    ):
        super().__init__()
        self.sizes, self.members, self.shape = tuple(sizes), members, shape
        self.spans = self._spans()
        last = len(self.spans) - 1
        self.parts = nn.ParameterList()
        """The parameters of one layer after another, each in the order of `Layer`."""
        for depth, (inputs, outputs) in enumerate(self.spans):
            bound, width = (final_scale if depth == last else 1.0) / math.sqrt(inputs), self._width(depth)
            weight, bias = ((torch.rand((members, rows, outputs), generator=generator) * 2 - 1) * bound
                            for rows in (inputs, 1))
            # a batch norm takes the bias away again: its gradient is nothing but rounding, by whose sign Adam would go
            idle = shape.norm == "batch" and depth < last and not (shape.residual and depth % 2)
            self.parts += [nn.Parameter(weight), nn.Parameter(bias, requires_grad=not idle)]
            if width:
                self.parts += [nn.Parameter(fill(members, 1, width)) for fill in (torch.ones, torch.zeros)]
        kept = sum(self._width(depth) for depth in range(last + 1)) * members if shape.norm == "batch" else 0
        self.register_buffer("mean", torch.zeros(kept))
        self.register_buffer("var", torch.ones(kept))
        self.project()

    def _spans(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every layer."""
        pairs = list(itertools.pairwise(self.sizes))
        if not self.shape.residual:
            return pairs
        widths = set(self.sizes[1:-1])
        if len(widths) != 1:
            raise ValueError(f"residual blocks need hidden layers of one width, not {self.sizes[1:-1]}")
        width, blocks = widths.pop(), len(self.sizes) - 2
        block = [(width, WIDENING * width), (WIDENING * width, width)]
        return [(self.sizes[0], width), *block * blocks, (width, self.sizes[-1])]

    def _width(self, depth: int) -> int:
        """How many units are normalised at layer `depth`: behind it, or in residual nets before it; 0: none."""
        inputs, outputs = self.spans[depth]
        if self.shape.norm == "none":
            return 0
        if self.shape.residual:
            return inputs if depth % 2 else 0
        return outputs if depth < len(self.spans) - 1 else 0

    def layers(self) -> list[Layer]:
        """The layers' parameters."""
        parts = iter(self.parts)
        return [Layer(*itertools.islice(parts, 4 if self._width(depth) else 2)) for depth in range(len(self.spans))]

    def statistics(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and variance (E, 1, O) of the normalised units of each layer that has some, as views."""
        if not self.mean.numel():
            return []
        widths = [width * self.members for depth in range(len(self.spans)) if (width := self._width(depth))]
        views = zip(self.mean.split(widths), self.var.split(widths), strict=True)
        return [(mean.view(self.members, 1, -1), var.view(self.members, 1, -1)) for mean, var in views]

    def masks(self, batch: int, generator: torch.Generator, members: int | None = None) -> list[Tensor]:
        """What dropout goes by in a batch that so many members see: (E, B, O) int32 for each hidden layer that has it.

        Random bits, which cost half of numbers; what becomes of them is left to where they are used.
        """
        if not self.shape.dropout:
            return []
        drawn, device = [], generator.device
        for _, outputs in self.spans[:1] if self.shape.dropout_first else self.spans[:-1]:
            size = (members or self.members, batch, outputs)
            count = math.prod(size)
            words = torch.empty(-(-count // 2), dtype=torch.int64, device=device)
            words.random_(-(1 << 63), None, generator=generator)
            drawn.append(words.view(torch.int32)[:count].view(size))
        return drawn

    def dropped(self, x: Tensor, mask: Tensor) -> Tensor:
        """Hidden units (E, B, O) without the share that dropout leaves out, the others by so much larger."""
        lost = self.shape.dropout
        least = round((lost - 0.5) * (1 << 32))
        return x * torch.where(mask >= least, 1.0 / (1.0 - lost), 0.0)

    @torch.no_grad()
    def project(self) -> None:
        """Bring the weights that have a bounded norm back to it, in place."""
        if self.shape.unit:
            for layer in self.layers():
                squares = [weight.square().sum(0, keepdim=True) for weight in layer.weight]
                layer.weight.mul_(inverse_root(torch.stack(squares).clamp(min=1e-16)))

    def forward(self, x: Tensor, members: Tensor | slice | None = None, masks: Sequence[Tensor] = (),
                training: bool = False) -> Tensor:
        """(B, I) or (E, B, I) -> (E, B, O) float32; `members`, (E',) int64 or a slice, evaluates only those, in order.

        `masks` are what the method of that name drew for as many members. `training` normalises by the batch, and
        takes its statistics into those kept, where the norm is "batch".
        """
        layers, last, kept, rest = self.layers(), len(self.spans) - 1, iter(self.statistics()), x
        if members is not None:
            layers = [Layer(*(part[members] for part in layer if part is not None)) for layer in layers]
        for depth, layer in enumerate(layers):
            if self.shape.residual and depth % 2:
                rest, x = x, self._normalise(x, layer, kept, training, members)
            kind = "rounded" if depth < last else self.shape.last
            x = linear(x, layer, self.shape.dtype, kind if depth or self.shape.sees_hidden else "float32")
            if self.shape.residual:
                if depth % 2 and depth < last:
                    x = self._activate(x)
                elif 0 < depth < last:
                    x = rest + x
            elif depth < last:
                x = self._activate(self._normalise(x, layer, kept, training, members))
            if depth < len(masks):
                x = self.dropped(x, masks[depth])
        return x.float()

    def _activate(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.shape.activation].apply(x)

    def _normalise(self, x: Tensor, layer: Layer, kept: Iterator[tuple[Tensor, Tensor]], training: bool,
                   members: Tensor | slice | None) -> Tensor:
        if layer.scale is None or layer.shift is None:
            return x
        if self.shape.norm == "layer":
            x = F.layer_norm(x, x.shape[-1:])
        elif self.shape.norm == "rms":
            x = x * (x.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        else:
            mean, var = next(kept)
            if training:
                x, middle, spread = BatchNorm.apply(x, layer.scale, layer.shift)
                with torch.no_grad():
                    mean.lerp_(middle, 1 - NORM_MEMORY)
                    var.lerp_(spread, 1 - NORM_MEMORY)
                return x
            if members is not None:
                mean, var = mean[members], var[members]
            factor = inverse_root(var + BATCH_EPS) * layer.scale
            return x * factor + (layer.shift - mean * factor)
        return x * layer.scale.to(x.dtype) + layer.shift.to(x.dtype)

    def frozen(self, member: int = 0) -> nn.Module:
        """A member in plain layers, a copy: (B, I) -> (B, O)."""
        plain: list[nn.Module] = []
        kept = iter([(mean[member, 0].clone(), var[member, 0].clone()) for mean, var in self.statistics()])
        last = len(self.spans) - 1

        def norm(layer: Layer) -> list[nn.Module]:
            if layer.scale is None or layer.shift is None:
                return []
            scale, shift = layer.scale[member, 0], layer.shift[member, 0]
            if self.shape.norm == "layer":
                return [_filled(nn.LayerNorm(len(scale)), scale, shift)]
            if self.shape.norm == "rms":
                return [Root(), Affine(scale.detach(), shift.detach())]
            return []  # it is in the layer's weights

        def affine(layer: Layer) -> nn.Linear:
            weight, bias = layer.weight[member].T.double(), layer.bias[member, 0].double()
            if self.shape.norm == "batch" and layer.scale is not None and layer.shift is not None:
                mean, var = next(kept)
                factor = layer.scale[member, 0] * (var.double() + BATCH_EPS).rsqrt()
                addend = layer.shift[member, 0] - mean * factor
                if self.shape.residual:  # of what goes in
                    weight, bias = weight * factor, bias + weight @ addend
                else:
                    weight, bias = weight * factor[:, None], bias * factor + addend
            return _filled(nn.Linear(weight.shape[1], weight.shape[0]), weight.float(), bias.float())

        act = ACTIVATIONS[self.shape.activation].layer
        block: list[nn.Module] = []
        for depth, layer in enumerate(self.layers()):
            plane = affine(layer)
            if not self.shape.residual:
                plain += [plane, *norm(layer), act()] if depth < last else [plane]
            elif depth in (0, last):
                plain += [*norm(layer), plane]
            elif depth % 2:
                block = [*norm(layer), plane, act()]
            else:
                plain.append(Residual(nn.Sequential(*block, plane)))
        return nn.Sequential(*plain)

    def mirror(self) -> Mirror:
        """The first member in numpy over the same memory (on the CPU): (B, I) -> (B, O), quick for few rows."""
        layers = [[part[0].detach().cpu().numpy() for part in layer if part is not None] for layer in self.layers()]
        kept = [(mean[0].cpu().numpy(), var[0].cpu().numpy()) for mean, var in self.statistics()]
        shape, last = self.shape, len(self.spans) - 1

        def normalise(x: np.ndarray, norm: list[np.ndarray], which: int) -> np.ndarray:
            if not norm:
                return x
            if shape.norm in ("layer", "rms"):
                x = x - x.mean(-1, keepdims=True) if shape.norm == "layer" else x
                return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + NORM_EPS) * norm[0] + norm[1]
            mean, var = kept[which]
            return (x - mean) / np.sqrt(var + np.float32(BATCH_EPS)) * norm[0] + norm[1]

        activate = ACTIVATIONS[shape.activation].mirror

        def forward(x: np.ndarray) -> np.ndarray:
            rest = x
            for depth, (weight, bias, *norm) in enumerate(layers):
                if shape.residual and depth % 2:
                    rest, x = x, normalise(x, norm, depth // 2)
                x = x @ weight + bias
                if shape.residual:
                    if depth % 2 and depth < last:
                        x = activate(x)
                    elif 0 < depth < last:
                        x = rest + x
                elif depth < last:
                    x = activate(normalise(x, norm, depth))
            return x

        return forward

    def extra_repr(self) -> str:
        return f"{self.members} x {'-'.join(map(str, self.sizes))}, {self.shape}"


class Members(nn.Module):
    """All members of an Mlp in plain layers, a copy: (B, I) or (E, B, I) -> (E, B, O)."""

    def __init__(self, net: Mlp):
        super().__init__()
        self.nets = nn.ModuleList(net.frozen(member) for member in range(net.members))

    def forward(self, x: Tensor) -> Tensor:
        """See Mlp."""
        return torch.stack([net(x if x.dim() == 2 else x[member]) for member, net in enumerate(self.nets)])


class Root(nn.Module):
    """x over the root of its mean square."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, O) -> (B, O)."""
        return x * (x.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()


class Recurrent(nn.Module):
    """The same net for each of `steps`: a perceptron, a gated recurrent unit (Cho et al. 2014) along them, a head.

    It takes the steps' inputs and gives their outputs side by side, as an Mlp with one member would; `sizes` are those
    of a step. The unit is as wide as the last hidden layer, whose product with the unit's own weights is the
    perceptron's last.
    """

    def __init__(self, steps: int, sizes: Sequence[int], generator: torch.Generator, shape: Shape = Shape()):  # frozen
        super().__init__()
        if len(sizes) < 3:
            raise ValueError(f"a recurrent net needs a hidden layer: its sizes are {tuple(sizes)}")
        self.steps, width = steps, sizes[-2]
        self.before = Mlp((*sizes[:-1], 3 * width), 1, generator, shape)
        self.along = Mlp((width, 3 * width), 1, generator)
        self.head = Mlp((width, sizes[-1]), 1, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K * I) -> (1, B, K * O)."""
        return unrolled(x, self.steps, *(lambda x, net=net: net(x)[0] for net in (self.before, self.along, self.head))
                        )[None]

    def frozen(self) -> nn.Module:
        """A copy in plain layers: (B, K * I) -> (B, K * O)."""
        return FrozenRecurrent(self.steps, self.before.frozen(), self.along.frozen(), self.head.frozen())

    def mirror(self) -> Mirror:
        """In numpy over the same memory (on the CPU): (B, K * I) -> (B, K * O), quick for few rows."""
        before, along, head = self.before.mirror(), self.along.mirror(), self.head.mirror()

        def forward(x: np.ndarray) -> np.ndarray:
            rows = len(x)
            gates = before(x.reshape(rows * self.steps, -1)).reshape(rows, self.steps, -1)
            states = [np.zeros((rows, gates.shape[-1] // 3), np.float32)]
            for k in range(self.steps):
                (reset, keep, new), (reset_h, keep_h, new_h) = (
                    np.split(part, 3, -1) for part in (gates[:, k], along(states[-1])))
                reset, keep = (0.5 + 0.5 * np.tanh(0.5 * part) for part in (reset + reset_h, keep + keep_h))  # sigmoid
                new = np.tanh(new + reset * new_h)
                states.append(new + keep * (states[-1] - new))
            return head(np.stack(states[1:], 1).reshape(rows * self.steps, -1)).reshape(rows, -1)

        return forward


class FrozenRecurrent(nn.Module):
    """A recurrent net in plain layers."""

    def __init__(self, steps: int, before: nn.Module, along: nn.Module, head: nn.Module):
        super().__init__()
        self.steps, self.before, self.along, self.head = steps, before, along, head

    def forward(self, x: Tensor) -> Tensor:
        """(B, K * I) -> (B, K * O)."""
        return unrolled(x, self.steps, self.before, self.along, self.head)


def unrolled(x: Tensor, steps: int, before: Callable[[Tensor], Tensor], along: Callable[[Tensor], Tensor],
             head: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, K * I) -> (B, K * O) of a recurrent net with these layers; see `Recurrent`."""
    gates = before(x.unflatten(-1, (steps, -1)).flatten(0, 1)).unflatten(0, (-1, steps))  # (B, K, 3 H)
    states = [torch.zeros_like(gates[:, 0, : gates.shape[-1] // 3])]
    for k in range(steps):
        (reset, keep, new), (reset_h, keep_h, new_h) = gates[:, k].chunk(3, -1), along(states[-1]).chunk(3, -1)
        keep = (keep + keep_h).sigmoid()
        new = (new + (reset + reset_h).sigmoid() * new_h).tanh()
        states.append(new + keep * (states[-1] - new))
    return head(torch.stack(states[1:], 1).flatten(0, 1)).unflatten(0, (-1, steps)).flatten(1)


class Affine(nn.Module):
    """x * scale + shift with constants: what is left of a norm that no longer learns."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.register_buffer("scale", scale.clone())
        self.register_buffer("shift", shift.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, O) -> (B, O)."""
        return x * self.scale + self.shift


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """(B, O) -> (B, O)."""
        total: Tensor = x + self.inner(x)
        return total


def _filled(layer: FilledLayer, weight: Tensor, bias: Tensor) -> FilledLayer:
    layer.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return layer


def split_rows(layer: nn.Linear) -> list[nn.Linear]:
    """`layer` as two that give the first and the second half of its outputs."""
    weights, biases = layer.weight.chunk(2), layer.bias.chunk(2)
    halves = [nn.Linear(layer.in_features, len(bias)) for bias in biases]
    return [_filled(half, weight, bias) for half, weight, bias in zip(halves, weights, biases, strict=True)]


def linear(x: Tensor, layer: Layer, dtype: torch.dtype, kind: str) -> Tensor:
    """(B, I) or (E, B, I) float -> (E, B, O): the product with the layer's weight, plus its bias; see Shape.last."""
    made = dtype if kind == "rounded" else torch.float32
    product = bf16_matmul if kind == "sums" and dtype != torch.float32 else torch.matmul
    x, weight = x.to(made), layer.weight.to(made)
    if len(weight) == 1:  # a plain product is faster than a batch of one
        return product(x.reshape(-1, x.shape[-1]), weight[0])[None] + layer.bias.to(made)
    return product(x.expand(len(weight), *x.shape[-2:]), weight) + layer.bias.to(made)


def inverse_root(x: Tensor) -> Tensor:
    """x ** -0.5 of positive numbers, one for each row or column of what it is multiplied with.

    As an exponential, for the compiler keeps the result of one; a root it would take again for every element.
    """
    return torch.exp(-0.5 * torch.log(x))


class BatchNorm(torch.autograd.Function):
    """x (E, B, O) normalised over B, times scale plus shift (E, 1, O); also the mean and variance (E, 1, O).

    One pass over x finds both. It sees x less its first row, which lies about as far from the mean as any, so that
    little cancels. Sums go member by member: the compiler makes quick code of column sums of a matrix and slow code, by
    a factor of ten, of those of a stack of matrices. The gradient is written out, as what autograd makes of it takes
    more passes; it has none of its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See above."""
        first = x[:, :1].float()
        about = x.float() - first
        centre = torch.stack([rows.mean(0) for rows in about.unbind()])[:, None]
        square = torch.stack([rows.square().mean(0) for rows in about.unbind()])[:, None]
        spread = (square - centre.square()).clamp(min=0)
        inverse, mean = inverse_root(spread + BATCH_EPS), first + centre
        factor = inverse * scale
        ctx.save_for_backward(x, mean, inverse, scale)
        ctx.mark_non_differentiable(mean, spread)
        return (about * factor + (shift - centre * factor)).to(x.dtype), mean, spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of what is normalised (E, B, O) -> those of x, scale and shift."""
        found = []
        for gradient, x, mean, inverse, scale in zip(gradients[0], *ctx.saved_tensors, strict=True):
            gradient, about = gradient.float(), x.float() - mean
            shift, slope = gradient.sum(0), (gradient * about).sum(0) * inverse[0]
            share = (slope * inverse[0] / len(x), shift / len(x))
            of_x = (gradient - about * share[0] - share[1]) * (scale * inverse)
            found.append((of_x.to(x.dtype), slope[None], shift[None]))
        of_x, slopes, shifts = (torch.stack(parts) for parts in zip(*found, strict=True))
        return of_x, slopes, shifts


LEAST = 1e-30  # of Adam's averages: beside eps they move no parameter, and what is below 1e-38 takes many times as long


class Adam:
    """Adam over the parameters of `module` that require gradients.

    Its state is in tensors, so that a step needs no number from the device.
    `clip` bounds the norm of the whole gradient (0: not at all).
    """

    def __init__(self, module: nn.Module, lr: float, clip: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)):
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.bounded = [net for net in module.modules() if isinstance(net, Mlp) and net.shape.unit]
        paces = {id(part): net.pace for net in module.modules() if isinstance(net, Mlp) for part in net.parts}
        self.paces = [paces.get(id(parameter), 1.0) for parameter in self.parameters]
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
            every = zip(self.parameters, self.paces, gradients, self.first, self.second, strict=True)
            for parameter, pace, gradient, first, second in every:
                first.lerp_(gradient, 1 - one)
                second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
                for average in (first, second):
                    average.masked_fill_(average.abs() < LEAST, 0.0)
                parameter.sub_(self.factors[0] * pace * first / (second.sqrt() * self.factors[1] + self.eps))
            self._advance(torch.stack((self.decay[0] * one, self.decay[1] * two)))
            for net in self.bounded:
                net.project()

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
    for kept, now in zip(target.buffers(), source.buffers(), strict=True):
        kept.copy_(now)  # statistics are averages already
