"""Grids of runs and bulk scoring: here and over Ray the same; what is finished stays, whatever dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import osscl_lite as ol
from osscl_lite import grid
from osscl_lite.__main__ import main
from osscl_lite.errors import BadInput
from osscl_lite.grid import Job, run_grid

pytestmark = pytest.mark.usefixtures("one_thread")
TIMES = ("train_seconds", "epoch_seconds")


@pytest.fixture(scope="module")
def two_workers():
    """One local Ray cluster for all tests here."""
    pytest.importorskip("ray", reason="the optional package ray is not installed")
    with grid.cluster(2):
        yield


@pytest.fixture(scope="module")
def root(make_features):
    return make_features(bands=32, frames=40)


def job(root, name="logmel-osscl", seed=0, **changes):
    small = dict(width=8, embedding=16, reduction=8, batch_size=8, epochs=2, holdout=0.2, seed=seed)
    if "arcface" in name:
        small["reduction"] = None
    recipe = ol.replace(ol.recipe(name, "tiny"), **small | changes)
    return Job(recipe, "few", dict(source="features", root=root))


def run(jobs, folder, workers=1):
    lines = []
    failed = run_grid(jobs, folder / "results", folder / "runs", workers, "cpu", lines.append)
    return failed, lines


def records(folder):
    """Name -> what it says apart from times, and the bytes of its detector."""
    found = {path.stem: json.loads(path.read_text()) for path in (folder / "results").glob("*.json")}
    return {
        name: (
            {key: value for key, value in result.items() if key not in TIMES},
            (folder / "results" / f"{name}.safetensors").read_bytes(),
        )
        for name, result in found.items()
    }


def marks(folder):
    """Every file below -> its bytes and the time of its last change."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def local(root, one_thread, tmp_path_factory):
    """Four runs in this process: the folder, the jobs, the lines."""
    folder = tmp_path_factory.mktemp("local")
    jobs = [job(root, name, seed) for seed in (0, 1) for name in ("logmel-osscl", "logmel-arcface")]
    failed, lines = run(jobs, folder)
    assert failed == {}
    return folder, jobs, lines


def test_each_run_has_its_record_its_folder_and_its_line(local):
    folder, jobs, lines = local
    names = ["few-logmel-osscl-r8-seed0", "few-logmel-arcface-seed0", "few-logmel-osscl-r8-seed1"]
    assert [one.name for one in jobs[:3]] == names
    assert set(records(folder)) == {one.name for one in jobs} == {path.name for path in (folder / "runs").iterdir()}
    for number, (line, one) in enumerate(zip(lines, jobs, strict=True), start=1):
        assert line.startswith(f"{number} of 4  {one.name}: ") and line.endswith(" s")
    seeds = [records(folder)[name][0]["recipe"]["seed"] for name in (names[0], names[2])]
    assert seeds == [0, 1] and records(folder)[names[0]][1] != records(folder)[names[2]][1]


def test_a_second_call_runs_nothing(local, monkeypatch):
    folder, jobs, _ = local
    before = marks(folder)
    monkeypatch.setattr(grid, "record", None)
    failed, lines = run(jobs + jobs[:1], folder, workers=2)  # with nothing to run, no Ray is started either
    assert failed == {} and lines == [f"{i + 1} of 4  {one.name}: done already" for i, one in enumerate(jobs)]
    ended = grid.run_job(jobs[0], folder / "results", folder / "runs", "cpu")  # again, its record written
    assert ended.reason is None and marks(folder) == before


def test_records_of_something_else_are_neither_used_nor_replaced(local, root, make_features):
    folder, jobs, _ = local
    before = marks(folder / "results")
    other_data = Job(jobs[2].recipe, "few", dict(source="features", root=make_features(bands=8)))
    failed, _ = run([job(root, epochs=1), other_data], folder)
    assert list(failed) == [jobs[0].name, jobs[2].name] and marks(folder / "results") == before
    for reason, what in zip(failed.values(), ("recipe", "clips"), strict=True):
        assert f".json: a record of another {what}; give another folder, or delete it" in reason
    with pytest.raises(BadInput, match=f"{jobs[0].name}: two different runs have this name"):
        run([jobs[0], job(root, epochs=1)], folder)


