"""Benchmarks: what is compared computes the same, what is counted is right, and the command writes its files."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import soundfile
import torch
from tqdm import tqdm

import osscl_lite as ol
from benchmarks import __main__ as command
from benchmarks import end_to_end, epoch, growth, profiler, roofline, step, systems, worker
from benchmarks.end_to_end import project
from benchmarks.noise import noise_clips
from benchmarks.plain import PlainRun
from benchmarks.profiler import profile
from benchmarks.reference_loader import WavFiles
from benchmarks.setting import RECIPES, Report, Setting, spread
from benchmarks.step import PARTS, plans
from osscl_lite import cpu
from osscl_lite.data import machine_names
from osscl_lite.features import LogMel
from osscl_lite.systems import SYSTEMS
from osscl_lite.training import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return noise_clips(tmp_path_factory.mktemp("noise"), 24, 1.0, 12)


def small(name):
    return Setting("cpu", True, None, None, (name,)).recipes()[0]


def test_noise_names_its_files_again_and_covers_several_machines(noise):
    assert len(noise) == 24 and noise["path"].nunique() == 12
    assert len(machine_names(noise)) == 12 and (noise["split"] == "train").all()


def floats(model):
    """All weights and statistics as one vector."""
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values() if tensor.is_floating_point()])


@pytest.mark.parametrize("name", RECIPES)
def test_plain_and_ours_are_the_same_training(noise, name):
    """Twice three steps from the same weights and draws: the same losses, the same weights, the same average.

    A small rate: AdamW's first steps go by the sign of a gradient, also where it is 0 but for rounding.
    """
    recipe = ol.replace(small(name), learning_rate=1e-5, ema_horizon=0.01, shrink=0.01, weight_decay=300.0)
    ours = Run(recipe, noise, machine_names(noise), CPU, None)
    plain = PlainRun(recipe, noise, machine_names(noise), CPU)
    assert ours.steps == plain.steps == 3
    start = floats(plain.model)
    first = ours.train_epoch(tqdm(disable=True))["train_loss"]
    assert plain.train_epoch() == pytest.approx(first, rel=1e-4)
    plain.epoch = ours.epoch  # draws of the same epoch again, from the trained weights
    again = ours.train_epoch(tqdm(disable=True))["train_loss"]
    assert plain.train_epoch() == pytest.approx(again, rel=1e-4) and again != pytest.approx(first, rel=1e-2)
    for one, other in ((ours.model, plain.model), (ours.average, plain.ema.module)):
        assert (floats(one) - floats(other)).norm() < 0.01 * (floats(other) - start).norm()


def test_plain_is_plain(noise):
    """Nothing of the package's own layers, contiguous float32 weights."""
    model = PlainRun(small("tfstgram-osscl"), noise, machine_names(noise), CPU).model
    assert {type(module).__module__.split(".")[0] for module in model.modules()} == {"benchmarks", "torch"}
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in model.parameters())


def test_the_reference_loader_s_log_mel_is_the_package_s(noise):
    recipe = small("logmel-osscl")
    waveform, log_mel, label = WavFiles(recipe, list(noise["path"]), torch.arange(24))[5]
    read = torch.from_numpy(soundfile.read(noise["path"][5], dtype="float32")[0])
    ours = LogMel(recipe.bands, recipe.sample_rate, recipe.n_fft, recipe.hop)(read[None])[0]
    assert label == 5 and torch.equal(waveform, read) and log_mel.shape == (recipe.bands, recipe.frames)
    torch.testing.assert_close(log_mel, ours, rtol=0, atol=1e-4)
    silence = torch.zeros_like(read)
    torch.testing.assert_close(WavFiles(recipe, [], label).decibels(silence), torch.full_like(silence, -100.0))


def test_multiply_accumulates_are_those_of_the_notes():
    """0.69, 0.09 and 1.46 G of one 10-s clip; and torch's own count of a forward pass."""
    parts = roofline.forward_macs(ol.recipe("tfstgram-osscl"))
    assert [round(parts[part] / 1e9, 2) for part in ("tgram", "tfgram")] == [0.09, 1.46]
    assert round(sum(parts.values()) / 1e9, 2) == 2.25
    recipe = ol.recipe("logmel-osscl")
    assert round(sum(roofline.forward_macs(recipe).values()) / 1e9, 2) == 0.69
    from torch.utils.flop_counter import FlopCounterMode

    counter, recipe = FlopCounterMode(display=False), ol.replace(recipe, batch_size=2)
    with torch.device("meta"):
        model = roofline.PlainDetector(recipe, 41)
    with counter:
        model(*roofline.empty_batch(recipe))
    assert counter.get_total_flops() == 2 * sum(layer.macs for layer in roofline.layers(recipe))
    assert roofline.parameters(recipe) == 891_968


