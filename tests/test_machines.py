"""The generated hall: counted, repeatable, real in level, with faults that are heard where their band says."""

import re

import numpy as np
import pandas as pd
import pytest

from osscl_lite.data import MACHINES, load_clips, load_waveforms
from osscl_lite.data import machines as hall
from osscl_lite.data.faults import BANDS, FAULTS
from osscl_lite.data.sounds import Draws
from osscl_lite.errors import BadInput

# Every 4000th sample of the first id_02 test clips of tiny, seed 0, in hall version 1.
PINNED = {
    "fan/normal": [78, -34, 109, -148, -451, -97, -32],
    "fan/anomaly": [-104, 215, 156, 303, -440, -303, -59],
    "pump/normal": [169, 109, -371, -365, -25, -174, 99],
    "pump/anomaly": [268, -64, 183, -230, 845, -26, 231],
    "slider/normal": [-60, 0, -163, -135, -109, 8, 77],
    "slider/anomaly": [1414, -2023, -1739, 1260, -139, 1633, -23],
    "ToyCar/normal": [45, -1058, 1322, 1057, -601, -883, 480],
    "ToyCar/anomaly": [-230, 131, -18, -214, 184, 111, -917],
    "ToyConveyor/normal": [-79, 66, 92, 236, 950, -343, 553],
    "ToyConveyor/anomaly": [-168, -324, -613, 339, -223, 364, 262],
    "valve/normal": [-280, -559, 33, -106, 100, 155, 36],
    "valve/anomaly": [-1253, 31, 28, -31, 49, -380, 38],
}


@pytest.fixture(scope="module")
def tiny() -> pd.DataFrame:
    return hall.hall_table("tiny", 0)


@pytest.fixture(scope="module")
def sample(tiny: pd.DataFrame) -> pd.DataFrame:
    """Four normal and four faulty test clips of three machines a type."""
    ids = tiny["machine_id"].isin(["id_01", "id_02", "id_04"]) & (tiny["split"] == "test")
    return tiny[ids].groupby(["machine_type", "machine_id", "label"]).head(4).reset_index(drop=True)


@pytest.fixture(scope="module")
def waves(sample: pd.DataFrame) -> np.ndarray:
    return hall.synthesise(sample)


def decibel(waves: np.ndarray, low: float = 20, high: float = 8000) -> np.ndarray:
    """Level of each clip in a band, dBFS."""
    power = np.abs(np.fft.rfft(waves / 32768.0, axis=1)) ** 2
    f = np.fft.rfftfreq(waves.shape[1], 1 / 16_000)
    return 10 * np.log10(2 * power[:, (f >= low) & (f < high)].sum(1) / waves.shape[1] ** 2 + 1e-12)


@pytest.mark.parametrize(
    ("size", "train", "test"), [("tiny", 8 * 41, 20 * 41), ("book", 100 * 41, 40 * 41), ("paper", 36_283, 17_971)]
)
def test_sizes_have_the_promised_clips_and_the_41_machines(size: str, train: int, test: int) -> None:
    table = hall.hall_table(size, 1)
    assert list(table.columns) == [
        "path",
        "machine_type",
        "machine_id",
        "split",
        "dataset",
        "label",
        "fault",
        "severity",
        "band",
    ]
    assert (table["split"] == "train").sum() == train and (table["split"] == "test").sum() == test
    assert list(dict.fromkeys(table["machine_type"] + "/" + table["machine_id"])) == MACHINES
    assert table["path"].is_unique
    assert set(zip(table["split"], table["dataset"], strict=True)) == {
        ("train", "development"),
        ("test", "development"),
        ("train", "additional"),
        ("test", "evaluation"),
    }


def test_paper_size_has_the_challenges_test_clips() -> None:
    table = hall.hall_table("paper")
    test = table[table["split"] == "test"]
    assert test["dataset"].value_counts().to_dict() == {"development": 10_868, "evaluation": 7_103}
    fan = test[(test["machine_type"] == "fan") & (test["machine_id"] == "id_05")]
    assert fan["label"].value_counts().to_dict() == {"anomaly": 349, "normal": 109}


