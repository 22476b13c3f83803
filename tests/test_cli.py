"""The command line: help, an epoch of training, scores of a folder, files and a table, files of no use."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile

import osscl_lite as ol
from osscl_lite.__main__ import main

SMALL = ["--set", "width=8", "--set", "epochs=1"]


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory):
    """The folder that one epoch of the real command leaves."""
    out = tmp_path_factory.mktemp("run")
    words = ["train", "--recipe", "logmel-osscl", "--size", "tiny", "--data", "dcase2020", "--root", str(tree)]
    done = subprocess.run(
        [sys.executable, "-m", "osscl_lite", *words, "--out", str(out), *SMALL], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 1 of 1 chosen" in done.stdout and "Traceback" not in done.stderr
    return out


def score(run, *words):
    return main(["score", "--model", str(run / "detector.safetensors"), *map(str, words)])


@pytest.mark.parametrize(
    "words",
    [["data", "download"], ["data", "hall"], ["train"], ["score"], ["export"], ["record"], ["grid"], ["reproduce"]],
    ids=lambda words: words[-1],
)
def test_help_shows_an_example_that_parses(words, capsys):
    from osscl_lite.__main__ import parser

    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    example = capsys.readouterr().out.partition("example:\n")[2].strip()
    assert stopped.value.code == 0 and example.startswith("python -m osscl_lite " + " ".join(words))
    parser().parse_args(example.split()[3:])


def test_one_epoch_leaves_checkpoint_log_and_detector(run):
    assert {path.name for path in run.iterdir()} == {"checkpoint.safetensors", "log.csv", "detector.safetensors"}
    assert len(pd.read_csv(run / "log.csv")) == 1
    assert ol.Detector.load(run / "detector.safetensors").machines == [
        "fan/id_00",
        "fan/id_02",
        "valve/id_00",
        "valve/id_02",
    ]


def test_tree_folder_files_and_table_give_the_same_scores(run, tree, tmp_path, capsys):
    assert score(run, tree, "--out", tmp_path / "tree.csv") == 0
    table = pd.read_csv(tmp_path / "tree.csv").set_index("path")["score"]
    assert len(table) == 40 and np.isfinite(table).all()
    folder = tree / "fan" / "test"
    assert score(run, folder, "--out", tmp_path / "folder.csv") == 0
    frame = pd.read_csv(tmp_path / "folder.csv")
    assert frame["label"].tolist() == ["anomaly"] * 4 + ["normal"] * 4
    np.testing.assert_allclose(frame["score"], table[frame["path"]], rtol=1e-4)
    files = sorted(folder.glob("*.wav"))[:2]
    capsys.readouterr()
    assert score(run, *files) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("path,machine_type,machine_id") and len(lines) == 3
    assert float(lines[1].split(",")[-1]) == pytest.approx(table[str(files[0])], rel=1e-4)
    given = pd.DataFrame(
        {"path": ["valve/test/normal_id_02_00000000.wav"], "machine_type": "valve", "machine_id": "id_02"}
    )
    given.to_csv(tree / "given.csv", index=False)
    try:
        assert score(run, tree / "given.csv", "--out", tmp_path / "table.csv") == 0
    finally:
        (tree / "given.csv").unlink()
    expected = table[str(tree / "valve" / "test" / "normal_id_02_00000000.wav")]
    assert pd.read_csv(tmp_path / "table.csv")["score"][0] == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def bad_folder(tmp_path):
    """Eight clips of fan id_00: one good, seven that cannot be used."""
    folder = tmp_path / "fan" / "test"
    folder.mkdir(parents=True)
    wave = 0.1 * np.sin(np.arange(32_000) * 0.2)

    def name(index):
        return folder / f"normal_id_00_{index:08d}.wav"

    soundfile.write(name(0), wave, 16_000)
    name(1).touch()
    name(2).write_bytes(name(0).read_bytes()[:20_000])
    soundfile.write(name(3), np.stack([wave, wave], 1), 16_000)
    soundfile.write(name(4), np.tile(wave, 3), 44_100)
    soundfile.write(name(5), wave[:16_000], 16_000)
    soundfile.write(name(6), np.full(32_000, np.nan), 16_000, subtype="FLOAT")
    name(7).write_text("not a sound\n" * 50)
    return folder


def test_bad_files_get_a_line_each_and_the_others_a_score(run, bad_folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "osscl_lite", "score", "--model", run / "detector.safetensors", bad_folder],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 2 and "normal_id_00_00000000.wav" in done.stdout
    lines = done.stderr.splitlines()
    reasons = ["empty", "cut short", "2 channels", "44100 Hz", "lasts 1.00 s", "NaN", "not a WAV file"]
    assert len(lines) == 8 and lines[-1] == "7 files left out, 1 scored"
    for index, (line, reason) in enumerate(zip(lines[:-1], reasons, strict=True), start=1):
        assert f"normal_id_00_{index:08d}.wav: " in line and reason in line


def test_three_seconds_are_too_short_for_a_recipe_of_ten(tree, tmp_path, capsys):
    path = tmp_path / "fan" / "test" / "normal_id_00_00000000.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, np.zeros(48_000), 16_000)
    recipe = ol.replace(ol.recipe("logmel-osscl", "tiny"), seconds=10.0)
    ol.Detector(recipe, ["fan/id_00"]).save(tmp_path / "detector.safetensors")
    assert score(tmp_path, path.parent) == 1
    caught = capsys.readouterr()
    assert caught.err.splitlines()[0].startswith(f"{path}: lasts 3.00 s, 10.00 s are needed")
    assert caught.out.splitlines() == ["path,machine_type,machine_id,label,score"]


def test_training_on_bad_files_lists_them_and_trains_nothing(bad_folder, tmp_path, capsys):
    (bad_folder.parent / "train").mkdir()
    for path in bad_folder.glob("*.wav"):
        path.rename(bad_folder.parent / "train" / path.name)
        other = path.name.replace("id_00", "id_02")
        (bad_folder.parent / "train" / other).write_bytes((bad_folder.parent / "train" / path.name).read_bytes())
    words = ["train", "--recipe", "logmel-osscl", "--size", "tiny", "--data", "dcase2020", "--root", str(tmp_path)]
    assert main([*words, "--out", str(tmp_path / "out"), *SMALL]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 15 and "14 clips cannot be used" in lines[-1] and not (tmp_path / "out").exists()


def one_line(capsys, words, status=2):
    assert main([str(word) for word in words]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_scoring_what_cannot_be_scored_is_one_line(run, tree, tmp_path, capsys):
    model = ["score", "--model", run / "detector.safetensors"]
    stray = tmp_path / "recording.wav"
    soundfile.write(stray, np.zeros(32_000), 16_000)
    assert "fan/id_00" in one_line(capsys, [*model, stray, "--machine", "fan"])
    assert "recording.wav" in one_line(capsys, [*model, stray])
    assert "not trained on pump/id_00" in one_line(capsys, [*model, stray, "--machine", "pump/id_00"])
    (tmp_path / "nothing").mkdir()
    assert "nothing" in one_line(capsys, [*model, tmp_path / "nothing"])
    assert "no such table" in one_line(capsys, [*model, tmp_path / "missing.csv"])
    (tmp_path / "table.csv").write_text("file\na.wav\n")
    assert "no column 'path'" in one_line(capsys, [*model, tmp_path / "table.csv"])
    (tmp_path / "table.csv").write_text("path\na.wav\n")
    assert "machine_type, machine_id" in one_line(capsys, [*model, tmp_path / "table.csv"])
    (tmp_path / "table.csv").write_text("path,machine_type,machine_id\nrecording.wav,fan,\n")
    assert "not trained on fan/" in one_line(capsys, [*model, tmp_path / "table.csv"])
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00broken")
    assert "not a CSV table" in one_line(capsys, [*model, tmp_path / "table.csv"])
    assert "no such file" in one_line(capsys, ["score", "--model", tmp_path / "no.safetensors", tree])
    assert "device abacus" in one_line(capsys, [*model, stray, "--machine", "fan/id_00", "--device", "abacus"])


def test_a_single_file_needs_only_its_machine_said(run, tmp_path, capsys):
    stray = tmp_path / "recording.wav"
    soundfile.write(stray, 0.1 * np.ones(40_000), 16_000)
    assert score(run, stray, "--machine", "valve/id_02") == 0
    assert f"{stray},valve,id_02,unknown," in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", ["epochs", "colour=1", "epochs=many", "epochs=0", "batch_size=1", "width=none", "front_end=mel"]
)
def test_a_value_that_a_recipe_cannot_have_is_one_line(change, tmp_path, capsys):
    words = [
        "train",
        "--recipe",
        "logmel-osscl",
        "--size",
        "tiny",
        "--data",
        "hall",
        "--out",
        tmp_path,
        "--set",
        change,
    ]
    assert one_line(capsys, words).startswith(f"--set {change}: ")


def test_reduction_none_leaves_the_head_out(tree, tmp_path):
    words = ["train", "--recipe", "logmel-osscl", "--size", "tiny", "--data", "dcase2020", "--root", str(tree)]
    assert main([*words, "--out", str(tmp_path), *SMALL, "--set", "reduction=none"]) == 0
    assert ol.Detector.load(tmp_path / "detector.safetensors").recipe.reduction is None


def test_training_data_that_is_not_there_is_one_line(tmp_path, capsys):
    words = ["train", "--recipe", "logmel-osscl", "--size", "tiny", "--out", tmp_path / "out"]
    assert "no such folder" in one_line(capsys, [*words, "--data", "dcase2020", "--root", tmp_path / "no"])
    assert "root" in one_line(capsys, [*words, "--data", "features"])


def test_features_are_trained_on_and_scored_by_folder_and_table(make_features, tmp_path, capsys):
    root = make_features()
    words = ["train", "--recipe", "logmel-osscl", "--size", "tiny", "--data", "features", "--root", str(root)]
    assert main([*words, "--out", str(tmp_path), *SMALL]) == 0
    assert score(tmp_path, root, "--out", tmp_path / "scores.csv") == 0
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert len(scores) == 56
    assert score(tmp_path, tmp_path / "scores.csv", "--out", tmp_path / "again.csv") == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "again.csv")["score"], scores["score"], rtol=1e-5)
    capsys.readouterr()
    tfst = [word.replace("logmel", "tfstgram") for word in words]
    assert "learns from waveforms" in one_line(capsys, [*tfst, "--out", tmp_path / "no"])
