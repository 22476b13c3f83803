"""What stands in several places is the same in all: address, versions, commands; what is vendored is as recorded."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_notebooks import NOTEBOOKS, PROJECT, REPOSITORY, ROOT, TAG

import osscl_lite

OTHERS = {  # other people's repositories that this one names
    "https://github.com/microsoft/unilm",
    "https://github.com/Audio-WestlakeU/audiossl",
}
STATIC = ROOT / "book" / "_static"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
KINDS = {".md", ".cff", ".toml", ".yml", ".txt", ".py", ".ipynb", ".bib"}
FOLDERS = (".ci", ".github", "book", "osscl_lite", "benchmarks", "tests")
TEXTS = [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
TEXTS = [path for path in TEXTS if path.is_file() and path.suffix in KINDS and not {"mathjax", ".git"} & {*path.parts}]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def workflow(path: Path) -> dict:
    """A workflow; YAML takes its key ``on`` for a truth."""
    read = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in read.items()}


def steps(read: dict) -> list[dict]:
    return [step for job in read["jobs"].values() for step in job["steps"]]


def test_every_link_to_a_repository_is_to_the_one_of_pyproject():
    found = {}
    for path in TEXTS:
        for link in re.findall(r"https?://github\.com/[\w.-]+/[\w.-]+", path.read_text(encoding="utf-8")):
            found.setdefault(link.rstrip(".").removesuffix(".git"), set()).add(path.relative_to(ROOT).as_posix())
    assert set(found) <= {REPOSITORY} | OTHERS
    places = {"README.md", "CITATION.cff", "CONTRIBUTING.md", "_config.yml", "pyproject.toml"}
    assert places | {f"book/{path.name}" for path in NOTEBOOKS} <= found[REPOSITORY]


def test_the_site_is_where_the_repository_publishes():
    owner, name = REPOSITORY.split("/")[-2:]
    site = f"https://{owner}.github.io/{name}/"
    assert PROJECT["urls"]["Documentation"] == site
    for path in TEXTS:
        links = re.findall(r"https?://[\w.-]+\.github\.io[\w./-]*", path.read_text(encoding="utf-8"))
        assert all(link.startswith(site) for link in links), path


def test_the_buttons_of_the_pages_lead_to_the_notebooks():
    config = yaml.safe_load(text("_config.yml"))
    assert config["repository"] == {"url": REPOSITORY, "branch": "main", "path_to_book": ""}
    assert config["launch_buttons"]["colab_url"] == "https://colab.research.google.com"


def test_the_version_is_the_same_everywhere():
    cited = yaml.safe_load(text("CITATION.cff"))
    version = PROJECT["version"]
    assert osscl_lite.__version__ == cited["version"] == version
    assert f"version = {{{version}}}" in text("README.md")
    dated = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", text("CHANGELOG.md"), re.MULTILINE)
    assert dated.groups() == (version, str(cited["date-released"]))


def test_the_citation_names_the_book_and_the_paper():
    cited = yaml.safe_load(text("CITATION.cff"))
    paper = next(reference for reference in cited["references"] if reference["type"] == "conference-paper")
    assert {"type": "other", "value": "arXiv:2509.13853"}.items() <= paper["identifiers"][0].items()
    assert cited["title"] in " ".join(text("README.md").replace("\\_", "_").split())
    assert cited["repository-code"] == REPOSITORY and cited["url"] == PROJECT["urls"]["Documentation"]
    assert yaml.safe_load(text("_config.yml"))["title"] in cited["abstract"]


def test_the_changelog_has_errata():
    assert re.search(r"^## Errata\n\n\S", text("CHANGELOG.md"), re.MULTILINE)


def test_what_is_vendored_is_as_recorded():
    entries = json.loads((STATIC / "vendored.json").read_text(encoding="utf-8"))
    for entry in entries:
        folder = STATIC / entry["folder"]
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        there = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        assert there == entry["files"], f"{entry['folder']}: run python book/_ext/vendor.py"
        assert "LICENSE" in there and f"{entry['name']} {entry['version']}".lower() in vendored_in_the_readme()
    folders = {path.name for path in STATIC.iterdir() if path.is_dir()}
    assert folders == {entry["folder"] for entry in entries}, "a folder that vendor.py does not know"


def vendored_in_the_readme() -> str:
    """The README's licences, links as plain text."""
    licences = text("README.md").partition("## Licences")[2].partition("\n## ")[0]
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", licences).lower()


