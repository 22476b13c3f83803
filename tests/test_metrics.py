"""AUC, pAUC, mAUC: against scikit-learn, and by hand where names matter."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import osscl_lite as ol
from osscl_lite.metrics import auc, by_band, interval, pauc


def clips(*groups, split="test"):
    """Rows from (machine type, machine id, labels as in 'nnaa')."""
    names = {"n": "normal", "a": "anomaly", "u": "unknown"}
    rows = [(kind, number, split, names[letter]) for kind, number, labels in groups for letter in labels]
    return pd.DataFrame(rows, columns=["machine_type", "machine_id", "split", "label"])


def row(table, machine_type, machine_id, average):
    keys = ["machine_type", "machine_id", "average"]
    return table.set_index(keys).loc[(machine_type, machine_id, average)]


def test_auc_counts_pairs():
    anomalous, scores = [0, 0, 0, 1, 1], [1.0, 2.0, 3.0, 2.0, 4.0]
    assert auc(anomalous, scores) == pytest.approx((1 + 0.5 + 0 + 3) / 6)


def test_pauc_is_the_standardised_one():
    rng = np.random.default_rng(0)
    anomalous, scores = rng.integers(0, 2, 500), rng.random(500)
    scores = scores + 0.5 * anomalous
    assert pauc(anomalous, scores) == pytest.approx(roc_auc_score(anomalous, scores, max_fpr=0.1))
    assert pauc(anomalous, np.zeros(500)) == pytest.approx(0.5)  # chance is 0.5
    assert pauc(anomalous, anomalous) == 1


def test_one_kind_alone_gives_nan():
    assert math.isnan(auc([0, 0], [1, 2])) and math.isnan(pauc([1, 1], [1, 2]))


def test_mean_pooled_and_minimum_are_three_things():
    """Each ID is perfect or poor by itself; on one curve their offsets count as well."""
    table = ol.evaluate([0, 1, 2, 3, 10, 12, 11, 13], clips(("fan", "id_00", "nnaa"), ("fan", "id_02", "nnaa")))
    assert row(table, "fan", "id_00", "ID")["auc"] == 1 and row(table, "fan", "id_02", "ID")["auc"] == 0.75
    mean, pooled = row(table, "fan", "all", "mean"), row(table, "fan", "all", "pooled")
    assert mean["auc"] == 0.875 and mean["mauc"] == pooled["mauc"] == 0.75
    assert pooled["auc"] == pytest.approx((2 + 2 + 3 + 4) / 16)  # pairs won by 2, 3, 11, 13
    assert mean["pauc"] == pytest.approx((1 + row(table, "fan", "id_02", "ID")["pauc"]) / 2)


def test_all_averages_over_types_not_over_ids():
    table = ol.evaluate(
        [0, 1, 0, 1, 1, 0], clips(("fan", "id_00", "na"), ("fan", "id_02", "na"), ("pump", "id_00", "na"))
    )
    last = row(table, "all", "all", "mean")
    assert last["auc"] == 0.5 and last["mauc"] == 0.5 and list(table["machine_type"][-2:]) == ["all", "all"]
    assert (last["normal"], last["anomaly"], last["left_out"]) == (3, 3, 0)


def test_what_is_left_out_is_counted():
    frame = pd.concat(
        [
            clips(("fan", "id_00", "nnau"), ("fan", "id_01", "uu"), ("pump", "id_01", "u")),
            clips(("fan", "id_00", "nnn"), split="train"),
        ]
    )
    scores = np.arange(len(frame), dtype=float)
    scores[0] = np.nan
    table = ol.evaluate(scores, frame)
    assert set(table["machine_id"]) == {"id_00", "all"} and set(table["machine_type"]) == {"fan", "all"}
    assert row(table, "fan", "id_00", "ID")["left_out"] == 1 + 1 + 3
    assert row(table, "fan", "all", "mean")["left_out"] == row(table, "fan", "all", "pooled")["left_out"] == 7
    assert row(table, "all", "all", "mean")["left_out"] == 8
    assert (row(table, "fan", "id_00", "ID")["normal"], row(table, "fan", "id_00", "ID")["anomaly"]) == (1, 1)


def test_an_id_of_one_kind_has_nan_and_does_not_spoil_the_mean():
    table = ol.evaluate([0, 1, 5, 6], clips(("fan", "id_00", "na"), ("fan", "id_02", "nn")))
    assert math.isnan(row(table, "fan", "id_02", "ID")["auc"])
    assert row(table, "fan", "all", "mean")["auc"] == 1 == row(table, "fan", "all", "mean")["mauc"]


def test_nothing_to_evaluate_is_said():
    with pytest.raises(ValueError, match="no clip of split test"):
        ol.evaluate([1.0], clips(("fan", "id_00", "u")))
    with pytest.raises(ValueError, match="2 scores for 1 clips"):
        ol.evaluate([1.0, 2.0], clips(("fan", "id_00", "n")))


def test_bands_are_each_against_all_normal_clips():
    frame = clips(("fan", "id_00", "nnaa"), ("fan", "id_02", "nna")).assign(
        band=["", "", "weak", "clear", "", "", "weak"]
    )
    table = by_band([0, 2, 1, 3, 0, 1, np.nan], frame).set_index("band")
    assert table.loc["weak", "auc"] == 0.5 and table.loc["clear", "auc"] == 1 and table["anomaly"].tolist() == [1, 1]


def test_interval_is_student_s():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(interval([1.0])[1])


@pytest.mark.parametrize("digits", [1, 9])
def test_both_areas_are_those_of_scikit_learn_with_and_without_ties(digits):
    rng = np.random.default_rng(digits)
    for count in rng.integers(4, 150, 100):
        anomalous = rng.permutation(np.arange(count) < 1 + count // 3)
        scores = np.round(rng.normal(size=count) + anomalous, digits)
        assert auc(anomalous, scores) == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-12)
        assert pauc(anomalous, scores) == pytest.approx(roc_auc_score(anomalous, scores, max_fpr=0.1), abs=1e-12)
