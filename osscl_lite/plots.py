"""Figures of the chapters: axes with names and units, colours that colour-blind readers can tell apart.

Every function draws on the axes it is given, or on a new figure, and returns the axes. Matplotlib's own settings are
as before afterwards: the book's style holds while a function runs.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from osscl_lite import metrics
from osscl_lite.data.waveforms import SAMPLE_RATE

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#6B6B6B"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)  # Okabe and Ito's, yellow replaced by grey
NORMAL, ANOMALY = BLUE, VERMILION
MARKERS = ("o", "s", "^", "D", "v", "P", "p", "h")  # no cross: crosses are anomalous clips
STYLE = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "image.cmap": "viridis",
    "legend.frameon": False,
    "savefig.dpi": 100,
}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Run a drawing function in the book's style."""

    @wraps(draw)
    def drawing(*args: Any, **kwargs: Any) -> Any:
        # not rc_context: it would also put back "interactive", which a notebook switches on with the first figure
        before = {key: plt.rcParams[key] for key in STYLE}
        plt.rcParams.update(STYLE)
        try:
            return draw(*args, **kwargs)
        finally:
            plt.rcParams.update(before)

    return drawing


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return plt.subplots(figsize=(width, height))[1] if ax is None else ax


@styled
def panels(rows: int, columns: int, *, width: float = 5.2, height: float = 3.0, **options: Any) -> np.ndarray:
    """Axes of a new figure in the book's style, (rows, columns). Used from chapter 1 on.

    Args:
        rows, columns: how many panels.
        width, height: of the whole figure, inches.
        options: what ``plt.subplots`` takes, such as ``sharey=True``.
    """
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)[1]


@styled
def legend_below(ax: Axes, columns: int) -> None:
    """One legend below the figure, where a narrow screen has room: each entry of all panels once, "printed" first.
    Used from chapter 4 on.
    """
    found = [each.get_legend_handles_labels() for each in ax.figure.axes]
    entries = {label: handle for pair in found for handle, label in zip(*pair, strict=True)}
    ordered = sorted(entries, key=lambda label: label != "printed")
    for legend in filter(None, (each.get_legend() for each in ax.figure.axes)):
        legend.remove()
    ax.figure.legend([entries[label] for label in ordered], ordered, loc="outside lower center", ncols=columns)


def mel(hertz: ArrayLike) -> np.ndarray:
    """Slaney's Mel scale: linear up to 1 kHz, logarithmic above. Explained in chapter 2."""
    hertz = np.asarray(hertz, float)
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4))


@styled
def waveform(
    samples: ArrayLike, ax: Axes | None = None, *, title: str = "", colour: str = BLUE, sample_rate: int = SAMPLE_RATE
) -> Axes:
    """Sound pressure over time. Explained in chapter 1.

    Args:
        samples: (L,), int16 or float in [-1, 1].
    """
    ax = _axes(ax, 5.2, 2)
    samples = np.asarray(samples)
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / 32768
    ax.plot(np.arange(len(samples)) / sample_rate, samples, linewidth=0.5, color=colour)
    ax.set(xlabel="time (s)", ylabel="amplitude (full scale = 1)", title=title, xlim=(0, len(samples) / sample_rate))
    return ax


@styled
def log_mel(
    values: ArrayLike,
    ax: Axes | None = None,
    *,
    title: str = "",
    limits: tuple[float, float] | None = None,
    colour_bar: bool = True,
    hop: int = 512,
    sample_rate: int = SAMPLE_RATE,
) -> Axes:
    """A Log-Mel spectrogram: time across, Mel bands up with ticks in Hz, level as colour. Explained in chapter 2.

    Args:
        values: dB, (bands, frames).
        limits: lowest and highest level shown, dB; the same for figures that are to be compared.
        hop: samples between two frames.
    """
    ax = _axes(ax, 5.2, 3)
    values = np.asarray(values)
    bands, frames = values.shape
    low, high = limits or (float(values.min()), float(values.max()))
    seconds = frames * hop / sample_rate
    image = ax.imshow(
        values, origin="lower", aspect="auto", vmin=low, vmax=high, extent=(0, seconds, -0.5, bands - 0.5)
    )
    hertz = np.array([250, 500, 1000, 2000, 4000, 7000])
    ax.set_yticks(mel(hertz) / mel(sample_rate / 2) * (bands + 1) - 1, [f"{h:,}" for h in hertz])
    ax.set(xlabel="time (s)", ylabel="frequency (Hz, Mel scale)", title=title)
    if colour_bar:
        ax.figure.colorbar(image, ax=ax, label="level (dB)", pad=0.02)
    return ax