def test_the_pages_take_mathjax_from_the_site():
    path = yaml.safe_load(text("_config.yml"))["sphinx"]["config"]["mathjax_path"]
    assert (STATIC / path).is_file()


def test_workflows_run_the_commands_of_the_readme():
    commands = re.findall(r"^python -m pip install -r requirements\.txt && .+$", text("README.md"), re.MULTILINE)
    for path in WORKFLOWS:
        ran = [step.get("run", "").strip() for step in steps(workflow(path))]
        installs = [command for command in ran if "requirements.txt" in command]
        assert set(installs) <= set(commands), path.name
        if any("jupyter-book" in command for command in ran) and path.name != "weekly.yml":
            assert "python .ci/pages.py" in ran, path.name
    ran = [step.get("run", "").strip() for step in steps(workflow(ROOT / ".github" / "workflows" / "test.yml"))]
    assert set(commands) <= set(ran)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_name_what_exists_and_ask_for_little(path):
    read, source = workflow(path), path.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.-])(?:\.ci|tests|book|osscl_lite)/[\w.-]+\w", source)
    assert all((ROOT / name).exists() for name in named), named
    assert read["permissions"] == {"contents": "read"}  # a job that needs more says so itself
    assert all(re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", step["uses"]) for step in steps(read) if "uses" in step)
    assert all("timeout-minutes" in job or len(job["steps"]) == 1 for job in read["jobs"].values())


def test_tests_run_on_three_systems_and_the_oldest_and_newest_python():
    read = workflow(ROOT / ".github" / "workflows" / "test.yml")
    matrix = read["jobs"]["readme"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"][0] == PROJECT["requires-python"].removeprefix(">=") < matrix["python"][-1]
    assert {"push", "pull_request"} <= set(read["on"])
    assert "test_colab.py" in str(read["jobs"]["colab"])


def test_executed_chapters_are_kept_only_while_the_package_is_the_same():
    kept = next(step for step in steps(workflow(WORKFLOWS[0])) if "cache@" in step.get("uses", ""))["with"]
    assert WORKFLOWS[0].name == "pages.yml" and kept["path"] == "_build/.jupyter_cache"
    for key in (kept["key"], kept["restore-keys"].strip()):
        assert "hashFiles('osscl_lite/**', 'requirements.txt')" in key
    assert "hashFiles('book/**')" in kept["key"]
    weekly = next(step for step in steps(workflow(WORKFLOWS[2])) if "cache/restore@" in step.get("uses", ""))["with"]
    assert weekly == kept


def test_what_fails_weekly_opens_an_issue():
    read = workflow(ROOT / ".github" / "workflows" / "weekly.yml")
    report = read["jobs"].pop("report")
    assert "schedule" in read["on"] and set(report["needs"]) == set(read["jobs"]) and report["if"] == "failure()"
    assert report["permissions"] == {"issues": "write"} and "gh issue create" in str(report["steps"])
    assert "colab-images/public/runtime" in str(read["jobs"]["colab"])
    assert "lychee" in str(read["jobs"]["links"]) and "README.md" in str(read["jobs"]["links"])


@pytest.mark.parametrize("made", [True, False], ids=["all pages", "one is missing"])
def test_the_check_of_the_pages_finds_a_missing_one(tmp_path, made):
    (tmp_path / "_toc.yml").write_text("root: book/intro\nchapters:\n  - file: book/01\n", encoding="utf-8")
    (tmp_path / "_build" / "html" / "book").mkdir(parents=True)
    for name in ["intro", "01"][: 1 + made]:
        (tmp_path / "_build" / "html" / "book" / f"{name}.html").touch()
    ran = subprocess.run([sys.executable, ROOT / ".ci" / "pages.py"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == (0 if made else 1) and ("book/01" in ran.stderr) != made


def test_the_tag_that_colab_installs_is_the_version():
    assert TAG == f"v{osscl_lite.__version__}"
