"""From scores to alarms: thresholds from normal clips, and what each of them costs. Explained in chapter 6.

``threshold_frames`` needs no kernel once it is on a page; ``threshold_explorer`` does, and takes any threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.stats import gamma

from osscl_lite import metrics, plots
from osscl_lite.widgets import dropdowns, picture_tag, webp

ALL = "all IDs, one threshold"
BINS = 24
TICKS = np.array([0, 1, 4, 9, 16, 25, 36, 49, 64, 100])
COLOURS = 24


def thresholds(scores: ArrayLike, groups: ArrayLike, promise: float, way: str = "gamma") -> pd.Series:
    """The score that a share of normal clips exceeds, for each group. Explained in chapter 6.

    Args:
        scores: (N,), of normal clips, positive for "gamma".
        groups: (N,), such as the machine of each clip.
        promise: the share, between 0 and 1.
        way: "quantile" of the scores, or "gamma": quantile of the gamma distribution with their mean and variance.

    Returns:
        A Series by group.

    Raises:
        ValueError: for another way, or a promise that is no share.
    """
    if way not in ("quantile", "gamma") or not 0 < promise < 1:
        raise ValueError(f"no threshold by {way!r} at a promise of {promise}: take 'quantile' or 'gamma', and a share")
    of_group = pd.Series(np.asarray(scores, float)).groupby(np.asarray(groups))
    if way == "quantile":
        return of_group.quantile(1 - promise)
    mean, variance = of_group.mean(), of_group.var()
    return pd.Series(gamma.ppf(1 - promise, mean**2 / variance, scale=variance / mean), mean.index)


@dataclass(frozen=True)
class Rates:
    """False alarms and misses of some clips at their thresholds. Explained in chapter 6.

    Attributes:
        false: normal clips above the threshold.
        normal: all normal clips.
        missed: faulty clips below it.
        faulty: all faulty clips.
    """

    false: int
    normal: int
    missed: int
    faulty: int

    @classmethod
    def count(cls, clips: pd.DataFrame, limits: ArrayLike) -> "Rates":
        """Count the clips (columns score and label, N rows) with a score above ``limits``, (N,) or one number."""
        alarm, faulty = clips["score"].to_numpy() > np.asarray(limits), clips["label"].eq("anomaly").to_numpy()
        return cls(int((alarm & ~faulty).sum()), int((~faulty).sum()), int((~alarm & faulty).sum()), int(faulty.sum()))

    @property
    def false_rate(self) -> float:
        return self.false / max(self.normal, 1)

    @property
    def miss_rate(self) -> float:
        return self.missed / max(self.faulty, 1)

    def __str__(self) -> str:
        return (
            f"{self.false} of {self.normal} normal clips raise an alarm ({self.false_rate:.0%}), "
            f"{self.missed} of {self.faulty} faulty ones are missed ({self.miss_rate:.0%})"
        )


def written(score: float) -> str:
    """A score or threshold as the texts give it: small ones with one more digit."""
    return f"{score:.1f}" if score >= 1 else f"{score:.2f}"


def threshold_frames(test: pd.DataFrame, fresh: pd.DataFrame, promises: Sequence[float]) -> dict[str, list]:
    """Frames of thresholds by promised false alarm rate, for ``frame_player``. Explained in chapter 6.

    For each machine type there is one view of all IDs with one threshold, and one of each ID with its own. Both
    thresholds come from the same fresh normal clips, through ``thresholds``.

    Args:
        test: labelled clips with a column score, of the types to be shown; a score is 0 or more.
        fresh: normal clips with a score, of the same machines.
        promises: false alarm rates, each between 0 and 1.

    Returns:
        frames, labels (machine type, view, promise), alts and words.
    """
    found: dict[str, list] = dict(frames=[], labels=[], alts=[], words=[])
    for kind, clips in test.groupby("machine_type", sort=False):
        heard = fresh[fresh["machine_type"] == kind]
        ways = []
        for promise in promises:
            one = thresholds(heard["score"], heard["machine_type"], promise)[kind]
            ways.append((promise, one, thresholds(heard["score"], heard["machine_id"], promise)))
        for view in (ALL, *sorted(clips["machine_id"].unique())):
            for promise, one, own in ways:
                limits = pd.Series(one, own.index) if view == ALL else own
                figure = draw_thresholds(clips, view, limits, one)
                found["frames"].append(webp(figure, colours=COLOURS))
                found["labels"].append((kind, view, f"{promise:.0%}"))
                words = told(clips, view, limits)
                if view != ALL:
                    instead = Rates.count(clips[clips["machine_id"] == view], one)
                    words += f" With the one threshold of the type, {written(one)}: {instead}."
                found["words"].append(words)
                found["alts"].append(f"{ALT} {words}")
    return found


ALT = (
    "Above, the histogram of scores, normal clips upwards and faulty ones downwards, false alarms and misses in full "
    "colour, the threshold as a line. Below left, the scores of each machine ID with its threshold and its rates. "
    "Below right, the ROC curve with the strip of the partial AUC shaded and the point that the threshold picks."
)


def told(clips: pd.DataFrame, view: str, limits: pd.Series) -> str:
    """What thresholds do to the clips of one machine type, in words.

    Args:
        clips: of one type, with a score.
        view: ``ALL`` or a machine ID; ``limits``: a threshold for each ID.
    """
    kind = clips["machine_type"].iloc[0]
    if view != ALL:
        rates = Rates.count(clips[clips["machine_id"] == view], limits[view])
        return f"{kind}/{view}, threshold {written(limits[view])}: {rates}."
    each = {name: Rates.count(rows, limits[name]) for name, rows in clips.groupby("machine_id")}
    shares = pd.Series({name: rates.false_rate for name, rates in each.items()})
    together = Rates.count(clips, limits.iloc[0])
    return (
        f"All {kind} IDs, threshold {written(limits.iloc[0])}: {together}. False alarms by ID: from {shares.min():.0%} "
        f"({shares.idxmin()}) to {shares.max():.0%} ({shares.idxmax()})."
    )


@plots.styled
def draw_thresholds(clips: pd.DataFrame, view: str, limits: pd.Series, one: float) -> Figure:
    """Histogram, IDs and ROC curve of one machine type at some thresholds.

    Args:
        clips: of one type, with a score.
        view: whose histogram and curve, ``ALL`` or a machine ID.
        limits: a threshold for each ID; ``one``: the type's, a dotted line and an empty circle beside an ID's own.
    """
    figure = plt.figure(figsize=(6, 5.6), layout="none")  # places by hand: finding them would take longer than drawing
    scores = figure.add_axes((0.09, 0.6, 0.9, 0.345))
    machines = figure.add_axes((0.09, 0.09, 0.31, 0.35))
    curve = figure.add_axes((0.71, 0.09, 0.28, 0.35))
    kind = clips["machine_type"].iloc[0]
    shown = clips if view == ALL else clips[clips["machine_id"] == view]
    limit = limits.iloc[0] if view == ALL else limits[view]
    edges = np.linspace(0, np.sqrt(clips["score"].max()), BINS + 1)
    _histogram(scores, shown, limit, edges)
    if one != limit:
        scores.axvline(min(np.sqrt(one), edges[-1]), color=plots.GREY, linestyle=":", linewidth=1.5)
    scores.set_title(f"{f'all {kind} IDs' if view == ALL else f'{kind}/{view}'}: threshold {written(limit)}")
    _machines(machines, clips, view, limits, edges)
    faulty = shown["label"].eq("anomaly")
    plots.roc(faulty, shown["score"], curve)
    for bound, colour in ((one, "white"), (limit, plots.BLACK)):
        rates = Rates.count(shown, bound)
        point = rates.false_rate, 1 - rates.miss_rate
        curve.plot(*point, "o", color=colour, markeredgecolor=plots.BLACK, clip_on=False, zorder=3)
    area, partial = metrics.auc(faulty, shown["score"]), metrics.pauc(faulty, shown["score"])
    curve.set(xlabel="false alarm rate", ylabel="faulty clips found", yticks=[0, 0.5, 1])
    curve.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    curve.set_title(f"AUC {area:.2f}\npAUC {partial:.2f} (shaded)", fontsize=10)
    curve.get_legend().remove()
    return figure


def _histogram(ax: Axes, shown: pd.DataFrame, limit: float, edges: np.ndarray) -> None:
    """Normal clips upwards, faulty ones downwards, over the root of the score; what is wrong in full colour."""
    root, faulty = np.sqrt(shown["score"].to_numpy()), shown["label"].eq("anomaly").to_numpy()
    alarm, width, tallest = root > np.sqrt(limit), np.diff(edges), 0
    for rows, wrong, colour, sign in ((~faulty, alarm, plots.NORMAL, 1), (faulty, ~alarm, plots.ANOMALY, -1)):
        right, false = (np.histogram(root[rows & part], edges)[0] for part in (~wrong, wrong))
        ax.bar(edges[:-1], sign * right, width, align="edge", color=colour, alpha=0.3, linewidth=0)
        ax.bar(edges[:-1], sign * false, width, sign * right, align="edge", color=colour, linewidth=0)
        tallest = max(tallest, (right + false).max())
    ax.axvline(min(np.sqrt(limit), edges[-1]), color=plots.BLACK, linestyle="--", linewidth=1.5)
    ax.axhline(0, color=plots.BLACK, linewidth=0.8)
    ax.set(ylim=(-1.4 * tallest, 1.4 * tallest), ylabel="clips", xlabel="score (higher = more anomalous)")
    ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    ax.yaxis.get_major_locator().set_params(integer=True)
    words = dict(ha="right", bbox=dict(facecolor="white", linewidth=0, pad=1), transform=ax.transAxes)
    ax.text(0.995, 0.99, "normal; full: false alarms", color=plots.NORMAL, va="top", **words)
    ax.text(0.995, 0.01, "faulty; full: missed", color=plots.ANOMALY, va="bottom", **words)
    _score_axis(ax, edges)


def _score_axis(ax: Axes, edges: np.ndarray) -> None:
    """The root of the score makes room for the small ones; the numbers are the scores'."""
    ticks = TICKS[np.sqrt(TICKS) <= edges[-1]]
    ax.set_xticks(np.sqrt(ticks), [str(tick) for tick in ticks])
    ax.set_xlim(edges[0], edges[-1])


