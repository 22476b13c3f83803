"""What several test files need: a cache folder of the tests' own, and small sources of clips."""

import os

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test reads or leaves anything in the cache of the user; commands started by a test inherit it."""
    before = os.environ.get("OSSCL_LITE_CACHE")
    os.environ["OSSCL_LITE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["OSSCL_LITE_CACHE"]
    else:
        os.environ["OSSCL_LITE_CACHE"] = before


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A challenge tree of 2-s WAV files: fan and valve, id_00 and id_02, 6 training and 2 + 2 test clips each."""
    root, rng = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    seconds = np.arange(32_000) / 16_000
    for machine_type, base in (("fan", 100.0), ("valve", 700.0)):
        for number in (0, 2):
            for split, label, count in (("train", "normal", 6), ("test", "normal", 2), ("test", "anomaly", 2)):
                folder = root / machine_type / split
                folder.mkdir(parents=True, exist_ok=True)
                for index in range(count):
                    pitch = base * (1 + 0.3 * number) * (1.2 if label == "anomaly" else 1.0)
                    wave = 0.1 * np.sin(2 * np.pi * pitch * seconds) + 0.01 * rng.standard_normal(32_000)
                    soundfile.write(folder / f"{label}_id_{number:02d}_{index:08d}.wav", wave, 16_000)
    return root


@pytest.fixture(scope="session")
def make_features(tmp_path_factory):
    """Write a folder of precomputed features: 4 machines, 10 training and 4 test clips each; returns its path."""

    def make(key="log_mel", bands=16, frames=12, background=False):
        root, rng = tmp_path_factory.mktemp(key), np.random.default_rng(1)
        rows = []
        for split, count in (("train", 10), ("test", 4)):
            means = np.repeat(rng.normal(-50, 5, (4, bands, 1)), count, axis=0)
            np.savez(
                root / f"{split}.npz", **{key: (means + rng.normal(0, 2, (4 * count, bands, frames))).astype("f4")}
            )
            for row in range(4 * count):
                label = "anomaly" if split == "test" and row % 2 else "normal"
                rows.append((f"{split}.npz", row, "ToyCar", f"id_0{1 + row // count}", split, label, row % count))
        names = ["file", "index", "machine_type", "machine_id", "split", "label", "background"]
        clips = pd.DataFrame(rows, columns=names)
        (clips if background else clips.drop(columns="background")).to_csv(root / "clips.csv", index=False)
        return root

    return make


@pytest.fixture(scope="module")
def one_thread():
    """As workers and torchrun's processes have: with more threads, sums are taken in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
