"""How the generated hall was set to the real recordings, and how far it is from them.

Two simple measures decide, and no score of any system of the tables: how well a Gaussian model of a machine's mean
Log-Mel vectors finds its faulty clips, and how often a plain softmax classifier of machine IDs still names the own ID
of a clip. Beside them stand statistics of the sound itself. Explained in the appendix on the hall.

    python -m osscl_lite.calibration

What could not be met stands in NOTES, and goes into the result file.
"""

from __future__ import annotations

import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm import tqdm

from osscl_lite.data import load_clips, load_waveforms, machine_names
from osscl_lite.data.machines import HALL_VERSION, SIZES, siblings
from osscl_lite.features import LogMel
from osscl_lite.files import write_whole
from osscl_lite.mobilefacenet import MobileFaceNet

BANDS, WIDTH, EPOCHS, BATCH, LEARNING_RATE = 64, 16, 12, 64, 1e-3
TOLERANCE = {"auc": 0.07, "own_id_faulty": 0.15}
# Where real recordings stand: Mahalanobis on clip means, own ID named on faulty clips (DCASE 2020, MIMII, ToyADMOS
# clips, measured on public features of them; ToyConveyor: its autoencoder baseline's AUC, arXiv:2006.05822, and the
# fan's rate, for want of clips).
TARGETS = {
    "fan": {"auc": 0.72, "own_id_faulty": 0.65, "own_id_normal": 0.95},
    "pump": {"auc": 0.79, "own_id_faulty": 0.50, "own_id_normal": 0.95},
    "slider": {"auc": 0.92, "own_id_faulty": 0.40, "own_id_normal": 0.95},
    "ToyCar": {"auc": 0.94, "own_id_faulty": 0.35, "own_id_normal": 0.95},
    "ToyConveyor": {"auc": 0.73, "own_id_faulty": 0.65, "own_id_normal": 0.85},
    "valve": {"auc": 0.95, "own_id_faulty": 0.70, "own_id_normal": 0.95},
}
NOTES = [
    "Constants were chosen with a linear classifier on means and deviations of Log-Mels, one type at a time; the"
    " network measured here, on all 41 machines, came last.",
    "Pump and slider stay recognisable with a fault more often than real ones (own ID, faulty clips). The linear"
    " classifier had put both within tolerance (0.61 and 0.49) before the last small changes; the network did not."
    " A faulty clip changes one mechanism and keeps the machine's other traits. The hall was frozen there.",
    "Own ID on normal clips is below its target where machines are taken for one another (see confused): siblings,"
    " ToyConveyor's cousins, and strangers of fan (id_06) and pump. Of the machines that are no sibling, only pump's"
    " stay below it (0.90).",
    "The middle slope of the valve's spectrum (knock and whine, 1 to 4 kHz) is flatter than any recording at hand.",
]
RESULT = Path(__file__).parent / "results" / "hall_calibration.json"


def log_mels(waveforms: np.ndarray, bands: int = BANDS) -> Tensor:
    """Log-Mels of int16 clips, (N, L) -> (N, bands, frames), float32."""
    front_end = LogMel(bands)
    parts = (waveforms[start : start + 64] for start in range(0, len(waveforms), 64))
    return torch.cat([front_end(torch.from_numpy(part.astype(np.float32) / 32768)) for part in parts])


def gaussian_scores(clips: pd.DataFrame, means: np.ndarray) -> np.ndarray:
    """Mahalanobis distance of each test clip's mean Log-Mel to its own machine's training clips (Ledoit-Wolf
    covariance).

    Args:
        clips: N rows of train and test clips.
        means: mean Log-Mel vectors, (N, bands).

    Returns:
        Squared distances, (N,); NaN in the rows of training clips.
    """
    scores = np.full(len(clips), np.nan)
    test = (clips["split"] == "test").to_numpy()
    name = (clips["machine_type"] + "/" + clips["machine_id"]).to_numpy()
    for machine in machine_names(clips):
        model = LedoitWolf().fit(means[(name == machine) & ~test])
        rows = (name == machine) & test
        scores[rows] = model.mahalanobis(means[rows])
    return scores


