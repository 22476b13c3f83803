"""The measurements of speed that the package ships, how they are read, and the figures drawn from them."""

import ast
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from osscl_lite import plots
from osscl_lite.errors import BadInput
from osscl_lite.record import SPEED, read_speed

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "book" / "appendix_speed.ipynb"
SHIPPED = sorted(SPEED.glob("*.json"))
CELLS = json.loads(PAGE.read_text("utf-8"))["cells"]

every_file = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)


def sources(kind):
    return ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == kind]


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plt.close("all")


def spread(middle):
    return dict(median=middle, quartiles=[0.9 * middle, 1.1 * middle], n=3)


STEP = dict(
    variants=[
        dict(variant="plain", clips_per_second=spread(100.0)),
        dict(variant="ours", clips_per_second=spread(250.0), ratio=spread(2.5)),
    ]
)
ROOF = dict(
    recipe="logmel-osscl", seconds=2.0, step_flops=8e9, step_seconds=spread(0.4),
    peaks=dict(float32=2e11, bytes_per_second=1e10), bounds=dict(float32=dict(bytes=4e8, least_seconds=0.1)),
)  # fmt: skip


def test_a_section_that_is_not_there_is_one_line_with_its_command(tmp_path):
    with pytest.raises(BadInput) as caught:
        read_speed("step", "cuda", folder=tmp_path)
    command = "python -m benchmarks --device cuda --only step --to osscl_lite/results/speed"
    assert str(caught.value) == f"cuda-step.json: not measured yet; {command}"


def test_a_section_is_read_as_it_was_written(tmp_path):
    (tmp_path / "cpu-step.json").write_text(json.dumps(dict(cases=[STEP])))
    assert read_speed("step", folder=tmp_path)["cases"][0]["variants"][1]["ratio"]["median"] == 2.5


def test_every_section_that_the_page_reads_is_shipped():
    calls = [
        node.args[0].value
        for source in sources("code")[1:]  # the first one is for Colab
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "read_speed" and not node.keywords
        and isinstance(node.args[0], ast.Constant)
    ]  # fmt: skip
    assert len(calls) > 5
    assert {f"cpu-{section}" for section in calls} <= {path.stem for path in SHIPPED}


@every_file
def test_a_shipped_file_is_a_whole_measurement(path):
    found = json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert path.stem == f"{found['measured_on']['device']}-{found['section']}"
    assert not found["quick"], "--quick measures nothing"
    assert found["cases"] or found["skipped"]
    failed = [case["reason"] for case in found["skipped"] if "failed" in case["reason"]]
    assert not failed and found["what"] and found["how"] and found["measured_on"]["commit"] != "unknown"


@every_file
def test_figures_draw_from_a_shipped_file(path):
    found = json.loads(path.read_text())
    for case in found["cases"]:
        if "variants" in case:
            ax = plots.speed_bars(case)
            assert len(ax.patches) == len(case["variants"])
    if found["section"] == "roofline" and found["cases"]:
        plots.roofline([case for case in found["cases"] if case["threads"] == found["cases"][0]["threads"]])
    if found["section"] == "growth":
        for grows in {case["grows"] for case in found["cases"]}:
            ax = plots.growth(found["cases"], grows, lambda case: case["milliseconds_per_clip"])
            assert len(ax.lines) == 2
    if found["section"] == "curve":
        runs = [case["losses"] for case in found["cases"] if case.get("variant") == "plain"]
        assert len(runs) == 3 and len(plots.seed_curves({"plain": runs}).lines) == 1


def test_bars_are_as_long_as_the_speeds_and_say_the_ratio():
    ax = plots.speed_bars(STEP)
    assert [bar.get_width() for bar in ax.patches] == [100, 250]
    assert [text.get_text().strip() for text in ax.texts] == ["100", "250 (2.50 ×)"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["plain PyTorch", "ours"]
    assert ax.get_xlabel() == "clips a second" and ax.get_xlim()[1] > 1.3 * 250


def test_every_variant_of_the_benchmarks_has_a_name_on_the_bars():
    from benchmarks.worker import VARIANTS

    assert set(VARIANTS) == set(plots.STEPS)


def test_the_roof_and_what_is_under_it():
    ax = plots.roofline([ROOF])
    across, roof = ax.lines[0].get_data()
    np.testing.assert_allclose(roof, np.minimum(200, 10 * across))
    (most,), (reached,) = (line.get_ydata() for line in ax.lines[2:4])
    assert (most, reached) == (80, 20) and ax.lines[3].get_xdata() == [20]
    assert ax.get_legend().get_texts()[1].get_text() == "logmel, 2 s"


def test_growth_takes_one_kind_in_order():
    cases = [
        dict(grows=grows, variant=variant, batch=batch, time=batch / 4)
        for grows, variant, batch in (("batch", "ours", 64), ("batch", "ours", 16), ("clips", "ours", 32))
    ]
    (line,) = plots.growth(cases, "batch", lambda case: case["time"]).lines
    assert line.get_xdata().tolist() == [16, 64] and line.get_ydata().tolist() == [4, 16]


def test_curves_are_means_and_the_band_is_the_first_one_s():
    ax = plots.seed_curves({"plain": [[1, 3], [3, 5]], "ours": [[2, 2], [2, 4]]})
    assert [line.get_ydata().tolist() for line in ax.lines] == [[2, 4], [2, 3]]
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (1, 5) and ax.get_legend().get_texts()[0].get_text() == "plain: its 2 seeds"


def test_the_page_types_no_result():
    """A number with a unit of speed or a ratio comes from a cell, never from prose."""
    typed = re.findall(
        r"\d[\d.,]* (?:clips a second|clips/s|ms\b|GB/s|times (?:as|faster|the))", " ".join(sources("markdown"))
    )
    assert not typed, typed