def test_a_damaged_record_is_one_line(root, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{job(root).name}.json").write_text('{"recipe": ')
    failed, lines = run([job(root)], tmp_path)
    assert "not a readable record; delete it" in failed[job(root).name] and len(lines) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_fails_is_one_line_and_the_others_finish(workers, root, tmp_path, request, monkeypatch):
    if workers == 2:
        request.getfixturevalue("two_workers")
    gone = Job(job(root).recipe, "gone", dict(source="features", root=tmp_path / "gone"))
    jobs = [job(root, "tfstgram-osscl"), job(root, epochs=1), gone, job(root, batch_size=9, seed=3, learning_rate=1e1)]
    if workers == 1:  # something nobody thought of

        def odd(recipe, *arguments, real=grid.record):
            return real(recipe, *arguments) if recipe.seed != 3 else [][3]

        monkeypatch.setattr(grid, "record", odd)
    failed, lines = run(jobs, tmp_path, workers)
    assert list(records(tmp_path))[0] == jobs[1].name and len(lines) == 4
    assert "learns from waveforms" in failed[jobs[0].name] and "clips.csv" in failed[gone.name]
    for name, reason in failed.items():
        assert "\n" not in reason and sum(line.endswith(f"{name}: failed: {reason}") for line in lines) == 1
    if workers == 1:
        assert failed[jobs[3].name].startswith("IndexError: list index out of range (test_grid.py, line ")


def test_over_ray_the_same(local, two_workers, tmp_path):
    folder, jobs, _ = local
    failed, lines = run(jobs, tmp_path, workers=2)
    assert failed == {} and len(lines) == 4
    assert records(tmp_path) == records(folder)
    assert run(jobs, tmp_path, workers=2)[1] == [
        f"{i + 1} of 4  {one.name}: done already" for i, one in enumerate(jobs)
    ]


def test_the_command_records_lists_and_varies(root, tmp_path, capsys):
    words = ["grid", "--recipes", "logmel-osscl,logmel-arcface", "--size", "tiny", "--data", "features"]
    words += ["--root", str(root), "--set", "width=8", "--set", "epochs=1", "--set", "reduction=none"]
    words += ["--device", "cpu", "--out", str(tmp_path / "runs"), "--to", str(tmp_path / "results")]
    assert main([*words, "--list"]) == 0
    name = f"{root.name}-logmel-arcface-seed0"
    assert capsys.readouterr().out == f"{root.name}-logmel-osscl-r0-seed0: to do\n{name}: to do\n"
    assert not (tmp_path / "results").exists()

    assert main(words) == 0
    assert [line.rpartition(": ")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"1 of 2  {root.name}-logmel-osscl-r0-seed0", f"2 of 2  {name}",
    ]  # fmt: skip
    (tmp_path / "results" / f"{name}.json").unlink()
    assert main([*words, "--seeds", "2", "--set", "epochs=3", "--list"]) == 2  # recorded with one epoch
    assert "another recipe" in capsys.readouterr().err
    many = [word.replace("=none", "=none,4,16") for word in words if word != "logmel-osscl,logmel-arcface"]
    many.insert(2, "logmel-osscl")
    assert main([*many, "--list", "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("-osscl-")[2] for line in lines] == [
        "r0-seed0: done", "r4-seed0: to do", "r16-seed0: to do",
        "r0-seed1: to do", "r4-seed1: to do", "r16-seed1: to do",
    ]  # fmt: skip


def test_how_far_a_stopped_run_is(root, tmp_path, monkeypatch):
    one = job(root, epochs=3)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("osscl_lite.record.score_all", stop)
    with pytest.raises(KeyboardInterrupt):
        run([one], tmp_path)
    assert grid.state(one, tmp_path / "results", tmp_path / "runs") == "epoch 3 of 3"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--recipes", "logmel"], "--recipes logmel: choose some of"),
        (["--seeds", "0"], "--seeds 0: give 1 or more"),
        (["--workers", "0"], "workers: 0 is too few"),
        (["--set", "colour=1"], "--set colour=1: write NAME=VALUE"),
        (["--set", "margin=0.5,0.6"], "two different runs have this name"),
        (["--data", "features"], "--data features: say in which folder with --root"),
    ],
)
def test_a_grid_that_cannot_be_is_one_line(change, line, tmp_path, capsys):
    words = ["grid", "--recipes", "logmel-osscl", "--data", "hall", "--size", "tiny"]
    assert main([*words, "--out", str(tmp_path), "--to", str(tmp_path), *change]) == 2
    caught = capsys.readouterr()
    assert line in caught.err and len(caught.err.splitlines()) == 1 and caught.out == ""


def test_ray_is_needed_by_several_workers_only(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r'several workers need Ray .*: pip install "osscl_lite\[ray\]"') as caught:
        run([job(root)], tmp_path, workers=2)
    assert "\n" not in str(caught.value)