def name_machines(clips: pd.DataFrame, pictures: Tensor, seed: int = 0, epochs: int = EPOCHS) -> np.ndarray:
    """The machine a plain softmax classifier hears in each clip: MobileFaceNet of width 16, a linear layer,
    cross-entropy, AdamW.

    Args:
        clips: N rows; it is trained on those of split train.
        pictures: Log-Mels, (N, bands, frames).
        seed: of weights and batches.

    Returns:
        Names such as "fan/id_00", (N,).
    """
    names = machine_names(clips)
    own = clips["machine_type"] + "/" + clips["machine_id"]
    labels = torch.tensor(own.map({name: i for i, name in enumerate(names)}).to_numpy())
    train = torch.tensor(np.flatnonzero(clips["split"] == "train"))
    pictures = ((pictures - pictures[train].mean()) / pictures[train].std())[:, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(MobileFaceNet(1, *pictures.shape[2:], width=WIDTH), nn.Linear(128, len(names)))
        net = net.to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
        for _ in tqdm(range(epochs), desc="classifier", unit="epoch"):
            for rows in train[torch.randperm(len(train))].split(BATCH):
                if len(rows) < 2:  # BatchNorm needs two clips
                    continue
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(pictures[rows]), labels[rows]).backward()
                optimiser.step()
    net.eval()
    with torch.no_grad():
        heard = torch.cat([net(part).argmax(1) for part in pictures.split(256)])
    return np.array(names)[heard.numpy()]


def _type_measures(clips: pd.DataFrame, scores: np.ndarray, heard: np.ndarray) -> dict:
    """The calibration's measures for the rows of one type."""
    anomaly = (clips["label"] == "anomaly").to_numpy()
    test = (clips["split"] == "test").to_numpy()
    own = (clips["machine_type"] + "/" + clips["machine_id"]).to_numpy()
    right = heard == own

    def auc(rows: np.ndarray) -> float:
        return float(roc_auc_score(anomaly[rows], scores[rows]))

    def mean_auc(faulty: np.ndarray) -> float:
        values = [
            auc((own == name) & test & (~anomaly | faulty))
            for name in sorted(set(own))
            if (faulty & (own == name)).any()
        ]
        return round(float(np.mean(values)), 3)

    per_id = {name: round(auc((own == name) & test), 3) for name in sorted(set(own))}
    kin = {name for pair in siblings() for name in pair}
    apart = ~np.isin(own, list(kin))
    return {
        "auc": round(float(np.mean(list(per_id.values()))), 3),
        "auc_per_id": per_id,
        "auc_by_band": {
            band: mean_auc(anomaly & (clips["band"] == band).to_numpy()) for band in sorted(set(clips["band"]) - {""})
        },
        "auc_by_fault": {
            fault: mean_auc(anomaly & clips["fault"].str.split("+").map(lambda names, f=fault: f in names).to_numpy())
            for fault in sorted({name for names in clips["fault"] for name in names.split("+")} - {""})
        },
        "own_id_normal": round(float(right[test & ~anomaly].mean()), 3),
        "own_id_normal_without_siblings": round(float(right[test & ~anomaly & apart].mean()), 3),
        "own_id_faulty": round(float(right[test & anomaly].mean()), 3),
    }


def confusions(clips: pd.DataFrame, heard: np.ndarray, least: float = 0.05) -> list[dict]:
    """Pairs of machines that a classifier takes for one another on normal test clips, most confused first."""
    normal = ((clips["split"] == "test") & (clips["label"] == "normal")).to_numpy()
    own = (clips["machine_type"] + "/" + clips["machine_id"]).to_numpy()[normal]
    rate = pd.crosstab(own, heard[normal], normalize="index")
    kin = {frozenset(pair) for pair in siblings()}
    pairs = {frozenset((a, b)) for a in rate.index for b in rate.columns if a != b}
    found = []
    for pair in pairs:
        a, b = sorted(pair)
        there = float(rate.loc[a, b]) if a in rate.index and b in rate.columns else 0.0
        back = float(rate.loc[b, a]) if b in rate.index and a in rate.columns else 0.0
        if (there + back) / 2 >= least or pair in kin:
            found.append(
                {"machines": [a, b], "siblings": pair in kin, "there": round(there, 3), "back": round(back, 3)}
            )
    return sorted(found, key=lambda row: (-row["there"] - row["back"], row["machines"]))


def measure_clips(clips: pd.DataFrame, waveforms: np.ndarray, seed: int = 0) -> dict:
    """Both measures and the confused pairs for any rows of the hall (one type, or all)."""
    pictures = log_mels(waveforms)
    scores = gaussian_scores(clips, pictures.mean(2).numpy())
    heard = name_machines(clips, pictures, seed)
    types = {}
    for kind in clips["machine_type"].unique():
        rows = (clips["machine_type"] == kind).to_numpy()
        types[kind] = _type_measures(clips[rows], scores[rows], heard[rows])
    return {"types": types, "confused": confusions(clips, heard)}


