"""Run, measure, record: one JSON file a run, read by the chapters. Nothing in ``results/`` was typed by hand."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from osscl_lite.baselines.statistics import mahalanobis, mean_log_mel, nearest_neighbour
from osscl_lite.data import fingerprint
from osscl_lite.detector import Detector
from osscl_lite.errors import BadInput
from osscl_lite.files import write_whole
from osscl_lite.metrics import by_band, evaluate, interval
from osscl_lite.recipe import Recipe
from osscl_lite.training import fit

RESULTS = Path(__file__).parent / "results"
SPEED = RESULTS / "speed"
PAPER_SCORE = "paper's score"
METHODS = (
    PAPER_SCORE,
    "cross-entropy without margin",
    "1-NN on embeddings",
    "Mahalanobis on embeddings",
    "Mahalanobis on mean Log-Mel",
    "1-NN on mean Log-Mel",
)


def score_all(model: Detector, clips: pd.DataFrame) -> dict[str, np.ndarray]:
    """Score the test clips in every way that chapter 6 compares.

    Args:
        model: a trained detector.
        clips: a table with training and test clips.

    Returns:
        Method (one of ``METHODS``) -> scores of the rows of split test, in their order.
    """
    is_test = clips["split"].eq("test").to_numpy()
    machines = (clips["machine_type"] + "/" + clips["machine_id"]).to_numpy()
    z, spectra = model.embed_clips(clips), mean_log_mel(model.recipe, clips)
    labels = model.machine_labels(clips[is_test])
    test_z = torch.from_numpy(z[is_test])
    ways = [machines[~is_test], machines[is_test]]

    def against(vectors: np.ndarray) -> tuple[np.ndarray, ...]:
        return vectors[~is_test], ways[0], vectors[is_test], ways[1]

    scores = (
        model.score_embeddings(test_z, labels).cpu().numpy(),
        model.score_embeddings(test_z, labels, margin=0.0).cpu().numpy(),
        nearest_neighbour(*against(z), metric="cosine"),
        mahalanobis(*against(z)),
        mahalanobis(*against(spectra)),
        nearest_neighbour(*against(spectra), metric="standardised"),
    )
    return dict(zip(METHODS, scores, strict=True))


def record(
    recipe: Recipe, clips: pd.DataFrame, data: str, out: Path, folder: Path, device: str = "auto"
) -> dict[str, Any]:
    """Train one detector, score it in every way, write ``<name>.json`` and ``<name>.safetensors`` to ``folder``.

    Args:
        recipe: what to train.
        clips: training and test clips.
        data: name of the data set for the record, such as "hall-book".
        out: folder of the run's checkpoints.
        folder: where the record goes.
        device: as for ``fit``.

    Returns:
        What the JSON file holds.
    """
    began = time.perf_counter()
    model = fit(recipe, clips, device=device, out=out)
    trained = time.perf_counter() - began
    test = clips[clips["split"] == "test"].reset_index(drop=True)
    methods = {}
    for method, scores in score_all(model, clips).items():
        table = evaluate(scores, test)
        methods[method] = dict(auc=table.replace({np.nan: None}).to_dict("records"))
        if "band" in test:
            methods[method]["band"] = by_band(scores, test).to_dict("records")
            methods[method]["by_severity"] = by_band(scores, test.assign(band=severity_class(test))).to_dict("records")
    result = dict(
        data=data,
        fingerprint=fingerprint(clips),
        clips=dict(train=int((clips["split"] == "train").sum()), test=len(test)),
        recipe=model.recipe.to_dict(),
        seed=recipe.seed,
        machines=model.machines,
        hall_version=model.hall_version,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        methods=methods,
        confusion=confusion(model, test).tolist(),
        log=model.log.drop(columns="seconds").replace({np.nan: None}).to_dict("records"),
        epoch_seconds=round(float(model.log["seconds"].median()), 2),
        train_seconds=round(trained, 1),
        measured_on=measured_on(model.device),
    )
    name = run_name(data, recipe)
    model.save(folder / f"{name}.safetensors")
    write_whole(folder / f"{name}.json", json.dumps(result, indent=1).encode())
    return result


def run_name(data: str, recipe: Recipe) -> str:
    """Name of a record: data, recipe, what differs from the recipe of that name, seed."""
    reduction = "" if recipe.reduction == 64 or recipe.loss == "arcface" else f"-r{recipe.reduction or 0}"
    return f"{data}-{recipe.name}{reduction}-seed{recipe.seed}"


def severity_class(clips: pd.DataFrame) -> pd.Series:
    """Severity in four classes, as strings; empty for normal clips."""
    classes = pd.cut(
        clips["severity"], [-0.01, 0.25, 0.5, 0.7, 10], labels=["to .25", ".25 to .5", ".5 to .7", "over .7"]
    )
    return classes.astype(str).where(clips["label"].eq("anomaly"), "")


def confusion(model: Detector, clips: pd.DataFrame) -> np.ndarray:
    """How often normal test clips of each machine are called each machine: (classes, classes) counts, rows are true."""
    normal = clips[(clips["split"] == "test") & (clips["label"] == "normal")]
    labels = model.machine_labels(normal)
    z = torch.from_numpy(model.embed_clips(normal)).to(model.device)
    called = model.logits(z, labels.to(model.device), margin=0.0).argmax(1).cpu()
    counts = torch.zeros(len(model.machines), len(model.machines), dtype=torch.long)
    return counts.index_put_((labels, called), torch.ones_like(labels), accumulate=True).numpy()


def measured_on(device: torch.device) -> dict[str, Any]:
    """Hardware, threads, versions, commit and day of a measurement."""

    def commit() -> str:
        try:
            where = Path(__file__).parent
            return subprocess.run(
                ["git", "describe", "--always", "--dirty"], cwd=where, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    packages = ("torch", "torchaudio", "numpy", "scikit-learn")
    return dict(
        device=device.type,
        hardware=hardware,
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        python=platform.python_version(),
        versions={package: version(package) for package in packages},
        commit=commit(),
        day=datetime.now(UTC).date().isoformat(),
    )


def processor() -> str:
    """Name of the processor, as well as the platform tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_results(
    data: str, recipe: str, seeds: Sequence[int] | None = None, folder: Path = RESULTS
) -> list[dict[str, Any]]:
    """Read the records of one recipe on one data set.

    Args:
        data: such as "hall-book"; ``recipe``: such as "logmel-osscl" or "logmel-osscl-r16".
        seeds: which runs; all that there are by default.

    Raises:
        BadInput: if there is none, with the names that there are.
    """
    found = sorted(folder.glob(f"{data}-{recipe}-seed*.json"))
    results = [json.loads(path.read_text()) for path in found]
    if seeds is not None:
        results = [result for result in results if result["seed"] in seeds]
    if not results:
        names = ", ".join(sorted({path.stem.rpartition("-seed")[0] for path in folder.glob("*-seed*.json")}))
        raise BadInput(f"{folder}: no record of {data}-{recipe}; there are {names or 'none'}")
    return results


