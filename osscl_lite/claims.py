"""What the paper concludes from its tables, asked of the records: each difference with its interval.
Explained in chapter 9.

Also what can be asked of the same records beside the tables: which printed averages follow from their rows, pooled
against per-ID averages, the ways of scoring, the choice of the epoch, the scatter over seeds.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from osscl_lite.bootstrap import over_types, paired_interval
from osscl_lite.errors import BadInput
from osscl_lite.holdout import ONE_WAY
from osscl_lite.record import LAST_EPOCH, METHODS, PAPER_SCORE
from osscl_lite.tables import (
    HERE,
    NEIGHBOUR,
    PARTS,
    STAND_INS,
    TABLES,
    TYPES,
    Records,
    Run,
    by_system,
    cell,
    measure_of,
    numbers,
)

SHIFT = 1e-9  # of printed decimals in binary


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and the difference that it rests on: ``first`` minus ``second`` in these columns.

    Attributes:
        table: where the two are printed; ``sentence``: the paper's words.
        first, second: labels of systems in that table; ``columns``: as printed (IV, VI: rows).
        stated: column -> the difference that the text itself gives.
    """

    table: int
    sentence: str
    first: str
    second: str
    columns: tuple[str, ...]
    stated: dict[str, float] = field(default_factory=dict)


_KINDS = tuple(shown for name, shown in TYPES.items() if name != "all")
_BOTH = ("Average AUC", "Average pAUC")
_AUCS = tuple(f"{kind} AUC" for kind in _KINDS)
_FULL, _LOGMEL = "TFSTgram OS-SCL", "Log-Mel OS-SCL"
_BEST = (
    "the best performance in terms of average AUC and pAUC, with improvements of 1.63% and 1.22% over the "
    "state-of-the-art TASTgram (NAMix)"
)
_TOY = "on the ToyConveyor dataset, we achieved detection performance far exceeding existing state-of-the-art methods"
_TWO_STAGES = "the fine-tuning phase may weaken the contrastive effect, which is why we adopted a one-stage approach"
_NOISE = "supervised contrastive learning without noise does not effectively distinguish similar samples"
_OSSCL = (
    "this framework significantly improved STgram performance across multiple machines, particularly on the "
    "ToyConveyor dataset"
)
_FRONT_END = "The application of TFSTgram also enhanced detection performance for several machines"
_BEATS = "improved by 2.03% on the development set ... slightly lower, there was an overall improvement of 0.51%"
_HEAD = "removing the feature perturbation mapping head significantly decreased detection performance for some machines"
_REDUCED = "When the compression dimension was continuously reduced, detection results began to deteriorate"

CLAIMS = (
    Claim(2, _BEST, _FULL, "TASTgram", _BOTH, {"Average AUC": 1.63, "Average pAUC": 1.22}),
    Claim(2, "consistent across most machine types, except for valve data", _FULL, "TASTgram", _AUCS),
    Claim(2, _TOY, _FULL, "TASTgram", ("ToyConveyor AUC", "ToyConveyor pAUC")),
    Claim(2, _TWO_STAGES, _FULL, "CLP-SCF", _BOTH),
    Claim(2, _TWO_STAGES, _LOGMEL, "CLP-SCF", _BOTH),
    Claim(2, _NOISE, _FULL, "CLP-SCF", ("ToyConveyor AUC",)),
    Claim(2, "using only the Log-Mel spectrogram significantly outperforms STgram", _LOGMEL, "STgram-MFN", _BOTH),
    Claim(2, "consistently outperforming autoencoder-based reconstruction methods", "MobileNetV2", "IDNN", _BOTH),
    Claim(3, _OSSCL, "STgram OS-SCL", "STgram ArcFace", (*_BOTH, *_AUCS)),
    Claim(3, _FRONT_END, "TFSTgram ArcFace", "STgram ArcFace", (*_BOTH, *_AUCS)),
    Claim(3, _FRONT_END, _FULL, "STgram OS-SCL", (*_BOTH, *_AUCS)),
    Claim(
        4, "using only the Log-Mel spectrogram improved by 4.38% compared to STgram", _LOGMEL, "STgram-MFN",
        ("Average",), {"Average": 4.38},
    ),
    Claim(4, "superior performance and excellent stability using only Log-Mel", _LOGMEL, "CLP-SCF", ("Average",)),
    Claim(5, _BEATS, _FULL, "AnoPatch (BEATs)", tuple(PARTS), {"development_mean": 2.03, "all_mean": 0.51}),
    Claim(5, "achieves the best performance in the DCASE2020 Challenge", _FULL, "No. 1", tuple(PARTS)),
    Claim(6, _HEAD, "64", "no FPH", ("Average", *_KINDS)),
    *(Claim(6, _REDUCED, reduction, "64", ("Average",)) for reduction in ("32", "16", "8", "4")),
)  # fmt: skip


