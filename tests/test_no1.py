"""No. 1: its two parts, their fusion and a planted fault."""

from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from osscl_lite import load_clips
from osscl_lite.baselines import group_made, mobilenetv2, no1
from osscl_lite.errors import BadInput

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed"),
]


def test_the_recipe_is_that_of_both_parts():
    for size in ("paper", "book", "tiny", "features"):
        both = no1.recipe(size)
        assert both.classifier == mobilenetv2.recipe(size) and both.made == group_made.recipe(size)
        assert no1.No1Recipe.from_dict(both.to_dict()) == both
    other = replace(both, seed=5, epochs=3, made_epochs=4)
    assert (other.classifier.seed, other.made.seed, other.classifier.epochs, other.made.epochs) == (5, 5, 3, 4)


QUICK = replace(no1.recipe("tiny"), epochs=2, batch_size=8, made_epochs=1)


@pytest.fixture(scope="module")
def model(planted, one_thread):
    return no1.fit(QUICK, planted, device="cpu", progress=False)


def test_the_score_averages_both_parts_standardised_on_the_own_training_clips(planted, model):
    names = (planted["machine_type"] + "/" + planted["machine_id"]).to_numpy()
    train, expected = (planted["split"] == "train").to_numpy(), np.zeros(len(planted))
    firm = np.ones(len(planted), bool)  # where a part's scores differ by more than rounding, which processors do unlike
    for part, mean, std in zip(model.parts, model.mean.tolist(), model.std.tolist(), strict=True):
        scores = part.score_clips(planted).astype(np.float64)
        for label, name in enumerate(model.machines):
            own = names == name
            known = scores[own & train]
            far = known.std() > 1e-3 * (1 + abs(known.mean()))
            firm[own] &= far
            assert mean[label] == pytest.approx(known.mean(), rel=1e-3)
            assert not far or std[label] == pytest.approx(known.std(), rel=1e-3)
            expected[own] += (scores[own] - mean[label]) / std[label] / 2
    scores = model.score_clips(planted)
    assert firm.mean() >= 0.5
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
    again = model.score_clips(planted.iloc[::-1], 7)[::-1]  # other batches round otherwise
    np.testing.assert_allclose(again[firm], scores[firm], rtol=1e-3, atol=1e-3)


def test_equal_scores_are_not_stretched(planted, model):
    flat = deepcopy(model)
    for network in flat.parts[0].networks.values():
        network.score = lambda windows, y: torch.full((len(windows),), 3.0)
    flat.calibrate(planted[planted["split"] == "train"])
    assert (flat.mean[0] == 3).all() and (flat.std[0] == 1).all() and torch.equal(flat.std[1], model.std[1])


def test_the_parts_are_the_two_systems(planted, model):
    made = group_made.fit(QUICK.made, planted, device="cpu", progress=False)
    assert all(torch.equal(model.parts[1].state_dict()[name], tensor) for name, tensor in made.state_dict().items())
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in (model, *model.parts)]
    assert counts[0] == counts[1] + counts[2]


def test_stopped_between_its_parts_it_goes_on_with_the_same_result(planted, model, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(no1.group_made, "fit", stop)
        no1.fit(QUICK, planted, device="cpu", out=tmp_path, progress=False)
    written = (tmp_path / "classifier" / "fan.safetensors").stat().st_mtime_ns
    again = no1.fit(QUICK, planted, device="cpu", out=tmp_path, progress=False)
    assert (tmp_path / "classifier" / "fan.safetensors").stat().st_mtime_ns == written
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(BadInput, match="another recipe"):
        no1.fit(replace(QUICK, seed=1), planted, device="cpu", out=tmp_path, progress=False)


def test_a_planted_fault_is_found(planted, shuffled, fan_auc):
    chosen = no1.recipe("tiny")
    assert fan_auc(no1.fit(chosen, planted, device="cpu", progress=False)) > 0.9
    assert fan_auc(no1.fit(chosen, shuffled, device="cpu", progress=False)) <= 0.9


def test_it_runs_on_features(make_features):
    clips = load_clips("features", root=make_features(key="modspec", bands=32, frames=16))
    chosen = replace(no1.recipe("features"), epochs=1, made_epochs=1)
    model = no1.fit(chosen, clips, device="cpu", progress=False)
    assert (model.recipe.input, model.recipe.bands, model.recipe.frames) == ("features", 32, 16)
    assert np.isfinite(model.score_clips(clips)).all()
    with pytest.raises(BadInput, match="no normal clips"):
        no1.fit(chosen, clips[clips["split"] == "test"], device="cpu", progress=False)
