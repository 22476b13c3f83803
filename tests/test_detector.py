"""Detectors: saved and read back, refused when damaged, scores that mind their own clip only."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional

import osscl_lite as ol
from osscl_lite.detector import read_batches
from osscl_lite.errors import BadInput
from osscl_lite.files import check_identity, read_tensors, write_tensors

NAMES = ["fan/id_00", "fan/id_02", "valve/id_00"]


def detector(name="tfstgram-osscl", seed=0):
    torch.manual_seed(seed)
    model = ol.Detector(ol.replace(ol.recipe(name, "tiny"), seconds=0.5), NAMES)
    for module in model.modules():  # as after some training: statistics that are not 0 and 1
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


MODEL = detector()
WAVES = 0.1 * torch.randn(9, 8_000, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(9) % 3


@pytest.mark.parametrize("name", ["logmel-osscl", "stgram-osscl", "tfstgram-osscl", "logmel-arcface"])
def test_saved_and_read_back_it_scores_the_same(tmp_path, name):
    model = detector(name)
    model.hall_version = "7"
    model.save(tmp_path / "a" / "model.safetensors")
    again = ol.Detector.load(tmp_path / "a" / "model.safetensors")
    assert torch.equal(model.score(WAVES, LABELS), again.score(WAVES, LABELS))
    assert (again.recipe, again.machines, again.hall_version) == (model.recipe, NAMES, "7")
    assert not again.training and [path.name for path in (tmp_path / "a").iterdir()] == ["model.safetensors"]


def test_embeddings_went_through_the_head_and_lie_on_the_sphere():
    picture = MODEL.front_end(WAVES, MODEL.log_mel(WAVES))
    perturbed = MODEL.perturbation(MODEL.network(picture))
    expected = perturbed / perturbed.norm(dim=1, keepdim=True)
    torch.testing.assert_close(MODEL.embed(WAVES), expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_score_is_cross_entropy_with_the_margin():
    z = MODEL.embed(WAVES)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(9))
    cosine = z @ functional.normalize(MODEL.class_weight, dim=1).T
    own = cosine.gather(1, LABELS[:, None])[:, 0]
    for margin, scores in ((0.4, MODEL.score(WAVES, LABELS)), (0.0, MODEL.score_embeddings(z, LABELS, margin=0.0))):
        logits = cosine.detach().clone()
        logits[range(9), LABELS] = torch.cos(torch.acos(own) + margin)
        torch.testing.assert_close(
            scores, (30 * logits).logsumexp(1) - 30 * logits[range(9), LABELS], rtol=1e-3, atol=1e-3
        )


def test_clips_that_are_surely_their_own_machine_do_not_tie():
    weight = functional.normalize(MODEL.class_weight.detach(), dim=1)
    labels = torch.arange(len(MODEL.machines))
    scores = MODEL.score_embeddings(weight, labels, margin=0.0)  # cosine 1 to the own centre
    logits = MODEL.logits(weight, labels, margin=0.0).detach()
    assert (functional.cross_entropy(logits, labels, reduction="none") == 0).any()
    exact = functional.cross_entropy(logits.double(), labels, reduction="none")
    torch.testing.assert_close(scores.double(), exact, rtol=1e-4, atol=1e-15)
    assert len(scores.unique()) == len(scores)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=9))
def test_a_score_does_not_depend_on_batch_mates(rows):
    alone = torch.cat([MODEL.score(WAVES[row : row + 1], LABELS[row : row + 1]) for row in range(9)])
    torch.testing.assert_close(MODEL.score(WAVES[rows], LABELS[rows]), alone[rows], rtol=1e-4, atol=1e-4)


def test_only_the_first_seconds_count():
    longer = torch.cat([WAVES, torch.randn(9, 500)], 1)
    assert torch.equal(MODEL.score(longer, LABELS), MODEL.score(WAVES, LABELS))


def test_scores_keep_a_gradient_out():
    assert not MODEL.score(WAVES, LABELS).requires_grad


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (WAVES[:, :-1], "8000 samples"),
        (WAVES[0], "8000 samples"),
        (WAVES / 0, "NaN or infinite"),
        (torch.full((1, 8_000), float("nan")), "NaN or infinite"),
        (torch.ones(1, 8_000, dtype=torch.int16), "divide int16 by 32768"),
    ],
)
def test_waveforms_that_cannot_be_scored(inputs, message):
    with pytest.raises(ValueError, match=message):
        MODEL.score(inputs, LABELS[: len(inputs)])


def test_pictures_of_another_shape_are_refused():
    recipe = ol.replace(ol.recipe("logmel-osscl", "tiny"), input="features", bands=60, frames=8)
    model = ol.Detector(recipe, 3)
    assert model.score(torch.randn(3, 60, 8), torch.arange(3)).shape == (3,)
    with pytest.raises(ValueError, match=r"expected \(B, 60, 8\) pictures"):
        model.score(torch.randn(3, 8, 60), torch.arange(3))


def test_a_machine_that_was_not_trained_on_is_named():
    with pytest.raises(BadInput, match="not trained on pump/id_04: this detector knows fan/id_00, fan/id_02"):
        MODEL.machine_labels(pd.DataFrame({"machine_type": ["fan", "pump"], "machine_id": ["id_00", "id_04"]}))
    table = pd.DataFrame({"machine_type": ["valve", "fan"], "machine_id": ["id_00", "id_02"]}, index=[7, 3])
    assert MODEL.machine_labels(table).tolist() == [2, 1]


def refusal(path):
    with pytest.raises(BadInput) as caught:
        ol.Detector.load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_hold_no_detector(tmp_path):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    MODEL.save(good)
    whole = good.read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:-1], b"\xff" * 8 + whole[8:], whole + b"more"):
        bad.write_bytes(damaged)
        assert "not a readable safetensors file" in refusal(bad)
    save_file({"weight": torch.ones(2)}, bad)
    assert "another program" in refusal(bad)
    assert "no such file" in refusal(tmp_path / "missing.safetensors")
    assert "no such file" in refusal(tmp_path)


def test_weights_that_do_not_fit_their_recipe(tmp_path):
    path = tmp_path / "model.safetensors"
    MODEL.save(path)
    tensors, about = read_tensors(path, "detector")
    changes = (
        {"recipe": about["recipe"] | {"width": 8}},
        {"recipe": about["recipe"] | {"colour": 1}},
        {"recipe": about["recipe"] | {"width": "wide"}},
        {"machines": NAMES[:2]},
    )
    for change in changes:
        write_tensors(path, tensors, about | change)
        assert "do not fit the recipe" in refusal(path)
    write_tensors(path, tensors, {key: value for key, value in about.items() if key != "machines"})
    assert "do not fit the recipe" in refusal(path)
    write_tensors(path, tensors, about | {"kind": "checkpoint"})
    assert "holds a checkpoint, not a detector" in refusal(path)


def test_a_checkpoint_is_of_this_run_or_refused(tmp_path):
    path, identity = tmp_path / "checkpoint.safetensors", dict(recipe=dict(seed=1, shape=(2, 3)), clips="a", watch=None)
    write_tensors(path, {}, dict(kind="checkpoint", identity=identity))
    _, about = read_tensors(path, "checkpoint")
    check_identity(path, about, identity)  # a tuple comes back as a list
    others = (
        (identity | dict(clips="b"), "another clips;"),
        (identity | dict(recipe=dict(seed=2, shape=(2, 3)), watch="c"), "another recipe, watch;"),
        (dict(recipe=identity["recipe"], watch=None), "another clips;"),
        (identity | dict(weights="d"), "another weights;"),
    )
    for other, reason in others:
        with pytest.raises(BadInput, match=reason) as caught:
            check_identity(path, about, other)
        assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: from a run with another")
    with pytest.raises(BadInput, match="another recipe, clips; give another folder, or delete it"):
        check_identity(path, {}, identity)


def test_score_clips_reads_rows_in_order(tree):
    clips = ol.load_clips("dcase2020", root=tree)
    torch.manual_seed(3)
    model = ol.Detector(ol.recipe("logmel-osscl", "tiny"), ["fan/id_00", "fan/id_02", "valve/id_00", "valve/id_02"])
    scores = model.score_clips(clips, batch_size=5)
    assert scores.shape == (len(clips),) and scores.dtype == np.float32
    np.testing.assert_allclose(model.score_clips(clips.iloc[::-1])[::-1], scores, rtol=1e-4, atol=1e-4)
    waves = torch.cat(list(read_batches(model.recipe, clips, 64)))
    assert -1 <= waves.min() < 0 < waves.max() < 1
    np.testing.assert_allclose(model.score(waves, model.machine_labels(clips)), scores, rtol=1e-4, atol=1e-4)
    assert model.score_clips(clips.iloc[:0]).shape == (0,)


def test_another_hall_than_the_one_trained_on_is_said(monkeypatch):
    model = ol.Detector(ol.recipe("logmel-osscl", "tiny"), ["fan/id_00"])
    model.hall_version = "1"
    monkeypatch.setattr(
        "osscl_lite.detector.load_waveforms", lambda clips, seconds: np.zeros((len(clips), 32_000), np.int16)
    )
    path = "hall://2/0/tiny/fan/test/normal_id_00_00000000.wav"
    clips = pd.DataFrame({"path": [path], "machine_type": ["fan"], "machine_id": ["id_00"]})
    with pytest.warns(UserWarning, match="trained on hall version 1, scoring version 2"):
        model.score_clips(clips)
