"""The downloader against a local server that cuts, lies, refuses and forgets."""

import functools
import hashlib
import io
import re
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
from test_notebooks import ROOT, cells

import osscl_lite as ol
from osscl_lite.data import download as module
from osscl_lite.data import load_clips, load_waveforms
from osscl_lite.data.download import ARCHIVES, Archive, download
from osscl_lite.errors import BadInput

LABELS = b"fan\nid_01_00000000.wav,normal_id_01_00000098.wav,0\nid_01_00000001.wav,anomaly_id_01_00000007.wav,1\n"
MEMBERS = {
    "dev_data_fan.zip": [
        "train/normal_id_00_00000000.wav",
        "test/normal_id_00_00000000.wav",
        "test/anomaly_id_00_00000000.wav",
    ],
    "eval_data_train_fan.zip": ["train/normal_id_01_00000000.wav"],
    "eval_data_test_fan.zip": ["test/id_01_00000000.wav", "test/id_01_00000001.wav"],
}


def sound(seed):
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(-20_000, 20_000, 16_000).astype(np.int16)
    soundfile.write(file, noise, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def packed(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, name = self.server, self.path.split("/")[-1].split("?")[0]
        asked = self.headers.get("Range")
        server.seen.append((self.command, name, asked))
        if self.command == "HEAD" and server.no_head:
            return self.send_error(405)
        if self.command == "GET" and server.refusals:
            code = server.refusals.pop(0)
            self.send_response(code)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if name not in server.files:
            return self.send_error(404)
        body, etag = server.files[name], server.etag
        start = 0
        if asked and not server.ignore_range and self.headers.get("If-Range", etag) == etag:
            start = int(re.match(r"bytes=(\d+)-", asked)[1])
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start or asked == "bytes=0-0" and not server.ignore_range else 200)
        if etag:
            self.send_header("ETag", etag)
        last = 0 if asked == "bytes=0-0" and not server.ignore_range else len(body) - 1
        said = start + 5 if server.wrong_range else start
        self.send_header("Content-Range", f"bytes {said}-{last}/{len(body)}")
        if server.no_length:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(last + 1 - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        part = body[start : last + 1]
        if name.endswith(".zip") and last and server.wrong_bytes:
            server.wrong_bytes -= 1
            part = bytes(len(part))
        if name.endswith(".zip") and last and server.cuts:
            part = part[: server.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(part)
        self.wfile.flush()
        if server.hang and name.endswith(".zip") and last:
            server.hang.wait(30)
        return None


@pytest.fixture
def server(monkeypatch):
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *_: None
    httpd.seen, httpd.cuts, httpd.refusals, httpd.etag = [], [], [], '"one"'
    httpd.ignore_range = httpd.no_head = httpd.wrong_range = httpd.no_length = False
    httpd.wrong_bytes, httpd.hang = 0, None
    names = [(name, f"fan/{member}") for name, members in MEMBERS.items() for member in members]
    sounds = {key: sound(seed) for seed, key in enumerate(names)}
    httpd.sounds = {member: content for (_, member), content in sounds.items()}
    httpd.files = {n: packed({m: c for (of, m), c in sounds.items() if of == n}) for n in MEMBERS}
    httpd.files["eval_data_list.csv"] = LABELS
    offer(httpd, monkeypatch)
    for name, value in {"LABEL_ROWS": 2, "WAIT": 0.0, "TRIES": 3, "PROGRESS": 20_000, "BLOCK": 4_096}.items():
        monkeypatch.setattr(module, name, value)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}/records"
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def offer(httpd, monkeypatch):
    """Let the table hold the archives that the server has, with their checksums."""
    table = [
        Archive("fan", "1", name, hashlib.md5(httpd.files[name]).hexdigest(), name.split("_data")[0] + "_data", 3)
        for name in MEMBERS
    ]
    monkeypatch.setattr(module, "ARCHIVES", table)


def tree(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.wav"))}


def expected(server):
    folders = {name: name.split("_data")[0] + "_data" for name in MEMBERS}
    return {
        f"{folders[name]}/fan/{member}": server.sounds[f"fan/{member}"]
        for name, members in MEMBERS.items()
        for member in members
    }


def ranges(server, name="dev_data_fan.zip"):
    return [asked for command, of, asked in server.seen if command == "GET" and of == name]


def line(server, out, types=("fan",)):
    with pytest.raises(BadInput) as caught:
        download(types, out, server.url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_table_has_the_eighteen_official_archives():
    assert len(ARCHIVES) == len({archive.md5 for archive in ARCHIVES}) == 18
    assert all(re.fullmatch("[0-9a-f]{32}", archive.md5) for archive in ARCHIVES)
    wanted = next(archive for archive in ARCHIVES if archive.name == "eval_data_train_ToyConveyor.zip")
    assert (wanted.record, wanted.folder, wanted.md5[:6]) == ("3727685", "eval_data", "0e808a")
    assert module._url(module.BASE_URL, wanted) == (
        "https://zenodo.org/records/3727685/files/eval_data_train_ToyConveyor.zip?download=1"
    )
    development = sum(archive.clips for archive in ARCHIVES if archive.folder == "dev_data")
    assert development == 20_119 + 10_868 and sum(archive.clips for archive in ARCHIVES) == 54_254
    assert sum(archive.unpacked for archive in ARCHIVES) == pytest.approx(17.7e9, rel=0.01)


def test_what_is_fetched_is_a_tree_that_reads_back(server, tmp_path, capsys):
    out = download(["fan"], tmp_path / "data", server.url)
    assert tree(out) == expected(server) and len(tree(out)) == 6
    clips = load_clips("dcase2020", root=out)
    assert clips["label"].tolist() == ["normal", "anomaly", "normal", "normal", "normal", "anomaly"]
    assert load_waveforms(clips, 1.0, cache=tmp_path / "cache").shape == (6, 16_000)
    assert sorted(path.name for path in (out / "downloads").iterdir()) == sorted(f"{name}.done" for name in MEMBERS)
    said = capsys.readouterr().out
    assert "to fetch: 0.000 GB; needed on disk: about" in said and "no checksum of it is known" in said


def test_a_second_run_does_nothing(server, tmp_path, capsys):
    download(["all"], tmp_path, server.url)
    server.seen.clear()
    download(["fan"], tmp_path, server.url)
    assert server.seen == [] and "everything is there" in capsys.readouterr().out
    (tmp_path / "eval_data/fan/train/normal_id_01_00000000.wav").unlink()
    download(["fan"], tmp_path, server.url)  # only the archive with the missing file
    assert {name for _, name, _ in server.seen} == {"eval_data_train_fan.zip"} and tree(tmp_path) == expected(server)


def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path):
    server.cuts = [28_672, 12_288, 24_576, 5_000]
    download(["fan"], tmp_path, server.url)
    assert tree(tmp_path) == expected(server)
    assert ranges(server) == [None, "bytes=28672-", "bytes=40960-", "bytes=65536-", "bytes=69632-"]


def test_a_connection_that_brings_nothing_new_is_given_up(server, tmp_path):
    server.cuts = [28_672, 0, 0, 0]
    assert "failed 3 times in a row" in line(server, tmp_path)
    assert (tmp_path / "downloads" / "dev_data_fan.zip.part").stat().st_size == 28_672
    server.cuts, server.seen = [], []
    download(["fan"], tmp_path, server.url)
    assert ranges(server) == ["bytes=28672-"] and tree(tmp_path) == expected(server)


def test_a_server_that_ignores_range_starts_again(server, tmp_path):
    server.ignore_range, server.cuts = True, [28_672, 50_000]
    download(["fan"], tmp_path, server.url)
    assert tree(tmp_path) == expected(server)


def test_a_file_that_changed_in_between_starts_again(server, tmp_path, monkeypatch):
    server.cuts = [28_672, 0, 0, 0]
    line(server, tmp_path)
    server.files["dev_data_fan.zip"] = b"\0\0" + server.files["dev_data_fan.zip"]
    server.etag, server.cuts, server.seen = '"two"', [], []
    offer(server, monkeypatch)
    download(["fan"], tmp_path, server.url)
    assert ranges(server) == ["bytes=28672-"] and tree(tmp_path) == expected(server)  # answered by the whole file


def test_a_wrong_range_is_not_glued_on(server, tmp_path):
    server.wrong_range, server.cuts = True, [28_672]
    download(["fan"], tmp_path, server.url)
    assert ranges(server) == [None, "bytes=28672-", None] and tree(tmp_path) == expected(server)


def test_wrong_bytes_are_fetched_once_more_then_given_up(server, tmp_path):
    server.wrong_bytes = 1
    download(["fan"], tmp_path / "a", server.url)
    assert tree(tmp_path / "a") == expected(server)
    server.wrong_bytes = 2
    assert "its md5 is" in line(server, tmp_path / "b") and tree(tmp_path / "b") == {}
    assert list((tmp_path / "b").rglob("*.zip.part")) == []


def test_a_foreign_part_is_replaced(server, tmp_path):
    (tmp_path / "downloads").mkdir()
    for size in (1_000, len(server.files["dev_data_fan.zip"]), 10**6):
        (tmp_path / "downloads" / "dev_data_fan.zip.part").write_bytes(bytes(size))
        download(["fan"], tmp_path, server.url)
        assert tree(tmp_path) == expected(server)
        (tmp_path / "downloads" / "dev_data_fan.zip.done").unlink()


@pytest.mark.parametrize("codes", [[503, 500], [429], [416]])
def test_a_busy_server_is_asked_again(server, tmp_path, codes):
    server.refusals = codes
    download(["fan"], tmp_path, server.url)
    assert tree(tmp_path) == expected(server)


def test_addresses_that_lead_nowhere(server, tmp_path):
    server.refusals = [503] * 3
    assert "failed 3 times in a row (the server answered 503)" in line(server, tmp_path)
    del server.files["eval_data_test_fan.zip"]
    assert "eval_data_test_fan.zip?download=1: the server answered 404" in line(server, tmp_path)
    for url, said in [("http://127.0.0.1:9/x", "failed 3 times"), ("nowhere", "is no address")]:
        with pytest.raises(BadInput, match=said):
            download(["fan"], tmp_path, url)
    with pytest.raises(BadInput, match="'gearbox' is no machine type"):
        download(["fan", "gearbox"], tmp_path, server.url)


@pytest.mark.parametrize("quirk", ["no_head", "no_length"])
def test_a_server_that_tells_little_serves_too(server, tmp_path, quirk):
    setattr(server, quirk, True)
    download(["fan"], tmp_path, server.url)
    assert tree(tmp_path) == expected(server)


def test_the_disk_is_checked_before_anything_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000})())
    assert "free some disk" in line(server, tmp_path)
    assert all(command == "HEAD" for command, _, _ in server.seen)


