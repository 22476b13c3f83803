"""How near a step comes to what the machine could do: operations and bytes counted, peaks measured in the same run.

Operations are the multiply-accumulates of convolutions and linear layers, two operations each: forward, gradient of
the weights, and gradient of the input where there is one to compute.

Bytes, the fused lower bound: everything between two convolutions (BatchNorm, activation, residual) is done while they
read and write. Forward, a layer reads its input and writes its output once. Backward, it reads its input (for the
weights), its output (for BatchNorm) and the gradient of its output, and writes the gradient of its input where there
is one. The optimiser and the moving average touch a parameter eleven times: its gradient is written and read, weight,
two moments and average are read and written, and the weight is read for the average.

Bytes, unfused: every operation of the plain step reads its inputs and writes its outputs once; counted by following
one step on tensors without content.

The lower bound of the time is the sum over layers and passes of the longer of arithmetic and traffic.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.plain import PlainDetector
from benchmarks.setting import Report, Setting, shapes, spread
from benchmarks.worker import Worker
from osscl_lite import Recipe, replace
from osscl_lite.losses import arcface_logits, mixup, noisy_arcmix, noisy_supcon

CLASSES = 41
PARAMETER_TOUCHES = 11
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of a batch: multiply-accumulates forward, elements in and out."""

    name: str
    macs: int
    inputs: int
    outputs: int
    input_gradient: bool

    def flops(self) -> tuple[int, int]:
        """Forward and backward."""
        return 2 * self.macs, 2 * self.macs * (1 + self.input_gradient)

    def elements(self) -> tuple[int, int]:
        """Read or written, forward and backward, in the fused bound."""
        backward = self.inputs + 2 * self.outputs + self.inputs * self.input_gradient
        return self.inputs + self.outputs, backward


def empty_batch(recipe: Recipe) -> tuple[Tensor | None, Tensor]:
    """Waveforms and Log-Mels of a batch, without content."""
    samples = round(recipe.seconds * recipe.sample_rate)
    waveforms = None if recipe.front_end == "logmel" else torch.empty(recipe.batch_size, samples, device="meta")
    return waveforms, torch.empty(recipe.batch_size, recipe.bands, recipe.frames, device="meta")


def layers(recipe: Recipe) -> list[Layer]:
    """Every convolution and linear layer of a training step, in the order of the forward pass."""
    with torch.device("meta"):
        model = PlainDetector(recipe, CLASSES).train()
    found: list[Layer] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            each = module.weight[0].numel()  # multiply-accumulates of one value of the output
            found.append(Layer(name, output.numel() * each, inputs[0].numel(), output.numel(), inputs[0].requires_grad))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            module.register_forward_hook(note(name))
    model(*empty_batch(recipe))
    return found


def forward_macs(recipe: Recipe) -> dict[str, int]:
    """Multiply-accumulates of one clip, forward, by part of the network."""
    parts: dict[str, int] = {}
    for layer in layers(replace(recipe, batch_size=2)):
        part = next((name for name in ("tgram", "tfgram", "network") if f"{name}." in layer.name), "perturbation")
        parts[part] = parts.get(part, 0) + layer.macs // 2
    return parts


