"""Sounds, pictures and sliders that need no kernel.

``player``, ``players`` and ``frame_player`` are fragments of HTML that carry all they need: they work on the published
page, in JupyterLab and in Colab. What there is to move through stands in ``explorers``.
"""

import base64
import io
import json
from collections.abc import Sequence
from hashlib import blake2b
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import soundfile
from IPython.display import HTML
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from osscl_lite.data.waveforms import SAMPLE_RATE

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
    soundfile.write(file, to_float(waveform), sample_rate, format="OGG", subtype="VORBIS")
    return file.getvalue()


def to_float(waveform: ArrayLike) -> np.ndarray:
    sound = np.asarray(waveform)
    if sound.ndim != 1 or not sound.size:
        raise ValueError(f"a player takes one sound as an array of shape (L,), not {sound.shape}")
    sound = sound / 32768 if np.issubdtype(sound.dtype, np.integer) else sound.astype(float)
    if not np.isfinite(sound).all():
        raise ValueError("the sound holds NaN or infinity")
    return sound


def amplified(sounds: Sequence[ArrayLike]) -> tuple[list[np.ndarray], float]:
    """The sounds times one common gain that brings the loudest sample to PEAK, and that gain in dB."""
    waveforms = [to_float(sound) for sound in sounds]
    loudest = max(np.abs(sound).max() for sound in waveforms)
    gain = PEAK / loudest if loudest > 0 else 1.0
    return [sound * gain for sound in waveforms], 20 * float(np.log10(gain))


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def audio_tag(sound: bytes, label: str, extra: str = "") -> str:
    name, source = escape(label), _uri("audio/ogg", sound)
    return f'<audio controls preload="metadata" aria-label="{name}" src="{source}" onplay="{ALONE}" {extra}></audio>'


def picture_tag(picture: bytes, alt: str) -> str:
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
    waveforms, gain = amplified([waveform for _, waveform in sounds])
    boxes = "".join(
        '<div style="flex:1 1 14rem;min-width:0;max-width:22rem">'
        f'<div style="font-weight:600">{escape(label)}</div>'
        f"{audio_tag(ogg(waveform, sample_rate), label, STRETCH)}</div>"
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
    sound = "" if sounds is None else f"<div>{audio_tag(sounds[start], names[start], LOOP)}</div>"
    if note:
        sound += f'<div style="font-size:.85em;opacity:.85">{escape(note)}</div>'
    return HTML(
        FRAME_PLAYER.format(
            uid=f"frames-{key}",
            title=escape(title),
            label=escape(labels[start]),
            last=len(frames) - 1,
            start=start,
            picture=picture_tag(frames[start], alts[start]),
            sound=sound,
            data=json.dumps(data).replace("</", "<\\/"),
        )
    )
