"""The official DCASE 2020 Task 2 archives: fetched, checked and unpacked. Explained in chapter 1.

``OUT/downloads`` holds what is under way: ``NAME.zip.part`` (continued by the next run) and ``NAME.zip.done`` (what was
unpacked; an archive with it is not fetched again while those files are there). An archive is deleted once it is
unpacked. A WAV file gets its name only when it is whole. One download at a time into one folder.
"""

# requests, not pooch: pooch checks and unpacks, but it cannot continue a file that was cut.
import hashlib
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from osscl_lite.data.dcase import LABEL_FILE, MACHINE_IDS, evaluation_labels
from osscl_lite.errors import BadInput
from osscl_lite.files import write_whole

BASE_URL = "https://zenodo.org/records"
TRIES = 8  # in a row, each without PROGRESS new bytes
PROGRESS = 1 << 20
WAIT = 1.0  # seconds before the second try; doubled each time, 60 at most
TIMEOUT = (15.0, 60.0)  # seconds to connect, seconds without a byte
BLOCK = 1 << 16  # bytes at a time; a cut loses at most so many
LABEL_RECORD, LABEL_ROWS = "3951620", 7103
CLIP_BYTES = {"ToyCar": 352_044}  # one clip of 11 s; the others last 10 s
DEFAULT_CLIP_BYTES = 320_044


@dataclass(frozen=True)
class Archive:
    """One official archive; it opens to ``<machine_type>/train`` and/or ``<machine_type>/test`` in folder."""

    machine_type: str
    record: str
    name: str
    md5: str
    folder: str
    clips: int  # about; to judge the disk it needs

    @property
    def unpacked(self) -> int:
        """Bytes it needs on disk, from the number of clips and their length."""
        return self.clips * CLIP_BYTES.get(self.machine_type, DEFAULT_CLIP_BYTES)


# Clips, then md5 (as the soundata project pins them) of dev_data (train + test), eval_data_train, eval_data_test. The
# four MIMII types share 10,164 additional training clips; how many of them each has is not known here.
_TABLE = {
    "fan": """5550 649bdfc06263ae7a838963f43b6641e6
        2541 567798854130c8019df8b664c095ed1e 1342 1eb9356a768cadfd0f2e59a5c57e578b""",
    "pump": """4205 90e7091ef722b7238a7f1009365779cd
        2541 4e33ae9c0db5cc88437675f5e317caee 777 23a8f8f924be218c69df67fe07360348""",
    "slider": """4094 da24a757719f0d94d5aa2d646bbfdc86
        2541 f84f186f4295fc23754abcdd1b0580a7 834 0193c769073840332ce3aad84b1ccaa2""",
    "ToyCar": """6459 4dec75ca8d9f666aa9e4c1894a740501
        3000 a5d4ccd498af70b04dd74b644b820006 1545 bea2bdd612f616be8f2b8eb087b32c7c""",
    "ToyConveyor": """6509 03b6aa1bfd09a39d53af0ba39f71fa91
        3000 0e808ac0b761e9fb13d5e0c65caff00d 1665 ccfcc9847c7d3404d7ee9d6d9e0b2ba2""",
    "valve": """4170 34d2672f55bb041589ef79c10dc89934
        2541 057cdd560caffb8305449541afd28c6d 940 f69c551d2088691050d20cccca9d631c""",
}
_RECORDS = (  # Zenodo record, start of the name, folder to unpack into
    ("3678171", "dev_data", "dev_data"),
    ("3727685", "eval_data_train", "eval_data"),
    ("3841772", "eval_data_test", "eval_data"),
)
ARCHIVES = [
    Archive(kind, record, f"{prefix}_{kind}.zip", md5, folder, int(clips))
    for kind, cells in _TABLE.items()
    for (record, prefix, folder), clips, md5 in zip(_RECORDS, cells.split()[::2], cells.split()[1::2], strict=True)
]


class _Again(Exception):
    """A failure that another try may mend. The text says what happened; wait, in seconds, is what the server asks."""

    def __init__(self, text: str, wait: float = 0.0):
        super().__init__(text)
        self.wait = wait


