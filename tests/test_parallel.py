"""Several processes: the losses and gradients of one, and one line when one is gone. Also the script torchrun runs."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed import TCPStore
from tqdm import tqdm

import osscl_lite as ol
from osscl_lite import parallel, pictures, training
from osscl_lite.__main__ import main
from osscl_lite.errors import BadClips, BadInput
from osscl_lite.files import read_tensors
from osscl_lite.parallel import Gathered, Team, joined
from osscl_lite.training import OneStage, Run

CPU = torch.device("cpu")
SMALL = dict(width=8, embedding=16, reduction=8, holdout=0.15, epochs=4)
BATCH = {"logmel-osscl": 12, "logmel-arcface": 8, "stgram-osscl": 8, "tfstgram-osscl": 8}  # last batches are shorter
CHECKPOINT = "checkpoint.safetensors"

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")]


def epoch(name, features, tree, team=None, frozen=True):
    """The two losses and all gradients of each step of an epoch, by name, with BatchNorm frozen or live.

    A small rate: AdamW's first steps go by the sign of a gradient, also where it is 0 but for rounding.
    """
    source, root = ("features", features) if name == "logmel-osscl" else ("dcase2020", tree)
    clips = ol.load_clips(source, root=root)
    clips = clips[clips["split"] == "train"].reset_index(drop=True)
    reduction = {"reduction": None} if "arcface" in name else {}
    recipe = ol.replace(ol.recipe(name, "tiny"), batch_size=BATCH[name], learning_rate=1e-6, **SMALL | reduction)
    run = Run(training.fit_input(recipe, clips), clips, training.machine_names(clips), CPU, None, team)
    if frozen:
        freeze(run)
    return gradients(run)


def freeze(run):
    """BatchNorm with the statistics of the first clips, from here on fixed."""
    norms = [module for module in run.model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    run.model.train()
    waveforms, log_mel, _ = next(run.pictures.batches([np.arange(16)]))
    with torch.no_grad():
        run.model(None if waveforms is None else waveforms.float() / 32768.0, log_mel)
    for norm in norms:
        norm.eval()
        norm.train = lambda mode=True, norm=norm: norm


def gradients(run):
    found, step, update = [], run.take_step, run.optimizer.step

    def spy_update():
        for name, parameter in run.model.named_parameters():
            found[-1][name] = parameter.grad.clone(memory_format=torch.contiguous_format)
        update()

    def spy_step(*batch):
        found.append({})
        found[-1]["losses"] = step(*batch)
        return found[-1]["losses"]

    run.step, run.optimizer.step = spy_step, spy_update
    run.train_epoch(tqdm(disable=True))
    return {f"{index}.{name}": value for index, one in enumerate(found) for name, value in one.items()}


def command(root, out, **changes):
    settings = SMALL | dict(batch_size=12) | changes
    changes = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    source = ["--data", "features", "--root", str(root), "--out", str(out)]
    return ["train", "--recipe", "logmel-osscl", "--size", "tiny", *source, "--device", "cpu", *changes]


def torchrun(*program):
    """Both processes to their end: exit status, standard output, standard error."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *map(str, program)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


def two_die(way, root, out):
    """The command with one process that comes to harm; afterwards nothing of it runs any more."""
    ended = torchrun(__file__, way, *command(root, out))
    assert ended.stderr.count("exitcode  : -9 ") == 1, ended.stderr  # the survivor went without being killed
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(out) in read(path)]
    assert not left
    assert not re.search(r'File ".*osscl_lite/\w+\.py"', ended.stderr), ended.stderr  # no traceback of ours
    return ended


def read(path):
    try:
        return path.read_text()
    except OSError:
        return ""


def ours(stderr):
    return re.findall(r"process \d of 2: .*", stderr)


@pytest.fixture(scope="module")
def features(make_features):
    return make_features(bands=32, frames=40)


@pytest.fixture(scope="module")
def worked(features, tree, tmp_path_factory):
    """What ``work`` below left: gradients of each recipe, a whole training, and one that could not be."""
    out = tmp_path_factory.mktemp("worked")
    ended = torchrun(__file__, "work", features, tree, out)
    assert ended.returncode == 0, ended.stderr
    return SimpleNamespace(out=out, stdout=ended.stdout, stderr=ended.stderr)


def work(features, tree, out):
    """What both processes do: several trainings one after the other, then one that process 1 cannot read clips for."""
    for name in BATCH:
        with joined(CPU) as team:
            save_file(epoch(name, features, tree, team), f"{out}/{name}-{team.rank}.safetensors")
    with joined(CPU) as team:
        save_file(epoch("tfstgram-osscl", features, tree, team, frozen=False), f"{out}/live-{team.rank}.safetensors")
    assert main(command(features, Path(out, "whole"))) == 0
    unreadable(team.rank)
    assert main(command(features, Path(out, "unreadable"))) == 2


