"""What makes training on a CPU fast: BatchNorm with PReLU in one go, and memory that is kept.

There the network's time goes into memory traffic more than into arithmetic. PyTorch normalises, stores, rectifies,
stores, and comes back the same way; its PReLU gradient alone is a third of a step. Here each direction reads its
tensors twice and stores once. Numba compiles the loops when they are first used, without a C++ compiler.
Explained in the appendix on speed.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import gcd
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK = 256  # rows summed in float32 before the sum joins the float64 total
WIDE = 64  # channels from which on the compiler's vector loops are at their best
SHARE = 1 << 17  # elements a thread should have at least: starting one costs as much as 50 us of work

# NaN and infinity must pass through, so that a training that diverges is noticed.
compiled = njit(fastmath={"nsz", "arcp", "contract", "reassoc"}, nogil=True)


@compiled
def sums(x, shift, low, high, out):  # type: ignore[no-untyped-def]
    """Add the sums over rows of x - shift and of its square to out, (2, C)."""
    channels = x.shape[1]
    first, second = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    for start in range(low, high, BLOCK):
        first[:] = 0
        second[:] = 0
        for i in range(start, min(start + BLOCK, high)):
            for c in range(channels):
                d = x[i, c] - shift[c]
                first[c] += d
                second[c] += d * d
        for c in range(channels):
            out[0, c] += first[c]
            out[1, c] += second[c]


@compiled
def apply(x, scale, bias, slope, low, high, y):  # type: ignore[no-untyped-def]
    """y = PReLU(scale * x + bias); from the last row to the first, which the next layer then finds in the cache."""
    zero = np.float32(0)
    for i in range(high - 1, low - 1, -1):
        for c in range(x.shape[1]):
            u = x[i, c] * scale[c] + bias[c]
            y[i, c] = max(u, zero) + slope[c] * min(u, zero)


@compiled
def backward_sums(x, grad, mean, scale, bias, slope, low, high, out):  # type: ignore[no-untyped-def]
    """Add the sums over rows of g, g * (x - mean) and the slope's gradient to out, (3, C); g passed the PReLU."""
    channels, zero = x.shape[1], np.float32(0)
    first, second = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    third = np.zeros(channels, np.float32)
    for start in range(low, high, BLOCK):
        first[:] = 0
        second[:] = 0
        third[:] = 0
        for i in range(start, min(start + BLOCK, high)):
            for c in range(channels):
                d = x[i, c] - mean[c]
                u = x[i, c] * scale[c] + bias[c]
                g = grad[i, c] if u > zero else grad[i, c] * slope[c]
                first[c] += g
                second[c] += g * d
                third[c] += grad[i, c] * min(u, zero)
        for c in range(channels):
            out[0, c] += first[c]
            out[1, c] += second[c]
            out[2, c] += third[c]


@compiled
def backward_apply(x, grad, scale, bias, slope, of_g, of_x, constant, low, high, out):  # type: ignore[no-untyped-def]
    """Gradient of x, again from the last row: of_g * g + of_x * x + constant, one of each a channel."""
    zero = np.float32(0)
    for i in range(high - 1, low - 1, -1):
        for c in range(x.shape[1]):
            u = x[i, c] * scale[c] + bias[c]
            g = grad[i, c] if u > zero else grad[i, c] * slope[c]
            out[i, c] = of_g[c] * g + of_x[c] * x[i, c] + constant[c]


@cache
def pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process; a forked one gets its own."""
    return ThreadPoolExecutor(os.cpu_count())


def over_rows(kernel: Any, *arguments: np.ndarray, out: np.ndarray | None = None, total: int = 0) -> np.ndarray:
    """Run a kernel on the rows of its first argument, in as many threads as torch uses.

    Args:
        kernel: a compiled function of (*arguments, first row, last row, out).
        out: the array that the threads fill; or ``total``, how many sums a channel the kernel adds up.

    Returns:
        ``out``, or the totals, float64 (total, C).
    """
    rows, channels = arguments[0].shape
    fold = gcd(rows, max(1, WIDE // channels))  # several rows as one: the innermost loop wants a long row
    rows //= fold
    arguments = [np.tile(each, fold) if each.ndim == 1 else each.reshape(rows, -1) for each in arguments]
    threads = max(1, min(torch.get_num_threads(), rows * fold * channels // SHARE))
    edges = np.linspace(0, rows, threads + 1).astype(np.int64)
    filled = None if out is None else out.reshape(rows, -1)
    parts = [np.zeros((total, fold * channels)) if out is None else filled for _ in range(threads)]
    waiting = [
        pool(os.getpid()).submit(kernel, *arguments, edges[part], edges[part + 1], parts[part])
        for part in range(1, threads)
    ]
    kernel(*arguments, edges[0], edges[1], parts[0])
    for job in waiting:
        job.result()
    return sum(parts[1:], parts[0]).reshape(total, fold, channels).sum(1) if out is None else out


def rows_of(x: Tensor) -> np.ndarray:
    """The memory of a channels-last tensor (N, C, H, W) as an array of rows, (N * H * W, C)."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy()


