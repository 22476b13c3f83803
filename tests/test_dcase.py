"""A tree of small WAV files read back as a table: layouts, labels, names, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import soundfile

import osscl_lite.data as data
from osscl_lite.data.dcase import DEVELOPMENT, MACHINES, dcase_table, evaluation_labels
from osscl_lite.errors import BadInput

COLUMNS = ["path", "machine_type", "machine_id", "split", "dataset", "label"]
LABELS = (
    "fan\nid_01_00000000.wav,normal_id_01_00000098.wav,0\nid_01_00000001.wav,anomaly_id_01_00000007.wav,1\nToyCar\n"
)
LABELS += "id_05_00000000.wav,anomaly_id_05_00000100.wav,1\n"


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, np.full(160, len(name), np.int16), 16_000, subtype="PCM_16")


def challenge(root, development, additional, evaluation):
    write(
        root, f"{development}/fan/train/normal_id_00_00000000.wav", f"{development}/fan/test/anomaly_id_00_00000000.wav"
    )
    write(
        root, f"{development}/fan/test/normal_id_00_00000000.wav", f"{development}/valve/test/normal_id_06_00000001.wav"
    )
    write(root, f"{additional}/fan/train/normal_id_01_00000000.wav", f"{evaluation}/ToyCar/test/id_05_00000000.wav")
    write(root, *(f"{evaluation}/fan/test/id_01_0000000{number}.wav" for number in range(3)))


def line(root):
    with pytest.raises(BadInput) as caught:
        dcase_table(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_machines_are_the_challenge_s():
    assert len(MACHINES) == 41 and len(DEVELOPMENT) == 23 and DEVELOPMENT < set(MACHINES)
    assert [MACHINES.index(name) for name in ("fan/id_06", "pump/id_00", "ToyCar/id_01", "ToyConveyor/id_01")] == [
        6,
        7,
        21,
        28,
    ]
    assert MACHINES[34] == "valve/id_00" and MACHINES[40] == "valve/id_06"


LAYOUTS = [
    ("dev_data", "eval_data", "eval_data"),
    ("development", "additional_training", "evaluation"),
    (".", ".", "."),
    ("a/b/dev", "train_all", "x"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_table(tmp_path, layout):
    challenge(tmp_path, *layout)
    (tmp_path / "eval_data_list.csv").write_text(LABELS)
    table = data.load_clips("dcase2020", root=tmp_path)
    assert list(table.columns) == COLUMNS and list(table.index) == list(range(9))
    assert [tuple(row) for row in table[COLUMNS[1:]].to_numpy()] == [
        ("fan", "id_00", "train", "development", "normal"),
        ("fan", "id_00", "test", "development", "anomaly"),
        ("fan", "id_00", "test", "development", "normal"),
        ("fan", "id_01", "train", "additional", "normal"),
        ("fan", "id_01", "test", "evaluation", "normal"),
        ("fan", "id_01", "test", "evaluation", "anomaly"),
        ("fan", "id_01", "test", "evaluation", "unknown"),  # not in the list
        ("ToyCar", "id_05", "test", "evaluation", "anomaly"),
        ("valve", "id_06", "test", "development", "normal"),
    ]
    assert data.machine_names(table) == ["fan/id_00", "fan/id_01", "ToyCar/id_05", "valve/id_06"]
    assert data.load_waveforms(table, 0.01, cache=tmp_path / "cache").shape == (9, 160)


def test_labels_are_unknown_without_a_list_and_read_from_any_place(tmp_path):
    root = tmp_path / "data"
    challenge(root, "dev_data", "eval_data", "eval_data")

    def labels(folder):
        return dcase_table(folder).query("dataset == 'evaluation' and machine_type == 'fan'")["label"].tolist()

    assert labels(root) == ["unknown"] * 3
    for place in (root / "eval_data" / "eval_data_list.csv", tmp_path / "eval_data_list.csv"):
        place.write_text(LABELS)
        assert labels(root / "eval_data") == ["normal", "anomaly", "unknown"]
        place.unlink()
    (root / "lists").mkdir()
    (root / "lists" / "fan.csv").write_text(
        "\n".join(LABELS.splitlines()[1:3])
    )  # one file a type, no line with the type
    assert labels(root) == ["normal", "anomaly", "unknown"]


def test_the_nearest_list_has_the_last_word(tmp_path):
    write(tmp_path, "data/fan/test/id_01_00000000.wav")
    for place, name, flag in ((tmp_path, "normal", 0), (tmp_path / "data" / "fan", "anomaly", 1)):
        row = f"id_01_00000000.wav,{name}_id_01_00000098.wav,{flag}"
        (place / "eval_data_list.csv").write_text(f"fan\n{row}\n")
        assert dcase_table(tmp_path / "data")["label"].tolist() == [name]


def test_renamed_evaluation_clips_carry_their_label(tmp_path):
    write(tmp_path, "fan/test/normal_id_01_00000000.wav", "fan/test/anomaly_id_01_00000001.wav")
    table = dcase_table(tmp_path / "fan")
    assert table["label"].tolist() == ["anomaly", "normal"] and set(table["dataset"]) == {"evaluation"}


def test_a_part_of_the_tree_is_read_too(tmp_path):
    challenge(tmp_path, "dev_data", "eval_data", "eval_data")
    assert len(dcase_table(tmp_path / "dev_data" / "fan")) == 3
    assert len(dcase_table(tmp_path / "dev_data" / "fan" / "test")) == 2


def test_hidden_files_are_passed_over(tmp_path):
    write(
        tmp_path,
        "fan/train/normal_id_00_00000000.wav",
        "fan/train/._normal_id_00_00000000.wav",
        "__MACOSX/fan/train/x.wav",
    )
    assert len(dcase_table(tmp_path)) == 1


def test_another_year_is_named_as_such(tmp_path):
    write(tmp_path, "fan/train/section_00_source_train_normal_0040_m-n_X.wav")
    assert "DCASE 2021 or later" in line(tmp_path)
    write(tmp_path, "2023/bearing/train/section_00_source_train_normal_0742_vel_16_loc_A.wav")
    assert "DCASE 2021 or later" in line(tmp_path / "2023")


def test_what_is_no_challenge_folder_says_what_was_looked_for(tmp_path):
    assert "no such folder" in line(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "looked for TYPE/train/*.wav" in line(tmp_path / "empty")
    write(tmp_path, "gearbox/train/normal_id_00_00000000.wav")
    assert "ToyConveyor, valve; found" in line(tmp_path)
    assert "is not a folder" in line(tmp_path / "gearbox/train/normal_id_00_00000000.wav")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fan/train/recording 1.wav", "is not named as in DCASE 2020"),
        ("fan/train/normal_id_00_0000.wav", "is not named as in DCASE 2020"),
        ("fan/test/normal_id_07_00000000.wav", "fan has no id_07"),
        ("ToyCar/test/normal_id_00_00000000.wav", "(id_01 to id_07)"),
        ("fan/train/anomaly_id_00_00000000.wav", "training clips are normal"),
        ("fan/train/id_01_00000000.wav", "training clips are normal"),
    ],
)
def test_foreign_names_are_refused(tmp_path, name, said):
    write(tmp_path, "fan/train/normal_id_00_00000000.wav", name)
    text = line(tmp_path)
    assert said in text and str(tmp_path / name) in text


def test_a_clip_that_is_there_twice_is_refused(tmp_path):
    write(tmp_path, "dev_data/fan/test/normal_id_00_00000000.wav", "copy/fan/test/normal_id_00_00000000.wav")
    assert "there twice" in line(tmp_path)
    write(tmp_path, "e/fan/test/id_01_00000000.wav", "e/fan/test/normal_id_01_00000000.wav")  # renamed beside the first
    assert "there twice" in line(tmp_path / "e")
    write(tmp_path, "f/fan/test/anomaly_id_00_00000000.wav", "f/fan/test/normal_id_00_00000000.wav")
    assert len(dcase_table(tmp_path / "f")) == 2


@pytest.mark.parametrize(
    "bad",
    [
        "fan\nid_01_00000000.wav,anomaly_id_01_00000098.wav,0\n",  # the flag contradicts the name
        "id_01_00000000.wav,normal_id_01_00000000.wav,0\n",  # of what type?
        "fan\n" + 2 * "id_01_00000000.wav,normal_id_01_00000098.wav,0\n",  # twice
        "<html>\n",
    ],
)
def test_a_damaged_list_is_refused(tmp_path, bad):
    write(tmp_path, "fan/test/id_01_00000000.wav")
    (tmp_path / "eval_data_list.csv").write_text(bad)
    assert "eval_data_list.csv: line" in line(tmp_path)


def test_the_list_tolerates_a_byte_order_mark_and_padding(tmp_path):
    path = tmp_path / "eval_data_list.csv"
    path.write_text("\ufefffan,,\r\nid_01_00000000.wav,normal_id_01_00000098.wav,0\r\n\r\n", encoding="utf-8")
    assert evaluation_labels(path) == {("fan", "id_01_00000000.wav"): "normal"}


HALL = """file,order,fault,severity,band,version
dev_data/fan/train/normal_id_00_00000000.wav,2,,0.0,,1
dev_data/fan/test/normal_id_00_00000000.wav,1,,0.0,,1
dev_data/fan/test/anomaly_id_00_00000000.wav,0,blade crack,0.123,below 1 kHz,1
dev_data/valve/test/normal_id_06_00000001.wav,3,,0.0,,1
"""


def test_a_written_hall_has_its_faults_and_its_order(tmp_path):
    root = tmp_path / "hall"
    challenge(root, "dev_data", "../rest", "../rest")
    (root / "hall.csv").write_text(HALL)
    table = dcase_table(root)
    assert list(table.columns) == [*COLUMNS, "fault", "severity", "band"]
    assert table["machine_type"].tolist() == ["fan", "fan", "fan", "valve"]
    assert table["split"].tolist() == ["test", "test", "train", "test"]
    assert table["fault"].tolist() == ["blade crack", "", "", ""]
    assert table["severity"].tolist() == [0.123, 0.0, 0.0, 0.0]
    assert dcase_table(root / "dev_data" / "fan")["fault"].tolist() == ["blade crack", "", ""]


def test_a_hall_that_disagrees_with_its_list_is_refused(tmp_path):
    root = tmp_path / "hall"
    challenge(root, "dev_data", "../rest", "../rest")
    (root / "hall.csv").write_text(HALL)
    extra = "dev_data/fan/test/normal_id_00_00000009.wav"
    write(root, extra)
    assert "is not listed" in line(root)
    (root / extra).unlink()
    (root / "dev_data/fan/train/normal_id_00_00000000.wav").unlink()
    assert "which is not there (1 in all)" in line(root)
    for damaged in ("file,order\nx,1\n", "", HALL.replace("0.123", "much"), "<html>"):
        (root / "hall.csv").write_text(damaged)
        assert "hall.csv: is damaged" in line(root)


def test_the_hall_written_and_read_back_is_the_same(tmp_path, monkeypatch):
    machines = pytest.importorskip("osscl_lite.data.machines")
    monkeypatch.setitem(machines.SIZES, "tiny", machines.Size(2.0, 2, 1, 2))
    monkeypatch.setattr(machines, "MACHINES", ["fan/id_00", "fan/id_01", "valve/id_03"])
    machines.write_hall("tiny", tmp_path / "hall", seed=3)
    made, read = data.load_clips("hall", size="tiny", seed=3), data.load_clips("dcase2020", root=tmp_path / "hall")
    pd.testing.assert_frame_equal(made.drop(columns="path"), read.drop(columns="path"))
    waves = [data.load_waveforms(clips, 1.5, cache=tmp_path / "cache") for clips in (made, read)]
    assert np.array_equal(*waves) and waves[0].any()


def test_load_clips_asks_for_what_it_needs(tmp_path):
    for arguments, said in [
        ({"source": "dcase2021"}, "choose hall, dcase2020 or features"),
        ({"source": "dcase2020"}, "root=FOLDER"),
        ({"source": "hall", "root": tmp_path}, "source 'dcase2020'"),
    ]:
        with pytest.raises(BadInput, match=said):
            data.load_clips(**arguments)


def test_unknown_machines_come_last():
    table = pd.DataFrame({"machine_type": ["gear", "valve", "fan"], "machine_id": ["id_00", "id_00", "id_03"]})
    assert data.machine_names(table) == ["fan/id_03", "valve/id_00", "gear/id_00"]