@pytest.mark.parametrize("name", BATCH)
def test_two_processes_have_the_losses_and_gradients_of_one(worked, features, tree, name):
    one = epoch(name, features, tree)
    assert "0.class_weight" in one and "2.network.stem.0.0.weight" in one
    assert all(expected.norm() > 0 for expected in one.values())
    both_give(one, worked.out / name, 1e-5)


def both_give(expected, path, tolerance):
    for rank in (0, 1):
        found = load_file(f"{path}-{rank}.safetensors")
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert (found[key] - tensor).norm() <= tolerance * tensor.norm(), key


def test_on_cpus_each_process_normalises_its_share(worked, features, tree, monkeypatch):
    """As one process that takes the halves of a batch through the network one after the other."""

    def halves(self, waveforms, log_mel, share, embed=OneStage.embed):
        middle = len(log_mel) // 2
        parts = slice(0, middle), slice(middle, 2 * middle)
        return torch.cat([embed(self, waveforms, log_mel, part) for part in parts])

    whole = epoch("tfstgram-osscl", features, tree, frozen=False)
    monkeypatch.setattr(OneStage, "embed", halves)
    expected = epoch("tfstgram-osscl", features, tree, frozen=False)
    both_give(expected, worked.out / "live", 1e-4)
    assert (whole["0.class_weight"] - expected["0.class_weight"]).norm() > 0.01 * whole["0.class_weight"].norm()


def test_one_process_speaks_and_writes(worked):
    assert worked.stdout.count("own machine named") == worked.stdout.count("wrote ") == 1
    assert re.findall(r"(\d+)/12 ", worked.stderr)[-1] == "12" and worked.stderr.count("12/12") <= 3
    assert sorted(path.name for path in (worked.out / "whole").iterdir()) == [
        CHECKPOINT, "detector.safetensors", "log.csv",
    ]  # fmt: skip
    log = pd.read_csv(worked.out / "whole" / "log.csv")
    assert log["epoch"].tolist() == [1, 2, 3, 4] and np.isfinite(log["train_loss"]).all()
    assert "Warning" not in worked.stderr


def test_what_one_process_cannot_read_ends_all_with_its_line(worked):
    assert worked.stderr.count("train.wav: is empty") == worked.stderr.count("1 clips cannot be used") == 1
    assert not ours(worked.stderr) and "Traceback" not in worked.stderr
    assert not (worked.out / "unreadable").exists()


def test_the_first_that_asks_speaks(monkeypatch):
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for name, value in dict(WORLD_SIZE="3", MASTER_ADDR="localhost", MASTER_PORT=str(store.port)).items():
        monkeypatch.setenv(name, value)
    ask = parallel.first_to_speak.__wrapped__
    assert [ask(), ask(), ask()] == [True, False, False]
    monkeypatch.delenv("MASTER_PORT")
    assert ask()


def test_batches_that_do_not_divide_are_refused_in_one_line(features):
    clips = ol.load_clips("features", root=features)
    with pytest.raises(BadInput, match="^batches of 7 do not divide among 2 processes; .*batch_size.*$"):
        Run(ol.replace(ol.recipe("logmel-osscl"), batch_size=7), clips, ["a/0", "b/0"], CPU, None, Team(0, 2))


def test_the_last_batch_is_short_by_what_does_not_divide():
    def sizes(count, processes):
        run = SimpleNamespace(recipe=SimpleNamespace(batch_size=12), team=Team(0, processes))
        return [len(batch) for batch in Run.split(run, np.arange(count))]

    assert sizes(29, 1) == [12, 12, 5] and sizes(29, 2) == [12, 12, 4]
    assert sizes(27, 1) == [12, 12, 3] and sizes(27, 2) == [12, 12]  # BatchNorm needs two clips a process
    assert sizes(25, 1) == sizes(25, 3) == [12, 12]


@pytest.fixture(scope="module")
def killed(features, tmp_path_factory):
    """One run killed twice: process 1 in epoch 2 while process 0 computes, process 0 in epoch 3 within backward."""
    out = tmp_path_factory.mktemp("killed") / "run"
    ends = []
    for way in ("long", "backward"):
        ended = two_die(way, features, out)
        shutil.copytree(out, out.with_name(way))
        ends.append(ended)
        (out / f"{CHECKPOINT}.partial").write_bytes(b"half")
    return SimpleNamespace(out=out, ends=ends)


