"""Run, measure, record: one JSON file a run and its scores, read by the chapters. Nothing there was typed by hand.

Explained in chapter 5; what the tables make of them, in chapter 9.
"""

import hashlib
import io
import json
import os
import platform
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
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
from osscl_lite.systems import system_of

RESULTS = Path(__file__).parent / "results"
SPEED = RESULTS / "speed"
PAPER_SCORE = "paper's score"
LABELS = ("normal", "anomaly", "unknown")
DECIMALS = 6  # of the AUCs in a record; the scores beside it are whole
METHODS = (  # of a detector; records of before its score was free of ties (chapter 6) lack the second
    PAPER_SCORE,
    "cross-entropy without margin",
    "1-NN on embeddings",
    "Mahalanobis on embeddings",
    "Mahalanobis on mean Log-Mel",
    "1-NN on mean Log-Mel",
)


EPOCHS_KEPT = 30  # of a training of more epochs, the scores after each are not kept
LAST_EPOCH = "paper's score, last epoch"  # of the weights that the choice of the epoch passed over, beside METHODS


def score_all(model: Detector, clips: pd.DataFrame) -> dict[str, np.ndarray]:
    """Score the test clips in every way that chapter 6 compares.

    Args:
        model: a trained detector.
        clips: a table with training and test clips.

    Returns:
        Method (one of ``METHODS``) -> scores of the rows of split test, in their order. The two without a network hear
        all bands, whatever ``highest_hz`` says.
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
    recipe: Any, clips: pd.DataFrame, data: str, out: Path, folder: Path, device: str = "auto", keep: bool = True
) -> dict[str, Any]:
    """Train one system, score it, write ``<name>.json`` and its scores, ``<name>.npz``, to ``folder``.
    Explained in chapter 5.

    A detector is scored in every way of ``METHODS``, another system in its own; that is the paper's score of its row.
    The file of a detector's scores also has those of its last epoch, and after each epoch where ``keeps_epochs`` says.

    Args:
        recipe: what to train, of any system.
        clips: training and test clips.
        data: name of the data set for the record, such as "hall-book".
        out: folder of the run's checkpoints.
        folder: where the record goes.
        device: as for ``fit``.
        keep: a detector goes beside its record too, ``<name>.safetensors``; after two stages that of the first as well.

    Returns:
        What the JSON file holds.
    """
    test = clips[clips["split"] == "test"].reset_index(drop=True)
    watch = dict(watch=test) if keeps_epochs(recipe) else {}
    system = system_of(recipe)
    model = system.fit(recipe, clips, device=device, out=out, **watch)
    name, detector = run_name(data, recipe), isinstance(model, Detector)
    scores = score_all(model, clips) if detector else {PAPER_SCORE: model.score_clips(test)}
    scores = {method: values.astype(np.float32) for method, values in scores.items()}
    more = {LAST_EPOCH: last_scores(model, test, scores[PAPER_SCORE])} if detector else {}
    content = scores_file(test, scores | more, model.watched if detector else None)
    result = dict(
        data=data,
        fingerprint=fingerprint(clips),
        clips=dict(train=int((clips["split"] == "train").sum()), test=len(test)),
        system=system.name,
        recipe=model.recipe.to_dict(),
        seed=recipe.seed,
        machines=model.machines,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        methods={method: measures(values, test) for method, values in scores.items()},
        scores=dict(file=f"{name}.npz", sha256=hashlib.sha256(content).hexdigest()),
        train_seconds=round(sum(one.log["seconds"].sum() for one in (model, *getattr(model, "earlier", ()))), 1),
        measured_on=measured_on(next(model.parameters()).device),
    )
    if detector:
        chosen = model.log.loc[model.log["chosen"], "epoch"].iloc[-1]
        result |= dict(
            hall_version=model.hall_version,
            confusion=confusion(model, test).tolist(),
            log=columns_of(model.log.drop(columns="seconds")),
            chosen=int(chosen),
            epoch_seconds=round(float(model.log["seconds"].median()), 2),
        )
        for earlier in model.earlier:
            result["earlier_log"] = columns_of(earlier.log.drop(columns="seconds"))
        if keep:
            model.save(folder / f"{name}.safetensors")
            for earlier in model.earlier:
                earlier.save(folder / f"{run_name(data, recipe, '-first-stage')}.safetensors")
    write_whole(folder / f"{name}.npz", content)
    write_whole(folder / f"{name}.json", json.dumps(result, separators=(",", ":")).encode())
    return result


def keeps_epochs(recipe: Any) -> bool:
    """Whether a run's scores after each epoch are kept, half of a record and more: of detectors on Log-Mel or features,
    less the cuts and trainings of more than ``EPOCHS_KEPT``. Chapter 9 asks how the epochs of these were chosen. Some
    shipped records of Table VI lack them.
    """
    plain = isinstance(recipe, Recipe) and recipe.front_end == "logmel" and recipe.highest_hz is None
    return plain and recipe.epochs <= EPOCHS_KEPT


def last_scores(model: Detector, test: pd.DataFrame, chosen: np.ndarray) -> np.ndarray:
    """The paper's score of the last epoch, which ``fit`` may have passed over; ``chosen`` if it did not: (N,) each."""
    if model.log["chosen"].iloc[-1]:
        return chosen
    other = Detector(model.recipe, model.machines).to(model.device)
    other.load_state_dict(model.last)
    return other.eval().score_clips(test).astype(np.float32)