def printed_difference(claim: Claim, column: str) -> float:
    """``first`` minus ``second`` as printed, in points."""
    shown = by_system(claim.table)
    return float(shown.loc[claim.first, column] - shown.loc[claim.second, column])


def differences(records: Records, table: int, method: str = PAPER_SCORE) -> pd.DataFrame:
    """The differences that the paper draws conclusions from, printed and measured, with paired bootstrap intervals.
    Explained in chapter 9.

    Averages are over machine IDs, then types; nothing is pooled. The intervals say how far the choice of test clips
    could move the difference between these very trainings (``osscl_lite.bootstrap``); ``sd`` says how far seeds do.
    Only seeds that both systems have count. On features the systems that stand in for those that need sound are
    compared.

    Args:
        records: of one data set.
        table: 2 to 6.
        method: of scoring.

    Returns:
        Columns table, sentence, first, second, column, stated (in the text), printed, difference, low, high (95 %), sd
        (of the difference over seeds), seeds, gap (why nothing was measured). In points of a percentage.

    Raises:
        BadInput: if two records of one seed were tested on different clips.
    """
    rows, seen = [], set()
    for claim in CLAIMS:
        if claim.table != table:
            continue
        (first, one), (second, other) = (_compared(records, table, label) for label in (claim.first, claim.second))
        pairs, gap = _pairs(records, one, other, method)
        for column in claim.columns:
            if (key := (claim.sentence, first, second, column)) in seen:
                continue
            seen.add(key)
            row = dict(table=table, sentence=claim.sentence, first=first, second=second, column=column)
            row |= dict(stated=claim.stated.get(column, np.nan), printed=printed_difference(claim, column))
            values = [] if gap else [tuple(_values(run, table, column, method) for run in pair) for pair in pairs]
            if any(value is None for pair in values for value in pair):
                values, why = [], "no labelled test clips for this column"
            else:
                why = gap
            measured = paired_interval(*zip(*values, strict=True)) if values else [np.nan] * 4
            row |= dict(zip(("difference", "low", "high", "sd"), 100 * np.array(measured), strict=True))
            rows.append(row | dict(seeds=len(values), gap=why))
    return pd.DataFrame(rows)


def _compared(records: Records, table: int, label: str) -> tuple[str, str]:
    """Label and system that a claim is asked of: on features, of what stands in for a system that needs sound."""
    system = records.systems(table)[label]
    if records.source == "features" and system in STAND_INS:
        label, system = STAND_INS[system]
        return label + HERE, system
    if records.source == "features" and label == _LOGMEL:
        label = "OS-SCL" + HERE
    return f"R = {label}" if label.isdigit() else label, system


def _pairs(records: Records, one: str, other: str, method: str) -> tuple[list[tuple[Run, Run]], str]:
    if one == other:
        return [], "differ in their front ends only, and features have none"
    if gap := records.gap(one) or records.gap(other):
        return [], gap
    runs = [{run.result["seed"]: run for run in records.runs(system)} for system in (one, other)]
    pairs = [(runs[0][seed], runs[1][seed]) for seed in sorted(set(runs[0]) & set(runs[1]))]
    if not pairs:
        return [], "no seed that both have"
    if not all(method in run.scores.methods for pair in pairs for run in pair):
        return [], f"not both have a score by {method}"
    for first, second in pairs:
        columns = ["machine_type", "machine_id", "label", "dataset"]
        same = first.scores.clips[columns].equals(second.scores.clips[columns])
        if first.result["fingerprint"] != second.result["fingerprint"] or not same:
            names = f"{first.path.name} and {second.path.name}"
            raise BadInput(f"{names}: tested on different clips; run the older one again")
    return pairs, ""


