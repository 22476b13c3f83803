"""Every system of the tables that trains as a detector: a planted fault is found, and not from shuffled names."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import osscl_lite as ol
from osscl_lite.baselines import clp_scf
from osscl_lite.detector import Detector
from osscl_lite.errors import BadInput
from osscl_lite.systems import SYSTEMS, system_of

EPOCHS = {
    "logmel-osscl": 8, "stgram-osscl": 8, "tfstgram-osscl": 10, "stgram-arcface": 8, "tfstgram-arcface": 8,
    "stgram-mfn": 8, "tastgram-namix": 8, "clp-scf": 8,
}  # fmt: skip


def small(name):
    changes = dict(seconds=1.0, bands=32, width=8, batch_size=32, learning_rate=3e-3, seed=0)
    return ol.replace(SYSTEMS[name].recipe("tiny"), epochs=EPOCHS.get(name, 2), **changes)


@pytest.mark.parametrize("name", EPOCHS)
def test_a_planted_fault_is_found_and_not_from_shuffled_names(name, planted, shuffled, fan_auc):
    fit = SYSTEMS[name].fit
    assert fan_auc(fit(small(name), planted, device="cpu", progress=False)) > 0.9
    assert fan_auc(fit(small(name), shuffled, device="cpu", progress=False)) <= 0.9


# As counted in the authors' programs, without a 128 -> 41 layer that nothing uses.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("stgram-mfn", 1_350_335 - 5_289), ("clp-scf", 1_361_686), ("tastgram-namix", 1_161_855 - 5_289)],
)
def test_sizes_are_those_of_the_programs(name, parameters):
    model = Detector(ol.recipe(name), 41)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_second_stage_goes_on_from_the_first(planted, tmp_path):
    recipe = small("clp-scf")
    model = clp_scf.fit(recipe, planted, device="cpu", out=tmp_path, progress=False, watch=planted[:5])
    first = clp_scf.first_stage(recipe)
    assert (first.loss, first.epochs, first.temperature, first.learning_rate) == ("supcon", 3, 0.1, 5 * 3e-3)
    assert [training_rate(first, epoch) for epoch in range(3)] == [5 * 3e-3] * 3
    assert model.earlier[0].recipe == first and len(model.earlier[0].log) == 3 and len(model.log) == 8
    assert model.earlier[0].log["holdout_loss"].isna().all() and model.earlier[0].log["chosen"].all()
    assert model.watched.shape == (8, 5)
    layers = [type(layer) for layer in model.earlier[0].projector]
    assert layers == [nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert model.projector is None and not [name for name in model.state_dict() if name.startswith("earlier")]
    # One epoch at rate 0 leaves the weights of the first stage where they were.
    still = clp_scf.training.fit(
        ol.replace(recipe, epochs=1, learning_rate=0.0), planted, device="cpu", progress=False, start=model.earlier[0]
    )
    before = dict(model.earlier[0].named_parameters())
    for name, parameter in still.named_parameters():
        if name != "class_weight":
            assert torch.equal(parameter, before[name]), name
    again = clp_scf.fit(recipe, planted, device="cpu", out=tmp_path, progress=False, watch=planted[:5])
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    other = deepcopy(model.earlier[0])
    other.network.load_state_dict({name: 2 * tensor for name, tensor in other.network.state_dict().items()})
    with pytest.raises(BadInput, match="another start"):  # a second stage goes on from its own first one only
        clp_scf.training.fit(
            recipe, planted, device="cpu", out=tmp_path / "second-stage", progress=False, watch=planted[:5], start=other
        )


def training_rate(recipe, epoch):
    return clp_scf.training.learning_rate(recipe, epoch)


def test_the_rate_is_flat_before_the_cosine_begins():
    recipe = ol.recipe("stgram-mfn")
    rates = [training_rate(recipe, epoch) for epoch in range(301)]
    assert rates[:21] == [1e-4] * 21 and rates[21] < 1e-4 and rates[300] == pytest.approx(1e-5)
    assert training_rate(ol.recipe("clp-scf"), 300) == pytest.approx(0)


def test_every_system_answers_to_its_name_and_longer_ones():
    for name, system in SYSTEMS.items():
        recipe = system.recipe("tiny")
        assert (recipe.name, recipe.size, system_of(recipe)) == (name, "tiny", system)
    assert system_of(ol.replace(ol.recipe("logmel-osscl"), name="logmel-osscl-long")).name == "logmel-osscl"
    with pytest.raises(BadInput, match="begins with the name of no system; there are logmel-osscl"):
        system_of(ol.replace(ol.recipe("logmel-osscl"), name="mine"))


def test_high_bands_are_cut_off(planted):
    """What lies above the cut changes nothing, a tone below does."""
    recipe = ol.replace(small("logmel-osscl"), highest_hz=2_000.0)
    model = ol.fit(ol.replace(recipe, epochs=2), planted, device="cpu", progress=False)
    time = torch.arange(16_000) / 16_000
    low = 0.01 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    swell = 0.5 * torch.hann_window(16_000)  # no click at the ends
    tones = [low + swell * torch.sin(2 * torch.pi * hertz * time) for hertz in (5_000, 1_000)]
    assert 8 < model.bands < 24 and model.network.pool[0].kernel_size[0] < 3
    above, below = (float((model.embed(tone) - model.embed(low)).norm()) for tone in tones)
    assert above < 0.02 * below, (above, below)
    with pytest.raises(ValueError, match="highest_hz cuts Log-Mel bands"):
        ol.replace(ol.recipe("tfstgram-osscl"), highest_hz=2_000.0)
