"""What each system of the tables costs: a whole training of all machines, and one clip from input to score."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.inference import in_turns
from benchmarks.setting import Report, Setting, spread
from osscl_lite import load_clips, load_waveforms
from osscl_lite.baselines import clp_scf
from osscl_lite.data import MACHINES, take
from osscl_lite.data.dcase import DEVELOPMENT
from osscl_lite.systems import SYSTEMS, System

EPOCHS = 2  # of which the second counts
SHARE = 4  # of so many training clips one is trained on
FEATURES, FEATURE_CLIPS = (60, 8), 20_119  # as modulation spectra of the challenge's development machines come
QUICK_CLIPS = 230


def measure(setting: Setting) -> None:
    """All systems that can be trained here, on the hall at size book and on features of the real ones' shape."""
    report = Report(
        setting, "systems",
        "seconds of a whole training of all machines, and of one clip from waveform or picture to score; one thread",
        f"training: the second of {EPOCHS} epochs over one in {SHARE} of the clips, times {SHARE} and the epochs of the"
        " recipe, so without reading, Log-Mels and held-out clips; 'modspec': noise in the shape of the real features,"
        " which changes no time",
    )  # fmt: skip
    if setting.device != "cpu":
        report.skipped.append(dict(reason="of the CPU only"))
        report.write()
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for data, size, clips in tables(setting):
            for name, system in SYSTEMS.items():
                if name.startswith("anopatch") or (system.listens and data == "modspec"):
                    continue
                about = dict(recipe=name, size=size, data=data)
                report.case(about, lambda system=system, size=size, clips=clips: cost(system, size, clips))
    finally:
        torch.set_num_threads(threads)


def tables(setting: Setting) -> list[tuple[str, str, pd.DataFrame]]:
    """Name of the data, size of the recipes, training clips."""
    size = "tiny" if setting.quick else "book"
    hall = load_clips("hall", size=size)
    features = noise(setting.work / "modspec", QUICK_CLIPS if setting.quick else FEATURE_CLIPS)
    if setting.quick:
        hall, features = (clips[clips["machine_type"] == "fan"] for clips in (hall, features))
    tables = (("hall", size, hall), ("modspec", "features", features))
    return [(name, size, clips[clips["split"] == "train"].iloc[::SHARE]) for name, size, clips in tables]


def noise(folder: Path, count: int) -> pd.DataFrame:
    """A folder of features with noise in them, evenly over the IDs of the development set."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in MACHINES if name in DEVELOPMENT]
    kinds, machine_ids = zip(*[names[row * len(names) // count].split("/") for row in range(count)], strict=True)
    np.savez(folder / "train.npz", features=np.random.default_rng(0).standard_normal((count, *FEATURES), np.float32))
    columns = dict(file="train.npz", index=np.arange(count), machine_type=kinds, machine_id=machine_ids)
    pd.DataFrame(columns | dict(split="train", dataset="development", label="normal")).to_csv(
        folder / "clips.csv", index=False
    )
    return load_clips("features", root=folder)


def cost(system: System, size: str, clips: pd.DataFrame) -> dict[str, Any]:
    """Train a system shortly, and score one clip with what came of it."""
    whole = system.recipe(size)
    fields = [field for field in ("epochs", "made_epochs") if hasattr(whole, field)]
    model = system.fit(
        replace(whole, **dict.fromkeys(fields, EPOCHS)), clips, device="cpu", progress=False
    )  # fmt: skip
    first = clips.iloc[:1]
    if model.recipe.input == "waveform":
        inputs = take(load_waveforms(first, model.recipe.seconds), np.arange(1), "cpu")
    else:
        inputs = torch.zeros(1, model.recipe.bands, model.recipe.frames)
    labels = model.machine_labels(first)
    taken = in_turns({"pytorch": model}, inputs, labels)["pytorch"]
    return dict(
        training_seconds=SHARE * training_seconds(whole, model),
        milliseconds_of_one_clip=spread([1000 * seconds for seconds in taken]),
    )


def training_seconds(whole: Any, model: Any) -> float:
    """Seconds of all epochs of a recipe, of each stage or part, by the last epoch of a shorter training."""
    stages = [(model.log, whole.epochs)]
    if hasattr(whole, "made_epochs"):
        parts = model.log.groupby("part")
        stages = [(parts.get_group("classifier"), whole.epochs), (parts.get_group("made"), whole.made_epochs)]
    stages += [(earlier.log, clp_scf.first_stage(whole).epochs) for earlier in getattr(model, "earlier", ())]
    return float(sum(log.loc[log["epoch"].eq(log["epoch"].max()), "seconds"].sum() * count for log, count in stages))
