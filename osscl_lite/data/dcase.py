"""The DCASE 2020 Task 2 tree, real or generated, as one table of clips. Explained in chapter 1.

Names, counts and IDs are those of the challenge: https://dcase.community/challenge2020/task-unsupervised-detection-of-anomalous-sounds
"""

import csv
import os
import re
from pathlib import Path

import pandas as pd

from osscl_lite.errors import BadInput

# The 41 machines in the class order of the OS-SCL and Noisy-ArcMix programs.
MACHINE_IDS = {
    "fan": range(7),
    "pump": range(7),
    "slider": range(7),
    "ToyCar": range(1, 8),
    "ToyConveyor": range(1, 7),
    "valve": range(7),
}
MACHINES = [f"{kind}/id_{number:02d}" for kind, numbers in MACHINE_IDS.items() for number in numbers]
_CLASS = {name: number for number, name in enumerate(MACHINES)}
DEVELOPMENT = {
    f"{kind}/id_{number:02d}"
    for kind, numbers in {"ToyCar": range(1, 5), "ToyConveyor": range(1, 4)}.items()
    for number in numbers
} | {f"{kind}/id_{number:02d}" for kind in ("fan", "pump", "slider", "valve") for number in (0, 2, 4, 6)}

LABEL_FILE = "eval_data_list.csv"  # the organisers' list for all types; OS-SCL ships the same rows as <type>.csv
HALL_FILE = "hall.csv"  # beside a written hall: what names cannot carry

_CLIP = re.compile(r"(?:(?P<label>normal|anomaly)_)?(?P<id>id_\d\d)_\d{8}\.wav", re.IGNORECASE)
_OTHER_YEAR = re.compile(r"section_\d\d_.*\.wav", re.IGNORECASE)
_LABEL_ROW = re.compile(r"id_\d\d_\d{8}\.wav")


def machine_names(clips: pd.DataFrame) -> list[str]:
    """The machines of a table ("fan/id_00", ...), each once, in class order; unknown ones last, by name.
    Explained in chapter 1.
    """
    names = {f"{kind}/{number}" for kind, number in zip(clips["machine_type"], clips["machine_id"], strict=True)}
    return sorted(names, key=lambda name: (_CLASS.get(name, len(MACHINES)), name))


