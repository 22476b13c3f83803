"""Figures of the tables: gaps are named, printed numbers look different, names do not cover each other."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from osscl_lite import plots, table_plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_row_without_a_measured_value_says_so():
    rows = [("A", "printed", 90.0), ("A", "measured", 80.0), ("B", "printed", 91.0), ("B", "measured", np.nan)]
    table = pd.DataFrame(rows, columns=["group", "kind", "value"]).assign(low=np.nan, high=np.nan)
    ax = table_plots.dots(table, axis="AUC (%)", line=0)
    assert [(text.get_text(), text.get_position()[1]) for text in ax.texts] == [("no record", 1)]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["A", "B"] and ax.get_xlabel() == "AUC (%)"
    faces = {each.get_label(): each[0].get_markerfacecolor() for each in ax.containers}
    assert faces["printed"] == "white" and faces["measured"] != "white"


def test_too_many_kinds_are_refused():
    table = pd.DataFrame(dict(group="A", kind=[f"k{n}" for n in range(9)], value=1.0, low=np.nan, high=np.nan))
    with pytest.raises(ValueError, match="9 kinds"):
        table_plots.dots(table, axis="AUC (%)")


def test_names_beside_points_do_not_cover_each_other():
    table = pd.DataFrame(dict(name=["first", "second", "third"], x=[1.0, 1.01, 1.02], y=[50.0, 50.1, 50.2]))
    table = table.assign(error=np.nan, kind="k")
    ax = table_plots.costs(table, across="minutes", up="AUC (%)")
    plots.legend_below(ax, 1)
    table_plots.name_points(table, ax)
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 3 and not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


@pytest.mark.parametrize("draw", ["slopes", "reductions", "costs", "epochs"])
def test_nothing_recorded_is_a_figure_that_says_so(draw):
    ax = plots.panels(1, 1)[0, 0]
    if draw == "slopes":
        table_plots.slopes(pd.DataFrame(np.nan, ["a", "b"], ["1", "2"]), ax)
    elif draw == "reductions":
        table_plots.reductions(pd.DataFrame(np.nan, ["Fan", "Average"], ["no FPH", "64"]), ax)
    elif draw == "costs":
        empty = pd.DataFrame(dict(name=["a"], x=np.nan, y=np.nan, error=np.nan, kind="k"))
        table_plots.costs(empty, ax, across="minutes", up="AUC (%)")
        table_plots.name_points(empty, ax)
    else:
        table_plots.epoch_curves({}, {}, ax)
    assert [text.get_text() for text in ax.texts] == ["no record yet"]
    plt.figure(ax.figure).canvas.draw()


def test_the_legend_names_each_kind_once_and_printed_first():
    axes = plots.panels(1, 2)[0]
    for ax in axes:
        ax.plot([0], [0], label="measured")
        ax.plot([0], [0], label="printed")
    plots.legend_below(axes[0], 2)
    assert [text.get_text() for text in axes[0].figure.legends[0].get_texts()] == ["printed", "measured"]
