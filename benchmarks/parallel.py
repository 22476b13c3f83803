"""What two processes on CPUs change: there each normalises its own half of the batch. Loss and gradient, side by side.

Alone: ``python -m benchmarks.parallel``, which prints JSON after less than a minute on two cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

import osscl_lite
from benchmarks.setting import shapes
from osscl_lite import Detector, load_clips, replace
from osscl_lite.parallel import Team, joined
from osscl_lite.training import Run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(osscl_lite.__file__).parent / "results"
CPU = torch.device("cpu")
BATCHES = 4
CASES = tuple(
    (name, weights, norm)
    for name in ("logmel-osscl", "tfstgram-osscl")
    for weights, norm in (("initial", "live"), ("trained", "live"), ("trained", "frozen"))
)
HOW = (
    "gradients of the whole loss at the same weights, of the same batches of 64 generated clips, in one process and in"
    " two of 32 clips each under torchrun (gloo); medians over the batches, for frozen BatchNorm the largest"
    " difference. Relative: to the norm in one process. Another batch: what the next batch of one process gives, for"
    " scale. Trained weights: the recorded detector of the book's size; frozen: with its stored statistics."
)


def measure() -> dict[str, Any]:
    """Difference of loss and gradient between one process and two with BatchNorm over a half each.

    Returns:
        JSON-able: ``how``, and ``cases``: one a recipe, weights and BatchNorm.

    Raises:
        RuntimeError: if torchrun fails, with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="osscl-parallel-") as folder:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        ended = subprocess.run(
            [*words, "-m", "benchmarks.parallel", folder],
            cwd=ROOT, env=os.environ | dict(OMP_NUM_THREADS="1"), capture_output=True, text=True,
        )  # fmt: skip
        if ended.returncode:
            raise RuntimeError(f"torchrun ended with status {ended.returncode}: {ended.stderr[-500:]}")
        cases = [compared(case, load_file(Path(folder, "-".join(case)))) for case in CASES]
    return dict(how=HOW, cases=cases)


def compared(case: tuple[str, str, str], two: dict[str, Tensor]) -> dict[str, Any]:
    """One case in this process against the same in two."""
    one, recipe = gradients(case), recorded(case[0]).recipe
    rows = [
        (one["loss"][batch], two["loss"][batch], one["gradient"][batch], two["gradient"][batch])
        for batch in range(len(one["loss"]))
    ]
    typical = np.max if case[2] == "frozen" else np.median
    found = dict(
        loss=np.median([before for before, *_ in rows]),
        relative_loss_difference=typical([abs(after / before - 1) for before, after, *_ in rows]),
        gradient_cosine=np.median([cosine(before, after) for *_, before, after in rows]),
        gradient_norm_ratio=np.median([after.norm() / before.norm() for *_, before, after in rows]),
        relative_gradient_difference=typical([(after - before).norm() / before.norm() for *_, before, after in rows]),
        another_batch_cosine=np.median(
            [cosine(one["gradient"][batch], one["gradient"][batch + 1]) for batch in range(len(rows) - 1)]
        ),
    )
    about = shapes(recipe) | dict(weights=case[1], batch_norm=case[2], batches=len(rows))
    return about | {key: float(value) for key, value in found.items()}


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return one @ other / (one.norm() * other.norm())


def recorded(name: str) -> Detector:
    """The detector of the book's size."""
    return Detector.load(RESULTS / f"hall-book-{name}-seed0.safetensors")


def gradients(case: tuple[str, str, str], team: Team | None = None) -> dict[str, Tensor]:
    """Loss, (batches,), and gradient, (batches, parameters), of an epoch's first batches; no weight moves."""
    name, weights, norm = case
    detector, clips = recorded(name), load_clips("hall", size="tiny")
    clips = clips[clips["split"] == "train"].reset_index(drop=True)
    recipe = replace(detector.recipe, holdout=0.0, shrink=0.0)
    run = Run(recipe, clips, detector.machines, CPU, None, team)
    if weights == "trained":
        run.model.load_state_dict(detector.state_dict())
    for module in run.model.modules():
        if norm == "frozen" and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
    losses, found = [], []

    def step(*batch: Tensor | None) -> Tensor:
        if len(losses) == BATCHES:
            return torch.zeros(2)
        losses.append(run.take_step(*batch))
        return losses[-1]

    def update() -> None:
        found.append(torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()]).double())

    run.step, run.optimizer.step = step, update
    run.train_epoch(tqdm(disable=True))
    return dict(loss=torch.stack(losses).sum(1), gradient=torch.stack(found))


def work(folder: str) -> None:
    """The side of torchrun."""
    for case in CASES:
        with joined(CPU) as team:
            found = gradients(case, team)
            if team.first:
                save_file(found, Path(folder, "-".join(case)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1])
    else:
        print(json.dumps(measure(), indent=1))
