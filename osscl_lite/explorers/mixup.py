"""λ of mixup, to be moved. Explained in chapter 3."""

from collections.abc import Callable, Sequence

import ipywidgets
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from osscl_lite import plots
from osscl_lite.losses import mixup
from osscl_lite.widgets import LOOP, amplified, audio_tag, live, mp3, picture_tag, to_float, webp


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
        sounds=[mp3(waveform) for waveform in louder[2:]],
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
        sound = audio_tag(mp3(louder[2]), f"Sound at λ = {lam:.2f}", LOOP)
        return f"<div>{picture_tag(webp(ax.figure), _mixup_words(lam, names))}</div><div>{sound}</div>"

    return live(slider, show)
