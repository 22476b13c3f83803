"""The reduction R of the perturbation head, to be moved. Explained in chapter 4."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import ipywidgets
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from osscl_lite import plots
from osscl_lite.detector import Detector
from osscl_lite.metrics import auc
from osscl_lite.perturbation import unit_sphere
from osscl_lite.widgets import webp


def reduction_frames(results: Mapping[int | None, pd.DataFrame], bins: int = 30) -> dict[str, list]:
    """One picture for each reduction R of the head, for ``frame_player(**frames, title="R")``. Explained in chapter 4.

    Each R is a detector trained for itself: a head cannot be made wider or narrower after training.

    Args:
        results: R, or None for a detector without head -> a table of clips with a column score; rows of split test
            labelled normal or anomaly count.

    Returns:
        frames, labels and alts.
    """
    usable = {r: t[t["split"].eq("test") & t["label"].isin(["normal", "anomaly"])] for r, t in results.items()}
    areas = {reduction: _areas(scored) for reduction, scored in usable.items()}
    frames, alts = [], []
    for reduction, scored in usable.items():
        name = _reduction_name(reduction)
        upper, lower = plots.panels(2, 1, width=5.6, height=5.2)[:, 0]
        _draw_areas(upper, areas[reduction], list(areas.values()))
        upper.set_title(name)
        plots.score_histogram(scored["label"].eq("anomaly"), scored["score"], lower, title="all test clips", bins=bins)
        frames.append(webp(upper.figure))
        alts.append(
            f"{name}: {_areas_in_words(areas[reduction])}, grey dots for the other detectors, "
            "above the histograms of the scores of normal and anomalous test clips."
        )
    return dict(frames=frames, labels=["no head" if r is None else str(r) for r in results], alts=alts)


def _reduction_name(reduction: int | None) -> str:
    return "no perturbation head" if reduction is None else f"R = {reduction}"


def _areas(scored: pd.DataFrame) -> dict[str, float]:
    """Mean over the IDs of each type of the AUC per ID; by ID where there is one type only."""
    per_id = {
        machine: auc(group["label"].eq("anomaly"), group["score"])
        for machine, group in scored.groupby(["machine_type", "machine_id"], sort=False)
    }
    types = dict.fromkeys(machine_type for machine_type, _ in per_id)
    if len(types) == 1:
        return {"/".join(machine): area for machine, area in per_id.items()}
    return {t: float(np.nanmean([area for (own, _), area in per_id.items() if own == t])) for t in types}


def _draw_areas(ax: Axes, areas: dict[str, float], others: Sequence[dict[str, float]]) -> None:
    names = list(dict.fromkeys(name for area in [*others, areas] for name in area))
    for other in others:
        ax.plot([other.get(t, np.nan) for t in names], range(len(names)), "o", color="0.8", markersize=4)
    ax.plot([areas.get(t, np.nan) for t in names], range(len(names)), "D", color=plots.BLUE)
    ax.axvline(0.5, color=plots.GREY, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(names)), names)
    measured = "AUC" if "/" in names[0] else "mean AUC of the IDs"
    ax.set(xlabel=f"{measured} (dotted: chance)", ylim=(len(names) - 0.5, -0.5))


def _areas_in_words(areas: dict[str, float]) -> str:
    each = ", ".join(f"{name} {value:.2f}" for name, value in areas.items())
    return f"mean per-ID AUC {np.mean(list(areas.values())):.2f} ({each})"


@dataclass(frozen=True)
class Squeeze:
    """What a head does to test clips. Explained in chapter 4.

    Attributes:
        machines: names of the IDs, (C,).
        id_cosines: mean cosine between normal clips of two IDs, (C, C): before the head below the diagonal, after it
            on the diagonal and above.
        turned: cosine between a clip's embeddings before and after the head, (N,).
        own, nearest: cosine between a clip and the centre of its own ID, the nearest other centre, (N,).
        normal: (N,), true where a clip is normal.
        areas: AUC by machine type, or by ID where there is one type only.
    """

    machines: list[str]
    id_cosines: Tensor
    turned: Tensor
    own: Tensor
    nearest: Tensor
    normal: Tensor
    areas: dict[str, float]


@torch.no_grad()
def squeeze(model: Detector, x: Tensor, z: Tensor, clips: pd.DataFrame) -> Squeeze:
    """Look at embeddings before and after the head of one detector. Explained in chapter 4.

    Args:
        model: the detector.
        x: embeddings before the head, (N, E).
        z: behind it, on the unit sphere, (N, E).
        clips: the N test clips, normal or anomalous; a normal one at least of each machine that the detector knows.
    """
    labels, normal = model.machine_labels(clips), torch.tensor(clips["label"].eq("normal").to_numpy())

    def between(directions: Tensor) -> Tensor:
        means = [directions[normal & (labels == label)].mean(0) for label in range(len(model.machines))]
        return torch.stack(means) @ torch.stack(means).T

    to_centres = z @ unit_sphere(model.class_weight).T  # (N, C)
    return Squeeze(
        machines=model.machines,
        id_cosines=between(z).triu() + between(unit_sphere(x)).tril(-1),
        turned=(unit_sphere(x) * z).sum(1),
        own=to_centres.gather(1, labels[:, None])[:, 0],
        nearest=to_centres.scatter(1, labels[:, None], -torch.inf).max(1).values,
        normal=normal,
        areas=_areas(clips.assign(score=model.score_embeddings(z, labels).numpy())),
    )


@plots.styled
def draw_squeeze(name: str, seen: Squeeze, others: Sequence[Squeeze] = ()) -> tuple[Figure, str]:
    """IDs, cosines and AUC of one detector, AUC of others as grey dots: the picture, and the picture in words.
    Explained in chapter 4.
    """
    rows = plots.panels(3, 1, width=4.7, height=8.8, gridspec_kw=dict(height_ratios=[4, 1, 1.4]))[:, 0]
    ids, cosines, areas = rows
    plots.id_similarity(seen.id_cosines.numpy(), seen.machines, ids, title=f"{name}\n◣ before the head, ◥ after it")
    ids.images[0].colorbar.remove()  # below, it leaves the matrix its width
    ids.figure.colorbar(ids.images[0], ax=ids, location="bottom", label="mean cosine", shrink=0.8, pad=0.02)
    ids.set_ylabel("")
    if len(seen.machines) == len(seen.areas):  # one type
        ids.set_xticks(range(len(seen.machines)), seen.machines)
        ids.set_yticks(range(len(seen.machines)), seen.machines)
    values = {"before and after": seen.turned, "own centre": seen.own, "nearest other": seen.nearest}
    medians = {}
    for clips, shift, colour, marker, side in (
        (seen.normal, -0.16, plots.NORMAL, "o", "normal"),
        (~seen.normal, 0.16, plots.ANOMALY, "X", "anomalous"),
    ):
        spread = np.quantile([each[clips].numpy() for each in values.values()], [0.1, 0.5, 0.9], axis=1)
        at = np.arange(len(values)) + shift
        cosines.hlines(at, spread[0], spread[2], color=colour, linewidth=3, alpha=0.5)
        cosines.plot(spread[1], at, marker, color=colour, markersize=8, label=f"{side} clips")
        medians[side] = spread[1]
    cosines.set_yticks(range(len(values)), values)
    cosines.set(xlim=(-1.05, 1.05), ylim=(2.5, -0.5), xlabel="cosine (marker: median; bar: 80 % of the clips)")
    cosines.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    _draw_areas(areas, seen.areas, [other.areas for other in others])
    other_ids = torch.ones(seen.id_cosines.shape, dtype=torch.bool)
    before, after = (float(seen.id_cosines[rows].mean()) for rows in (other_ids.tril(-1), other_ids.triu(1)))
    each = "; ".join(
        f"{place} {normal:z.2f} and {anomalous:z.2f}"
        for place, normal, anomalous in zip(values, *medians.values(), strict=True)
    )
    return ids.figure, (
        f"{name}. Above, {len(seen.machines)} by {len(seen.machines)} cosines between machine IDs: on average "
        f"{before:z.2f} before the head and {after:z.2f} after it. In the middle, median cosines of normal and of "
        f"anomalous clips: {each}. Below, {_areas_in_words(seen.areas)}."
    )


def squeeze_frames(seen: Mapping[int | None, Squeeze]) -> dict[str, list]:
    """A picture of each reduction R, for ``frame_player(**frames, title="R")``. Explained in chapter 4.

    Args:
        seen: R, or None for a detector without head -> what ``squeeze`` saw in a detector trained with that R.

    Returns:
        frames, labels and alts.
    """
    drawn = [draw_squeeze(_reduction_name(r), one, list(seen.values())) for r, one in seen.items()]
    return dict(
        frames=[webp(figure) for figure, _ in drawn],
        labels=["no head" if reduction is None else str(reduction) for reduction in seen],
        alts=[words for _, words in drawn],
    )


def reduction_explorer(evaluate: Callable[[int], Figure], *, start: int = 64, largest: int = 128) -> ipywidgets.Widget:
    """Any reduction R behind a button, since each R trains a detector of its own: needs a kernel. Explained in
    chapter 4.

    Args:
        evaluate: trains and scores a detector with that R and draws what is to be seen.
    """
    slider = ipywidgets.IntSlider(value=start, min=1, max=largest, description="R", continuous_update=False)
    button = ipywidgets.Button(description="Train with this R")
    picture, said = ipywidgets.Image(format="webp"), ipywidgets.HTML()

    def run(_: ipywidgets.Button) -> None:
        button.disabled = True
        said.value = f"Training with R = {slider.value} …"
        try:
            picture.value = webp(evaluate(slider.value))
            said.value = f"R = {slider.value}"
        except Exception as error:  # ipywidgets would only log it, and the reader would wait for ever
            said.value = f"R = {slider.value} failed: {escape(str(error))}"
        finally:
            button.disabled = False

    button.on_click(run)
    return ipywidgets.VBox([ipywidgets.HBox([slider, button]), said, picture])
