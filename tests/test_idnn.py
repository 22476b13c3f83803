"""IDNN: size, loss and a planted fault."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from osscl_lite import load_clips
from osscl_lite.baselines.idnn import IDNN, fit, recipe
from osscl_lite.errors import BadInput

pytestmark = pytest.mark.usefixtures("one_thread")


def test_parameters_are_those_of_the_source():
    assert sum(parameter.numel() for parameter in IDNN(recipe(), 4).parameters()) == 104_944


def test_loss_and_score_are_those_of_numpy():
    """Written anew: the first layer's inputs band by band, evaluation mode of BatchNorm, ReLU, squared error."""
    torch.manual_seed(0)
    network = IDNN(replace(recipe("tiny"), bands=6), 2)
    windows = 5 * torch.randn(7, 6, 5)
    for _ in range(3):
        network.loss(windows, torch.zeros(7))  # moves the statistics of BatchNorm
    network.eval()
    x = windows.numpy().astype(np.float64)
    hidden, values = x[:, :, 2], np.stack([x[:, :, 0], x[:, :, 1], x[:, :, 3], x[:, :, 4]], 2).reshape(7, -1)
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in network.state_dict().items()}
    for layer in range(0, 21, 3):
        values = values @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]
        mean, variance = weights[f"layers.{layer + 1}.running_mean"], weights[f"layers.{layer + 1}.running_var"]
        values = (values - mean) / np.sqrt(variance + 1e-5)
        values = np.maximum(values * weights[f"layers.{layer + 1}.weight"] + weights[f"layers.{layer + 1}.bias"], 0)
    predicted = values @ weights["layers.21.weight"].T + weights["layers.21.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(network.score(windows, None), ((hidden - predicted) ** 2).mean(1), rtol=1e-4)
        assert network.loss(windows, None).item() == pytest.approx(((hidden - predicted) ** 2).mean(), rel=1e-4)


def test_the_middle_frame_is_hidden_from_its_prediction():
    network, windows = IDNN(recipe("tiny"), 2).eval(), torch.randn(3, 32, 5, requires_grad=True)
    network(windows)[1].sum().backward()
    seen = windows.grad.abs().sum((0, 1))
    assert seen[2] == 0 and (seen[[0, 1, 3, 4]] > 0).all()


def test_training_starts_at_the_mean_spectrum():
    network, pictures = IDNN(recipe("tiny"), 2), torch.randn(4, 9, 32) - 60
    network.start(pictures)
    assert torch.equal(network.layers[-1].bias, pictures.mean((0, 1)))


def test_a_planted_fault_is_found(planted, shuffled, fan_auc):
    chosen = recipe("tiny")
    assert fan_auc(fit(chosen, planted, device="cpu", progress=False)) > 0.9
    assert fan_auc(fit(chosen, shuffled, device="cpu", progress=False)) <= 0.9


def test_it_runs_on_features(make_features):
    for key in ("log_mel", "modspec"):
        clips = load_clips("features", root=make_features(key=key))
        model = fit(replace(recipe("features"), epochs=1), clips, device="cpu", progress=False)
        assert np.isfinite(model.score_clips(clips)).all()
    with pytest.raises(BadInput, match="longer pictures"):
        fit(recipe("features"), load_clips("features", root=make_features(frames=1)), progress=False)
