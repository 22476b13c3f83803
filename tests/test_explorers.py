"""Sliders of chapters 3 and 4: what they draw is what the package computes."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import osscl_lite as ol
from osscl_lite import explorers
from osscl_lite.losses import noisy_supcon
from osscl_lite.perturbation import unit_sphere

MACHINES = [f"{kind}/id_0{k}" for kind in ("fan", "pump") for k in range(3)]
PAPER = {0.02: "the paper's"}


def batch(clips: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings in a cone, labels of which the last has no second clip."""
    generator = torch.Generator().manual_seed(seed)
    z = unit_sphere(torch.randn(clips, 6, generator=generator, dtype=torch.double) + 0.5)
    return z, torch.tensor([*([0, 1, 2] * clips)[: clips - 1], 3])


@pytest.mark.parametrize("tau", [0.005, 0.02, 0.3, 1.0])
def test_pulls_are_the_slopes_of_equation_1(tau):
    z, y = batch()
    others = ~torch.eye(len(z), dtype=torch.bool)
    share = (z @ z.T / tau).masked_fill(~others, -torch.inf).softmax(1)
    positive = (y[:, None] == y) & others
    asked = positive / positive.sum(1, keepdim=True).clamp_min(1)
    slopes = (share - asked) * positive.any(1, keepdim=True) / 0.07 / len(z)  # an anchor without a positive adds 0
    for anchor in (0, 11):
        expected = slopes[anchor] + slopes[:, anchor]
        expected[anchor] = 0
        torch.testing.assert_close(explorers.pulls(z, y, anchor, tau), expected)


def test_pulls_add_up_to_the_gradient_at_the_anchor():
    z, y = batch(seed=1)
    leaf = z.clone().requires_grad_()
    noisy_supcon(leaf, y, 0.1).backward()
    torch.testing.assert_close(explorers.pulls(z, y, 4, 0.1) @ z, leaf.grad[4])


def test_a_small_temperature_leaves_the_push_to_the_nearest_negative():
    z, y = batch(40)
    negative = y != y[0]
    near = int((z @ z[0]).where(negative, -torch.inf).argmax())
    cold, warm = (explorers.pulls(z, y, 0, tau) for tau in (0.001, 1.0))
    assert cold[near] > 0.4 * cold[negative].sum() > 0
    assert warm[near] < 3 * warm[negative].mean()


def temperature_frames() -> dict[str, list]:
    z, y = batch()
    return explorers.temperature_frames(z, [MACHINES[k] for k in y], 0, [0.005, 0.02, 1.0], PAPER)


def test_temperature_frames_tell_the_loss_and_mark_the_paper():
    frames = temperature_frames()
    assert frames["labels"] == ["0.005", "0.02 (the paper's)", "1"]
    assert len(set(frames["frames"])) == len(set(frames["alts"])) == 3
    z, y = batch()
    for tau, alt in zip([0.005, 0.02, 1.0], frames["alts"], strict=True):
        assert f"{noisy_supcon(z, y, tau):.2f} here." in alt
        push = explorers.pulls(z, y, 0, tau)[y != y[0]]
        assert f"{len(push)} negatives push the anchor, with {push.sum():.3f} together" in alt
    needed = [int(re.search(r"comes from (\d+) of them", alt).group(1)) for alt in frames["alts"]]
    assert needed[0] < needed[-1]


def test_half_way_is_the_border_without_margin_and_m_half_nearer_with_one():
    assert explorers.margin_boundary(0.0) == pytest.approx(60)
    assert explorers.margin_boundary(0.0, apart=90) == pytest.approx(45)
    for margin in (0.4, 0.7, 1.0):
        assert explorers.margin_boundary(margin) == pytest.approx(60 - np.rad2deg(margin) / 2, abs=0.11)


@pytest.mark.parametrize("margin", [0.0, 0.4, 0.7, 1.0])
def test_the_own_logit_falls_all_the_way_and_its_slope_is_its_slope(margin):
    degrees = np.linspace(0.5, 179.5, 359)
    logits, slope = explorers.margin_logits(degrees, margin)
    assert (logits[:, 0].diff() < 0).all() and (slope <= 1e-9).all()
    high, low = (explorers.margin_logits(degrees + step, margin)[0][:, 0] for step in (1e-3, -1e-3))
    smooth = np.abs(degrees - 180 + np.rad2deg(margin)) > 0.1  # not at the step
    torch.testing.assert_close(((high - low) / np.deg2rad(2e-3))[smooth], slope[smooth], rtol=1e-4, atol=1e-4)


