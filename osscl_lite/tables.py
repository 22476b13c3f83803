"""Tables II to VI: what records say, in the layout of the paper and beside its numbers. Explained in chapter 9.

Nothing is trained here. Every score comes from the file of scores beside a record; a record that does not follow from
its scores is refused.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from osscl_lite.bootstrap import draw_weights, machine_draws, over_types
from osscl_lite.errors import BadInput
from osscl_lite.metrics import evaluate
from osscl_lite.record import DECIMALS, LAST_EPOCH, METHODS, PAPER_SCORE, RESULTS, columns_of, read_results, read_scores
from osscl_lite.systems import SYSTEMS

TABLES = {2: "II", 3: "III", 4: "IV", 5: "V", 6: "VI"}
TYPES = dict(
    fan="Fan", pump="Pump", slider="Slider", valve="Valve", ToyCar="ToyCar", ToyConveyor="ToyConveyor", all="Average"
)
ROUNDED = 2 * 10**-DECIMALS  # other versions of the libraries may round the other way
NEIGHBOUR = METHODS[2]  # 1-NN on embeddings
HERE = " (on these features)"
BY_SYSTEM = (2, 3, 5)  # a row a system; in IV and VI a system is a column and a machine type a row
PARTS = {
    "development_mean": ("development",),
    "evaluation_mean": ("evaluation",),
    "all_mean": ("development", "evaluation"),
}
TITLES = {
    2: "AUC (%) and pAUC (%), test clips of the development set",
    3: "AUC (%) and pAUC (%), ablation, test clips of the development set",
    4: "mAUC (%), the lowest AUC of a machine ID, test clips of the development set",
    5: "mean of AUC (%) and pAUC (%), test clips of the development and of the evaluation set; size in millions",
    6: "AUC (%) by the reduction R of the perturbation head, test clips of the development set",
}
OSSCL = {"Log-Mel OS-SCL": "logmel-osscl", "TFSTgram OS-SCL": "tfstgram-osscl"}
SYSTEMS_OF: dict[int, dict[str, str]] = {
    2: {
        "IDNN": "idnn",
        "MobileNetV2": "mobilenetv2",
        "Glow_Aff": "glow-aff",
        "STgram-MFN": "stgram-mfn",
        "CLP-SCF": "clp-scf",
        "TASTgram": "tastgram-namix",
    }
    | OSSCL,
    3: {
        "STgram ArcFace": "stgram-arcface",
        "TFSTgram ArcFace": "tfstgram-arcface",
        "STgram OS-SCL": "stgram-osscl",
        "TFSTgram OS-SCL": "tfstgram-osscl",
    },
    4: {"STgram-MFN": "stgram-mfn", "CLP-SCF": "clp-scf"} | OSSCL,
    5: {
        "AnoPatch (WavLM)": "anopatch-wavlm",
        "AnoPatch (ATST)": "anopatch-atst",
        "AnoPatch (AST)": "anopatch-ast",
        "No. 1": "no1",
        "AnoPatch (BEATs)": "anopatch-beats",
    }
    | OSSCL,
}
REDUCTIONS = {"no FPH": None, "128": 128, "64": 64, "32": 32, "16": 16, "8": 8, "4": 4}
# Where there is no sound, the same losses on the features themselves: system -> label and system that stands in for it.
STAND_INS = {
    "stgram-mfn": ("ArcFace", "logmel-arcface"),
    "stgram-arcface": ("ArcFace", "logmel-arcface"),
    "tfstgram-arcface": ("ArcFace", "logmel-arcface"),
    "tastgram-namix": ("Noisy-ArcMix", "logmel-namix"),
    "clp-scf": ("CLP-SCF", "logmel-clp-scf"),
    "stgram-osscl": ("OS-SCL", "logmel-osscl"),
    "tfstgram-osscl": ("OS-SCL", "logmel-osscl"),
}
KINDS = {
    "hall": "generated sound, the machine hall",
    "features": "precomputed features",
    "dcase2020": "recordings in the challenge's layout",
}
REAL_FEATURES = {
    "modspec": "public features of real DCASE 2020 recordings, modulation spectra of 60 x 8, no Log-Mel",
    "toycar-logmel": "public Log-Mel features of real ToyCar recordings of DCASE 2020, four IDs",
}
# The DCASE rows of before are means over IDs; the programs of TASTgram and OS-SCL put a type's IDs on one curve.
PRINTED_AS = {
    2: "printed: TASTgram and OS-SCL pool the IDs of a type, as their programs do; the other rows are means over IDs",
    3: "printed: STgram ArcFace repeats Table II's STgram-MFN, a mean over IDs; the authors' program pools the others",
    5: "printed: the authors' program pools the IDs of a type in the OS-SCL rows",
    6: "printed: pooled, as the authors' program does",
}
AVERAGES = {4: ("lowest ID",)}  # of the others: the two of ``evaluate``
SHOWN = {"printed": "printed", "mean": "per-ID mean", "pooled": "pooled", "lowest ID": "lowest ID"}


@cache
def printed(table: int) -> pd.DataFrame:
    """A table as the paper prints it, methods (IV and VI: machine types) down, indexed by the first column.
    Explained in chapter 9.

    Raises:
        BadInput: for a number that is none of 2 to 6.
    """
    if table not in TABLES:
        raise BadInput(f"table {table}: choose some of {', '.join(map(str, TABLES))}")
    return pd.read_csv(RESULTS / "printed" / f"table{table}.csv", index_col=0)


def numbers(table: int) -> pd.DataFrame:
    """The numbers of ``printed``, without the columns of words. Explained in chapter 9."""
    return printed(table).select_dtypes("number")


def by_system(table: int) -> pd.DataFrame:
    """``numbers`` with a row a system in every table."""
    return numbers(table) if table in BY_SYSTEM else numbers(table).T


@dataclass
class Run:
    """One record, its scores, and the tables of ``evaluate`` that were asked for. Explained in chapter 9."""

    result: dict[str, Any]
    folder: Path

    def __post_init__(self) -> None:
        self.scores = read_scores(self.result, self.folder)
        self._tables: dict[tuple[str, str], pd.DataFrame | None] = {}
        self._averages: dict[tuple[str, str], dict[tuple[str, str], pd.Series]] = {}
        self._draws: dict[tuple[str, str, str], dict[str, np.ndarray]] = {}
        self._checked: set[str] = set()

    @property
    def path(self) -> Path:
        """The file of the record."""
        return self.folder / Path(self.result["scores"]["file"]).with_suffix(".json")

    def table(self, method: str = PAPER_SCORE, part: str = "development") -> pd.DataFrame | None:
        """``evaluate`` on the test clips of one part, "development" or "evaluation"; None without a labelled clip.

        Raises:
            BadInput: if the AUCs in the record are not those of its scores.
        """
        if (method, part) not in self._tables:
            self._check(method)
            self._tables[method, part] = self._evaluate(method, self.rows(part))
        return self._tables[method, part]

    def averages(self, method: str, part: str) -> dict[tuple[str, str], pd.Series]:
        """(machine type or "all", "mean" or "pooled") -> its row of ``table``; empty without a labelled clip."""
        if (method, part) not in self._averages:
            table = self.table(method, part)
            rows = {} if table is None else table[table["machine_id"].eq("all")].iterrows()
            self._averages[method, part] = {(row["machine_type"], row["average"]): row for _, row in dict(rows).items()}
        return self._averages[method, part]

    def rows(self, part: str, band: str = "") -> np.ndarray:
        """Which test clips are of a part, "development", "evaluation" or "all"; of faults only a ``band``'s: (N,).

        Raises:
            BadInput: if no fault is of that band.
        """
        clips = self.scores.clips
        chosen = clips["dataset"].eq(part) | (part == "all")
        if band:
            bands = {*clips.get("band", ())} - {""}
            if band not in bands:
                raise BadInput(f"{self.path}: no fault of band {band}; there are {', '.join(sorted(bands)) or 'none'}")
            chosen &= clips["label"].eq("normal") | clips["band"].eq(band)
        return chosen.to_numpy()

    def draws(self, method: str = PAPER_SCORE, part: str = "development", band: str = "") -> dict[str, np.ndarray]:
        """AUC and pAUC of each machine ID in each draw of the clips, which runs on the same clips share.

        Args:
            method, part, band: as for ``table`` and ``rows``.

        Returns:
            As ``bootstrap.machine_draws``: "fan/id_00" -> (2, 1 + draws), the first of them the clips as they are.

        Raises:
            BadInput: as ``table`` and ``rows``.
        """
        key = (method, part, band)
        if key not in self._draws:
            self._check(method)
            rows = self.rows(part, band)
            clips = self.scores.clips[rows].reset_index(drop=True)
            weights = draw_weights(clips, " ".join([self.result["fingerprint"], part, band]).strip())
            self._draws[key] = machine_draws(clips, self.scores.methods[method][rows], weights)
        return self._draws[key]

    def by_epoch(self, rows: np.ndarray) -> np.ndarray:
        """AUC and pAUC after each epoch on some test clips, (N,) bool: (E, 2), percent, means of the IDs, then types.

        Raises:
            BadInput: if the run kept no scores of its epochs.
        """
        if self.scores.epochs is None:
            raise BadInput(f"{self.path}: keeps no scores of its epochs; see osscl_lite.record.keeps_epochs")
        clips = self.scores.clips[rows].reset_index(drop=True)
        once = np.ones((1, len(clips)), np.uint8)
        drawn = [machine_draws(clips, scores, once) for scores in self.scores.epochs[:, rows].astype(np.float32)]
        return np.array([[100 * over_types(each, measure)[0] for measure in ("AUC", "pAUC")] for each in drawn])

    def _evaluate(self, method: str, rows: np.ndarray) -> pd.DataFrame | None:
        clips, scores = self.scores.clips[rows], self.scores.methods[method][rows]
        if not (clips["label"].ne("unknown") & ~np.isnan(scores)).any():
            return None
        return evaluate(scores, clips.reset_index(drop=True))

    def _check(self, method: str) -> None:
        if method in self._checked or method == LAST_EPOCH:  # of which the record holds no numbers
            return
        told = pd.DataFrame(self.result["methods"].get(method, {}).get("auc", []))
        every = self._evaluate(method, np.ones(len(self.scores.clips), bool))
        found = pd.DataFrame(json.loads(json.dumps(columns_of(every)))) if every is not None else pd.DataFrame()
        try:
            pd.testing.assert_frame_equal(told, found, check_dtype=False, check_exact=False, rtol=0, atol=ROUNDED)
        except AssertionError:
            raise BadInput(f"{self.path}: its AUCs by {method} do not follow from its scores; run it again") from None
        self._checked.add(method)


@dataclass
class Records:
    """The records of one data set, each read once. Explained in chapter 9.

    Attributes:
        data: its name in the records, such as "hall-book" or "modspec".
        folder: where the records are.
        source: "hall", "features" or "dcase2020"; "" asks the records.
        seeds: only these; all that there are without.
        ablated: whose perturbation head Table VI varies, "tfstgram-osscl" as the paper's or "logmel-osscl"; "" asks
            which of them has records of another reduction.
    """

    data: str
    folder: Path = RESULTS
    source: str = ""
    seeds: Sequence[int] | None = None
    ablated: str = ""

    def __post_init__(self) -> None:
        self._runs: dict[str, list[Run]] = {}
        self.source = self.source or self._guess_source()
        if not self.ablated:
            paper = any(self.folder.glob(f"{self.data}-tfstgram-osscl-r[0-9]*-seed*.json"))
            self.ablated = "tfstgram-osscl" if paper else "logmel-osscl"

    def _guess_source(self) -> str:
        if self.data.startswith("hall-"):
            return "hall"
        inputs = (json.loads(path.read_text())["recipe"]["input"] for path in self.folder.glob(f"{self.data}-*.json"))
        return "dcase2020" if next(inputs, "waveform") == "waveform" else "features"

    def runs(self, system: str) -> list[Run]:
        """The runs of a system whose scores are recorded, by seed; none if nothing is.

        Args:
            system: as in the names of records, such as "idnn" or "logmel-osscl-r16".

        Raises:
            BadInput: for a record whose scores are gone, or are those of another run.
        """
        if system not in self._runs:
            self._runs[system] = []
            if any(self.folder.glob(f"{self.data}-{system}-seed*.json")):
                results = read_results(self.data, system, folder=self.folder)
                for result in sorted(results, key=lambda result: result["seed"]):
                    if self.seeds is None or result["seed"] in self.seeds:
                        self._runs[system].append(Run(result, self.folder))
        return self._runs[system]

    @property
    def methods(self) -> tuple[str, ...]:
        """The ways of scoring that its tables show: each system's own, on features 1-NN too."""
        return (PAPER_SCORE, NEIGHBOUR) if self.source == "features" else (PAPER_SCORE,)

    def gap(self, system: str) -> str:
        """Why a system has no numbers; empty if it has."""
        if self.runs(system):
            return ""
        if system in SYSTEMS and SYSTEMS[system].listens and self.source == "features":
            return "learns from waveforms, and these are features"
        return "no weights at hand" if system.startswith("anopatch") else "not recorded"

    def systems(self, table: int) -> dict[str, str]:
        """Label -> system of a table, the paper's rows first, then those that stand in for them on features."""
        if table == 6:
            return {
                label: self.ablated + ("" if reduction == 64 else f"-r{reduction or 0}")
                for label, reduction in REDUCTIONS.items()
            }
        rows = dict(SYSTEMS_OF[table])
        if self.source == "features":
            for label, system in (STAND_INS[system] for system in SYSTEMS_OF[table].values() if system in STAND_INS):
                if system not in rows.values():
                    rows[label + HERE] = system
        return rows

    def describe(self) -> str:
        """What was measured on, in words that every table carries."""
        return f"{self.data}: {REAL_FEATURES.get(self.data, KINDS[self.source])}"


