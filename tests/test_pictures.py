"""Where training clips lie, and that it makes no difference."""

import numpy as np
import pytest
import torch

import osscl_lite as ol
from osscl_lite import pictures
from osscl_lite.pictures import Pictures
from osscl_lite.training import fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips():
    table = ol.load_clips("hall", size="tiny")
    chosen = table[(table["split"] == "train") & table["machine_type"].isin(["fan", "valve"])]
    return chosen.groupby(["machine_type", "machine_id"]).head(3).reset_index(drop=True)


def made(recipe, clips, room, monkeypatch):
    monkeypatch.setattr(pictures, "room_for_clips", lambda device, reserve: room)
    return Pictures(recipe, clips, torch.arange(len(clips)) % 14, CPU)


@pytest.mark.parametrize("name", ["logmel-osscl", "tfstgram-osscl"])
def test_batches_are_the_same_wherever_the_clips_lie(clips, name, monkeypatch):
    recipe = ol.recipe(name, "tiny")
    sound = ol.load_waveforms(clips, recipe.seconds)
    ample, tight = made(recipe, clips, 1 << 40, monkeypatch), made(recipe, clips, 100, monkeypatch)
    assert ample.log_mel is not None and tight.log_mel is None
    rows = np.split(np.random.default_rng(0).permutation(len(clips))[:40], [16, 32])
    seen = 0
    for batch, one, other in zip(rows, ample.batches(rows), tight.batches(rows), strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
        waveforms, log_mel, y = one
        assert torch.equal(y, torch.from_numpy(batch) % 14)
        expected = ample.front_end(torch.from_numpy(sound[batch]).float() / 32768)
        torch.testing.assert_close(log_mel, expected, rtol=1e-5, atol=1e-4)
        assert (waveforms is None) == (name == "logmel-osscl")
        assert waveforms is None or np.array_equal(waveforms.numpy(), sound[batch])
        seen += len(batch)
    assert seen == 40


def test_sound_is_loaded_where_nothing_else_fits_though_the_network_does_not_listen(clips, monkeypatch):
    recipe = ol.recipe("logmel-osscl", "tiny")
    assert made(recipe, clips, 1 << 40, monkeypatch).waveforms is None
    assert isinstance(made(recipe, clips, 100, monkeypatch).waveforms, np.ndarray)


def test_training_on_little_memory_ends_the_same(clips, monkeypatch):
    recipe = ol.replace(ol.recipe("tfstgram-osscl", "tiny"), epochs=2, width=8)
    ends = []
    for room in (1 << 40, 100):
        monkeypatch.setattr(pictures, "room_for_clips", lambda device, reserve, room=room: room)
        ends.append(fit(recipe, clips, device="cpu", progress=False).state_dict())
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_a_reader_that_is_left_early_lets_its_thread_go(clips, monkeypatch):
    import threading

    before = threading.active_count()
    tight = made(ol.recipe("logmel-osscl", "tiny"), clips, 100, monkeypatch)
    batches = tight.batches([np.arange(4), np.arange(4, 8), np.arange(8, 12)])
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_the_memory_of_a_step_is_that_of_its_activations():
    """The wide tensors of the paper's TFSTgram step, by hand: more than the stem's, less than ten times as much."""
    model = ol.Detector(ol.recipe("tfstgram-osscl"), 41)
    stem = 64 * 64 * 32_000 * 4  # batch, channels, samples / 5, float32: each of three such convolutions and its norm
    assert 3 * stem < pictures.step_bytes(model, 64) < 30 * stem
    assert pictures.step_bytes(model, 32) == pytest.approx(pictures.step_bytes(model, 64) / 2, rel=0.01)
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_holds_the_clips_and_gives_the_same_batches(clips, monkeypatch):
    recipe = ol.recipe("tfstgram-osscl", "tiny")
    rows = [np.arange(16), np.arange(16, 24)]
    on_cpu = made(recipe, clips, 1 << 40, monkeypatch)
    for room in (1 << 40, 100):
        monkeypatch.setattr(pictures, "room_for_clips", lambda device, reserve, room=room: room)
        on_gpu = Pictures(recipe, clips, torch.arange(len(clips)) % 14, torch.device("cuda", 0))
        assert isinstance(on_gpu.waveforms, torch.Tensor) == (room > 100)
        for one, other in zip(on_cpu.batches(rows), on_gpu.batches(rows), strict=True):
            for a, b in zip(one, other, strict=True):
                assert b.is_cuda
                torch.testing.assert_close(a, b.cpu(), rtol=1e-3, atol=1e-2)
