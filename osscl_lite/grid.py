"""Many at once: a grid of training runs, and the scores of a large archive. Explained in the appendix on speed.

One process does both, one piece after the other. With more workers the pieces are tasks on a Ray cluster: the one at
RAY_ADDRESS (its machines need this package and the same folders), else one that lives on this machine as long as the
call. A worker that dies takes no result with it: what is finished stands on the disk, and its piece is tried again,
a training from its last checkpoint. Rounding on a CPU depends on the number of threads, which is one in a worker: start
a single process with OMP_NUM_THREADS=1 for the same results to the last bit.
"""

import json
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from osscl_lite.data import fingerprint, load_clips
from osscl_lite.data.waveforms import LONG, uncached
from osscl_lite.detector import Detector, Scorer
from osscl_lite.errors import BadClips, BadInput
from osscl_lite.record import record, run_name
from osscl_lite.training import LOG, pick_device

RETRIES = 3  # of a task whose worker died
PART = 256  # clips of a task of scoring, four batches of ``score_clips``
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": str(RETRIES),
}


@dataclass(frozen=True)
class Job:
    """One run of a grid, as plain data. Explained in the appendix on speed.

    Attributes:
        recipe: what to train, of any of ``SYSTEMS``.
        data: name of the data set for the record, such as "hall-book".
        source: the arguments of ``load_clips``; the clips are loaded where the run runs.
        keep: whether a detector goes beside its record.
    """

    recipe: Any
    data: str
    source: dict[str, Any]
    keep: bool = True

    @property
    def name(self) -> str:
        """Of its record, and of its folder."""
        return run_name(self.data, self.recipe)


def run_grid(
    jobs: Sequence[Job], to: Path, out: Path, workers: int = 1, device: str = "auto", say: Callable[[str], None] = print
) -> dict[str, str]:
    """Train and record every job that has no record yet. Explained in the appendix on speed.

    Args:
        jobs: the runs; the same one twice counts once.
        to: folder of the records, one JSON and one detector each (``record``).
        out: folder of the runs, a folder with checkpoint and log each. A run that was stopped goes on from there.
        workers: runs at a time. 1 is this process; more are tasks on a Ray cluster, each with one CPU thread, and
            with one GPU where the cluster has some and ``device`` is not "cpu".
        device: as for ``fit``.
        say: takes a line for each run that has ended.

    Returns:
        Name of each run that failed -> why, in one line. The others have run.

    Raises:
        BadInput: two different jobs of one name, no Ray for several workers, or no cluster.
    """
    named = by_name(jobs)
    failed, waiting, done = {}, [], 0

    def end(name: str, what: str) -> None:
        nonlocal done
        done += 1
        say(f"{done} of {len(named)}  {name}: {what}")

    def fail(name: str, reason: str) -> None:
        failed[name] = reason
        end(name, f"failed: {reason}")

    for name, job in named.items():
        try:
            if is_recorded(job, to):
                end(name, "done already")
            else:
                waiting.append(job)
        except (BadInput, OSError) as error:
            fail(name, str(error))
    tasks = [(job, to, out, device) for job in waiting]
    for place, ended in spread(run_job, tasks, workers, device):
        if isinstance(ended, BadInput):
            fail(waiting[place].name, str(ended))
        elif ended.reason is not None:
            fail(waiting[place].name, ended.reason)
        else:
            end(waiting[place].name, f"{ended.seconds:.0f} s")
    return failed


def by_name(jobs: Sequence[Job]) -> dict[str, Job]:
    """Jobs by name, each once.

    Raises:
        BadInput: if two different jobs would write the same record.
    """
    named: dict[str, Job] = {}
    for job in jobs:
        if named.setdefault(job.name, job) != job:
            raise BadInput(f"{job.name}: two different runs have this name; give them folders of their own")
    return named


def is_recorded(job: Job, to: Path) -> bool:
    """Whether the record of this recipe on this data is there, with its scores.

    Raises:
        BadInput: if there is one of another recipe or other data, or it cannot be read.
    """
    path = to / f"{job.name}.json"
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_bytes())
        recipe, data, _ = found["recipe"], found["fingerprint"], found["scores"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: not a readable record; delete it") from None
    mine = json.loads(json.dumps(job.recipe.to_dict()))
    if job.source["source"] == "features":  # ``fit`` sets these from the features
        mine |= {field: recipe.get(field) for field in ("input", "bands", "frames", "context") if field in mine}
    different = [] if recipe == mine else ["recipe"]
    different += [] if data == fingerprint(load_clips(**job.source)) else ["clips"]
    if different:
        raise BadInput(f"{path}: a record of another {' and '.join(different)}; give another folder, or delete it")
    return True


def state(job: Job, to: Path, out: Path) -> str:
    """How far a job is, in words.

    Raises:
        BadInput: as ``is_recorded``.
    """
    if is_recorded(job, to):
        return "done"
    log = out / job.name / LOG
    epochs = len(log.read_text().splitlines()) - 1 if log.exists() else 0
    return f"epoch {epochs} of {job.recipe.epochs}" if epochs else "to do"


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    seconds: float
    reason: str | None  # why it failed, in one line


def run_job(job: Job, to: Path, out: Path, device: str) -> Ended:
    """One run: whatever goes wrong in it becomes a line, so that the others go on."""
    began, reason = time.perf_counter(), None
    try:
        if not is_recorded(job, to):  # an earlier try may have been killed after its record was written
            record(job.recipe, load_clips(**job.source), job.data, out / job.name, to, device, job.keep)
    except (BadInput, OSError) as error:
        reason = str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno})"
    return Ended(time.perf_counter() - began, reason)


