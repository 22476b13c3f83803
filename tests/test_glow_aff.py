"""Glow_Aff: a density that is one, its loss, its stability and a planted fault."""

import sys
from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from osscl_lite import load_clips
from osscl_lite.baselines.glow_aff import Coupling, Glow, fit, make_flow, recipe
from osscl_lite.baselines.windows import Windowed
from osscl_lite.errors import BadInput

pytestmark = pytest.mark.usefixtures("one_thread")


def small(bands, context, hidden=6, **changes):
    shape = dict(input="features", bands=bands, frames=context, context=context)
    return replace(recipe("tiny"), hidden=hidden, **shape, **changes)


def trained(network, seed=0):
    """Weights as after training, in float64: the couplings are no longer the identity, the actnorms are set."""
    torch.manual_seed(seed)
    network.double()
    for value in network.parameters():
        with torch.no_grad():
            value.add_(0.3 * torch.randn_like(value) / max(1, value[0].numel() ** 0.5))
    for name, value in network.named_buffers():
        if name.endswith("init_done"):
            value.fill_(1)
    return network


def jacobian_density(flow, picture):
    """log p of one picture (bands, context): autograd's Jacobian and scipy's normal density."""

    def flat(x):
        z, _ = flow.inverse_and_log_det(x.view(1, 1, *picture.shape))
        return torch.cat([part.flatten() for part in z])

    jacobian = torch.autograd.functional.jacobian(flat, picture.flatten())
    return norm.logpdf(flat(picture.flatten()).detach().numpy()).sum() + torch.linalg.slogdet(jacobian)[1].item()