def dcase_table(root: str | Path) -> pd.DataFrame:
    """Every clip below a folder in the challenge's layout. Explained in chapter 1.

    Read are the WAV files in ``<type>/train`` and ``<type>/test`` at any depth, so ``dev_data``/``eval_data``,
    soundata's ``development``/``additional_training``/``evaluation``, merged trees and a single type all do; other
    folders are passed over. An ID belongs either to the development set or to the additional training and evaluation
    sets, so it names the data set whatever the folder is called. A test clip whose name holds no label gets it from
    the organisers' ``eval_data_list.csv`` (or ``<type>.csv``, the same rows for one type) anywhere below root or up to
    two folders above; without a list it is ``unknown``.

    Args:
        root: the folder.

    Returns:
        Columns path, machine_type, machine_id, split, dataset, label; with a ``hall.csv`` also fault, severity, band,
        and its row order. Else rows go by class, train before test, file name.

    Raises:
        BadInput: no such folder, no clip in it, a name that is not the challenge's (another year's is named as such),
            an ID that the challenge does not have, a clip that is there twice, a damaged list.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "no such folder"
        raise BadInput(f"{root}: {what}: give the folder with the data")
    found, outside, lists = [], None, []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        place = _place(Path(folder))
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name.lower().endswith(".wav"):
                if place:
                    found.append((os.path.join(folder, name), *place))
                elif outside is None:
                    outside = os.path.join(folder, name)
            elif name == LABEL_FILE or name.removesuffix(".csv") in MACHINE_IDS:
                lists.append(Path(folder, name))
    if not found:
        if outside:
            _refuse_other_year(Path(outside))
        raise BadInput(
            f"{root}: holds no clips of DCASE 2020 Task 2: looked for TYPE/train/*.wav and TYPE/test/*.wav,"
            f" TYPE one of {', '.join(MACHINE_IDS)}" + (f"; found {outside}" if outside else "")
        )
    rows = [_row(*clip) for clip in found]
    for folder in (root.parent, root.parent.parent):
        lists += [folder / name for name in (LABEL_FILE, *(f"{kind}.csv" for kind in MACHINE_IDS))]
    labels: dict[tuple[str, str], str] = {}
    if any(row[5] == "unknown" for row in rows):
        for path in reversed([path for path in lists if path.is_file()]):  # the nearest list has the last word
            labels.update(evaluation_labels(path))
    table = pd.DataFrame(rows, columns=["path", "machine_type", "machine_id", "split", "dataset", "label"])
    _refuse_doubles(table)
    table["label"] = [
        labels.get((kind, os.path.basename(path)), label) if label == "unknown" else label
        for path, kind, label in zip(table["path"], table["machine_type"], table["label"], strict=True)
    ]
    for folder in (root, root.parent, root.parent.parent):
        if (folder / HALL_FILE).is_file():
            return _with_hall(table, root, folder / HALL_FILE)
    order = pd.DataFrame(
        {
            "machine": (table["machine_type"] + "/" + table["machine_id"]).map(_CLASS),
            "split": table["split"] == "test",
            "name": table["path"].map(os.path.basename),
        }
    )
    return table.loc[order.sort_values(["machine", "split", "name"]).index].reset_index(drop=True)


def evaluation_labels(path: str | Path) -> dict[tuple[str, str], str]:
    """The labels of evaluation test clips from a published list. Explained in chapter 1.

    Two shapes: the organisers' one file (a line with only the type, then its rows) and OS-SCL's one file a type,
    ``<type>.csv``, rows only. A row: ``id_01_00000000.wav,normal_id_01_00000098.wav,0`` (1 is an anomaly).

    Returns:
        (machine type, file name) -> "normal" or "anomaly".

    Raises:
        BadInput: with the line's number, for a line of neither shape, a flag that its second name contradicts, a clip
            listed twice.
    """
    path = Path(path)
    kind = path.stem if path.stem in MACHINE_IDS else None
    labels = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}): download {LABEL_FILE} again") from None
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        row = [field.strip() for field in row]
        while row and not row[-1]:  # a spreadsheet pads the lines that hold only a type
            row.pop()
        if not row:
            continue
        if len(row) == 1 and row[0] in MACHINE_IDS:
            kind = row[0]
            continue
        good = kind and len(row) == 3 and _LABEL_ROW.fullmatch(row[0]) and row[2] in ("0", "1")
        label = "anomaly" if good and row[2] == "1" else "normal"
        if not good or not row[1].startswith(f"{label}_") or (kind, row[0]) in labels:
            text = ",".join(row)[:60]
            raise BadInput(f"{path}: line {number} is not a line of {LABEL_FILE} ({text!r}): download it again")
        labels[kind, row[0]] = label
    return labels


def _place(folder: Path) -> tuple[str, str] | None:
    """(machine type, split) of a folder ``.../<type>/<split>``, else None."""
    split, kind = folder.name, folder.parent.name
    return (kind, split) if split in ("train", "test") and kind in MACHINE_IDS else None


def _refuse_other_year(path: Path) -> None:
    if _OTHER_YEAR.fullmatch(path.name):
        raise BadInput(
            f"{path}: is named as in DCASE 2021 or later (sections instead of machine IDs):"
            " only DCASE 2020 Task 2 is read, names like normal_id_00_00000000.wav"
        )


def _row(path: str, kind: str, split: str) -> tuple[str, str, str, str, str, str]:
    match = _CLIP.fullmatch(os.path.basename(path))
    if match is None:
        _refuse_other_year(Path(path))
        raise BadInput(
            f"{path}: is not named as in DCASE 2020 Task 2 (normal_id_00_00000000.wav, anomaly_id_00_00000000.wav,"
            " id_01_00000000.wav): rename it or move it away"
        )
    number, label = match["id"].lower(), (match["label"] or "unknown").lower()
    if f"{kind}/{number}" not in _CLASS:
        known = [name.split("/")[1] for name in MACHINES if name.startswith(f"{kind}/")]
        raise BadInput(f"{path}: {kind} has no {number} in DCASE 2020 Task 2 ({known[0]} to {known[-1]}): move it away")
    if split == "train" and label != "normal":
        raise BadInput(f"{path}: training clips are normal_id_…: move it to {kind}/test or away")
    development = f"{kind}/{number}" in DEVELOPMENT
    dataset = "development" if development else "additional" if split == "train" else "evaluation"
    return path, kind, number, split, dataset, label


def _refuse_doubles(table: pd.DataFrame) -> None:
    """The same clip twice (two copies of a tree, or a renamed one beside the first) would be trained on twice."""
    key = table[["machine_type", "split"]].assign(name=table["path"].map(os.path.basename))
    key["bare"] = key["name"].str.replace(r"^(normal|anomaly)_", "", regex=True)
    double = key.duplicated(["machine_type", "split", "name"])
    bare = key["name"] == key["bare"]
    names = ["machine_type", "split", "bare"]
    double |= ~bare & pd.MultiIndex.from_frame(key[names]).isin(pd.MultiIndex.from_frame(key.loc[bare, names]))
    if double.any():
        path = table["path"][double.idxmax()]
        raise BadInput(f"{path}: this clip is there twice below the folder: give one copy of the data only")


def _with_hall(table: pd.DataFrame, root: Path, side: Path) -> pd.DataFrame:
    """Add fault, severity and band of a written hall, and put its rows in the hall's order."""
    again = "write the hall again (python -m osscl_lite data hall)"
    try:
        hall = pd.read_csv(side, dtype=str, keep_default_na=False).set_index("file")
        hall = hall[["order", "fault", "severity", "band"]]
        hall["order"] = hall["order"].map(int)
        hall["severity"] = hall["severity"].map(float)  # exactly as written
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{side}: is damaged ({str(error).splitlines()[0]}): {again}") from None
    table.index = [os.path.relpath(path, side.parent).replace(os.sep, "/") for path in table["path"]]
    below = os.path.relpath(root, side.parent).replace(os.sep, "/")
    listed = hall.index if below == "." else hall.index[hall.index.str.startswith(f"{below}/")]
    if len(strange := table.index.difference(listed)):
        raise BadInput(f"{side.parent / strange[0]}: is not listed in {side}: move it away, or {again}")
    if len(missing := listed.difference(table.index)):
        raise BadInput(f"{side}: lists {missing[0]}, which is not there ({len(missing)} in all): {again}")
    return table.join(hall).sort_values("order").drop(columns="order").reset_index(drop=True)
