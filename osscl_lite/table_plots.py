"""Figures of the chapter on the tables and of the pages beside it, in the style of ``osscl_lite.plots``."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from osscl_lite.plots import BLACK, COLOURS, GREY, MARKERS, _axes, styled

PRINTED = dict(marker="D", markerfacecolor="white", color=BLACK)  # a printed number, in every figure


@styled
def dots(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    axis: str,
    title: str = "",
    line: float | None = None,
    names: Sequence[str] = (),
) -> Axes:
    """Values of several kinds side by side, a group a row, with bars where there are some. Explained in chapter 9.

    Args:
        table: columns group, kind, value, low, high (ends of the bar; NaN for none). Kind "printed" is an open
            diamond. A group with printed values alone, or with none, is marked "no record".
        axis: what was measured, with its unit; ``line``: where a dotted line stands, such as 0.
        names: the kinds in order, so that colours agree between panels; at most 8 beside "printed".
    """
    groups = list(dict.fromkeys(table["group"]))
    kinds = list(names) or list(dict.fromkeys(table["kind"]))
    ax = _axes(ax, 5.2, 1.2 + 0.45 * len(groups))
    measured = [kind for kind in kinds if kind != "printed"]
    if len(measured) > len(COLOURS):
        raise ValueError(f"{len(measured)} kinds: at most {len(COLOURS)} can be told apart by colour")
    style = {kind: dict(color=c, marker=m) for kind, c, m in zip(measured, COLOURS, MARKERS, strict=False)}
    for k, kind in enumerate(kinds):
        rows = table[table["kind"].eq(kind) & table["value"].notna()]
        at = rows["group"].map(groups.index) + (k - (len(kinds) - 1) / 2) * 0.7 / len(kinds)
        bars = np.abs([rows["value"] - rows["low"], rows["high"] - rows["value"]]) if len(rows) else None
        look = PRINTED if kind == "printed" else style[kind]
        ax.errorbar(rows["value"], at, xerr=bars, linestyle="none", markersize=5, capsize=2, label=kind, **look)
    have = set(table.loc[table["kind"].ne("printed") & table["value"].notna(), "group"])
    for place, group in enumerate(groups):
        if group not in have:
            across = ax.get_yaxis_transform()
            ax.text(0.01, place, "no record", transform=across, color=GREY, fontsize=9, va="center")
    if line is not None:
        ax.axvline(line, color=GREY, linestyle=":", linewidth=1)
    ax.set_yticks(range(len(groups)), groups)
    ax.set(xlabel=axis, title=title, ylim=(max(len(groups), 1) - 0.5, -0.5))
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    return ax


@styled
def slopes(
    values: pd.DataFrame,
    ax: Axes,
    *,
    title: str = "",
    unit: str = "average AUC (%)",
    errors: pd.DataFrame | None = None,
) -> Axes:
    """A line a row from column to column: what a change does to each of several systems. Explained in chapter 9.

    Args:
        values: a row a system, a column a step of the change; NaN where nothing is recorded.
        errors: half-lengths of the bars, of the same shape.
    """
    across = np.arange(values.shape[1])
    for name, colour, marker in zip(values.index, COLOURS, MARKERS, strict=False):
        bars = None if errors is None else errors.loc[name].to_numpy(float)
        ax.errorbar(
            across, values.loc[name].to_numpy(float), bars, marker=marker, color=colour, capsize=3, markersize=5,
            label=name,
        )  # fmt: skip
    if not values.notna().any(axis=None):
        _nothing(ax)
    ax.set_xticks(across, values.columns)
    ax.set(title=title, ylabel=unit, xlim=(-0.3, values.shape[1] - 0.7))
    ax.grid(axis="y", color="0.9")
    return ax


@styled
def reductions(values: pd.DataFrame, ax: Axes, *, title: str = "", errors: pd.Series | None = None) -> Axes:
    """AUC over the width of the perturbation head, a line a machine type, the average in black. Table VI.
    Explained in chapter 9.

    Args:
        values: AUC in percent, a row a machine type (the last one: Average), a column a reduction.
        errors: half-length of the average's bar, by reduction.
    """
    across = np.arange(values.shape[1])
    shown = [name for name in values.index if name != "Average"]
    for name, colour, marker in zip(shown, COLOURS, MARKERS, strict=False):
        line = dict(color=colour, marker=marker, markersize=3, linewidth=0.8, alpha=0.8)
        ax.plot(across, values.loc[name].to_numpy(float), label=name, **line)
    bars = None if errors is None else errors[values.columns].to_numpy(float)
    average = values.loc["Average"].to_numpy(float)
    ax.errorbar(across, average, bars, color=BLACK, marker="o", markersize=5, linewidth=2, capsize=3, label="Average")
    if not values.notna().any(axis=None):
        _nothing(ax)
    ax.axhline(50, color=GREY, linestyle=":", linewidth=1)
    ax.set_xticks(across, ["none", *values.columns[1:]])
    ax.set(title=title, xlabel="R, width of the head", ylabel="AUC (%)")
    ax.grid(axis="y", color="0.9")
    return ax


@styled
def costs(
    table: pd.DataFrame, ax: Axes | None = None, *, across: str, up: str, title: str = "", logarithmic: bool = True
) -> Axes:
    """A point a system: what it costs across, what it finds upwards; ``name_points`` writes the names. Table V.
    Explained in chapter 9.

    Args:
        table: columns name, x, y, error (half-length of the bar; NaN for none), kind (a colour; "printed" is open).
        across, up: what the axes say, with units; ``logarithmic``: the axis of costs.
    """
    ax = _axes(ax, 5.2, 4.6)
    kinds = [kind for kind in dict.fromkeys(table["kind"]) if kind != "printed"]
    looks = {kind: dict(color=c, marker=m) for kind, c, m in zip(kinds, COLOURS, MARKERS, strict=False)}
    for kind, rows in table.dropna(subset=["x", "y"]).groupby("kind", sort=False):
        look = looks.get(kind, PRINTED)
        ax.errorbar(rows["x"], rows["y"], rows["error"], linestyle="none", markersize=7, capsize=3, label=kind, **look)
    if table[["x", "y"]].dropna().empty:
        _nothing(ax)
    elif logarithmic:
        ax.set_xscale("log")
        near = table["x"].max() < 100 * table["x"].min()
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.2, y=0.12)
    ax.set(xlabel=across, ylabel=up, title=title)
    ax.grid(color="0.9")
    return ax


@styled
def name_points(table: pd.DataFrame, ax: Axes) -> None:
    """Write the names beside the points of ``costs``, each at the first place where it covers no name, point or bar.

    To be called last, when limits and legends are there: it goes by the size that the axes have then.
    Explained in chapter 9.
    """
    points = table.dropna(subset=["x", "y"]).sort_values("y", ascending=False)
    ax.figure.draw_without_rendering()  # settles the size of the axes
    ax.figure.set_layout_engine("none")  # and keeps it
    scale = 72 / ax.figure.dpi  # points a pixel
    at = ax.transData.transform(points[["x", "y"]].to_numpy(float)) * scale
    lengths = [scale * _length(name, ax) for name in points["name"]]
    reach = points["error"].fillna(0).to_numpy(float)
    low, high = (ax.transData.transform(np.c_[points["x"], points["y"] + way * reach])[:, 1] * scale for way in (-1, 1))
    taken = [(x - 4, down - 4, x + 4, up + 4) for (x, _), down, up in zip(at, low, high, strict=True)]
    left, right = ax.bbox.x0 * scale, ax.bbox.x1 * scale
    for (x, y), row, long in zip(at, points.itertuples(), lengths, strict=True):
        rises = [3 + way * 11 * n for n in range(12) for way in (1, -1)]  # nearest first
        places = [(dx, dy) for dy in dict.fromkeys(rises) for dx in (7, -7 - long)]
        boxes = {(dx, dy): (x + dx, y + dy, x + dx + long, y + dy + 9) for dx, dy in places}
        free = [
            place
            for place, box in boxes.items()
            if left < box[0]
            and box[2] < right
            and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
        ]
        place = free[0] if free else places[0]
        taken.append(boxes[place])
        line = dict(arrowstyle="-", color=GREY, linewidth=0.5) if abs(place[1]) > 12 else None
        ax.annotate(row.name, (row.x, row.y), place, textcoords="offset points", fontsize=9, arrowprops=line)


def _length(name: str, ax: Axes) -> float:
    """Pixels that a name takes."""
    text = ax.text(0, 0, name, fontsize=9)
    pixels = text.get_window_extent().width
    text.remove()
    return pixels


@styled
def epoch_curves(
    curves: dict[str, np.ndarray],
    chosen: dict[str, dict[str, int]],
    ax: Axes,
    *,
    title: str = "",
    unit: str = "AUC (%)",
) -> Axes:
    """A measure over the epochs of several runs, with the epochs that two ways of choosing take.
    Explained in chapter 9.

    Args:
        curves: name of the run -> (E,).
        chosen: the same names -> way of choosing -> epoch, from 1.
    """
    marks: dict[str, str] = {}
    for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
        ax.plot(np.arange(1, len(values) + 1), values, color=colour, linewidth=1.2, label=name)
        for way, epoch in chosen[name].items():
            marker = marks.setdefault(way, ("o", "*", "s")[len(marks)])
            ax.plot(epoch, values[epoch - 1], marker, color=colour, markersize=11 if marker == "*" else 7,
                    markerfacecolor=colour if marker == "*" else "white")  # fmt: skip
    for way, marker in marks.items():
        ax.plot([], [], marker, color=GREY, markerfacecolor=GREY if marker == "*" else "white", label=f"by {way}")
    if not curves:
        _nothing(ax)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="epoch", ylabel=unit, title=title)
    ax.grid(axis="y", color="0.9")
    return ax


def _nothing(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no record yet", transform=ax.transAxes, ha="center", va="center", color=GREY)