def download(types: Iterable[str], out: str | Path, base_url: str = BASE_URL) -> Path:
    """Fetch the archives of some machine types and the evaluation labels, and unpack them. Explained in chapter 1.

    It first says how much it will fetch and checks the free disk: what all archives unpack to, and the largest archive
    beside it. Interrupted at any moment, the same call goes on where it stopped; finished, it does nothing.

    Args:
        types: machine types ("fan", ...), or "all".
        out: the folder; it becomes a tree that ``load_clips("dcase2020", root=out)`` reads.
        base_url: where ``<record>/files/<name>`` is found.

    Returns:
        The folder.

    Raises:
        BadInput: an unknown type, too little disk, an address that does not exist, a server that keeps failing, a
            wrong checksum twice, an archive that is damaged or would write outside its folder.
    """
    out = Path(os.path.abspath(out))
    types = list(MACHINE_IDS) if "all" in (types := list(types)) else types
    if unknown := [kind for kind in types if kind not in MACHINE_IDS]:
        raise BadInput(f"{unknown[0]!r} is no machine type: choose from {', '.join(MACHINE_IDS)}, or all")
    wanted = [archive for archive in ARCHIVES if archive.machine_type in types]
    todo = [archive for archive in wanted if not _is_done(archive, out)]
    labels = out / LABEL_FILE
    if not todo and _are_labels(labels):
        print(f"{out}: everything is there already")
        return out
    try:
        (out / "downloads").mkdir(parents=True, exist_ok=True)
        with requests.Session() as session:
            session.headers["Accept-Encoding"] = "identity"
            _plan({archive: _retry(_size, session, _url(base_url, archive)) for archive in todo}, out)
            for archive in todo:
                part = _under_way(archive, out)
                _fetch(session, _url(base_url, archive), part, archive)
                _unpack(part, archive, out)
            if not _are_labels(labels):
                _fetch_labels(session, f"{base_url}/{LABEL_RECORD}/files/{LABEL_FILE}?download=1", labels)
        for archive in wanted:  # a run that was killed between the mark and this leaves its archive
            _under_way(archive, out).unlink(missing_ok=True)
    except OSError as error:
        text = error.strerror or error
        raise BadInput(f"{out}: cannot be written ({text}): free some disk or check the rights") from None
    return out


def _url(base_url: str, archive: Archive) -> str:
    return f"{base_url}/{archive.record}/files/{archive.name}?download=1"


def _under_way(archive: Archive, out: Path) -> Path:
    return out / "downloads" / f"{archive.name}.part"


def _plan(sizes: dict[Archive, int], out: Path) -> None:
    """Say what will be fetched, and stop if the disk is too small. A size of 0 is one that the server does not tell."""
    left = {}
    for archive, size in sizes.items():
        part = _under_way(archive, out)
        here = part.stat().st_size if part.exists() else 0
        left[archive] = max(0, (size or archive.unpacked) - here)
        told = f"{size / 1e9:.3f} GB" if size else f"size not told, at most {archive.unpacked / 1e9:.3f} GB"
        print(f"{archive.name}: {told}" + (f", {here / 1e9:.3f} GB of it here already" if here else ""))
    need = sum(archive.unpacked for archive in sizes) + max(left.values(), default=0)
    free = shutil.disk_usage(out).free
    fetch = sum(left.values())
    print(f"to fetch: {fetch / 1e9:.3f} GB; needed on disk: about {need / 1e9:.1f} GB; free: {free / 1e9:.1f} GB")
    if need > free:
        raise BadInput(
            f"{out}: about {need / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free:"
            " free some disk, choose another folder or fewer types"
        )


def _retry(step, session: requests.Session, url: str, *args):
    """Call step until it succeeds; a failure counts only if it brought less than PROGRESS new bytes."""
    failures, seen = 0, 0
    while True:
        try:
            return step(session, url, *args)
        except (requests.exceptions.RequestException, _Again) as error:
            if isinstance(error, ValueError):  # requests: an address that is none
                raise BadInput(f"{url}: is no address ({error}): check it") from None
            part = args[0] if args and isinstance(args[0], Path) else None
            size = part.stat().st_size if part and part.exists() else 0
            failures, seen = (1, size) if size >= seen + PROGRESS else (failures + 1, seen)
            reason = str(error) if isinstance(error, _Again) else type(error).__name__
            if failures >= TRIES:
                raise BadInput(
                    f"{url}: failed {failures} times in a row ({reason}):"
                    " check the network and run the same command again, it goes on where it stopped"
                ) from None
            asked = error.wait if isinstance(error, _Again) else 0.0
            wait = min(60.0, max(asked, WAIT * 2 ** (failures - 1)))
            tqdm.write(f"{url}: {reason}; trying again in {wait:.0f} s")
            time.sleep(wait)


