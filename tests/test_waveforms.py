"""WAV files good and bad, the cache, batches by index."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osscl_lite.data import waveforms as module
from osscl_lite.data.waveforms import (
    fingerprint,
    hall_version,
    load_waveforms,
    read_wav,
    take,
    training_clips,
)
from osscl_lite.errors import BadClips, BadInput


def tone(samples, level=0.25):
    return level * np.sin(2 * np.pi * 440 / 16_000 * np.arange(samples))


def write(path, wave, rate=16_000, subtype="PCM_16", **options):
    soundfile.write(path, wave, rate, subtype=subtype, **options)
    return path


def table(*paths):
    rows = {"path": [str(path) for path in paths], "machine_type": "fan", "machine_id": "id_00", "split": "test"}
    return pd.DataFrame(rows | {"dataset": "development", "label": "normal"})


def line(path, samples=16_000):
    with pytest.raises(BadInput) as caught:
        read_wav(path, samples)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_sixteen_bits_come_back_as_they_are(tmp_path):
    wave = np.random.default_rng(0).integers(-32768, 32768, 20_000).astype(np.int16)
    path = write(tmp_path / "a.wav", wave)
    assert np.array_equal(read_wav(path, None), wave) and read_wav(path, None).dtype == np.int16
    assert np.array_equal(read_wav(path, 16_000), wave[:16_000])


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_other_sample_formats_are_converted(tmp_path, subtype):
    wave = tone(16_000)
    got = read_wav(write(tmp_path / "a.wav", wave, subtype=subtype), 16_000)
    assert np.abs(got / 32768 - wave).max() < (1.01 / 128 if subtype == "PCM_U8" else 1.01 / 32768)


def test_float_samples_reach_full_scale_and_no_further(tmp_path):
    path = write(tmp_path / "a.wav", np.array([-1.0, 0.0, 1.0, 0.5]), subtype="FLOAT")
    assert read_wav(path, None).tolist() == [-32768, 0, 32767, 16384]
    assert "float samples reach 1.5" in line(write(tmp_path / "b.wav", np.array([1.5, 0.0]), subtype="FLOAT"), None)


def test_nan_is_refused_where_it_would_be_used(tmp_path):
    wave = tone(32_000)
    wave[20_000] = np.nan
    path = write(tmp_path / "a.wav", wave, subtype="FLOAT")
    assert "1 samples that are NaN" in line(path, 32_000)
    assert len(read_wav(path, 16_000)) == 16_000
    assert "16000 samples that are NaN" in line(write(tmp_path / "b.wav", np.full(16_000, np.nan), subtype="FLOAT"))
    assert "infinite" in line(write(tmp_path / "c.wav", np.full(16_000, np.inf), subtype="DOUBLE"))


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "empty.wav").touch()
    assert "is empty (0 bytes)" in line(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("a list of things to do\n" * 99)
    assert "is not a WAV file" in line(tmp_path / "text.wav")
    write(tmp_path / "flac.wav", tone(16_000), format="FLAC")
    assert "is not a WAV file" in line(tmp_path / "flac.wav")
    assert "No such file" in line(tmp_path / "missing.wav")
    (tmp_path / "folder.wav").mkdir()
    assert "cannot be read" in line(tmp_path / "folder.wav")
    write(tmp_path / "silent.wav", np.zeros(0))
    assert "holds no samples" in line(tmp_path / "silent.wav")
    head = (tmp_path / "silent.wav").read_bytes()[:36]
    (tmp_path / "odd.wav").write_bytes(head[:20] + b"\x99\x99" + head[22:] + b"data\x04\x00\x00\x00\x00\x00\x00\x00")
    assert "cannot be read as WAV" in line(tmp_path / "odd.wav")


def test_channels_rate_and_length_are_named(tmp_path):
    assert "has 2 channels" in line(write(tmp_path / "s.wav", np.zeros((16_000, 2))))
    assert "44100 Hz, 16000 Hz are needed" in line(write(tmp_path / "r.wav", np.zeros(44_100), 44_100))
    short = line(write(tmp_path / "l.wav", np.zeros(48_000)), 160_000)
    assert "lasts 3.00 s, 10.00 s are needed" in short


@pytest.mark.parametrize("container", ["WAV", "RF64", "WAVEX"])
def test_a_cut_file_is_noticed_even_if_enough_is_left(tmp_path, container):
    path = write(tmp_path / "a.wav", tone(32_000), format=container)
    whole = path.read_bytes()
    assert len(read_wav(path, None)) == 32_000
    path.write_bytes(whole[: len(whole) - 16_000])
    assert "header promises 2.00 s and 1.50 s are there" in line(path)
    for end in (6, 20, 38):
        path.write_bytes(whole[:end])
        assert path.name in line(path)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), place=st.integers(0, 99), value=st.integers(0, 255))
def test_no_damage_gives_anything_but_sound_or_one_line(tmp_path_factory, cut, place, value):
    path = tmp_path_factory.mktemp("damage") / "a.wav"
    data = bytearray(write(path, tone(150)).read_bytes())
    data[min(place, len(data) - 1)] = value
    path.write_bytes(data[:cut])
    try:
        wave = read_wav(path, 100)
    except BadInput as error:
        assert "\n" not in str(error) and "a.wav" in str(error)
    else:
        assert wave.shape == (100,) and wave.dtype == np.int16


def test_sound_behind_other_chunks_is_found(tmp_path):
    path = write(tmp_path / "a.wav", tone(16_000))
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + b"LIST\x03\x00\x00\x00abc\x00" + whole[12:] + b"LIST\x02\x00\x00\x00ab")
    assert len(read_wav(path, None)) == 16_000


def test_the_array_has_the_rows_of_the_table_and_cannot_be_written(tmp_path):
    waves = np.random.default_rng(0).integers(-999, 999, (5, 1_600)).astype(np.int16)
    clips = table(*(write(tmp_path / f"{row}.wav", wave) for row, wave in enumerate(waves)))
    got = load_waveforms(clips.iloc[::-1], 0.05, cache=tmp_path / "cache")
    assert np.array_equal(got, waves[::-1, :800]) and isinstance(got, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        got[0, 0] = 1


def test_blocks_join_without_seam(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    waves = np.arange(5 * 160).reshape(5, 160).astype(np.int16)
    clips = table(*(write(tmp_path / f"{row}.wav", wave) for row, wave in enumerate(waves)))
    assert np.array_equal(load_waveforms(clips, 0.01, cache=tmp_path / "cache"), waves)


def test_every_bad_row_is_told_and_nothing_is_kept(tmp_path):
    good = write(tmp_path / "good.wav", tone(16_000))
    stereo = write(tmp_path / "stereo.wav", np.zeros((16_000, 2)))
    with pytest.raises(BadClips) as caught:
        load_waveforms(table(good, stereo, tmp_path / "gone.wav", good), 1.0, cache=tmp_path / "cache")
    assert set(caught.value.problems) == {1, 2}
    assert "2 channels" in caught.value.problems[1] and "No such file" in caught.value.problems[2]
    assert "\n" not in str(caught.value) and "1 more" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_generated_clips_and_files_stand_side_by_side(tmp_path):
    version = pytest.importorskip("osscl_lite.data.machines").HALL_VERSION
    made = f"hall://{version}/0/tiny/fan/test/normal_id_00_0000000%d.wav"
    path = write(tmp_path / "a.wav", tone(32_000))
    got = load_waveforms(table(made % 1, path, made % 0), 1.0, cache=tmp_path / "cache")
    assert got.shape == (3, 16_000) and np.array_equal(got[1], read_wav(path, 16_000))
    assert np.array_equal(got[[2]], load_waveforms(table(made % 0), 2.0, cache=tmp_path / "cache")[:, :16_000])
    with pytest.raises(BadClips) as caught:
        load_waveforms(table(path, made % 0, "hall://x/0/tiny/fan/test/normal_id_00_00000000.wav"), 2.0, cache=tmp_path)
    assert list(caught.value.problems) == [2]
    with pytest.raises(BadClips, match="lasts 2.00 s, 3.00 s are needed"):
        load_waveforms(table(made % 0, made % 1), 3.0, cache=tmp_path)


def test_the_cache_knows_a_changed_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", np.full(1_600, 7, np.int16))
    cache = tmp_path / "cache"
    load_waveforms(table(path), 0.1, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_wav", lambda *_: pytest.fail("read again though nothing changed"))
        assert load_waveforms(table(path), 0.1, cache=cache)[0, 0] == 7
    write(path, np.full(1_600, 8, np.int16))
    os.utime(path, ns=(0, 5))
    assert load_waveforms(table(path), 0.1, cache=cache)[0, 0] == 8
    before = len(list(cache.iterdir()))
    os.utime(path, ns=(0, 6))  # touched: same bytes, new identity
    load_waveforms(table(path), 0.1, cache=cache)
    load_waveforms(table(path), 0.05, cache=cache)
    assert len(list(cache.iterdir())) == before + 2


@pytest.mark.parametrize("damage", [b"", b"garbage", None, b"\x93NUMPY\x01\x00", b"PK\x05\x06" + bytes(18)])
def test_a_damaged_cache_file_is_made_again(tmp_path, damage):
    path = write(tmp_path / "a.wav", np.full(1_600, 7, np.int16))
    cache = tmp_path / "cache"
    load_waveforms(table(path), 0.1, cache=cache)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-2] if damage is None else damage)
    assert np.array_equal(load_waveforms(table(path), 0.1, cache=cache), np.full((1, 1_600), 7))


def test_the_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OSSCL_LITE_CACHE", str(tmp_path / "here"))
    load_waveforms(table(write(tmp_path / "a.wav", tone(1_600))), 0.1)
    assert len(list((tmp_path / "here").iterdir())) == 1


SLOW_WRITER = """
import sys, time
import numpy as np
from osscl_lite.data import waveforms
waveforms.CHUNK = 1
def slow(path, samples):
    print("row", flush=True)
    time.sleep(0.3)
    return np.zeros(samples, np.int16)
