"""Windows of pictures: how clips are cut, one training loop for several systems, and what it refuses."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from osscl_lite import load_clips
from osscl_lite.baselines.windows import BASELINE, Network, Windowed, WindowRecipe, cut, fit_windows
from osscl_lite.detector import read_batches
from osscl_lite.errors import BadInput

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = WindowRecipe("means", "tiny", seconds=2.0, bands=8, context=4, stride=3, epochs=2, batch_size=32)


class Means(Network):
    """The smallest system: a mean for each machine ID, and dropout, so that training draws at random."""

    def __init__(self, recipe, machine_ids):
        super().__init__(recipe, machine_ids)
        self.means = nn.Parameter(torch.randn(machine_ids, recipe.bands))
        self.dropout = nn.Dropout(0.2)

    def score(self, windows, y):
        return (self.dropout(windows.mean(2)) - self.means[y]).square().mean(1)

    def loss(self, windows, y):
        return self.score(windows, y).mean()


def train(clips, out=None, recipe=RECIPE, network=Means):
    return fit_windows(recipe, clips, network, device="cpu", out=out, progress=False)


@pytest.fixture(scope="module")
def clips(tree):
    return load_clips("dcase2020", root=tree)


@pytest.fixture(scope="module")
def model(clips):
    return train(clips)


def test_windows_stay_within_their_clip():
    pictures = torch.arange(2 * 10 * 3.0).view(2, 10, 3)  # clips, frames, bands
    windows = cut(pictures, 4, 3)
    assert windows.shape == (2, 3, 3, 4)  # the windows begin at frames 0, 3, 6; one from 7 on would be cut short
    for clip in range(2):
        for window in range(3):
            assert torch.equal(windows[clip, window], pictures[clip, 3 * window : 3 * window + 4].T)
    assert cut(pictures, 10, 1).shape[1] == 1


def test_a_window_is_no_longer_than_the_picture(make_features):
    assert replace(RECIPE, context=100).context == 63  # 2 s
    clips = load_clips("features", root=make_features())
    model = train(clips, recipe=replace(RECIPE, context=64))
    assert (model.recipe.input, model.recipe.bands, model.recipe.frames, model.recipe.context) == (
        "log_mel",
        16,
        12,
        12,
    )


def test_each_window_is_seen_once_an_epoch_with_its_own_machine(clips):
    seen = []

    class Listing(Means):
        def loss(self, windows, y):
            seen.append((windows.detach().clone(), y))
            return super().loss(windows, y)

    model = train(clips, recipe=replace(RECIPE, epochs=1), network=Listing)
    fans = clips[(clips["split"] == "train") & (clips["machine_type"] == "fan")]
    expected = cut(torch.cat([model.pictures(batch) for batch in read_batches(RECIPE, fans, 5)]), 4, 3)
    places = torch.tensor([0] * 6 + [1] * 6).repeat_interleave(expected.shape[1])
    steps = -(-expected[:, :, 0, 0].numel() // 32)  # the fans' come first
    windows, y = (torch.cat(part) for part in zip(*seen[:steps], strict=True))

    def rows(windows, y):
        return sorted(map(tuple, torch.cat([y.unsqueeze(1), windows.flatten(1)], 1).tolist()))

    assert rows(windows, y) == rows(expected.flatten(0, 1), places)


def test_a_score_is_the_mean_over_the_windows_of_the_own_network(clips, model):
    clip = clips[(clips["machine_type"] == "valve") & (clips["machine_id"] == "id_02")].iloc[:1]
    picture = model.pictures(next(read_batches(RECIPE, clip, 1)))
    starts = range(0, picture.shape[1] - 3, 3)
    means = torch.stack([picture[0, start : start + 4].mean(0) for start in starts])
    expected = (means - model.networks["valve"].means[1]).square().mean()
    assert model.score_clips(clip) == pytest.approx(expected.item(), rel=1e-5)


def test_a_score_does_not_depend_on_the_other_clips(clips, model):
    together = model.score_clips(clips)
    backwards = model.score_clips(clips.iloc[::-1], batch_size=7)[::-1]
    assert together.dtype == np.float32 and together.shape == (len(clips),)
    np.testing.assert_allclose(together, backwards, rtol=1e-5)


def test_stopped_between_two_types_it_goes_on_with_the_same_result(clips, model, tmp_path):
    class Stops(Means):
        def start(self, pictures):
            if (tmp_path / "fan.safetensors").exists():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(clips, tmp_path, network=Stops)
    before = (tmp_path / "fan.safetensors").stat().st_mtime_ns
    assert not (tmp_path / "valve.safetensors").exists()
    after = train(clips, tmp_path)
    assert (tmp_path / "fan.safetensors").stat().st_mtime_ns == before
    assert all(torch.equal(after.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert after.log.drop(columns="seconds").equals(model.log.drop(columns="seconds"))
    assert list(after.log["machine_type"]) == ["fan", "fan", "valve", "valve"]


def test_features_of_another_kind_are_standardised_and_stay_so(make_features, tmp_path):
    clips = load_clips("features", root=make_features(key="modspec"))
    model = train(clips, tmp_path)
    own = clips[clips["split"] == "train"]
    pictures = model.pictures(next(read_batches(model.recipe, own, 100)))
    assert model.recipe.input == "features"
    assert pictures.mean(0).abs().max() < 1e-4 and (pictures.std(0) - 1).abs().max() < 1e-4
    loaded = Windowed.load(tmp_path / BASELINE, Means)
    assert np.array_equal(loaded.score_clips(clips), model.score_clips(clips))


def test_training_takes_normal_training_clips_only(clips, model):
    assert torch.equal(train(clips[clips["split"] == "train"]).networks["fan"].means, model.networks["fan"].means)


def test_what_it_refuses_it_refuses_in_one_line(clips, model, tmp_path):
    def refused(line):
        return pytest.raises(BadInput, match=line)

    with refused("no normal clips of split train"):
        train(clips[clips["split"] == "test"])
    train(clips, tmp_path)
    with refused("fan.safetensors: from a run with another recipe; give another folder"):
        train(clips, tmp_path, recipe=replace(RECIPE, seed=1))
    with refused("another .*clips; give another folder"):
        train(clips.drop(index=0), tmp_path)
    with refused("epoch 1: the training loss is not finite; lower the learning rate"):
        train(clips, recipe=replace(RECIPE, learning_rate=10.0), network=Runaway)
    with refused("machine type 'a/b'"):
        train(clips.assign(machine_type="a/b"))
    with refused("not trained on pump/id_00"):
        model.score_clips(clips.iloc[:1].assign(machine_type="pump"))
    with refused("no such file"):
        Windowed.load(tmp_path / "nothing", Means)
    with refused("baseline.safetensors: the weights do not fit Odd"):
        Windowed.load(tmp_path / BASELINE, Odd)


class Runaway(Means):
    def loss(self, windows, y):
        return super().loss(windows, y) * float("inf")


@dataclass(frozen=True)
class OddRecipe(WindowRecipe):
    more: int = 0


class Odd(Means):
    recipe_type = OddRecipe


def test_recipes_come_back_and_refuse_nonsense():
    assert WindowRecipe.from_dict(RECIPE.to_dict()) == RECIPE
    with pytest.raises(ValueError, match="missing or unknown stride"):
        WindowRecipe.from_dict({key: value for key, value in RECIPE.to_dict().items() if key != "stride"})
    for wrong in (dict(epochs=0), dict(batch_size=1), dict(stride=0), dict(input="sound")):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(RECIPE, **wrong)
