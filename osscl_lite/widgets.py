"""Sounds, pictures and sliders that need no kernel.

``player``, ``players`` and ``frame_player`` are fragments of HTML that carry all they need: they work on the published
page, in JupyterLab and in Colab. What there is to move through stands in ``explorers``. ``dropdowns``
and ``live`` are for where a kernel runs.
"""

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from html import escape

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import soundfile
from IPython.display import HTML
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image
from scipy.signal import resample_poly

from osscl_lite.data.waveforms import SAMPLE_RATE

PEAK = 0.8  # largest sample of a played sound: the recordings are far too quiet to be heard as they are
ALONE = "document.querySelectorAll('audio').forEach(other => { if (other !== this) other.pause(); })"  # one at a time
STRETCH = 'style="width:100%;min-width:0"'
LOOP = 'loop style="width:min(24rem,100%)"'
NUMBER = re.compile(r"[-+−]?\d")


def webp(figure: Figure, quality: int = 80, colours: int | None = None) -> bytes:
    """A figure as a WebP picture; the figure is closed, so that a notebook does not show it again. Used from
    chapter 1 on.

    Args:
        quality: 0 to 100.
        colours: of a drawing with few of them, how many to keep; without blur then, and in fewer bytes.
    """
    canvas, small = FigureCanvasAgg(figure), io.BytesIO()
    figure.set_facecolor("white")
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    if colours:
        picture = picture.quantize(colours, kmeans=1, dither=Image.Dither.NONE).convert("RGB")
    picture.save(small, "WEBP", quality=quality, lossless=bool(colours))
    return small.getvalue()


