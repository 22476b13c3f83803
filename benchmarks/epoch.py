"""One full epoch at the paper's size on a GPU, and 300 of them projected."""

from typing import Any

from benchmarks.setting import Report, Setting, shapes, spread
from benchmarks.worker import Worker
from osscl_lite import Recipe, replace

CLIPS = 36_283  # the paper's training clips, development and additional together
EPOCHS = 300
FORMULA = "hours = (start + first epoch + 299 * median of the epochs after it) / 3600; held-out clips are not scored"


def measure(setting: Setting) -> None:
    """Log-Mel and TFSTgram, batch 64, 5 % held out: 539 steps."""
    report = Report(
        setting, "epoch",
        "one epoch of the paper's recipe over 36,283 ten-second clips, batch 64, and its 300 epochs projected",
        "64 files of noise stand for the clips, each named many times: what a clip sounds like changes no time;"
        " start is reading the cache, Log-Mels and upload, `reading` the WAV files into the cache before; " + FORMULA,
    )  # fmt: skip
    if setting.device == "cpu" and not setting.quick:
        report.skipped.append(dict(reason="a full epoch at the paper's size takes hours on a CPU: use --device cuda"))
        report.write()
        return
    count = 64 if setting.quick else CLIPS
    for recipe in setting.recipes()[-2:]:
        recipe = replace(recipe, holdout=0.05)
        report.case(
            shapes(recipe) | dict(clips=count), lambda recipe=recipe: full_epochs(setting, recipe, count, rounds=3)
        )


def full_epochs(setting: Setting, recipe: Recipe, count: int, rounds: int) -> dict[str, Any]:
    """A first epoch, then some that are timed."""
    with Worker(setting, recipe, "ours", count, setting.threads[-1]) as worker:
        cache = str(setting.work / "cache")
        reading = worker.ask("load", folder=cache, cold=False)["seconds"]
        start = worker.ask("start")["seconds"]
        first = worker.ask("epoch")["seconds"]
        seconds = []
        while len(seconds) < rounds and not (seconds and setting.over()):
            seconds.append(worker.ask("epoch")["seconds"])
        peak = worker.ask("memory")
    middle = spread(seconds)
    trained = count * (1 - recipe.holdout) / middle["median"]
    return dict(
        epoch_seconds=middle, first_epoch_seconds=first, start_seconds=start,
        reading_seconds=reading, trained_clips_per_second=trained,
        epochs=EPOCHS, projected_hours=(start + first + (EPOCHS - 1) * middle["median"]) / 3600,
        peak_bytes=peak,
    )  # fmt: skip
