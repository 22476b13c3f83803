"""Scoring on a CPU: PyTorch, torch.compile and ONNX Runtime, from waveform to score, taken in turns in one run.

Alone: ``python -m benchmarks.inference``, which prints JSON after some three minutes on two cores.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import osscl_lite
from benchmarks.setting import spread
from osscl_lite import Detector, load_clips, load_waveforms, recipe
from osscl_lite.data import MACHINES, take
from osscl_lite.detector import Scorer
from osscl_lite.export import Graph, OnnxDetector, export, write_graph

RESULTS = Path(osscl_lite.__file__).parent / "results"
BATCHES = (4, 16)  # clips of a call in bulk
SECONDS, ROUNDS = 3.0, (3, 15)  # of one comparison: about this long, within these numbers of rounds
HOW = (
    "waveforms in memory to scores, on generated clips; ways in turns, medians over rounds; in bulk the better of "
    f"calls of {' and '.join(map(str, BATCHES))} clips. 'onnx, plain': the detector's layers as torch.onnx writes "
    "them, before export writes them otherwise. torch.compile: with one thread only, detector.compile(). Paper size: "
    "untrained weights, which changes no time."
)


def measure() -> dict[str, Any]:
    """Latency of one clip, clips a second and core, and largest difference to PyTorch's scores, of each way to score.

    Returns:
        JSON-able: ``how``, and ``cases``: one a recipe and number of threads.
    """
    cases, before = [], torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="osscl-inference-") as folder, empty_compiler_cache(folder):
        try:
            for size, front_end in ((s, f) for s in ("book", "paper") for f in ("logmel", "tfstgram")):
                model = detector(size, front_end)
                waveforms, labels = clips(model)
                for threads in sorted({1, os.cpu_count() or 1}):
                    torch.set_num_threads(threads)
                    ways, seconds = scorers(model, Path(folder), compiled=threads == 1)
                    r = model.recipe
                    about = dict(recipe=r.name, size=r.size, seconds=r.seconds, width=r.width, threads=threads)
                    cases.append(about | dict(made_seconds=seconds) | compare(ways, waveforms, labels, threads))
        finally:
            torch.set_num_threads(before)
    return dict(how=HOW, cases=cases)


def detector(size: str, front_end: str) -> Detector:
    """The package's own detector of book size, or an untrained one of paper size."""
    if size == "book":
        return Detector.load(RESULTS / f"hall-book-{front_end}-osscl-seed0.safetensors")
    torch.manual_seed(0)
    return Detector(recipe(f"{front_end}-osscl", size), MACHINES)


def clips(model: Detector) -> tuple[Tensor, Tensor]:
    """Test clips of the hall, as many as the largest batch: (B, L), (B,)."""
    table = load_clips("hall", size=model.recipe.size)
    table = table[table["split"] == "test"]
    table = table.iloc[np.linspace(0, len(table) - 1, max(BATCHES)).astype(int)]
    waveforms = load_waveforms(table, model.recipe.seconds)
    return take(waveforms, np.arange(len(table)), "cpu"), model.machine_labels(table)


def scorers(model: Detector, folder: Path, compiled: bool) -> tuple[dict[str, Scorer], dict[str, float]]:
    """Ways to score, and the seconds that it took to make each ready for one clip and for many."""
    path, seconds = folder / "detector.onnx", {}
    ways: dict[str, Scorer] = {"pytorch": model}
    if compiled:
        torch.compiler.reset()  # it counts what it compiled of one function, whatever the detector
        ways["torch.compile"], began = deepcopy(model), time.perf_counter()
        ways["torch.compile"].compile()
        for count in (1, 2):  # the second length makes it compile once more, for any
            ways["torch.compile"].score(torch.zeros(count, model.samples), torch.zeros(count, dtype=torch.int64))
        seconds["torch.compile"] = round(time.perf_counter() - began, 1)
    began = time.perf_counter()
    export(model, path)
    ways["onnx"] = OnnxDetector.load(path)
    seconds["onnx"] = round(time.perf_counter() - began, 1)
    if model.front_end.tfgram is None and compiled:  # ONNX has no operator for TFgram's pooling
        graph = Graph(model)
        graph.model = model
        write_graph(graph, path)
        ways["onnx, plain"] = OnnxDetector.load(path)
    return ways, seconds


def compare(ways: dict[str, Scorer], waveforms: Tensor, labels: Tensor, threads: int) -> dict[str, Any]:
    """Times of all ways, and how many times as quick as PyTorch each is."""
    latency = in_turns(ways, waveforms[:1], labels[:1])
    bulk: dict[str, dict[str, Any]] = {}
    for count in BATCHES:
        for name, taken in in_turns(ways, waveforms[:count], labels[:count]).items():
            rates = spread([count / seconds / threads for seconds in taken])
            if name not in bulk or rates["median"] > bulk[name]["median"]:
                bulk[name] = rates | dict(clips_a_call=count)
    scores = ways["pytorch"].score(waveforms, labels)
    result = {}
    for name, way in ways.items():
        one = spread([1000 * seconds for seconds in latency[name]])
        result[name] = dict(
            milliseconds_of_one_clip=one,
            clips_a_second_and_core=bulk[name],
            times_pytorch=dict(
                one_clip=round(1000 * float(np.median(latency["pytorch"])) / one["median"], 2),
                bulk=round(bulk[name]["median"] / bulk["pytorch"]["median"], 2),
            ),
            largest_score_difference=float((way.score(waveforms, labels) - scores).abs().max()),
        )
    return dict(ways=result, scores=[float(scores.min()), float(scores.max())])


def in_turns(ways: dict[str, Scorer], waveforms: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Seconds of each way, taken in turns, after one call of each that does not count."""
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {name: way.score for name, way in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(waveforms, labels)
    began = time.perf_counter()
    for done in range(ROUNDS[1]):
        if done >= ROUNDS[0] and time.perf_counter() - began > SECONDS:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call(waveforms, labels)
            taken[name].append(time.perf_counter() - start)
    return taken


@contextlib.contextmanager
def empty_compiler_cache(folder: str) -> Iterator[None]:
    """No kernels of earlier runs for torch.compile, so that its seconds are those of a first call."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "compiled")
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
