"""The machine hall: generated sound of the challenge's 41 machines, as a table of clips, as waveforms, as a tree of WAV
files.

A clip is

    x = round_int16(G (EQ * room * machine(t) / c + 10^(-SNR / 20) factory(t)))

with c the root mean square of the healthy machine over eight clips, one number for each machine and never for each
clip: a loud fault stays loud. Each clip has a machine stream, a noise stream and a fault stream of random numbers, so
that every faulty clip has a healthy twin that differs in nothing but the fault (``twin``). Explained in chapter 1 and
in the appendix on the hall.
"""

from __future__ import annotations

import csv
import io
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from osscl_lite.data import sounds as s
from osscl_lite.data.dcase import DEVELOPMENT, HALL_FILE, LABEL_FILE, MACHINES
from osscl_lite.data.faults import ABOVE, ALL, BELOW, FAULTS, MIDDLE, faults_of
from osscl_lite.data.identity import HALL_VERSION, Identity, siblings
from osscl_lite.data.sounds import SAMPLE_RATE, Draws, amplitude
from osscl_lite.data.sources import SOURCES, Clips, Sound
from osscl_lite.errors import BadInput
from osscl_lite.files import write_whole

__all__ = ["HALL_VERSION", "SIZES", "hall_table", "siblings", "synthesise", "twin", "write_hall"]


@dataclass(frozen=True)
class Size:
    """Length of the clips in seconds, number of clips a machine (``paper``: 0, they are the challenge's)."""

    seconds: float
    train: int
    normal: int
    anomaly: int


SIZES = {"tiny": Size(2.0, 8, 10, 10), "book": Size(2.0, 100, 20, 20), "paper": Size(10.0, 0, 0, 0)}

# Clips a machine in DCASE 2020 Task 2 (arXiv:2006.05822): training, normal test, anomalous test, by ID in rising order.
# The training clips of the MIMII types' additional machines are known only as a sum (10,164 for twelve machines): 847
# each.
_CHALLENGE = {
    "fan": (
        (911, 847, 916, 847, 933, 847, 915),
        (100, 100, 100, 100, 100, 109, 100),
        (407, 326, 359, 358, 348, 349, 361),
    ),
    "pump": ((906, 847, 905, 847, 602, 847, 936), (100,) * 7, (143, 116, 111, 113, 100, 248, 102)),
    "slider": ((968, 847, 968, 847, 434, 847, 434), (100,) * 7, (356, 178, 267, 178, 178, 178, 89)),
    "ToyCar": ((1000,) * 7, (350,) * 4 + (250,) * 3, (264, 265, 265, 265, 265, 265, 265)),
    "ToyConveyor": ((1000,) * 6, (800, 800, 799, 200, 200, 200), (400, 355, 355, 355, 355, 355)),
    "valve": ((891, 847, 608, 847, 900, 847, 892), (100,) * 7, (119, 120, 120, 120, 120, 400, 120)),
}
BAND_HZ = {BELOW: (s.LOWEST, 1_000.0), MIDDLE: (1_000.0, 6_000.0), ABOVE: (4_000.0, 8_000.0), ALL: (s.LOWEST, 8_000.0)}
NOMINAL_CLIPS, NOMINAL_SECONDS = 8, 2.0
CHARACTER_JITTER = 0.05  # of the level of each mechanism, from clip to clip
BROKEN = 1.5  # the level at which a mechanism can get no worse
CHUNK_SAMPLES = 2**18  # samples that are made at once: small enough for a core's cache
_PATH = re.compile(
    r"hall://(?P<version>[^/]+)/(?P<seed>\d+)/(?P<size>\w+)/(?P<type>\w+)/(?P<split>train|test)/"
    r"(?P<label>normal|anomaly)_(?P<id>id_\d\d)_(?P<index>\d{8})\.wav(?P<healthy>\?healthy)?"
)


def _counts(machine: str, size: str) -> tuple[int, int, int]:
    if size != "paper":
        return SIZES[size].train, SIZES[size].normal, SIZES[size].anomaly
    kind = machine.split("/")[0]
    place = [name for name in MACHINES if name.startswith(f"{kind}/")].index(machine)
    train, normal, anomaly = _CHALLENGE[kind]
    return train[place], normal[place], anomaly[place]


