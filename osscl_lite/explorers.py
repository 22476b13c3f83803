"""What can be moved in the book: frames computed beforehand, for ``widgets.frame_player``, and live explorers.

Here mixup and the head's reduction R; temperature and margin stand in ``loss_explorers``.

The frames need no kernel. The explorers compute anything anew, need one, and are made of core
ipywidgets (7.7 or newer).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import ipywidgets
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from osscl_lite import plots
from osscl_lite.detector import Detector
from osscl_lite.losses import mixup
from osscl_lite.metrics import auc
from osscl_lite.perturbation import unit_sphere
from osscl_lite.widgets import LOOP, amplified, audio_tag, ogg, picture_tag, to_float, webp


def _mixed(pair: Tensor, log_mels: Tensor, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """One mixup of clip 0 with clip 1: waveform (L,) and dB Log-Mel (bands, frames)."""
    y, swap = torch.arange(2), torch.tensor([1, 0])
    waveforms, mixed, _, _ = mixup(pair, log_mels, y, lam, swap)
    return waveforms[0].numpy(), mixed[0].numpy()


def _pair(
    a: ArrayLike, b: ArrayLike, log_mel: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Two clips, their Log-Mels and the common range of levels, dB. The gain for listening is common too."""
    pair = torch.from_numpy(np.stack([to_float(a), to_float(b)])).float()
    log_mels = log_mel(pair)
    return pair, log_mels, (float(log_mels.min()), float(log_mels.max()))


def _mixup_words(lam: float, names: tuple[str, str]) -> str:
    return (
        f"Log-Mel spectrogram of {lam:.0%} {names[0]} mixed with {1 - lam:.0%} {names[1]}: time from left to right, "
        "frequency upwards, level in dB as colour."
    )


def mixup_frames(
    waveform_a: ArrayLike,
    waveform_b: ArrayLike,
    lams: Sequence[float],
    log_mel: Callable[[Tensor], Tensor],
    names: tuple[str, str] = ("clip a", "clip b"),
) -> dict[str, list]:
    """Pictures and sounds of two clips at several λ, for ``frame_player(**frames, title="λ")``. Explained in chapter 3.

    As in the recipe, the sound mixes the waveforms and the picture mixes the dB Log-Mels, which is not the Log-Mel of
    the mixed sound.

    Args:
        waveform_a, waveform_b: (L,), int16 or float in [-1, 1].
        lams: share of the first clip, each in [0, 1].
        log_mel: the front end, (B, L) -> (B, bands, frames) in dB.
        names: what the clips are called in the texts.

    Returns:
        frames, labels, sounds and alts; the sounds share one gain.
    """
    pair, log_mels, limits = _pair(waveform_a, waveform_b, log_mel)
    mixes = [_mixed(pair, log_mels, lam) for lam in lams]
    louder, _ = amplified([*pair.numpy(), *(waveform for waveform, _ in mixes)])
    frames = []
    for lam, (_, picture) in zip(lams, mixes, strict=True):
        ax = plots.log_mel(picture, limits=limits, title=f"λ = {lam:g}: {lam:.0%} {names[0]}, {1 - lam:.0%} {names[1]}")
        frames.append(webp(ax.figure))
    return dict(
        frames=frames,
        labels=[f"{lam:g}" for lam in lams],
        sounds=[ogg(waveform) for waveform in louder[2:]],
        alts=[_mixup_words(lam, names) for lam in lams],
    )


def mixup_explorer(
    waveform_a: ArrayLike,
    waveform_b: ArrayLike,
    log_mel: Callable[[Tensor], Tensor],
    names: tuple[str, str] = ("clip a", "clip b"),
) -> ipywidgets.Widget:
    """The same at any λ, computed while the slider moves: needs a kernel. Arguments as in ``mixup_frames``.
    Explained in chapter 3.
    """
    pair, log_mels, limits = _pair(waveform_a, waveform_b, log_mel)
    slider = ipywidgets.FloatSlider(
        value=0.5, min=0.0, max=1.0, step=0.01, description="λ", readout_format=".2f", continuous_update=False
    )

    def show(lam: float) -> str:
        waveform, mixed = _mixed(pair, log_mels, lam)
        louder, _ = amplified([*pair.numpy(), waveform])
        ax = plots.log_mel(mixed, limits=limits, title=f"λ = {lam:.2f}")
        sound = audio_tag(ogg(louder[2]), f"Sound at λ = {lam:.2f}", LOOP)
        return f"<div>{picture_tag(webp(ax.figure), _mixup_words(lam, names))}</div><div>{sound}</div>"

    return live(slider, show)


def live(slider: ipywidgets.Widget, show: Callable[[float], str]) -> ipywidgets.Widget:
    """A slider and below it what belongs to its value, as HTML."""
    shown = ipywidgets.HTML(show(slider.value))
    slider.observe(lambda change: setattr(shown, "value", show(change["new"])), names="value")
    return ipywidgets.VBox([slider, shown])


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
