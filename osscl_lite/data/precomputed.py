"""Folders of precomputed features as a third source of clips. Explained in chapter 6.

A folder holds ``clips.csv`` and the ``.npz`` files that it names; each file has one array, (clips, bands, frames). Its
key says what it is: ``log_mel`` is a Log-Mel in dB, on which the Log-Mel recipes run as on their own; anything else
must be standardised per bin over the training clips.
"""

import os
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from osscl_lite.errors import BadInput

COLUMNS = ["path", "machine_type", "machine_id", "split", "dataset", "label"]
ALLOWED = {
    "split": ("train", "test"),
    "dataset": ("development", "additional", "evaluation"),
    "label": ("normal", "anomaly", "unknown"),
}


def features_table(root: str | Path) -> pd.DataFrame:
    """The clips of a folder of features, one row a clip, as ``clips.csv`` lists them. Explained in chapter 6.

    Args:
        root: the folder. ``clips.csv`` needs the columns file, index, machine_type, machine_id, split, label;
            dataset (default development) and background may be there, others are dropped.

    Returns:
        Columns path (the .npz file), machine_type, machine_id ("id_00"), split, dataset, label, background (where
        given: clips that share a recording of noise, which a split must keep together), index (row in the file).

    Raises:
        BadInput: no such folder or list, a missing column, a value that the column does not know, a file that is not
            there, a clip listed twice.
    """
    listing = Path(os.path.abspath(root)) / "clips.csv"
    if not listing.is_file():
        raise BadInput(f"{listing}: no such file: give the folder of features that holds clips.csv")
    try:
        table = pd.read_csv(listing, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"{listing}: cannot be read ({str(error).splitlines()[0]}): write it again as CSV") from None
    needed = ["file", "index", "machine_type", "machine_id", "split", "label"]
    if missing := [name for name in needed if name not in table]:
        raise BadInput(f"{listing}: has no column {', '.join(missing)}: add it (needed: {', '.join(needed)})")
    if table.empty:
        raise BadInput(f"{listing}: lists no clips: add one row a clip")
    table["dataset"] = table["dataset"].replace("", "development") if "dataset" in table else "development"
    table["path"] = [str(listing.parent / name) for name in table["file"]]
    table["machine_id"] = [_machine_id(value) for value in table["machine_id"]]
    _refuse(listing, table, table["machine_id"].isna(), "machine_id", "a number such as id_00")
    _refuse(listing, table, table["machine_type"] == "", "machine_type", "a name such as fan")
    for column, values in ALLOWED.items():
        _refuse(listing, table, ~table[column].isin(values), column, f"one of {', '.join(values)}")
    faulty = (table["split"] == "train") & (table["label"] != "normal")
    _refuse(listing, table, faulty, "label", "normal in split train")
    whole = ["index", "background"] if "background" in table else ["index"]
    for column in whole:
        _refuse(listing, table, ~table[column].str.fullmatch(r"\d{1,9}"), column, "a whole number from 0")
        table[column] = table[column].astype("int64")
    _refuse(listing, table, table.duplicated(["path", "index"]), "index", "named once for each file")
    for path in table["path"].unique():
        if not os.path.isfile(path):
            raise BadInput(f"{path}: no such file, though {listing} names it: put it there or drop its rows")
    return table[COLUMNS + whole[1:] + ["index"]]


def load_features(clips: pd.DataFrame) -> tuple[np.ndarray, str]:
    """The features of every row of a table. Explained in chapter 6.

    Args:
        clips: rows of ``features_table``, N of them, in any order.

    Returns:
        float32, (N, bands, frames), row i for row i of the table; and the kind, which is the key in the .npz files:
        "log_mel" is dB Log-Mel, anything else needs standardising per bin.

    Raises:
        BadInput: a file that is missing, no .npz, or without exactly one array of numbers in three dimensions; a row
            out of range; arrays of different shape or kind; NaN or infinity.
    """
    if len(clips) == 0:
        raise BadInput("the table of clips has no rows: choose at least one clip")
    if "index" not in clips:
        raise BadInput(f"{clips['path'].iloc[0]}: is sound, not features: load it with load_waveforms")
    out, kind, first = np.empty(0, np.float32), "", ""
    for path, rows in clips.reset_index(drop=True).groupby("path", sort=False):
        name, array = _read(path)
        index = rows["index"].to_numpy()
        if index.min() < 0 or index.max() >= len(array):
            raise BadInput(f"{path}: holds {len(array)} clips, row {index.max()} is asked for: mend clips.csv")
        if not kind:
            kind, first, out = name, path, np.empty((len(clips), *array.shape[1:]), np.float32)
        if (name, array.shape[1:]) != (kind, out.shape[1:]):
            raise BadInput(
                f"{path}: holds {name} of {array.shape[1]} x {array.shape[2]}, but {first} holds {kind} of"
                f" {out.shape[1]} x {out.shape[2]}: keep one kind and shape in a folder"
            )
        part = array[index].astype(np.float32)
        if not (finite := np.isfinite(part).all(axis=(1, 2))).all():
            raise BadInput(f"{path}: row {index[~finite][0]} has NaN or infinite values: compute it again or drop it")
        out[rows.index] = part
    return out, kind


def _machine_id(value: str) -> str | None:
    """ "0", "00", "id_0" and "id_00" are all "id_00"."""
    match = re.fullmatch(r"(?:id_?)?(\d{1,2})", value.strip(), re.IGNORECASE)
    return f"id_{int(match[1]):02d}" if match else None


def _refuse(listing: Path, table: pd.DataFrame, bad: pd.Series, column: str, wanted: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise BadInput(f"{listing}: line {row + 2}, {column} must be {wanted}: mend it ({int(bad.sum())} such lines)")


def _read(path: str) -> tuple[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array, no archive")
            if len(archive.files) != 1:
                count = len(archive.files)
                raise BadInput(f"{path}: must hold exactly one array, it has {count}: save it with numpy.savez")
            name = archive.files[0]
            array = archive[name]
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file: check the folder and its clips.csv") from None
    except BadInput:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path}: cannot be read as .npz ({text}): save it again with numpy.savez") from None
    if array.ndim != 3 or array.dtype.kind not in "fiu" or 0 in array.shape:
        raise BadInput(f"{path}: {name} is {array.dtype} {array.shape}, needed are numbers (clips, bands, frames)")
    return name, array
