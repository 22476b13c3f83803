"""Files that are there whole or not at all, and the safetensors files that hold detectors and checkpoints."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from osscl_lite.errors import BadInput


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, flush it to the disk, then rename: a kill leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write named tensors and a JSON description as one safetensors file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(tensors, {"about": json.dumps(about, sort_keys=True)}))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write_tensors`` wrote.

    Args:
        path: the file.
        kind: what its description must call itself, "detector" or "checkpoint".

    Raises:
        BadInput: in one line, if the file is missing, is no safetensors file or is of another kind.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give the path of a {kind} that was saved as .safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"{path}: not a readable safetensors file ({error}); save the {kind} again") from None
    check_kind(path, about, kind)
    return tensors, about


def check_identity(path: Path, about: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse a checkpoint of another run.

    Args:
        path: the file; ``about``: its description, which holds an identity.
        identity: this run's, plain data by name.

    Raises:
        BadInput: in one line, naming what differs.
    """
    found, wanted = about.get("identity") or {}, json.loads(json.dumps(identity))
    if different := [key for key in wanted | found if found.get(key) != wanted.get(key)]:
        raise BadInput(f"{path}: from a run with another {', '.join(different)}; give another folder, or delete it")


def check_kind(path: Path, about: dict[str, Any], kind: str) -> None:
    """Refuse a file whose description calls itself something else.

    Raises:
        BadInput: in one line.
    """
    if about.get("kind") != kind:
        raise BadInput(f"{path}: holds a {about.get('kind', 'file of another program')}, not a {kind} of osscl_lite")


@contextmanager
def fitting(path: str | Path, what: str) -> Iterator[None]:
    """Within it a model is built from a file's description and takes the file's tensors.

    Args:
        path: the file.
        what: what its weights should fit, such as "AnoPatch".

    Raises:
        BadInput: in one line, if the description lacks something or the tensors are of another model.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"{path}: the weights do not fit {what} ({reason}); save it again") from None