def _check_status(answer: requests.Response, url: str) -> None:
    code = answer.status_code
    if code == 429 or code >= 500:
        asked = answer.headers.get("Retry-After", "")
        raise _Again(f"the server answered {code}", float(asked) if asked.isdigit() else 0.0)
    if code not in (200, 206, 416):
        raise BadInput(f"{url}: the server answered {code}: check the address, and that the record is still there")


def _size(session: requests.Session, url: str) -> int:
    """Size in bytes, by HEAD, else by asking for one byte; 0 where the server does not tell."""
    answer = session.head(url, allow_redirects=True, timeout=TIMEOUT)
    if answer.status_code not in (403, 405, 501):  # some servers refuse HEAD alone
        _check_status(answer, url)
        if size := _length(answer):
            return size
    with session.get(url, headers={"Range": "bytes=0-0"}, stream=True, timeout=TIMEOUT) as answer:
        _check_status(answer, url)
        return max(0, _range(answer)[1]) if answer.status_code == 206 else _length(answer)


def _length(answer: requests.Response) -> int:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else 0


def _range(answer: requests.Response) -> tuple[int, int]:
    """(first byte, total size) of an answer 206; (-1, -1) where it does not say."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", "").strip())
    return (int(match[1]), int(match[2])) if match else (-1, -1)


def _fetch(session: requests.Session, url: str, part: Path, archive: Archive) -> None:
    """Fetch an archive into its .part file, going on from what is there, until its md5 is right; twice at most."""
    for attempt in (1, 2):
        if not part.exists() or _md5(part) != archive.md5:
            _retry(_continue, session, url, part, archive)
        if (found := _md5(part)) == archive.md5:
            return
        part.unlink()
        if attempt == 1:
            tqdm.write(f"{archive.name}: its md5 is {found}, not {archive.md5}; fetching it once more from the start")
    raise BadInput(f"{url}: its md5 is {found}, not {archive.md5}, twice: the file was removed; try again later")


def _continue(session: requests.Session, url: str, part: Path, archive: Archive) -> None:
    """One connection: append to the .part file what is missing, or start it again if the server wants it so."""
    tag = part.with_name(part.name + ".etag")  # which version of the file the part belongs to
    start = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and tag.exists():
        headers["If-Range"] = tag.read_text()
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        _check_status(answer, url)
        if answer.status_code == 416:  # nothing behind start: the file is complete or not ours, its md5 tells
            if start == 0:
                raise _Again("the server answered 416 to a plain request")
            return
        if answer.status_code == 206:
            first, size = _range(answer)
            if first != start:
                part.unlink(missing_ok=True)
                raise _Again(f"the server sent another part than was asked for (from byte {first}, not {start})")
        else:  # the whole file: the server ignores Range, or has another version
            start, size = 0, _length(answer)
        etag = answer.headers.get("ETag", "")
        tag.unlink(missing_ok=True)
        if etag.startswith('"'):  # a weak tag does not promise the same bytes
            tag.write_text(etag)
        limit = size or 2 * archive.unpacked
        bar = tqdm(total=size or None, initial=start, desc=archive.name, unit="B", unit_scale=True, mininterval=1.0)
        with bar, part.open("ab" if start else "wb") as file:
            for block in answer.iter_content(BLOCK):
                start += len(block)
                if start > limit:
                    break
                file.write(block)
                file.flush()
                bar.update(len(block))
    if start > limit:
        part.unlink()
        raise BadInput(f"{url}: sends more than the {limit} bytes it can have: check the address")
    if start < size:
        raise _Again(f"the connection was cut at {start} of {size} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _are_labels(path: Path) -> bool:
    try:
        return len(evaluation_labels(path)) == LABEL_ROWS
    except BadInput:
        return False


def _fetch_labels(session: requests.Session, url: str, labels: Path) -> None:
    """The evaluation labels: no checksum of them is known, so their shape is checked instead."""
    print(f"{LABEL_FILE}: no checksum of it is known; checking that it has {LABEL_ROWS} rows of the right shape")
    part = labels.parent / "downloads" / LABEL_FILE

    def get(session: requests.Session, url: str) -> bytes:
        answer = session.get(url, timeout=TIMEOUT)
        _check_status(answer, url)
        return answer.content

    part.write_bytes(_retry(get, session, url))
    rows = len(evaluation_labels(part))
    if rows != LABEL_ROWS:
        raise BadInput(f"{url}: has {rows} rows, not {LABEL_ROWS}: check the address and try again")
    os.replace(part, labels)


def _checked(archive: Archive, packed: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members to unpack. Refuses the whole archive if one would leave its folder or all are too large together."""
    good, seen, total = [], set(), 0
    wanted = re.compile(rf"{archive.machine_type}/(train|test)/[^/\\:]+\.(wav|csv)")
    for info in packed.infolist():
        name = info.filename
        parts = name.replace("\\", "/").split("/")
        unsafe = name.startswith("/") or "\\" in name or ":" in name or ".." in parts
        unsafe |= stat.S_ISLNK(info.external_attr >> 16) or bool(info.flag_bits & 1)
        if unsafe or name.lower() in seen:
            raise BadInput(f"{archive.name}: holds {name!r}, a path, link or double it must not have: nothing unpacked")
        seen.add(name.lower())
        if wanted.fullmatch(name) and not parts[-1].startswith("."):
            total += info.file_size
            good.append(info)
        elif not info.is_dir():
            tqdm.write(f"{archive.name}: {name!r} is not of the data set, left out")
    if total > 2 * archive.unpacked:
        expected = f"{archive.unpacked / 1e9:.1f} GB were expected"
        raise BadInput(f"{archive.name}: would unpack to {total / 1e9:.1f} GB, {expected}: nothing unpacked")
    if not good:
        raise BadInput(f"{archive.name}: holds no {archive.machine_type}/train or /test: nothing unpacked")
    return good


