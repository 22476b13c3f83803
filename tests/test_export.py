"""Detectors as ONNX files: the same scores as PyTorch, files of no use refused, the command line."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import osscl_lite as ol
from osscl_lite.__main__ import main, parser
from osscl_lite.data import take
from osscl_lite.errors import BadInput
from osscl_lite.features import LogMel, TFgramNet

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from osscl_lite.export import MatrixLogMel, OnnxDetector, PictureTFgram, SplitPReLU, Windows, export  # noqa: E402

NAMES = ["fan/id_00", "fan/id_02", "valve/id_00", "valve/id_02"]
LABELS = torch.arange(9) % 4


@pytest.fixture(scope="module")
def clips():
    """Nine clips of the hall, of several machines."""
    table = ol.load_clips("hall", size="tiny")
    return table.iloc[:: len(table) // 8].reset_index(drop=True)


@pytest.fixture(scope="module")
def waves(clips):
    return take(ol.load_waveforms(clips, 2.0), np.arange(9), "cpu")


def detector(name, inputs, **changes):
    """A detector with statistics of these clips and slopes on both sides of 1, as after some training."""
    torch.manual_seed(5)
    model = ol.Detector(ol.replace(ol.recipe(name, "tiny"), **changes), NAMES)
    for layer in model.modules():
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, -0.3, 1.4)
    model.train()
    if model.log_mel is None:
        model.standardise.fit(inputs)
    with torch.no_grad():
        for _ in range(20):
            model(inputs, inputs if model.log_mel is None else model.log_mel(inputs))
    model.hall_version = "7"
    return model.eval()


@pytest.fixture(scope="module")
def exported(waves, tmp_path_factory):
    """Detectors by recipe, with the files that the command exported them to: made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model, weights, path = detector(name, waves), folder / "detector.safetensors", folder / "run" / "model.onnx"
            model.save(weights)
            assert main(["export", "--model", str(weights), "--out", str(path)]) == 0
            made[name] = model, path
        return made[name]

    return get


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", ["logmel-osscl", "stgram-osscl", "tfstgram-osscl"])
def test_the_file_scores_as_the_detector(exported, waves, name):
    model, path = exported(name)
    again = OnnxDetector.load(path)
    scores = model.score(waves, LABELS)
    assert scores.std() > 0.1
    for rows in (slice(0, 1), slice(2, 7), slice(0, 9), slice(0, 0)):
        close(again.score(waves[rows], LABELS[rows]), scores[rows])
    close(again.embed(waves), model.embed(waves))
    close(again.score(torch.cat([waves, waves], 1).double(), LABELS), scores)
    assert (again.recipe, again.machines, again.hall_version) == (model.recipe, NAMES, "7")
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_a_detector_of_features_takes_pictures(tmp_path):
    pictures = 3 + 2 * torch.randn(9, 24, 10, generator=torch.Generator().manual_seed(2))
    model = detector("logmel-arcface", pictures, input="features", bands=24, frames=10)
    export(model, tmp_path / "deep" / "model.onnx")
    again = OnnxDetector.load(tmp_path / "deep" / "model.onnx")
    close(again.score(pictures, LABELS), model.score(pictures, LABELS))
    with pytest.raises(ValueError, match=r"expected \(B, 24, 10\) pictures"):
        again.score(pictures[:, :, :9], LABELS)


@pytest.mark.parametrize(("n_fft", "hop"), [(2048, 512), (1024, 400), (1000, 700), (30, 6)])
def test_log_mel_by_matrices(waves, n_fft, hop):
    for samples in (n_fft, 8_000, 8_001):
        log_mel = LogMel(8, 16_000, n_fft, hop)
        expected = log_mel(waves[:3, :samples])
        torch.testing.assert_close(MatrixLogMel(log_mel, samples)(waves[:3, :samples]), expected, rtol=0, atol=1e-3)


def test_prelu_by_convolutions():
    prelu, x = nn.PReLU(5), torch.randn(2, 5, 3, 4)
    prelu.weight.data = torch.tensor([-0.5, 0.0, 0.25, 1.0, 1.7])
    torch.testing.assert_close(SplitPReLU(prelu)(x), prelu(x).detach())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_adaptive_pooling_by_windows(length, outputs):
    x = torch.randn(2, length)
    assert torch.equal(Windows(length, outputs)(x), nn.AdaptiveMaxPool1d(outputs)(x))


def test_tfgram_on_pictures_of_one_row(waves):
    net = TFgramNet(bands=6, frames=17, width=5)
    net(waves)  # statistics of these clips
    net.eval()
    torch.testing.assert_close(PictureTFgram(net, 32_000).eval()(waves), net(waves), rtol=1e-4, atol=1e-4)


def test_tables_of_clips(exported, tree):
    model, path = exported("logmel-osscl")
    again, table = OnnxDetector.load(path), ol.load_clips("dcase2020", root=tree)
    close(again.score_clips(table, batch_size=7), model.score_clips(table))
    close(again.embed_clips(table.iloc[:3]), model.embed_clips(table.iloc[:3]))
    assert again.score_clips(table.iloc[:0]).shape == (0,)
    with pytest.raises(BadInput, match="not trained on pump/id_02, pump/id_04"):
        again.score_clips(table.assign(machine_type="pump", machine_id=["id_02", "id_04"] * 20))
    stray = pd.DataFrame({"path": ["hall://0/0/tiny/fan/test/x.wav"], "machine_type": "fan", "machine_id": "id_00"})
    with pytest.warns(UserWarning, match="trained on hall version 7"), pytest.raises(BadInput):
        again.score_clips(stray)


