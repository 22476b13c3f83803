"""The held-out normal clips: they choose the epoch. Explained in chapter 5; when they choose badly, in chapter 9."""

from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from osscl_lite.detector import Detector

ONE_WAY = 0.99  # mean cosine between clips of different machines above which embeddings tell nothing
MORE = 0.1  # share of held-out clips that a later epoch must name more, to warn of the chosen one


def hold_out(clips: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """Choose clips that pick the epoch: a boolean mask (N,), about ``fraction`` of the rows. Explained in chapter 5.

    Clips that share a background recording stay together, where the table says so.
    """
    rng = np.random.default_rng([seed, 0])
    groups = clips["background"].to_numpy() if "background" in clips else np.arange(len(clips))
    names = rng.permutation(pd.unique(groups))
    return np.isin(groups, names[: ceil(fraction * len(names))])


@torch.no_grad()
def look(model: Detector, z: Tensor, y: Tensor) -> dict[str, float]:
    """What the log says of the held-out clips after an epoch. Explained in chapter 5.

    Args:
        model: the moving average; z: (N, E), its embeddings of the clips; y: (N,), their machines.

    Returns:
        holdout_loss, cross-entropy of the margin logits; holdout_accuracy, share of the clips whose machine is named;
        both NaN for loss "supcon", which knows no classes. own_cosine and other_cosine, the mean cosine between two of
        these clips of the same and of different machine IDs.
    """
    cosine, same = z @ z.T, y[:, None] == y[None, :]
    of_pairs = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    found = dict(own_cosine=cosine[same & of_pairs].mean().item(), other_cosine=cosine[~same].mean().item())
    if model.recipe.loss == "supcon":
        return dict(holdout_loss=float("nan"), holdout_accuracy=float("nan")) | found
    loss = functional.cross_entropy(model.logits(z, y), y).item()
    right = (model.logits(z, y, margin=0.0).argmax(1) == y).float().mean().item()
    return dict(holdout_loss=loss, holdout_accuracy=right) | found


def nothing_learned(log: list[dict[str, Any]]) -> str:
    """A warning if the chosen epoch's average tells no machines apart and the last one does; else empty. See chapter 9.

    If clips and centres all point one way, the loss can be lower than that of an average that tells machines apart.
    """
    chosen, last = [row for row in log if row["chosen"]][-1], log[-1]
    if not (chosen["other_cosine"] > ONE_WAY and last["holdout_accuracy"] > chosen["holdout_accuracy"] + MORE):
        return ""
    first, then = (
        f"epoch {row['epoch']} (held-out loss {row['holdout_loss']:.2f}, names {row['holdout_accuracy']:.0%} of clips)"
        for row in (chosen, last)
    )
    return f"{first} is chosen, but its embeddings all point one way; {then} tells machines apart; see the log"
