"""``python -m benchmarks``: measure, one JSON file a section, each written as soon as it is known."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks import curve, end_to_end, epoch, growth, profiler, roofline, step, systems
from benchmarks.setting import RECIPES, Report, Setting
from osscl_lite.errors import BadInput
from osscl_lite.training import pick_device


def inference(setting: Setting) -> None:
    """Latency of one clip and clips a second, in this process."""
    whole(
        setting, "inference", "latency of one clip and clips a second: PyTorch, torch.compile, ONNX Runtime",
        "in this process; see benchmarks/inference.py", "benchmarks.inference",
    )  # fmt: skip


def parallel(setting: Setting) -> None:
    """Two processes against one."""
    whole(
        setting, "parallel", "loss and gradient of two processes against those of one with the same batch",
        "two CPU processes under torchrun; see benchmarks/parallel.py", "benchmarks.parallel",
    )  # fmt: skip


def whole(setting: Setting, section: str, what: str, how: str, module: str) -> None:
    """A section that a module's own ``measure`` does in one piece, always on the CPU."""
    report = Report(setting, section, what, how)
    if setting.quick or setting.device != "cpu":
        report.skipped.append(dict(reason="not part of --quick" if setting.quick else "of the CPU only"))
        report.write()
    else:
        report.case(dict(part="all"), lambda: import_module(module).measure())


SECTIONS: dict[str, Callable[[Setting], None]] = {
    "step": step.measure,
    "pair": step.measure_pair,
    "loader": end_to_end.measure,
    "epoch": epoch.measure,
    "roofline": roofline.measure,
    "profile": profiler.measure,
    "growth": growth.measure,
    "inference": inference,
    "parallel": parallel,
    "curve": curve.measure,
    "systems": systems.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the sections asked for; returns the exit status."""
    words = argparse.ArgumentParser(
        "python -m benchmarks", description="Measure the speed of osscl_lite, as ratios taken in one run.",
        epilog="example:\n  python -m benchmarks --only step,loader --to osscl_lite/results/speed",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    words.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    words.add_argument("--only", default=",".join(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    words.add_argument("--recipes", default=",".join(RECIPES), help=f"some of {','.join(RECIPES)}")
    words.add_argument("--quick", action="store_true", help="tiny sizes: shows that all works, measures nothing")
    words.add_argument("--minutes", type=float, default=float("inf"), help="begin no case after this long")
    words.add_argument("--work", type=Path, help="folder for files and caches, 12 GB for a GPU's epoch")
    words.add_argument("--to", type=Path, required=True, help="folder for the JSON files")
    options = words.parse_args(arguments)
    chosen, recipes = options.only.split(","), tuple(options.recipes.split(","))
    for word, given, known in (("--only", chosen, SECTIONS), ("--recipes", recipes, RECIPES)):
        if unknown := sorted(set(given) - set(known)):
            print(f"{word} {','.join(unknown)}: choose of {','.join(known)}", file=sys.stderr)
            return 2
    try:
        pick_device(options.device)
        with tempfile.TemporaryDirectory(prefix="osscl-benchmarks-") as temporary:
            work = (options.work or Path(temporary)).absolute()
            work.mkdir(parents=True, exist_ok=True)
            os.environ["OSSCL_LITE_CACHE"] = str(work / "cache")
            ends = time.monotonic() + 60 * options.minutes
            setting = Setting(options.device, options.quick, options.to, work, recipes, ends)
            for name in chosen:
                SECTIONS[name](setting)
    except (BadInput, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the cases measured so far are written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