def _values(run: Run, table: int, column: str, method: str) -> np.ndarray | None:
    """A number of a table in each draw of the test clips, (1 + draws,); None without labelled clips."""
    kind, measure = measure_of(table, column)
    parts = [over_types(run.draws(method, part), measure, kind) for part in PARTS.get(column, ("development",))]
    return None if any(part is None for part in parts) else np.mean(parts, axis=0)


def compare(
    records: Records, one: str, other: str, measure: str = "AUC", method: str = PAPER_SCORE, band: str = ""
) -> dict[str, Any] | None:
    """Any two systems on all labelled test clips, paired by seed and by draws of the clips. Explained in chapter 9.

    Args:
        records: of one data set; ``one``, ``other``: systems as in the names of records.
        measure: "AUC", "pAUC", "mAUC" or "mean", per-ID means averaged over types.
        method: of scoring; ``band``: of the faults, only those of this band (the hall has bands).

    Returns:
        difference (one minus other), low, high (95 % over draws), sd (over seeds; NaN for one), seeds, and the values
        of ``one`` and ``other`` by seed. Percent and points. None if there is no seed of both, no score of both by
        the method, or no labelled clip.

    Raises:
        BadInput: if two records of one seed were tested on different clips, or no fault is of that band.
    """
    pairs, _ = _pairs(records, one, other, method)
    drawn = [[over_types(run.draws(method, "all", band), measure) for run in pair] for pair in pairs]
    if not pairs or any(values is None for pair in drawn for values in pair):
        return None
    first, second = 100 * np.swapaxes(drawn, 0, 1)  # (seeds, 1 + draws) each
    found = dict(zip(("difference", "low", "high", "sd"), paired_interval(first, second), strict=True))
    return found | dict(seeds=len(pairs), one=first[:, 0].tolist(), other=second[:, 0].tolist())


def beyond_luck(found: dict[str, Any] | pd.Series) -> int | None:
    """Which of two systems is ahead, if neither the luck of the clips nor that of the seed explains the difference.
    Explained in chapter 9.

    A sign counts only if the interval over draws of the clips leaves out zero and the difference exceeds Student's 95 %
    half-width over the seeds, t * sd / sqrt(seeds). This does not correct for asking often.

    Args:
        found: what ``compare`` gives, or a row of ``differences``: difference, low, high, sd, seeds.

    Returns:
        1 or -1, the sign of the difference; 0 where luck may explain it; None for fewer than two seeds: no scatter.
    """
    if found["seeds"] < 2:
        return None
    luck = student.ppf(0.975, found["seeds"] - 1) * found["sd"] / found["seeds"] ** 0.5
    decided = found["low"] * found["high"] > 0 and abs(found["difference"]) > luck
    return int(np.sign(found["difference"])) if decided else 0


def differences_text(records: Records, table: int) -> str:
    """``differences`` as text, sentence by sentence; on features also by 1-NN."""
    lines = [f"What the paper concludes from Table {TABLES[table]}: differences in points, per-ID means, measured with"
             " [95 % interval over draws of the test clips] and standard deviation over seeds"]  # fmt: skip
    for method in records.methods:
        if method == NEIGHBOUR:
            lines.append(f"The same by {NEIGHBOUR}:")
        for sentence, part in differences(records, table, method).groupby("sentence", sort=False):
            lines.append(f'  "{sentence}"')
            for row in part.itertuples():
                stated = "" if np.isnan(row.stated) else f" (text {row.stated:+.2f})"
                measured = f"measured: {row.gap}"
                if not row.gap:
                    scatter = "" if np.isnan(row.sd) else f", sd {row.sd:.2f}"
                    measured = f"measured {row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]{scatter}"
                    measured += f", {row.seeds} seed{'s' * (row.seeds > 1)}"
                what = f"{row.first} - {row.second}, {row.column}"
                lines.append(f"    {what}: printed {row.printed:+.2f}{stated}, {measured}")
    return "\n".join(lines) + "\n"


