"""Group MADE: what each group may see, that its density is one, and a planted fault."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from osscl_lite import load_clips
from osscl_lite.baselines.group_made import GroupMADE, fit, recipe

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(recipe("tiny"), bands=3)


def made(chosen=TINY, machine_ids=2):
    torch.manual_seed(0)
    network = GroupMADE(chosen, machine_ids).double()
    for parameter in network.parameters():  # far from 0, so that what is seen shows
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_the_loss_is_a_gaussian_log_density_of_scipy():
    network, windows, y = made(), torch.randn(6, 3, 5).double() * 4 - 30, torch.tensor([0, 1, 0, 1, 1, 0])
    network.start(windows.transpose(1, 2))
    with torch.no_grad():
        frames = windows.transpose(1, 2)[:, [0, 1, 3, 4, 2]]  # the middle one last
        mean, log_variance = network((frames - network.mean) / network.std, y)
        expected = -norm(
            (mean * network.std + network.mean).numpy(), (log_variance.exp().sqrt() * network.std).numpy()
        ).logpdf(frames.numpy())
        np.testing.assert_allclose(network.score(windows, y), expected.sum((1, 2)), rtol=1e-9)
        assert network.loss(windows, y).item() == pytest.approx(expected.sum((1, 2)).mean(), rel=1e-9)


def test_a_group_sees_the_groups_before_it_and_nothing_else():
    network, groups = made(), 5
    for group in range(groups):
        x = torch.randn(4, groups, 3, dtype=torch.float64, requires_grad=True)
        mean, log_variance = network(x, torch.tensor([0, 1, 0, 1]))
        (mean[:, group].sum() + log_variance[:, group].sum()).backward()
        seen = x.grad.abs().sum((0, 2))
        assert (seen[group:] == 0).all() and (seen[:group] > 0).all()


def test_every_group_knows_the_machine_id():
    network, x = made(), torch.randn(1, 5, 3, dtype=torch.float64)
    means = [network(x, torch.tensor([y]))[0] for y in (0, 1)]
    assert ((means[0] - means[1]).abs() > 1e-6).all()


def test_the_density_of_two_values_integrates_to_one():
    network = made(replace(TINY, bands=1, context=2, hidden=8))
    network.start(torch.randn(50, 9, 1).double() * 3 - 20)
    with torch.no_grad():
        axis = torch.linspace(-80, 40, 601, dtype=torch.float64)
        windows = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 1, 2)
        density = (-network.score(windows, torch.zeros(len(windows), dtype=torch.long))).exp()
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=1e-3)


def test_a_planted_fault_is_found(planted, shuffled, fan_auc):
    chosen = recipe("tiny")
    assert fan_auc(fit(chosen, planted, device="cpu", progress=False)) > 0.9
    assert fan_auc(fit(chosen, shuffled, device="cpu", progress=False)) <= 0.9


def test_stopped_it_goes_on_with_the_same_result(planted, tmp_path):
    chosen = replace(recipe("tiny"), epochs=1)
    whole = fit(chosen, planted, device="cpu", out=tmp_path, progress=False)
    (tmp_path / "valve.safetensors").unlink()
    (tmp_path / "baseline.safetensors").unlink()
    again = fit(chosen, planted, device="cpu", out=tmp_path, progress=False)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


def test_it_runs_on_features(make_features):
    for key in ("log_mel", "modspec"):
        clips = load_clips("features", root=make_features(key=key))
        model = fit(replace(recipe("features"), epochs=1), clips, device="cpu", progress=False)
        assert np.isfinite(model.score_clips(clips)).all()