def measure_of(table: int, column: str) -> tuple[str, str]:
    """Machine type ("all": average) and measure ("AUC", "pAUC", "mAUC", "mean") of a printed column (IV, VI: row)."""
    if table == 5:
        return "all", "mean"
    kind, _, measure = column.partition(" ")
    names = {shown: name for name, shown in TYPES.items()}
    return names[kind], measure or {4: "mAUC", 6: "AUC"}[table]


def cell(run: Run, table: int, column: str, average: str = "mean", method: str = PAPER_SCORE) -> float:
    """One number of a table, in percent; NaN where the clips cannot give it. Explained in chapter 9.

    Args:
        run: whose.
        table: 2 to 6; ``column``: as printed (IV and VI: the machine type).
        average: "mean" (over the IDs of a type) or "pooled".
        method: of scoring.
    """
    if column == "size_millions":
        return run.result["parameters"] / 1e6
    kind, measure = measure_of(table, column)
    values = []
    for part in PARTS.get(column, ("development",)):
        row = run.averages(method, part).get((kind, average))
        if row is None:
            return float("nan")
        values.append((row["auc"] + row["pauc"]) / 2 if measure == "mean" else row[measure.lower()])
    return 100 * float(np.mean(values))


def cells(records: Records, table: int, method: str = PAPER_SCORE) -> pd.DataFrame:
    """Every number of a table, printed and measured, one a row. Explained in chapter 9.

    Args:
        records: of one data set.
        table: 2 to 6.
        method: of scoring; systems without it are left out.

    Returns:
        Columns table, label (of the system, as printed), column (as printed; IV and VI: the machine type), average
        ("printed", "mean" over IDs, "pooled", or "lowest ID" for mAUC), value and sd (percent; mean and standard
        deviation over seeds), seeds, gap (why there is no value).
    """
    shown = by_system(table)
    rows = []
    for label, system in records.systems(table).items():
        runs, gap = records.runs(system), records.gap(system)
        if method != PAPER_SCORE:
            runs = [run for run in runs if method in run.scores.methods]
            if not runs:
                continue
        for column in shown:
            if label in shown.index:
                rows.append((label, column, "printed", float(shown.loc[label, column]), np.nan, 0, ""))
            for average in AVERAGES.get(table, ("mean", "pooled")):
                over = "mean" if average == "lowest ID" else average
                values = np.array([cell(run, table, column, over, method) for run in runs])
                missing = gap or ("" if np.isfinite(values).all() else _why_no_cell(table, column))
                value, sd = (np.nan, np.nan) if missing else (values.mean(), np.nan)
                if not missing and len(runs) > 1 and column != "size_millions":
                    sd = values.std(ddof=1)
                rows.append((label, column, average, value, sd, len(runs), missing))
    frame = pd.DataFrame(rows, columns=["label", "column", "average", "value", "sd", "seeds", "gap"])
    frame.insert(0, "table", table)
    return frame


