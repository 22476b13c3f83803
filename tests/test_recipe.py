"""Recipes: the paper's values, the sizes, what is refused."""

import dataclasses

import pytest

import osscl_lite as ol
from osscl_lite.recipe import ROWS, SIZES, Recipe


def test_paper_values():
    recipe = ol.recipe("tfstgram-osscl")
    expected = dict(
        size="paper", seconds=10.0, sample_rate=16_000, n_fft=2048, hop=512, bands=128, frames=313, width=64,
        embedding=128, reduction=64, activation="relu", margin=0.4, scale=30.0, temperature=0.02, mixup_beta=0.5,
        epochs=300, batch_size=64, learning_rate=1e-4, weight_decay=0.01, shrink=2e-6, holdout=0.05, seed=2024,
    )  # fmt: skip
    assert {key: getattr(recipe, key) for key in expected} == expected
    assert recipe.learning_rate * recipe.final_learning_rate == pytest.approx(1e-5)
    assert recipe.ema_horizon * 539 * 300 == pytest.approx(10_000)
    log_mel = ol.recipe("logmel-osscl")
    assert (log_mel.margin, log_mel.activation) == (0.7, "leaky_relu")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ROWS)
def test_every_recipe_of_every_size_survives_the_round_trip(name, size):
    recipe = ol.recipe(name, size)
    assert recipe.frames == {"paper": 313, "book": 63, "tiny": 63, "features": 313}[size]
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    loss = name.partition("-")[2]
    assert recipe.loss == (loss if loss in ("osscl", "namix") else "arcface")
    assert recipe.reduction == (64 if loss == "osscl" else None)


def test_frames_follow_the_length():
    assert ol.replace(ol.recipe("logmel-osscl"), seconds=2.0).frames == 63
    assert ol.replace(ol.recipe("logmel-osscl"), hop=256).frames == 626
    assert ol.replace(ol.recipe("logmel-osscl"), input="features", bands=60, frames=8).frames == 8


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ol.recipe("logmel-osscl").epochs = 1


@pytest.mark.parametrize(
    "change",
    [
        dict(front_end="mel"), dict(loss="softmax"), dict(activation="gelu"), dict(reduction=0), dict(epochs=0),
        dict(batch_size=1), dict(seconds=-1.0), dict(holdout=1.0), dict(temperature=0.0), dict(width=None),
        dict(learning_rate=float("nan")),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))) as caught:
        ol.replace(ol.recipe("logmel-osscl"), **change)
    assert "\n" not in str(caught.value)


def test_waveform_front_ends_refuse_features_with_a_reason():
    with pytest.raises(ValueError, match="learns from waveforms, and precomputed features have none"):
        ol.replace(ol.recipe("tfstgram-osscl"), input="log_mel")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="tfstgram-osscl"):
        ol.recipe("osscl")
    with pytest.raises(ValueError, match="book"):
        ol.recipe("logmel-osscl", size="huge")
    values = ol.recipe("logmel-osscl").to_dict()
    values["colour"] = values.pop("margin")
    with pytest.raises(ValueError, match="missing or unknown colour, margin"):
        Recipe.from_dict(values)


def test_a_recipe_of_an_older_file_has_the_defaults_of_what_came_later():
    values = ol.recipe("logmel-osscl").to_dict()
    del values["bottlenecks"], values["highest_hz"]
    assert Recipe.from_dict(values) == ol.recipe("logmel-osscl")
