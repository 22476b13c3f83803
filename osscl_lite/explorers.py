"""What can be moved in the book: frames computed beforehand, for ``widgets.frame_player``, and live explorers.

The frames need no kernel. The explorers compute anything anew, need one, and are made of core
ipywidgets (7.7 or newer).
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import ipywidgets
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from osscl_lite import plots
from osscl_lite.losses import mixup
from osscl_lite.metrics import auc
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
    """The same at any λ, computed while the slider moves: needs a kernel. Arguments as in ``mixup_frames``."""
    pair, log_mels, limits = _pair(waveform_a, waveform_b, log_mel)
    slider = ipywidgets.FloatSlider(
        value=0.5, min=0.0, max=1.0, step=0.01, description="λ", readout_format=".2f", continuous_update=False
    )
    shown = ipywidgets.HTML()

    def show(change: dict) -> None:
        lam = change["new"]
        waveform, mixed = _mixed(pair, log_mels, lam)
        louder, _ = amplified([*pair.numpy(), waveform])
        ax = plots.log_mel(mixed, limits=limits, title=f"λ = {lam:.2f}")
        sound = audio_tag(ogg(louder[2]), f"Sound at λ = {lam:.2f}", LOOP)
        shown.value = f"<div>{picture_tag(webp(ax.figure), _mixup_words(lam, names))}</div><div>{sound}</div>"

    slider.observe(show, names="value")
    show({"new": slider.value})
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
    types = list(dict.fromkeys(name for area in areas.values() for name in area))
    frames, alts = [], []
    for reduction, scored in usable.items():
        name = _reduction_name(reduction)
        upper, lower = plots.panels(2, 1, width=5.6, height=5.2)[:, 0]
        for other in areas.values():
            upper.plot([other.get(t, np.nan) for t in types], range(len(types)), "o", color="0.8", markersize=4)
        upper.plot([areas[reduction].get(t, np.nan) for t in types], range(len(types)), "D", color=plots.BLUE)
        upper.axvline(0.5, color=plots.GREY, linestyle=":", linewidth=1)
        upper.set_yticks(range(len(types)), types)
        upper.set(xlabel="mean AUC of the IDs (dotted: chance)", title=name, ylim=(len(types) - 0.5, -0.5))
        plots.score_histogram(scored["label"].eq("anomaly"), scored["score"], lower, title="all test clips", bins=bins)
        frames.append(webp(upper.figure))
        mean = np.mean(list(areas[reduction].values()))
        each = ", ".join(f"{t} {value:.2f}" for t, value in areas[reduction].items())
        alts.append(
            f"{name}: mean per-ID AUC {mean:.2f} over all types ({each}), grey dots for the other detectors, "
            "above the histograms of the scores of normal and anomalous test clips."
        )
    return dict(frames=frames, labels=["no head" if r is None else str(r) for r in results], alts=alts)


def _reduction_name(reduction: int | None) -> str:
    return "no perturbation head" if reduction is None else f"R = {reduction}"


def _areas(scored: pd.DataFrame) -> dict[str, float]:
    """Mean over the IDs of each type of the AUC per ID."""
    per_id = {
        machine: auc(group["label"].eq("anomaly"), group["score"])
        for machine, group in scored.groupby(["machine_type", "machine_id"], sort=False)
    }
    types = dict.fromkeys(machine_type for machine_type, _ in per_id)
    return {t: float(np.nanmean([area for (own, _), area in per_id.items() if own == t])) for t in types}


def reduction_explorer(evaluate: Callable[[int], Figure], *, start: int = 64, largest: int = 128) -> ipywidgets.Widget:
    """Any reduction R behind a button, since each R trains a detector of its own: needs a kernel.

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