def _why_no_cell(table: int, column: str) -> str:
    if table == 5 and column != "development_mean":
        return "no labelled clips of the evaluation set; its labels come from eval_data_list.csv"
    kind = column.partition(" ")[0]
    return f"no labelled test clips of {kind}: the measured average leaves it out, the printed one is over six types"


def layout(frame: pd.DataFrame) -> pd.DataFrame:
    """``cells`` in the paper's layout, as text: a line for what is printed, and one for each average.
    Explained in chapter 9.

    Returns:
        DataFrame indexed by (row, average), columns as printed; "71.23±0.45", or "-" where there is nothing.
    """
    table = int(frame["table"].iloc[0])
    text = frame.assign(text=[_number(*row) for row in zip(frame["value"], frame["sd"], frame["column"], strict=True)])
    row, column = ("label", "column") if table in BY_SYSTEM else ("column", "label")
    wide = text.pivot(index=[row, "average"], columns=column, values="text")
    averages = [average for average in SHOWN if average in set(frame["average"])]
    rows = [(one, average) for one in frame[row].unique() for average in averages if (one, average) in wide.index]
    wide = wide.loc[rows, list(frame[column].unique())].fillna("-")
    wide.index = pd.MultiIndex.from_tuples([(one, SHOWN[average]) for one, average in rows])
    return wide.rename_axis(columns=None)