def _unpack(part: Path, archive: Archive, out: Path) -> None:
    """Unpack a whole archive, each member under another name first; then write the mark and delete the archive."""
    base, temporary = out / archive.folder, part.with_name("unpacking.part")
    try:
        with zipfile.ZipFile(part) as packed:
            members = _checked(archive, packed)
            need, free = sum(info.file_size for info in members), shutil.disk_usage(out).free
            if need > free:
                room = f"{need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
                raise BadInput(f"{out}: {archive.name} needs {room}: free some disk")
            for info in tqdm(members, desc=f"unpacking {archive.name}", unit="file", mininterval=1.0):
                written = 0
                with packed.open(info) as source, temporary.open("wb") as file:
                    while block := source.read(BLOCK):
                        written += len(block)
                        if written > info.file_size:
                            raise BadInput(f"{archive.name}: {info.filename} is larger than it says: unpacking stopped")
                        file.write(block)
                target = base / info.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, target)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise BadInput(f"{part}: is a damaged archive ({error}): delete it and run the same command again") from None
    finally:
        temporary.unlink(missing_ok=True)
    lines = "".join(f"{info.file_size},{archive.folder}/{info.filename}\n" for info in members)
    write_whole(_mark(archive, out), lines.encode())
    part.unlink()
    part.with_name(part.name + ".etag").unlink(missing_ok=True)


def _mark(archive: Archive, out: Path) -> Path:
    return out / "downloads" / f"{archive.name}.done"


def _is_done(archive: Archive, out: Path) -> bool:
    """Whether the archive was unpacked here and every file of it is still there in its size."""
    mark = _mark(archive, out)
    if not mark.exists():
        return False
    for line in mark.read_text(encoding="utf-8").splitlines():
        size, _, name = line.partition(",")
        path = out / name
        if not path.is_file() or str(path.stat().st_size) != size:
            return False
    return True
