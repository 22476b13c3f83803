"""Folders of features in the two shapes that exist: Log-Mel with backgrounds, and another kind of picture."""

import numpy as np
import pandas as pd
import pytest

import osscl_lite.data as data
from osscl_lite.data.precomputed import features_table, load_features
from osscl_lite.data.waveforms import fingerprint, load_waveforms
from osscl_lite.errors import BadInput


def make(root, key="log_mel", shape=(8, 5), dtype=np.float16, **columns):
    """Two files of 4 and 3 clips; every value of clip i of a file is i, or 10 + i."""
    rows = []
    for split, count, base in (("train", 4, 0), ("test", 3, 10)):
        values = base + np.arange(count, dtype=dtype)
        np.savez(root / f"{split}.npz", **{key: np.tile(values[:, None, None], (1, *shape))})
        for index in range(count):
            label = "anomaly" if split == "test" and index else "normal"
            rows.append((f"{split}.npz", index, "ToyCar", f"id_0{index + 1}", split, label))
    clips = pd.DataFrame(rows, columns=["file", "index", "machine_type", "machine_id", "split", "label"]).assign(
        **columns
    )
    clips.to_csv(root / "clips.csv", index=False)
    return clips


def change(root, row, column, value):
    clips = pd.read_csv(root / "clips.csv", dtype=str)
    clips.loc[row, column] = value
    clips.to_csv(root / "clips.csv", index=False)


def line(call, *arguments):
    with pytest.raises(BadInput) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_table_has_the_columns_of_every_source(tmp_path):
    make(tmp_path, background=range(100, 107), source_name="x.bin")
    table = data.load_clips("features", root=tmp_path)
    common = ["path", "machine_type", "machine_id", "split", "dataset", "label"]
    assert list(table.columns) == [*common, "background", "index"]
    assert set(table["dataset"]) == {"development"} and table["background"].tolist() == list(range(100, 107))
    assert table["path"][0] == str(tmp_path / "train.npz") and table["index"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert data.machine_names(table) == ["ToyCar/id_01", "ToyCar/id_02", "ToyCar/id_03", "ToyCar/id_04"]


def test_machine_ids_and_data_sets_are_brought_to_one_form(tmp_path):
    make(tmp_path, machine_id=["1", "01", "id_1", "id_01", "ID_01", "4", "04"], dataset=["evaluation"] * 3 + [""] * 4)
    table = features_table(tmp_path)
    assert table["machine_id"].tolist() == ["id_01"] * 5 + ["id_04"] * 2
    assert table["dataset"].tolist() == ["evaluation"] * 3 + ["development"] * 4
    assert "background" not in table


@pytest.mark.parametrize(("key", "dtype"), [("log_mel", np.float16), ("features", np.float32), ("counts", np.int32)])
def test_rows_come_in_the_order_of_the_table(tmp_path, key, dtype):
    make(tmp_path, key, (60, 8), dtype)
    table = features_table(tmp_path).iloc[[6, 1, 4, 0]]
    values, kind = load_features(table)
    assert kind == key and values.shape == (4, 60, 8) and values.dtype == np.float32
    assert values[:, 0, 0].tolist() == [12, 1, 10, 0] and (values == values[:, :1, :1]).all()


def test_features_have_a_fingerprint_and_no_sound(tmp_path):
    make(tmp_path)
    table = features_table(tmp_path)
    assert fingerprint(table) == fingerprint(table.iloc[::-1]) != fingerprint(table.iloc[1:])
    assert "holds features, no sound" in line(load_waveforms, table, 1.0, tmp_path / "cache")
    assert "is sound" in line(load_features, table.drop(columns="index"))
    assert "no rows" in line(load_features, table.iloc[:0])


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("machine_id", "left", "line 3, machine_id must be"),
        ("machine_type", "", "machine_type must be"),
        ("split", "valid", "one of train, test"),
        ("dataset", "dev", "one of development, additional, evaluation"),
        ("label", "broken", "one of normal, anomaly, unknown"),
        ("label", "anomaly", "normal in split train"),
        ("index", "-1", "a whole number from 0"),
        ("index", "1.5", "a whole number from 0"),
        ("index", "0", "named once for each file"),
        ("background", "", "background must be"),
        ("file", "gone.npz", "no such file, though"),
    ],
)
def test_a_wrong_value_is_named_by_line(tmp_path, column, value, said):
    make(tmp_path, background=1, dataset="development")
    change(tmp_path, 1, column, value)
    assert said in line(features_table, tmp_path)


def test_the_list_itself_is_checked(tmp_path):
    assert "holds clips.csv" in line(features_table, tmp_path)
    (tmp_path / "clips.csv").write_text("")
    assert "cannot be read" in line(features_table, tmp_path)
    (tmp_path / "clips.csv").write_text("file,index,machine_id,split\n")
    assert "has no column machine_type, label" in line(features_table, tmp_path)
    (tmp_path / "clips.csv").write_text("file,index,machine_type,machine_id,split,label\n")
    assert "lists no clips" in line(features_table, tmp_path)


def test_a_row_out_of_range(tmp_path):
    make(tmp_path)
    change(tmp_path, 6, "index", "3")
    assert "holds 3 clips, row 3 is asked for" in line(load_features, features_table(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.zeros((3, 8, 5)), "b": np.zeros(1)}, "it has 2:"),
        ({}, "it has 0:"),
        ({"log_mel": np.zeros((3, 8, 6))}, "8 x 6, but"),
        ({"other": np.zeros((3, 8, 5))}, "holds other of"),
        ({"log_mel": np.zeros((3, 40))}, "(clips, bands, frames)"),
        ({"log_mel": np.zeros((3, 0, 5))}, "(clips, bands, frames)"),
        ({"log_mel": np.full((3, 8, 5), "x")}, "(clips, bands, frames)"),
        ({"log_mel": np.full((3, 8, 5), np.nan)}, "row 0 has NaN"),
        ({"log_mel": np.full((3, 8, 5), np.inf, np.float16)}, "row 0 has NaN"),
        ({"log_mel": np.full((3, 8, 5), None)}, "cannot be read as .npz"),
    ],
)
def test_arrays_that_cannot_serve(tmp_path, arrays, said):
    make(tmp_path)
    np.savez(tmp_path / "test.npz", **arrays)
    text = line(load_features, features_table(tmp_path))
    assert said in text and str(tmp_path / "test.npz") in text


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut", "npy", "cut", "damaged"])
def test_files_that_are_no_npz(tmp_path, content):
    make(tmp_path)
    path = tmp_path / "test.npz"
    if content == "npy":
        np.save(tmp_path / "x.npy", np.zeros((3, 8, 5)))
        content = (tmp_path / "x.npy").read_bytes()
    elif content == "cut":
        content = path.read_bytes()[:-40]
    elif content == "damaged":
        whole = path.read_bytes()
        content = whole[:250] + b"\x77\x77\x77" + whole[253:]
    path.write_bytes(content)
    assert str(path) in line(load_features, features_table(tmp_path))