def audit(table: int) -> pd.DataFrame:
    """The averages that a table prints, computed again from the numbers that it prints. Explained in chapter 9.

    II, III, IV and VI: means over the six machine types. V: ``all_mean`` from the two sets, and for the rows that
    Table II has too the development mean from its averages.

    Returns:
        Columns table, row, column, printed, recomputed, difference (printed minus recomputed), follows: "yes" (the same
        when rounded), "within rounding" (the unrounded numbers could still give it, at most 0.01) or "no".
    """
    shown, rows = numbers(table), []
    if table in (2, 3):
        for label, values in shown.iterrows():
            for measure in ("AUC", "pAUC"):
                again = values[[f"{kind} {measure}" for kind in _KINDS]].mean()
                rows.append((label, f"Average {measure}", values[f"Average {measure}"], again))
    elif table == 5:
        second = numbers(2)
        for label, values in shown.iterrows():
            if label in second.index:
                again = second.loc[label, list(_BOTH)].mean()
                rows.append((label, "development_mean", values["development_mean"], again))
            rows.append((label, "all_mean", values["all_mean"], values[["development_mean", "evaluation_mean"]].mean()))
    else:
        again = shown.loc[list(_KINDS)].mean()
        rows = [("Average", label, shown.loc["Average", label], again[label]) for label in shown]
    frame = pd.DataFrame(rows, columns=["row", "column", "printed", "recomputed"])
    frame.insert(0, "table", table)
    frame["difference"] = frame["printed"] - frame["recomputed"]
    off = frame["difference"].abs()
    frame["follows"] = np.select([off <= 0.005 + SHIFT, off <= 0.01 + SHIFT], ["yes", "within rounding"], "no")
    return frame


def pooled_against_mean(records: Records, systems: list[str], method: str = PAPER_SCORE) -> pd.DataFrame:
    """One ROC curve for all IDs of a type against the mean over IDs, of the same scores, development test clips.
    Explained in chapter 9.

    Returns:
        Columns system, machine_type ("all" last), measure ("AUC", "pAUC"), mean, pooled, difference (pooled less mean),
        sd (of the difference over seeds), seeds. Percent, means over seeds.
    """
    rows = []
    for system in systems:
        runs = [averages for run in records.runs(system) if (averages := run.averages(method, "development"))]
        for kind in dict.fromkeys(kind for kind, _ in runs[0]) if runs else ():
            for measure in ("AUC", "pAUC"):
                pairs = [[run[kind, average][measure.lower()] for average in ("mean", "pooled")] for run in runs]
                both = 100 * np.array(pairs)  # (seeds, 2)
                gap = both[:, 1] - both[:, 0]
                sd = gap.std(ddof=1) if len(gap) > 1 else np.nan
                rows.append((system, kind, measure, *both.mean(0), gap.mean(), sd, len(gap)))
    columns = ["system", "machine_type", "measure", "mean", "pooled", "difference", "sd", "seeds"]
    return pd.DataFrame(rows, columns=columns)


_AVERAGES = {"AUC": (2, "Average AUC"), "pAUC": (2, "Average pAUC"), "mAUC": (4, "Average")}


def by_method(records: Records, systems: list[str]) -> pd.DataFrame:
    """Every way of scoring the same detectors: average over types of per-ID means, development test clips.
    Explained in chapter 9.

    Returns:
        Columns system, method, measure ("AUC", "pAUC", "mAUC"), value, sd, seeds, and gain, gain_sd: over the paper's
        score of the same run, its standard deviation over seeds. Percent.
    """
    rows = []
    for system in systems:
        for method in METHODS:
            runs = [run for run in records.runs(system) if method in run.scores.methods]
            for measure, (table, column) in _AVERAGES.items() if runs else ():
                values = np.array([cell(run, table, column, "mean", method) for run in runs])
                gains = values - [cell(run, table, column) for run in runs]
                many = len(runs) > 1
                sds = [x.std(ddof=1) if many else np.nan for x in (values, gains)]
                rows.append((system, method, measure, values.mean(), sds[0], len(runs), gains.mean(), sds[1]))
    return pd.DataFrame(rows, columns=["system", "method", "measure", "value", "sd", "seeds", "gain", "gain_sd"])


def epoch_choice(records: Records, system: str) -> pd.DataFrame:
    """What looking at the test clips would have gained, from one run: its epoch was chosen by held-out normal clips.
    Explained in chapter 9.

    Against it stands the epoch with the highest AUC + pAUC on the development test clips, as CLP-SCF's program chooses.
    All values come from what was kept after each epoch: ranks, or in older records scores in half precision, which tie.

    Returns:
        Columns seed, choice ("normal clips", "test clips", "last epoch"), epoch, AUC, pAUC (percent, per-ID means).

    Raises:
        BadInput: if a run kept no scores of its epochs.
    """
    rows = []
    for run in records.runs(system):
        values = run.by_epoch(run.rows("development"))
        best = int(np.argmax(values.sum(1))) + 1
        choices = {"normal clips": run.result["chosen"], "test clips": best, "last epoch": len(values)}
        for choice, epoch in choices.items():
            rows.append((run.result["seed"], choice, epoch, *values[epoch - 1]))
    return pd.DataFrame(rows, columns=["seed", "choice", "epoch", "AUC", "pAUC"])