def test_a_layer_s_operations_and_bytes():
    recipe = ol.replace(ol.recipe("logmel-osscl"), batch_size=4)
    stem, depthwise = roofline.layers(recipe)[:2]
    inputs, outputs = 4 * 128 * 313, 4 * 64 * 64 * 157
    assert stem == roofline.Layer("network.stem.0.0", outputs * 9, inputs, outputs, False)
    assert stem.flops() == (18 * outputs, 18 * outputs) and stem.elements() == (inputs + outputs, inputs + 2 * outputs)
    assert depthwise.flops() == (18 * outputs, 36 * outputs) and depthwise.elements() == (2 * outputs, 4 * outputs)
    least = roofline.bound([stem, depthwise], 1000, flops=1e9, bandwidth=1e10, size=4)
    assert least["arithmetic_seconds"] == pytest.approx(90 * outputs / 1e9)
    assert least["bytes"] == 4 * (2 * inputs + 9 * outputs) + 44_000
    assert least["least_seconds"] == pytest.approx(least["arithmetic_seconds"] + 44_000 / 1e10)
    slow = roofline.bound([stem, depthwise], 1000, flops=1e15, bandwidth=1e10, size=4)
    assert slow["least_seconds"] == pytest.approx(slow["traffic_seconds"])


def test_unfused_bytes_follow_every_operation():
    with torch.device("meta"), roofline.Traffic() as traffic:
        x = torch.empty(10, 100).t()  # a view moves nothing
        traffic.bytes = 0
        y = x * 2
        y.add_(x)
    assert traffic.bytes == 4 * 1000 * (2 + 3)
    recipe = ol.replace(ol.recipe("logmel-osscl"), batch_size=8)
    fused = roofline.bound(roofline.layers(recipe), 0, 1e9, 1e10, 4)["bytes"]
    assert 2 * fused < roofline.unfused_bytes(recipe) < 4 * fused


def test_a_whole_run_is_projected_as_the_formula_says():
    ours = dict(start_seconds=2.0, first_seconds=30.0)
    run = project(10.0, 300, 4.0, ours, dict(ours=1.0, reference=20.0))
    assert run["ours_hours"] == pytest.approx((10 * (4 + 2) + 29 + 3000) / 3600)
    assert run["ratio"] == pytest.approx(60_000 / (60 + 29 + 3000))


def test_the_profile_tells_forward_from_backward_and_update():
    weight = torch.randn(600, 600, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])

    def work():
        (weight @ weight).sum().backward()
        optimizer.step()

    found = profile(work, "cpu")
    assert {row["phase"] for row in found["largest"]} <= {"forward", "backward", "update"}
    products = {row["phase"] for row in found["largest"] if row["part"] in ("mm", "addmm")}
    assert products == {"forward", "backward"} and len(found["largest"]) == 5
    assert 0.5 < sum(row["share"] for row in found["largest"]) <= 1


def test_a_case_that_fails_or_comes_too_late_is_said_and_the_others_go_on(tmp_path, capsys):
    def fails():
        raise RuntimeError("out of\nmemory")

    report = Report(Setting("cpu", True, tmp_path, tmp_path), "step", "what", "how")
    report.case(dict(part="a"), fails)
    report.case(dict(part="b"), lambda: dict(speed=spread([1.0, 2.0, 4.123456789])))
    late = Report(Setting("cpu", True, tmp_path, tmp_path, ends=0.0), "late", "what", "how")
    late.case(dict(part="c"), fails)
    written = json.loads((tmp_path / "cpu-step.json").read_text())
    assert written["skipped"] == [dict(part="a", reason="failed: out of memory")]
    assert written["cases"][0]["speed"] == dict(median=2.0, quartiles=[1.5, 3.0617], n=3)
    assert "was over" in json.loads((tmp_path / "cpu-late.json").read_text())["skipped"][0]["reason"]
    assert capsys.readouterr().out.splitlines()[0] == "step: part a: failed: out of memory"


def test_two_sizes_are_compared_whole_and_in_parts():
    found = plans(Setting("cpu", False, None, None))
    sizes = {(one.name, one.seconds, one.bands, one.width, one.batch_size): names for one, names in found}
    assert sizes["logmel-osscl", 2.0, 64, 32, 64] == PARTS and sizes["logmel-osscl", 10.0, 128, 64, 64] == PARTS[::4]
    assert sizes["tfstgram-osscl", 2.0, 64, 32, 64] == PARTS
    assert all(names == ("plain", "channels last", "ours") for _, names in plans(Setting("cuda", False, None, None)))


def test_a_worker_that_dies_is_one_line(tmp_path):
    setting = Setting("cpu", True, tmp_path, tmp_path)
    with worker.Worker(setting, small("logmel-osscl"), "ours", 8, 1) as process:
        with pytest.raises(RuntimeError, match="^worker ended with status 1: AttributeError") as caught:
            process.ask("fly")
    assert "\n" not in str(caught.value)


