"""Sounds and pictures to move through: players that need no kernel, and explorers that need one.

``player``, ``players`` and ``frame_player`` are fragments of HTML that carry all they need: they work on the published
page, in JupyterLab and in Colab. The explorers compute anything anew and are made of core ipywidgets (7.7 or newer).
"""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from html import escape

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from osscl_lite import plots
from osscl_lite.data.waveforms import SAMPLE_RATE
from osscl_lite.losses import mixup
from osscl_lite.metrics import auc

PEAK = 0.8  # largest sample of a played sound: the recordings are far too quiet to be heard as they are
ALONE = "document.querySelectorAll('audio').forEach(other => { if (other !== this) other.pause(); })"  # one at a time
STRETCH = 'style="width:100%;min-width:0"'
LOOP = 'loop style="width:min(24rem,100%)"'


def webp(figure: Figure, quality: int = 80) -> bytes:
    """A figure as a WebP picture; the figure is closed, so that a notebook does not show it again."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", facecolor="white")
    plt.close(figure)
    raw.seek(0)
    Image.open(raw).convert("RGB").save(small, "WEBP", quality=quality)
    return small.getvalue()


def ogg(waveform: ArrayLike, sample_rate: int = SAMPLE_RATE) -> bytes:
    """A sound as an OGG Vorbis file.

    Args:
        waveform: (L,), int16 or float in [-1, 1], mono.

    Raises:
        ValueError: if it is not one channel, is empty or holds NaN or infinity.
    """
    file = io.BytesIO()
    soundfile.write(file, _float(waveform), sample_rate, format="OGG", subtype="VORBIS")
    return file.getvalue()


def _float(waveform: ArrayLike) -> np.ndarray:
    sound = np.asarray(waveform)
    if sound.ndim != 1 or not sound.size:
        raise ValueError(f"a player takes one sound as an array of shape (L,), not {sound.shape}")
    sound = sound / 32768 if np.issubdtype(sound.dtype, np.integer) else sound.astype(float)
    if not np.isfinite(sound).all():
        raise ValueError("the sound holds NaN or infinity")
    return sound


def _louder(sounds: Sequence[ArrayLike]) -> tuple[list[np.ndarray], float]:
    """The sounds times one common gain that brings the loudest sample to PEAK, and that gain in dB."""
    waveforms = [_float(sound) for sound in sounds]
    loudest = max(np.abs(sound).max() for sound in waveforms)
    gain = PEAK / loudest if loudest > 0 else 1.0
    return [sound * gain for sound in waveforms], 20 * float(np.log10(gain))


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _audio(sound: bytes, label: str, extra: str = "") -> str:
    name, source = escape(label), _uri("audio/ogg", sound)
    return f'<audio controls preload="metadata" aria-label="{name}" src="{source}" onplay="{ALONE}" {extra}></audio>'


def _picture(picture: bytes, alt: str) -> str:
    return f'<img src="{_uri("image/webp", picture)}" alt="{escape(alt)}" style="max-width:100%;height:auto">'


def _gain(gain: float, several: bool) -> str:
    return f"{'All played' if several else 'Played'} {gain:+.0f} dB against the recording{', alike' * several}."


def player(waveform: ArrayLike, label: str, *, sample_rate: int = SAMPLE_RATE) -> HTML:
    """One sound with a label that eyes and screen readers find; how much louder it is played stands below it.

    Args:
        waveform: (L,), int16 or float in [-1, 1], mono.
        label: such as "fan/id_04, normal (generated)".
    """
    return players([(label, waveform)], sample_rate=sample_rate)


def players(sounds: Sequence[tuple[str, ArrayLike]], *, sample_rate: int = SAMPLE_RATE) -> HTML:
    """Sounds in a row, all with the same gain, so that what was louder stays louder.

    Args:
        sounds: label and waveform (L,) of each.

    Raises:
        ValueError: if there is none.
    """
    if not sounds:
        raise ValueError("no sound to play")
    waveforms, gain = _louder([waveform for _, waveform in sounds])
    boxes = "".join(
        '<div style="flex:1 1 14rem;min-width:0;max-width:22rem">'
        f'<div style="font-weight:600">{escape(label)}</div>{_audio(ogg(waveform, sample_rate), label, STRETCH)}</div>'
        for (label, _), waveform in zip(sounds, waveforms, strict=True)
    )
    return HTML(
        f'<div class="players"><div style="display:flex;flex-wrap:wrap;gap:.8rem 1.2rem">{boxes}</div>'
        f'<div style="font-size:.85em;opacity:.85">{_gain(gain, len(sounds) > 1)}</div></div>'
    )


FRAME_PLAYER = """<div id="{uid}" class="frame-player" role="group" aria-label="{title}">
<div><label for="{uid}-slider">{title} = <output id="{uid}-value">{label}</output></label></div>
<div><input id="{uid}-slider" type="range" min="0" max="{last}" step="1" value="{start}" aria-valuetext="{label}"
 data-lm-suppress-shortcuts="true" style="width:min(24rem,100%)"></div>
