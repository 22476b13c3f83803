"""What shared backgrounds do to a split: on features where a leak must show, and an honest split must not."""

import json

import numpy as np
import pandas as pd
import pytest

from osscl_lite.data.precomputed import features_table
from osscl_lite.leak import LESS, main, measure, redrawn

GROUPS, FAULTY = 24, 8


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Three IDs with spectra of their own; a background in time lies under a clip of each. Faults are louder."""
    root, rng = tmp_path_factory.mktemp("shared"), np.random.default_rng(0)
    spectra = rng.normal(0, 3, (3, 8, 1))
    rows, pictures = [], []
    for group in range(GROUPS + FAULTY):
        noise = rng.normal(0, 4, (1, 8, 10))
        noise -= noise.mean(2, keepdims=True)
        for one in range(3):
            label = "anomaly" if group >= GROUPS else "normal"
            split = "train" if group < 16 else "test"
            rows.append(("all.npz", len(rows), "fan", f"id_{one:02d}", split, label, group))
            pictures.append(spectra[one] + noise[0] + rng.normal(0, 1, (8, 10)) + 3 * (label == "anomaly"))
    np.savez(root / "all.npz", log_mel=np.array(pictures, np.float32))
    names = ["file", "index", "machine_type", "machine_id", "split", "label", "background"]
    pd.DataFrame(rows, columns=names).to_csv(root / "clips.csv", index=False)
    return root


def test_neighbours_share_the_background_and_the_split_decides_what_a_classifier_learns(shared, tmp_path):
    assert main(["--root", str(shared), "--to", str(tmp_path), "--seeds", "4"]) == 0
    found = json.loads((tmp_path / f"leak-{shared.name}.json").read_text())
    assert found["groups"] == {"3": GROUPS + FAULTY}
    near = found["nearest"][LESS]
    assert near["same_background"] == 1.0 and near["other_id"] == 1.0
    assert near["chance_background"] == pytest.approx(2 / (3 * (GROUPS + FAULTY) - 1))
    assert near["chance_other_id"] == pytest.approx(1 - (GROUPS + FAULTY - 1) / (3 * (GROUPS + FAULTY) - 1))
    splits = pd.DataFrame(found["splits"]).groupby("split")
    assert splits.size().to_dict() == {"as given": 1, "by background": 4, "by clip": 4}
    assert splits["shared"].max()[["as given", "by background"]].eq(0).all() and splits["shared"].min()["by clip"] > 0.6
    named = {way: part[f"ID classifier, {LESS}"].map(lambda x: x["named"]).mean() for way, part in splits}
    assert named["by clip"] < 0.1 < 0.2 < named["by background"]  # chance is a third
    assert all(row["Mahalanobis"]["auc"] > 0.9 for row in found["splits"])


@pytest.mark.parametrize("way", ["by background", "by clip"])
def test_a_redrawn_split_keeps_the_numbers_and_the_anomalous_clips(shared, way):
    clips = features_table(shared)
    again, other = redrawn(clips, way, 0), redrawn(clips, way, 1)
    assert again["split"].equals(redrawn(clips, way, 0)["split"]) and not again["split"].equals(other["split"])
    assert again[again["split"].eq("train")].groupby("machine_id").size().eq(16).all()
    assert again.loc[again["label"].eq("anomaly"), "split"].eq("test").all()
    apart = again[again["label"].eq("normal")].groupby("background")["split"].nunique().gt(1).any()
    assert apart == (way == "by clip")


def test_features_without_shared_backgrounds_are_refused(make_features, capsys, tmp_path):
    assert main(["--root", str(make_features()), "--to", str(tmp_path)]) == 2
    assert "no backgrounds" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert measure(make_features(background=True), 1)["nearest"]