def _size(size: str) -> Size:
    if size not in SIZES:
        raise BadInput(f"no hall has the size {size!r}: choose {', '.join(SIZES)}")
    return SIZES[size]


def hall_table(size: str = "book", seed: int = 0) -> pd.DataFrame:
    """Every clip of a hall, one row a clip; nothing is generated yet. Explained in chapter 1.

    Args:
        size: "tiny", "book" (both 2 s) or "paper" (10 s, the challenge's number of clips).
        seed: draws other clips of the same machines.

    Returns:
        Columns path (hall://...), machine_type, machine_id, split, dataset, label, fault, severity, band. A normal clip
        has fault "", severity 0 and band ""; two faults are joined by "+", and their band is "all" unless they share
        one. Rows go by machine, train before test, normal before anomaly.

    Raises:
        BadInput: for an unknown size.
    """
    _size(size)
    rows = []
    for machine in MACHINES:
        kind, number = machine.split("/")
        development = machine in DEVELOPMENT
        groups = zip(("train", "test", "test"), ("normal", "normal", "anomaly"), _counts(machine, size), strict=True)
        for split, label, count in groups:
            dataset = "development" if development else "additional" if split == "train" else "evaluation"
            for index in range(count):
                path = f"hall://{HALL_VERSION}/{seed}/{size}/{kind}/{split}/{label}_{number}_{index:08d}.wav"
                row = [path, kind, number, split, dataset, label]
                if label == "normal":
                    rows.append([*row, "", 0.0, ""])
                    continue
                faults, severity, _ = faults_of(kind, _key(seed, kind, number, split, label, index, "fault"))
                bands = {fault.band for fault in faults}
                band = bands.pop() if len(bands) == 1 else ALL
                rows.append([*row, "+".join(fault.name for fault in faults), severity, band])
    names = ["path", "machine_type", "machine_id", "split", "dataset", "label", "fault", "severity", "band"]
    return pd.DataFrame(rows, columns=names)


def twin(clips: pd.DataFrame) -> pd.DataFrame:
    """The same clips without their faults: the same machines, in the same moment, before the same noise. Explained in
    chapter 1.

    Args:
        clips: rows of ``hall_table``.

    Returns:
        The rows with paths ending in "?healthy", label normal, fault "", severity 0 and band "". ``synthesise`` and
        ``load_waveforms`` take them like any others. A normal clip is its own twin.

    Raises:
        BadInput: for a row that is not of the hall (of a written tree, take the rows of ``hall_table`` with the same
            size and seed).
    """
    paths = [
        path if _parse(path)["label"] == "normal" or path.endswith("?healthy") else f"{path}?healthy"
        for path in clips["path"]
    ]
    return clips.assign(path=paths, label="normal", fault="", severity=0.0, band="")


def _parse(path: str) -> dict[str, str]:
    match = _PATH.fullmatch(path)
    if match is None:
        raise BadInput(f"{path}: is not a clip of the generated hall: take rows of hall_table")
    if match["version"] != HALL_VERSION:
        raise BadInput(
            f"{path}: belongs to hall version {match['version']}, this is version {HALL_VERSION}: make the table again"
        )
    _size(match["size"])
    if f"{match['type']}/{match['id']}" not in MACHINES:
        raise BadInput(f"{path}: the hall has no machine {match['type']}/{match['id']}: take rows of hall_table")
    return match.groupdict()


def _key(seed: int | str, kind: str, number: str, split: str, label: str, index: int | str, stream: str) -> str:
    return f"hall {HALL_VERSION}|{seed}|{kind}|{number}|{split}|{label}|{int(index)}|{stream}"