def _machines(ax: Axes, clips: pd.DataFrame, view: str, limits: pd.Series, edges: np.ndarray) -> None:
    """A row an ID: its clips, those on the wrong side filled, its threshold, and its rates beside it."""
    names = sorted(clips["machine_id"].unique())
    row = clips["machine_id"].map(names.index).to_numpy()
    faulty = clips["label"].eq("anomaly").to_numpy()
    alarm = (clips["score"] > clips["machine_id"].map(limits)).to_numpy()
    edge = np.where(faulty, plots.ANOMALY, plots.NORMAL)
    ax.scatter(np.sqrt(clips["score"]), row + np.where(faulty, 0.18, -0.18), s=9, linewidth=0.6, edgecolor=edge,
               facecolor=np.where(alarm != faulty, edge, "white"))  # fmt: skip
    beside, headers = ax.get_yaxis_transform(), ((1.3, "false\nalarms"), (1.62, "missed"))
    for at, text in headers:
        ax.text(at, -0.6, text, ha="right", va="bottom", fontsize=9, transform=beside)
    for place, (name, own) in enumerate(clips.groupby("machine_id")):
        weight = "bold" if view == name else "normal"
        bound = min(np.sqrt(limits[name]), edges[-1])
        ax.plot([bound, bound], [place - 0.5, place + 0.5], color=plots.BLACK, linewidth=1 + (view == name))
        rates = Rates.count(own, limits[name])
        for (at, _), share in zip(headers, (rates.false_rate, rates.miss_rate), strict=True):
            ax.text(at, place, f"{share:.0%}", ha="right", va="center", weight=weight, transform=beside)
    ax.set(ylim=(len(names) - 0.5, -0.5), xlabel="score")
    ax.set_yticks(range(len(names)), names)
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        label.set_weight("bold" if view == name else "normal")
    _score_axis(ax, edges)
    ax.set_xticks(ax.get_xticks()[::2])


