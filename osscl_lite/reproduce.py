"""``python -m osscl_lite reproduce``: run what the tables need, record it, print each table beside the paper's.
Explained in chapter 9.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from osscl_lite.baselines.anopatch import why_not
from osscl_lite.claims import differences, differences_text
from osscl_lite.errors import BadInput
from osscl_lite.files import write_whole
from osscl_lite.grid import Job, by_name, run_grid, state
from osscl_lite.record import RESULTS
from osscl_lite.systems import SYSTEMS
from osscl_lite.tables import REDUCTIONS, Records, cells, table_text

KEPT = ("logmel-osscl", "tfstgram-osscl")  # detectors that chapters load


def reproduce(
    tables: Sequence[int],
    data: str,
    source: dict[str, Any],
    size: str,
    seeds: int,
    *,
    settings: Sequence[str] = (),
    to: Path = RESULTS,
    out: Path = Path("runs"),
    workers: int = 1,
    device: str = "auto",
    only_list: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Run and record what is missing for tables of the paper, then print and write them. Explained in chapter 9.

    What is recorded is not run again; a run that was stopped goes on. Files: ``tables/<data>-table2.txt`` (what is
    printed), ``-table2.csv`` (``tables.cells``) and ``-table2-differences.csv`` (``claims.differences``) below ``to``.

    Args:
        tables: some of 2 to 6.
        data: name of the data set in the records; ``source``: the arguments of ``load_clips``.
        size: of the recipes; ``seeds``: 0 to seeds - 1, of training and of generated clips.
        settings: as for ``with_settings``.
        to: folder of the records; ``out``: folder of the runs' folders.
        workers, device: as for ``run_grid``.
        only_list: say what would run and about how long; run and print nothing else.
        say: takes each line.

    Returns:
        Name of each run that failed -> why.

    Raises:
        BadInput: for an unknown table or value, or no seed.
    """
    if seeds < 1:
        raise BadInput(f"--seeds {seeds}: give 1 or more")
    about = (data, to, source["source"], range(seeds), ablated(source["source"], size, device))
    jobs, reasons = plan(Records(*about), tables, source, size, settings)
    for label, reason in reasons.items():
        say(f"{label}: not run, {reason}")
    if only_list:
        listing(by_name(jobs), to, out, say)
        return {}
    failed = run_grid(jobs, to, out, workers, device, say)
    records = Records(*about)
    for table in tables:
        write_table(records, table, say)
    return failed


def ablated(source: str, size: str, device: str) -> str:
    """Whose perturbation head Table VI varies: TFSTgram's, as in the paper, or Log-Mel's where that would take days.

    TFSTgram's on recordings in the challenge's layout, at size "paper" and on a GPU; never on features.
    """
    if source == "features":
        return "logmel-osscl"
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return "tfstgram-osscl" if size == "paper" or source == "dcase2020" or cuda else "logmel-osscl"


def plan(
    records: Records, tables: Sequence[int], source: dict[str, Any], size: str, settings: Sequence[str]
) -> tuple[list[Job], dict[str, str]]:
    """The runs that tables need, seed by seed, each once; label -> why a row cannot be run here.

    A detector that chapters load goes beside the record of seed 0, where it was trained on sound.
    """
    rows = {}  # name of system and reduction -> label, recipe; the first table that needs it names it
    reasons: dict[str, str] = {}
    used: set[str] = set()
    for table in tables:
        for label, variant in records.systems(table).items():
            name = records.ablated if table == 6 else variant
            if variant in rows or label in reasons:
                continue
            if SYSTEMS[name].listens and records.source == "features":
                reasons[label] = records.gap(name)
                continue
            try:
                recipe = SYSTEMS[name].recipe(size)
                recipe, known = with_settings(recipe, settings)
                used |= known
                if table == 6:
                    recipe = replace(recipe, reduction=REDUCTIONS[label])
                reason = why_not(recipe) if name.startswith("anopatch") else None
            except BadInput as error:  # a library that is not installed
                if str(error).startswith("--set"):
                    raise
                reason = str(error)
            if reason is None:
                rows[variant] = recipe
            else:
                reasons[label] = reason
    if strangers := [change for change in settings if change not in used]:
        raise BadInput(f"--set {strangers[0]}: no system of these tables has such a value")
    jobs = {}
    for seed in records.seeds or ():
        for recipe in rows.values():
            keep = seed == 0 and records.source != "features" and recipe.name in KEPT
            job = Job(replace(recipe, seed=seed), records.data, source | dict(seed=seed), keep)
            jobs[job.name] = job
    return list(jobs.values()), reasons