def score_table(model: Path, device: str, clips: pd.DataFrame, workers: int = 1) -> tuple[np.ndarray, dict[int, str]]:
    """Score a table of clips in parts, in bounded memory and without a copy of the sound in the cache.
    Explained in the appendix on speed.

    Parts have 256 clips of sound; precomputed features are one part. They are the same for any number of workers.

    Args:
        model: file of the detector, .safetensors or .onnx.
        device: as for ``pick_device``.
        clips: any rows of a clips table, N of them.
        workers: parts at a time. 1 is this process; more are Ray tasks, as in ``run_grid``.

    Returns:
        (N,) scores, float32, NaN for clips that cannot be used; row -> the line about each of these.

    Raises:
        BadInput: a file that is no detector, a machine that it does not know; no Ray for several workers; a worker
            lost.
    """
    scorer = open_detector(model, device)
    scorer.machine_labels(clips)  # all machines are known, or nothing begins
    size = max(1, len(clips)) if "index" in clips else PART
    starts = range(0, len(clips), size)
    parts = [clips.iloc[start : start + size].reset_index(drop=True) for start in starts]
    if workers == 1:
        ended = spread(score_part, [(scorer, part) for part in parts], workers, device)
    else:
        ended = spread(open_and_score, [(model, device, part) for part in parts], workers, device)
    scores, problems = np.full(len(clips), np.nan, np.float32), {}
    quiet = None if len(clips) >= LONG else True
    with tqdm(total=len(clips), desc="scores", unit="clip", mininterval=1.0, disable=quiet) as bar:
        for place, scored in ended:
            if isinstance(scored, BadInput):
                raise scored
            start = starts[place]
            scores[start : start + len(scored[0])] = scored[0]
            problems |= {start + row: line for row, line in scored[1].items()}
            bar.update(len(scored[0]))
    return scores, dict(sorted(problems.items()))


def open_detector(model: Path, device: str) -> Scorer:
    """The detector in a file, .safetensors or .onnx.

    Raises:
        BadInput: in one line, if it cannot be read or used on the device.
    """
    where = pick_device(device)
    if model.suffix != ".onnx":
        return Detector.load(model, where)
    from osscl_lite.export import OnnxDetector

    if where.type != "cpu":
        raise BadInput(f"{model}: an ONNX file is scored on the CPU; leave --device {device} out")
    return OnnxDetector.load(model)


def score_part(scorer: Scorer, clips: pd.DataFrame) -> tuple[np.ndarray, dict[int, str]]:
    """Scores of a part, NaN for clips that cannot be used, and row -> line about these."""
    scores, problems = np.full(len(clips), np.nan, np.float32), {}
    rows = np.arange(len(clips))
    with uncached():
        while len(rows):
            try:
                scores[rows] = scorer.score_clips(clips.iloc[rows].reset_index(drop=True))
                break
            except BadClips as error:
                problems |= {int(rows[row]): line for row, line in error.problems.items()}
                rows = np.delete(rows, list(error.problems))
    return scores, problems


def open_and_score(model: Path, device: str, clips: pd.DataFrame) -> tuple[np.ndarray, dict[int, str]]:
    """``score_part`` in a worker, which opens the detector once."""
    return score_part(_opened(model, device), clips)


_opened = lru_cache(maxsize=1)(open_detector)  # a worker lives no longer than one call of ``score_table``


def spread(
    function: Callable[..., Any], tasks: Sequence[tuple], workers: int, device: str
) -> Iterator[tuple[int, Any]]:
    """Call a function on each tuple of arguments: here in turn, or with several workers as Ray tasks.

    Args:
        function: one that can be imported; its arguments and result are plain data.
        tasks: the arguments.
        workers: tasks at a time; 1 is this process, without Ray.
        device: "cpu", or else a task takes one GPU where the cluster has some.

    Yields:
        Place in ``tasks`` and result, in the order in which they end; for a task whose worker died each time, the
        BadInput that says so.
    """
    if workers < 1:
        raise BadInput(f"workers: {workers} is too few, give 1 or more")
    if workers == 1 or not tasks:
        yield from ((place, function(*task)) for place, task in enumerate(tasks))
        return
    with cluster(workers) as ray:
        gpus = 1 if device != "cpu" and ray.cluster_resources().get("GPU") else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_in_worker)
        rest, running = enumerate(tasks), {}
        try:
            while True:
                for place, task in islice(rest, workers - len(running)):
                    running[remote.remote(os.getcwd(), function, task)] = place
                if not running:
                    return
                (ended,), _ = ray.wait(list(running), num_returns=1)
                place = running.pop(ended)
                try:
                    result = ray.get(ended)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    why = (str(error).splitlines() or [type(error).__name__])[0]
                    result = BadInput(f"its worker was lost {1 + RETRIES} times ({why}); run it again")
                yield place, result
        finally:
            for task in running:
                ray.cancel(task, force=True)


def _in_worker(folder: str, function: Callable[..., Any], task: tuple) -> Any:
    os.chdir(folder)  # relative paths mean what they mean where the command was given
    torch.set_num_threads(1)
    return function(*task)


@contextmanager
def cluster(workers: int) -> Iterator[ModuleType]:
    """Ray, connected: to the cluster it has already, the one at RAY_ADDRESS, or a new one of this machine alone.

    Raises:
        BadInput: in one line, if Ray is missing or there is no cluster.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise BadInput(f'several workers need Ray ({error}): pip install "osscl_lite[ray]"') from None
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else dict(num_cpus=workers, include_dashboard=False)
    host, _, port = (address or "").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, RuntimeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        where = f"RAY_ADDRESS {address}" if address else "Ray on this machine"
        raise BadInput(f"{where}: cannot be used ({why}); a cluster with a token needs RAY_AUTH_MODE=token") from None
    try:
        yield ray
    finally:
        ray.shutdown()
