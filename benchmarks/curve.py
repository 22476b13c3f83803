"""Does the fast step learn the same? Loss curves and AUC of whole trainings: plain float32, ours, ours in bfloat16."""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.plain import PlainRun
from benchmarks.setting import Report, Setting, shapes
from osscl_lite import Detector, Recipe, evaluate, load_clips, recipe, replace
from osscl_lite.cpu import kept_memory
from osscl_lite.data import machine_names
from osscl_lite.metrics import interval
from osscl_lite.training import Run

VARIANTS = {
    "plain": "plain PyTorch, float32",
    "ours": "this package's step on this device",
    "bfloat16": "this package's step, the network in bfloat16 as on GPUs, here on this device",
}
SEEDS = (0, 1, 2)


def measure(setting: Setting) -> None:
    """Every variant with every seed, then what they have in common."""
    report = Report(
        setting, "curve",
        "training loss of each epoch and mean per-ID AUC (%) of whole trainings on generated sound (the hall), three"
        " seeds",
        "the same clips, initial weights and random draws for all variants of a seed; the last epoch's moving average"
        " scores the test clips as the paper does",
    )  # fmt: skip
    size = "tiny" if setting.quick else "book"
    chosen = replace(recipe("logmel-osscl", size), holdout=0.0, **(dict(width=4, epochs=1) if setting.quick else {}))
    for seed in SEEDS[: 1 if setting.quick else None]:
        for variant in VARIANTS:
            one = replace(chosen, seed=seed)
            report.case(
                shapes(one) | dict(seed=seed, variant=variant),
                lambda one=one, variant=variant: train(one, variant, setting.device),
            )
    report.case(dict(compared="all"), lambda: compare(report.cases))


def train(chosen: Recipe, variant: str, where: str) -> dict[str, Any]:
    """Train and score one detector."""
    clips, device = load_clips("hall", size=chosen.size, seed=chosen.seed), torch.device(where)
    training = clips[clips["split"] == "train"].reset_index(drop=True)
    test = clips[clips["split"] == "test"].reset_index(drop=True)
    machines, losses = machine_names(training), []
    torch.set_num_threads(1)
    if variant == "plain":
        run = PlainRun(chosen, training, machines, device)
        for _ in range(chosen.epochs):
            losses.append(run.train_epoch())
        weights = run.ema.module.state_dict()
    else:
        with kept_memory():
            run = Run(chosen, training, machines, device, None)
            run.losses.half = variant == "bfloat16"
            for _ in range(chosen.epochs):
                losses.append(run.train_epoch(tqdm(disable=True))["train_loss"])
                run.epoch += 1
        weights = run.average.state_dict()
    model = Detector(chosen, machines).to(device)
    model.load_state_dict(weights)
    table = evaluate(model.score_clips(test), test)
    auc = table.loc[table["machine_type"].eq("all") & table["average"].eq("mean"), "auc"].item()
    return dict(about=VARIANTS[variant], losses=losses, auc=100 * auc)


def compare(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """AUC of each variant with its interval, and its difference to plain beside the differences between seeds."""
    runs = {name: [case for case in cases if case.get("variant") == name] for name in VARIANTS}
    curves = {name: np.array([case["losses"] for case in runs[name]]) for name in VARIANTS}
    noise = curves["plain"].std(0, ddof=1) if len(runs["plain"]) > 1 else np.full(curves["plain"].shape[1], np.nan)
    found: dict[str, Any] = dict(seed_noise_of_the_loss=noise.tolist())
    for name in VARIANTS:
        auc = np.array([case["auc"] for case in runs[name]])
        mean, half_width = interval(auc)
        found[name] = dict(auc=mean, auc_interval=half_width, mean_losses=curves[name].mean(0).tolist())
        if name != "plain":
            found[name] |= dict(
                auc_difference=list(interval(auc - np.array([case["auc"] for case in runs["plain"]]))),
                largest_loss_difference=float(abs(curves[name].mean(0) - curves["plain"].mean(0)).max()),
                largest_difference_in_seed_noise=float(
                    (abs(curves[name].mean(0) - curves["plain"].mean(0)) / noise).max()
                ),
            )
    return found