@styled
def roc(
    anomalous: ArrayLike, scores: ArrayLike, ax: Axes | None = None, *, title: str = "", max_fpr: float = 0.1
) -> Axes:
    """ROC curve with its AUC, and the strip that the partial AUC looks at. Explained in chapter 6.

    Args:
        anomalous: (N,), true where a clip is anomalous.
        scores: (N,), higher is more anomalous.
    """
    ax = _axes(ax, 4.2, 4)
    false_alarms, found, _ = roc_curve(np.asarray(anomalous, bool), scores)
    ax.axvspan(0, max_fpr, color=ORANGE, alpha=0.25, linewidth=0)
    ax.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="chance")
    area, partial = metrics.auc(anomalous, scores), metrics.pauc(anomalous, scores, max_fpr)
    ax.plot(false_alarms, found, color=BLUE, label=f"AUC {area:.3f}\npAUC {partial:.3f} (shaded)")
    ax.set(xlabel="normal clips raising an alarm (share)", ylabel="anomalous clips found (share)", title=title)
    ax.set(xlim=(0, 1), ylim=(0, 1.01))
    ax.legend(loc="lower right")
    return ax


@styled
def score_histogram(
    anomalous: ArrayLike,
    scores: ArrayLike,
    ax: Axes | None = None,
    *,
    title: str = "",
    threshold: float | None = None,
    bins: int = 30,
) -> Axes:
    """How the scores of normal and of anomalous clips spread. Explained in chapter 6.

    Args:
        anomalous: (N,), true where a clip is anomalous.
        scores: (N,), higher is more anomalous.
        threshold: drawn as a dashed line.
    """
    ax = _axes(ax, 5.2, 3)
    anomalous, scores = np.asarray(anomalous, bool), np.asarray(scores, float)
    edges = np.histogram_bin_edges(scores, bins)
    for rows, colour, element, label in (
        (~anomalous, NORMAL, "bars", "normal"),
        (anomalous, ANOMALY, "step", "anomalous"),
    ):
        label = f"{label} ({rows.sum()})"
        fill = element == "bars"
        seaborn.histplot(x=scores[rows], bins=edges, element=element, fill=fill, color=colour, ax=ax, label=label)
    if threshold is not None:
        ax.axvline(threshold, color=BLACK, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.2f}")
    ax.set(xlabel="score (higher = more anomalous)", ylabel="clips", title=title)
    ax.set_ylim(top=1.45 * ax.get_ylim()[1])  # room for the legend
    ax.legend(loc="upper left", fontsize=9)
    return ax


