"""Single clips to look at and to hear: what the front end makes of them, and where their score lies.

``clip_frames`` needs no kernel once it is on a page; ``clip_explorer`` does, and takes any clip of a table.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import PurePath

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from osscl_lite import plots
from osscl_lite.data import load_waveforms, take
from osscl_lite.data.waveforms import uncached
from osscl_lite.detector import Detector
from osscl_lite.explorers.alarms import written
from osscl_lite.widgets import LOOP, amplified, audio_tag, dropdowns, mp3, picture_tag, webp

CHANNELS = ("Log-Mel", "Tgram", "TFgram")
NORMAL = "normal"
SPREAD = 2.5  # standard deviations of a row, up and down, that the colours of a learned picture span
QUALITY = 40


def clip_frames(model: Detector, clips: pd.DataFrame, usual: Mapping[str, ArrayLike]) -> dict[str, list]:
    """A frame for each clip: pictures, sound and score, for ``frame_player``. Explained in chapters 2 and 6.

    The clips of one machine share the gain of their sound and the colours of their Log-Mels, so that they can be
    compared.

    Args:
        model: a detector with the front end of three pictures, "tfstgram".
        clips: the clips to show, N of them, no two of one machine and one condition.
        usual: machine, such as "fan/id_00" -> scores of its normal test clips, (M,).

    Returns:
        frames, labels (machine type, machine ID, condition), sounds, alts and words, each of N.
    """
    clips = clips.reset_index(drop=True)
    sounds, channels, scores = _heard(model, clips)
    machines = clips["machine_type"] + "/" + clips["machine_id"]
    found: dict[str, list] = dict(frames=[], labels=[], sounds=[], alts=[], words=[])
    for machine, rows in clips.groupby(machines, sort=False).groups.items():
        louder, gain = amplified(list(sounds[rows]))
        limits = _range(channels[rows, 0])
        for row, sound in zip(rows, louder, strict=True):
            words = f"{_name(clips.iloc[row])}: {place(scores[row], usual[machine], condition(clips.iloc[row]))}"
            figure = draw_clip(channels[row], scores[row], usual[machine], limits)
            found["frames"].append(webp(figure, QUALITY))
            found["labels"].append((*machine.split("/"), condition(clips.iloc[row])))
            found["sounds"].append(mp3(sound))
            found["alts"].append(f"{ALT} {_name(clips.iloc[row])}.")
            found["words"].append(f"{words} Played {gain:+.0f} dB.")
    return found


ALT = (
    "Above, the Log-Mel spectrogram, time to the right, frequency upwards, level as colour. Below it side by side the "
    "learned pictures Tgram and TFgram, a row a filter. At the bottom the clip's score as a diamond among the scores "
    "of the normal test clips of its machine."
)


def condition(clip: pd.Series) -> str:
    """What a clip is called among its machine's: its fault if there is a name for it, else its label."""
    return clip.get("fault", "") or {"anomaly": "faulty"}.get(clip["label"], clip["label"])


def place(score: float, usual: ArrayLike, kind: str) -> str:
    """A score in words, among those of the normal test clips of its machine; a normal clip is one of them itself."""
    usual = np.asarray(usual)
    others = len(usual) - (kind == NORMAL)
    below = int((usual < score - 1e-3).sum())  # the same clip scored in another batch differs in the last digits
    whose = "the other" if kind == NORMAL else "its"
    return f"score {written(score)}, higher than {below} of {whose} {others} normal test clips."


def _name(clip: pd.Series) -> str:
    severity = f", severity {clip['severity']:.2f}" if clip.get("severity", 0) > 0 else ""
    generated = " (generated)" if clip["path"].startswith("hall://") else ""
    return f"{clip['machine_type']}/{clip['machine_id']}, {condition(clip)}{severity}{generated}"