waveforms.read_wav = slow
import pandas as pd
waveforms.load_waveforms(pd.DataFrame({"path": sys.argv[2:]}), 0.1, cache=sys.argv[1])
"""


def test_a_killed_writer_leaves_nothing_half(tmp_path):
    paths = [str(write(tmp_path / f"{row}.wav", np.full(1_600, row, np.int16))) for row in range(9)]
    cache = tmp_path / "cache"
    writer = subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(cache), *paths], stdout=subprocess.PIPE)
    for _ in range(3):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL) if os.name == "posix" else writer.kill()
    writer.communicate()
    assert [path.suffix for path in cache.iterdir()] == [".part"]
    assert load_waveforms(table(*paths), 0.1, cache=cache)[:, 0].tolist() == list(range(9))
    for left in cache.glob("*.part"):
        os.utime(left, (time.time() - 2 * module.STALE,) * 2)
    load_waveforms(table(*paths[:2]), 0.1, cache=cache)
    assert list(cache.glob("*.part")) == [] and len(list(cache.iterdir())) == 2


def test_two_writers_at_once_do_no_harm(tmp_path, monkeypatch):
    clips = table(write(tmp_path / "a.wav", np.full(1_600, 7, np.int16)))
    read = module.read_wav

    def read_while_another_writes(path, samples):
        monkeypatch.setattr(module, "read_wav", read)
        assert load_waveforms(clips, 0.1, cache=tmp_path / "cache")[0, 0] == 7
        return read(path, samples)

    monkeypatch.setattr(module, "read_wav", read_while_another_writes)
    assert load_waveforms(clips, 0.1, cache=tmp_path / "cache")[0, 0] == 7
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    clips = table(write(tmp_path / "a.wav", tone(1_600)))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(BadInput, match="set OSSCL_LITE_CACHE"):
        load_waveforms(clips, 0.1, cache=tmp_path / "cache")


def test_what_cannot_be_asked_for(tmp_path):
    path = write(tmp_path / "a.wav", tone(1_600))
    for clips, seconds, said in [
        (table(path), 0, "above 0"),
        (table(), 1, "no rows"),
        (table("train.npz"), 1, "holds features"),
    ]:
        with pytest.raises(BadInput, match=said):
            load_waveforms(clips, seconds, cache=tmp_path / "cache")


def test_a_batch_is_rows_by_index(tmp_path):
    waves = np.random.default_rng(0).integers(-32768, 32768, (6, 160)).astype(np.int16)
    clips = table(*(write(tmp_path / f"{row}.wav", wave) for row, wave in enumerate(waves)))
    kept = load_waveforms(clips, 0.01, cache=tmp_path / "cache")
    wanted = torch.from_numpy(waves[[4, 0, 4]] / np.float32(32768))
    for source in (kept, torch.from_numpy(waves)):
        for index in (torch.tensor([4, 0, 4]), np.array([4, 0, 4])):
            batch = take(source, index, "cpu")
            assert batch.dtype == torch.float32 and torch.equal(batch, wanted)
    assert wanted.min() >= -1 and wanted.max() < 1


def test_the_fingerprint_is_the_data_set_s(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for row in range(3):
            write(tmp_path / folder / f"{row}.wav", tone(160 + row))
    first = table(*sorted((tmp_path / "a").iterdir()))
    moved = table(*sorted((tmp_path / "b").iterdir(), reverse=True))
    assert fingerprint(first) == fingerprint(moved) and len(fingerprint(first)) == 12
    others = [
        first.iloc[:2],
        first.assign(label="anomaly"),
        first.assign(machine_id="id_02"),
        first.assign(split="train"),
    ]
    write(tmp_path / "b" / "1.wav", tone(999))
    assert len({fingerprint(clips) for clips in [first, moved, *others]}) == 6
    with pytest.raises(BadInput, match="No such file"):
        fingerprint(table(tmp_path / "gone.wav"))
    hall = [table(f"hall://1/{seed}/tiny/fan/test/normal_id_00_00000000.wav") for seed in (0, 1)]
    assert fingerprint(hall[0]) != fingerprint(hall[1])


def test_a_training_sees_normal_training_clips_only():
    kinds = [(split, label) for split in ("test", "train") for label in ("anomaly", "normal", "unknown")]
    clips = table(*(f"{row}.wav" for row in range(12))).assign(
        split=[split for split, _ in kinds] * 2, label=[label for _, label in kinds] * 2
    )
    chosen = training_clips(clips)
    assert chosen["path"].tolist() == ["4.wav", "10.wav"] and chosen.index.tolist() == [0, 1]
    assert training_clips(chosen).equals(chosen) and training_clips(clips[:3]).empty


def test_clips_are_of_one_hall_or_of_none():
    first, again, second = (f"hall://{v}/0/tiny/fan/train/normal_id_00_00000000.wav" for v in ("1.0", "1.0", "2"))
    assert hall_version(table(first, again)) == hall_version(table(first, "a.wav")) == "1.0"
    assert hall_version(table(first, second)) is None and hall_version(table("a.wav", "b/hall/2/c.wav")) is None
