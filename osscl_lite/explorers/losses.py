"""What the temperature and the margin do, to be moved: frames computed beforehand, and live explorers.

Both are explained in chapter 3. All slopes come from the package's own losses by automatic differentiation.
"""

from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from numpy.typing import ArrayLike
from torch import Tensor

from osscl_lite import plots
from osscl_lite.losses import arcface_logits, noisy_supcon
from osscl_lite.recipe import Recipe
from osscl_lite.widgets import live, picture_tag, webp

TEMPERATURES = (0.005, 1.0)  # lowest and highest that can be chosen
SMALLEST = 1e-6  # slopes below are drawn here
SCALE = Recipe.scale  # s of every recipe
Draw = Callable[[float], tuple[Figure, str]]  # a value -> its picture, and the picture in words


def _live_picture(slider: ipywidgets.Widget, draw: Draw) -> ipywidgets.Widget:
    def show(value: float) -> str:
        figure, words = draw(value)
        return picture_tag(webp(figure), words)

    return live(slider, show)


def _frames(draw: Draw, values: Sequence[float], marked: Mapping[float, str]) -> dict[str, list]:
    drawn = [draw(value) for value in values]
    return dict(
        frames=[webp(figure) for figure, _ in drawn],
        labels=[_label(value, marked) for value in values],
        alts=[words for _, words in drawn],
    )


def _label(value: float, marked: Mapping[float, str]) -> str:
    return f"{value:.3g}" + (f" ({marked[value]})" if value in marked else "")


def pulls(z: Tensor, y: Tensor, anchor: int, temperature: float) -> Tensor:
    """Slopes of a batch's ``noisy_supcon`` in the cosines of its clips to one of them, the anchor. Explained in
    chapter 3.

    The anchor's own term is in it, and its part in the terms of the others. The gradient of the loss at the anchor is
    the sum of the other embeddings, each times its slope.

    Args:
        z: embeddings on the unit sphere, (B, E).
        y: machine labels, (B,).
        anchor: which clip.

    Returns:
        d loss / d cosine, (B,): below 0 where a clip pulls the anchor, above where it pushes, 0 at the anchor.
    """
    change = torch.zeros(len(z), dtype=torch.double, requires_grad=True)  # of each cosine to the anchor
    # further coordinate j: 1 at the anchor, change[j] at clip j, else 0, so that no other cosine changes
    further = torch.diag(change).index_fill(0, torch.tensor([anchor]), 1.0)  # (B, B)
    loss = noisy_supcon(torch.cat([z.detach().double(), further], dim=1), y, temperature)
    return torch.autograd.grad(loss, change)[0]


def _batch_view(z: Tensor, machines: Sequence[str], anchor: int, marked: Mapping[float, str]) -> Draw:
    machines = np.asarray(machines)
    z, y = z.detach().double(), torch.from_numpy(pd.factorize(machines)[0])
    negative = y != y[anchor]
    positive = ~negative & (torch.arange(len(z)) != anchor)
    cosines = z @ z[anchor]
    grid = np.geomspace(*TEMPERATURES, 40)
    losses, alike = ([noisy_supcon(each, y, tau).item() for tau in grid] for each in (z, z[:1].expand_as(z)))

    @plots.styled
    def draw(tau: float) -> tuple[Figure, str]:
        slopes, loss = pulls(z, y, anchor, tau), noisy_supcon(z, y, tau).item()
        push, order = slopes[negative].sort(descending=True)
        needed = int((push.cumsum(0) < 0.9 * push.sum()).sum()) + 1
        first = int(negative.nonzero()[order[0]])
        name = f"τ = {_label(tau, marked)}"
        upper, lower = plots.panels(2, 1, width=4.7, height=6.2, gridspec_kw=dict(height_ratios=[2, 1]))[:, 0]
        for rows, fill, edge, marker, label in (
            (negative, plots.VERMILION, plots.VERMILION, "^", "negatives, push"),
            (positive & (slopes <= 0), plots.BLUE, plots.BLUE, "o", "positives, pull"),
            (positive & (slopes > 0), "white", plots.BLUE, "o", "positives, push"),
        ):
            size = slopes[rows].abs().clamp_min(SMALLEST)
            upper.scatter(cosines[rows], size, s=36, c=fill, edgecolors=edge, marker=marker, label=label)
        strongest = float(cosines[first]), float(push[0])
        above = dict(xytext=(0, 30), textcoords="offset points", ha="right", arrowprops=dict(arrowstyle="-"))
        upper.annotate(machines[first], strongest, **above)
        upper.set(yscale="log", ylim=(SMALLEST / 2, 3))
        upper.set_title(f"{name}\n90 % of the push from {needed} of {len(push)} negatives")
        upper.set(xlabel=f"cosine to the anchor, a clip of {machines[anchor]}", ylabel="|slope| (nats per cosine)")
        upper.legend(loc="upper left")
        lower.plot(grid, alike, color=plots.GREY, linestyle=":", label="all clips in one place")
        lower.plot(grid, losses, color=plots.BLACK, label="this batch")
        lower.plot(tau, loss, "D", color=plots.BLACK, markersize=8)
        for value, words in marked.items():
            lower.axvline(value, color=plots.GREY, linewidth=1)
            lower.text(value, 0.96, f" {words}", color=plots.GREY, va="top", transform=lower.get_xaxis_transform())
        lower.set(
            xscale="log", yscale="log", ylim=(losses[0] / 10, 2 * alike[-1]), xlabel="τ (no unit)", ylabel="loss (nats)"
        )
        lower.legend(loc="lower right")
        for ax in (upper, lower):
            ax.minorticks_off()  # half of the time goes into them
        against = int((slopes[positive] > 0).sum())
        return upper.figure, (
            f"{name}. {len(push)} negatives push the anchor, with {push.sum():.3f} together; 90 % of it comes from "
            f"{needed} of them. The strongest, {machines[first]} at cosine {strongest[0]:.2f}, pushes with "
            f"{strongest[1]:.2g}, the weakest with {push[-1]:.1g}. {int(positive.sum())} positives pull, with "
            f"{-slopes[positive].sum():.3f} all told, though {against} of them push. Below, the loss of the batch over "
            f"τ, {loss:.2f} here."
        )

    return draw


