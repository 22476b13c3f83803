"""The paired bootstrap: its AUC is scikit-learn's, its draws keep strata and backgrounds, its intervals cover."""

import time

import numpy as np
import pandas as pd
import pytest

from osscl_lite import metrics
from osscl_lite.bootstrap import draw_weights, machine_draws, over_types, paired_interval, resampled_auc


def clips_of(ids=4, each=20, types=("fan",)):
    rows = [
        (kind, f"id_{number:02d}", "test", label)
        for kind in types
        for number in range(ids)
        for label in ("normal", "anomaly")
        for _ in range(each)
    ]
    return pd.DataFrame(rows, columns=["machine_type", "machine_id", "split", "label"])


def test_every_draw_has_the_auc_and_pauc_of_its_repeated_clips():
    rng = np.random.default_rng(0)
    clips = clips_of(ids=1, each=25)
    anomalous = clips["label"].eq("anomaly").to_numpy()
    scores = rng.normal(size=50) + anomalous
    scores[3] = scores[30]  # a tie, far from the end of the partial curve
    weights = draw_weights(clips, "a", draws=40)
    auc, pauc = resampled_auc(anomalous, scores, weights)
    for draw, counts in enumerate(weights):
        again = np.repeat(np.arange(50), counts)
        assert auc[draw] == pytest.approx(metrics.auc(anomalous[again], scores[again]), abs=1e-6)
        assert pauc[draw] == pytest.approx(metrics.pauc(anomalous[again], scores[again]), abs=1e-6)
    assert len({round(value, 9) for value in auc}) > 20


@pytest.mark.parametrize("levels", [1, 3, 8])
def test_equal_scores_bend_the_curve_as_in_the_metrics(levels):
    rng = np.random.default_rng(levels)
    anomalous = rng.random(60) < 0.5
    scores = rng.integers(levels, size=60) + 1.0 * (anomalous & (rng.random(60) < 0.3))
    weights = np.stack([np.ones(60, int), *rng.integers(0, 3, (20, 60))])
    auc, pauc = resampled_auc(anomalous, scores, weights)
    for draw, counts in enumerate(weights):
        again = np.repeat(np.arange(60), counts)
        assert auc[draw] == pytest.approx(metrics.auc(anomalous[again], scores[again]), abs=1e-6)
        assert pauc[draw] == pytest.approx(metrics.pauc(anomalous[again], scores[again]), abs=1e-6)
    flat = resampled_auc(anomalous, np.zeros(60), weights)
    assert np.allclose(flat, 0.5)  # scores that say nothing are chance


def test_the_first_draw_is_the_clips_as_they_are_and_measures_are_those_of_evaluate():
    rng = np.random.default_rng(1)
    clips = clips_of(ids=3, each=15, types=("valve", "fan"))
    scores = rng.normal(size=len(clips)) + clips["label"].eq("anomaly") * rng.uniform(0, 2)
    table = metrics.evaluate(scores, clips).query("average == 'mean'").set_index("machine_type")
    drawn = machine_draws(clips, scores.to_numpy(), draw_weights(clips, "a", draws=3))
    for kind in ("fan", "valve", "all"):
        for measure, column in (("AUC", "auc"), ("pAUC", "pauc"), ("mAUC", "mauc")):
            assert over_types(drawn, measure, kind)[0] == pytest.approx(table.loc[kind, column], abs=1e-6)
    expected = (table.loc["all", "auc"] + table.loc["all", "pauc"]) / 2
    assert over_types(drawn, "mean")[0] == pytest.approx(expected, abs=1e-6)
    assert over_types(drawn, "AUC", "pump") is None


def test_draws_keep_the_numbers_of_each_machine_and_label_and_are_seeded_by_the_key():
    clips = clips_of(ids=3, each=10)
    weights = draw_weights(clips, "first", draws=50)
    assert (weights[0] == 1).all() and weights.shape == (51, 60)
    sums = pd.DataFrame(weights.T).groupby([clips["machine_id"], clips["label"]]).sum()
    assert (sums == 10).all(axis=None)
    assert (weights == draw_weights(clips, "first", draws=50)).all()
    assert (weights != draw_weights(clips, "second", draws=50)).any()


def test_clips_of_one_background_are_drawn_together():
    clips = clips_of(ids=4, each=10)
    clips["background"] = clips.groupby(["label", "machine_id"]).cumcount() + 100 * clips["label"].eq("anomaly")
    weights = pd.DataFrame(draw_weights(clips, "a", draws=30).T)
    assert (weights.groupby(clips["background"]).nunique() == 1).all(axis=None)  # the same in all four machines
    assert (weights.groupby([clips["machine_id"], clips["label"]]).sum() == 10).all(axis=None)


def test_pairing_narrows_the_interval_of_two_scores_that_agree():
    rng = np.random.default_rng(2)
    clips = clips_of(ids=2, each=40)
    faulty = clips["label"].eq("anomaly").to_numpy()
    first = rng.normal(size=len(clips)) + faulty
    second = first + 0.05 * rng.normal(size=len(clips))

    def draws(scores, key):
        return over_types(machine_draws(clips, scores, draw_weights(clips, key)), "AUC")

    _, low, high, _ = paired_interval([draws(first, "a")], [draws(second, "a")])
    _, low_apart, high_apart, _ = paired_interval([draws(first, "a")], [draws(second, "b")])
    assert 3 * (high - low) < high_apart - low_apart


def test_difference_and_scatter_are_over_seeds():
    first, second = [np.full(11, 0.9), np.full(11, 0.8)], [np.full(11, 0.7), np.full(11, 0.7)]
    difference, low, high, scatter = paired_interval(first, second)
    assert (difference, low, high) == pytest.approx((0.15, 0.15, 0.15))
    assert scatter == pytest.approx(0.1 / 2**0.5)
    assert np.isnan(paired_interval(first[:1], second[:1])[3])


def test_intervals_cover_the_true_difference_about_as_often_as_they_say():
    """Two scores of one fault strength: the true difference is 0; 95 % intervals should hold it nearly always."""
    rng = np.random.default_rng(3)
    clips = clips_of(ids=3, each=25)
    faulty = clips["label"].eq("anomaly").to_numpy()
    held, runs = 0, 150
    for run in range(runs):
        shared = rng.normal(size=len(clips))
        weights = draw_weights(clips, str(run), draws=200)
        one, other = (shared + rng.normal(size=len(clips)) + 1.5 * faulty for _ in range(2))
        values = [over_types(machine_draws(clips, scores, weights), "AUC") for scores in (one, other)]
        _, low, high, _ = paired_interval(values[:1], values[1:])
        held += low <= 0 <= high
    assert 0.88 <= held / runs <= 0.99


def test_a_thousand_draws_of_the_hall_take_about_a_second():
    rng = np.random.default_rng(4)
    clips = clips_of(ids=7, each=20, types=("a", "b", "c", "d", "e", "f"))
    weights = draw_weights(clips, "a")
    scores = rng.normal(size=(6, len(clips)))
    began = time.process_time()
    for one in scores:
        machine_draws(clips, one, weights)
    assert time.process_time() - began < 10  # measured: 0.1 s; this is for a busy machine
