"""Training: the schedule, the average, the choice of epoch, and that a stop changes nothing."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from tqdm import tqdm

import osscl_lite as ol
from osscl_lite import training
from osscl_lite.detector import Detector, Standardise
from osscl_lite.errors import BadInput
from osscl_lite.holdout import hold_out
from osscl_lite.training import Run, fit, learning_rate

SMALL = dict(width=8, embedding=16, reduction=8, batch_size=7, epochs=3, holdout=0.2)


def small(name="logmel-osscl", **changes):
    return ol.replace(ol.recipe(name, "tiny"), **SMALL | changes)


def train(recipe, clips, out=None):
    return fit(recipe, clips, device="cpu", out=out, progress=False)


def one_run(recipe, clips):
    clips = clips[clips["split"] == "train"].reset_index(drop=True)
    recipe = training.fit_input(recipe, clips)
    return Run(recipe, clips, training.machine_names(clips), torch.device("cpu"), None)


@pytest.fixture(scope="module")
def log_mels(make_features):
    return ol.load_clips("features", root=make_features())


def test_the_rate_falls_as_torch_s_cosine_does():
    recipe = ol.recipe("logmel-osscl")
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300, eta_min=1e-5)
    for epoch in range(300):
        assert learning_rate(recipe, epoch) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()
    assert learning_rate(recipe, 0) == 1e-4 and learning_rate(recipe, 300) == pytest.approx(1e-5)


def test_held_out_clips_have_the_paper_s_number():
    held = hold_out(pd.DataFrame(index=range(36_283)), 0.05, seed=2024)
    assert held.sum() == 1_815 and not np.array_equal(held, hold_out(pd.DataFrame(index=range(36_283)), 0.05, seed=1))
    assert -(-(36_283 - 1_815) // 64) == 539


def test_clips_of_one_background_are_held_out_together():
    clips = pd.DataFrame({"background": np.arange(300) % 60})
    held = hold_out(clips, 0.1, seed=0)
    assert held.sum() == 30 and pd.Series(held).groupby(clips["background"]).nunique().eq(1).all()


def test_every_step_is_the_one_of_the_notes(log_mels, monkeypatch):
    """A second, naive run: AdamW by torch, the average and the shrinking by hand, the random draws written out."""
    recipe = small(shrink=0.01, ema_horizon=0.3)
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(training, "load_features", load_doubles := doubles(training.load_features))
    monkeypatch.setattr("osscl_lite.detector.load_features", load_doubles)
    try:
        check_steps(recipe, log_mels)
    finally:
        torch.set_default_dtype(torch.float32)


def doubles(load):
    def load_doubles(clips):
        features, kind = load(clips)
        return features.astype(np.float64), kind

    return load_doubles


def check_steps(recipe, clips):
    run, naive = one_run(recipe, clips), one_run(recipe, clips)
    assert len(run.train_rows) == 32 and len(run.held_rows) == 8 and run.steps == 5
    average = {name: tensor.clone() for name, tensor in naive.model.state_dict().items()}
    initial = {name: tensor.clone() for name, tensor in average.items()}
    run.train_epoch(tqdm(disable=True))

    decay = 1 - 1 / (0.3 * 5 * 3)  # the horizon is a fraction of all steps of the run
    optimizer = torch.optim.AdamW(naive.model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    rng = np.random.default_rng([recipe.seed, 1])
    order = torch.from_numpy(naive.train_rows[rng.permutation(32)])
    lams = rng.beta(0.5, 0.5, 5).astype(np.float32)
    naive.model.train()
    for step, rows in enumerate(order.split(7)):
        permutation, lam = torch.from_numpy(rng.permutation(len(rows))), float(lams[step])
        picture, y = naive.pictures.log_mel[rows], naive.pictures.y[rows]
        z = naive.model(None, lam * picture + (1 - lam) * picture[permutation])
        logits = naive.model.logits(z, y)
        loss = ol.losses.noisy_supcon(z, y, 0.02)
        loss = loss + lam * torch.nn.functional.cross_entropy(logits, y)
        loss = loss + (1 - lam) * torch.nn.functional.cross_entropy(logits, y[permutation])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, tensor in naive.model.state_dict().items():
                if tensor.is_floating_point():
                    average[name] = decay * average[name] + (1 - decay) * tensor
                    tensor.mul_(0.99)
    expected = naive.model.state_dict()
    for name, tensor in run.model.state_dict().items():
        assert tensor.dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )
    moved = 0
    for name, tensor in run.average.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(
                tensor, average[name], rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
            )
            moved += not torch.allclose(tensor, initial[name], atol=1e-3)
    assert moved > 20


def test_each_epoch_and_each_batch_draws_anew(log_mels, monkeypatch):
    seen = []

    def spy(waveforms, log_mel, y, lam, permutation, real=training.mixup):
        seen.append((float(lam), tuple(y.tolist()), sorted(permutation.tolist()) == list(range(len(y)))))
        return real(waveforms, log_mel, y, lam, permutation)

    monkeypatch.setattr(training, "mixup", spy)
    train(small(epochs=2), log_mels)
    lams, labels, permutations = zip(*seen, strict=True)
    assert len(seen) == 10 and len(set(lams)) == 10 and len(set(labels[:5]) & set(labels[5:])) == 0
    assert all(permutations) and min(lams) < 0.5 < max(lams)


def test_the_average_starts_at_the_initial_weights(log_mels):
    """One step at a long horizon: the average is still almost what it was, not the first step's weights."""
    run = one_run(small(batch_size=64, ema_horizon=1e6), log_mels)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train_epoch(tqdm(disable=True))
    assert run.steps == 1
    name = "class_weight"
    moved = (run.model.state_dict()[name] - before[name]).abs().max()
    assert moved > 1e-4 and (run.average.state_dict()[name] - before[name]).abs().max() < 1e-4 * moved


