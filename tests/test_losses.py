"""Losses against pytorch-metric-learning and against a naive recomputation that shares nothing with the package."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import ArcFaceLoss, SupConLoss
from torch.nn import functional

from osscl_lite import losses

DTYPES = [torch.float32, torch.float64]
CLOSE = {torch.float32: dict(rtol=2e-4, atol=2e-4), torch.float64: dict(rtol=1e-9, atol=1e-9)}


def unit(rows, columns=8, seed=0, dtype=torch.float64):
    z = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z / z.norm(dim=1, keepdim=True)).to(dtype)


def naive_supcon(z, labels, temperature):
    """Eq. 1 term by term; the mean over anchors; times temperature / 0.07."""
    total = z.new_zeros(())
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        below = sum(torch.exp(z[i].dot(z[a]) / temperature) for a in range(len(z)) if a != i)
        for p in positives:
            total = total - torch.log(torch.exp(z[i].dot(z[p]) / temperature) / below) / len(positives)
    return total / len(z) * temperature / 0.07


def naive_logits(z, weight, labels, margin, scale):
    """ArcFace through the angle itself."""
    rows = []
    for i, label in enumerate(labels):
        row = []
        for c in range(len(weight)):
            cosine = z[i].dot(weight[c]) / weight[c].dot(weight[c]).sqrt()
            theta = torch.acos(cosine)
            if c == label:
                past = theta.item() >= math.pi - margin
                cosine = cosine - margin * math.sin(math.pi - margin) if past else torch.cos(theta + margin)
            row.append(scale * cosine)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def naive_cross_entropy(logits, labels):
    return torch.stack([logits[i].exp().sum().log() - logits[i, c] for i, c in enumerate(labels)]).mean()


def gradients(value, *tensors):
    return [gradient.double() for gradient in torch.autograd.grad(value, tensors)]


def test_supcon_of_clp_scf_counts_the_anchor_itself_below():
    z, labels = unit(9).requires_grad_(), [0, 0, 1, 2, 2, 2, 3, 1, 4]  # 3 and 4 have no partner
    total, anchors = 0.0, 0
    for i in range(9):
        positives = [p for p in range(9) if p != i and labels[p] == labels[i]]
        below = sum(torch.exp(z[i].dot(z[a]) / 0.1) for a in range(9))
        if positives:
            anchors += 1
            total -= sum(torch.log(torch.exp(z[i].dot(z[p]) / 0.1) / below) for p in positives) / len(positives)
    found = losses.supcon(z, torch.tensor(labels))
    torch.testing.assert_close(found, total / anchors)
    for mine, naive in zip(gradients(found, z), gradients(total / anchors, z), strict=True):
        torch.testing.assert_close(mine, naive)
    assert losses.supcon(unit(3), torch.arange(3)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.02, 0.07, 0.5])
def test_supcon_is_equation_1(dtype, temperature):
    labels = [0, 1, 0, 2, 1, 0, 3, 2]  # class 3 has no positive
    z = unit(8).requires_grad_()
    mine = z.detach().to(dtype).requires_grad_()
    loss, expected = losses.noisy_supcon(mine, torch.tensor(labels), temperature), naive_supcon(z, labels, temperature)
    torch.testing.assert_close(loss.double(), expected, **CLOSE[dtype])
    torch.testing.assert_close(gradients(loss, mine), gradients(expected, z), **CLOSE[dtype])


def test_supcon_agrees_with_pytorch_metric_learning():
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2])
    z = (2 * unit(8)).requires_grad_()  # their loss normalises by itself
    expected = SupConLoss(temperature=0.02)(z, labels) * 0.02 / 0.07
    loss = losses.noisy_supcon(functional.normalize(z), labels, 0.02)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(gradients(loss, z), gradients(expected, z), rtol=1e-6, atol=1e-6)


def test_an_anchor_without_positive_adds_nothing_but_counts_in_the_mean():
    z, labels = unit(4), torch.tensor([0, 0, 1, 1])
    stranger = torch.cat([z, -z.mean(0, keepdim=True) / z.mean(0).norm()])
    with_stranger = losses.noisy_supcon(stranger, torch.tensor([0, 0, 1, 1, 2]), 0.1)
    torch.testing.assert_close(with_stranger, naive_supcon(stranger, [0, 0, 1, 1, 2], 0.1))
    alone = unit(5).requires_grad_()
    nothing = losses.noisy_supcon(alone, torch.arange(5), 0.02)
    assert nothing == 0 and gradients(nothing, alone)[0].abs().max() == 0
    assert losses.noisy_supcon(z, labels, 0.1) > 0


def test_supcon_survives_the_paper_temperature_in_float32():
    z = unit(64, 128, dtype=torch.float32)
    z[1] = z[0]
    z.requires_grad_()
    loss = losses.noisy_supcon(z, torch.arange(64) // 8, 0.02)
    assert loss.isfinite() and gradients(loss, z)[0].isfinite().all()


def test_supcon_refuses_labels_of_another_length():
    with pytest.raises(ValueError, match="4 embeddings but 3 labels"):
        losses.noisy_supcon(unit(4), torch.zeros(3, dtype=torch.long))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 12), classes=st.integers(1, 4))
def test_supcon_forgets_order_and_direction(seed, rows, classes):
    z, generator = unit(rows, seed=seed), torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    shuffle = torch.randperm(rows, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
    loss = losses.noisy_supcon(z, labels, 0.1)
    torch.testing.assert_close(losses.noisy_supcon(z[shuffle], labels[shuffle], 0.1), loss)
    torch.testing.assert_close(losses.noisy_supcon(z @ rotation, labels, 0.1), loss)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("margin", "scale"), [(0.4, 30.0), (0.7, 30.0), (0.0, 8.0)])
def test_arcface_logits_through_the_angle(dtype, margin, scale):
    z, weight, labels = unit(10), 3 * unit(5, seed=1), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    z[0] = functional.normalize(0.05 * z[0] - weight[0] / 3, dim=0)  # theta beyond pi - margin
    assert torch.acos(z[0].dot(weight[0]) / 3) > math.pi - 0.4
    tensors = z.requires_grad_(), weight.requires_grad_()
    mine = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    logits = losses.arcface_logits(*mine, torch.tensor(labels), margin, scale)
    expected = naive_logits(*tensors, labels, margin, scale)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.double(), expected, **CLOSE[dtype])
    weights = torch.linspace(-1, 1, 50, dtype=torch.float64).reshape(10, 5)
    got, wanted = gradients((logits * weights).sum(), *mine), gradients((expected * weights).sum(), *tensors)
    torch.testing.assert_close(got, wanted, rtol=max(1e-7, CLOSE[dtype]["rtol"]), atol=5 * CLOSE[dtype]["atol"])


@pytest.mark.parametrize("margin", [0.4, 0.7])
def test_arcface_agrees_with_pytorch_metric_learning(margin):
    theirs = ArcFaceLoss(num_classes=5, embedding_size=8, margin=math.degrees(margin), scale=30).double()
    z, labels = (2 * unit(20)).requires_grad_(), torch.arange(20) % 5  # their loss normalises by itself
    expected = theirs(z, labels)
    weight = theirs.W.detach().T.clone().requires_grad_()
    loss = functional.cross_entropy(
        losses.arcface_logits(functional.normalize(z), weight, labels, margin, 30.0), labels
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, z)[0], gradients(expected, z)[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_arcface_gradient_is_finite_at_the_poles(dtype, sign):
    weight = torch.eye(3, dtype=dtype).requires_grad_()
    z = (sign * torch.eye(3, dtype=dtype)).requires_grad_()
    loss = functional.cross_entropy(losses.arcface_logits(z, weight, torch.arange(3), 0.4, 30.0), torch.arange(3))
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients(loss, z, weight))


def test_the_logit_of_the_own_class_falls_with_the_angle_up_to_pi():
    theta = torch.linspace(0, math.pi, 500, dtype=torch.float64)
    z, weight = torch.stack([theta.cos(), theta.sin()], 1), torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    own = losses.arcface_logits(z, weight, torch.zeros(500, dtype=torch.long), 0.7, 1.0)
    away = theta < math.pi - 0.7 - 0.01, theta > math.pi - 0.7 + 0.01
    torch.testing.assert_close(
        own[away[0], 0], torch.cos(theta[away[0]] + 0.7), rtol=0, atol=1e-5
    )  # the clamp at theta = 0
    torch.testing.assert_close(own[away[1], 0], torch.cos(theta[away[1]]) - 0.7 * math.sin(0.7))
    assert (own[away[1], 0].diff() < 0).all() and (own[away[0], 0].diff() < 0).all()
    torch.testing.assert_close(own[:, 1], theta.sin())  # no margin on the others


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_noisy_arcmix_is_equation_2(dtype, lam):
    z, weight, y_a, y_b = unit(6), unit(4, seed=1), [0, 1, 2, 3, 0, 1], [2, 1, 0, 0, 3, 3]
    tensors = z.requires_grad_(), weight.requires_grad_()
    mine = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    logits = losses.arcface_logits(*mine, torch.tensor(y_a), 0.4, 30.0)
    loss = losses.noisy_arcmix(logits, torch.tensor(y_a), torch.tensor(y_b), lam)
    margin_on_a = naive_logits(*tensors, y_a, 0.4, 30.0)  # in both terms
    expected = lam * naive_cross_entropy(margin_on_a, y_a) + (1 - lam) * naive_cross_entropy(margin_on_a, y_b)
    torch.testing.assert_close(loss.double(), expected, **CLOSE[dtype])
    torch.testing.assert_close(gradients(loss, *mine), gradients(expected, *tensors), rtol=1e-3, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), lam=st.floats(0, 1))
def test_noisy_arcmix_at_one_is_plain_and_forgets_the_order(seed, lam):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    y_a, y_b = torch.randint(5, (2, 7), generator=generator)
    shuffle = torch.randperm(7, generator=generator)
    torch.testing.assert_close(losses.noisy_arcmix(logits, y_a, y_b, 1.0), functional.cross_entropy(logits, y_a))
    loss = losses.noisy_arcmix(logits, y_a, y_b, lam)
    torch.testing.assert_close(losses.noisy_arcmix(logits[shuffle], y_a[shuffle], y_b[shuffle], lam), loss)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), lam=st.floats(0, 1))
def test_mixup_takes_one_permutation_for_sound_and_picture(seed, lam):
    generator = torch.Generator().manual_seed(seed)
    sound, picture = torch.randn(6, 20, generator=generator), torch.randn(6, 4, 3, generator=generator)
    y, permutation = torch.arange(6), torch.randperm(6, generator=generator)
    mixed, mixed_picture, y_a, y_b = losses.mixup(sound, picture, y, lam, permutation)
    for i, j in enumerate(permutation.tolist()):  # small lam stays small: nothing is folded to 0.5 and above
        torch.testing.assert_close(mixed[i], lam * sound[i] + (1 - lam) * sound[j], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mixed_picture[i], lam * picture[i] + (1 - lam) * picture[j], rtol=1e-5, atol=1e-5)
    assert torch.equal(y_a, y) and torch.equal(y_b, permutation)


def test_mixup_at_one_changes_nothing_and_needs_no_sound():
    picture, y = torch.randn(4, 3, 2), torch.arange(4)
    nothing, mixed, y_a, _ = losses.mixup(None, picture, y, torch.tensor(1.0), torch.tensor([3, 2, 1, 0]))
    assert nothing is None and torch.equal(mixed, picture) and torch.equal(y_a, y)


def test_log_odds_are_exact_where_the_probability_is_not():
    logits = np.random.default_rng(0).normal(0, 3, (50, 5))
    logits[0, 2], logits[1, 2] = 150, -150  # p rounds to 1, and to 0
    y = np.full(50, 2)
    y[2:] = np.arange(48) % 5
    powers = np.exp(logits.astype(np.longdouble))
    own = powers[np.arange(50), y]
    others = np.array([np.delete(row, place).sum() for row, place in zip(powers, y, strict=True)])  # 1 - p would be 0
    expected = np.log(others / own).astype(float)
    scores = losses.log_odds_against(torch.tensor(logits, dtype=torch.float32), torch.tensor(y))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    plain = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(y), reduction="none")
    torch.testing.assert_close(torch.nn.functional.softplus(scores), plain.float(), rtol=1e-4, atol=1e-5)
