"""Memory, and time a clip, over the number of clips, their length and the batch."""

from typing import Any

from benchmarks.setting import Report, Setting, shapes
from benchmarks.worker import Worker
from osscl_lite import Recipe, replace


def series(setting: Setting) -> list[tuple[str, Recipe, int]]:
    """What grows, the recipe, and the number of clips."""
    base = setting.recipes()[0]
    if setting.quick:
        return [("batch", replace(base, batch_size=16), 32)]
    some = 512 if setting.device == "cpu" else 4096
    return [
        *(("clips", replace(base, width=16), count) for count in (500, 2000, 8000)),
        *(("seconds", replace(base, seconds=length), some // 2) for length in (1.0, 2.0, 5.0, 10.0)),
        *(("batch", replace(base, batch_size=batch), some) for batch in (16, 64, 256)),
    ]


def measure(setting: Setting) -> None:
    """Ours and plain, one thread."""
    report = Report(
        setting, "growth",
        "peak memory and milliseconds a clip of training, over number of clips (at width 16), length and batch size",
        "one process a point: two epochs, of which the second is timed; memory is the peak of the process, of which"
        " `before` is what Python and the libraries take (GPU: peak of the tensors' memory too)",
    )  # fmt: skip
    threads = setting.threads[0]
    for grows, recipe, count in series(setting):
        for variant in ("ours",) if setting.quick else ("ours", "plain"):
            report.case(
                dict(grows=grows, clips=count, variant=variant, threads=threads) | shapes(recipe),
                lambda recipe=recipe, count=count, variant=variant: point(setting, recipe, count, variant, threads),
            )


def point(setting: Setting, recipe: Recipe, count: int, variant: str, threads: int) -> dict[str, Any]:
    """Two epochs in a process of their own."""
    with Worker(setting, recipe, variant, count, threads) as worker:
        start = worker.ask("start")
        worker.ask("epoch")
        seconds = worker.ask("epoch")["seconds"]
        peak = worker.ask("memory")
    return dict(
        milliseconds_per_clip=1000 * seconds / count, start_seconds=start["seconds"],
        peak_bytes=peak, before_bytes=start["before"],
    )  # fmt: skip