@pytest.mark.parametrize(("clips", "batch", "steps"), [(32, 8, 4), (33, 8, 4), (34, 8, 5), (2, 8, 1)])
def test_a_short_last_batch_stays_and_a_batch_of_one_goes(log_mels, clips, batch, steps):
    rows = pd.concat([log_mels[:10], log_mels[10:40]])[:: max(1, 40 // clips)][:clips]
    rows = pd.concat([rows, log_mels[10:11]]) if rows["machine_id"].nunique() < 2 else rows
    run = one_run(small(holdout=0.0, batch_size=batch), rows[-clips:])
    assert len(run.train_rows) == clips and run.steps == steps
    run.train_epoch(tqdm(disable=True))


def test_the_epoch_of_the_lowest_held_out_loss_is_kept(log_mels, monkeypatch):
    losses, kept = iter([3.0, 1.0, 2.0, 1.0]), []
    real = Run.look_at_holdout

    def scripted(self):
        kept.append({name: tensor.clone() for name, tensor in self.average.state_dict().items()})
        found = real(self)
        assert np.isfinite(list(found.values())).all()
        return found | dict(holdout_loss=next(losses))

    monkeypatch.setattr(Run, "look_at_holdout", scripted)
    model = train(small(epochs=4), log_mels)
    assert model.log["chosen"].tolist() == [True, True, False, False]
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(kept[1]["class_weight"], kept[3]["class_weight"])
    assert all(torch.equal(tensor, kept[3][name]) for name, tensor in model.last.items())


def test_a_choice_of_an_average_that_has_learned_nothing_is_told(log_mels, monkeypatch):
    looks = iter([(1.0, 0.05, 0.999), (2.0, 0.8, 0.3)] * 2)  # held-out loss, accuracy, cosine of different machines

    def scripted(self):
        loss, accuracy, cosine = next(looks)
        return dict(holdout_loss=loss, holdout_accuracy=accuracy, own_cosine=1.0, other_cosine=cosine)

    monkeypatch.setattr(Run, "look_at_holdout", scripted)
    with pytest.warns(UserWarning, match="epoch 1 .*loss 1.00, names 5% .* epoch 2 .*2.00, names 80%"):
        train(small(epochs=2), log_mels)
    looks = iter([(2.0, 0.05, 0.999), (1.0, 0.8, 0.3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(small(epochs=2), log_mels).log["chosen"].all()


def test_the_held_out_loss_is_the_mean_score_of_the_held_out_clips(log_mels):
    run = one_run(small(), log_mels)
    model, rows = run.average, run.held_rows
    expected = model.score(run.pictures.log_mel[rows], run.pictures.y[rows]).mean().item()
    assert run.look_at_holdout()["holdout_loss"] == pytest.approx(expected, rel=1e-4)


def test_without_held_out_clips_the_last_epoch_counts(log_mels):
    model = train(small(holdout=0.0), log_mels)
    assert model.log["chosen"].all() and model.log["holdout_loss"].isna().all()


def test_a_training_that_diverges_says_so(log_mels):
    with pytest.raises(BadInput, match="epoch 1: the training loss is not finite; lower the learning rate"):
        run = one_run(small(), log_mels)
        run.finish_epoch(dict(train_loss=float("nan")))


def test_training_learns_and_the_log_tells(log_mels):
    model = train(small(epochs=20, learning_rate=0.01, ema_horizon=0.02), log_mels)
    log = model.log
    assert log["epoch"].tolist() == list(range(1, 21))
    assert log["holdout_loss"].min() < log["holdout_loss"].iloc[0]
    np.testing.assert_allclose(log["train_loss"], log["supcon_loss"] + log["arc_loss"], rtol=1e-6)
    assert log["holdout_accuracy"].max() > 0.6
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_the_random_numbers_of_the_caller_are_not_touched(log_mels):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    first = train(small(epochs=1), log_mels)
    assert torch.equal(torch.rand(3), expected) and np.array_equal(np.random.get_state()[1], state)
    second = train(small(epochs=1), log_mels)
    other = train(small(epochs=1, seed=1), log_mels)
    assert torch.equal(first.class_weight, second.class_weight)
    assert not torch.equal(first.class_weight, other.class_weight)


def test_a_stop_between_epochs_changes_nothing(log_mels, tmp_path, monkeypatch):
    train(small(), log_mels, tmp_path / "whole")

    def stop(self, losses, real=Run.finish_epoch):
        real(self, losses)
        raise KeyboardInterrupt

    for _ in range(3):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Run, "finish_epoch", stop)
            train(small(), log_mels, tmp_path / "stopped")
    again = train(small(), log_mels, tmp_path / "stopped")
    for name in ("detector.safetensors",):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    assert again.log["epoch"].tolist() == [1, 2, 3] and (tmp_path / "stopped" / "log.csv").exists()
    twice = train(small(), log_mels, tmp_path / "stopped")  # a finished run is not trained further
    assert torch.equal(twice.class_weight, again.class_weight)
    assert all(torch.equal(tensor, again.last[name]) for name, tensor in twice.last.items())
    assert len(pd.read_csv(tmp_path / "stopped" / "log.csv")) == 3


def test_a_folder_of_another_run_is_refused(log_mels, tmp_path):
    train(small(), log_mels, tmp_path)
    changes = (
        (small(margin=0.5), log_mels, "another recipe"),
        (small(), log_mels.drop(index=0), "another clips"),
        (small(), log_mels[log_mels["machine_id"] != "id_04"], "another machines"),
    )
    for recipe, clips, reason in changes:
        with pytest.raises(BadInput, match=reason) as caught:
            train(recipe, clips, tmp_path)
        assert "\n" not in str(caught.value) and "checkpoint.safetensors" in str(caught.value)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(BadInput, match="not a readable safetensors file"):
        train(small(), log_mels, tmp_path)


def test_log_mels_are_used_as_they_are_and_other_features_standardised(log_mels, make_features, tmp_path):
    model = train(small(epochs=1), log_mels)
    assert (model.recipe.input, model.recipe.bands, model.recipe.frames) == ("log_mel", 16, 12)
    assert isinstance(model.standardise, torch.nn.Identity)

    clips = ol.load_clips("features", root=make_features("modulation", 60, 8))
    model = train(small(shrink=0.01), clips, tmp_path)
    assert (model.recipe.input, model.recipe.bands, model.recipe.frames) == ("features", 60, 8)
    run = one_run(small(shrink=0.01), clips)
    pictures = run.pictures.log_mel[run.train_rows].double()  # without the held-out clips
    torch.testing.assert_close(model.standardise.mean.double(), pictures.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.standardise.std.double(), pictures.std(0), rtol=1e-4, atol=1e-4)
    again = Detector.load(tmp_path / "detector.safetensors")
    assert torch.equal(again.standardise.mean, model.standardise.mean)
    np.testing.assert_array_equal(again.score_clips(clips), model.score_clips(clips))
    with pytest.raises(BadInput, match="log_mel of 16 x 12, but this detector was trained on features of 60 x 8"):
        model.score_clips(log_mels)


def test_a_constant_bin_does_not_divide_by_zero():
    standardise = Standardise(2, 3)
    standardise.fit(torch.ones(5, 2, 3))
    assert standardise(torch.ones(1, 2, 3)).abs().max() == 0


def test_waveform_recipes_refuse_features_with_the_reason(log_mels):
    with pytest.raises(BadInput, match="train.npz: .* learns from waveforms, and precomputed features have none"):
        train(ol.recipe("tfstgram-osscl", "tiny"), log_mels)


def test_training_needs_two_machines_and_normal_clips(log_mels):
    with pytest.raises(BadInput, match="found ToyCar/id_01"):
        train(small(), log_mels[log_mels["machine_id"] == "id_01"])
    with pytest.raises(BadInput, match="found none"):
        train(small(), log_mels[log_mels["split"] == "test"])


def test_a_device_that_is_not_there_is_said_in_one_line(log_mels):
    for device in ("cuda:77", "abacus"):
        with pytest.raises(BadInput, match=f"device {device}: not usable here") as caught:
            fit(small(), log_mels, device=device, progress=False)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["logmel-arcface", "stgram-osscl", "tfstgram-osscl"])
def test_the_other_recipes_train_on_waveforms(tree, name):
    clips = ol.load_clips("dcase2020", root=tree)
    model = train(small(name, epochs=1, **({"reduction": None} if "arcface" in name else {})), clips)
    assert model.machines == ["fan/id_00", "fan/id_02", "valve/id_00", "valve/id_02"]
    assert np.isfinite(model.score_clips(clips)).all()
    assert (model.log["supcon_loss"] == 0).all() == ("arcface" in name)


def test_arcface_alone_mixes_nothing(tree, monkeypatch):
    def never(*arguments):
        raise AssertionError("mixed")

    monkeypatch.setattr(training, "mixup", never)
    train(small("logmel-arcface", epochs=1, reduction=None), ol.load_clips("dcase2020", root=tree))


# Killed: the real command, in a process of its own.

DIES = """
import os, signal, sys
from osscl_lite.__main__ import main
where, count, calls = sys.argv[1], int(sys.argv[2]), 0
real = getattr(os, where)
def dies(*arguments):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(os, where, dies)
sys.exit(main(sys.argv[3:]))
"""


def command(root, out, epochs):
    settings = {**SMALL, "batch_size": 2, "epochs": epochs, "width": 16}
    changes = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    source = ["--data", "features", "--root", str(root), "--out", str(out)]
    return ["train", "--recipe", "logmel-osscl", "--size", "tiny", *source, "--device", "cpu", *changes]


def start(arguments, code=None):
    program = [sys.executable, *(["-c", code] if code else ["-m", "osscl_lite"])]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.Popen([*program, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_three_times_the_same_command_ends_the_same(make_features, tmp_path):
    root, whole, killed = make_features(bands=32, frames=40), tmp_path / "whole", tmp_path / "killed"
    assert start(command(root, whole, epochs=8)).wait() == 0
    checkpoint, partial = killed / "checkpoint.safetensors", killed / "checkpoint.safetensors.partial"
    words = command(root, killed, epochs=8)

    assert start(["fsync", "1", *words], DIES).wait() == -signal.SIGKILL  # before the first checkpoint is whole
    assert partial.exists() and not checkpoint.exists()
    assert start(["replace", "3", *words], DIES).wait() == -signal.SIGKILL  # the third written, not yet in its place
    kept = checkpoint.read_bytes()
    assert partial.exists() and partial.read_bytes() != kept

    run, delay = start(words), random.uniform(0, 0.3)  # inside some epoch
    while checkpoint.read_bytes() == kept and run.poll() is None:
        time.sleep(0.005)
    time.sleep(delay)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "the run ended before the kill"
    assert not (killed / "detector.safetensors").exists()

    assert start(words).wait() == 0
    same = (killed / "detector.safetensors").read_bytes() == (whole / "detector.safetensors").read_bytes()
    assert same, f"killed {delay} s after a checkpoint"
    assert not list(killed.glob("*.partial"))


class FakeCuda:
    """What ``Recorded`` needs of torch.cuda: recording runs nothing, replaying runs the step on what was copied in."""

    def __init__(self, monkeypatch):
        self.recording, self.events = None, []
        stream = type("Stream", (), {"wait_stream": lambda *_: None})
        for name, value in dict(
            Stream=stream, current_stream=stream, stream=lambda _: contextlib.nullcontext(),
            empty_cache=lambda: self.events.append("empty"), CUDAGraph=lambda: self, graph=self.graph,
        ).items():  # fmt: skip
            monkeypatch.setattr(training.torch.cuda, name, value)

    @contextlib.contextmanager
    def graph(self, graph):
        self.recording = []
        yield
        self.recorded, self.recording = self.recording, None

    def step(self, waveforms, values):
        if self.recording is None:
            self.events.append((len(values), values.sum().item()))
            return values.sum()
        self.recording.append(values)
        self.result = torch.zeros(())
        return self.result

    def replay(self):
        (values,) = self.recorded
        self.events.append(("replay", values.sum().item()))
        self.result.copy_(values.sum())


def test_a_recorded_step_sees_every_batch_and_leaves_short_ones_out(monkeypatch):
    fake = FakeCuda(monkeypatch)
    step = training.Recorded(fake.step)
    batches = [torch.full((3 if index in (4, 7) else 4,), float(index)) for index in range(9)]
    losses = [step(None, batch).item() for batch in batches]
    assert losses == [batch.sum().item() for batch in batches]
    expected = [(4, 0.0), (4, 4.0), (4, 8.0), "empty", ("replay", 12.0), (3, 12.0), ("replay", 20.0), ("replay", 24.0)]
    assert fake.events == [*expected, (3, 21.0), ("replay", 32.0)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_learns_what_a_cpu_learns(log_mels):
    """Recorded steps in bfloat16 against the CPU's float32: the same clips, draws and, nearly, losses."""
    recipe = small(epochs=4)
    logs = [fit(recipe, log_mels, device=device, progress=False).log for device in ("cpu", "cuda")]
    np.testing.assert_allclose(logs[0]["train_loss"], logs[1]["train_loss"], rtol=0.1)


def test_too_little_device_memory_is_said_in_one_line(log_mels, monkeypatch):
    def full(self, *batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Run, "take_step", full)
    with pytest.raises(BadInput, match=r"cpu: its memory is too small for batches of 7 clips .* smaller batch_size"):
        train(small(), log_mels)
