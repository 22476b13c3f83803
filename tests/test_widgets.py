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

from osscl_lite import explorers, plots, widgets

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


def test_ogg_keeps_the_sound_and_its_length():
    heard, rate = soundfile.read(io.BytesIO(widgets.ogg(HIGH * 10, RATE)))
    assert rate == RATE and heard.shape == HIGH.shape
    assert np.argmax(np.abs(np.fft.rfft(heard))) == pytest.approx(3000 * len(HIGH) / RATE, abs=1)


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
    assert "All played +24 dB against the recording, alike" in fragment  # 0.8 / 0.05 = 16
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
    frames, sounds = [picture(0), picture(1)], [widgets.ogg(LOW), widgets.ogg(HIGH)]
    fragment = widgets.frame_player(
        frames, ["0", "1"], sounds=sounds, alts=["first", "</script>"], title="λ", start=1
    ).data
    data = script_data(fragment)
    assert data["labels"] == ["0", "1"] and len(set(data["pictures"])) == len(set(data["sounds"])) == 2
    assert data["alts"] == ["first", "</script>"] and fragment.count("</script>") == 1
    assert 'value="1" aria-valuetext="1"' in fragment and 'data-lm-suppress-shortcuts="true"' in fragment
    assert "http" not in re.sub(r"base64,[^\"]*", "", fragment)


def test_frame_player_ids_are_stable_and_its_own():
    def uid(title: str) -> str:
        sounds = [widgets.ogg(LOW), widgets.ogg(HIGH)]  # an OGG file differs each time
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
    first, _ = soundfile.read(io.BytesIO(frames["sounds"][0]))
    last, _ = soundfile.read(io.BytesIO(frames["sounds"][2]))
    peak_of = [np.argmax(np.abs(np.fft.rfft(x))) * RATE / len(x) for x in (first, last)]
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