def test_inputs_that_cannot_be_scored(exported, waves):
    model, path = exported("logmel-osscl")
    for either in (model, OnnxDetector.load(path)):
        for inputs, labels, message in (
            (waves[:, :-1], LABELS, "32000 samples"),
            (waves[0], LABELS, "32000 samples"),
            (waves / 0, LABELS, "NaN or infinite"),
            (waves.short(), LABELS, "divide int16 by 32768"),
            (waves, LABELS[:8], "expected 9 machine labels from 0 to 3"),
            (waves, LABELS - 1, "expected 9 machine labels from 0 to 3"),
            (waves, LABELS + 1, "expected 9 machine labels from 0 to 3"),
        ):
            with pytest.raises(ValueError, match=message):
                either.score(inputs, labels)


def refusal(path):
    with pytest.raises(BadInput) as caught:
        OnnxDetector.load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_hold_no_detector(exported, tmp_path):
    whole, bad = exported("logmel-osscl")[1].read_bytes(), tmp_path / "bad.onnx"
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[: len(whole) - 2000], whole + b"more"):
        bad.write_bytes(damaged)
        refusal(bad)
    assert "no such file" in refusal(tmp_path / "missing.onnx")
    assert "no such file" in refusal(tmp_path)
    for about, message in (
        (None, "holds a file of another program, not a detector"),
        ("no JSON", "holds a file of another program, not a detector"),
        ('["a list"]', "holds a file of another program, not a detector"),
        ('{"kind": "checkpoint"}', "holds a checkpoint, not a detector"),
        ('{"kind": "detector", "format": 99}', "format 99"),
        ('{"kind": "detector", "format": 1}', "does not fit the recipe"),
    ):
        graph = onnx.load_from_string(whole)
        del graph.metadata_props[:]
        if about is not None:
            onnx.helper.set_model_props(graph, {"about": about})
        onnx.save(graph, bad)
        assert message in refusal(bad)


def test_a_recipe_of_another_length_is_refused(exported, tmp_path):
    graph = onnx.load(exported("logmel-osscl")[1])
    [entry] = graph.metadata_props
    entry.value = entry.value.replace('"seconds": 2.0', '"seconds": 3.0')
    onnx.save(graph, tmp_path / "bad.onnx")
    assert "it takes waveforms [32000], the recipe waveforms [48000]" in refusal(tmp_path / "bad.onnx")


def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx.export", lambda *given, **words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(ol.Detector(ol.recipe("logmel-osscl", "tiny"), 2), tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(exported, tmp_path, monkeypatch, package):
    model, path = exported("logmel-osscl")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=rf'need {package} .*: pip install "osscl_lite\[onnx\]"') as caught:
        OnnxDetector.load(path) if package == "onnxruntime" else export(model, tmp_path / "detector.onnx")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_the_package_imports_no_onnx():
    code = "import sys, osscl_lite.__main__; sys.exit(any(name.startswith('onnx') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_commands_give_the_same_table(exported, tree, tmp_path, capsys):
    _, path = exported("logmel-osscl")
    for file, out in ((path.parents[1] / "detector.safetensors", "a.csv"), (path, "b.csv")):
        assert main(["score", "--model", str(file), "--out", str(tmp_path / out), str(tree)]) == 0
    ours, theirs = pd.read_csv(tmp_path / "b.csv"), pd.read_csv(tmp_path / "a.csv")
    assert len(ours) == 40 and ours.drop(columns="score").equals(theirs.drop(columns="score"))
    close(ours["score"], theirs["score"])
    assert capsys.readouterr().err == ""


def one_line(capsys, *words):
    assert main([str(word) for word in words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_commands_of_no_use_are_one_line(exported, tree, tmp_path, capsys, monkeypatch):
    _, path = exported("logmel-osscl")
    weights = path.parents[1] / "detector.safetensors"
    assert "ends in .onnx" in one_line(capsys, "export", "--model", weights, "--out", tmp_path / "detector.bin")
    assert "no such file" in one_line(capsys, "export", "--model", tmp_path / "no", "--out", tmp_path / "d.onnx")
    assert "no such file" in one_line(capsys, "score", "--model", tmp_path / "no.onnx", tree)
    (tmp_path / "bad.onnx").write_bytes(b"text")
    assert "not a readable ONNX file" in one_line(capsys, "score", "--model", tmp_path / "bad.onnx", tree)
    monkeypatch.setattr("osscl_lite.grid.pick_device", lambda device: torch.device("cuda"))
    assert "scored on the CPU" in one_line(capsys, "score", "--model", path, "--device", "cuda", tree)


def test_help_shows_an_example_that_parses(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    example = capsys.readouterr().out.partition("example:\n")[2].strip()
    assert example.startswith("python -m osscl_lite export")
    parser().parse_args(example.split()[3:])


def test_a_detector_that_was_exported_is_left_as_it_was(exported, waves, tmp_path):
    model, _ = exported("logmel-osscl")
    assert isinstance(model.log_mel, LogMel) and any(isinstance(layer, nn.PReLU) for layer in model.modules())
    assert torch.equal(detector("logmel-osscl", waves).score(waves, LABELS), model.score(waves, LABELS))


def test_ways_to_score_are_compared_in_turns(exported, waves, monkeypatch):
    from benchmarks import inference

    model, path = exported("logmel-osscl")
    monkeypatch.setattr(inference, "ROUNDS", (1, 2))
    case = inference.compare({"pytorch": model, "onnx": OnnxDetector.load(path)}, waves, LABELS, threads=1)
    onnx_way = json.loads(json.dumps(case))["ways"]["onnx"]
    assert onnx_way["largest_score_difference"] < 5e-4
    assert onnx_way["milliseconds_of_one_clip"]["n"] == 2 and onnx_way["clips_a_second_and_core"]["median"] > 0
