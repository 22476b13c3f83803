"""Every chapter alone in an empty folder, beside the versions that Colab has, installed there by its own first cell.

    python -m venv COLAB && COLAB/bin/python -m pip install -r .ci/colab.txt
    COLAB_PYTHON=COLAB/bin/python python -m pytest tests/test_colab.py -o addopts= -n 2 --dist worksteal --durations 0

Each chapter gets an environment of its own: that one's packages, a ``google.colab`` that does nothing, and what the
first cell adds. Git takes a local repository, which holds the working tree, for the public address. All cells run,
those tagged skip-execution too, as "Run all" has it in Colab.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_notebooks import NOTEBOOKS, REPOSITORY, ROOT, TAG, named

RUN = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=900, kernel_name="python3", skip_cells_with_tag="").execute()
"""
PACKAGES = "import site; print('\\n'.join(site.getsitepackages()))"
LONGEST_FIRST = sorted(NOTEBOOKS, key=lambda path: path.stem != "05_training")
SETTINGS = ("user.name=test", "user.email=test@localhost", "commit.gpgsign=false", "tag.gpgsign=false")
GIT = ["git", *(word for setting in SETTINGS for word in ("-c", setting))]


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@pytest.fixture(scope="session")
def python() -> Path:
    """The python of the environment that has Colab's versions."""
    if not os.environ.get("COLAB_PYTHON"):
        why = "no environment with Colab's versions: set COLAB_PYTHON to its python"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    return Path(os.environ["COLAB_PYTHON"]).absolute()


@pytest.fixture(scope="session")
def address(tmp_path_factory) -> dict[str, str]:
    """Variables that make git take a local repository for the public one; it has the working tree, under the tag."""
    tree, bare = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("git") / "bare.git"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "osscl_lite", tree / "osscl_lite", ignore=shutil.ignore_patterns("__pycache__"))
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "tree"], ["tag", TAG]):
        subprocess.run([*GIT, *words], cwd=tree, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", tree, bare], check=True)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{bare.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
    }


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    """One cache for the chapters of all test processes, so that the hall is made once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sound"


@pytest.mark.parametrize("path", LONGEST_FIRST, ids=named)
def test_a_chapter_runs_alone_in_colab(path, python, address, sound, tmp_path):
    own, folder = tmp_path / "own", tmp_path / "content"
    subprocess.run([python, "-m", "venv", "--without-pip", own], check=True)
    packages = Path(output(own / "bin" / "python", "-c", PACKAGES))
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").touch()
    (packages / "colab.pth").write_text(f"{output(python, '-c', PACKAGES)}\nimport google.colab\n")
    output(own / "bin" / "python", "-m", "ipykernel", "install", "--sys-prefix")
    folder.mkdir()
    shutil.copy(path, folder)

    share = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    settings = address | {
        "JUPYTER_DATA_DIR": str(tmp_path / "jupyter"),  # no kernel of the user's
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // share)),
        "OSSCL_LITE_CACHE": str(sound),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # says nothing about frozen modules
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    ran = subprocess.run(
        [own / "bin" / "python", "-c", RUN, path.name], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-6000:]

    # The first cell brought this package and nothing else: no version of Colab's was replaced.
    added = {info.name.split("-")[0] for info in packages.glob("*.dist-info")}
    assert added == {"osscl_lite"}
    origin = json.loads(next(packages.glob("osscl_lite-*.dist-info/direct_url.json")).read_text(encoding="utf-8"))
    assert (origin["url"], origin["vcs_info"]["requested_revision"]) == (REPOSITORY, TAG)
    shutil.rmtree(tmp_path)