@styled
def learning_curves(
    log: pd.DataFrame, columns: Sequence[str], ax: Axes | None = None, *, title: str = "", unit: str = "loss (nats)"
) -> Axes:
    """Columns of a training log over the epochs. Explained in chapter 5.

    Args:
        log: one row an epoch, with a column ``epoch``.
        columns: what to draw, one line each; they share the unit.
    """
    ax = _axes(ax, 5.2, 3)
    for column, marker in zip(columns, MARKERS, strict=False):
        ax.plot(log["epoch"], log[column], marker=marker, markersize=4, label=column.replace("_", " "))
    ax.set(xlabel="epoch", ylabel=unit, title=title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax


@styled
def scatter(
    points: ArrayLike,
    groups: Sequence[str],
    ax: Axes | None = None,
    *,
    anomalous: ArrayLike | None = None,
    title: str = "",
    axis: str = "UMAP",
    named: bool = False,
) -> Axes:
    """A flat map of embeddings, one colour and one shape a group, anomalous clips as crosses. Explained in chapter 7.

    Args:
        points: (N, 2).
        groups: (N,), such as machine names; at most 8 different ones.
        anomalous: (N,), true where a clip is anomalous.
        axis: what made the map; its axes have no unit.
        named: write each group's name, without ``id_``, where its normal clips lie, in place of a legend.
    """
    ax = _axes(ax, 5.2, 4.5)
    points, groups = np.asarray(points), np.asarray(groups)
    anomalous = np.zeros(len(points), bool) if anomalous is None else np.asarray(anomalous, bool)
    names = sorted(set(groups))
    if len(names) > len(COLOURS):
        raise ValueError(f"{len(names)} groups: at most {len(COLOURS)} can be told apart by colour")
    for name, colour, marker in zip(names, COLOURS, MARKERS, strict=False):
        own, faulty = (groups == name) & ~anomalous, (groups == name) & anomalous
        ax.scatter(*points[own].T, s=22, color=colour, marker=marker, alpha=0.7, linewidths=0, label=name)
        ax.scatter(*points[faulty].T, s=26, color=colour, marker="x", linewidths=1.4)
        if named:
            words = ax.text(
                *np.median(points[own], axis=0), name.removeprefix("id_"), weight="bold", ha="center", va="center"
            )
            words.set_path_effects([withStroke(linewidth=3, foreground="white")])
    if anomalous.any():
        ax.scatter([], [], s=26, color=GREY, marker="x", label="anomalous")
    ax.set(xlabel=f"{axis} 1 (no unit)", ylabel=f"{axis} 2 (no unit)", title=title, xticks=[], yticks=[])
    if not named:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


@styled
def confusion(matrix: ArrayLike, names: Sequence[str], ax: Axes | None = None, *, title: str = "") -> Axes:
    """Which machine a classifier names (across) for the clips of each machine (down). Explained in chapter 6.

    Args:
        matrix: counts, (C, C); each row is shown as shares that add up to 1.
        names: (C,).
    """
    size = len(names)
    ax = _axes(ax, 2.2 + 0.42 * min(size, 14), 1.6 + 0.36 * min(size, 14))
    counts = np.asarray(matrix, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    written = np.vectorize(lambda share: f"{share:.2f}" if share >= 0.005 else "")(shares)
    seaborn.heatmap(
        shares,
        ax=ax,
        vmin=0,
        vmax=1,
        cmap="cividis",
        square=True,
        annot=written if size <= 14 else False,
        fmt="",
        annot_kws={"fontsize": 8},
        xticklabels=names,
        yticklabels=names,
        cbar_kws={"label": "share of the machine's clips", "pad": 0.02},
    )
    ax.tick_params(labelsize=9 if size <= 14 else 5, length=0)
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel="named by the classifier", ylabel="recorded from", title=title)
    return ax


@styled
def auc_intervals(table: pd.DataFrame, ax: Axes | None = None, *, title: str = "", axis: str = "AUC") -> Axes:
    """AUC of several systems side by side, with intervals where there are some, and the line of chance.
    Explained in chapter 6.

    Args:
        table: columns system, group, auc, and half_width (of the interval; NaN for none).
        axis: what was measured.
    """
    groups, systems = list(dict.fromkeys(table["group"])), list(dict.fromkeys(table["system"]))
    ax = _axes(ax, 5.2, 1.2 + 0.16 * len(systems) * len(groups) + 0.12 * len(groups))
    for k, (system, colour, marker) in enumerate(zip(systems, COLOURS, MARKERS, strict=False)):
        rows = table[table["system"] == system]
        at = rows["group"].map(groups.index) + (k - (len(systems) - 1) / 2) * 0.7 / len(systems)
        ax.errorbar(
            rows["auc"], at, xerr=rows["half_width"], fmt=marker, color=colour, markersize=6, capsize=3, label=system
        )
    ax.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(groups)), groups)
    ax.set(xlabel=f"{axis} (dotted: chance)", title=title, ylim=(len(groups) - 0.5, -0.5))
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


STEPS = {
    "plain": "plain PyTorch",
    "channels last": "+ channels last",
    "allocator": "+ memory",
    "kernels off": "+ our loop",
    "ours": "ours",
    "reference": "reference",
}


@styled
def speed_bars(case: dict[str, Any], ax: Axes | None = None, *, title: str = "") -> Axes:
    """Clips a second of the variants of one case, a bar each, and how many times the first.
    Explained in the appendix on speed.

    Args:
        case: of ``read_speed("step")`` or "loader"; thin lines are the quartiles over its rounds.
    """
    rows = case["variants"]
    ax = _axes(ax, 5, 0.5 + 0.3 * len(rows))
    for at, row in enumerate(rows):
        speed, (low, high) = row["clips_per_second"]["median"], row["clips_per_second"]["quartiles"]
        ax.barh(at, speed, height=0.7, color=VERMILION if row["variant"] == "ours" else SKY)
        ax.plot([low, high], [at, at], color=BLACK, linewidth=1)
        ratio = f" ({row['ratio']['median']:.2f} ×)" if "ratio" in row else ""
        ax.text(max(speed, high), at, f" {speed:.3g}{ratio}", va="center")
    ax.set_yticks(range(len(rows)), [STEPS[row["variant"]] for row in rows])
    ax.set(xlabel="clips a second", title=title, ylim=(len(rows) - 0.5, -0.5))
    ax.set_xlim(0, 1.4 * max(row["clips_per_second"]["quartiles"][1] for row in rows))  # room for the numbers
    return ax


