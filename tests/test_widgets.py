"""Players and explorers: what they promise to readers, with no browser (tests/test_site.py has one)."""

import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image

import osscl_lite as ol
from osscl_lite import explorers, plots, widgets
from osscl_lite.explorers.alarms import ALL
from osscl_lite.explorers.clips import condition

RATE = 16_000
TIME = np.arange(RATE // 2) / RATE
LOW, HIGH = 0.01 * np.sin(2 * np.pi * 200 * TIME), 0.05 * np.sin(2 * np.pi * 3000 * TIME)


def picture(seed: int = 0) -> bytes:
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.imshow(np.random.default_rng(seed).random((4, 4)))
    return widgets.webp(figure)


def short_log_mel(waveforms: torch.Tensor) -> torch.Tensor:
    """Stands in for the real front end: (B, L) -> (B, 8, frames) in dB."""
    power = torch.stft(waveforms, 256, 128, window=torch.hann_window(256), return_complex=True).abs().square()
    return 10 * power[:, :128].unflatten(1, (8, 16)).mean(2).clamp_min(1e-10).log10()


def script_data(fragment: str) -> dict:
    return json.loads(re.search(r"const data = (\{.*?\}), root", fragment).group(1).replace("<\\/", "</"))


def scored(seed: int, shift: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [("fan", f"id_0{k}", label) for k in range(2) for label in ["normal"] * 20 + ["anomaly"] * 20]
    table = pd.DataFrame(rows, columns=["machine_type", "machine_id", "label"])
    table = table.assign(split="test", score=rng.normal(size=len(table)) + shift * table["label"].eq("anomaly"))
    other = table.assign(split="train", score=1e3)  # must not count
    return pd.concat([table, other])


@pytest.mark.parametrize("hz", [200, 3000, 7400])
def test_mp3_keeps_the_sound_and_its_length(hz):
    sound = 0.5 * np.sin(2 * np.pi * hz * TIME)
    heard, rate = soundfile.read(io.BytesIO(widgets.mp3(sound, RATE)))
    assert rate == 2 * RATE and heard.shape == (2 * len(sound),)
    assert np.argmax(np.abs(np.fft.rfft(heard))) == pytest.approx(hz * len(sound) / RATE, abs=1)
    assert heard.std() == pytest.approx(sound.std(), rel=0.1)


@pytest.mark.parametrize("rate, stored", [(8_000, 32_000), (22_050, 22_050), (48_000, 48_000)])
def test_mp3_of_another_rate(rate, stored):
    assert soundfile.info(io.BytesIO(widgets.mp3(LOW, rate))).samplerate == stored


def test_int16_and_float_are_the_same_sound():
    assert np.array_equal(widgets.to_float((LOW * 32768).astype(np.int16)), np.trunc(LOW * 32768) / 32768)


@pytest.mark.parametrize("bad", [np.zeros((2, 10)), np.zeros(0), np.array([0.0, np.nan])])
def test_a_player_refuses_what_is_no_sound(bad):
    with pytest.raises(ValueError):
        widgets.player(bad, "bad")


def test_webp_is_a_picture_and_closes_its_figure():
    before = len(plt.get_fignums())
    assert Image.open(io.BytesIO(picture())).format == "WEBP"
    assert len(plt.get_fignums()) == before


def test_players_share_one_gain_and_say_it():
    fragment = widgets.players([("low", LOW), ("high", HIGH)]).data
    assert "All played +24 dB against the stored clips, alike" in fragment  # 0.8 / 0.05 = 16
    waveforms, gain = widgets.amplified([LOW, HIGH])
    assert np.abs(waveforms[1]).max() == pytest.approx(widgets.PEAK)
    assert np.abs(waveforms[0]).max() / np.abs(waveforms[1]).max() == pytest.approx(0.2, rel=0.01)
    assert gain == pytest.approx(20 * np.log10(16), abs=0.01)


def test_silence_can_be_played():
    assert "+0 dB" in widgets.player(np.zeros(100), "silence").data


def test_every_player_has_a_name_for_eyes_and_ears():
    fragment = widgets.players([('fan <id_00> "a"', LOW), ("b", HIGH)]).data
    assert fragment.count("<audio controls") == fragment.count("aria-label=") == 2
    assert fragment.count("fan &lt;id_00&gt; &quot;a&quot;") == 2 and "<id_00>" not in fragment


def test_frame_player_holds_every_frame():
    frames, sounds = [picture(0), picture(1)], [widgets.mp3(LOW), widgets.mp3(HIGH)]
    fragment = widgets.frame_player(
        frames, ["0", "1"], sounds=sounds, alts=["first", "</script>"], title="λ", start=1
    ).data
    data = script_data(fragment)
    assert data["labels"] == [["0"], ["1"]] and len(set(data["pictures"])) == len(set(data["sounds"])) == 2
    assert data["alts"] == ["first", "</script>"] and fragment.count("</script>") == 1
    assert 'value="1" aria-valuetext="1"' in fragment and 'data-lm-suppress-shortcuts="true"' in fragment
    assert "http" not in re.sub(r"base64,[^\"]*", "", fragment)


TREE = [("fan", "id_00", "1"), ("fan", "id_00", "2"), ("fan", "id_02", "2"), ("pump", "id_04", "3")]
TREE_TITLES = ("type", "machine ID", "step")


def tree(**changes) -> str:
    frames = [picture(k) for k in range(4)]
    arguments = dict(labels=TREE, alts=list("abcd"), words=["one", "two <b>", "three", "four"], title=TREE_TITLES)
    return widgets.frame_player(frames, **(arguments | changes)).data


def test_a_frame_player_has_a_control_for_each_place_of_its_labels():
    fragment = tree(start=1)
    assert re.findall(r"<(select|input) ", fragment) == ["select", "select", "input"]  # numbers go on a slider
    for k, title in enumerate(TREE_TITLES):
        (name,) = re.findall(rf'<label for="(frames-\w+-{k})">{title}', fragment)
        assert re.search(rf'<(?:select|input) id="{name}"[^>]*data-lm-suppress-shortcuts="true"', fragment)
    assert re.findall(r"<option( selected)?>(\w+)", fragment) == [
        (" selected", "fan"), ("", "pump"), (" selected", "id_00"), ("", "id_02")
    ]  # fmt: skip
    assert 'max="1" step="1" value="1" aria-valuetext="2"' in fragment  # two steps after fan, id_00
    assert '<p role="status" aria-live="polite"' in fragment and "two &lt;b&gt;</p>" in fragment
    data = script_data(fragment)
    assert data["labels"] == [list(path) for path in TREE] and data["words"][1] == "two <b>"


@pytest.mark.parametrize(
    "wrong",
    [dict(title=("type", "step")), dict(labels=[*TREE[:3], TREE[0]]), dict(words=["one"]), dict(labels=list("abcd"))],
)
def test_a_tree_of_frames_must_fit_its_titles(wrong):
    with pytest.raises(ValueError):
        tree(**wrong)


def test_dropdowns_offer_what_is_left_and_keep_what_they_can():
    shown = []
    first, second, third = widgets.dropdowns(TREE, TREE_TITLES, shown.append)
    assert shown == [0] and first.options == ("fan", "pump") and third.options == ("1", "2")
    third.value = "2"
    second.value = "id_02"
    assert shown == [0, 1, 2] and third.options == ("2",)
    second.value = "id_00"
    assert shown[-1] == 1 and third.value == "2"  # kept
    first.value = "pump"
    assert shown[-1] == 3 and (second.value, third.value) == ("id_04", "3")


def test_a_drawing_of_few_colours_is_smaller_and_keeps_them():
    def drawn() -> plt.Figure:
        figure, ax = plt.subplots(figsize=(3, 2))
        ax.bar(range(5), [1, 3, 2, 5, 4], color=plots.VERMILION)
        return figure

    flat, blurred = widgets.webp(drawn(), colours=16), widgets.webp(drawn())
    assert len(flat) < len(blurred)
    colours = Image.open(io.BytesIO(flat)).convert("RGB").getcolors()
    assert len(colours) <= 16 and (0xD5, 0x5E, 0x00) in [colour for _, colour in colours]


def test_frame_player_ids_are_stable_and_its_own():
    def uid(title: str) -> str:
        sounds = [widgets.mp3(LOW), widgets.mp3(HIGH)]
        fragment = widgets.frame_player(
            [picture(0), picture(1)], ["a", "b"], sounds=sounds, alts=["x", "y"], title=title
        )
        return re.search(r'id="(frames-\w+)"', fragment.data).group(1)

    assert uid("λ") == uid("λ") != uid("R")


@pytest.mark.parametrize(
    "wrong", [dict(labels=["a"]), dict(alts=["x", " "]), dict(sounds=[b"x"]), dict(start=2), dict(frames=[])]
)
def test_frame_player_refuses_what_does_not_fit(wrong):
    right = dict(frames=[b"p", b"q"], labels=["a", "b"], alts=["x", "y"], title="t")
    with pytest.raises(ValueError):
        widgets.frame_player(**(right | wrong))


def test_mixup_frames_mix_as_the_recipe_does():
    frames = explorers.mixup_frames(LOW, HIGH, [0.0, 0.5, 1.0], short_log_mel, ("low", "high"))
    assert [len(part) for part in frames.values()] == [3, 3, 3, 3] and len(set(frames["frames"])) == 3
    first, rate = soundfile.read(io.BytesIO(frames["sounds"][0]))
    last, _ = soundfile.read(io.BytesIO(frames["sounds"][2]))
    peak_of = [np.argmax(np.abs(np.fft.rfft(x))) * rate / len(x) for x in (first, last)]
    assert peak_of == pytest.approx([3000, 200], abs=5)  # λ is the share of the first clip
    assert np.abs(first).max() > 3 * np.abs(last).max()  # one gain for all
    assert "50% low mixed with 50% high" in frames["alts"][1]
    widgets.frame_player(**frames, title="λ", start=1)


def test_mixup_explorer_follows_its_slider():
    box = explorers.mixup_explorer(LOW, HIGH, short_log_mel)
    slider, shown = box.children
    before = shown.value
    slider.value = 0.25
    assert shown.value != before and "25% clip a mixed with 75% clip b" in shown.value and "<audio" in shown.value


def test_reduction_frames_tell_the_auc():
    frames = explorers.reduction_frames({None: scored(0, 4.0), 4: scored(1, 0.0)})
    assert frames["labels"] == ["no head", "4"]
    assert "mean per-ID AUC 1.00" in frames["alts"][0]
    assert re.search(r"R = 4: mean per-ID AUC 0\.[3-6]", frames["alts"][1])


def test_reduction_explorer_runs_once_a_press_and_says_what_failed():
    asked = []

    def evaluate(reduction: int) -> plt.Figure:
        asked.append(reduction)
        if reduction == 3:
            raise RuntimeError("training failed")
        return plots.waveform(LOW).figure

    row, said, shown = explorers.reduction_explorer(evaluate, start=8).children
    slider, button = row.children
    button.click()
    assert asked == [8] and said.value == "R = 8" and shown.value
    slider.value = 3
    assert asked == [8]
    button.click()
    assert "training failed" in said.value and not button.disabled


def test_figures_name_their_axes_and_units():
    rng = np.random.default_rng(0)
    anomalous, scores = np.arange(40) % 2 == 0, rng.random(40)
    table = pd.DataFrame(dict(system=["a", "b"], group=["fan", "fan"], auc=[0.7, 0.8], half_width=[0.1, np.nan]))
    axes = [
        plots.waveform(LOW),
        plots.log_mel(rng.random((64, 63))),
        plots.roc(anomalous, scores),
        plots.score_histogram(anomalous, scores, threshold=0.5),
        plots.learning_curves(pd.DataFrame(dict(epoch=[1, 2], train=[2.0, 1.0])), ["train"]),
        plots.scatter(rng.random((40, 2)), ["a", "b"] * 20, anomalous=anomalous),
        plots.confusion([[3, 1], [0, 4]], ["fan/id_00", "fan/id_02"]),
        plots.auc_intervals(table),
    ]
    for ax in axes:
        assert ax.get_xlabel() and (ax.get_ylabel() or [t.get_text() for t in ax.get_yticklabels()])
        plt.close(ax.figure)
    assert plt.rcParams["axes.spines.top"]  # the style does not leak


def test_mel_ticks_stand_at_their_bands():
    librosa = pytest.importorskip("librosa")
    centres = librosa.mel_frequencies(130, fmin=0, fmax=8000)[1:-1]
    at = plots.mel(centres) / plots.mel(8000) * 129 - 1
    assert np.allclose(at, np.arange(128), atol=1e-6)


def test_a_threshold_from_normal_clips_is_exceeded_by_as_many_as_promised():
    rng = np.random.default_rng(0)
    scores, machines = np.concatenate([rng.gamma(2, 3, 4000), rng.gamma(5, 1, 4000)]), np.repeat(["a", "b"], 4000)
    for way in ("quantile", "gamma"):
        found = explorers.thresholds(scores, machines, 0.1, way)
        assert list(found.index) == ["a", "b"]
        assert [np.mean(scores[machines == name] > found[name]) for name in "ab"] == pytest.approx([0.1] * 2, abs=0.01)
    for wrong in (dict(promise=0), dict(promise=0.1, way="guess")):
        with pytest.raises(ValueError):
            explorers.thresholds(scores, machines, **wrong)


def two_fans() -> pd.DataFrame:
    """Two fans: id_00 with normal scores 1 to 10 and faulty ones 6 to 15, id_01 with all of them ten times as high."""
    ids, score = np.repeat(["id_00", "id_01"], 20), np.concatenate([np.arange(1.0, 11), np.arange(6.0, 16)])
    label = np.tile(np.repeat(["normal", "anomaly"], 10), 2)
    score = np.concatenate([score, 10 * score])
    return pd.DataFrame(dict(machine_type="fan", machine_id=ids, label=label, split="test", score=score))


def test_rates_count_what_is_on_the_wrong_side():
    rates = explorers.Rates.count(two_fans()[:20], 8.5)
    assert (rates.false, rates.normal, rates.missed, rates.faulty) == (2, 10, 3, 10)
    assert (rates.false_rate, rates.miss_rate) == (0.2, 0.3)
    assert "2 of 10 normal clips raise an alarm (20%), 3 of 10 faulty ones are missed (30%)" in str(rates)


def test_one_threshold_for_two_levels_fails_both_and_the_words_say_so():
    clips = two_fans()
    fresh = clips[clips["label"] == "normal"]
    found = explorers.threshold_frames(clips, fresh, [0.1, 0.3])
    assert found["labels"][::2] == [("fan", view, "10%") for view in (ALL, "id_00", "id_01")]
    assert {len(part) for part in found.values()} == {6} and len(set(found["frames"])) == 6
    together, own = found["words"][1], found["words"][3]
    assert "False alarms by ID: from 0% (id_00) to 70% (id_01)" in together, together
    assert "fan/id_00, threshold 6.6: 4 of 10 normal" in own and "one threshold of the type" in own, own
    assert all("ROC" in alt and words in alt for alt, words in zip(found["alts"], found["words"], strict=True))
    widgets.frame_player(**found, title=("type", "clips", "promise"))


def test_threshold_explorer_keeps_its_threshold_from_machine_to_machine():
    kind, view, limit, shown = explorers.threshold_explorer(two_fans()).children
    assert kind.options == ("fan",) and view.options == (ALL, "id_00", "id_01")
    limit.value = 8.5
    assert "All fan IDs, threshold 8.5" in shown.value
    view.value = "id_00"
    assert "fan/id_00, threshold 8.5: 2 of 10 normal" in shown.value
    view.value = "id_01"
    assert "fan/id_01, threshold 8.5: 10 of 10 normal" in shown.value and limit.value == 8.5


@pytest.fixture(scope="module")
def hall() -> tuple[ol.Detector, pd.DataFrame]:
    """An untrained detector with three pictures, and the test clips of two tiny fans."""
    clips = ol.load_clips("hall", size="tiny")
    rows = clips["machine_type"].eq("fan") & clips["machine_id"].isin(["id_00", "id_02"]) & clips["split"].eq("test")
    torch.manual_seed(0)
    return ol.Detector(ol.recipe("tfstgram-osscl", "tiny"), ["fan/id_00", "fan/id_02"]), clips[rows]


def test_clip_frames_show_and_tell_each_clip(hall):
    model, clips = hall
    shown = clips.groupby(["machine_id", "label"]).head(1)
    normal = clips[clips["label"] == "normal"]
    scores = pd.Series(model.score_clips(normal), normal["machine_type"] + "/" + normal["machine_id"])
    usual = {machine: scores[machine].to_numpy() for machine in model.machines}
    found = explorers.clip_frames(model, shown, usual)
    assert {len(part) for part in found.values()} == {4} and len(set(found["frames"])) == 4
    assert found["labels"][0] == ("fan", "id_00", "normal") and found["labels"][1][2] == shown["fault"].iloc[1]
    assert all("(generated)" in words for words in found["words"])
    own = model.score_clips(shown)
    below = [int((usual[f"{row.machine_type}/{row.machine_id}"] < score - 1e-3).sum())
             for row, score in zip(shown.itertuples(), own, strict=True)]  # fmt: skip
    said = [re.search(r"higher than (\d+) of (\D+)(\d+) normal", words).groups() for words in found["words"]]
    assert [int(count) for count, _, _ in said] == below
    assert said[0][1:] == ("the other ", "9") and said[1][1:] == ("its ", "10")
    assert f"severity {shown['severity'].iloc[1]:.2f}" in found["words"][1]


def test_clip_explorer_reaches_every_test_clip(hall):
    model, clips = hall
    kind, number, condition, clip, shown = explorers.clip_explorer(model, clips).children
    assert condition.value == "normal" and len(clip.options) == 10 and "<audio" in shown.value
    number.value = "id_02"
    faults = set(clips.loc[clips["machine_id"].eq("id_02"), "fault"]) - {""}
    assert condition.value == "normal" and set(condition.options) == {"normal", *faults}
    condition.value = condition.options[1]
    assert f"fan/id_02, {condition.value}, severity" in shown.value and "severity" in clip.value


def test_clips_without_named_faults_are_called_by_their_label():
    rows = pd.DataFrame(dict(label=["normal", "anomaly", "unknown"]))
    assert [condition(row) for _, row in rows.iterrows()] == ["normal", "faulty", "unknown"]