def _number(value: float, sd: float, column: str) -> str:
    if np.isnan(value):
        return "-"
    if column == "size_millions":
        return f"{value:.3g}"
    return f"{value:.2f}" if np.isnan(sd) else f"{value:.2f}±{sd:.2f}"


def notes(records: Records, frame: pd.DataFrame) -> list[str]:
    """What a reader of a table must know: which averages, seeds, gaps, sizes, hardware, whose head Table VI varies.
    Explained in chapter 9.
    """
    table = int(frame["table"].iloc[0])
    measured = frame[frame["average"].ne("printed")]
    lines = [PRINTED_AS[table]] if table in PRINTED_AS else []
    if table == 6 and records.ablated != "tfstgram-osscl":
        lines.append("measured with Log-Mel OS-SCL; the paper's is TFSTgram OS-SCL")
    counts = measured[measured["seeds"].gt(0)].groupby("label", sort=False)["seeds"].first()
    if len(counts):
        usual = int(counts.mode().iloc[-1])
        others = ", ".join(f"{label}: {count}" for label, count in counts.items() if count != usual)
        what = "one seed" if usual == 1 else f"mean ± standard deviation over {usual} seeds"
        lines.append(f"measured: {what}" + (f" ({others})" if others else ""))
    for gap, part in measured[measured["gap"].ne("")].groupby("gap", sort=False):
        whole = part["column"].nunique() == measured["column"].nunique()  # a system that has nothing at all
        lines.append(f"-  {', '.join(part['label'].unique())}: {gap}" if whole else f"-  {gap}")
    results = [run.result for system in records.systems(table).values() for run in records.runs(system)]
    if results:
        sizes = sorted({result["recipe"]["size"] for result in results})
        where = sorted({result["measured_on"]["hardware"] for result in results})
        lines.append(f"recipes of size {', '.join(sizes)}; trained on {'; '.join(where)}")
    return lines


def table_text(records: Records, table: int) -> str:
    """A table as text: title, what it was measured on, the paper's layout, notes; on features also by 1-NN.
    Explained in chapter 9.
    """
    lines = [f"TABLE {TABLES[table]}: {TITLES[table]}", f"Measured on {records.describe()}."]
    with pd.option_context("display.unicode.east_asian_width", False):
        for method in records.methods:
            frame = cells(records, table, method)
            if frame.empty:
                continue
            kind = "each system's own score" if method == PAPER_SCORE else f"{method}, detectors only"
            lines += ["", f"Score: {kind}", layout(frame).to_string(), *notes(records, frame)]
    return "\n".join(lines) + "\n"