<div>{picture}</div>
{sound}
</div>
<script>(() => {{
const data = {data}, root = document.getElementById("{uid}");
const slider = root.querySelector("input"), value = root.querySelector("output");
const picture = root.querySelector("img"), sound = root.querySelector("audio");
let resume = null;  // where to go on in the next sound; kept while several frames are passed quickly
slider.addEventListener("input", () => {{
  const k = Number(slider.value);
  picture.src = data.pictures[k];
  picture.alt = data.alts[k];
  value.textContent = data.labels[k];
  slider.setAttribute("aria-valuetext", data.labels[k]);
  if (!sound) return;
  if (!sound.paused) resume = sound.currentTime;
  sound.src = data.sounds[k];
  sound.setAttribute("aria-label", data.names[k]);
  sound.onloadedmetadata = () => {{
    if (resume === null) return;
    sound.currentTime = Math.min(resume, sound.duration);
    sound.play().catch(() => {{}});  // the next frame may come before this one plays
    resume = null;
  }};
}});
}})();</script>"""


def frame_player(
    frames: Sequence[bytes],
    labels: Sequence[str],
    *,
    sounds: Sequence[bytes] | None = None,
    alts: Sequence[str],
    title: str,
    start: int = 0,
    note: str = "",
) -> HTML:
    """A slider through frames computed beforehand, each a picture and perhaps a sound. Works without a kernel.

    The slider is the browser's own, so the arrow keys move it. A sound that plays goes on at the same time in the next
    frame, and starts again at its end.

    Args:
        frames: WebP pictures, see ``webp``.
        labels: the slider's value at each frame, such as "0.5".
        sounds: OGG files, see ``ogg``; one a frame or none at all.
        alts: what each picture shows, in words.
        title: what the slider moves, such as "λ".
        start: the frame shown first.
        note: a line below the sound.

    Raises:
        ValueError: if the numbers of frames, labels, sounds and alts differ, an alt is empty, or start is no frame.
    """
    counts = {len(frames), len(labels), len(alts), len(frames if sounds is None else sounds)}
    if counts != {len(frames)} or not frames:
        raise ValueError("frames, labels, alts and sounds must be equally many, and at least one")
    if not all(alt.strip() for alt in alts):
        raise ValueError("every frame needs a text that says what its picture shows")
    if not 0 <= start < len(frames):
        raise ValueError(f"start {start} is no frame: there are {len(frames)}")
    pictures = [_uri("image/webp", frame) for frame in frames]
    names = [f"Sound at {title} = {label}" for label in labels]
    data = dict(pictures=pictures, labels=list(labels), alts=list(alts), names=names)
    if sounds is not None:
        data["sounds"] = [_uri("audio/ogg", sound) for sound in sounds]
    # an OGG file carries a random number, so the name comes from the rest and is the same in every build
    key = blake2b(json.dumps([title, *labels, *alts, *pictures]).encode(), digest_size=5).hexdigest()
    sound = "" if sounds is None else f"<div>{_audio(sounds[start], names[start], LOOP)}</div>"
    if note:
        sound += f'<div style="font-size:.85em;opacity:.85">{escape(note)}</div>'
    return HTML(
        FRAME_PLAYER.format(
            uid=f"frames-{key}",
            title=escape(title),
            label=escape(labels[start]),
            last=len(frames) - 1,
            start=start,
            picture=_picture(frames[start], alts[start]),
            sound=sound,
            data=json.dumps(data).replace("</", "<\\/"),
        )
    )


def _mixed(pair: Tensor, log_mels: Tensor, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """One mixup of clip 0 with clip 1: waveform (L,) and dB Log-Mel (bands, frames)."""
    y, swap = torch.arange(2), torch.tensor([1, 0])
    waveforms, mixed, _, _ = mixup(pair, log_mels, y, lam, swap)
    return waveforms[0].numpy(), mixed[0].numpy()


def _pair(
    a: ArrayLike, b: ArrayLike, log_mel: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Two clips, their Log-Mels and the common range of levels, dB. The gain for listening is common too."""
    pair = torch.from_numpy(np.stack([_float(a), _float(b)])).float()
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
    louder, _ = _louder([*pair.numpy(), *(waveform for waveform, _ in mixes)])
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
        louder, _ = _louder([*pair.numpy(), waveform])
        ax = plots.log_mel(mixed, limits=limits, title=f"λ = {lam:.2f}")
        sound = _audio(ogg(louder[2]), f"Sound at λ = {lam:.2f}", LOOP)
        shown.value = f"<div>{_picture(webp(ax.figure), _mixup_words(lam, names))}</div><div>{sound}</div>"

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