def with_settings(recipe: Any, settings: Sequence[str]) -> tuple[Any, set[str]]:
    """A recipe with other values, and the settings that it takes; the others are passed over.

    Args:
        recipe: of any system, a dataclass.
        settings: "NAME=VALUE" each, for every system that has such a value, or "SYSTEM:NAME=VALUE", for those whose
            name begins so; "none" where a value may be missing.

    Raises:
        BadInput: for a setting of another form, or a value that the recipe cannot have.
    """
    kinds, known = {field.name: field.type for field in fields(recipe)}, set()
    for change in settings:
        left, _, text = change.partition("=")
        system, _, name = left.rpartition(":")
        if not name or not text:
            raise BadInput(f"--set {change}: write NAME=VALUE or SYSTEM:NAME=VALUE")
        if name not in kinds or not recipe.name.startswith(system):
            continue
        known.add(change)
        optional = not isinstance(kinds[name], type)  # int | None
        kind = next(one for one in getattr(kinds[name], "__args__", [kinds[name]]) if one is not type(None))
        try:
            recipe = replace(recipe, **{name: None if optional and text == "none" else kind(text)})
        except ValueError as error:
            raise BadInput(f"--set {change}: {error}") from None
    return recipe, known


def listing(jobs: dict[str, Job], to: Path, out: Path, say: Callable[[str], None] = print) -> None:
    """Say how far each run is and about how long one takes, by the records of the same system and size."""
    took, total, unknown = times(to), 0.0, 0
    for name, job in jobs.items():
        try:
            how_far = state(job, to, out)
        except BadInput as error:
            how_far = str(error)
        if how_far == "done":
            say(f"{name}: done")
            continue
        seconds = took.get((job.recipe.name, job.recipe.size, job.data), took.get((job.recipe.name, job.recipe.size)))
        total, unknown = (total, unknown + 1) if seconds is None else (total + seconds, unknown)
        say(f"{name}: {how_far}, {span(seconds)}")
    say(
        f"in all {span(total)}, one run at a time"
        + (f", and {unknown} {'runs' if unknown > 1 else 'run'} of unknown length" if unknown else "")
    )


def times(to: Path) -> dict[tuple[str, ...], float]:
    """(system, size, data) and (system, size) -> median seconds of training, of the records here and of the package."""
    found: dict[tuple[str, ...], list[float]] = {}
    for path in sorted({*to.glob("*-seed*.json"), *RESULTS.glob("*-seed*.json")}):
        try:
            result = json.loads(path.read_bytes())
            key = (result["recipe"]["name"], result["recipe"]["size"])
            for one in (key, (*key, result["data"])):
                found.setdefault(one, []).append(float(result["train_seconds"]))
        except (ValueError, KeyError, TypeError):
            continue  # a damaged record has its own line
    return {key: float(np.median(values)) for key, values in found.items()}


def span(seconds: float | None) -> str:
    """A length of time in words."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def write_table(records: Records, table: int, say: Callable[[str], None] = print) -> None:
    """Say one table with its differences, and write both; the same bytes from the same records."""
    text = table_text(records, table) + "\n" + differences_text(records, table)
    say(text)
    name = records.folder / "tables" / f"{records.data}-table{table}"
    write_whole(name.with_suffix(".txt"), text.encode())
    for frame, suffix in ((cells(records, table), ""), (differences(records, table), "-differences")):
        write_whole(Path(f"{name}{suffix}.csv"), as_csv(frame))


def as_csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n").encode()
