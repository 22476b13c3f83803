"""AnoPatch on small random transformers, written to disk in the published layout and read back by the real loader."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import osscl_lite as ol
from osscl_lite.baselines import anopatch
from osscl_lite.baselines.anopatch import AnoPatch, AttentiveStatistics, fit, recipe
from osscl_lite.baselines.backbones import ADAPTERS, AST, Backbone, WavLM, library
from osscl_lite.errors import BadInput
from osscl_lite.files import read_tensors, write_tensors

WAVES = 0.1 * torch.randn(4, 32_000, generator=torch.Generator().manual_seed(1))
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders as the hub has them: AST with its classifier, WavLM alone, each with what prepares its sound."""
    pytest.importorskip("transformers")
    t, root = library(), tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ast = t.ASTConfig(**SMALL, max_length=208, frequency_stride=16, time_stride=16, initializer_range=0.2)
        t.ASTForAudioClassification(ast).save_pretrained(root / "ast")
        t.ASTFeatureExtractor(max_length=208).save_pretrained(root / "ast")
        wavlm = t.WavLMConfig(
            **SMALL, conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, layerdrop=0.5,
            mask_feature_prob=0.1,
            feat_extract_norm="layer", do_stable_layer_norm=True, initializer_range=0.2,
        )  # fmt: skip
        t.WavLMModel(wavlm).save_pretrained(root / "wavlm")
        t.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / "wavlm")
    return root


def networks(root):
    """The same networks as the library alone reads them, and what it prepares from WAVES."""
    t = library()
    sound = dict(sampling_rate=16_000, return_tensors="pt")
    ast = t.ASTForAudioClassification.from_pretrained(root / "ast").audio_spectrogram_transformer.eval()
    picture = t.ASTFeatureExtractor.from_pretrained(root / "ast")(list(WAVES.numpy()), **sound)
    wavlm = t.WavLMModel.from_pretrained(root / "wavlm").eval()
    waves = t.Wav2Vec2FeatureExtractor.from_pretrained(root / "wavlm")(list(WAVES.numpy()), **sound)
    return {"ast": (ast, picture["input_values"]), "wavlm": (wavlm, waves["input_values"])}


def small(root, backbone="ast", **changes):
    return ol.replace(recipe("tiny", backbone), weights=str(root / backbone), **changes)


def copy_of(folder, to):
    return shutil.copytree(folder, to)


def refusal(backbone, folder):
    with pytest.raises(BadInput) as caught:
        ADAPTERS[backbone].read(folder)
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)
    return str(caught.value)


@torch.no_grad()
def test_read_back_they_give_the_tokens_that_the_library_gives(published, capfd):
    ast, wavlm = AST.read(published / "ast").eval(), WavLM.read(published / "wavlm").eval()
    assert capfd.readouterr() == ("", "")  # what is amiss is raised, nothing else is said
    expected = {name: net(inputs).last_hidden_state for name, (net, inputs) in networks(published).items()}
    assert torch.equal(ast(WAVES), expected["ast"][:, 2:]) and torch.equal(wavlm(WAVES), expected["wavlm"])
    assert ast(WAVES).shape == (4, 8 * 13, 32) and wavlm(WAVES).shape == (4, 99, 32)
    assert ast(WAVES).std() > 0.1  # no row of zeros


@torch.no_grad()
def test_tokens_of_padding_are_left_out_and_masks_lie_on_sound(published):
    ast, short = AST.read(published / "ast").eval(), WAVES[:, :16_000]  # 98 of 208 frames
    picture = ast.heard(short)  # (B, frames, bands)
    assert (picture[:, 98:] == picture[0, -1, 0]).all() and (picture[:, 97] != picture[0, -1, 0]).any()
    tokens = ast.network(picture).last_hidden_state[:, 2:].unflatten(1, (8, 13))
    assert torch.equal(ast(short), tokens[:, :, :7].flatten(1, 2))  # patches begin every 16 frames
    seen = []
    hook = ast.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    torch.manual_seed(0)
    for _ in range(20):
        ast(short, 0.5, 0.0)
    hook.remove()
    masked = torch.stack([(one != picture).any(2) for one in seen])  # (20, B, frames)
    assert not masked[..., 98:].any() and 10 < masked.sum(2).float().mean() < 40


@torch.no_grad()
def test_older_names_of_the_same_weights_are_known(published, tmp_path):
    folder = copy_of(published / "wavlm", tmp_path / "wavlm")
    tensors = load_file(folder / "model.safetensors")
    before = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    old = {}
    for key, tensor in tensors.items():
        for new, name in before.items():
            key = key.replace(new, name)
        old[key] = tensor
    assert set(old) != set(tensors)
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(WavLM.read(folder).eval()(WAVES), WavLM.read(published / "wavlm").eval()(WAVES))
    assert any(".attention.attention.query." in key for key in load_file(published / "ast" / "model.safetensors"))