def temperature_frames(
    z: Tensor, machines: Sequence[str], anchor: int, temperatures: Sequence[float], marked: Mapping[float, str]
) -> dict[str, list]:
    """Who pulls one clip of a batch at several τ, for ``frame_player(**frames, title="τ")``. Explained in chapter 3.

    Args:
        z: embeddings on the unit sphere, (B, E).
        machines: the machine of each, such as "fan/id_00".
        anchor: which clip of the batch; at least one clip is of its machine, one of another.
        temperatures: τ, from 0.005 to 1.
        marked: words beside some values, such as {0.02: "the paper's"}.

    Returns:
        frames, labels and alts.
    """
    return _frames(_batch_view(z, machines, anchor, marked), temperatures, marked)


def temperature_explorer(
    z: Tensor, machines: Sequence[str], anchor: int, marked: Mapping[float, str]
) -> ipywidgets.Widget:
    """The same at any τ: needs a kernel. Arguments as in ``temperature_frames``. Used in chapter 3."""
    low, high = np.log10(TEMPERATURES)
    slider = ipywidgets.FloatLogSlider(
        value=next(iter(marked)), min=low, max=high, step=0.02, description="τ", readout_format=".3f",
        continuous_update=False,
    )  # fmt: skip
    return _live_picture(slider, _batch_view(z, machines, anchor, marked))


def _on_circle(degrees: ArrayLike) -> Tensor:
    radians = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.double))
    return torch.stack([radians.cos(), radians.sin()], dim=-1)  # (..., 2)


def margin_logits(degrees: ArrayLike, margin: float, apart: float = 120.0) -> tuple[Tensor, Tensor]:
    """ArcFace logits of a clip on a circle, its own centre at 0°, another one ``apart``. Explained in chapter 3.

    Args:
        degrees: where the clip lies, (N,).
        margin: m, radians, of ``arcface_logits``.

    Returns:
        Logits of the own and of the other machine, (N, 2); slope of the own one per radian, (N,).
    """
    at = torch.as_tensor(degrees, dtype=torch.double).clone().requires_grad_()
    logits = arcface_logits(_on_circle(at), _on_circle([0.0, apart]), torch.zeros(len(at)).long(), margin, SCALE)
    slope = torch.autograd.grad(logits[:, 0].sum(), at)[0]
    return logits.detach(), torch.rad2deg(slope)


def margin_boundary(margin: float, apart: float = 120.0) -> float:
    """Angle to its own centre, degrees, up to which a clip's own logit is the larger of ``margin_logits``.
    Explained in chapter 3.
    """
    degrees = torch.linspace(0, apart, 10 * round(apart) + 1, dtype=torch.double)
    logits, _ = margin_logits(degrees, margin, apart)
    return float(degrees[logits[:, 0] >= logits[:, 1] - 1e-9].max())


