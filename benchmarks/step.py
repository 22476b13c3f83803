"""Our training step against a plain PyTorch version of it, and the parts of the ratio."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.setting import Report, Setting, shapes, spread
from benchmarks.worker import VARIANTS, Worker
from osscl_lite import Recipe, replace

PARTS = ("plain", "channels last", "allocator", "kernels off", "ours")


def measure(setting: Setting) -> None:
    """Each recipe at each number of threads, all variants side by side."""
    report = Report(
        setting, "step",
        "clips a second of a training step: ours, a plain PyTorch version, and what lies between, switched on in turn",
        "each variant in a process of its own; the processes take turns, a block of steps each, after a first block"
        " that is not counted; int16 clips in memory and Log-Mels computed before; a ratio is the median over the"
        " rounds of one round's ratio",
    )  # fmt: skip
    cpu = setting.device == "cpu"
    for threads in setting.threads:
        for recipe, variants in plans(setting):
            paper = recipe.seconds > 5
            steps = 1 if setting.quick or cpu and paper else 30 if not cpu else 4 if recipe.front_end == "logmel" else 2
            rounds = 2 if setting.quick else 3 if cpu and paper else 5
            report.case(
                shapes(recipe) | dict(threads=threads, variants_compared=len(variants)),
                lambda recipe=recipe, variants=variants, steps=steps, rounds=rounds, threads=threads: side_by_side(
                    setting, recipe, variants, steps * recipe.batch_size, rounds, threads
                ),
            )


def measure_pair(setting: Setting) -> None:
    """The short recipes again, ours and plain alone: three more waiting processes take memory and caches from both."""
    report = Report(
        setting, "pair", "clips a second of a training step, ours and the plain PyTorch version, nothing else running",
        "as in step, with two processes; more rounds",
    )  # fmt: skip
    for threads in setting.threads:
        for recipe in setting.recipes():
            if recipe.seconds < 5:
                report.case(
                    shapes(recipe) | dict(threads=threads),
                    lambda recipe=recipe, threads=threads: side_by_side(
                        setting, recipe, ("plain", "ours"), 4 * recipe.batch_size, 2 if setting.quick else 9, threads
                    ),
                )


def plans(setting: Setting) -> list[tuple[Recipe, tuple[str, ...]]]:
    """Recipes and the variants to compare: what CPUs can switch on, GPUs need not, and memory must hold them all."""
    if setting.device != "cpu":
        return [(recipe, ("plain", "channels last", "ours")) for recipe in setting.recipes()]
    if setting.quick:
        return [(recipe, ("plain", "allocator", "ours")) for recipe in setting.recipes()]
    found = []
    for recipe in setting.recipes():
        if recipe.seconds < 5:
            found.append((recipe, PARTS))
            continue
        found.append((recipe, ("plain", "ours")))
        if recipe.front_end == "logmel":
            found.append((replace(recipe, batch_size=32), PARTS))
    return found


def side_by_side(setting: Setting, recipe: Recipe, variants: Sequence[str], count: int, rounds: int, threads: int,
                 files: int = 64, first: Callable[[Worker], None] = lambda worker: None) -> dict[str, Any]:  # fmt: skip
    """Clips a second of the variants, in turns; the first is what the others are compared to.

    Args:
        count: clips of a block, one epoch of that many; ``rounds``: blocks of each variant.
        files: different files among the clips.
        first: done with the last variant's worker before any training begins.
    """
    speeds, begun = [], {}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(setting, recipe, variant, count, threads, files)) for variant in variants]
        first(workers[-1])
        for variant, worker in zip(variants, workers, strict=True):
            start = worker.ask("start")["seconds"]
            begun[variant] = dict(start_seconds=start, first_seconds=worker.ask("epoch")["seconds"])
        while len(speeds) < rounds and not (speeds and setting.over()):
            speeds.append([worker.clips_per_second() for worker in workers])
    table = np.array(speeds)
    rows = []
    for index, variant in enumerate(variants):
        row = dict(variant=variant, about=VARIANTS[variant], clips_per_second=spread(table[:, index])) | begun[variant]
        if index:
            row["ratio"] = spread(table[:, index] / table[:, 0])
            row["ratio_to_the_one_before"] = spread(table[:, index] / table[:, index - 1])
        rows.append(row)
    return dict(clips_of_a_block=count, ratio=rows[-1]["ratio"]["median"], variants=rows)
