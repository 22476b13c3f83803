"""The MobileNetV2 classifier: size, loss, score and a planted fault."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from osscl_lite import load_clips
from osscl_lite.baselines.mobilenetv2 import MobileNetV2, fit, recipe
from osscl_lite.baselines.windows import Windowed
from osscl_lite.errors import BadInput

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("machine_ids", [2, 4, 7])
def test_numbers_are_counted_as_the_source_counts_them(machine_ids):
    network = MobileNetV2(recipe(), machine_ids)
    weights = sum(parameter.numel() for parameter in network.parameters())
    running = sum(value.numel() for name, value in network.named_buffers() if "running" in name)
    assert weights + running == 706_224 + 1_281 * machine_ids
    assert running == 18_544


def test_loss_and_score_are_those_of_numpy():
    torch.manual_seed(0)
    network, y = MobileNetV2(replace(recipe("tiny"), bands=32), 3), torch.tensor([0, 2, 1, 1, 0])
    windows = 20 * torch.randn(5, 32, 32) - 50
    pictures = torch.stack([windows] * 3, 1)  # one channel, three times
    with torch.no_grad():
        loss = network.loss(windows, y).item()
        logits = network.classifier(pictures).numpy().astype(float)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert loss == pytest.approx(-np.log(p[range(5), y]).mean(), rel=1e-4)
        network.eval()
        logits = network.classifier(pictures).numpy().astype(float)
        p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[range(5), y]
        np.testing.assert_allclose(network.score(windows, y), np.log((1 - p) / p), rtol=1e-3, atol=1e-4)


def test_a_clip_scores_the_mean_over_its_windows(planted, tmp_path):
    clips = planted[planted["split"] == "train"].groupby(["machine_type", "machine_id"]).head(2)
    model = fit(replace(recipe("tiny"), epochs=1), clips, device="cpu", out=tmp_path, progress=False)
    assert model.recipe.frames == 63 and (63 - model.recipe.context) % model.recipe.stride == 0  # no frame left out
    waveforms = torch.randn(1, model.samples) / 20
    picture = model.pictures(waveforms)[0].T
    windows = torch.stack([picture[:, :32], picture[:, 31:]])
    fan = [name.startswith("fan") for name in model.machines].index(True)
    with torch.no_grad():
        expected = model.networks["fan"].score(windows, torch.tensor([0, 0])).mean()
    torch.testing.assert_close(model.score(waveforms, torch.tensor([fan]))[0], expected, rtol=1e-4, atol=1e-4)
    again = Windowed.load(tmp_path / "baseline.safetensors", MobileNetV2)
    np.testing.assert_array_equal(again.score_clips(clips), model.score_clips(clips))


def test_a_planted_fault_is_found(planted, shuffled, fan_auc):
    chosen = replace(recipe("tiny"), epochs=10)
    assert fan_auc(fit(chosen, planted, device="cpu", progress=False)) > 0.9
    assert fan_auc(fit(chosen, shuffled, device="cpu", progress=False)) <= 0.9


@pytest.mark.parametrize("key, bands, frames", [("modspec", 60, 8), ("log_mel", 128, 200)])
def test_it_learns_from_precomputed_features(make_features, key, bands, frames):
    clips = load_clips("features", root=make_features(key, bands, frames))
    model = fit(replace(recipe("features"), epochs=1), clips, device="cpu", progress=False)
    assert model.recipe.context == min(64, frames)
    assert np.isfinite(model.score_clips(clips)).all()


def test_a_type_with_one_id_is_refused():
    with pytest.raises(BadInput, match="single ID"):
        MobileNetV2(recipe("tiny"), 1)


def test_without_torchvision_the_command_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BadInput, match=r"pip install .*osscl_lite\[tables\]"):
        MobileNetV2(recipe("tiny"), 2)