def test_the_command_refuses_what_it_does_not_know(tmp_path, capsys):
    assert command.main(["--only", "steps", "--to", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("--only steps: choose of step,pair,loader")
    if not torch.cuda.is_available():
        assert command.main(["--device", "cuda", "--to", str(tmp_path)]) == 2
        assert "not usable here" in capsys.readouterr().err


class InThisProcess:
    """A worker without a process: several seconds less."""

    def __init__(self, setting, recipe, variant, count, threads, files=64):
        self.count = count
        job = dict(recipe=recipe.to_dict(), variant=variant, count=count, files=files)
        self.job = worker.Job(job | dict(device=setting.device, work=str(setting.work)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.job.memory_kept.close()

    def ask(self, what, **more):
        return json.loads(json.dumps(getattr(self.job, what)(**more)))

    clips_per_second = worker.Worker.clips_per_second


def written(folder, *sections):
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert set(found) == {f"cpu-{section}" for section in sections}
    for result in found.values():
        assert result["quick"] and result["what"] and result["how"] and result["measured_on"]["commit"]
        assert [case for case in result["skipped"] if "failed" in case["reason"]] == []
        assert all(case["took_seconds"] > 0 for case in result["cases"])
    return {name.removeprefix("cpu-"): result["cases"] for name, result in found.items()}


def test_the_command_compares_the_steps_in_processes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert command.main(["--quick", "--only", "step", "--recipes", "logmel-osscl", "--to", str(tmp_path)]) == 0
    (step,) = written(tmp_path, "step")["step"]
    assert tuple(row["variant"] for row in step["variants"]) == ("plain", "allocator", "ours")
    assert step["ratio"] > 0
    assert all(row["clips_per_second"]["n"] == 2 and row["first_seconds"] > 0 for row in step["variants"])


def test_the_kernels_can_be_switched_off_and_are_on_otherwise(tmp_path, monkeypatch):
    def kernel(*_):
        raise AssertionError("kernel")

    monkeypatch.setattr(cpu, "fits", cpu.fits)  # the switch is undone after the test
    monkeypatch.setattr(cpu, "norm_prelu", kernel)
    setting = Setting("cpu", True, tmp_path, tmp_path)
    with InThisProcess(setting, small("logmel-osscl"), "ours", 8, 1) as ours, pytest.raises(AssertionError):
        ours.ask("epoch")
    with InThisProcess(setting, small("logmel-osscl"), "kernels off", 8, 1) as off:
        assert off.ask("epoch")["loss"] > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_other_section_writes_its_file(tmp_path, monkeypatch, recipe):
    monkeypatch.setenv("OSSCL_LITE_CACHE", "")  # the command sets it
    for module in (step, end_to_end, epoch, growth, profiler, roofline):
        monkeypatch.setattr(module, "Worker", InThisProcess)
    sections = [section for section in command.SECTIONS if section not in ("step", "systems")]
    assert command.main(["--quick", "--only", ",".join(sections), "--recipes", recipe, "--to", str(tmp_path)]) == 0
    cases = {section: found[0] if found else None for section, found in written(tmp_path, *sections).items()}
    assert cases["inference"] is None
    assert cases["loader"]["ratio"] > 0 and set(cases["loader"]["reading_seconds"]) == {"cold", "warm", "cached"}
    assert cases["epoch"]["projected_hours"] > 0
    assert 0 < cases["roofline"]["bounds"]["float32"]["fraction_reached"] < 1
    assert cases["growth"]["peak_bytes"]["process"] >= cases["growth"]["before_bytes"]["process"] > 1e7
    assert len(cases["profile"]["largest"]) == 5


def test_the_cost_of_every_kind_of_system_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("OSSCL_LITE_CACHE", "")
    chosen = ("logmel-osscl", "logmel-clp-scf", "idnn", "no1")
    monkeypatch.setattr(systems, "SYSTEMS", {name: SYSTEMS[name] for name in (*chosen, "anopatch-ast", "stgram-mfn")})
    assert command.main(["--quick", "--only", "systems", "--to", str(tmp_path)]) == 0
    cases = {(case["data"], case["recipe"]): case for case in written(tmp_path, "systems")["systems"]}
    assert set(cases) == {("hall", name) for name in (*chosen, "stgram-mfn")} | {("modspec", name) for name in chosen}
    for case in cases.values():
        assert case["training_seconds"] > 0 and case["milliseconds_of_one_clip"]["median"] > 0


def test_a_whole_training_is_every_epoch_of_every_stage_and_part():
    def log(*seconds, **more):
        epochs = range(1, 1 + len(seconds))
        return pd.DataFrame(dict(epoch=epochs, seconds=seconds)).assign(**more)

    two_types = pd.concat([log(9.0, 2.0, machine_type="fan"), log(9.0, 3.0, machine_type="pump")])
    idnn = SYSTEMS["idnn"].recipe("book")
    assert systems.training_seconds(idnn, SimpleNamespace(log=two_types)) == idnn.epochs * 5
    two_stages = SimpleNamespace(log=log(9.0, 2.0), earlier=(SimpleNamespace(log=log(7.0)),))
    assert systems.training_seconds(ol.recipe("clp-scf", "book"), two_stages) == 16 * 2 + 5 * 7
    parts = SimpleNamespace(log=pd.concat([log(9.0, 2.0, part="classifier"), log(9.0, 4.0, part="made")]))
    no1 = SYSTEMS["no1"].recipe("book")
    assert systems.training_seconds(no1, parts) == no1.epochs * 2 + no1.made_epochs * 4