def mp3(waveform: ArrayLike, sample_rate: int = SAMPLE_RATE) -> bytes:
    """A sound as an MP3 file, which all browsers play, those of older phones too. Used from chapter 1 on.

    Of at least 32 kHz: at 16 kHz the encoder would leave out what is above 7 kHz.

    Args:
        waveform: (L,), int16 or float in [-1, 1], mono.

    Raises:
        ValueError: if it is not one channel, is empty or holds NaN or infinity.
    """
    file, times = io.BytesIO(), max(1, 32_000 // sample_rate)
    sound = resample_poly(to_float(waveform), times, 1)
    soundfile.write(file, sound, times * sample_rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
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
    name, source = escape(label), _uri("audio/mpeg", sound)
    return f'<audio controls preload="metadata" aria-label="{name}" src="{source}" onplay="{ALONE}" {extra}></audio>'


def picture_tag(picture: bytes, alt: str) -> str:
    return f'<img src="{_uri("image/webp", picture)}" alt="{escape(alt)}" style="max-width:100%;height:auto">'


def _gain(gain: float, several: bool) -> str:
    return f"{'All played' if several else 'Played'} {gain:+.0f} dB against the stored clip{'s, alike' * several}."


def player(waveform: ArrayLike, label: str, *, sample_rate: int = SAMPLE_RATE) -> HTML:
    """One sound with a label that eyes and screen readers find; how much louder it is played stands below it.
    Used from chapter 1 on.

    Args:
        waveform: (L,), int16 or float in [-1, 1], mono.
        label: such as "fan/id_04, normal (generated)".
    """
    return players([(label, waveform)], sample_rate=sample_rate)


def players(sounds: Sequence[tuple[str, ArrayLike]], *, sample_rate: int = SAMPLE_RATE) -> HTML:
    """Sounds in a row, all with the same gain, so that what was louder stays louder. Used from chapter 1 on.

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
        f"{audio_tag(mp3(waveform, sample_rate), label, STRETCH)}</div>"
        for (label, _), waveform in zip(sounds, waveforms, strict=True)
    )
    return HTML(
        f'<div class="players"><div style="display:flex;flex-wrap:wrap;gap:.8rem 1.2rem">{boxes}</div>'
        f'<div style="font-size:.85em;opacity:.85">{_gain(gain, len(sounds) > 1)}</div></div>'
    )


SLIDER = """<label for="{uid}-{k}">{title} = <output aria-live="off">{label}</output></label><br>
<input id="{uid}-{k}" type="range" min="0" max="{last}" step="1" value="{at}" aria-valuetext="{label}"
 autocomplete="off" data-lm-suppress-shortcuts="true" style="width:100%">"""
SELECT = """<label for="{uid}-{k}">{title}</label><br>
<select id="{uid}-{k}" autocomplete="off" data-lm-suppress-shortcuts="true"
 style="font:inherit;padding:.2rem;max-width:100%">{options}</select>"""
WORDS = '<p role="status" aria-live="polite" style="margin:.3rem 0;min-height:3em">{}</p>'
FRAME_PLAYER = """<div id="{uid}" class="frame-player" role="group" aria-label="{title}" style="text-align:left">
<div style="display:flex;flex-wrap:wrap;gap:.3rem 1.5rem;margin-bottom:.4rem">{controls}</div>
{sound}
<div>{picture}</div>
{words}
</div>
<script>(() => {{
const data = {data}, root = document.getElementById("{uid}");
const controls = [...root.querySelectorAll("input, select")], picture = root.querySelector("img");
const words = root.querySelector("[role=status]"), sound = root.querySelector("audio");
const chosen = [...data.labels[{start}]];
let resume = null;  // where to go on in the next sound; kept while several frames are passed quickly
const fits = (path, length) => path.slice(0, length).every((label, k) => label === chosen[k]);
const options = (k) => [...new Set(data.labels.filter((path) => fits(path, k)).map((path) => path[k]))];
const show = (frame) => {{
  picture.src = data.pictures[frame];
  picture.alt = data.alts[frame];
  if (words) words.textContent = data.words[frame];
  if (!sound) return;
  if (!sound.paused) resume = sound.currentTime;
  sound.src = data.sounds[frame];
  sound.setAttribute("aria-label", data.names[frame]);
  sound.onloadedmetadata = () => {{
    if (resume === null) return;
    sound.currentTime = Math.min(resume, sound.duration);
    sound.play().catch(() => {{}});  // the next frame may come before this one plays
    resume = null;
  }};
}};
const offer = (control, k) => {{  // what there is after the choices before it; the same label if it is among that
  const labels = options(k);
  if (!labels.includes(chosen[k])) chosen[k] = labels[0];
  if (control.tagName === "SELECT") {{
    control.replaceChildren(...labels.map((label) => new Option(label, label, false, label === chosen[k])));
  }} else {{
    control.max = labels.length - 1;
    control.value = labels.indexOf(chosen[k]);
    tell(control, k);
  }}
}};
const tell = (slider, k) => {{
  slider.parentElement.querySelector("output").textContent = chosen[k];
  slider.setAttribute("aria-valuetext", chosen[k]);
}};
controls.forEach((control, k) => control.addEventListener("input", () => {{
  chosen[k] = control.tagName === "SELECT" ? control.value : options(k)[control.value];
  if (control.tagName !== "SELECT") tell(control, k);
  controls.forEach((later, at) => at > k && offer(later, at));
  show(data.labels.findIndex((path) => fits(path, path.length)));
}}));
}})();</script>"""


def frame_player(
    frames: Sequence[bytes],
    labels: Sequence[str] | Sequence[tuple[str, ...]],
    *,
    sounds: Sequence[bytes] | None = None,
    alts: Sequence[str],
    title: str | tuple[str, ...],
    start: int = 0,
    words: Sequence[str] | None = None,
    note: str = "",
) -> HTML:
    """Frames computed beforehand, each a picture and perhaps a sound and a text, to move through without a kernel.
    Explained in chapter 3.

    With one string a label and one title there is one slider. With tuples there is a control for each of their places:
    a slider where all labels begin with a number, else a list to choose from. What a control offers depends on the
    choices before it, so the tuples make a tree:

        labels=[("fan", "normal", "0"), ("fan", "rubbing", "1"), ...], title=("machine", "fault", "severity")

    The controls are the browser's own, so the arrow keys move them. A sound that plays goes on at the same time in the
    next frame, and starts again at its end.

    Args:
        frames: WebP pictures, see ``webp``.
        labels: the controls' values at each frame, such as "0.5"; no two frames have the same.
        sounds: MP3 files, see ``mp3``; one a frame or none at all.
        alts: what each picture shows, in words.
        title: what the slider moves, such as "λ", or a title for each place of the tuples.
        start: the frame shown first.
        words: what is to be said of each frame, below its picture; screen readers read it out when it changes.
        note: a line below all.

    Raises:
        ValueError: if the numbers of frames, labels, sounds, alts and words differ, an alt is empty, two labels are the
            same, a label has no value for each title, or start is no frame.
    """
    counts = {len(part) for part in (frames, labels, alts, sounds, words) if part is not None}
    if counts != {len(frames)} or not frames:
        raise ValueError("frames, labels, alts, sounds and words must be equally many, and at least one")
    if not all(alt.strip() for alt in alts):
        raise ValueError("every frame needs a text that says what its picture shows")
    if not 0 <= start < len(frames):
        raise ValueError(f"start {start} is no frame: there are {len(frames)}")
    titles = (title,) if isinstance(title, str) else tuple(title)
    paths = [(label,) if isinstance(label, str) else tuple(label) for label in labels]
    if wrong := [path for path in paths if len(path) != len(titles)]:
        raise ValueError(f"{len(titles)} titles, but a label is {wrong[0]}")
    if len(set(paths)) < len(paths):
        raise ValueError("two frames have the same label")
    pictures = [_uri("image/webp", frame) for frame in frames]
    where = [", ".join(f"{name} = {label}" for name, label in zip(titles, path, strict=True)) for path in paths]
    names = [f"Sound at {place}" for place in where]
    data = dict(pictures=pictures, labels=paths, alts=list(alts))
    if words is not None:
        data["words"] = list(words)
    if sounds is not None:
        data |= dict(sounds=[_uri("audio/mpeg", sound) for sound in sounds], names=names)
    key = blake2b(json.dumps([titles, paths, alts, pictures]).encode(), digest_size=5).hexdigest()
    said = "" if words is None else WORDS.format(escape(words[start]))
    if note:
        said += f'<div style="font-size:.85em;opacity:.85">{escape(note)}</div>'
    return HTML(
        FRAME_PLAYER.format(
            uid=f"frames-{key}",
            title=escape(", ".join(titles)),
            controls="".join(_control(f"frames-{key}", titles, paths, start, k) for k in range(len(titles))),
            start=start,
            picture=picture_tag(frames[start], alts[start]),
            sound="" if sounds is None else f"<div>{audio_tag(sounds[start], names[start], LOOP)}</div>",
            words=said,
            data=json.dumps(data).replace("</", "<\\/"),
        )
    )


def _control(uid: str, titles: tuple[str, ...], paths: Sequence[tuple[str, ...]], start: int, k: int) -> str:
    """Control k of a frame player, with what it offers at first."""
    chosen, labels = paths[start][k], _offered(paths, paths[start][:k])
    if len(titles) == 1 or all(NUMBER.match(path[k]) for path in paths):
        at, last = labels.index(chosen), len(labels) - 1
        control = SLIDER.format(uid=uid, k=k, title=escape(titles[k]), label=escape(chosen), last=last, at=at)
        return f'<div style="flex:1 1 14rem;max-width:24rem">{control}</div>'
    options = "".join(f"<option{' selected' * (label == chosen)}>{escape(label)}</option>" for label in labels)
    return f"<div>{SELECT.format(uid=uid, k=k, title=escape(titles[k]), options=options)}</div>"


def _offered(paths: Sequence[tuple[str, ...]], chosen: tuple[str, ...]) -> list[str]:
    """What the next control offers after the choices before it."""
    return list(dict.fromkeys(path[len(chosen)] for path in paths if path[: len(chosen)] == chosen))


def dropdowns(
    paths: Sequence[tuple[str, ...]], titles: Sequence[str], show: Callable[[int], None]
) -> list[ipywidgets.Dropdown]:
    """The lists of a frame player live: what each offers depends on the choices before it. Needs a kernel.

    Args:
        paths: the values of all controls for each thing that can be shown, no two the same.
        titles: a title for each place of the tuples.
        show: called with the place of the chosen path, at once and whenever the choice changes.
    """
    controls = [ipywidgets.Dropdown(description=title) for title in titles]
    busy = False

    def offer(first: int) -> None:
        nonlocal busy
        busy = True  # new options change values, too
        for at in range(first, len(controls)):
            before, labels = controls[at].value, _offered(paths, tuple(control.value for control in controls[:at]))
            controls[at].options = labels
            controls[at].value = before if before in labels else labels[0]
        busy = False
        show(paths.index(tuple(control.value for control in controls)))

    for place, control in enumerate(controls):
        control.observe(lambda _, after=place + 1: None if busy else offer(after), names="value")
    offer(0)
    return controls


def live(slider: ipywidgets.Widget, show: Callable[[float], str]) -> ipywidgets.Widget:
    """A slider and below it what belongs to its value, as HTML."""
    shown = ipywidgets.HTML(show(slider.value))
    slider.observe(lambda change: setattr(shown, "value", show(change["new"])), names="value")
    return ipywidgets.VBox([slider, shown])