@pytest.mark.parametrize(
    "name", ["../evil.wav", "/evil.wav", "fan/train/../../../evil.wav", "C:/evil.wav", "fan\\evil.wav"]
)
def test_no_path_leaves_the_folder(server, tmp_path, monkeypatch, name):
    server.files["dev_data_fan.zip"] = packed({"fan/train/normal_id_00_00000000.wav": b"x", name: b"evil"})
    offer(server, monkeypatch)
    assert "nothing unpacked" in line(server, tmp_path / "out")
    assert list(tmp_path.rglob("*.wav")) == []


def test_links_bombs_and_doubles_are_refused(server, tmp_path, monkeypatch):
    link = zipfile.ZipInfo("fan/train/normal_id_00_00000000.wav")
    link.external_attr = 0o120777 << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    bomb = packed({f"fan/train/normal_id_00_0000000{number}.wav": bytes(10**6) for number in range(3)})
    double = packed({"fan/train/normal_id_00_00000000.wav": b"x", "fan/train/Normal_id_00_00000000.wav": b"x"})
    other = packed({"pump/train/normal_id_00_00000000.wav": b"x"})
    for content, said in [
        (file.getvalue(), "link"),
        (bomb, "would unpack to"),
        (double, "double"),
        (other, "holds no fan"),
    ]:
        server.files["dev_data_fan.zip"] = content
        offer(server, monkeypatch)
        assert said in line(server, tmp_path) and tree(tmp_path) == {}
        (tmp_path / "downloads" / "dev_data_fan.zip.part").unlink()