def synthesise(clips: pd.DataFrame) -> np.ndarray:
    """The sound of clips of the hall, on the CPU in float64, whatever batch a clip is in. Explained in chapter 1.

    Args:
        clips: rows of ``hall_table`` or of ``twin``, N of them, all of one size.

    Returns:
        int16, (N, L): L is 32,000 for "tiny" and "book", 160,000 for "paper"; 32768 is full scale.

    Raises:
        BadInput: for a row that is not of this hall, or rows of different length.
    """
    parsed = [_parse(path) for path in clips["path"]]
    lengths = {round(SIZES[clip["size"]].seconds * SAMPLE_RATE) for clip in parsed}
    if len(lengths) != 1:
        raise BadInput(
            f"{len(clips)} clips of {len(lengths)} lengths cannot stand in one array: take rows of one hall size"
        )
    samples = lengths.pop()
    out = np.empty((len(parsed), samples), np.int16)
    groups: dict[tuple[str, str], list[int]] = {}
    for row, clip in enumerate(parsed):
        groups.setdefault((clip["type"], clip["id"]), []).append(row)
    step = max(1, CHUNK_SAMPLES // samples)
    for machine, rows in groups.items():
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            out[chunk] = _clips(*machine, [parsed[row] for row in chunk], samples)
    return out


def _clips(kind: str, number: str, parsed: list[dict[str, str]], samples: int) -> np.ndarray:
    """Clips of one machine, int16 (B, samples)."""
    one = Identity(kind, number)
    streams = {
        stream: [_key(p["seed"], kind, number, p["split"], p["label"], p["index"], stream) for p in parsed]
        for stream in ("machine", "noise", "fault")
    }
    failing = {fault.name: torch.zeros(len(parsed), 1, dtype=torch.float64) for fault in FAULTS[kind]}
    for row, (clip, key) in enumerate(zip(parsed, streams["fault"], strict=True)):
        if clip["label"] == "anomaly" and not clip["healthy"]:
            faults, severity, sign = faults_of(kind, key)
            for fault in faults:
                failing[fault.name][row] = severity * (sign if fault.name == "wrong voltage" else 1.0)

    draws = Draws(streams["machine"])
    spread = one.constants.spread
    levels = _levels(one, draws, failing)
    sound = SOURCES[kind](
        one, Clips(draws, samples, spread, levels, failing.get("wrong voltage", torch.zeros(len(parsed), 1)))
    )
    size, bands = _nominal(kind, number)
    spectrum = _with_added(one, sound, levels, bands)
    loud = one.constants.level_spread * draws.normal()
    spectrum = spectrum * _place(kind, number, samples) * s.gain(s.bumps(draws, 5, 1.5 * spread) + loud, samples) / size
    machine = torch.fft.irfft(spectrum, n=samples) * s.walk(draws, one.constants.walk, samples)

    draws = Draws(streams["noise"])
    noise = s.factory(draws, samples, *one.constants.factory)
    noise = noise * amplitude(one.constants.level_spread * draws.normal() - one.snr)
    full = float(amplitude(one.loudness - 10 * np.log10(1 + 10 ** (-one.snr / 10))))
    return (32768 * full * (machine + noise)).round().clamp(-32768, 32767).to(torch.int16).numpy()


def _levels(one: Identity, draws: Draws, failing: dict[str, Tensor]) -> dict[str, Tensor]:
    """How far each mechanism has gone in each clip: character, jitter, and the severity of a fault, (B, 1)."""
    levels = {}
    for name, character in one.character.items():
        normal = (character + CHARACTER_JITTER * draws.normal()).clamp(min=0)
        levels[name] = (normal + one.constants.gain * failing[name]).clamp(max=BROKEN)
    return levels


@lru_cache(maxsize=64)
def _place(kind: str, number: str, samples: int) -> Tensor:
    """What stands between a machine and its recording: room and equaliser, (1, bins)."""
    one = Identity(kind, number)
    laboratory, design, own = one.place()
    time, direct = float(laboratory.uniform(0.3, 0.8)), float(laboratory.uniform(1, 6))
    far = one.constants.strangeness
    curve = s.bumps(laboratory, 6, 3.0 * (1 - far)) + s.bumps(design, 6, 3.0 * far) + s.bumps(own, 6, one.far_level)
    return s.room(laboratory, time, direct, samples) * s.gain(curve, samples)


@lru_cache(maxsize=64)
def _nominal(kind: str, number: str) -> tuple[float, dict[str, float]]:
    """Root mean square of the normal machine in its place, and of its running part in the bands of faults."""
    one = Identity(kind, number)
    samples = round(NOMINAL_SECONDS * SAMPLE_RATE)
    draws = Draws([f"hall {HALL_VERSION}|{kind}|{number}|nominal|{i}" for i in range(NOMINAL_CLIPS)])
    nothing = {fault.name: torch.zeros(NOMINAL_CLIPS, 1, dtype=torch.float64) for fault in FAULTS[kind]}
    levels = _levels(one, draws, nothing)
    sound = SOURCES[kind](
        one, Clips(draws, samples, one.constants.spread, levels, torch.zeros(NOMINAL_CLIPS, 1, dtype=torch.float64))
    )
    bands = {
        fault.name: float(s.power(sound.running, samples, *BAND_HZ[fault.band]).mean().sqrt()) for fault in FAULTS[kind]
    }
    whole = _with_added(one, sound, levels, bands) * _place(kind, number, samples)
    return float(s.power(whole, samples).mean().sqrt()), bands


def _with_added(one: Identity, sound: Sound, levels: dict[str, Tensor], bands: dict[str, float]) -> Tensor:
    """The machine and its additive mechanisms, each ``onset + growth * level`` dB over it in the fault's band."""
    spectrum = sound.running
    for name, added in sound.added.items():
        spectrum = spectrum + added * bands[name] * amplitude(one.constants.onset + one.constants.growth * levels[name])
    return spectrum


def _tree(table: pd.DataFrame, seed: int) -> list[str]:
    """The challenge's name of every clip, below the root; evaluation clips are numbered in random order."""
    files = []
    for (kind, number, split), rows in table.groupby(["machine_type", "machine_id", "split"], sort=False):
        if f"{kind}/{number}" in DEVELOPMENT or split == "train":
            root = "dev_data" if f"{kind}/{number}" in DEVELOPMENT else "eval_data"
            files += [f"{root}/{kind}/{split}/{path.rsplit('/', 1)[1]}" for path in rows["path"]]
        else:
            order = (
                Draws([f"hall {HALL_VERSION}|{seed}|{kind}|{number}|order"])
                .uniform(0, 1, len(rows))[0]
                .argsort()
                .argsort()
            )
            files += [f"eval_data/{kind}/test/{number}_{place:08d}.wav" for place in order.tolist()]
    return files


def write_hall(size: str, out: str | Path, seed: int = 0) -> None:
    """Write a hall as a tree of 16-bit WAV files in the challenge's layout and names. Explained in chapter 1.

    Beside the clips stand ``hall.csv`` (file, order, fault, severity, band, version, seed, size) and the labels of the
    evaluation clips in the organisers' format, ``eval_data_list.csv``. Reading the tree with
    ``load_clips("dcase2020", root=out)`` gives ``hall_table(size, seed)``, paths aside, and the same samples. A file is
    there whole or not at all: after an interruption, the same call goes on.

    Args:
        size: "tiny", "book" or "paper" (17 GB).
        out: the folder.
        seed: draws other clips of the same machines.

    Raises:
        BadInput: for an unknown size, or a folder that holds another hall.
    """
    out = Path(out)
    table = hall_table(size, seed)
    files = _tree(table, seed)
    side = table[["fault", "severity", "band"]].assign(file=files, order=range(len(table)))
    side = side[["file", "order", "fault", "severity", "band"]].assign(version=HALL_VERSION, seed=seed, size=size)
    _write_once(out / HALL_FILE, side.to_csv(index=False, lineterminator="\n"))
    _write_once(out / LABEL_FILE, _label_list(table, files))
    missing = [row for row, file in enumerate(files) if not (out / file).exists()]
    step = 64 if size != "paper" else 16
    with tqdm(total=len(table), initial=len(table) - len(missing), desc=f"hall {size}", unit="clip") as bar:
        for start in range(0, len(missing), step):
            rows = missing[start : start + step]
            for row, wave in zip(rows, synthesise(table.iloc[rows]), strict=True):
                content = io.BytesIO()
                soundfile.write(content, wave, SAMPLE_RATE, format="WAV", subtype="PCM_16")
                write_whole(out / files[row], content.getvalue())
            bar.update(len(rows))


def _write_once(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise BadInput(f"{path}: belongs to another hall or is damaged: choose another folder or remove this one")
    if not path.exists():
        write_whole(path, text.encode())


def _label_list(table: pd.DataFrame, files: list[str]) -> str:
    """The evaluation labels in the organisers' format: a line with the type, then name, true name, 1 = anomaly."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    evaluation = table.assign(file=files)[table["dataset"] == "evaluation"]
    for kind, rows in evaluation.groupby("machine_type", sort=False):
        lines.writerow([kind])
        for row in rows.sort_values("file").itertuples():
            lines.writerow([os.path.basename(row.file), os.path.basename(row.path), int(row.label == "anomaly")])
    return text.getvalue()
