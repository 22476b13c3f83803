"""What a command line asked for, the recipes that are measured, and the JSON file of a section."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osscl_lite import Recipe, recipe, replace
from osscl_lite.files import write_whole
from osscl_lite.record import measured_on

RECIPES = ("logmel-osscl", "tfstgram-osscl")


@dataclass(frozen=True)
class Setting:
    """One call of the command.

    Attributes:
        device: "cpu" or "cuda".
        quick: tiny sizes, to see that all works; the numbers mean nothing.
        to: folder of the JSON files; work: folder for WAV files and caches.
        names: the recipes to measure.
        ends: no case begins after this time (``time.monotonic``).
    """

    device: str
    quick: bool
    to: Path
    work: Path
    names: tuple[str, ...] = RECIPES
    ends: float = float("inf")

    @property
    def threads(self) -> list[int]:
        """Numbers of CPU threads to measure with: one and all on a CPU, all beside a GPU."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if self.quick:
            return [1]
        return sorted({1, cores}) if self.device == "cpu" else [cores]

    def over(self) -> bool:
        return time.monotonic() > self.ends

    def recipes(self) -> list[Recipe]:
        """Log-Mel and TFSTgram, short and at the paper's size; all clips train, none is held out."""
        tiny = dict(size="tiny", seconds=1.0, bands=32, width=4, embedding=16, reduction=8, batch_size=8)
        short, paper = dict(size="2 s, 64 bands, width 32", seconds=2.0, bands=64, width=32), dict(size="paper")
        chosen = [
            replace(recipe(name), holdout=0.0, **size)
            for size in ((tiny,) if self.quick else (short, paper))
            for name in self.names
        ]
        if self.device == "cpu":  # the activations of 64 clips of TFSTgram would fill a small machine
            heavy = [one.size == "paper" and one.front_end != "logmel" for one in chosen]
            chosen = [replace(one, batch_size=16) if big else one for one, big in zip(chosen, heavy, strict=True)]
        return chosen


@dataclass
class Report:
    """The JSON file of a section, written anew after each case."""

    setting: Setting
    section: str
    what: str
    how: str
    cases: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def case(self, about: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure one case, or say why not: the time is over, or it failed; the other cases go on."""
        name = ", ".join(f"{key} {value}" for key, value in about.items() if key not in ("bands", "frames", "width"))
        if self.setting.over():
            self.skipped.append(about | dict(reason="the time of --minutes was over"))
        else:
            began = time.monotonic()
            try:
                self.cases.append(about | measure() | dict(took_seconds=time.monotonic() - began))
            except (RuntimeError, OSError, ValueError) as error:
                self.skipped.append(about | dict(reason=f"failed: {' '.join(str(error).split())[-500:]}"))
        skipped = self.skipped[-1] if self.skipped and self.skipped[-1].items() >= about.items() else {}
        print(f"{self.section}: {name}" + (f": {skipped['reason']}" if skipped else ""), flush=True)
        self.write()

    def write(self) -> None:
        device = torch.device(self.setting.device)
        result = dict(
            section=self.section, what=self.what, how=self.how, quick=self.setting.quick, cases=self.cases,
            skipped=self.skipped, took_seconds=time.monotonic() - self.began,
            measured_on=measured_on(device) | dict(threads=self.setting.threads),
        )  # fmt: skip
        path = self.setting.to / f"{self.setting.device}-{self.section}.json"
        write_whole(path, json.dumps(rounded(result), indent=1).encode())


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and number of measurements."""
    low, middle, high = np.percentile(values, [25, 50, 75]).tolist()
    return dict(median=middle, quartiles=[low, high], n=len(values))


def rounded(value: Any) -> Any:
    """Floats within lists and dictionaries to five digits; what is not finite is None."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


def shapes(recipe: Recipe) -> dict[str, Any]:
    """What a case says of its recipe."""
    return dict(
        recipe=recipe.name, size=recipe.size, seconds=recipe.seconds, bands=recipe.bands, frames=recipe.frames,
        width=recipe.width, batch=recipe.batch_size,
    )  # fmt: skip
