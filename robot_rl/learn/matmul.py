"""Products of float32 matrices rounded to bfloat16, with float32 sums, where the processor multiplies bfloat16."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

MODE = threading.Lock()
LIBRARY = torch.library.Library("robot_rl", "DEF")
LIBRARY.define("bf16_matmul(Tensor x, Tensor weight) -> Tensor")


def bf16_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """(..., B, I), (..., I, O) float32 -> (..., B, O) float32, the sums being exact to float32's 24 bits.

    Its gradients are such products too. Two and a half times as fast as one of float32 on a processor with AMX, where
    one that gives bfloat16 is four times as fast.
    """
    found: Tensor = torch.ops.robot_rl.bf16_matmul(x, weight)
    return found


def _product(x: Tensor, weight: Tensor) -> Tensor:
    # a mode of the whole process, so that it is on in here only (and for what another thread multiplies meanwhile)
    mode: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # no stub says so
    with MODE:
        before, mode.fp32_precision = mode.fp32_precision, "bf16"
        try:
            return torch.matmul(x, weight)
        finally:
            mode.fp32_precision = before


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    (x, weight), (first, second) = ctx.saved_tensors, ctx.needs_input_grad
    return (bf16_matmul(gradient, weight.mT) if first else None, bf16_matmul(x.mT, gradient) if second else None)


LIBRARY.impl("bf16_matmul", _product, "CompositeExplicitAutograd")
torch.library.register_fake("robot_rl::bf16_matmul", torch.matmul, lib=LIBRARY)
torch.library.register_autograd("robot_rl::bf16_matmul", _gradients, setup_context=_keep, lib=LIBRARY)