def columns_of(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns for JSON, which knows no NaN; half as long as rows. ``pd.DataFrame`` makes a table of them again."""
    return table.astype(object).where(table.notna(), None).to_dict("list")


def measures(scores: np.ndarray, test: pd.DataFrame) -> dict[str, dict[str, list[Any]]]:
    """What a record says of one way of scoring: AUCs, and those by fault band and severity where faults are known."""
    found = dict(auc=evaluate(scores, test))
    if "band" in test:
        found["band"] = by_band(scores, test)
        found["by_severity"] = by_band(scores, test.assign(band=severity_class(test)))
    return {name: columns_of(table.round(DECIMALS)) for name, table in found.items()}


def run_name(data: str, recipe: Any, more: str = "") -> str:
    """Name of a record: data, recipe, what differs from the recipe of that name, seed."""
    reduction, highest = getattr(recipe, "reduction", None), getattr(recipe, "highest_hz", None)
    if recipe.name.endswith("-osscl") and reduction != 64:
        more += f"-r{reduction or 0}"
    if highest is not None:
        more += f"-{highest:.0f}hz"
    return f"{data}-{recipe.name}{more}-seed{recipe.seed}"


def scores_file(test: pd.DataFrame, scores: dict[str, np.ndarray], epochs: np.ndarray | None) -> bytes:
    """What a ``.npz`` beside a record holds: the test clips in short and their scores; the same bytes for the same.

    Args:
        test: test clips, N of them.
        scores: method -> (N,); ``epochs``: (E, N), the paper's score after each epoch, or None. Of these the ranks are
            kept, in half of the room: all that an AUC asks for.
    """
    names, machine = np.unique(test["machine_type"] + "/" + test["machine_id"], return_inverse=True)
    arrays = dict(
        machines=names.astype(str),
        machine=machine.astype(np.uint8),
        label=test["label"].map({label: place for place, label in enumerate(LABELS)}).to_numpy(np.uint8),
        evaluation=test["dataset"].eq("evaluation").to_numpy(),
        methods=np.array(list(scores)),
        scores=np.stack(list(scores.values())),
    )
    if epochs is not None:
        ranks = np.stack([np.unique(row, return_inverse=True)[1] for row in epochs])
        arrays["epochs"] = ranks.astype(np.uint16 if len(test) <= 2**16 else np.uint32)
    if "background" in test:
        arrays["background"] = test["background"].to_numpy(np.int32)
    if "band" in test:
        names, band = np.unique(test["band"].astype(str), return_inverse=True)
        arrays |= dict(bands=names.astype(str), band=band.astype(np.uint8))
        arrays["severity"] = test["severity"].to_numpy(np.float64)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


@dataclass(frozen=True)
class Scores:
    """The scores of a run.

    Attributes:
        clips: its N test clips, with what ``evaluate`` and ``by_band`` need.
        methods: method -> scores, (N,).
        epochs: ranks of the paper's score of the moving average after each epoch, (E, N), or None. In older records
            the scores themselves, in half precision, which ties those that lie close together.
    """

    clips: pd.DataFrame
    methods: dict[str, np.ndarray]
    epochs: np.ndarray | None


def read_scores(result: dict[str, Any], folder: Path = RESULTS) -> Scores:
    """Read the scores of a record, from ``read_results``. Explained in chapter 9.

    Raises:
        BadInput: if the record names no file, or it is not there, or is not the one that the record was made with.
    """
    if "scores" not in result:
        run = f"{result['recipe']['name']} on {result['data']}, seed {result['seed']}"
        raise BadInput(f"{folder}: the record of {run}, names no scores; run it again")
    path = folder / result["scores"]["file"]
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != result["scores"]["sha256"]:
            raise BadInput(f"{path}: not the scores that the record beside it names; run it again")
        with np.load(io.BytesIO(content)) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: cannot be read ({str(error).splitlines()[0]}); run it again") from None
    names = pd.Series(arrays["machines"])[arrays["machine"]].str.split("/", expand=True).reset_index(drop=True)
    clips = pd.DataFrame(dict(machine_type=names[0], machine_id=names[1], split="test"))
    clips["dataset"] = np.where(arrays["evaluation"], "evaluation", "development")
    clips["label"] = np.array(LABELS)[arrays["label"]]
    if "background" in arrays:
        clips["background"] = arrays["background"]
    if "bands" in arrays:
        clips["band"], clips["severity"] = arrays["bands"][arrays["band"]], arrays["severity"]
    methods = dict(zip(arrays["methods"].tolist(), arrays["scores"], strict=True))
    return Scores(clips, methods, arrays.get("epochs"))


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
    """Read the records of one recipe on one data set. Explained in chapter 5.

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
    """The detector that a record measured. Explained in chapter 5."""
    return Detector.load(folder / f"{data}-{recipe}-seed{seed}.safetensors")


def summary(results: Sequence[dict[str, Any]], average: str = "mean", value: str = "auc") -> pd.DataFrame:
    """Mean over runs with a 95 % interval, a row a method that all have, a column a type. Explained in chapter 6.

    Args:
        results: from ``read_results``.
        average: "mean" (over the IDs of a type) or "pooled"; ``value``: "auc", "pauc" or "mauc".

    Returns:
        DataFrame indexed by (method, "value" or "±"), in percent.
    """
    rows = {}
    for method in [way for way in results[0]["methods"] if all(way in result["methods"] for result in results)]:
        tables = [pd.DataFrame(result["methods"][method]["auc"]).set_index("machine_type") for result in results]
        runs = pd.DataFrame([table.loc[table["average"].eq(average), value] for table in tables])
        both = {column: interval(100 * runs[column].to_numpy(float)) for column in runs}
        rows[method, "value"] = {column: pair[0] for column, pair in both.items()}
        rows[method, "±"] = {column: pair[1] for column, pair in both.items()}
    return pd.DataFrame(rows).T


def read_speed(section: str, device: str = "cpu", folder: Path = SPEED) -> dict[str, Any]:
    """Read a section of the measurements of speed, as ``python -m benchmarks`` wrote it.
    Explained in the appendix on speed.

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
