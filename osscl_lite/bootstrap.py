"""How far a difference between two systems could be luck of the test clips: a paired bootstrap.
Explained in chapters 8 and 9.

What varies: the test clips, drawn with replacement among those of the same machine ID and label; clips of one
``background`` are drawn together. What does not: the trained systems and their seeds, taken as they were drawn; how
much seeds scatter stands beside each interval, not in it. Both systems and all seeds that were tested on the same clips
get the same draws; seeds with clips of their own (the generated hall draws others for each) get draws of their own.
Intervals hold the middle 95 % of the draws. For mAUC, a minimum, they lean towards low values.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

DRAWS = 1_000
MAX_FPR = 0.1
LEVEL = 0.95


def draw_weights(clips: pd.DataFrame, key: str, draws: int = DRAWS) -> np.ndarray:
    """How often each clip is in each draw. Explained in chapter 9.

    Args:
        clips: N test clips with machine_type, machine_id, label, and where the source has it background. Units that
            are drawn are clips, or the clips of a background; a unit is replaced by one that has the same numbers of
            clips of the same machine IDs and labels, so each ID keeps its numbers of both labels.
        key: seeds the draws; the same key and clips give the same ones.
        draws: how many.

    Returns:
        (1 + draws, N) uint8; row 0 is all ones, the clips as they are.
    """
    stratum = pd.factorize(clips["machine_type"] + "/" + clips["machine_id"] + "/" + clips["label"])[0]
    unit = clips["background"] if "background" in clips else np.arange(len(clips))
    unit = np.unique(unit, return_inverse=True)[1]
    if unit.max(initial=-1) + 1 == len(clips):
        kind = stratum
    else:
        holds = pd.Series(stratum).groupby(unit).agg(lambda part: tuple(sorted(part)))
        kind = pd.factorize(holds)[0]
    rng = np.random.default_rng([*key.encode()])
    counts = np.ones((1 + draws, kind.size), np.uint8)
    for one in np.unique(kind):
        places = np.flatnonzero(kind == one)
        drawn = rng.integers(0, len(places), (draws, len(places))) + len(places) * np.arange(draws)[:, None]
        counts[1:, places] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return counts[:, unit]


def resampled_auc(
    anomalous: np.ndarray, scores: np.ndarray, weights: np.ndarray, max_fpr: float = MAX_FPR
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and standardised pAUC (McClish 1989) of many draws of the same clips. Explained in chapter 9.

    Args:
        anomalous: (N,) bool, both kinds present; ``scores``: (N,), higher is more anomalous.
        weights: (D, N), how often each clip counts in each draw, with at least one clip of each kind in each.
        max_fpr: end of the partial curve.

    Returns:
        (D,) AUC and (D,) pAUC, each between 0 and 1, as ``metrics.auc`` and ``metrics.pauc`` give for the repeated
        clips.
    """
    down = np.argsort(-scores[~anomalous], kind="stable")
    levels, first = np.unique(-scores[~anomalous][down], return_index=True)  # equal scores are one step of the curve
    high = -scores[anomalous][:, None]
    of_anomalous = weights[:, anomalous].astype(np.float32)
    of_normal = np.add.reduceat(weights[:, ~anomalous][:, down], first, axis=1, dtype=np.float64)
    # Along each step the curve goes straight, from the share of anomalous clips that score higher up by those as high.
    start = (of_anomalous @ (high < levels).astype(np.float32)) / of_anomalous.sum(1, keepdims=True)
    rise = (of_anomalous @ (high == levels).astype(np.float32)) / of_anomalous.sum(1, keepdims=True)
    width = of_normal / of_normal.sum(1, keepdims=True)
    left = np.clip(max_fpr - (np.cumsum(width, axis=1) - width), 0, width)  # of each step, left of the limit
    bend = np.divide(left**2, 2 * width, out=np.zeros_like(width), where=width > 0)
    lowest = max_fpr**2 / 2
    partial = (start * left + rise * bend).sum(1)
    return ((start + rise / 2) * width).sum(1), (1 + (partial - lowest) / (max_fpr - lowest)) / 2


def machine_draws(clips: pd.DataFrame, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """AUC and pAUC of each machine ID in each draw; machine IDs without both kinds of clips are left out.
    Explained in chapter 9.

    Args:
        clips: N test clips; ``scores``: (N,); ``weights``: (D, N) of ``draw_weights``.

    Returns:
        "fan/id_00" -> (2, D): AUC, pAUC.
    """
    names = clips["machine_type"] + "/" + clips["machine_id"]
    known = clips["label"].isin(["normal", "anomaly"]).to_numpy() & ~np.isnan(scores)
    anomalous = clips["label"].eq("anomaly").to_numpy()
    drawn = {}
    for name, places in names.groupby(names).indices.items():
        places = places[known[places]]
        if 0 < anomalous[places].sum() < len(places):
            drawn[name] = np.stack(resampled_auc(anomalous[places], scores[places], weights[:, places]))
    return drawn


def over_types(drawn: dict[str, np.ndarray], measure: str, machine_type: str = "all") -> np.ndarray | None:
    """A measure of the tables from the draws of machine IDs. Explained in chapter 9.

    Args:
        drawn: of ``machine_draws``.
        measure: "AUC" or "pAUC" (mean over the IDs of a type), "mAUC" (lowest AUC of a type), or "mean" (of AUC and
            pAUC).
        machine_type: one, or "all": mean over the types.

    Returns:
        (D,), or None where there is no machine ID of that type.
    """
    types: dict[str, list[np.ndarray]] = {}
    for name, both in drawn.items():
        types.setdefault(name.partition("/")[0], []).append(both)
    wanted = types if machine_type == "all" else {machine_type} & set(types)
    values = []
    for one in sorted(wanted):
        ids = np.stack(types[one])  # (IDs, 2, D)
        per_type = {"AUC": lambda x: x[:, 0].mean(0), "pAUC": lambda x: x[:, 1].mean(0)}
        per_type |= {"mAUC": lambda x: x[:, 0].min(0), "mean": lambda x: x.mean((0, 1))}
        values.append(per_type[measure](ids))
    return np.mean(values, axis=0) if values else None


def paired_interval(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], level: float = LEVEL
) -> tuple[float, float, float, float]:
    """Difference of two systems, its interval over draws of the clips, and its scatter over seeds.
    Explained in chapters 8 and 9.

    Args:
        first, second: for each seed the same measure in each draw, (D,), draw 0 the clips as they are; place by place
            of the same clips and draws.

    Returns:
        first - second averaged over seeds; lower and upper end; standard deviation over seeds (NaN for one).
    """
    gap = np.stack(first) - np.stack(second)  # (seeds, D)
    low, high = np.quantile(gap[:, 1:].mean(0), [(1 - level) / 2, (1 + level) / 2])
    scatter = gap[:, 0].std(ddof=1) if len(gap) > 1 else float("nan")
    return float(gap[:, 0].mean()), float(low), float(high), float(scatter)
