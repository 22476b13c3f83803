"""The chapters as files: stripped, short cells, captions and texts for figures, exercises with solutions."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.name[:2].isdigit()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY, TAG = PROJECT["urls"]["Repository"], f"v{PROJECT['version']}"
BOOTSTRAP = f"""\
import sys
if "google.colab" in sys.modules:  # nothing happens elsewhere
    %pip install -q "osscl_lite @ git+{REPOSITORY}@{TAG}"
"""
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
LINES = 15
DRAWS = re.compile(r"\b(?:plots|plt)\.(?!rc|style|close|mel\b|legend_below)\w+\(|\.plot\.\w+\(|\.(?:hist|boxplot)\(")
PLAYS = re.compile(r"\bframe_player\(")


def cells(path: Path, kind: str) -> list[dict]:
    found = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]
    return [cell | {"source": "".join(cell["source"])} for cell in found]


def prose(path: Path) -> str:
    return "\n\n".join(cell["source"] for cell in cells(path, "markdown"))


def tags(cell: dict) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def named(path: Path) -> str:
    return path.name


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=named)


def test_the_table_of_contents_and_the_folder_agree():
    listed = set(re.findall(r"(?:root|file): (book/\S+)", (ROOT / "_toc.yml").read_text()))
    there = {f"book/{path.stem}" for path in [*NOTEBOOKS, *(ROOT / "book").glob("*.md")]}
    assert listed == there


@every_notebook
def test_no_outputs_in_git(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None, cell["source"][:80]
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert "widgets" not in metadata and metadata["kernelspec"]["name"] == "python3"


@every_notebook
def test_the_first_cell_is_the_same_everywhere_and_folded(path):
    code = cells(path, "code")
    if not code:
        pytest.skip("no code in this notebook")
    assert code[0]["source"].strip() == BOOTSTRAP.strip()
    assert tags(code[0]) == {"hide-cell"}


@every_notebook
def test_only_the_chapter_that_trains_asks_colab_for_a_gpu(path):
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    asked = {name: metadata[name] for name in metadata if name not in ("kernelspec", "language_info", "jupytext")}
    t4 = {"accelerator": "GPU", "colab": {"gpuType": "T4"}}
    assert asked == (t4 if path.stem == "05_training" else {})
    if asked:
        assert "without" in prose(path).split("After this chapter")[0].lower(), "say at the top what happens without"


@every_notebook
def test_visible_cells_are_short(path):
    long = {}
    for cell in cells(path, "code"):
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        if len(lines) > LINES and not tags(cell) & HIDDEN:
            long[lines[0]] = len(lines)
    assert not long, f"more than {LINES} lines: shorten, or tag hide-input if it only plots"


@every_notebook
def test_figures_have_captions_and_texts(path):
    for cell in cells(path, "code"):
        code = re.sub(r"#.*", "", cell["source"])
        draws, plays = bool(DRAWS.search(code)), bool(PLAYS.search(code))
        if not (draws or plays) or tags(cell) & {"skip-execution", "remove-cell", "remove-output", "no-figure"}:
            continue
        shown = cell["metadata"].get("mystnb", {})
        figure = shown.get("figure", {})
        assert figure.get("caption", "").strip().endswith("."), f"no caption: {cell['source'][:80]}"
        assert re.fullmatch(r"fig-[a-z0-9-]+", figure.get("name", "")), f"no name fig-…: {cell['source'][:80]}"
        if not plays:
            assert len(shown.get("image", {}).get("alt", "")) > 30, f"no alt text: {cell['source'][:80]}"


def test_names_of_figures_are_unique():
    names = [
        cell["metadata"]["mystnb"]["figure"]["name"]
        for path in NOTEBOOKS
        for cell in cells(path, "code")
        if "figure" in cell["metadata"].get("mystnb", {})
    ]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


@every_chapter
def test_a_chapter_opens_with_a_question_and_its_times(path):
    title, *_ = re.findall(r"^# (.+)$", prose(path), re.MULTILINE)
    assert title.endswith("?")
    box = re.search(
        r"\{admonition\} Before you start\n:class: before-you-start\n(.+?)\n(?:```|:::)", prose(path), re.DOTALL
    )
    assert box, "no box 'Before you start'"
    assert re.search(r"Reading: \d+ minutes\.", box[1]) and re.search(r"Running: .+ on two CPU cores", box[1])
    assert "Needs" in box[1]
    assert "After this chapter you can" in prose(path)


@every_chapter
def test_a_chapter_ends_with_exercises_and_folded_solutions(path):
    text = prose(path)
    exercises = set(re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", text))
    solutions = re.findall(r"\{solution(?:-start)?\} (\S+)\n((?::.*\n)*)", text)
    assert exercises and exercises == {label for label, _ in solutions}
    assert all(":class: dropdown" in options for _, options in solutions)
    assert text.count("{solution-start}") == text.count("{solution-end}")


@every_notebook
def test_sounds_and_progress_go_through_the_package(path):
    code = "\n".join(cell["source"] for cell in cells(path, "code"))
    assert "tqdm" not in code, "the package shows progress in text"
    assert not re.search(r"\bAudio\(", code), "widgets.player gives a sound its label"
    assert not re.search(r"/(?:home|root|tmp|Users)/", code), "a path of one machine"


def test_the_package_shows_progress_in_text():
    for path in (ROOT / "osscl_lite").rglob("*.py"):
        assert not re.search(r"tqdm\.(?:auto|notebook)", path.read_text(encoding="utf-8")), path


def test_live_cells_stand_under_their_heading():
    for path in NOTEBOOKS:
        for cell in cells(path, "code"):
            if re.search(r"_explorer\(", cell["source"]):
                assert "skip-execution" in tags(cell), f"{path.name}: {cell['source'][:60]}"
                assert "With a kernel" in prose(path), path.name


def test_the_readme_has_two_commands():
    commands = re.findall(
        r"^python -m pip install -r requirements\.txt && .+$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(commands) == 2 and "jupyter-book build" in commands[0] and "pytest" in commands[1]
    assert not any(sign in command for command in commands for sign in "\\$;'\"|"), "not the same line in every shell"