def threshold_explorer(test: pd.DataFrame) -> ipywidgets.Widget:
    """Any threshold on any machine type, for all its IDs together or one of them: needs a kernel. Explained in
    chapter 6.

    The threshold is a score and stays while the machine changes, so that IDs can be compared at it.

    Args:
        test: labelled clips with a column score, which is 0 or more.
    """
    test = test[test["label"].isin(["normal", "anomaly"])]
    views = [
        (kind, view) for kind, clips in test.groupby("machine_type", sort=False)
        for view in (ALL, *sorted(clips["machine_id"].unique()))
    ]  # fmt: skip
    limit = ipywidgets.FloatSlider(
        value=round(float(test["score"].quantile(0.75)), 1), min=0.0, max=round(float(test["score"].max()), 1),
        step=0.1, readout_format=".1f", description="threshold", continuous_update=False,
    )  # fmt: skip
    shown, chosen = ipywidgets.HTML(), 0

    def show(at: int) -> None:
        nonlocal chosen
        chosen = at
        kind, view = views[at]
        clips = test[test["machine_type"] == kind]
        limits = pd.Series(limit.value, sorted(clips["machine_id"].unique()))
        words = told(clips, view, limits)
        picture = picture_tag(webp(draw_thresholds(clips, view, limits, limit.value)), f"{ALT} {words}")
        shown.value = f"<div>{picture}</div><p>{words}</p>"

    controls = dropdowns(views, ("type", "clips"), show)
    limit.observe(lambda _: show(chosen), names="value")
    return ipywidgets.VBox([*controls, limit, shown])