def _circle_view(marked: Mapping[float, str]) -> Draw:
    degrees = np.linspace(0.01, 179.99, 721)
    centres = {90: ("A", plots.BLUE), 210: ("B", plots.VERMILION), 330: ("C", plots.GREEN)}
    plain = margin_logits(degrees, 0.0)

    @plots.styled
    def draw(margin: float) -> tuple[Figure, str]:
        edge, corridor, turn = margin_boundary(margin), np.rad2deg(margin), 180 - np.rad2deg(margin)
        logits, slope = margin_logits(degrees, margin)
        name = f"m = {_label(margin, marked)}, that is {corridor:.0f}°"
        rows = plots.panels(3, 1, width=4.7, height=7.6, gridspec_kw=dict(height_ratios=[1.7, 1.1, 1]))[:, 0]
        circle, height, tilt = rows
        for at, (machine, colour) in centres.items():
            circle.add_patch(Wedge((0, 0), 1, at - edge, at + edge, color=colour, alpha=0.3, linewidth=0))
            circle.annotate("", _on_circle(at).tolist(), (0, 0), arrowprops=dict(arrowstyle="-|>", color=colour, lw=2))
            circle.text(*(1.15 * _on_circle(at)).tolist(), machine, ha="center", va="center", color=colour)
            half = 1.04 * _on_circle(at + 60.0)
            circle.plot([0, half[0]], [0, half[1]], color=plots.BLACK, linestyle="--", linewidth=1)
        circle.plot(*_on_circle(np.linspace(0, 360, 200)).T, color="0.6", linewidth=1)
        circle.text(0, -1.15, f"corridor {corridor:.0f}°" if margin else "no corridor", ha="center", va="center")
        circle.set(xlim=(-1.9, 1.9), ylim=(-1.3, 1.3), aspect="equal", title=name)
        circle.set_axis_off()
        for ax, own, other, label in (
            (height, logits[:, 0], plain[0][:, 0], "own logit (no unit)"),
            (tilt, slope, plain[1], "slope (per radian)"),
        ):
            ax.plot(degrees, other, color=plots.GREY, linestyle="--", label="no margin")
            ax.plot(degrees, own, color=plots.BLUE, linewidth=2, label=f"m = {margin:.3g}")
            if margin:
                ax.axvspan(turn, 180, color=plots.ORANGE, alpha=0.25, linewidth=0, label="θ + m > 180°")
            ax.set(xlim=(0, 180), xticks=range(0, 181, 30), ylabel=label)
        if margin:
            beyond = degrees[degrees > turn]
            alone = SCALE * np.cos(np.deg2rad(beyond) + margin)
            height.plot(beyond, alone, color=plots.VERMILION, linestyle=":", linewidth=2, label="cos(θ + m) alone")
        height.set(ylim=(-60, 34))
        tilt.set(ylim=(-33, 3), xlabel="angle θ to the centre of the own machine (degrees)")
        height.legend(loc="lower left")
        steps = [np.interp(turn + side, degrees, logits[:, 0]) for side in (-0.5, 0.5)]
        step = "From {:.0f}° on, where θ + m > 180°, it steps from {:.0f} to {:.0f}. ".format(turn, *steps)
        beside, middle = -slope[0], -np.interp(90, degrees, slope)
        return circle.figure, (
            f"{name}. Each of three centres, 120° apart, has the clips of its machine up to {edge:.0f}° away, 60° "
            f"without a margin; between two centres lies a corridor of {corridor:.0f}°. Below, the own logit over the "
            f"angle θ: {logits[0, 0]:.1f} at the centre, {logits[-1, 0]:.0f} opposite. {step if margin else ''}It "
            f"falls by {beside:.1f} per radian beside the centre and by {middle:.1f} at 90°."
        )

    return draw


def margin_frames(margins: Sequence[float], marked: Mapping[float, str]) -> dict[str, list]:
    """ArcFace's border and logit at several m, for ``frame_player(**frames, title="m")``. Explained in chapter 3.

    Args:
        margins: m, radians, from 0 to 1.
        marked: words beside some values, such as {0.7: "the paper's"}.

    Returns:
        frames, labels and alts.
    """
    return _frames(_circle_view(marked), margins, marked)


def margin_explorer(marked: Mapping[float, str]) -> ipywidgets.Widget:
    """The same at any m from 0 to 1: needs a kernel. Arguments as in ``margin_frames``. Used in chapter 3."""
    slider = ipywidgets.FloatSlider(
        value=next(iter(marked)), min=0.0, max=1.0, step=0.01, description="m", continuous_update=False
    )
    return _live_picture(slider, _circle_view(marked))