def test_a_killed_process_ends_all_with_one_line_and_a_whole_checkpoint(killed):
    for survivor, (way, ended) in enumerate(zip(("long", "backward"), killed.ends, strict=True)):
        assert ended.returncode != 0 and len(ours(ended.stderr)) == 1, ended.stderr
        assert ours(ended.stderr)[0].startswith(f"process {survivor} of 2: ")
        assert "gone" in ours(ended.stderr)[0] and "the same command again goes on" in ours(ended.stderr)[0]
        folder = killed.out.with_name(way)
        assert read_tensors(folder / CHECKPOINT, "checkpoint")[1]["epoch"] == survivor + 1
        assert len(pd.read_csv(folder / "log.csv")) == survivor + 1
        assert not (folder / "detector.safetensors").exists()
    assert "told to stop" in ours(killed.ends[0].stderr)[0] and "by peer" in ours(killed.ends[1].stderr)[0]


def test_the_same_command_goes_on_to_the_same_end(worked, killed, features):
    ended = torchrun("-m", "osscl_lite", *command(features, killed.out))
    assert ended.returncode == 0, ended.stderr
    for name in ("detector.safetensors",):
        assert (killed.out / name).read_bytes() == (worked.out / "whole" / name).read_bytes()
    assert ended.stdout.count("wrote ") == 1 and not list(killed.out.glob("*.partial"))


def test_one_process_goes_on_where_two_stopped(killed, features, capsys):
    folder = killed.out.with_name("long")
    before = pd.read_csv(folder / "log.csv")
    assert main(command(features, folder)) == 0
    log = pd.read_csv(folder / "log.csv")
    assert log["epoch"].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(log["train_loss"][:1], before["train_loss"])


def test_torch_without_distributed_trains_alone(monkeypatch):
    """A fresh copy of the module, where torch.distributed has nothing but is_available."""
    stub = ModuleType("torch.distributed")
    stub.is_available = lambda: False
    monkeypatch.setitem(sys.modules, "torch.distributed", stub)
    monkeypatch.setattr(torch, "distributed", stub)
    specification = importlib.util.spec_from_file_location("parallel_alone", parallel.__file__)
    alone = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "parallel_alone", alone)
    specification.loader.exec_module(alone)
    with alone.joined(CPU) as team:
        assert team.size == 1 and team.all_say("", CPU)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="this build of torch knows one process"), alone.joined(CPU):
        pass


def test_processes_that_torchrun_did_not_start_are_said_in_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="do not find each other .*; start them with torchrun") as caught, joined(CPU):
        pass
    assert "\n" not in str(caught.value)


def test_torchrun_is_for_training_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    parallel.first_to_speak.cache_clear()
    assert main(["score", "--model", "a.safetensors", str(tmp_path)]) == 2
    assert "start this without torchrun" in capsys.readouterr().err


def test_the_benchmark_compares_losses_and_gradients(monkeypatch):
    from benchmarks import parallel as measured

    one = dict(loss=torch.tensor([2.0, 4.0]), gradient=torch.tensor([[3.0, 4.0], [4.0, -3.0]]))
    two = dict(loss=torch.tensor([2.2, 4.4]), gradient=torch.tensor([[4.0, 3.0], [8.0, -6.0]]))
    monkeypatch.setattr(measured, "gradients", lambda case: one)
    found = measured.compared(measured.CASES[0], two)
    assert found["loss"] == 3 and found["relative_loss_difference"] == pytest.approx(0.1)
    assert found["gradient_cosine"] == pytest.approx((0.96 + 1) / 2) and found["gradient_norm_ratio"] == 1.5
    assert found["relative_gradient_difference"] == pytest.approx((2**0.5 / 5 + 1) / 2)
    assert found["another_batch_cosine"] == 0 and found["batches"] == 2


# What torchrun runs.


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def long(rank, take_step=Run.take_step):
    """Process 1 dies in epoch 2 while process 0 is busy for long."""

    def harmed(self, *batch):
        if self.epoch == 1:
            die() if rank == 1 else time.sleep(100)
        return take_step(self, *batch)

    Run.take_step = harmed


def backward(rank, real=Gathered.backward):
    """Process 0 dies within backward in the second epoch of this start, its second step."""
    calls = []

    def harmed(ctx, grad):
        calls.append(grad)
        if rank == 0 and len(calls) == 5:
            die()
        return real(ctx, grad)

    Gathered.backward = staticmethod(harmed)


def unreadable(rank, real=pictures.read_inputs):
    """Process 1 cannot read what process 0 can."""

    def harmed(*arguments):
        if rank == 1:
            raise BadClips({0: "train.wav: is empty (0 bytes): copy or download it again"})
        return real(*arguments)

    pictures.read_inputs = harmed


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(*sys.argv[2:])
    else:
        dict(long=long, backward=backward)[sys.argv[1]](int(os.environ["RANK"]))
        sys.exit(main(sys.argv[2:]))