def test_margin_frames_tell_the_corridor():
    frames = explorers.margin_frames([0.0, 0.7, 1.0], {0.7: "the paper's, Log-Mel"})
    assert frames["labels"] == ["0", "0.7 (the paper's, Log-Mel)", "1"]
    assert len(set(frames["frames"])) == len(set(frames["alts"])) == 3
    assert "up to 60° away" in frames["alts"][0] and "steps" not in frames["alts"][0]
    assert "a corridor of 40°" in frames["alts"][1] and "From 140° on" in frames["alts"][1]
    assert "steps from -30 to -37" in frames["alts"][1]  # -30 (cos m + m sin m) = -36.5, and half a degree further


def test_live_sliders_redraw():
    z, y = batch()
    for explorer, value, said in (
        (explorers.temperature_explorer(z, [MACHINES[k] for k in y], 0, PAPER), 0.5, "τ = 0.5"),
        (explorers.margin_explorer({0.7: "the paper's"}), 0.25, "m = 0.25"),
    ):
        slider, shown = explorer.children
        before = shown.value
        assert "(the paper&#x27;s)" in before
        slider.value = value
        assert said in shown.value and shown.value != before


def seen(reduction: int | None, machines: list[str] = MACHINES) -> tuple[explorers.Squeeze, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = ol.Detector(ol.replace(ol.recipe("logmel-osscl", size="tiny"), reduction=reduction), machines)
    rows = [(*machine.split("/"), label) for machine in machines for label in ["normal"] * 5 + ["anomaly"] * 5]
    clips = pd.DataFrame(rows, columns=["machine_type", "machine_id", "label"])
    x = 3 * torch.randn(len(clips), 128) + model.class_weight.detach()[model.machine_labels(clips)] * 40
    with torch.no_grad():
        z = unit_sphere(model.perturbation(x))
    return explorers.squeeze(model, x, z, clips), x, z


def test_squeeze_looks_before_and_after_the_head():
    look, x, z = seen(4)
    fan, pump = slice(0, 5), slice(30, 35)  # normal clips of the first ID of each type
    assert look.id_cosines[0, 3] == pytest.approx(float((z[fan] @ z[pump].T).mean()), abs=1e-5)
    before = unit_sphere(x)
    assert look.id_cosines[3, 0] == pytest.approx(float((before[fan] @ before[pump].T).mean()), abs=1e-5)
    torch.testing.assert_close(look.turned, torch.cosine_similarity(x, z), atol=1e-5, rtol=0)
    assert look.normal.sum() == 30 and set(look.areas) == {"fan", "pump"}


def test_without_a_head_nothing_is_turned():
    look, _, _ = seen(None)
    torch.testing.assert_close(look.turned, torch.ones(60))
    torch.testing.assert_close(look.id_cosines, look.id_cosines.T)
    assert look.own.median() > look.nearest.median()  # the clips were put round the centres


def test_own_and_nearest_other_are_cosines_to_centres():
    look, _, z = seen(16)
    torch.manual_seed(0)
    weight = ol.Detector(ol.replace(ol.recipe("logmel-osscl", size="tiny"), reduction=16), MACHINES).class_weight
    cosines = torch.cosine_similarity(z[:, None], weight.detach()[None], dim=2)
    torch.testing.assert_close(look.own[:10], cosines[:10, 0])  # clips of fan/id_00
    torch.testing.assert_close(look.nearest[:10], cosines[:10, 1:].max(1).values)


def test_one_type_is_told_by_id():
    look, _, _ = seen(None, MACHINES[:3])
    assert list(look.areas) == MACHINES[:3]
    figure, words = explorers.draw_squeeze("R = 3", look)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == MACHINES[:3]
    assert "3 by 3 cosines" in words and "fan/id_02" in words
    plt.close(figure)


def test_squeeze_frames_differ_and_tell_their_numbers():
    looks = {reduction: seen(reduction)[0] for reduction in (None, 8)}
    frames = explorers.squeeze_frames(looks)
    assert frames["labels"] == ["no head", "8"] and len(set(frames["frames"])) == 2
    assert "before and after 1.00 and 1.00" in frames["alts"][0]
    for look, alt in zip(looks.values(), frames["alts"], strict=True):
        normal, anomalous = (look.own[rows].quantile(0.5) for rows in (look.normal, ~look.normal))
        assert f"own centre {normal:z.2f} and {anomalous:z.2f}" in alt
        assert f"mean per-ID AUC {np.mean(list(look.areas.values())):.2f}" in alt