@pytest.mark.parametrize("backbone", ["ast", "wavlm"])
def test_each_weight_must_be_there(published, tmp_path, backbone):
    folder = copy_of(published / backbone, tmp_path / backbone)
    tensors = load_file(folder / "model.safetensors")
    keys = [key for key in tensors if not key.startswith("classifier.")]
    for key in keys[:: max(1, len(keys) // 8)]:
        save_file({k: v for k, v in tensors.items() if k != key}, folder / "model.safetensors", {"format": "pt"})
        assert "is missing" in refusal(backbone, folder)
        save_file(tensors | {key: torch.zeros(3, 5)}, folder / "model.safetensors", {"format": "pt"})
        assert "has another shape" in refusal(backbone, folder)
    save_file({f"other.{k}": v for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    assert "more such" in refusal(backbone, folder)
    more = {
        key.replace(".0.", ".2.", 1): tensor.clone()
        for key, tensor in tensors.items()
        if "r.layer" in key and ".0." in key
    }
    save_file(tensors | more, folder / "model.safetensors", {"format": "pt"})  # a layer more than config.json says
    assert "is unknown" in refusal(backbone, folder)


def test_folders_that_are_not_what_they_should_be(published, tmp_path):
    assert "model_type is audio-spectrogram-transformer, needed is wavlm" in refusal("wavlm", published / "ast")
    assert "model_type is wavlm" in refusal("ast", published / "wavlm")
    assert "cannot be read" in refusal("ast", tmp_path)
    folder = copy_of(published / "ast", tmp_path / "ast")
    weights, prepares = folder / "model.safetensors", folder / "preprocessor_config.json"
    whole, settings = weights.read_bytes(), json.loads(prepares.read_text())
    weights.write_bytes(whole[:1000])
    assert "cannot be read as ASTModel" in refusal("ast", folder)
    weights.rename(folder / "pytorch_model.bin")
    assert "pickled weights are not read" in refusal("ast", folder)
    weights.write_bytes(whole)
    for change, message in (
        ({"sampling_rate": 48_000}, "48000 Hz, 16000 are needed"),
        ({"max_length": 1024}, "max_length is 1024 in preprocessor_config.json and 208"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "needed is ASTFeatureExtractor"),
    ):
        prepares.write_text(json.dumps(settings | change))
        assert message in refusal("ast", folder)
    prepares.write_text("{")
    assert "cannot be read" in refusal("ast", folder)


def line(recipe, clips):
    with pytest.raises(BadInput) as caught:
        fit(recipe, clips, progress=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_weights_it_says_which_ones_and_how(planted, make_features, monkeypatch, published, tmp_path):
    monkeypatch.delenv(anopatch.WEIGHTS, raising=False)
    said = line(recipe("tiny", "ast"), planted)
    assert "no weights; get MIT/ast-finetuned-audioset-10-10-0.4593 (https://huggingface.co/MIT/" in said
    assert "replace(recipe, weights='FOLDER')" in said and said == anopatch.why_not(recipe("tiny", "ast"))
    assert "microsoft/wavlm-large" in line(recipe("tiny", "wavlm"), planted)
    for name in ("beats", "atst"):
        said = line(recipe("tiny", name), planted)
        assert f"has no {name}" in said and f"ADAPTERS['{name}']" in said
    missing = ol.replace(recipe("tiny", "ast"), weights=str(tmp_path / "none"))
    assert line(missing, planted).startswith(f"{tmp_path / 'none'}: no such folder")
    features = ol.load_clips("features", root=make_features())
    assert "takes the sound itself" in line(recipe("tiny", "ast"), features)
    one = planted[(planted["machine_type"] == "fan") & (planted["machine_id"] == "id_00")]
    assert "needs two or more" in line(recipe("tiny", "ast"), one)
    monkeypatch.setenv(anopatch.WEIGHTS, str(published))
    assert anopatch.why_not(recipe("tiny", "ast")) is None
    assert anopatch.weights_folder(recipe("tiny", "wavlm")) == published / "wavlm"


def test_weights_of_the_hub_are_fetched_by_name(monkeypatch, published):
    hub = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: asked.append(name) or str(published / "ast"))
    named = ol.replace(recipe("tiny", "ast"), weights="hub:MIT/ast-finetuned-audioset-10-10-0.4593")
    assert anopatch.weights_folder(named) == published / "ast" and asked == [named.weights[4:]]

    def nothing(name, **_):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(hub, "snapshot_download", nothing)
    with pytest.raises(BadInput, match=r"^hub:MIT/.*: could not be fetched \(no network\)"):
        anopatch.weights_folder(named)


class Frames(Backbone):
    """An adapter of one's own: 20-ms frames of 8 random features."""

    def __init__(self, description):
        super().__init__(description)
        self.width, self.linear = 8, torch.nn.Linear(320, 8)

    @classmethod
    def read(cls, folder):
        return cls({"folder": folder.name})

    def forward(self, waveforms, time_mask=0.0, frequency_mask=0.0):
        return self.linear(waveforms.unfold(1, 320, 320))


def test_an_adapter_of_ones_own_does_for_beats(monkeypatch, tree, tmp_path):
    monkeypatch.setitem(ADAPTERS, "beats", Frames)
    clips = ol.load_clips("dcase2020", root=tree)
    model = fit(ol.replace(recipe("tiny", "beats"), weights=str(tmp_path), epochs=1), clips, progress=False)
    model.save(tmp_path / "saved" / "model.safetensors")
    again = AnoPatch.load(tmp_path / "saved" / "model.safetensors")
    np.testing.assert_array_equal(again.score_clips(clips), model.score_clips(clips))
    assert again.backbone.description == {"folder": tmp_path.name}


def test_pooling_equals_numpy():
    torch.manual_seed(0)
    pool = AttentiveStatistics(6, 4)
    tokens = torch.randn(3, 9, 6)
    tokens[0, :, 2] = 1.5  # a channel without deviation
    x, p = tokens.double().numpy(), {name: value.detach().double().numpy() for name, value in pool.named_parameters()}
    expected = []
    for clip in x:
        mean, deviation = clip.mean(0), np.sqrt(np.maximum(clip.var(0), 1e-6))
        joined = np.hstack([p["token.weight"], p["context.weight"]])  # one layer on [token, mean, deviation]
        rows = np.hstack([clip, np.tile(mean, (9, 1)), np.tile(deviation, (9, 1))])
        logits = np.tanh(rows @ joined.T + p["token.bias"]) @ p["weight.weight"].T + p["weight.bias"]
        weights = np.exp(logits) / np.exp(logits).sum(0)
        mean = (weights * clip).sum(0)
        expected.append(np.concatenate([mean, np.sqrt(np.maximum((weights * clip**2).sum(0) - mean**2, 1e-6))]))
    np.testing.assert_allclose(pool(tokens).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    tokens.requires_grad_()
    pool(tokens).sum().backward()
    assert torch.isfinite(tokens.grad).all()


def test_parameters_of_the_head_and_of_the_published_sizes(published):
    model = AnoPatch(small(published), ["a/id_00", "a/id_01", "b/id_00"], AST.read(published / "ast"))
    head = sum(value.numel() for name, value in model.named_parameters() if not name.startswith("backbone."))
    pooling = (32 * 128 + 128) + 64 * 128 + (128 * 32 + 32)  # token, context, weight
    assert head == pooling + 2 * 64 + (64 * 128 + 128) + 3 * 128  # BatchNorm, linear, class weights
    t = library()
    large = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    with torch.device("meta"):
        for description, backbone, printed in (
            (t.ASTConfig().to_dict(), AST, 86),
            (t.WavLMConfig(**large, feat_extract_norm="layer", do_stable_layer_norm=True).to_dict(), WavLM, 316),
        ):
            built = AnoPatch(recipe(), ["x"] * 41, backbone(dict(config=description, preprocessor={})))
            counted = sum(value.numel() for value in built.parameters())
            assert abs(counted - printed * 1e6) < 1.5e6  # millions, as Table V prints them


@pytest.mark.parametrize("backbone", ["ast", "wavlm"])
def test_a_step_along_the_gradient_lowers_the_loss(published, backbone):
    torch.manual_seed(0)
    model = AnoPatch(
        small(published, backbone, time_mask=0.0, frequency_mask=0.0),
        ["a", "b"],
        ADAPTERS[backbone].read(published / backbone),
    )
    model.norm.train()  # nothing is drawn elsewhere
    y = torch.tensor([0, 1, 0, 1])
    loss = model.loss(WAVES, y)
    loss.backward()
    reached = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    spared = {"backbone.network.embeddings.distillation_token", "backbone.network.masked_spec_embed"}
    missed = {name for name, _ in model.named_parameters()} - reached - spared
    assert all("k_proj.bias" in name or "rel_attn" in name or "gru" in name for name in missed), missed
    with torch.no_grad():
        for value in model.parameters():
            if value.grad is not None:
                value -= 1e-4 * value.grad
        assert model.loss(WAVES, y) < loss


def test_masks_are_drawn_only_in_training(published):
    torch.manual_seed(0)
    for backbone in ("ast", "wavlm"):
        net = ADAPTERS[backbone].read(published / backbone).eval()
        model = AnoPatch(small(published, backbone), ["a", "b"], net)
        assert torch.equal(model(WAVES), model(WAVES))
        assert not torch.equal(net(WAVES, 0.5, 0.5), net(WAVES, 0.5, 0.5))
        assert torch.equal(net(WAVES, 0.0, 0.0), net(WAVES))
        before = np.random.get_state()[1].copy()
        net.train()(WAVES)
        assert (np.random.get_state()[1] == before).all()  # WavLM's own masks would be drawn from there


def test_the_planted_fault_is_found_and_not_with_shuffled_names(published, planted, shuffled, fan_auc, one_thread):
    setting = small(published)
    assert fan_auc(fit(setting, planted, device="cpu", progress=False)) > 0.9
    assert fan_auc(fit(setting, shuffled, device="cpu", progress=False)) <= 0.9


@pytest.mark.parametrize("backbone", ["ast", "wavlm"])
def test_stopped_and_started_again_it_gives_the_same(published, tree, tmp_path, backbone, monkeypatch, one_thread):
    clips = ol.load_clips("dcase2020", root=tree)
    setting = small(published, backbone, epochs=3)
    whole = fit(setting, clips, device="cpu", out=tmp_path / "whole", progress=False)
    real, calls = anopatch._write_checkpoint, []

    def stops(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(anopatch, "_write_checkpoint", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(setting, clips, device="cpu", out=tmp_path / "cut", progress=False)
    moved = ol.replace(setting, weights=str(copy_of(published / backbone, tmp_path / "moved")))
    again = fit(moved, clips, device="cpu", out=tmp_path / "cut", progress=False)
    assert len(calls) == 3 and list(again.log["epoch"]) == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    np.testing.assert_array_equal(whole.score_clips(clips), again.score_clips(clips))
    for change in (dict(margin=0.4), dict(seed=1)):
        with pytest.raises(BadInput, match="from a run with another recipe; give another folder"):
            fit(ol.replace(setting, **change), clips, device="cpu", out=tmp_path / "cut", progress=False)
    torch.manual_seed(5)
    (tmp_path / "moved" / "config.json").write_text((published / backbone / "config.json").read_text() + " ")
    with pytest.raises(BadInput, match="from a run with another weights"):
        fit(moved, clips, device="cpu", out=tmp_path / "cut", progress=False)


def test_the_score_is_the_distance_to_the_nearest_of_its_own_machine(published, tree, tmp_path):
    clips = ol.load_clips("dcase2020", root=tree)
    model = fit(small(published, epochs=1), clips, device="cpu", out=tmp_path, progress=False)
    z, names = model.embed_clips(clips), (clips["machine_type"] + "/" + clips["machine_id"]).to_numpy()
    train, scores = (clips["split"] == "train").to_numpy(), model.score_clips(clips)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    expected = [1 - (z[train & (names == name)] @ own).max() for own, name in zip(z, names, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.dtype == np.float32 and np.abs(scores[train]).max() < 1e-5 < scores[~train].max()
    assert len(model.memory) == train.sum() == 24
    again = AnoPatch.load(tmp_path / "baseline.safetensors")
    np.testing.assert_array_equal(again.score_clips(clips), scores)
    assert (again.recipe, again.machines) == (model.recipe, model.machines)
    with pytest.raises(BadInput, match="not trained on pump/id_00"):
        model.score_clips(clips.assign(machine_type="pump"))
    with pytest.raises(BadInput, match="holds a checkpoint, not a baseline"):
        AnoPatch.load(tmp_path / "checkpoint.safetensors")
    tensors, about = read_tensors(tmp_path / "baseline.safetensors", "baseline")
    write_tensors(tmp_path / "odd.safetensors", tensors, about | dict(machines=model.machines[:2]))
    with pytest.raises(BadInput, match="odd.safetensors: the weights do not fit AnoPatch"):
        AnoPatch.load(tmp_path / "odd.safetensors")


def test_recipes_are_plain_data():
    for backbone in ("wavlm", "atst", "ast", "beats"):
        for size in ("paper", "book", "tiny"):
            given = recipe(size, backbone)
            assert type(given).from_dict(json.loads(json.dumps(given.to_dict()))) == given
            assert (given.name, given.size, given.weights) == (f"anopatch-{backbone}", size, None)
    for wrong in (dict(backbone="hubert"), dict(input="log_mel"), dict(epochs=0), dict(warmup=2.0)):
        with pytest.raises(ValueError, match="anopatch-ast"):
            ol.replace(recipe("tiny", "ast"), **wrong)
    with pytest.raises(ValueError, match="unknown size"):
        recipe("huge", "ast")


def test_the_package_needs_no_transformers():
    said = "import sys; sys.modules['transformers'] = None; import osscl_lite, osscl_lite.baselines.anopatch as a\n"
    said += "try: a.library()\nexcept ValueError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert 'AnoPatch needs transformers: pip install "osscl_lite[tables]"' in done.stdout