def chosen_against_last(records: Records, system: str) -> pd.DataFrame:
    """What the choice of the epoch did to a detector: the chosen one and the last, development test clips.
    Explained in chapter 9. In a few older records, which it does not read so, the scores of the last epoch are in
    half precision, which ties some.

    Returns:
        Columns seed, choice ("chosen", "last"), epoch, AUC, pAUC (percent, per-ID means), holdout_loss,
        holdout_accuracy (share of held-out normal clips whose machine is named).
    """
    rows = []
    for run in records.runs(system):
        looks = pd.DataFrame(run.result["log"]).set_index("epoch")[["holdout_loss", "holdout_accuracy"]]
        ways = ("chosen", run.result["chosen"], PAPER_SCORE), ("last", looks.index[-1], LAST_EPOCH)
        for choice, epoch, method in ways:
            average = run.averages(method, "development")["all", "mean"]
            values = (100 * average["auc"], 100 * average["pauc"])
            rows.append((run.result["seed"], choice, epoch, *values, *looks.loc[epoch]))
    columns = ["seed", "choice", "epoch", "AUC", "pAUC", "holdout_loss", "holdout_accuracy"]
    return pd.DataFrame(rows, columns=columns)


def loss_of_one_way(machines: int, margin: float, scale: float = 30.0) -> float:
    """Cross-entropy of the margin logits if all embeddings and all centres are one vector, in nats: what a detector
    pays that tells nothing apart. Explained in chapter 9.

    ln(1 + (machines - 1) exp(scale (1 - cos margin))), from ArcFace's logits: scale cos margin at the own machine,
    scale at every other.
    """
    return float(np.logaddexp(0, np.log(machines - 1) + scale * (1 - np.cos(margin))))


def seed_noise(records: Records, level: float = 0.95) -> pd.DataFrame:
    """Which printed differences are no larger than those between two trainings that differ in nothing but the seed.
    Explained in chapter 9.

    The standard deviation over seeds is pooled over the systems of the table that have at least two seeds (per-ID
    means; on the generated hall a seed draws the clips too). Two single runs of one system then differ by less than
    ``noise`` = t * sqrt(2) * sd in 95 of 100 cases, t of Student with the pooled degrees of freedom. It is the scatter
    on this data and at this size that is meant, not that of the paper's own runs, which it does not give. Detectors
    whose embeddings all point one way are left out: they tell no machines apart, and others of their system do.

    Returns:
        Columns table, sentence, first, second, column, printed, sd, freedom, noise, within (printed difference at most
        noise; None where there are no two seeds). Points.
    """
    rows = []
    for claim in CLAIMS:
        for column in claim.columns:
            squares, freedom = 0.0, 0
            for system in records.systems(claim.table).values():
                runs = [run for run in records.runs(system) if not _points_one_way(run)]
                values = np.array([cell(run, claim.table, column) for run in runs])
                if len(values) > 1 and np.isfinite(values).all():
                    squares += ((values - values.mean()) ** 2).sum()
                    freedom += len(values) - 1
            sd = (squares / freedom) ** 0.5 if freedom else np.nan
            noise = student.ppf((1 + level) / 2, freedom) * 2**0.5 * sd if freedom else np.nan
            shown = printed_difference(claim, column)
            within = bool(abs(shown) <= noise) if freedom else None
            what = (claim.table, claim.sentence, claim.first, claim.second, column)
            rows.append((*what, shown, sd, freedom, noise, within))
    columns = ["table", "sentence", "first", "second", "column", "printed", "sd", "freedom", "noise", "within"]
    return pd.DataFrame(rows, columns=columns)


def _points_one_way(run: Run) -> bool:
    """Whether the log of a detector says so of its chosen epoch."""
    log, chosen = run.result.get("log", {}), run.result.get("chosen")
    return "other_cosine" in log and log["other_cosine"][chosen - 1] > ONE_WAY