@styled
def roofline(cases: Sequence[dict[str, Any]], ax: Axes | None = None, *, title: str = "") -> Axes:
    """Operations a second over operations a byte: the machine's roof, and what steps reach.
    Explained in the appendix on speed.

    Args:
        cases: of ``read_speed("roofline")`` with one number of threads; at most 8.
    """
    ax = _axes(ax, 5, 4.2)
    peak = max(case["peaks"]["float32"] for case in cases) / 1e9
    bandwidth = max(case["peaks"]["bytes_per_second"] for case in cases) / 1e9
    across = np.geomspace(0.5, 200, 200)
    ax.plot(across, np.minimum(peak, bandwidth * across), color=BLACK, label="roof of this machine")
    for case, colour, marker in zip(cases, COLOURS, MARKERS, strict=False):
        bound, work = case["bounds"]["float32"], case["step_flops"] / 1e9
        reached, most = work / case["step_seconds"]["median"], work / bound["least_seconds"]
        at = case["step_flops"] / bound["bytes"]
        name = f"{case['recipe'].removesuffix('-osscl')}, {case['seconds']:g} s"
        ax.plot([at, at], [reached, most], color=colour, linestyle=":", linewidth=1)
        ax.plot(at, most, marker, color=colour, markerfacecolor="white")
        ax.plot(at, reached, marker, color=colour, label=name)
    ax.set(xscale="log", yscale="log", title=title)
    ax.set(xlabel="operations a byte of memory traffic", ylabel="billion operations a second")
    ax.grid(color="0.9")
    ax.legend(loc="lower right")
    return ax


@styled
def growth(
    cases: Sequence[dict[str, Any]], grows: str, value: Callable[[dict[str, Any]], float], ax: Axes | None = None
) -> Axes:
    """How a measured value grows, plain and ours. Explained in the appendix on speed.

    Args:
        cases: of ``read_speed("growth")``.
        grows: "clips", "seconds" or "batch"; ``value``: what to draw of a case, from 0.
    """
    ax = _axes(ax, 4, 2.4)
    for variant, colour, marker in (("plain", SKY, "s"), ("ours", VERMILION, "o")):
        points = sorted((c[grows], value(c)) for c in cases if (c["grows"], c["variant"]) == (grows, variant))
        if points:
            ax.plot(*zip(*points, strict=True), marker=marker, markersize=4, color=colour, label=STEPS[variant])
    ax.set_xlabel({"clips": "clips", "seconds": "length of a clip (s)", "batch": "clips in a batch"}[grows])
    ax.set_ylim(0, None)
    return ax


@styled
def seed_curves(
    curves: dict[str, ArrayLike], ax: Axes | None = None, *, title: str = "", unit: str = "loss (nats)"
) -> Axes:
    """Mean over seeds of several ways to train, with the range of the first one's seeds.
    Explained in the appendix on speed.

    Args:
        curves: name -> (seeds, epochs).
    """
    ax = _axes(ax, 5, 3)
    for place, (name, colour, marker) in enumerate(zip(curves, COLOURS, ("s", "o", "^"), strict=False)):
        runs = np.asarray(curves[name], float)
        epochs = np.arange(1, runs.shape[1] + 1)
        if place == 0:
            ax.fill_between(epochs, runs.min(0), runs.max(0), color="0.85", label=f"{name}: its {len(runs)} seeds")
        ax.plot(epochs, runs.mean(0), marker=marker, markersize=7 - 2 * place, color=colour, linewidth=1, label=name)
    ax.set(xlabel="epoch", ylabel=unit, title=title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax


@styled
def id_similarity(cosines: ArrayLike, names: Sequence[str], ax: Axes | None = None, *, title: str = "") -> Axes:
    """Mean cosine between the embeddings of any two machine IDs, types side by side. Explained in chapter 8.

    Args:
        cosines: (C, C), from -1 to 1.
        names: such as "fan/id_00", (C,); the IDs of a type stand together.
    """
    ax = _axes(ax, 5.2, 5)
    types = [name.partition("/")[0] for name in names]
    image = ax.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.figure.colorbar(image, ax=ax, label="mean cosine", pad=0.02, shrink=0.7)
    edges = [0, *(place for place in range(1, len(types)) if types[place] != types[place - 1]), len(types)]
    for edge in edges[1:-1]:
        ax.axhline(edge - 0.5, color=BLACK, linewidth=0.6)
        ax.axvline(edge - 0.5, color=BLACK, linewidth=0.6)
    middles = [(low + high - 1) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    shown = [types[edge] for edge in edges[:-1]]
    ax.set_xticks(middles, shown, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(middles, shown)
    ax.tick_params(length=0)
    ax.set(title=title, xlabel="machine IDs, by type", ylabel="machine IDs, by type")
    return ax