def load_recorded(data: str, recipe: str, seed: int, folder: Path = RESULTS) -> Detector:
    """The detector that a record measured."""
    return Detector.load(folder / f"{data}-{recipe}-seed{seed}.safetensors")


def summary(results: Sequence[dict[str, Any]], average: str = "mean", value: str = "auc") -> pd.DataFrame:
    """Mean over runs with a 95 % interval, a row a method, a column a machine type.

    Args:
        results: from ``read_results``.
        average: "mean" (over the IDs of a type) or "pooled"; ``value``: "auc", "pauc" or "mauc".

    Returns:
        DataFrame indexed by (method, "value" or "±"), in percent.
    """
    rows = {}
    for method in results[0]["methods"]:
        runs = pd.DataFrame(
            {
                row["machine_type"]: row[value]
                for row in result["methods"][method]["auc"]
                if row["machine_id"] == "all" and row["average"] == average
            }
            for result in results
        )
        both = {column: interval(100 * runs[column].to_numpy(float)) for column in runs}
        rows[method, "value"] = {column: pair[0] for column, pair in both.items()}
        rows[method, "±"] = {column: pair[1] for column, pair in both.items()}
    return pd.DataFrame(rows).T


def read_speed(section: str, device: str = "cpu", folder: Path = SPEED) -> dict[str, Any]:
    """Read a section of the measurements of speed, as ``python -m benchmarks`` wrote it. Told in the appendix on speed.

    Args:
        section: such as "step" or "roofline"; ``device``: "cpu" or "cuda".

    Returns:
        what and how (texts), cases and skipped (lists), measured_on.

    Raises:
        BadInput: if it was not measured on that device yet, with the command that does.
    """
    path = folder / f"{device}-{section}.json"
    if not path.is_file():
        raise BadInput(
            f"{path.name}: not measured yet; python -m benchmarks --device {device} --only {section}"
            " --to osscl_lite/results/speed"
        )
    return json.loads(path.read_text())