@pytest.mark.parametrize("size, channels", [("paper", [4, 8, 16]), ("tiny", [16, 32])])
def test_parameters_follow_from_the_blocks(size, channels):
    r = replace(recipe(size), hidden=32)
    step = [(c // 2 * 9 + 1) * 32 + 33 * 32 + (32 * 9 + 1) * c + c * c + 2 * c for c in channels]
    expected = r.steps * sum(step) + 2 * r.bands
    assert sum(parameter.numel() for parameter in make_flow(r).parameters()) == expected
    assert sum(parameter.numel() for parameter in Glow(r, 3).parameters()) == 3 * expected


def test_a_picture_comes_back_from_its_latent_values():
    flow, pictures = trained(make_flow(small(8, 8))), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    z, log_det = flow.inverse_and_log_det(pictures)
    assert len(z) == 2 and sum(part[0].numel() for part in z) == 64
    again, back = flow.forward_and_log_det(z)
    torch.testing.assert_close(again, pictures, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back, -log_det, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", [dict(squeezes=1), dict(squeezes=2), dict(squeezes=1, levels=3)])
def test_the_density_is_that_of_the_jacobian(changes):
    network = trained(Glow(small(8, 8, **changes), 1))
    pictures = torch.randn(2, 8, 8, dtype=torch.float64)
    expected = [jacobian_density(network.flows[0], picture) / 64 for picture in pictures]
    np.testing.assert_allclose(network.likelihood(pictures, 0).detach(), expected, rtol=1e-6)


def test_the_density_integrates_to_one():
    network = trained(Glow(small(2, 2), 1))
    rng = np.random.default_rng(0)
    with torch.no_grad():
        z = torch.tensor(rng.standard_normal((4000, 4, 1, 1)))
        centre = network.flows[0].forward_and_log_det([z])[0].flatten(1).numpy()
        proposal = multivariate_normal(centre.mean(0), 2 * np.cov(centre.T))
        drawn = proposal.rvs(200_000, rng)
        log_p = 4 * network.likelihood(torch.tensor(drawn).view(-1, 2, 2), 0).numpy()
    ratio = np.exp(log_p - proposal.logpdf(drawn))
    assert ratio.std() / 200_000**0.5 < 0.005
    assert ratio.mean() == pytest.approx(1, abs=0.02)


def test_it_starts_as_a_gaussian_fitted_to_the_first_windows():
    torch.manual_seed(0)
    network = Glow(small(4, 4), 2).double()
    windows = (torch.randn(40, 4, 4) * torch.tensor([[0.5], [1.0], [2.0], [0.0]]) + 3).double()
    network.begin(windows, 0)
    by_band = network.flows[0].transform.inverse(windows.unsqueeze(1))[0][:, 0]
    torch.testing.assert_close(by_band.mean((0, 2)), torch.zeros(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(by_band.std((0, 2)), torch.tensor([1.0, 1, 1, 0]).double(), atol=1e-3, rtol=0)
    assert network.flows[0].transform.s.min().item() == pytest.approx(log(0.1))  # a band that never changes

    def flat(x):
        z, _ = network.flows[0].inverse_and_log_det(x.view(-1, 1, 4, 4))
        return torch.cat([part.flatten(1) for part in z], 1)

    a = torch.autograd.functional.jacobian(lambda x: flat(x)[0], windows[0].flatten())  # z = A x + b
    mean = torch.linalg.solve(a, flat(torch.zeros(16).double())[0].neg()).detach()
    gaussian = torch.distributions.MultivariateNormal(mean, precision_matrix=a.T @ a)
    with torch.no_grad():
        torch.testing.assert_close(16 * network.likelihood(windows, 0), gaussian.log_prob(windows.flatten(1)))
    before = network.flows[0].transform.s.clone()
    network.loss(10 * windows, torch.arange(40) % 2)  # later windows set nothing
    assert torch.equal(network.flows[0].transform.s, before)


def test_loss_and_score_are_an_independent_computation():
    network = trained(Glow(small(4, 4), 2))
    network.start(7 * torch.randn(10, 6, 4).double() - 50)
    windows, y = 7 * torch.randn(5, 4, 4).double() - 50, torch.tensor([1, 0, 1, 0, 1])
    x = (windows - network.mean) / network.std
    density = np.array([[jacobian_density(flow, one) / 16 for one in x] for flow in network.flows])
    first, second = density  # of the flow of ID 0, of ID 1
    push = np.log1p(np.exp(first[[0, 2]] - first[[1, 3]].mean() + 1)).mean()  # as many others as own: two of three
    pull = np.log1p(np.exp(second[[1, 3]] - second[[0, 2, 4]].mean() + 1)).mean()
    expected = 2 / 5 * (push - first[[1, 3]].mean()) + 3 / 5 * (pull - second[[0, 2, 4]].mean())
    assert network.loss(windows, y).item() == pytest.approx(expected, rel=1e-6)
    scores = network.score(windows, y).detach()
    np.testing.assert_allclose(scores, -density[[1, 0, 1, 0, 1], range(5)], rtol=1e-6)


def test_a_type_with_one_id_trains_on_likelihood_alone():
    network, windows = trained(Glow(small(4, 4), 1)), torch.randn(6, 4, 4).double()
    loss = network.loss(windows, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(loss, network.score(windows, torch.zeros(6, dtype=torch.long)).mean())


def test_a_coupling_scales_within_its_bounds():
    coupling = Coupling(3, 8)
    torch.nn.init.normal_(coupling.layers[-1].weight)
    with torch.no_grad():
        scale = torch.sigmoid(coupling(1e6 * torch.randn(4, 3, 6, 6))[:, 1::2] + 2)
    assert scale.min() >= 0.119 and scale.max() <= 0.9976
    assert scale.min() < 0.12 and scale.max() > 0.997  # the test reached both ends


def test_training_is_stable_and_tells_own_from_others():
    torch.manual_seed(0)
    network = Glow(small(8, 8, hidden=16, steps=2), 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe("tiny").learning_rate)
    means, losses = torch.tensor([0.0, 0.5]).view(2, 1, 1), []
    for _ in range(150):
        y = torch.arange(32) % 2
        loss = network.loss(torch.randn(32, 8, 8) + means[y], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and np.mean(losses[-30:]) < np.mean(losses[:30]) - 0.2
    y = torch.arange(400) % 2
    with torch.no_grad():
        windows = torch.randn(400, 8, 8) + means[y]
        own, other = network.score(windows, y), network.score(windows, 1 - y)
    assert own.mean() < 2  # a standard normal has 1.42 nats a value
    assert own.mean() + 0.2 < other.mean() < own.mean() + 50


def test_others_far_below_no_longer_move_the_weights():
    torch.manual_seed(0)
    network = Glow(small(8, 8), 2).double()
    own = torch.randn(12, 8, 8).double()
    network.begin(own, 0)

    def pull(shift):
        """The gradient that the others add, beside that of the likelihood."""
        windows, y = torch.cat([own, own + shift]), torch.arange(24) // 12
        likelihood = network.likelihood(own, 0).mean() / 2
        both = network.loss(windows, y) + likelihood  # the flow of ID 1 has weights of its own
        gradients = torch.autograd.grad(both, network.flows[0].parameters())
        return max(gradient.abs().max().item() for gradient in gradients)

    assert pull(0.5) > 0.01
    assert pull(8.0) < 1e-6


def test_a_planted_fault_is_found(planted, shuffled, fan_auc):
    chosen = replace(recipe("tiny"), epochs=3)
    assert fan_auc(fit(chosen, planted, device="cpu", progress=False)) > 0.9
    assert fan_auc(fit(chosen, shuffled, device="cpu", progress=False)) <= 0.9


@pytest.mark.parametrize("key, bands, frames", [("modspec", 60, 8), ("log_mel", 128, 200)])
def test_it_learns_from_precomputed_features_and_is_kept(make_features, tmp_path, key, bands, frames):
    clips = load_clips("features", root=make_features(key, bands, frames))
    model = fit(replace(recipe("features"), epochs=1), clips, device="cpu", out=tmp_path, progress=False)
    scores = model.score_clips(clips)
    assert model.recipe.context == min(32, frames) and np.isfinite(scores).all()
    again = Windowed.load(tmp_path / "baseline.safetensors", Glow)
    np.testing.assert_array_equal(again.score_clips(clips), scores)


def test_windows_that_cannot_be_halved_are_refused():
    with pytest.raises(BadInput, match="even"):
        make_flow(small(8, 9))


def test_without_normflows_the_command_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "normflows", None)
    with pytest.raises(BadInput, match=r"pip install .*osscl_lite\[tables\]"):
        make_flow(recipe("tiny"))