def test_faults_have_names_severities_and_bands() -> None:
    table = hall.hall_table("book")
    normal, faulty = table[table["label"] == "normal"], table[table["label"] == "anomaly"]
    assert (normal["fault"] == "").all() and (normal["severity"] == 0).all() and (normal["band"] == "").all()
    assert faulty["severity"].between(0, 1).all() and set(faulty["band"]) == set(BANDS)
    for kind, rows in faulty.groupby("machine_type"):
        names = {name for fault in rows["fault"] for name in fault.split("+")}
        assert names == {fault.name for fault in FAULTS[kind]}
        assert rows["fault"].str.contains("+", regex=False).any() == kind.startswith("Toy")
        assert abs(sum(fault.share for fault in FAULTS[kind]) - 1) < 1e-9


def test_a_clip_does_not_depend_on_its_batch_or_on_order(sample: pd.DataFrame, waves: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(len(sample))[:24]
    assert np.array_equal(hall.synthesise(sample.iloc[order]), waves[order])
    assert np.array_equal(hall.synthesise(sample.iloc[[5]])[0], waves[5])


def test_the_seed_draws_other_clips_of_the_same_machines(sample: pd.DataFrame, waves: np.ndarray) -> None:
    normal = (sample["label"] == "normal").to_numpy()
    other = hall.synthesise(sample[normal].assign(path=sample["path"].str.replace("/0/tiny/", "/7/tiny/", regex=False)))
    assert not (other == waves[normal]).all(1).any()
    own = (sample["machine_type"] + sample["machine_id"])[normal]
    levels = pd.DataFrame({"own": own, "a": decibel(waves[normal]), "b": decibel(other)}).groupby("own").mean()
    assert (levels["a"] - levels["b"]).abs().max() < 4


def test_no_clip_is_clipped_or_silent_and_levels_are_those_of_recordings(
    sample: pd.DataFrame, waves: np.ndarray
) -> None:
    assert waves.dtype == np.int16 and waves.shape == (len(sample), 32_000)
    assert np.abs(waves.astype(int)).max() < 32_767
    normal = sample["label"] == "normal"
    for kind, rows in sample[normal].groupby("machine_type"):
        low, high = (
            (-38, -28) if kind.startswith("Toy") else (-48, -35)
        )  # dBFS: MIMII -38 to -45, ToyADMOS -33, 3 dB either way
        level = decibel(waves[rows.index])
        assert low < level.mean() < high, (kind, level.mean())


def test_a_twin_differs_by_its_fault_only(sample: pd.DataFrame, waves: np.ndarray) -> None:
    twins = hall.twin(sample)
    assert set(twins["label"]) == {"normal"} and (twins["severity"] == 0).all()
    healthy = hall.synthesise(twins)
    faulty = (sample["label"] == "anomaly").to_numpy()
    assert np.array_equal(healthy[~faulty], waves[~faulty])
    assert (healthy[faulty] != waves[faulty]).any(1).all()
    assert hall.twin(twins)["path"].equals(twins["path"])


@pytest.mark.parametrize(
    "fault", ["worn bearing", "leakage", "steel ribbon", "object on belt", "bent shaft", "squeal", "rail damage"]
)
def test_a_fault_raises_its_band_above_the_twin(fault: str) -> None:
    table = hall.hall_table("book")
    rows = table[table["fault"] == fault].nlargest(6, "severity")
    gain = hall.synthesise(rows), hall.synthesise(hall.twin(rows))
    low, high = hall.BAND_HZ[rows["band"].iloc[0]]
    rise = decibel(gain[0], low, high) - decibel(gain[1], low, high)
    assert np.median(rise) > 2, rise


def test_a_written_hall_reads_back_as_the_same_table_and_samples(tmp_path, monkeypatch) -> None:
    few = (
        hall.hall_table("tiny", 3)
        .groupby(["machine_type", "machine_id", "split", "label"])
        .head(1)
        .reset_index(drop=True)
    )
    monkeypatch.setattr(hall, "hall_table", lambda size, seed: few)
    hall.write_hall("tiny", tmp_path / "hall", 3)
    back = load_clips("dcase2020", root=tmp_path / "hall")
    pd.testing.assert_frame_equal(back.drop(columns="path"), few.drop(columns="path"), check_dtype=False)
    assert np.array_equal(load_waveforms(back, 2.0, cache=tmp_path / "cache"), hall.synthesise(few))
    names = [path.rsplit("/", 1)[1] for path in back.loc[back["dataset"] == "evaluation", "path"]]
    assert all(re.fullmatch(r"id_\d\d_\d{8}\.wav", name) for name in names)


def test_evaluation_numbers_do_not_tell_the_label(tiny: pd.DataFrame) -> None:
    files = pd.Series(hall._tree(tiny, 0))
    rows = (tiny["dataset"] == "evaluation") & (tiny["machine_type"] == "fan") & (tiny["machine_id"] == "id_01")
    labels = tiny.loc[files[rows].sort_values().index, "label"].tolist()
    assert labels != sorted(labels) and labels != sorted(labels, reverse=True)


def test_an_interrupted_write_goes_on(tmp_path, monkeypatch) -> None:
    few = hall.hall_table("tiny", 0).iloc[:130]
    monkeypatch.setattr(hall, "hall_table", lambda size, seed: few)
    made, real = [], hall.synthesise

    def stops(clips: pd.DataFrame) -> np.ndarray:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(len(clips))
        return real(clips)

    monkeypatch.setattr(hall, "synthesise", stops)
    with pytest.raises(KeyboardInterrupt):
        hall.write_hall("tiny", tmp_path, 0)
    monkeypatch.setattr(hall, "synthesise", lambda clips: (made.append(len(clips)), real(clips))[1])
    hall.write_hall("tiny", tmp_path, 0)
    assert sum(made) == 130 and len(list(tmp_path.rglob("*.wav"))) == 130
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(BadInput, match="another hall"):
        hall.write_hall("book", tmp_path, 0)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("fan/train/normal_id_00_00000000.wav", "not a clip of the generated hall"),
        ("hall://old/0/tiny/fan/train/normal_id_00_00000000.wav", "belongs to hall version old"),
        (f"hall://{hall.HALL_VERSION}/0/huge/fan/train/normal_id_00_00000000.wav", "no hall has the size"),
        (f"hall://{hall.HALL_VERSION}/0/tiny/fan/train/normal_id_09_00000000.wav", "no machine fan/id_09"),
    ],
)
def test_a_bad_path_gives_one_line(path: str, line: str) -> None:
    with pytest.raises(BadInput, match=line) as caught:
        hall.synthesise(pd.DataFrame({"path": [path]}))
    assert "\n" not in str(caught.value)


