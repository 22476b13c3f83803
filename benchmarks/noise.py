"""Clips for measurements: noise in WAV files. What a clip sounds like changes no time."""

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from osscl_lite import load_clips
from osscl_lite.data import MACHINES, SAMPLE_RATE


def noise_clips(folder: Path, count: int, seconds: float, files: int) -> pd.DataFrame:
    """A table of training clips over the 41 machine IDs.

    Args:
        folder: where the trees of files lie; one that is there already is taken.
        count: rows of the table.
        seconds: length of a clip.
        files: different files; a table of more rows names them again.

    Returns:
        The columns of ``load_clips``, ``count`` rows.
    """
    root = folder / f"noise-{files}-of-{seconds:g}s"
    if not root.exists():
        partial = folder / f"{root.name}.partial"
        rng, samples = np.random.default_rng(0), round(seconds * SAMPLE_RATE)
        for index in range(files):
            kind, machine_id = MACHINES[index % len(MACHINES)].split("/")
            path = partial / kind / "train" / f"normal_{machine_id}_{index // len(MACHINES):08d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, rng.integers(-3000, 3000, samples, dtype=np.int16), SAMPLE_RATE)
        partial.rename(root)
    table = load_clips("dcase2020", root=root)
    return table.iloc[np.arange(count) % len(table)].reset_index(drop=True)