@torch.no_grad()
def _heard(model: Detector, clips: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of N clips: int16 waveforms (N, L), the front end's pictures (N, channels, bands, frames), scores (N,)."""
    sounds = load_waveforms(clips, model.recipe.seconds)
    waveforms = take(sounds, np.arange(len(clips)), model.device)
    channels = model.front_end(waveforms, model.log_mel(waveforms))
    scores = model.score(waveforms, model.machine_labels(clips))
    return sounds, channels.cpu().numpy(), scores.cpu().numpy()


def _range(log_mels: np.ndarray) -> tuple[float, float]:
    return float(np.percentile(log_mels, 1)), float(np.percentile(log_mels, 99.8))


@plots.styled
def draw_clip(channels: np.ndarray, score: float, usual: ArrayLike, limits: tuple[float, float]) -> Figure:
    """The front end's pictures of a clip above its score among those of normal clips.

    Args:
        channels: (C, bands, frames), the Log-Mel first; of the learned ones each row is shown on a scale of its own.
        score: the clip's; ``usual``: (M,), of normal clips of its machine.
        limits: lowest and highest level of the Log-Mel, dB.
    """
    figure = plt.figure(figsize=(5.6, 4.6), layout="none")  # places by hand: finding them would take longer
    upper = figure.add_axes((0.13, 0.62, 0.85, 0.32))
    plots.log_mel(channels[0], upper, title=CHANNELS[0], limits=limits, colour_bar=False)
    upper.set(xlabel="", ylabel="frequency (Hz)")
    for channel, name, left in zip(channels[1:], CHANNELS[1:], (0.13, 0.58), strict=False):
        ax = figure.add_axes((left, 0.305, 0.4, 0.21))
        rows = (channel - channel.mean(1, keepdims=True)) / (channel.std(1, keepdims=True) + 1e-9)
        extent = (*upper.get_xlim(), 0, len(rows))
        ax.imshow(rows, origin="lower", aspect="auto", extent=extent, vmin=-SPREAD, vmax=SPREAD)
        ax.set(title=name, xlabel="time (s)", ylabel="filter" if left < 0.5 else "", yticks=[])
    for ax in figure.axes:
        ax.images[0].set_interpolation("bicubic")  # smooth, it takes half the bytes
        ax.xaxis.set_major_locator(MaxNLocator(5 if ax is upper else 4, steps=[1, 2, 5, 10]))
    _score_line(figure.add_axes((0.13, 0.11, 0.85, 0.065)), score, np.asarray(usual))
    return figure


def _score_line(ax: Axes, score: float, usual: np.ndarray) -> None:
    """The score as a diamond on the line of the normal ones."""
    ax.plot(usual, np.zeros(len(usual)), "o", color=plots.NORMAL, alpha=0.5, markersize=6, markeredgewidth=0)
    ax.plot(score, 0, "D", color=plots.BLACK, markerfacecolor=plots.ORANGE, markersize=8, clip_on=False)
    right = 1.05 * max(usual.max(), score, 1)
    ax.set(ylim=(-1, 1), xlim=(-0.03 * right, right), yticks=[])
    ax.set(xlabel="score of this clip (diamond) and of this machine's normal test clips")
    ax.spines["left"].set_visible(False)


def clip_explorer(model: Detector, clips: pd.DataFrame) -> ipywidgets.Widget:
    """Any test clip of a table: needs a kernel. Explained in chapters 2 and 6.

    Args:
        model: a detector that listens to waveforms and was trained on these machines.
        clips: rows of ``load_clips``, generated or real; those of split test are offered, of machines that have
            normal ones.
    """
    test = clips[clips["split"] == "test"]
    normal = test["label"].eq(NORMAL).groupby([test["machine_type"], test["machine_id"]]).transform("any")
    test = test[normal].reset_index(drop=True)
    shown = ipywidgets.HTML()

    @cache
    def of_machine(machine_type: str, machine_id: str) -> tuple[np.ndarray, tuple[float, float]]:
        """Scores of a machine's normal test clips, and the range of levels in the first of them."""
        own = test["machine_type"].eq(machine_type) & test["machine_id"].eq(machine_id)
        normal = test[own & test["label"].eq(NORMAL)]
        return model.score_clips(normal), _range(_heard(model, normal.head(3))[1][:, 0])

    def path(clip: pd.Series) -> tuple[str, ...]:
        severity = f", severity {clip['severity']:.2f}" if clip.get("severity", 0) > 0 else ""
        return clip["machine_type"], clip["machine_id"], condition(clip), PurePath(clip["path"]).stem + severity

    paths = [path(clip) for _, clip in test.iterrows()]
    order = sorted(range(len(paths)), key=lambda row: paths[row][2] != NORMAL)  # normal first, else as they come

    def show(at: int) -> None:
        clip = test.iloc[order[at]]
        with uncached():
            usual, limits = of_machine(clip["machine_type"], clip["machine_id"])
            sounds, channels, scores = _heard(model, test.iloc[[order[at]]])
        (sound,), gain = amplified(list(sounds))
        words = f"{_name(clip)}: {place(scores[0], usual, condition(clip))} Played {gain:+.0f} dB."
        picture = picture_tag(webp(draw_clip(channels[0], scores[0], usual, limits)), f"{ALT} {words}")
        shown.value = f"<div>{picture}</div><p>{words}</p><div>{audio_tag(mp3(sound), _name(clip), LOOP)}</div>"

    return ipywidgets.VBox(
        [*dropdowns([paths[row] for row in order], ("type", "ID", "condition", "clip"), show), shown]
    )