def test_siblings_are_machines_of_one_type() -> None:
    pairs = hall.siblings()
    assert ("fan/id_00", "fan/id_02") in pairs and ("ToyCar/id_05", "ToyCar/id_06") in pairs
    assert all(a in MACHINES and b in MACHINES and a.split("/")[0] == b.split("/")[0] for a, b in pairs)


def test_the_random_numbers_are_those_of_the_version() -> None:
    draws = Draws(["a clip", "another"])
    assert draws.uniform(0, 1, 2)[0].tolist() == [0.3680611096267178, 0.9870304357497709]
    normal = Draws(["a clip"]).normal(200_000)
    assert abs(float(normal.mean())) < 0.01 and abs(float(normal.std()) - 1) < 0.01


def test_the_version_pins_the_samples(tiny: pd.DataFrame) -> None:
    """Another sound is another version. Rounding may move a sample by 1 on another platform."""
    rows = tiny[(tiny["machine_id"] == "id_02") & (tiny["split"] == "test")]
    rows = rows.groupby(["machine_type", "label"], sort=False).head(1)
    assert hall.HALL_VERSION == "1"
    for name, wave in zip(rows["machine_type"] + "/" + rows["label"], hall.synthesise(rows), strict=True):
        assert np.abs(wave[4000::4000].astype(int) - PINNED[name]).max() <= 1, name