# The same statistics of real recordings, measured on public clips: four ToyCar IDs of DCASE 2020 (880 normal clips),
# MIMII fan id_00 (12), and a DCASE 2020 id_00 whose type its source does not state (34). Triples: below 1 kHz, 1 to 4
# kHz, above 4 kHz.
REAL = {
    "ToyCar": {
        "level_dbfs": -33.5,
        "level_sigma": 1.9,
        "slope_db_octave": [-5.1, -8.0, -5.1],
        "sigma_over_time": [4.1, 3.5, 2.5],
        "lag1_correlation": [0.21, 0.33, 0.41],
        "frame_level_sigma": [1.7, 1.8],
        "modulation": [0.21, 0.25, 0.53],
        "flatness_db": -10,
        "sigma_between_clips": [2.4, 2.2, 2.1],
        "effective_dimension": 2.9,
    },
    "fan id_00 (MIMII)": {
        "level_dbfs": -44,
        "level_sigma": 0.2,
        "slope_db_octave": [-4.4, -5.3, -8.2],
        "sigma_over_time": [3.8, 3.1, 2.3],
        "lag1_correlation": [0.14, 0.19, 0.28],
        "frame_level_sigma": [1.4, 1.4],
        "flatness_db": -8,
        "sigma_between_clips": [2.1, 3.0, 4.8],
        "effective_dimension": 2.7,
    },
    "id_00, type not stated (DCASE 2020)": {
        "level_dbfs": -39.7,
        "level_sigma": 0.1,
        "slope_db_octave": [-5.1, -5.1, -6.6],
        "sigma_over_time": [3.9, 3.0, 2.0],
        "lag1_correlation": [0.18, 0.16, 0.22],
        "frame_level_sigma": [1.3, 1.0],
        "flatness_db": -7,
        "sigma_between_clips": [3.4, 3.5, 4.4],
        "effective_dimension": 4.2,
    },
}


def _mel_centres(bands: int) -> np.ndarray:
    """Centre frequencies of Slaney's Mel bands in Hz: linear to 1 kHz (15 bands of a Mel unit), then logarithmic."""
    top = 15 + 27 * np.log(8.0) / np.log(6.4)
    mel = np.linspace(0, top, bands + 2)[1:-1]
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def statistics(waveforms: np.ndarray, machines: np.ndarray) -> dict:
    """Statistics of sound that say how real it is, of normal clips. Log-Mel of 128 bands, n_fft 1024, hop 512, in dB.
    Explained in the appendix on the hall.

    Args:
        waveforms: int16, (N, L).
        machines: name of the machine of each clip, (N,).

    Returns:
        Of each machine's clips, averaged over machines: level in dBFS and its sigma between clips; slopes of the mean
        spectrum (0.2 to 1, 1 to 4, 4 to 7.5 kHz); in three bands (below 1, 1 to 4, above 4 kHz) the sigma over time of
        a Mel band, the correlation of neighbouring frames and the sigma between clips of the clip's mean; sigma of the
        frame level (all, above 4 kHz); share of its variance below 0.8 Hz, from 0.9 to 3.9 Hz and above; flatness of
        the mean spectrum; effective dimension (sum l)^2 / sum l^2 of the covariance of clip means; and over all, the
        distance between clips of different machines over that of clips of one.
    """
    front_end = LogMel(128, n_fft=1024)
    centre = _mel_centres(128)
    bands = [centre < 1000, (centre >= 1000) & (centre < 4000), centre >= 4000]
    slopes = [(centre >= low) & (centre < high) for low, high in ((200, 1000), (1000, 4000), (4000, 7500))]
    rows: list[dict] = []
    means_of = {}
    for name in sorted(set(machines)):
        own = waveforms[machines == name].astype(np.float32) / 32768
        level = 10 * np.log10(np.square(own, dtype=np.float64).mean(1))
        mel = (
            front_end(torch.from_numpy(own)).numpy()[:, :, 1:-1].astype(np.float64)
        )  # (N, 128, frames), edges padded with silence
        means = mel.mean(2)
        means_of[name] = means
        rest = mel - means[..., None]
        lag = (rest[..., 1:] * rest[..., :-1]).mean(2) / rest.var(2)
        power = 10 ** (mel / 10)
        frames = [10 * np.log10(power[:, rows_].sum(1)) for rows_ in (np.ones(128, bool), bands[2])]
        swing = np.abs(np.fft.rfft(frames[0] - frames[0].mean(1, keepdims=True), axis=1)) ** 2
        rate = np.fft.rfftfreq(frames[0].shape[1], 512 / 16_000)
        parts = [
            swing[:, inside].sum() / swing.sum() for inside in (rate < 0.8, (rate >= 0.8) & (rate < 3.9), rate >= 3.9)
        ]
        spectrum = means.mean(0)
        eigen = np.linalg.eigvalsh(np.cov(means.T))
        rows.append(
            {
                "level_dbfs": level.mean(),
                "level_sigma": level.std(),
                "slope_db_octave": [np.polyfit(np.log2(centre[s]), spectrum[s], 1)[0] for s in slopes],
                "sigma_over_time": [rest.std(2)[:, b].mean() for b in bands],
                "lag1_correlation": [lag[:, b].mean() for b in bands],
                "frame_level_sigma": [frame.std(1).mean() for frame in frames],
                "modulation": parts,
                "flatness_db": spectrum.mean() - 10 * np.log10((10 ** (spectrum / 10)).mean()),
                "sigma_between_clips": [means[:, b].std(0).mean() for b in bands],
                "effective_dimension": eigen.sum() ** 2 / np.square(eigen).sum(),
            }
        )
    result = {key: np.round(np.mean([row[key] for row in rows], axis=0), 2).tolist() for key in rows[0]}
    within = np.mean([np.linalg.norm(m[:, None] - m[None], axis=2).mean() for m in means_of.values()])
    kinds = {frozenset(pair) for pair in siblings()}
    ratios: dict[str, list[float]] = {"siblings": [], "others": []}
    names = sorted(means_of)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            distance = np.linalg.norm(means_of[a][:, None] - means_of[b][None], axis=2).mean()
            ratios["siblings" if frozenset((a, b)) in kinds else "others"].append(float(distance / within))
    return result | {f"distance_{key}": round(float(np.mean(values)), 2) for key, values in ratios.items() if values}


