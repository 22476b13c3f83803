"""Measurements in processes of their own: an allocator, threads and peak memory belong to a whole process.

A parent starts workers, one a variant, and asks one after the other for a block of work, so that all see the same
machine. One line of JSON each way: ``{"do": "epoch"}`` gives ``{"seconds": ..., "loss": ...}``.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch  # before the package, which sets how its threads wait: a plain program does not
from tqdm import tqdm

from benchmarks.noise import noise_clips
from benchmarks.setting import Setting
from osscl_lite import Recipe

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "plain": "plain PyTorch: float32, eager, contiguous, torch's defaults for memory and threads",
    "channels last": "plain, with the network in channels-last memory format",
    "allocator": "as before, with the package's memory: large blocks kept, on large pages (Linux)",
    "kernels off": "osscl_lite.training.Run without its compiled CPU kernels: as before, and what else it does",
    "ours": "osscl_lite.training.Run with them: what fit runs",
    "reference": "reference-style loader (soundfile and torchaudio per item, no workers) and the plain step",
}
OURS = ("ours", "kernels off")
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"


class Worker:
    """A process that holds one training, ready to run epochs of it.

    Args:
        setting: device and folders.
        recipe: what it trains.
        variant: one of ``VARIANTS``.
        count: clips of noise; ``files``: how many of them are different.
        threads: CPU threads.
    """

    def __init__(self, setting: Setting, recipe: Recipe, variant: str, count: int, threads: int,
                 files: int = 64) -> None:  # fmt: skip
        job = dict(
            recipe=recipe.to_dict(), variant=variant, count=count, files=files, device=setting.device,
            work=str(setting.work),
        )  # fmt: skip
        environment = os.environ | dict(OMP_NUM_THREADS=str(threads), OSSCL_LITE_CACHE=str(setting.work / "cache"))
        if variant not in OURS:  # undo what importing the package sets, which this process has done
            environment |= {} if variant == "allocator" else {LARGE_PAGES: "0"}
            for word in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
                environment.pop(word, None)
        noise_clips(setting.work, count, recipe.seconds, files)  # written here: workers start side by side
        self.count, self.log = count, tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, cwd=ROOT, env=environment, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.log.close()

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Have one thing done and wait for it.

        Raises:
            RuntimeError: if the process ended, with the last line it wrote.
        """
        try:
            self.process.stdin.write(json.dumps(dict(do=what, **more)) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self.process.wait()
            self.log.seek(0)
            last = self.log.read().decode(errors="replace").strip().splitlines()[-1:] or ["killed"]
            raise RuntimeError(f"worker ended with status {status}: {last[0]}")
        return json.loads(line)

    def clips_per_second(self) -> float:
        """Of one epoch."""
        return self.count / self.ask("epoch")["seconds"]


class Job:
    """The worker's side: makes the training when it is first asked for, so that ``load`` can be timed before."""

    def __init__(self, job: dict[str, Any]) -> None:
        from osscl_lite.data import machine_names
        from osscl_lite.features import LogMel
        from osscl_lite.training import pick_device

        self.job, self.recipe, self.run = job, Recipe.from_dict(job["recipe"]), None
        self.device, self.memory_kept = pick_device(job["device"]), ExitStack()
        self.clips = noise_clips(Path(job["work"]), job["count"], self.recipe.seconds, job["files"])
        self.machines = machine_names(self.clips)
        LogMel().to(self.device)  # libraries and the GPU's context are there before anything is timed

    def start(self) -> dict[str, Any]:
        """Build the training: read the clips, bring them to the device, compute the Log-Mels, make the network."""
        from benchmarks.plain import PlainRun
        from benchmarks.reference_loader import ReferenceRun
        from osscl_lite import cpu
        from osscl_lite.training import Run

        if self.job["variant"] in (*OURS, "allocator"):
            self.memory_kept.enter_context(cpu.kept_memory())
        before, began = self.memory(), time.perf_counter()
        given = (self.recipe, self.clips, self.machines, self.device)
        match self.job["variant"]:
            case "ours" | "kernels off":
                if self.job["variant"] == "kernels off":
                    cpu.fits = lambda *_: False
                self.run = Run(*given, None)
            case "reference":
                self.run = ReferenceRun(*given)
            case variant:
                self.run = PlainRun(*given, channels_last=variant != "plain")
        self.wait()
        return dict(seconds=time.perf_counter() - began, before=before)

    def epoch(self) -> dict[str, Any]:
        """Train on every clip once."""
        if self.run is None:
            self.start()
        self.wait()
        began = time.perf_counter()
        ours = self.job["variant"] in OURS
        loss = self.run.train_epoch(tqdm(disable=True))["train_loss"] if ours else self.run.train_epoch()
        self.wait()
        return dict(seconds=time.perf_counter() - began, loss=loss)

    def load(self, folder: str, cold: bool) -> dict[str, Any]:
        """Seconds of ``load_waveforms`` into a cache folder; ``cold``: the system forgets the files first (Linux)."""
        from osscl_lite import load_waveforms

        if cold and hasattr(os, "posix_fadvise"):
            for path in set(self.clips["path"]):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        load_waveforms(self.clips, self.recipe.seconds, folder)
        return dict(seconds=time.perf_counter() - began)

    def memory(self) -> dict[str, Any]:
        """Peak bytes so far: of the process, and of the GPU's tensors where there is one."""
        peak = dict(process=peak_memory())
        if self.device.type == "cuda":
            peak |= dict(gpu=torch.cuda.max_memory_allocated(), gpu_reserved=torch.cuda.max_memory_reserved())
        return peak

    def profile(self) -> dict[str, Any]:
        from benchmarks.profiler import profile

        return profile(self.epoch, self.device.type)

    def peaks(self, quick: bool) -> dict[str, Any]:
        from benchmarks.roofline import peaks

        return peaks(self.device, quick)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory too, from before this process's program began
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    job = Job(json.loads(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(job, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # taking a large process apart takes seconds


if __name__ == "__main__":
    main()
