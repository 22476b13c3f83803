"""AUC, pAUC and mAUC, per machine ID and pooled, always named. Explained in chapter 6."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def auc(anomalous: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: how often an anomalous clip scores above a normal one. NaN if one kind is missing.
    Explained in chapter 6.
    """
    anomalous = np.asarray(anomalous, bool)
    if not 0 < anomalous.sum() < len(anomalous):
        return float("nan")
    alarms, hits = roc(anomalous, scores)
    return float(np.trapezoid(hits, alarms))


def pauc(anomalous: ArrayLike, scores: ArrayLike, max_fpr: float = 0.1) -> float:
    """Partial AUC up to a false positive rate, standardised so that 0.5 is chance (McClish 1989).
    Explained in chapter 6.
    """
    anomalous = np.asarray(anomalous, bool)
    if not 0 < anomalous.sum() < len(anomalous):
        return float("nan")
    alarms, hits = roc(anomalous, scores)
    left = alarms <= max_fpr
    area = np.trapezoid([*hits[left], np.interp(max_fpr, alarms, hits)], [*alarms[left], max_fpr])
    chance = max_fpr**2 / 2
    return float(0.5 * (1 + (area - chance) / (max_fpr - chance)))


def roc(anomalous: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the ROC curve. scikit-learn's ``roc_curve`` finds the same and spends far longer on its arguments.

    Args:
        anomalous: (N,) truth values, of both kinds; ``scores``: (N,), higher is more anomalous.

    Returns:
        False positive rate and true positive rate, (P,) each, from 0 to 1.
    """
    anomalous, scores = np.asarray(anomalous, bool), np.asarray(scores, float)
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)  # of each run of equal scores
    hits = np.cumsum(anomalous[order])[last]
    alarms = 1 + last - hits
    bend = np.ones(len(last), bool)  # the curve goes straight through the other points
    bend[1:-1] = (np.diff(hits, 2) != 0) | (np.diff(alarms, 2) != 0)
    return np.append(0, alarms[bend]) / alarms[-1], np.append(0, hits[bend]) / hits[-1]


def evaluate(scores: ArrayLike, clips: pd.DataFrame) -> pd.DataFrame:
    """Score table of a detector: one row per machine ID, two per type, two for all. Explained in chapter 6.

    The DCASE protocol averages AUC and pAUC over the IDs of a type (``mean``); the authors' program puts all scores of
    a type on one ROC curve (``pooled``). Both stand here by name. mAUC is the minimum over the IDs of a type.
    Rows of split test labelled normal or anomaly count; how many were left out stands in ``left_out``
    (type and all: also those of machine IDs without a usable clip, which have no row).

    Args:
        scores: one a row of ``clips``, higher is more anomalous; rows with a NaN score are left out.
        clips: a table from ``load_clips``.

    Returns:
        DataFrame with columns machine_type, machine_id, average ("ID", "mean" or "pooled"), auc, pauc, mauc (types and
        all only), normal, anomaly (numbers of clips), left_out. The last two rows average over the types.

    Raises:
        ValueError: if the lengths differ or no clip can be used.
    """
    table = clips[["machine_type", "machine_id", "split", "label"]].copy()
    if len(table) != np.size(scores):
        raise ValueError(f"{np.size(scores)} scores for {len(table)} clips")
    table["score"] = np.asarray(scores, float)
    usable = table["split"].eq("test") & table["label"].isin(["normal", "anomaly"]) & table["score"].notna()
    left_out = (~usable).groupby([table["machine_type"], table["machine_id"]]).sum()
    table = table[usable].assign(anomalous=lambda t: t["label"].eq("anomaly"))
    if table.empty:
        raise ValueError("no clip of split test with a label: nothing to evaluate")

    rows = []
    for machine_type, of_type in table.groupby("machine_type", sort=False):
        per_id = []
        for machine_id, group in of_type.groupby("machine_id"):
            row = _row(machine_type, machine_id, "ID", group)
            row["left_out"] = int(left_out.get((machine_type, machine_id), 0))
            per_id.append(row)
        counts = {key: sum(row[key] for row in per_id) for key in ("normal", "anomaly")}
        counts["left_out"] = int(left_out[machine_type].sum())
        mean = dict(machine_type=machine_type, machine_id="all", average="mean", mauc=_least(per_id), **counts)
        mean |= {key: _mean(per_id, key) for key in ("auc", "pauc")}
        pooled = _row(machine_type, "all", "pooled", of_type) | counts | {"mauc": mean["mauc"]}
        rows += [*per_id, mean, pooled]
    for average in ("mean", "pooled"):
        of_types = [row for row in rows if row["average"] == average]
        total = dict(machine_type="all", machine_id="all", average=average)
        total |= {key: _mean(of_types, key) for key in ("auc", "pauc", "mauc")}
        total |= {key: sum(row[key] for row in of_types) for key in ("normal", "anomaly")}
        rows.append(total | {"left_out": int((~usable).sum())})
    columns = ["machine_type", "machine_id", "average", "auc", "pauc", "mauc", "normal", "anomaly", "left_out"]
    return pd.DataFrame(rows, columns=columns)


def _row(machine_type: str, machine_id: str, average: str, group: pd.DataFrame) -> dict:
    anomalous = group["anomalous"]
    return dict(
        machine_type=machine_type,
        machine_id=machine_id,
        average=average,
        auc=auc(anomalous, group["score"]),
        pauc=pauc(anomalous, group["score"]),
        normal=int((~anomalous).sum()),
        anomaly=int(anomalous.sum()),
    )


def _mean(rows: list[dict], key: str) -> float:
    values = [row[key] for row in rows if not np.isnan(row[key])]
    return float(np.mean(values)) if values else float("nan")


def _least(rows: list[dict]) -> float:
    values = [row["auc"] for row in rows if not np.isnan(row["auc"])]
    return min(values) if values else float("nan")


def by_band(scores: ArrayLike, clips: pd.DataFrame) -> pd.DataFrame:
    """AUC by fault band: the anomalous clips of one band against all normal clips of their ID, averaged over IDs.
    Explained in chapter 6.

    Args:
        scores: one a row of ``clips``.
        clips: a table with a ``band`` column (the generated hall has one).

    Returns:
        DataFrame with columns band, auc, anomaly (number of clips).
    """
    table = clips.assign(score=np.asarray(scores, float))
    table = table[table["split"].eq("test") & table["label"].isin(["normal", "anomaly"]) & table["score"].notna()]
    rows = []
    for band in sorted(set(table.loc[table["label"].eq("anomaly"), "band"])):
        values, count = [], 0
        for _, group in table.groupby(["machine_type", "machine_id"]):
            part = group[group["label"].eq("normal") | group["band"].eq(band)]
            anomalous = part["label"].eq("anomaly")
            if anomalous.any() and not anomalous.all():
                values.append(auc(anomalous, part["score"]))
                count += int(anomalous.sum())
        rows.append(dict(band=band, auc=float(np.mean(values)) if values else float("nan"), anomaly=count))
    return pd.DataFrame(rows, columns=["band", "auc", "anomaly"])


def interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of Student's t interval over repeated runs (seeds). Explained in chapter 5.

    Returns:
        (mean, half-width); the half-width is NaN for a single run.
    """
    from scipy.stats import t

    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    return float(values.mean()), float(
        t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    )
