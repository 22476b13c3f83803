"""Clips as one int16 array: read from WAV files or generated, cached, taken in batches. Explained in chapter 1.

What becomes of a file that is not 16-bit, 16 kHz, one channel:

- 8-, 24- and 32-bit samples are brought to 16 bits; float samples too, if all are finite and within [-1, 1].
- Another sampling rate, several channels, NaN or infinity, too few samples, a cut file and a file that is no WAV are
  refused, each with one line that says what to do. Nothing is resampled, mixed down or padded behind your back.
"""

import contextlib
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from contextvars import ContextVar
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import platformdirs
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from osscl_lite.errors import BadClips, BadInput

SAMPLE_RATE = 16_000  # Hz: what the challenge recorded, and what every front end here expects
CHUNK = 256  # clips read or generated at a time
LONG = 2_000  # from this many clips on, a progress bar on a terminal
STALE = 3_600.0  # seconds without a write after which a temporary file belongs to a writer that is gone
_cached: ContextVar[bool] = ContextVar("cached", default=True)


def _promised_bytes(path: Path) -> tuple[int, int]:
    """Bytes of sound that the header of a WAV file promises, and those that are there.

    soundfile reads a cut file to its end and says nothing, so the chunks are walked here.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if len(head) < 12 or head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
            raise BadInput(f"{path}: is not a WAV file (it begins with {head[:8]!r}): remove it or save it as WAV")
        long_size = None
        while len(chunk := file.read(8)) == 8:
            name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            if name == b"data":
                return (long_size if long_size and length == 0xFFFFFFFF else length), size - file.tell()
            if name == b"ds64":  # RF64 keeps sizes beyond 4 GiB here
                sizes = file.read(16)
                long_size = struct.unpack("<Q", sizes[8:])[0] if len(sizes) == 16 else None
                length -= len(sizes)
            file.seek(length + length % 2, os.SEEK_CUR)
    raise BadInput(f"{path}: is cut short, it ends within its header: copy or download it again")


def read_wav(path: str | Path, samples: int | None) -> np.ndarray:
    """The first samples of a 16 kHz WAV file of one channel. Explained in chapter 1.

    Args:
        path: the file.
        samples: how many; None for all there are.

    Returns:
        int16, (samples,). 32768 is full scale. Samples of more than 16 bits lose the lower ones; float samples are
        rounded.

    Raises:
        BadInput: one line for a file that is missing, empty, no WAV, cut short, of several channels, at another
            rate, not finite or beyond full scale (float samples), or shorter than asked.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise BadInput(f"{path}: is empty (0 bytes): copy or download it again")
        promised, there = _promised_bytes(path)
        with soundfile.SoundFile(path) as file:
            if file.channels != 1:
                raise BadInput(
                    f"{path}: has {file.channels} channels, one is needed: keep one, for example with"
                    " ffmpeg -i IN.wav -af 'pan=mono|c0=c0' OUT.wav"
                )
            if file.samplerate != SAMPLE_RATE:
                raise BadInput(
                    f"{path}: is sampled at {file.samplerate} Hz, {SAMPLE_RATE} Hz are needed: convert it, for"
                    f" example with ffmpeg -i IN.wav -ar {SAMPLE_RATE} OUT.wav"
                )
            if promised > there:
                bytes_a_second = there / file.frames * SAMPLE_RATE if file.frames else 2 * SAMPLE_RATE
                raise BadInput(
                    f"{path}: is cut short, its header promises {promised / bytes_a_second:.2f} s and"
                    f" {there / bytes_a_second:.2f} s are there: copy or download it again"
                )
            if file.frames == 0:
                raise BadInput(f"{path}: holds no samples: copy or download it again")
            if samples is not None and file.frames < samples:
                raise BadInput(
                    f"{path}: lasts {file.frames / SAMPLE_RATE:.2f} s, {samples / SAMPLE_RATE:.2f} s are needed:"
                    " leave it out or choose a recipe of shorter clips"
                )
            count = file.frames if samples is None else samples
            if file.subtype not in ("FLOAT", "DOUBLE"):
                wave = file.read(count, dtype="int16")
            else:
                wave = _float_to_int16(path, file.read(count, dtype="float64"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}): check the path and the rights") from None
    except soundfile.LibsndfileError as error:
        raise BadInput(f"{path}: cannot be read as WAV ({error.error_string}): copy or download it again") from None
    if len(wave) < count:
        raise BadInput(f"{path}: is cut short, {len(wave)} of {count} samples could be read: copy or download it again")
    return wave


