"""Tables beside the paper's, from records made by hand: no training here."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from osscl_lite.bootstrap import draw_weights
from osscl_lite.claims import (
    CLAIMS,
    audit,
    beyond_luck,
    by_method,
    chosen_against_last,
    compare,
    differences,
    differences_text,
    epoch_choice,
    loss_of_one_way,
    pooled_against_mean,
    printed_difference,
    seed_noise,
)
from osscl_lite.errors import BadInput
from osscl_lite.losses import arcface_logits
from osscl_lite.metrics import evaluate
from osscl_lite.record import LAST_EPOCH, METHODS, PAPER_SCORE, measures, scores_file
from osscl_lite.tables import REDUCTIONS, SYSTEMS_OF, TABLES, TYPES, Records, cell, cells, layout, printed, table_text

KINDS = [kind for kind in TYPES if kind != "all"]
STRENGTH = {"idnn": 0.8, "tastgram-namix": 1.2, "tfstgram-osscl": 2.0, "logmel-osscl-r4": 0.2}


def test_clips(kinds=KINDS, evaluation=True, labelled=True, each=8):
    rows = []
    for kind in kinds:
        for number in range(4):
            for label in ("normal", "anomaly"):
                part = "evaluation" if number == 3 else "development"
                if part == "development" or evaluation:
                    shown = label if part == "development" or labelled else "unknown"
                    rows += [(kind, f"id_{number:02d}", "test", part, shown, label == "anomaly")] * each
    return pd.DataFrame(rows, columns=["machine_type", "machine_id", "split", "dataset", "label", "faulty"])


test_clips.__test__ = False


def write_record(folder, data, system, seed, clips, fingerprint="abc", input="waveform", methods=METHODS[:3]):
    """A record as ``record`` writes it, of scores that tell faults apart by STRENGTH."""
    rng = np.random.default_rng([seed, *system.encode()])
    luck = np.random.default_rng(seed).normal(size=len(clips))  # clips that are hard are hard for all
    scores = {
        method: (luck + rng.normal(size=len(clips)) + STRENGTH.get(system, 1.5) * clips["faulty"]).to_numpy("f4")
        for method in methods
    }
    detector = len(methods) > 1
    epochs = np.stack([scores[PAPER_SCORE] * 0, scores[PAPER_SCORE], luck]).astype("f2") if detector else None
    last = {LAST_EPOCH: luck.astype("f4")} if detector else {}
    content, name = scores_file(clips, scores | last, epochs), f"{data}-{system}-seed{seed}"
    result = dict(
        data=data,
        fingerprint=fingerprint,
        system=system,
        recipe=dict(name=system, size="book", input=input),
        seed=seed,
        parameters=123_456,
        methods={method: measures(values, clips) for method, values in scores.items()},
        scores=dict(file=f"{name}.npz", sha256=hashlib.sha256(content).hexdigest()),
        train_seconds=60.0 + seed,
        measured_on=dict(hardware="a processor"),
    )
    if detector:
        result["chosen"] = 2
        result["log"] = dict(epoch=[1, 2, 3], holdout_loss=[2.0, 3.0, 4.0], holdout_accuracy=[0.25, 0.5, 0.75])
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.npz").write_bytes(content)
    (folder / f"{name}.json").write_text(json.dumps(result))
    return folder / f"{name}.json"


def everything(folder, data, clips, seeds=2, **more):
    systems = {name for rows in SYSTEMS_OF.values() for name in rows.values() if not name.startswith("anopatch")}
    for system in sorted(systems | {f"logmel-osscl-r{r or 0}" for r in REDUCTIONS.values() if r != 64}):
        simple = dict(methods=METHODS[:1]) if system in ("idnn", "mobilenetv2", "glow-aff", "no1") else {}
        for seed in range(seeds):
            write_record(folder, data, system, seed, clips, f"clips {seed}", **simple, **more)


@pytest.fixture(scope="module")
def hall(tmp_path_factory):
    """Two seeds of every system but AnoPatch on a small hall: its folder."""
    folder = tmp_path_factory.mktemp("hall")
    everything(folder, "hall-book", test_clips())
    return folder


@pytest.fixture(scope="module")
def records(hall):
    return Records("hall-book", hall)


def test_printed_tables_are_whole():
    shapes = {table: printed(table).shape for table in TABLES}
    assert shapes == {2: (8, 16), 3: (4, 16), 4: (7, 4), 5: (7, 4), 6: (7, 7)}
    assert printed(2).loc["TFSTgram OS-SCL", "Average AUC"] == 95.71 and printed(6).loc["Average", "4"] == 48.30
    with pytest.raises(BadInput, match="table 7"):
        printed(7)


def test_every_row_has_a_system_and_every_claim_stands_on_printed_numbers():
    for table in (2, 3, 5):
        assert list(SYSTEMS_OF[table]) == list(printed(table).index)
    assert list(SYSTEMS_OF[4]) == list(printed(4)) and list(REDUCTIONS) == list(printed(6))
    for claim in CLAIMS:
        for column in claim.columns:
            assert np.isfinite(printed_difference(claim, column))
        for column, stated in claim.stated.items():  # what the text says follows from what the table prints
            assert printed_difference(claim, column) == pytest.approx(stated, abs=0.005)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_all_printed_rows_and_columns_beside_the_measured(records, table):
    wide, shown = layout(cells(records, table)), printed(table)
    assert list(dict.fromkeys(wide.index.get_level_values(0))) == list(shown.index)
    assert list(wide) == [column for column in shown if column not in ("input", "loss")]
    kinds = ["printed", "lowest ID"] if table == 4 else ["printed", "per-ID mean", "pooled"]
    assert list(wide.loc[shown.index[0]].index) == kinds
    first = wide.loc[(shown.index[0], "printed")].iloc[-1]
    assert first == f"{shown.iloc[0, -1]:.2f}"


def test_measured_numbers_are_mean_and_deviation_of_evaluate(records):
    runs = records.runs("tfstgram-osscl")
    aucs, pooled = [], []
    for run in runs:
        part = run.scores.clips["dataset"].eq("development")
        table = evaluate(run.scores.methods[PAPER_SCORE][part], run.scores.clips[part])
        row = table[table["machine_type"].eq("valve") & table["machine_id"].eq("all")].set_index("average")
        aucs.append(100 * row.loc["mean", "auc"])
        pooled.append(100 * row.loc["pooled", "auc"])
    frame = cells(records, 2)
    frame = frame[frame["label"].eq("TFSTgram OS-SCL") & frame["column"].eq("Valve AUC")].set_index("average")
    assert frame.loc["mean", "value"] == pytest.approx(np.mean(aucs))
    assert frame.loc["mean", "sd"] == pytest.approx(np.std(aucs, ddof=1)) and frame.loc["mean", "seeds"] == 2
    assert frame.loc["pooled", "value"] == pytest.approx(np.mean(pooled)) != frame.loc["mean", "value"]


def test_table_five_averages_auc_and_pauc_of_both_sets_and_counts_parameters(records):
    run = records.runs("no1")[0]
    means = {}
    for part in ("development", "evaluation"):
        rows = run.table(part=part)
        means[part] = rows[rows["machine_type"].eq("all") & rows["average"].eq("mean")][["auc", "pauc"]].mean(axis=None)
    assert cell(run, 5, "development_mean") == pytest.approx(100 * means["development"])
    assert cell(run, 5, "all_mean") == pytest.approx(50 * (means["development"] + means["evaluation"]))
    wide = layout(cells(records, 5))
    assert wide.loc[("No. 1", "per-ID mean"), "size_millions"] == "0.123"
    assert (wide.loc[("AnoPatch (AST)", "per-ID mean")] == "-").all()
    assert "AnoPatch (BEATs): no weights at hand" in table_text(records, 5)


def test_table_four_is_the_lowest_id_of_the_development_set(records):
    run = records.runs("clp-scf")[0]
    rows = run.table()
    ids = rows[rows["average"].eq("ID") & rows["machine_type"].eq("fan")]
    assert len(ids) == 3 and cell(run, 4, "Fan") == pytest.approx(100 * ids["auc"].min())


def test_text_says_what_it_was_measured_on_and_is_the_same_again(hall, records):
    text = table_text(records, 6) + differences_text(records, 6)
    again = Records("hall-book", hall)
    assert text == table_text(again, 6) + differences_text(again, 6)
    assert "generated sound" in text and "measured with Log-Mel OS-SCL; the paper's is TFSTgram" in text
    assert "printed: pooled" in text and "over 2 seeds" in text and "a processor" in text and str(hall) not in text


def test_differences_are_those_of_the_cells_and_their_intervals_are_seeded(records):
    frame = differences(records, 2)
    shown = cells(records, 2).query("average == 'mean'").set_index(["label", "column"])["value"]
    for row in frame.itertuples():
        expected = shown[row.first, row.column] - shown[row.second, row.column]
        assert row.difference == pytest.approx(expected, abs=1e-4) and row.low <= row.difference <= row.high
    pd.testing.assert_frame_equal(frame, differences(records, 2))
    best = frame[frame["column"].eq("Average AUC") & frame["second"].eq("TASTgram")].iloc[0]
    assert best["stated"] == 1.63 and best["printed"] == pytest.approx(1.63)
    assert best["low"] > 0 and best["seeds"] == 2  # 2.0 against 1.2: easily seen
    reduced = differences(records, 6).set_index(["first", "column"])
    assert reduced.loc[("R = 4", "Average"), "high"] < 0
    beats = differences(records, 5).query("second == 'AnoPatch (BEATs)'")
    assert set(beats["gap"]) == {"no weights at hand"} and beats["difference"].isna().all()


def test_only_seeds_of_both_are_compared_and_only_on_the_same_clips(tmp_path):
    clips = test_clips()
    for seed in (0, 1, 2):
        write_record(tmp_path, "hall-book", "stgram-osscl", seed, clips, f"clips {seed}")
    write_record(tmp_path, "hall-book", "stgram-arcface", 1, clips, "clips 1")
    frame = differences(Records("hall-book", tmp_path), 3)
    assert set(frame[frame["gap"].eq("")]["seeds"]) == {1} and frame[frame["gap"].eq("")]["sd"].isna().all()
    write_record(tmp_path, "hall-book", "stgram-arcface", 2, clips, "other clips")
    with pytest.raises(BadInput, match="stgram-osscl-seed2.json and .*stgram-arcface-seed2.json: tested on different"):
        differences(Records("hall-book", tmp_path), 3)


def test_features_name_what_cannot_run_and_compare_what_stands_in(tmp_path):
    clips = test_clips(KINDS[:5], evaluation=False)
    for system in ("logmel-osscl", "logmel-arcface", "logmel-namix", "logmel-clp-scf", "idnn"):
        simple = dict(methods=METHODS[:1]) if system == "idnn" else {}
        write_record(tmp_path, "few", system, 0, clips, input="features", **simple)
    records = Records("few", tmp_path)
    assert records.source == "features"
    text = table_text(records, 2)
    assert "TFSTgram OS-SCL: learns from waveforms, and these are features" in text
    assert "Glow_Aff: not recorded" in text and "no labelled test clips of ToyConveyor" in text
    assert text.count("Noisy-ArcMix (on these features)") == 2  # by the paper's score and by 1-NN
    by_neighbour = text.partition("1-NN on embeddings, detectors only")[2]
    assert by_neighbour and "IDNN" not in by_neighbour
    frame = differences(records, 2)
    assert {"OS-SCL (on these features)", "MobileNetV2"} == set(frame["first"])
    measured = frame[frame["gap"].eq("")]
    assert {"Noisy-ArcMix (on these features)", "CLP-SCF (on these features)", "ArcFace (on these features)"} == set(
        measured["second"]
    )
    assert not frame.duplicated(["sentence", "first", "second", "column"]).any()
    toy = frame[frame["column"].str.startswith("ToyConveyor")]
    assert set(toy["gap"]) == {"no labelled test clips for this column"}
    assert "differ in their front ends only, and features have none" in set(differences(records, 3)["gap"])
    assert "no labelled clips of the evaluation set" in table_text(records, 5)


def test_evaluation_clips_without_labels_are_a_stated_gap(tmp_path):
    write_record(tmp_path, "tree", "no1", 0, test_clips(labelled=False), methods=METHODS[:1])
    write_record(tmp_path, "listed", "no1", 0, test_clips(), methods=METHODS[:1])
    without, listed = (layout(cells(Records(data, tmp_path), 5)) for data in ("tree", "listed"))
    row = ("No. 1", "per-ID mean")
    assert without.loc[row, "development_mean"] == listed.loc[row, "development_mean"] != "-"
    assert (without.loc[row, ["evaluation_mean", "all_mean"]] == "-").all() and listed.loc[row, "all_mean"] != "-"
    assert "eval_data_list.csv" in table_text(Records("tree", tmp_path), 5)


def test_records_edited_by_hand_are_noticed(tmp_path):
    path = write_record(tmp_path, "hall-book", "idnn", 0, test_clips(), methods=METHODS[:1])
    kept = path.read_text()
    result = json.loads(kept)
    result["methods"][PAPER_SCORE]["auc"]["auc"][3] += 0.01
    path.write_text(json.dumps(result))
    with pytest.raises(BadInput, match="idnn-seed0.json: its AUCs by paper's score do not follow from its scores"):
        cells(Records("hall-book", tmp_path), 2)
    path.write_text(kept)
    cells(Records("hall-book", tmp_path), 2)
    other = write_record(tmp_path / "other", "hall-book", "idnn", 5, test_clips(), methods=METHODS[:1])
    shutil.copy(other.with_suffix(".npz"), path.with_suffix(".npz"))
    with pytest.raises(BadInput, match="idnn-seed0.npz: not the scores"):
        cells(Records("hall-book", tmp_path), 2)
    del result["scores"]
    path.write_text(json.dumps(result))
    with pytest.raises(BadInput, match="the record of idnn on hall-book, seed 0, names no scores"):
        cells(Records("hall-book", tmp_path), 2)


def test_table_six_follows_the_records_that_there_are(tmp_path, records):
    assert records.ablated == "logmel-osscl"
    write_record(tmp_path, "hall-paper", "tfstgram-osscl-r16", 0, test_clips())
    paper = Records("hall-paper", tmp_path)
    assert paper.ablated == "tfstgram-osscl" and "the paper's is" not in table_text(paper, 6)
    assert paper.systems(6)["no FPH"] == "tfstgram-osscl-r0" and paper.systems(6)["64"] == "tfstgram-osscl"


BANDS = ("below 1 kHz", "above 4 kHz")


@pytest.fixture(scope="module")
def banded(tmp_path_factory):
    """Three seeds of OS-SCL, two of CLP-SCF, whose faults have a band each: the records."""
    folder, clips = tmp_path_factory.mktemp("banded"), test_clips(KINDS[:3])
    band = np.where(clips["faulty"], np.array(BANDS)[np.arange(len(clips)) % 2], "")
    clips = clips.assign(band=band, severity=0.5 * clips["faulty"])
    for system, seeds in (("logmel-osscl", (0, 1, 2)), ("logmel-clp-scf", (1, 2))):
        for seed in seeds:
            write_record(folder, "hall-book", system, seed, clips, f"clips {seed}")
    return Records("hall-book", folder)


def average(scores, clips):
    """AUC and pAUC in percent, mean of IDs, then of types."""
    rows = evaluate(scores, clips.reset_index(drop=True)).query("machine_type == 'all' and average == 'mean'")
    return 100 * rows[["auc", "pauc"]].to_numpy()[0]


def test_clips_are_chosen_by_part_and_faults_by_band(banded):
    run = banded.runs("logmel-osscl")[0]
    clips, every = run.scores.clips, run.rows("all")
    assert every.all() and (run.rows("development") ^ run.rows("evaluation")).all()
    assert set(clips[run.rows("evaluation")]["machine_id"]) == {"id_03"}
    low, high = (clips[run.rows("all", band)] for band in BANDS)
    assert set(low["band"]) == {"", BANDS[0]} and set(high["band"]) == {"", BANDS[1]}
    assert len(low) + len(high) == len(clips) + clips["label"].eq("normal").sum()
    with pytest.raises(BadInput, match="seed0.json: no fault of band low; there are above 4 kHz, below 1 kHz"):
        run.rows("all", "low")


def test_a_band_is_asked_of_records_that_know_bands(records):
    with pytest.raises(BadInput, match="no fault of band below 1 kHz; there are none"):
        records.runs("clp-scf")[0].draws(band=BANDS[0])


def test_draws_are_the_tables_of_clips_that_are_repeated(banded):
    run, method = banded.runs("logmel-osscl")[0], METHODS[1]
    for part, band in (("development", ""), ("all", ""), ("all", BANDS[0])):
        rows = run.rows(part, band)
        clips, scores = run.scores.clips[rows].reset_index(drop=True), run.scores.methods[method][rows]
        drawn = run.draws(method, part, band)
        weights = draw_weights(clips, f"clips 0 {part} {band}".strip())
        for draw in (0, 1, 1000):
            again = np.repeat(np.arange(len(clips)), weights[draw])
            ids = evaluate(scores[again], clips.iloc[again]).query("average == 'ID'")
            names = ids["machine_type"] + "/" + ids["machine_id"]
            assert set(names) == set(drawn)
            expected = dict(zip(names, ids[["auc", "pauc"]].to_numpy(), strict=True))
            assert {name: values[:, draw] for name, values in drawn.items()} == {
                name: pytest.approx(values, abs=1e-6) for name, values in expected.items()
            }
    assert run.draws(method, "all") is run.draws(method, "all")


def test_the_measures_of_each_epoch_are_those_of_evaluate(banded):
    run = banded.runs("logmel-osscl")[0]
    for rows in (run.rows("development"), run.rows("all", BANDS[1])):
        found, clips = run.by_epoch(rows), run.scores.clips[rows]
        expected = [average(scores, clips) for scores in run.scores.epochs[:, rows].astype(np.float32)]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert found.shape == (3, 2) and found[0].tolist() == [50, 50]  # all scores are equal at first
        assert found[1, 0] > 60


@pytest.mark.parametrize("band", ["", BANDS[0]])
def test_two_systems_differ_by_their_means_over_the_seeds_of_both(banded, band):
    values = {"AUC": [], "pAUC": [], "mean": []}
    for system in ("logmel-osscl", "logmel-clp-scf"):
        sides = []
        for run in banded.runs(system)[-2:]:
            rows = run.rows("all", band)
            sides.append(average(run.scores.methods[PAPER_SCORE][rows], run.scores.clips[rows]))
        for measure, side in zip(values, (*np.transpose(sides), np.mean(sides, axis=1)), strict=True):
            values[measure].append(side)
    for measure, (one, other) in values.items():
        found = compare(banded, "logmel-osscl", "logmel-clp-scf", measure, band=band)
        assert found["seeds"] == 2 and found["low"] < found["difference"] < found["high"]
        assert found["one"] == pytest.approx(one, abs=1e-4) and found["other"] == pytest.approx(other, abs=1e-4)
        assert found["difference"] == pytest.approx(np.mean(one - other), abs=1e-4)
        assert found["sd"] == pytest.approx(np.std(one - other, ddof=1), abs=1e-4)
        back = compare(banded, "logmel-clp-scf", "logmel-osscl", measure, band=band)
        assert [back[key] for key in ("difference", "high", "low")] == pytest.approx(
            [-found[key] for key in ("difference", "low", "high")]
        )


def test_without_evaluation_clips_two_systems_differ_as_in_the_table(tmp_path):
    for system in ("stgram-osscl", "stgram-arcface"):
        write_record(tmp_path, "hall-book", system, 0, test_clips(evaluation=False))
    records = Records("hall-book", tmp_path)
    row = differences(records, 3).set_index(["first", "second", "column"])
    row = row.loc[("STgram OS-SCL", "STgram ArcFace", "Average pAUC")]
    found = compare(records, "stgram-osscl", "stgram-arcface", "pAUC")
    assert found["difference"] == pytest.approx(row["difference"]) and np.isnan(found["sd"])


def test_a_score_that_is_shifted_on_faults_is_told_apart_and_one_that_is_scaled_is_not(tmp_path):
    clips, better, scaled = test_clips(), tmp_path / "better", tmp_path / "scaled"
    for folder, changed in ((better, lambda x: x + 2 * clips["faulty"]), (scaled, lambda x: 3 * x + 1)):
        first = write_record(folder, "hall-book", "clp-scf", 0, clips, methods=METHODS[:1])
        scores = Records("hall-book", folder).runs("clp-scf")[0].scores.methods[PAPER_SCORE]
        scores = {PAPER_SCORE: np.asarray(changed(scores), np.float32)}
        content, result = scores_file(clips, scores, None), json.loads(first.read_text())
        result["scores"] = dict(file="hall-book-no1-seed0.npz", sha256=hashlib.sha256(content).hexdigest())
        result["methods"] = {PAPER_SCORE: measures(scores[PAPER_SCORE], clips)}
        (folder / "hall-book-no1-seed0.npz").write_bytes(content)
        (folder / "hall-book-no1-seed0.json").write_text(json.dumps(result | dict(system="no1")))
    found = compare(Records("hall-book", better), "no1", "clp-scf")
    assert 0 < found["low"] < found["difference"]
    found = compare(Records("hall-book", scaled), "no1", "clp-scf")
    assert (found["low"], found["difference"], found["high"]) == (0, 0, 0)  # every draw is that of both


def test_what_cannot_be_compared_is_none_or_refused(records, tmp_path):
    assert compare(records, "clp-scf", "anopatch-ast") is None
    assert compare(records, "clp-scf", "idnn", method=METHODS[1]) is None  # IDNN has one score
    for system, seed in (("stgram-osscl", 0), ("stgram-arcface", 1), ("stgram-mfn", 1)):
        write_record(tmp_path, "hall-book", system, seed, test_clips(), f"{system} {seed}")
    few = Records("hall-book", tmp_path)
    assert compare(few, "stgram-osscl", "stgram-arcface") is None  # no seed of both
    with pytest.raises(BadInput, match="stgram-mfn-seed1.json: tested on different clips"):
        compare(few, "stgram-arcface", "stgram-mfn")


def test_a_sign_counts_beyond_the_luck_of_the_clips_and_of_the_seed(banded):
    found = dict(difference=1.0, low=0.2, high=1.8, sd=0.4, seeds=3)  # Student: 4.303 * 0.4 / sqrt(3) = 0.99
    assert beyond_luck(found) == beyond_luck(pd.Series(found)) == 1
    assert beyond_luck(found | dict(sd=0.41)) == 0  # 1.02
    assert beyond_luck(found | dict(low=-0.1)) == 0
    assert beyond_luck(found | dict(difference=-1.0, low=-1.8, high=-0.2)) == -1
    assert beyond_luck(found | dict(sd=0.1, seeds=2)) == 1 and beyond_luck(found | dict(sd=0.12, seeds=2)) == 0
    assert beyond_luck(found | dict(sd=np.nan, seeds=1)) is None
    assert beyond_luck(compare(banded, "logmel-osscl", "logmel-clp-scf")) in (-1, 0, 1)


def test_the_audit_finds_the_averages_that_do_not_follow():
    frame = pd.concat([audit(table) for table in TABLES])
    assert len(frame) == 16 + 8 + 4 + 9 + 7
    wrong = frame[frame["follows"].eq("no")].set_index(["table", "row", "column"])["difference"].round(2).to_dict()
    assert wrong == {
        (2, "MobileNetV2", "Average AUC"): 0.34,
        (2, "Glow_Aff", "Average AUC"): 0.53,
        (2, "Glow_Aff", "Average pAUC"): 0.57,
        (2, "TFSTgram OS-SCL", "Average pAUC"): -0.03,
        (3, "STgram OS-SCL", "Average pAUC"): 1.15,
        (3, "TFSTgram OS-SCL", "Average pAUC"): -0.03,
        (5, "AnoPatch (ATST)", "all_mean"): -1.0,
        (5, "AnoPatch (AST)", "all_mean"): 0.48,
        (5, "AnoPatch (BEATs)", "all_mean"): -0.03,
    }


def test_pooled_against_mean_and_ways_of_scoring_are_of_the_same_runs(records):
    frame = pooled_against_mean(records, ["clp-scf", "idnn"]).set_index(["system", "machine_type", "measure"])
    assert frame.loc[("idnn", "all", "AUC"), "mean"] == pytest.approx(
        np.mean([cell(run, 2, "Average AUC") for run in records.runs("idnn")])
    )
    assert (frame["difference"] - (frame["pooled"] - frame["mean"])).abs().max() < 1e-9 and len(frame) == 2 * 7 * 2
    ways = by_method(records, ["clp-scf"]).set_index(["method", "measure"])
    assert len(ways) == 9 and ways.loc[(PAPER_SCORE, "AUC"), "gain"] == 0
    gain = ways.loc[(METHODS[1], "mAUC"), "value"] - ways.loc[(PAPER_SCORE, "mAUC"), "value"]
    assert ways.loc[(METHODS[1], "mAUC"), "gain"] == pytest.approx(gain)


def test_the_epoch_of_the_test_clips_is_never_worse_on_them(records):
    frame = epoch_choice(records, "clp-scf")
    assert len(frame) == 6
    for seed, part in frame.groupby("seed"):
        rows = part.set_index("choice")
        assert (rows["epoch"] == [2, 2, 3]).all()  # as they were made
        assert rows.loc["test clips", "AUC"] == pytest.approx(
            cell(records.runs("clp-scf")[seed], 2, "Average AUC"), abs=0.1
        )
    with pytest.raises(BadInput, match="no scores of its epochs"):
        epoch_choice(records, "idnn")


def test_the_last_epoch_stands_beside_the_chosen_one(records):
    frame = chosen_against_last(records, "clp-scf").set_index(["seed", "choice"])
    assert frame.index.tolist() == [(0, "chosen"), (0, "last"), (1, "chosen"), (1, "last")]
    run = records.runs("clp-scf")[1]
    assert frame.loc[(1, "chosen"), "AUC"] == pytest.approx(cell(run, 2, "Average AUC"))
    clips, scores = run.scores.clips, run.scores.methods[LAST_EPOCH]
    rows = clips["dataset"].eq("development").to_numpy()
    assert frame.loc[(1, "last"), "AUC"] == pytest.approx(average(scores[rows], clips[rows])[0])
    assert frame.loc[(0, "last"), ["epoch", "holdout_loss", "holdout_accuracy"]].tolist() == [3, 4.0, 0.75]
    found = compare(records, "clp-scf", "logmel-osscl", "AUC", LAST_EPOCH)
    assert found["difference"] == 0  # the scores of the last epoch were made alike


@pytest.mark.parametrize("machines, margin", [(23, 0.7), (41, 0.4), (2, 1.0)])
def test_the_loss_of_one_direction_is_that_of_the_logits(machines, margin):
    one_way = torch.ones(machines, 3).double() / 3**0.5
    y = torch.arange(machines)
    logits = arcface_logits(one_way, one_way, y, margin=margin)
    expected = torch.nn.functional.cross_entropy(logits, y).item()
    assert loss_of_one_way(machines, margin) == pytest.approx(expected, rel=1e-4)


def test_seed_noise_is_pooled_over_systems_and_judges_printed_differences(records):
    frame = seed_noise(records)
    assert len(frame) == sum(len(claim.columns) for claim in CLAIMS)
    row = frame[frame["table"].eq(3) & frame["column"].eq("Average AUC")].iloc[0]
    pairs = [[cell(run, 3, "Average AUC") for run in records.runs(s)] for s in SYSTEMS_OF[3].values()]
    assert row["freedom"] == 4 and row["sd"] == pytest.approx(np.mean(np.var(pairs, axis=1, ddof=1)) ** 0.5)
    assert row["noise"] == pytest.approx(2.776445 * 2**0.5 * row["sd"], rel=1e-6)
    assert row["within"] == (abs(row["printed"]) <= row["noise"])
    one = seed_noise(Records("hall-book", records.folder, seeds=[0]))
    assert one["noise"].isna().all() and one["within"].isna().all()


def test_seed_noise_leaves_out_detectors_that_learned_nothing(tmp_path):
    for seed in range(3):
        path = write_record(tmp_path, "hall-book", "logmel-osscl-r8", seed, test_clips())
        result = json.loads(path.read_text())
        result["log"]["other_cosine"] = [1.0, 1.0 if seed == 1 else 0.2, 0.1]  # the second epoch is chosen
        path.write_text(json.dumps(result))
    frame = seed_noise(Records("hall-book", tmp_path))
    row = frame[frame["table"].eq(6)].iloc[0]
    pair = [cell(run, 6, row["column"]) for run in Records("hall-book", tmp_path, seeds=[0, 2]).runs("logmel-osscl-r8")]
    assert row["freedom"] == 1 and row["sd"] == pytest.approx(np.std(pair, ddof=1))