def parameters(recipe: Recipe) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in PlainDetector(recipe, CLASSES).parameters())


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aliases = [value.alias_info for value in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            for tensor in tree_leaves((args, kwargs, out)):
                if isinstance(tensor, Tensor):
                    self.bytes += min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        return out


def unfused_bytes(recipe: Recipe) -> int:
    """Bytes of mixup, forward, losses and backward of the plain step, operation by operation."""
    with torch.device("meta"):
        model = PlainDetector(recipe, CLASSES).train()
        y = torch.zeros(recipe.batch_size, dtype=torch.long)
        permutation = torch.zeros(recipe.batch_size, dtype=torch.long)
        with Traffic() as traffic:
            waveforms, log_mel, y_a, y_b = mixup(*empty_batch(recipe), y, 0.3, permutation)
            z = model(waveforms, log_mel)
            logits = arcface_logits(z, model.class_weight, y_a, recipe.margin, recipe.scale)
            (noisy_supcon(z, y_a, recipe.temperature) + noisy_arcmix(logits, y_a, y_b, 0.3)).backward()
    return traffic.bytes


def bound(found: list[Layer], weights: int, flops: float, bandwidth: float, size: int) -> dict[str, float]:
    """Lower bound of the seconds of a step: ``flops`` and bytes a second of the machine, ``size`` of an activation."""
    arithmetic = traffic = least = 0.0
    for layer in found:
        for work, elements in zip(layer.flops(), layer.elements(), strict=True):
            compute, move = work / flops, elements * size / bandwidth
            arithmetic, traffic, least = arithmetic + compute, traffic + move, least + max(compute, move)
    update = PARAMETER_TOUCHES * 4 * weights / bandwidth
    return dict(
        arithmetic_seconds=arithmetic, traffic_seconds=traffic + update, least_seconds=least + update,
        bytes=round((traffic + update) * bandwidth),
    )  # fmt: skip


def peaks(device: torch.device, quick: bool) -> dict[str, float]:
    """The machine's best: operations a second of square matrix products, bytes a second of a copy (read + written)."""
    cuda = device.type == "cuda"

    def best(work: Callable[[], Any], tries: int) -> float:
        times = []
        for _ in range(tries):
            if cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times)

    def product(dtype: torch.dtype) -> float:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * side**3 / best(lambda: torch.mm(a, b, out=out), tries)

    side, count, tries = (256, 2**18, 3) if quick else (8192, 2**28, 20) if cuda else (2048, 2**26, 10)
    found = dict(float32=product(torch.float32))
    if cuda:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        found |= dict(tf32=product(torch.float32), bfloat16=product(torch.bfloat16))
        torch.backends.cuda.matmul.allow_tf32 = before
    a, b = torch.ones(count, device=device), torch.zeros(count, device=device)
    return found | dict(bytes_per_second=8 * count / best(lambda: b.copy_(a), tries))


def measure(setting: Setting) -> None:
    """Each recipe at each number of threads: counts, peaks, our measured step, the fraction reached."""
    report = Report(
        setting, "roofline",
        "the least time a step could take on this machine over the time ours takes",
        " ".join(__doc__.partition("\n\n")[2].split()),
    )  # fmt: skip
    for threads in setting.threads:
        for recipe in setting.recipes():
            report.case(
                shapes(recipe) | dict(threads=threads),
                lambda recipe=recipe, threads=threads: reached(setting, recipe, threads),
            )


def reached(setting: Setting, recipe: Recipe, threads: int) -> dict[str, Any]:
    """Counts, peaks and fractions of one recipe."""
    found, weights = layers(recipe), parameters(recipe)
    steps = 1 if setting.quick or (setting.device == "cpu" and recipe.seconds > 5) else 5
    with Worker(setting, recipe, "ours", steps * recipe.batch_size, threads) as worker:
        peak = worker.ask("peaks", quick=setting.quick)
        worker.ask("epoch")
        seconds = [worker.ask("epoch")["seconds"] / steps for _ in range(3)]
    step = spread(seconds)
    bounds = {}
    for name in BYTES if setting.device == "cuda" else ("float32",):
        flops = max(peak[name], peak.get("tf32", 0.0)) if name == "float32" else peak[name]
        least = bound(found, weights, flops, peak["bytes_per_second"], BYTES[name])
        bounds[name] = least | dict(fraction_reached=least["least_seconds"] / step["median"])
    moved = unfused_bytes(recipe)
    return dict(
        forward_macs_per_clip=forward_macs(recipe), step_flops=sum(sum(layer.flops()) for layer in found),
        unfused_bytes=moved, unfused_seconds=moved / peak["bytes_per_second"], peaks=peak, step_seconds=step,
        flops_per_second=sum(sum(layer.flops()) for layer in found) / step["median"], bounds=bounds,
    )  # fmt: skip