def test_no_cluster_at_the_address_is_one_line(root, tmp_path):
    pytest.importorskip("ray", reason="the optional package ray is not installed")
    code = "import sys; from osscl_lite.__main__ import main; assert 'ray' not in sys.modules; sys.exit(main())"
    words = ["grid", "--recipes", "logmel-osscl", "--size", "tiny", "--data", "features", "--root", str(root)]
    words += ["--out", str(tmp_path), "--to", str(tmp_path), "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"RAY_ADDRESS": "127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("RAY_ADDRESS 127.0.0.1:9: cannot be used (")


@pytest.fixture
def archive(tree, tmp_path, monkeypatch):
    """The tree's clips under a relative path, three of them of no use, a detector, and parts of eight clips."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tree, "sounds")
    bad = Path("fan")
    bad.mkdir()
    (bad / "normal_id_00_00000001.wav").touch()
    soundfile.write(bad / "normal_id_00_00000002.wav", np.zeros((32_000, 2)), 16_000)
    good = [path.relative_to(tmp_path) for path in sorted((tmp_path / "sounds").rglob("*.wav"))]
    rows = [*good[:5], *bad.iterdir(), *good[5:30], Path("fan/gone.wav"), *good[30:]]
    table = pd.DataFrame({"path": list(map(str, rows))}).assign(machine_type="fan", machine_id="id_00")
    table.to_csv("archive.csv", index=False)
    torch.manual_seed(0)
    ol.Detector(ol.replace(ol.recipe("logmel-osscl", "tiny"), width=8), ["fan/id_00", "fan/id_02"]).save(
        "detector.safetensors"
    )
    monkeypatch.setattr(grid, "PART", 8)
    return good


def score(capsys, model, workers):
    status = main(["score", "--model", model, "--workers", str(workers), "archive.csv", "--out", f"{workers}.csv"])
    return status, capsys.readouterr().err, Path(f"{workers}.csv").read_bytes()


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_scores_in_bulk_are_those_of_one_process(suffix, archive, two_workers, capsys):
    if suffix == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"the optional package {package} is not installed")
        assert main(["export", "--model", "detector.safetensors", "--out", "detector.onnx"]) == 0
    cache = marks(Path(os.environ["OSSCL_LITE_CACHE"]))
    status, said, table = score(capsys, f"detector.{suffix}", 1)
    assert score(capsys, f"detector.{suffix}", 2) == (status, said, table) and status == 1
    assert marks(Path(os.environ["OSSCL_LITE_CACHE"])) == cache, "scoring filled the cache"
    lines = said.splitlines()
    assert len(lines) == 4 and lines[-1] == f"3 files left out, {len(archive)} scored"
    assert sorted("gone" in line for line in lines) == [False, False, False, True] and "gone" in lines[2]
    clips = pd.DataFrame({"path": map(str, archive)}).assign(machine_type="fan", machine_id="id_00")
    scores = pd.read_csv("1.csv")
    assert scores["path"].tolist() == clips["path"].tolist()
    expected = ol.Detector.load("detector.safetensors").score_clips(clips)
    np.testing.assert_allclose(scores["score"], expected, rtol=1e-4)


def test_what_a_worker_refuses_is_the_command_s_line(two_workers, root, archive, capsys):
    model = ["score", "--model", "detector.safetensors", "--workers", "2"]
    assert main([*model, "archive.csv", "--machine", "pump/id_00"]) == 2
    assert capsys.readouterr().err.startswith("not trained on pump/id_00")
    recipe = ol.replace(ol.recipe("logmel-osscl", "tiny"), width=8, input="log_mel", bands=4, frames=4)
    ol.Detector(recipe, [f"ToyCar/id_0{number}" for number in range(1, 5)]).save("other.safetensors")
    assert main(["score", "--model", "other.safetensors", "--workers", "2", str(root)]) == 2
    assert "log_mel of 32 x 40" in capsys.readouterr().err


# Killed. These come last, as new workers take seconds to start.


def own_workers():
    """Processes of our cluster that are at work on a task."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            title = (status.parent / "cmdline").read_bytes().decode()
            parent = int(status.read_text().partition("PPid:")[2].split()[0])
            above = int(Path(f"/proc/{parent}/status").read_text().partition("PPid:")[2].split()[0])
        except (OSError, ValueError, IndexError):
            continue
        if title.startswith("ray::_in_worker") and above == os.getpid():
            found.append(int(status.parent.name))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the worker in /proc")
def test_a_killed_worker_loses_no_finished_run_and_its_own_goes_on(root, two_workers, tmp_path):
    short, long = job(root, epochs=1), job(root, seed=1, epochs=16, batch_size=2)
    folder = tmp_path / "killed"
    log, seen = folder / "runs" / long.name / "log.csv", []

    def kill():
        """When the long run has a checkpoint."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if log.exists() and own_workers():
                seen.append((pd.read_csv(log), (folder / "results" / f"{long.name}.json").exists()))
                os.kill(own_workers()[0], signal.SIGKILL)
                return
            time.sleep(0.01)

    assert run([short], folder, workers=2)[0] == {}
    finished = marks(folder / "results")
    killer = threading.Thread(target=kill)
    killer.start()
    failed, lines = run([short, long], folder, workers=2)
    killer.join()
    ((before, recorded),) = seen
    assert failed == {} and len(lines) == 2
    assert 1 <= len(before) < 16 and not recorded and len(finished) == 3  # JSON, scores, detector
    assert {path: mark for path, mark in marks(folder).items() if path in finished} == finished

    again = pd.read_csv(log)
    assert len(again) == 16
    pd.testing.assert_frame_equal(
        again[: len(before)], before, check_like=True
    )  # their seconds too: it went on, from a checkpoint
    run([short, long], tmp_path / "whole")
    assert records(folder) == records(tmp_path / "whole")


def test_a_task_whose_worker_always_dies_is_one_line(two_workers, monkeypatch):
    monkeypatch.setattr(grid, "RETRIES", 1)
    ended = dict(grid.spread(os._exit, [(1,)], 2, "cpu"))
    assert isinstance(ended[0], BadInput) and "its worker was lost 2 times" in str(ended[0])