def measure(size: str = "book", seed: int = 0) -> dict:
    """The calibration table of the hall. Explained in the appendix on the hall.

    Args:
        size: "book", for the targets; "tiny" only shows that the command runs.
        seed: of the clips.

    Returns:
        types: for each type the two measures, by ID, band and fault, its targets and what lies outside their tolerance;
        confused: pairs of machines that the classifier takes for one another; statistics: of normal test clips, by
        type; real: of real recordings.
    """
    clips = load_clips("hall", size=size, seed=seed)
    waveforms = load_waveforms(clips, SIZES[size].seconds)
    result = measure_clips(clips, waveforms)
    own = (clips["machine_type"] + "/" + clips["machine_id"]).to_numpy()
    normal = (clips["label"] == "normal").to_numpy()
    result["statistics"] = {}
    for kind, found in result["types"].items():
        target = TARGETS[kind]
        found["target"] = target
        found["outside"] = [key for key, by in TOLERANCE.items() if abs(found[key] - target[key]) > by]
        if found["own_id_normal_without_siblings"] < target["own_id_normal"]:
            found["outside"].append("own_id_normal_without_siblings")
        rows = normal & (clips["machine_type"] == kind).to_numpy()
        result["statistics"][kind] = statistics(waveforms[rows], own[rows])
    return result | {"tolerance": TOLERANCE, "real": REAL}


def main() -> None:
    """Measure the hall at size book and write results/hall_calibration.json."""
    size, seed = "book", 0
    about = {
        "hall_version": HALL_VERSION,
        "size": size,
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scikit-learn")},
        "command": "python -m osscl_lite.calibration",
        "notes": NOTES,
    }
    result = about | measure(size, seed)
    RESULT.parent.mkdir(exist_ok=True)
    write_whole(RESULT, (json.dumps(result, indent=1) + "\n").encode())
    for kind, found in result["types"].items():
        target = found["target"]
        print(
            f"{kind:12} AUC {found['auc']:.3f} (target {target['auc']:.2f})"
            f"  own ID, faulty {found['own_id_faulty']:.3f} ({target['own_id_faulty']:.2f})"
            f"  own ID, normal {found['own_id_normal']:.3f} ({target['own_id_normal']:.2f})"
        )
    print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
