"""Where sound comes from: three sources, one table of clips. Explained in chapter 1."""

from pathlib import Path

import pandas as pd

from osscl_lite.data.dcase import MACHINES, dcase_table, machine_names
from osscl_lite.data.precomputed import features_table, load_features
from osscl_lite.data.waveforms import (
    SAMPLE_RATE,
    fingerprint,
    hall_version,
    load_waveforms,
    read_wav,
    take,
    to_float,
    training_clips,
)
from osscl_lite.errors import BadInput

__all__ = [
    "MACHINES",
    "SAMPLE_RATE",
    "fingerprint",
    "hall_version",
    "load_clips",
    "load_features",
    "load_waveforms",
    "machine_names",
    "read_wav",
    "take",
    "to_float",
    "training_clips",
]


def load_clips(source: str, *, size: str = "book", root: str | Path | None = None, seed: int = 0) -> pd.DataFrame:
    """One table of clips from any source, one row a clip. Explained in chapter 1.

    Args:
        source: "hall" (generated sound, made when it is needed), "dcase2020" (a folder of WAV files in the
            challenge's layout, real or written by ``data hall``) or "features" (a folder of precomputed features).
        size: hall only: "tiny", "book" or "paper".
        root: the folder of "dcase2020" and "features".
        seed: hall only: draws other clips of the same machines.

    Returns:
        Columns path, machine_type, machine_id ("id_00"), split (train, test), dataset (development, additional,
        evaluation), label (normal, anomaly, unknown); then what the source has of fault, severity, band (hall),
        background, index (features: the row in the .npz file that path names).

    Raises:
        BadInput: for an unknown source, a missing or needless root, and what the source itself refuses.
    """
    if source == "hall":
        if root is not None:
            raise BadInput(f"{root}: the hall needs no root; read a hall written as WAV files with source 'dcase2020'")
        from osscl_lite.data.machines import hall_table  # the synthesis is needed by this source only

        return hall_table(size, seed)
    tables = {"dcase2020": dcase_table, "features": features_table}
    if source not in tables:
        raise BadInput(f"no source of clips is called {source!r}: choose hall, dcase2020 or features")
    if root is None:
        raise BadInput(f"source {source!r} reads a folder: say which one with root=FOLDER")
    return tables[source](root)
