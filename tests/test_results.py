"""Records of runs: what is written, read back and summed up; the scores without training; what the package ships."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import osscl_lite as ol
from osscl_lite.baselines import clp_scf
from osscl_lite.baselines.statistics import mahalanobis, mean_log_mel, nearest_neighbour
from osscl_lite.errors import BadInput
from osscl_lite.recipe import Recipe
from osscl_lite.record import (
    LAST_EPOCH,
    METHODS,
    PAPER_SCORE,
    RESULTS,
    keeps_epochs,
    load_recorded,
    measures,
    read_results,
    read_scores,
    record,
    run_name,
    score_all,
    scores_file,
    summary,
)
from osscl_lite.systems import SYSTEMS
from osscl_lite.training import Run

RECIPE = ol.replace(ol.recipe("logmel-osscl", "tiny"), width=8, epochs=1)


@pytest.fixture(scope="module")
def recorded(tree, tmp_path_factory):
    """Two seeds on the tree, as a hall with bands and severities would be recorded."""
    clips, folder = ol.load_clips("dcase2020", root=tree), tmp_path_factory.mktemp("records")
    faulty = clips["label"].eq("anomaly")
    clips = clips.assign(band=np.where(faulty, "clear", ""), severity=np.where(faulty, 0.6, 0.0))
    for seed in (0, 1):
        record(ol.replace(RECIPE, seed=seed), clips, "small", tmp_path_factory.mktemp("out"), folder, device="cpu")
    return clips, folder


def test_a_record_holds_what_was_measured_and_its_detector(recorded):
    clips, folder = recorded
    results = read_results("small", "logmel-osscl", folder=folder)
    assert [result["seed"] for result in results] == [0, 1]
    assert [result["seed"] for result in read_results("small", "logmel-osscl", [1], folder)] == [1]
    first = results[0]
    assert first["clips"] == dict(train=24, test=16) and first["recipe"]["width"] == 8
    assert np.array(first["confusion"]).sum(1).tolist() == [2, 2, 2, 2]  # normal test clips of each machine
    assert {"hardware", "threads", "versions", "commit", "day"} <= set(first["measured_on"])
    model, test = load_recorded("small", "logmel-osscl", 0, folder), clips[clips["split"] == "test"]
    assert sum(parameter.numel() for parameter in model.parameters()) == first["parameters"]
    again = ol.evaluate(model.score_clips(test), test)
    kept = pd.DataFrame(first["methods"]["paper's score"]["auc"])
    np.testing.assert_allclose(kept["auc"], again["auc"])
    assert first["methods"]["paper's score"]["band"]["anomaly"][0] == 8
    assert first["methods"][METHODS[1]]["by_severity"]["band"] == [".5 to .7"]
    text = (folder / "small-logmel-osscl-seed0.json").read_text()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_scores_by_epoch_are_kept_where_they_are_read():
    names = ("logmel-osscl", "logmel-arcface", "logmel-namix", "logmel-clp-scf")
    kept = [ol.recipe(name, size) for name in names for size in ("book", "features")]
    assert all(map(keeps_epochs, [*kept, ol.replace(RECIPE, reduction=4)]))
    not_kept = [ol.replace(RECIPE, highest_hz=2000), ol.recipe("stgram-osscl", "book"), ol.recipe("logmel-osscl")]
    assert not any(map(keeps_epochs, [*not_kept, SYSTEMS["idnn"].recipe("tiny")]))


def test_every_way_of_scoring_is_named_and_finite(recorded):
    clips, folder = recorded
    scores = score_all(load_recorded("small", "logmel-osscl", 0, folder), clips)
    assert tuple(scores) == METHODS
    for method, values in scores.items():
        assert values.shape == (16,) and np.isfinite(values).all(), method
    assert not np.allclose(scores[METHODS[0]], scores[METHODS[1]])  # the margin counts


def test_the_summary_is_mean_and_interval_in_percent(recorded):
    results = read_results("small", "logmel-osscl", folder=recorded[1])
    values = [
        100 * row["auc"]
        for result in results
        for _, row in pd.DataFrame(result["methods"]["paper's score"]["auc"]).iterrows()
        if (row["machine_type"], row["average"]) == ("fan", "mean")
    ]
    table = summary(results)
    assert table.loc[("paper's score", "value"), "fan"] == pytest.approx(np.mean(values))
    assert table.loc[("paper's score", "±"), "fan"] == pytest.approx(
        12.7062 * np.std(values, ddof=1) / 2**0.5, rel=1e-4
    )
    assert list(table.columns) == ["fan", "valve", "all"]


def test_a_record_that_is_not_there_names_those_that_are(recorded):
    with pytest.raises(BadInput, match="no record of small-tfstgram-osscl; there are small-logmel-osscl"):
        read_results("small", "tfstgram-osscl", folder=recorded[1])


def test_names_tell_the_reduction():
    assert run_name("hall-book", RECIPE) == "hall-book-logmel-osscl-seed2024"
    assert run_name("hall-book", ol.replace(RECIPE, reduction=16)).endswith("osscl-r16-seed2024")
    assert run_name("hall-book", ol.replace(RECIPE, reduction=None)).endswith("osscl-r0-seed2024")
    assert run_name("hall-book", ol.recipe("logmel-arcface")).endswith("arcface-seed2024")


def test_mahalanobis_measures_each_machine_by_its_own_clips():
    rng = np.random.default_rng(0)
    spread = np.array([[2.0, 0.0], [1.0, 1.0]])
    train = np.concatenate([rng.standard_normal((2_000, 2)) @ spread, 50 + rng.standard_normal((2_000, 2))])
    machines = np.repeat(["a", "b"], 2_000)
    test, own = np.array([[1.0, -1.0], [51.0, 50.0], [0.0, 0.0]]), np.array(["a", "b", "c"])
    inverse = np.linalg.inv(spread.T @ spread)
    scores = mahalanobis(train, machines, test, own)
    assert scores[0] == pytest.approx(test[0] @ inverse @ test[0], rel=0.1)
    assert scores[1] == pytest.approx(1.0, abs=0.15) and np.isnan(scores[2])


def test_vectors_that_nearly_point_one_way_do_not_tie():
    rng = np.random.default_rng(0)
    train, test = (1 + 1e-5 * rng.standard_normal((40, 8)).astype(np.float32) for _ in range(2))
    machines = np.repeat("a", 40)
    distances = nearest_neighbour(train, machines, test, machines, "cosine")
    whole = [vectors.astype(np.longdouble) for vectors in (train, test)]
    rows = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in whole]
    np.testing.assert_allclose(distances, 1 - (rows[1] @ rows[0].T).max(1).astype(float), atol=1e-15)
    assert len(np.unique(distances)) == len(np.unique(mahalanobis(train, machines, test, machines))) == 40


def test_nearest_neighbour_is_the_nearest_of_the_own_machine():
    train, machines = np.array([[0.0, 1.0], [2.0, 3.0], [1.0, 0.0]]), np.array(["a", "a", "b"])
    test, own = np.array([[0.0, 3.0], [3.0, 1.0], [0.0, 0.0]]), np.array(["a", "b", "c"])
    cosine = nearest_neighbour(train, machines, test, own, "cosine")
    assert (
        cosine[0] == pytest.approx(0, abs=1e-7) and cosine[1] == pytest.approx(1 - 3 / 10**0.5) and np.isnan(cosine[2])
    )
    scaled = nearest_neighbour(train * [1, 100], machines, test * [1, 100], own, "standardised")
    assert scaled[0] == pytest.approx(2)  # each axis in units of its own spread, 1 here: (0, 3) from (0, 1) or (2, 3)


def test_mean_log_mel_averages_over_time_and_leaves_other_pictures_whole(tree, make_features):
    clips = ol.load_clips("dcase2020", root=tree)[:3]
    vectors = mean_log_mel(RECIPE, clips)
    assert vectors.shape == (3, 32) and (-100 <= vectors).all() and (vectors < 60).all()
    features = ol.load_clips("features", root=make_features("modulation", 6, 4))[:3]
    recipe = ol.replace(RECIPE, input="features", bands=6, frames=4)
    assert mean_log_mel(recipe, features).shape == (3, 24)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*-seed*.json")), ids=lambda path: path.stem)
def test_shipped_records_are_named_after_their_seed_and_data(path):
    result = json.loads(path.read_text())
    assert path.stem.endswith(f"-seed{result['seed']}") and path.stem.startswith(result["data"])
    own = METHODS if "log" in result else (PAPER_SCORE,)
    assert tuple(result["methods"]) in (own, own[:1] + own[2:]) and result["recipe"]["seed"] == result["seed"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*-seed*.json")), ids=lambda path: path.stem)
def test_shipped_records_follow_from_their_scores(path):
    result = json.loads(path.read_text())
    scores = read_scores(result)
    assert (LAST_EPOCH in scores.methods) == ("log" in result)
    assert not (scores.methods.get(METHODS[1], np.ones(1)) == 0).any()  # that would be ties
    for method, values in scores.methods.items():
        if method == LAST_EPOCH:
            continue  # has no numbers in the record
        found = json.loads(json.dumps(measures(values, scores.clips)))
        assert found.keys() == result["methods"][method].keys()
        for name, columns in found.items():
            told = pd.DataFrame(result["methods"][method][name])
            pd.testing.assert_frame_equal(pd.DataFrame(columns), told, atol=1e-9)


def test_the_last_epoch_is_scored_beside_the_chosen_one(tree, tmp_path, monkeypatch):
    losses = iter([1.0, 2.0])  # the first of two epochs is chosen
    real = Run.look_at_holdout
    monkeypatch.setattr(Run, "look_at_holdout", lambda self: real(self) | dict(holdout_loss=next(losses)))
    clips = ol.load_clips("dcase2020", root=tree)
    result = record(ol.replace(RECIPE, epochs=2), clips, "two", tmp_path / "run", tmp_path, device="cpu")
    kept = read_scores(result, tmp_path)
    assert result["chosen"] == 1 and LAST_EPOCH not in result["methods"]
    for method, epoch in ((PAPER_SCORE, 0), (LAST_EPOCH, 1)):
        assert spearmanr(kept.methods[method], kept.epochs[epoch])[0] == pytest.approx(1)
    assert not np.allclose(kept.methods[PAPER_SCORE], kept.methods[LAST_EPOCH])


def test_scores_that_were_edited_are_noticed(recorded, tmp_path):
    folder = recorded[1]
    result = read_results("small", "logmel-osscl", [0], folder)[0]
    kept = read_scores(result, folder)
    assert set(kept.methods) == {*METHODS, LAST_EPOCH}
    assert kept.epochs.shape == (1, 16) and sorted(kept.epochs[0]) == list(range(16))
    name = result["scores"]["file"]
    content = (folder / name).read_bytes()
    with pytest.raises(BadInput, match=f"{name}: cannot be read"):
        read_scores(result, tmp_path)
    (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BadInput, match=f"{name}: not the scores that the record beside it names"):
        read_scores(result, tmp_path)
    again = scores_file(recorded[0].query("split == 'test'").reset_index(drop=True), kept.methods, kept.epochs)
    assert again == content


def test_shipped_records_are_of_different_runs():
    seen = {}
    for path in sorted(RESULTS.glob("*-seed*.json")):
        result = json.loads(path.read_text())
        run = json.dumps([result.get("log"), result["methods"]])
        assert run not in seen, f"{path.name} repeats {seen[run]}: train that seed, a copy is no measurement"
        seen[run] = path.name


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*-seed*.safetensors")), ids=lambda path: path.stem)
def test_shipped_detectors_are_those_of_their_records(path):
    model, record_name = ol.Detector.load(path), path.stem.replace("-first-stage", "")
    result = json.loads((RESULTS / f"{record_name}.json").read_text())
    recipe = Recipe.from_dict(result["recipe"])
    assert (model.recipe, model.machines) == (
        clp_scf.first_stage(recipe) if record_name != path.stem else recipe,
        result["machines"],
    )


def test_a_few_machines_of_the_generated_hall_run_from_table_to_score():
    """The whole road on generated sound; the only test here that makes any."""
    clips = ol.load_clips("hall", size="tiny")
    clips = clips[clips["machine_type"].eq("valve") & clips["machine_id"].isin(["id_00", "id_02"])].reset_index(
        drop=True
    )
    model = ol.fit(RECIPE, clips, device="cpu", progress=False)
    scores = model.score_clips(clips)
    table = ol.evaluate(scores, clips)
    assert model.machines == ["valve/id_00", "valve/id_02"] and model.hall_version is not None
    assert np.isfinite(scores).all() and table["auc"].between(0, 1).all() and len(table) == 6
