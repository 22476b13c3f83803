"""From WAV files on disk to trained weights: ours against a loader that works as the authors' program does."""

import os
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.setting import Report, Setting, shapes
from benchmarks.step import side_by_side
from benchmarks.worker import Worker
from osscl_lite import Recipe

PAPER_CLIPS = 34_468  # of 36,283, less the 1,815 that are held out
FORMULA = (
    "ours(E) = read + start * (N/n) + (first - epoch) + E * epoch * (N/n), reference(E) = E * epoch_ref * (N/n), with"
    " n clips measured, N clips of a run, E epochs, read = N/n * seconds to read the files into the cache, start ="
    " reading the cache, Log-Mels and upload, first - epoch = what the first epoch takes longer (compilation); the"
    " ratio is reference(E) / ours(E)"
)


def measure(setting: Setting) -> None:
    """Each recipe; on a CPU with all threads only."""
    report = Report(
        setting, "loader",
        "clips a second end to end, from WAV files (noise written for this, each clip a file of its own, in the"
        " system's memory after the first reading; cold: before it; cached: with the cache file of an earlier start)",
        "reference: a DataLoader without workers, soundfile and torchaudio per item, every epoch, and the plain step;"
        " ours: the files are read once into the cache, then epochs of Run; both in turns, in processes of their own;"
        " a run is projected: " + FORMULA,
    )  # fmt: skip
    threads = setting.threads[-1]
    for recipe in setting.recipes():
        paper = recipe.seconds > 5
        count = 2 * recipe.batch_size if setting.quick else 2048 if setting.device != "cpu" else 64 if paper else 256
        rounds = 2 if setting.quick or paper else 5
        report.case(
            shapes(recipe) | dict(threads=threads, clips=count),
            lambda recipe=recipe, count=count, rounds=rounds: from_files(setting, recipe, count, rounds, threads),
        )


def from_files(setting: Setting, recipe: Recipe, count: int, rounds: int, threads: int) -> dict[str, Any]:
    """Reading once, epochs in turns, and a whole run projected."""
    reading = {}

    def read(worker: Worker) -> None:
        with TemporaryDirectory(dir=setting.work) as folder:
            for state, name in (("cold", "cold"), ("warm", "warm"), ("cached", "warm")):
                cache = os.path.join(folder, name)
                reading[state] = worker.ask("load", folder=cache, cold=state == "cold")["seconds"]

    result = side_by_side(setting, recipe, ("reference", "ours"), count, rounds, threads, files=count, first=read)
    reference, ours = result["variants"]
    epochs = {row["variant"]: count / row["clips_per_second"]["median"] for row in (reference, ours)}
    result |= dict(
        reading_seconds=reading,
        reading_ms_per_clip={state: 1000 * seconds / count for state, seconds in reading.items()},
        epoch_seconds=epochs,
        epochs=recipe.epochs,
        whole_run={
            str(clips): project(clips / count, recipe.epochs, reading["warm"], ours, epochs)
            for clips in (count, PAPER_CLIPS)
        },
    )
    return result


def project(times: float, epochs: int, read: float, ours: dict[str, Any], epoch: dict[str, float]) -> dict[str, float]:
    """``FORMULA``: hours of a whole run, ours and the reference's, and their ratio."""
    once = times * (read + ours["start_seconds"]) + max(0.0, ours["first_seconds"] - epoch["ours"])
    mine, reference = once + epochs * epoch["ours"] * times, epochs * epoch["reference"] * times
    return dict(ours_hours=mine / 3600, reference_hours=reference / 3600, ratio=reference / mine)