def test_an_archive_that_lies_about_its_sizes_or_is_damaged(server, tmp_path, monkeypatch):
    honest = packed({"fan/train/normal_id_00_00000000.wav": bytes(500_000)})
    lie = honest.replace((500_000).to_bytes(4, "little"), (50).to_bytes(4, "little"))
    assert lie != honest
    for content in (
        lie,
        honest[:-30],
        b"PK no archive",
        server.files["dev_data_fan.zip"].replace(b"fan/test", b"fan/tesT", 1),
    ):
        server.files["dev_data_fan.zip"] = content
        offer(server, monkeypatch)
        assert "is a damaged archive" in line(server, tmp_path)
        assert sum(len(content) for content in tree(tmp_path).values()) < 200_000
        (tmp_path / "downloads" / "dev_data_fan.zip.part").unlink()


def test_harmless_extras_are_left_out(server, tmp_path, monkeypatch, capsys):
    members = {name: content for name, content in server.sounds.items() if "id_00" in name}
    server.files["dev_data_fan.zip"] = packed(
        members | {"fan/": b"", "fan/notes.txt": b"x", "__MACOSX/fan/._a.wav": b"x"}
    )
    offer(server, monkeypatch)
    download(["fan"], tmp_path, server.url)
    assert tree(tmp_path) == expected(server) and not list(tmp_path.rglob("notes.txt"))


