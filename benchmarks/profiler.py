"""Where the time of a step goes: torch.profiler's largest parts, forward and backward."""

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.setting import Report, Setting, shapes
from benchmarks.worker import Worker

LARGEST = 5
BACKWARD = "autograd::engine::evaluate_function"  # what encloses each operation of the backward pass
BACKWARD_KERNEL = re.compile(r"backward|dgrad|wgrad|bwd", re.IGNORECASE)


def measure(setting: Setting) -> None:
    """Ours and plain, each recipe, one thread (on a GPU: its kernels)."""
    report = Report(
        setting, "profile",
        "the five largest parts of a training step, as shares of the time of all operations (GPU: of all kernels)",
        "torch.profiler over one block of steps after a first one; self time by operation name; an operation is"
        " backward if autograd's engine called it, update if the optimiser did (GPU: backward if a kernel's name says"
        " so)",
    )  # fmt: skip
    for recipe in setting.recipes():
        for variant in ("ours",) if setting.quick else ("ours", "plain"):
            steps = 1 if setting.quick or setting.device == "cpu" and recipe.seconds > 5 else 5

            def parts(recipe=recipe, variant=variant, steps=steps) -> dict[str, Any]:
                with Worker(setting, recipe, variant, steps * recipe.batch_size, setting.threads[0]) as worker:
                    worker.ask("epoch")
                    return dict(steps=steps) | worker.ask("profile")

            report.case(shapes(recipe) | dict(threads=setting.threads[0], variant=variant), parts)


def profile(work: Callable[[], Any], device: str) -> dict[str, Any]:
    """Profile one call of ``work``: seconds of all operations, and the largest parts."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with record(activities=activities) as recorded:
        began = time.perf_counter()
        work()
        wall = time.perf_counter() - began
    times, counts = Counter(), Counter()
    for event in recorded.events():
        if device == "cuda":
            if event.device_type != DeviceType.CUDA or event.is_user_annotation:
                continue
            name, spent = event.name[:120], event.time_range.elapsed_us()
            key = (name, "backward" if BACKWARD_KERNEL.search(name) else "not named backward")
        else:
            key, spent = (event.name.removeprefix("aten::"), phase(event)), event.self_cpu_time_total
        times[key] += spent
        counts[key] += 1
    total = sum(times.values())
    largest = [
        dict(part=key[0], phase=key[1], share=spent / total, milliseconds=spent / 1000, calls=counts[key])
        for key, spent in times.most_common(LARGEST)
    ]
    return dict(operations_seconds=total / 1e6, wall_seconds=wall, largest=largest)


def phase(event: Any) -> str:
    """Backward if autograd's engine stands above the operation; update: optimiser, moving average, shrinking."""
    if event.name.startswith("aten::_foreach"):
        return "update"
    while event is not None:
        if event.name.startswith("Optimizer."):
            return "update"
        if event.name.startswith(BACKWARD):
            return "backward"
        event = event.cpu_parent
    return "forward"