def _float_to_int16(path: Path, wave: np.ndarray) -> np.ndarray:
    if not np.isfinite(wave).all():
        bad = np.count_nonzero(~np.isfinite(wave))
        raise BadInput(f"{path}: has {bad} samples that are NaN or infinite: leave it out or write it again")
    peak = np.abs(wave).max(initial=0.0)
    if peak > 1.0:
        raise BadInput(f"{path}: its float samples reach {peak:.3g}, full scale is 1: scale it to within [-1, 1]")
    return np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)


def load_waveforms(clips: pd.DataFrame, seconds: float, cache: str | Path | None = None) -> np.ndarray:
    """The first seconds of every clip as one array. Explained in chapter 1.

    WAV files are read, hall:// paths are generated. The result is kept in a cache file whose name is a hash of the
    length and of each clip's identity (path, size, time of last change; for the hall its path and version), so a
    changed file gives a new array. The file is written under another name and then renamed: a killed or a second
    writer leaves nothing half.

    Args:
        clips: rows of ``load_clips``, N of them.
        seconds: length to take of each, from its start.
        cache: the folder; default: environment variable OSSCL_LITE_CACHE, else the platform's cache folder.

    Returns:
        int16, (N, L) with L = seconds * 16000, a read-only memory map; row i is row i of the table. Within
        ``uncached`` an array in memory, unless the cache has it.

    Raises:
        BadClips: after all rows were looked at, with a line for each row that cannot be used.
        BadInput: for rows of features (they have no sound), a length that is not positive, a full disk.
    """
    samples = round(seconds * SAMPLE_RATE)
    if samples <= 0:
        raise BadInput(f"clips of {seconds} s cannot be loaded: give a length above 0")
    if len(clips) == 0:
        raise BadInput("the table of clips has no rows: choose at least one clip")
    key = blake2b(f"{samples}\n{SAMPLE_RATE}\n".encode(), digest_size=16)
    problems = {}
    for row, path in enumerate(clips["path"]):
        try:
            key.update(f"{_identity(path)}\n".encode())
        except BadInput as error:
            problems[row] = str(error)
    folder = Path(cache or os.environ.get("OSSCL_LITE_CACHE") or platformdirs.user_cache_dir("osscl_lite"))
    target = folder / f"waveforms-{key.hexdigest()}.npy"
    shape = (len(clips), samples)
    if not problems and (kept := _open(target, shape)) is not None:
        return kept
    if not _cached.get():
        waveforms = np.concatenate(list(_blocks(clips, samples, problems)))
        if problems:
            raise BadClips(problems)
        return waveforms
    try:
        _write(clips, samples, target, problems)
    except OSError as error:
        raise BadInput(
            f"{folder}: the cache cannot be written ({error.strerror or error}):"
            " free some disk or set OSSCL_LITE_CACHE to another folder"
        ) from None
    waveforms = _open(target, shape)
    if waveforms is None:
        raise BadInput(f"{target}: was written and cannot be read back: set OSSCL_LITE_CACHE to another folder")
    return waveforms


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Within it ``load_waveforms`` writes nothing to the disk: for tables that are read once, in parts."""
    before = _cached.set(False)
    try:
        yield
    finally:
        _cached.reset(before)


def _identity(path: str) -> str:
    if path.startswith("hall://"):
        from osscl_lite.data.machines import HALL_VERSION

        return f"{HALL_VERSION} {path}"
    if path.endswith(".npz"):
        raise BadInput(f"{path}: holds features, no sound: use load_features and a Log-Mel recipe")
    try:
        stat = os.stat(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}): check the path and the rights") from None
    return f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}"


def _open(target: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The cached array, or None where there is none or it is damaged."""
    try:
        kept = np.lib.format.open_memmap(target, mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return kept if kept.shape == shape and kept.dtype == np.int16 else None


def _write(clips: pd.DataFrame, samples: int, target: Path, problems: dict[int, str]) -> None:
    """Write the array of all clips under a temporary name, then rename it; raise BadClips if a row has a problem."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob("waveforms-*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
    need, free = 2 * samples * len(clips), shutil.disk_usage(target.parent).free
    if need > free:
        raise BadInput(
            f"{target.parent}: the waveforms need {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free:"
            " free some disk or set OSSCL_LITE_CACHE to another folder"
        )
    handle, name = tempfile.mkstemp(prefix=f"{target.stem}-", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            header = {"descr": "<i2", "fortran_order": False, "shape": (len(clips), samples)}
            np.lib.format.write_array_header_1_0(file, header)
            for block in _blocks(clips, samples, problems):
                file.write(block.astype("<i2", copy=False).tobytes())
            file.flush()
            os.fsync(file.fileno())
        if problems:
            raise BadClips(problems)
        try:
            os.replace(name, target)
        except PermissionError:  # Windows: another process has just made the same file and holds it open
            if not target.exists():
                raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _blocks(clips: pd.DataFrame, samples: int, problems: dict[int, str]) -> Iterator[np.ndarray]:
    """All clips in blocks of rows, int16 (<= CHUNK, samples); a row with a problem is silent and noted."""
    bar = tqdm(
        total=len(clips), desc="waveforms", unit="clip", mininterval=1.0, disable=None if len(clips) >= LONG else True
    )
    with bar:
        for start in range(0, len(clips), CHUNK):
            part = clips.iloc[start : start + CHUNK]
            block = np.zeros((len(part), samples), np.int16)
            hall = part["path"].str.startswith("hall://").to_numpy(bool)
            block[hall] = _made(part[hall], samples, start + np.flatnonzero(hall), problems)
            for row in np.flatnonzero(~hall):
                if start + row in problems:
                    continue
                try:
                    block[row] = read_wav(part["path"].iloc[row], samples)
                except BadInput as error:
                    problems[start + int(row)] = str(error)
            bar.update(len(part))
            yield block


def _made(clips: pd.DataFrame, samples: int, rows: np.ndarray, problems: dict[int, str]) -> np.ndarray:
    """Generated clips, int16 (n, samples); one by one if they fail together, so that each bad one is noted."""
    if len(clips) == 0:
        return np.zeros((0, samples), np.int16)
    from osscl_lite.data.machines import synthesise

    try:
        made = synthesise(clips)
        if made.shape[1] < samples:
            lasts, needed = made.shape[1] / SAMPLE_RATE, samples / SAMPLE_RATE
            path = clips["path"].iloc[0]
            raise BadInput(f"{path}: lasts {lasts:.2f} s, {needed:.2f} s are needed: choose a larger hall size")
        return made[:, :samples]
    except BadInput as error:
        if len(clips) == 1:
            problems[int(rows[0])] = str(error)
            return np.zeros((1, samples), np.int16)
    return np.concatenate([_made(clips.iloc[[row]], samples, rows[[row]], problems) for row in range(len(clips))])


def take(waveforms: np.ndarray | Tensor, indices: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """A batch of clips by row, with one vectorised index. Explained in chapter 1.

    Args:
        waveforms: int16, (N, L): the array of ``load_waveforms``, or a tensor of it on any device.
        indices: integers, (B,).
        device: where the batch is wanted.

    Returns:
        float32, (B, L), in [-1, 1), on device.
    """
    indices = torch.as_tensor(indices)
    if isinstance(waveforms, Tensor):
        batch = waveforms[indices.to(waveforms.device)]
    else:
        batch = torch.from_numpy(waveforms[indices.cpu().numpy()])
    return to_float(batch.to(device))


def to_float(sound: Tensor) -> Tensor:
    """int16 samples as float32 in [-1, 1), of any shape and on any device."""
    return sound.float() / 32768.0


def training_clips(clips: pd.DataFrame) -> pd.DataFrame:
    """The normal clips of split train, rows counted anew: all that a training may look at."""
    return clips[(clips["split"] == "train") & (clips["label"] == "normal")].reset_index(drop=True)


def hall_versions(clips: pd.DataFrame) -> set[str]:
    """The versions of the hall that the generated ones among the clips are of."""
    return {path.split("/")[2] for path in clips["path"] if path.startswith("hall://")}


def hall_version(clips: pd.DataFrame) -> str | None:
    """The version of the hall that the clips were generated by; None if they were not, or by several."""
    versions = hall_versions(clips)
    return versions.pop() if len(versions) == 1 else None


def fingerprint(clips: pd.DataFrame) -> str:
    """A short hash of a data set, the same wherever its folder lies and however its rows are ordered.

    It covers machine, split, label, and of each clip the file name and size (features: and the row in the file; hall:
    its whole path, which holds version, size and seed). Result files carry it.

    Returns:
        12 hexadecimal digits.

    Raises:
        BadInput: if a file is missing.
    """
    sizes: dict[str, str] = {}
    for path in clips["path"].unique():
        if path.startswith("hall://"):
            sizes[path] = path
            continue
        try:
            sizes[path] = f"{os.path.basename(path)} {os.path.getsize(path)}"
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror}): check the path and the rights") from None
    index = clips["index"] if "index" in clips else [""] * len(clips)
    columns = [clips[name] for name in ("machine_type", "machine_id", "split", "label")]
    columns += [clips["path"].map(sizes), index]
    lines = sorted(" ".join(map(str, row)) for row in zip(*columns, strict=True))
    return blake2b("\n".join(lines).encode(), digest_size=6).hexdigest()
