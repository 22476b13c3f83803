"""What several test files need: a cache folder of the tests' own, and small sources of clips."""

import os

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sklearn.metrics import roc_auc_score

from osscl_lite import load_clips

# Octaves above 100 Hz at which each machine of ``planted`` is loud.
PEAKS = np.array([(0.5, 3.5, 5.0), (1.2, 2.8, 5.8), (1.9, 4.2, 5.4), (0.9, 3.2, 4.6), (1.6, 2.4, 6.1), (2.2, 3.8, 4.8)])


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


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """Clips of 2 s with an easy fault: fan with 4 IDs, valve with 2; 30 training and 12 + 12 test clips an ID.

    Each machine is noise with a spectrum of its own; another machine is heard faintly (-20 dB) behind it. In a faulty
    clip the own sound is the faint one, and in front are the next ID of its type for two thirds of the clip and a
    machine of the other type for one third: an ID's classifier hears another ID, a model of the type's sound hears what
    the type never does. Nothing else tells faulty clips: each moment of them is the normal sound of some machine, and
    all clips differ in how unsteady they are. So a system that learned from shuffled machine names is lost.
    """
    root, rng, samples = tmp_path_factory.mktemp("planted"), np.random.default_rng(7), 32_000
    machines = [("fan", 0), ("fan", 2), ("fan", 4), ("fan", 6), ("valve", 0), ("valve", 2)]
    octaves = np.log2(np.maximum(np.fft.rfftfreq(samples, 1 / 16_000), 1) / 100)  # 0 at 100 Hz, 6.3 at 8 kHz
    spectra = np.stack(
        [10 ** ((25 * np.exp(-(((octaves - peaks[:, None]) / 0.25) ** 2)).max(0) - 25) / 20) for peaks in PEAKS]
    )

    def sound(machine):
        white = np.fft.rfft(rng.standard_normal(samples)) * spectra[machine]
        wave = np.fft.irfft(white, samples)
        return wave / wave.std()

    def clip(machine, faulty):
        kind = machines[machine][0]
        front, behind = sound(machine), sound(rng.integers(6))
        if faulty:
            same = [other for other in range(6) if machines[other][0] == kind]
            others = [other for other in range(6) if machines[other][0] != kind]
            following, switch = sound(same[(same.index(machine) + 1) % len(same)]), samples * 2 // 3
            front, behind = np.concatenate([following[:switch], sound(rng.choice(others))[switch:]]), front
        steps = np.repeat(rng.standard_normal(1 + samples // 512), 512)[:samples]
        level = rng.normal(0, 1) + rng.uniform(0, 8) * steps  # dB: of the clip, and from frame to frame
        return 0.02 * (front + 0.1 * behind) * 10 ** (level / 20)

    for machine, (kind, number) in enumerate(machines):
        for split, label, count in (("train", "normal", 30), ("test", "normal", 12), ("test", "anomaly", 12)):
            folder = root / kind / split
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                path = folder / f"{label}_id_{number:02d}_{index:08d}.wav"
                soundfile.write(path, clip(machine, label == "anomaly"), 16_000)
    return load_clips("dcase2020", root=root)


@pytest.fixture(scope="session")
def shuffled(planted):
    """``planted`` with the machine names (type and ID) of the training clips dealt out anew."""
    clips, train = planted.copy(), planted.index[planted["split"] == "train"]
    names, dealt = ["machine_type", "machine_id"], np.random.default_rng(0).permutation(train)
    clips.loc[train, names] = planted.loc[dealt, names].to_numpy()
    return clips


@pytest.fixture(scope="session")
def fan_auc(planted):
    """A function: the mean AUC of a trained system over the fan IDs of ``planted``."""

    def mean_auc(model):
        fans = planted[(planted["split"] == "test") & (planted["machine_type"] == "fan")]
        fans = fans.assign(score=model.score_clips(fans), faulty=fans["label"] == "anomaly")
        return np.mean([roc_auc_score(own["faulty"], own["score"]) for _, own in fans.groupby("machine_id")])

    return mean_auc