def single(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


class NormPReLU(torch.autograd.Function):
    """BatchNorm with batch statistics, then PReLU with one slope a channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        rows = rows_of(x)
        count, shift = len(rows), rows[0].copy()
        # Sums of x - its first row: far from zero, squares of x itself would cancel in the variance.
        first, second = over_rows(sums, rows, shift, total=2) / count
        mean, variance = shift + first, np.maximum(second - first**2, 0)
        inverse = 1 / np.sqrt(variance + norm.eps)
        gain, slopes = weight.detach().numpy(), slope.detach().numpy()
        scale, offset = single(gain * inverse), single(bias.detach().numpy() - mean * gain * inverse)
        y = torch.empty_like(x)
        over_rows(apply, rows, scale, offset, slopes, out=rows_of(y))
        norm.running_mean.lerp_(torch.from_numpy(single(mean)), norm.momentum)
        norm.running_var.lerp_(torch.from_numpy(single(variance * count / (count - 1))), norm.momentum)
        norm.num_batches_tracked.add_(1)
        ctx.save_for_backward(x, slope)
        ctx.constants = (mean, inverse, gain.astype(np.float64), scale, offset)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, slope = ctx.saved_tensors
        mean, inverse, gain, scale, offset = ctx.constants
        rows, slopes = rows_of(x), slope.detach().numpy()
        grads = rows_of(grad.contiguous(memory_format=torch.channels_last))
        of_bias, centred, of_slope = over_rows(backward_sums, rows, grads, single(mean), scale, offset, slopes, total=3)
        of_weight = centred * inverse
        of_g = gain * inverse
        of_x = -of_g * inverse * of_weight / len(rows)
        constant = -of_g * of_bias / len(rows) - of_x * mean
        out = torch.empty_like(x)
        over_rows(
            backward_apply, rows, grads, scale, offset, slopes, single(of_g), single(of_x), single(constant),
            out=rows_of(out),
        )  # fmt: skip
        return out, *(torch.from_numpy(single(values)) for values in (of_weight, of_bias, of_slope)), None


def fits(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether the kernels can take this tensor: training on a CPU, float32, channels last."""
    return (
        norm.training
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def norm_prelu(x: Tensor, norm: nn.BatchNorm2d, prelu: nn.PReLU | None = None) -> Tensor:
    """PReLU(BatchNorm(x)) in training, running statistics included; without ``prelu`` the BatchNorm alone.
    Explained in the appendix on speed.

    Args:
        x: channels-last float32 on a CPU, (N, C, H, W), for which ``fits`` holds.
        norm: the layer, in training mode.
        prelu: one slope a channel.

    Returns:
        (N, C, H, W), channels last.

    Raises:
        ValueError: for one value a channel, whose variance is not defined.
    """
    if x.numel() == x.shape[1]:
        raise ValueError(f"expected more than 1 value per channel when training, got {tuple(x.shape)}")
    slope = torch.ones(x.shape[1]) if prelu is None else prelu.weight
    return NormPReLU.apply(x, norm.weight, norm.bias, slope, norm)


class Memory:
    """How many blocks of code want freed memory kept; the allocator is one for the whole process."""

    users, lock = 0, threading.Lock()
    kept = ((-3, 2**31 - 1), (-1, 2**31 - 1), (-4, 0))  # mmap threshold, trim threshold, number of maps: names of
    usual = ((-3, 2**25), (-1, 2**26), (-4, 65_536))  # malloc.h; 32 MiB is where glibc's own adjustment ends

    @classmethod
    def change(cls, by: int) -> None:
        """Count users; the first sets the options, the last sets them back and gives free memory to the system."""
        try:
            libc = ctypes.CDLL(None)
            set_option, trim = libc.mallopt, libc.malloc_trim
        except (OSError, AttributeError, TypeError):  # another system, or musl
            return
        with cls.lock:
            cls.users += by
            if (cls.users, by) in ((1, 1), (0, -1)):
                for option, value in cls.kept if by == 1 else cls.usual:
                    set_option(option, value)
            if cls.users == 0:
                trim(0)


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed blocks for the next step instead of giving them back to the system after each; on glibc only.
    Explained in the appendix on speed.

    By default glibc maps large blocks anew each time, and the system clears every page before it is used. On leaving,
    large blocks go back again, and what is free goes at once.
    """
    Memory.change(1)
    try:
        yield
    finally:
        Memory.change(-1)