def test_labels_of_the_wrong_shape_are_refused(server, tmp_path):
    for content, said in [(LABELS + LABELS[4:50], "line 4"), (LABELS[:50], "has 1 rows, not 2"), (b"<html>", "line 1")]:
        server.files["eval_data_list.csv"] = content
        assert said in line(server, tmp_path)
        assert not (tmp_path / "eval_data_list.csv").exists()
    (tmp_path / "eval_data_list.csv").write_bytes(LABELS[:30])  # damaged here: fetched again
    server.files["eval_data_list.csv"] = LABELS
    download(["fan"], tmp_path, server.url)
    assert (tmp_path / "eval_data_list.csv").read_bytes() == LABELS


def test_stopped_at_any_step_of_unpacking_it_goes_on(server, tmp_path, monkeypatch):
    replace, steps = module.os.replace, []

    def stop(source, target):
        steps.append(target)
        if len(steps) % 3 == 0:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", stop)
    for _ in range(99):
        try:
            download(["fan"], tmp_path, server.url)
        except KeyboardInterrupt:
            assert tree(tmp_path).items() <= expected(server).items()
            monkeypatch.setattr(module.os, "replace", stop if len(steps) < 9 else replace)
        else:
            break
    assert tree(tmp_path) == expected(server) and len(steps) == 9


CALL = """
import sys
from osscl_lite.data import download as module
module.ARCHIVES = [module.Archive(*row) for row in {rows!r}]
module.LABEL_ROWS, module.BLOCK = 2, 4096
module.download(["fan"], sys.argv[1], sys.argv[2])
"""


def test_killed_in_the_middle_it_goes_on(server, tmp_path):
    rows = [(a.machine_type, a.record, a.name, a.md5, a.folder, a.clips) for a in module.ARCHIVES]
    server.cuts, server.hang = [40_000], threading.Event()
    part = tmp_path / "downloads" / "dev_data_fan.zip.part"
    call = subprocess.Popen([sys.executable, "-c", CALL.format(rows=rows), str(tmp_path), server.url])
    for _ in range(3_000):
        if part.exists() and part.stat().st_size >= 36_864:
            break
        threading.Event().wait(0.01)
    call.kill()
    call.wait()
    server.hang.set()
    server.hang = None
    here = part.stat().st_size
    assert 36_864 <= here <= 40_000 and tree(tmp_path) == {}
    server.seen.clear()
    download(["fan"], tmp_path, server.url)
    assert ranges(server) == [f"bytes={here}-"] and tree(tmp_path) == expected(server)


def test_the_cell_of_chapter_5_fetches_a_machine_type_and_the_training_goes_on_with_it(server, tmp_path, monkeypatch):
    for name, number in (("dev_data_fan.zip", 0), ("eval_data_train_fan.zip", 1)):
        members = [member for member in MEMBERS[name] if member.startswith("test/")]
        members += [f"train/normal_id_0{number}_{row:08d}.wav" for row in range(8)]
        server.files[name] = packed({f"fan/{member}": sound(row) for row, member in enumerate(members)})
    offer(server, monkeypatch)
    monkeypatch.setattr(module, "ARCHIVES", [Archive(*(*vars(one).values(),)[:-1], 10) for one in module.ARCHIVES])
    monkeypatch.setattr(module, "download", functools.partial(download, base_url=server.url))
    monkeypatch.chdir(tmp_path)
    fetch, start = [
        cell["source"]
        for cell in cells(ROOT / "book" / "05_training.ipynb", "code")
        if re.search(r"^(root|recipe) = ", cell["source"], re.MULTILINE)
    ]
    assert 'real = ""' in fetch and "size = " in start
    namespace: dict = {}
    exec(fetch.replace('real = ""', 'real = "fan"'), namespace)
    exec(re.sub(r"^size = .+$", 'size = "tiny"', start, flags=re.MULTILINE), namespace)
    clips = namespace["clips"]
    assert set(clips["machine_id"]) == {"id_00", "id_01"} and clips["path"].str.startswith(str(tmp_path)).all()
    recipe = ol.replace(namespace["recipe"], seconds=1.0, width=8, epochs=1, batch_size=8)
    model = ol.fit(recipe, clips, out=tmp_path / "run", progress=False)
    assert model.machines == ["fan/id_00", "fan/id_01"] and np.isfinite(model.score_clips(clips)).all()


def test_chapter_5_tells_the_size_of_its_download():
    disk = sum(archive.unpacked for archive in ARCHIVES if archive.machine_type == "pump") / 1e9
    number = sum(archive.clips for archive in ARCHIVES if archive.machine_type == "pump")
    text = (ROOT / "book" / "05_training.ipynb").read_text(encoding="utf-8")
    assert f"about {round(number, -2):,} clips of 10 s, {disk:.1f} GB" in text and f"recordings, {disk:.1f} GB" in text
