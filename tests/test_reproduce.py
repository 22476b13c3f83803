"""The command reproduce: a small tree in the challenge's layout from clips to tables, stopped, resumed, listed."""

import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from osscl_lite import grid
from osscl_lite import reproduce as command
from osscl_lite.__main__ import main
from osscl_lite.errors import BadInput
from osscl_lite.recipe import recipe
from osscl_lite.record import RESULTS
from osscl_lite.reproduce import ablated, plan, span, times, with_settings
from osscl_lite.tables import Records

FEW = {"idnn", "logmel-osscl", "logmel-arcface"}
SMALL = ["--set", "epochs=1", "--set", "width=8"]


def few(*arguments):
    """The real plan, of which only a few quick systems are run."""
    jobs, reasons = plan(*arguments)
    quick = {None, 64, 4}  # reductions
    return [job for job in jobs if job.recipe.name in FEW and getattr(job.recipe, "reduction", 64) in quick], reasons


@pytest.fixture(autouse=True)
def few_systems(monkeypatch):
    monkeypatch.setattr(command, "plan", few)
    monkeypatch.delenv("OSSCL_LITE_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def challenge(tree, tmp_path_factory):
    """The tree with a machine of the additional and evaluation sets beside it, test clips without a label."""
    root, rng = tmp_path_factory.mktemp("challenge"), np.random.default_rng(0)
    (root / "dev_data").symlink_to(tree)
    for split, name, count in (("train", "normal_id_01_{:08d}.wav", 6), ("test", "id_01_{:08d}.wav", 4)):
        folder = root / "eval_data" / "fan" / split
        folder.mkdir(parents=True)
        for index in range(count):
            pitch = 160 * (1.2 if split == "test" and index % 2 else 1)
            wave = 0.1 * np.sin(2 * np.pi * pitch * np.arange(32_000) / 16_000) + 0.01 * rng.standard_normal(32_000)
            soundfile.write(folder / name.format(index), wave, 16_000)
    return root


LIST = "fan\n" + "".join(
    f"id_01_{index:08d}.wav,{('normal', 'anomaly')[index % 2]}_id_01_{index:08d}.wav,{index % 2}\n"
    for index in range(4)
)


def words(root, to, *more):
    to = ["--out", str(to / "runs"), "--to", str(to / "results"), "--device", "cpu"]
    return ["reproduce", "2", "5", "--data", "dcase2020", "--root", str(root), "--size", "tiny", *SMALL, *to, *more]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def ran(challenge, tmp_path_factory):
    """Two seeds of two systems, stopped after two of four runs and started again: folder, what ran, first files."""
    to, done, kept = tmp_path_factory.mktemp("ran"), [], grid.record

    def stopped(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(grid.run_name(arguments[2], arguments[0]))
        return kept(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "plan", few)
        patch.delenv("OSSCL_LITE_WEIGHTS", raising=False)
        patch.setattr(grid, "record", stopped)
        assert main(words(challenge, to, "--seeds", "2")) == 130
        first = {path: path.stat().st_mtime_ns for path in (to / "results").glob("*seed*")}
        patch.setattr(grid, "record", lambda *a: done.append(grid.run_name(a[2], a[0])) or kept(*a))
        assert main(words(challenge, to, "--seeds", "2")) == 0
    return to, done, first


def test_a_stopped_run_goes_on_and_repeats_nothing(ran):
    to, done, first = ran
    assert len(done) == 4 == len(set(done)) and len(first) == 5  # two records, their scores, one detector
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    assert {path.stem for path in (to / "results").glob("*.json")} == set(done)


def test_tables_are_printed_with_every_column_and_the_reason_of_a_row_that_cannot_run(challenge, ran, capsys):
    to = ran[0]
    before = files(to / "results" / "tables")
    assert main(words(challenge, to, "--seeds", "2")) == 0
    out = capsys.readouterr().out
    assert out.count("done already") == 4 and "AnoPatch (AST): not run, anopatch-ast: no weights" in out
    assert "TABLE II" in out and "TABLE V" in out and "ToyConveyor pAUC" in out and "76.96" in out
    assert "AnoPatch (BEATs): no weights at hand" in out and "improvements of 1.63%" in out
    assert "no labelled test clips of Pump" in out and "no labelled clips of the evaluation set" in out
    name = challenge.name
    assert set(before) == {f"{name}-table{n}{end}" for n in (2, 5) for end in (".txt", ".csv", "-differences.csv")}
    assert files(to / "results" / "tables") == before  # byte for byte
    frame = pd.read_csv(to / "results" / "tables" / f"{name}-table2.csv")
    fan = frame.query("label == 'Log-Mel OS-SCL' and column == 'Fan AUC'").set_index("average")["value"]
    assert fan["printed"] == 95.66 and 0 <= fan["mean"] <= 100 and fan["pooled"] <= 100


def test_with_the_label_list_evaluation_columns_are_measured(challenge, tmp_path, capsys):
    root = tmp_path / "listed"
    root.mkdir()
    for folder in ("dev_data", "eval_data"):
        (root / folder).symlink_to(challenge / folder)
    (root / "eval_data_list.csv").write_text(LIST)
    assert main([word if word != "2" else "5" for word in words(root, tmp_path)]) == 0
    frame = pd.read_csv(tmp_path / "results" / "tables" / "listed-table5.csv").query("label == 'Log-Mel OS-SCL'")
    rows = frame[frame["average"].eq("mean")].set_index("column")["value"]
    assert rows.notna().all() and rows["all_mean"] == pytest.approx(
        (rows["development_mean"] + rows["evaluation_mean"]) / 2, abs=1e-3
    )
    assert "no labelled clips" not in capsys.readouterr().out


def test_the_list_says_how_far_and_how_long(challenge, ran, capsys):
    to = ran[0]
    assert main(words(challenge, to, "--seeds", "3", "--list")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(": done") for line in lines) == 4
    todo = [line for line in lines if "to do" in line]
    assert len(todo) == 2 and all("seed2: to do, about " in line for line in todo)
    assert lines[-1].startswith("in all about ") and "unknown" not in lines[-1]
    assert main(words(challenge, to, "--set", "epochs=2", "--list")) == 0
    assert "a record of another recipe" in capsys.readouterr().out


def test_a_run_that_fails_is_a_line_and_the_tables_are_still_there(challenge, tmp_path, monkeypatch, capsys):
    def record(recipe, *rest):
        raise BadInput("the disk is full")

    monkeypatch.setattr(grid, "record", record)
    assert main(words(challenge, tmp_path)) == 1
    caught = capsys.readouterr()
    assert caught.out.count("failed: the disk is full") == 2 and "2 runs failed" in caught.err
    assert "-  IDNN, MobileNetV2" in caught.out and ": not recorded" in caught.out


def test_features_run_what_can_and_say_why_not(make_features, tmp_path, capsys):
    root = make_features(frames=4)  # fewer than the windows of IDNN, whose recipe follows
    line = ["reproduce", "2", "6", "--data", "features", "--root", str(root), "--size", "features", *SMALL]
    line += ["--set", "batch_size=16", "--out", str(tmp_path / "runs"), "--to", str(tmp_path / "results")]
    assert main([*line, "--device", "cpu"]) == 0
    names = {path.stem.removeprefix(f"{root.name}-") for path in (tmp_path / "results").glob("*.json")}
    assert names == {f"{name}-seed0" for name in ("idnn", "logmel-osscl", "logmel-arcface", "logmel-osscl-r0",
                                                  "logmel-osscl-r4")}  # fmt: skip
    assert not list((tmp_path / "results").glob("*.safetensors"))
    out = capsys.readouterr().out
    assert "STgram-MFN: not run, learns from waveforms, and these are features" in out
    assert "Score: 1-NN on embeddings" in out and "ArcFace (on these features)" in out and "ToyCar" in out
    assert main([*line, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("done already") == 5


def test_the_plan_is_seed_by_seed_and_names_each_run_once():
    records = Records("hall-book", RESULTS, "hall", range(3), "logmel-osscl")
    source = dict(source="hall", size="book", root=None, seed=0)
    jobs, reasons = plan(records, [3, 6], source, "book", ["epochs=2"])
    assert [job.recipe.seed for job in jobs] == [0] * 11 + [1] * 11 + [2] * 11
    assert len({job.name for job in jobs}) == 33 and not reasons
    assert {job.recipe.reduction for job in jobs if job.recipe.name == "logmel-osscl"} == {None, 128, 64, 32, 16, 8, 4}
    assert all(job.source["seed"] == job.recipe.seed for job in jobs)
    kept = {(job.recipe.name, job.recipe.seed) for job in jobs if job.keep}
    assert kept == {("logmel-osscl", 0), ("tfstgram-osscl", 0)}
    assert {job.recipe.epochs for job in jobs} == {2}
    for odd in ("colour=red", "nobody:epochs=2"):
        with pytest.raises(BadInput, match=f"--set {odd}: no system"):
            plan(records, [3], source, "book", [odd])


def test_settings_reach_the_systems_that_have_them():
    changed, known = with_settings(recipe("logmel-osscl"), ["reduction=none", "learning_rate=0.5", "colour=red"])
    assert (changed.reduction, changed.learning_rate) == (None, 0.5)
    assert known == {"reduction=none", "learning_rate=0.5"}
    own = ["logmel:epochs=3", "idnn:epochs=4", "epochs:epochs=5"]
    changed, known = with_settings(recipe("logmel-arcface"), own)
    assert changed.epochs == 3 and known == {"logmel:epochs=3"}
    for bad in ("epochs", "epochs=", "epochs=many", "epochs=0", "=3", "width=none"):
        with pytest.raises(BadInput, match=f"--set {bad}: "):
            with_settings(recipe("logmel-osscl"), [bad])


def test_table_six_varies_the_head_that_can_be_trained():
    assert ablated("hall", "paper", "cpu") == ablated("dcase2020", "tiny", "cpu") == "tfstgram-osscl"
    assert (
        ablated("hall", "book", "cuda") == "tfstgram-osscl" and ablated("features", "paper", "cuda") == "logmel-osscl"
    )
    assert ablated("hall", "book", "cpu") == "logmel-osscl"


def test_times_are_medians_of_records_and_spans_are_words(tmp_path):
    for seed, seconds in enumerate((10.0, 30.0, 20.0)):
        result = dict(recipe=dict(name="idnn", size="odd"), data="here", train_seconds=seconds)
        (tmp_path / f"here-idnn-seed{seed}.json").write_text(json.dumps(result))
    (tmp_path / "here-idnn-seed9.json").write_text("{")
    assert times(tmp_path)["idnn", "odd"] == times(tmp_path)["idnn", "odd", "here"] == 20
    assert [span(s) for s in (None, 40, 600, 7200)] == ["unknown", "about 40 s", "about 10 min", "about 2.0 h"]


@pytest.mark.parametrize("bad", [["7"], ["2", "--seeds", "0"]])
def test_tables_and_seeds_that_do_not_exist_are_refused(bad, tmp_path):
    line = ["reproduce", *bad, "--data", "hall", "--size", "tiny", "--to", str(tmp_path)]
    try:
        status = main(line)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and not list(tmp_path.iterdir())
