"""How arrays, tables, models and records are written and verified (floor 1).

Every file appears whole or not at all: it is written under a temporary name in its own
folder, flushed to the disk, then renamed. What a job leaves is sealed (`.<name>.sha256` beside
it) and verified by the jobs that read it. Tensors carry a SHA-256 over names, shapes, types, bytes
and metadata as well, verified on reading; nothing is ever unpickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from torch import Tensor


SEAL = ".sha256"
PATIENCE = 20
"""Seconds to wait for a lock."""
log = logging.getLogger("veil")


class ArtifactError(ValueError):
    """A file of the study that is damaged or not what it should be."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The extension stays last: some writers choose their format by it.
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON, naming the file if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON: {error}") from None


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with the SHA-256 of itself inside, so that damage is seen."""
    write_text(path, _sealed(value))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, or raise ArtifactError if any byte of it was altered."""
    try:
        text = path.read_bytes().decode()
        value = json.loads(text)
        value.pop("sha256")
        whole = text == _sealed(value)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path}: unreadable: {error}") from None
    if not whole:
        raise ArtifactError(f"{path}: checksum mismatch: the file was damaged or altered")
    return dict(value)


def _sealed(value: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return json.dumps({**value, "sha256": digest}, indent=2, allow_nan=False) + "\n"


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a TSV whole; missing values as `n/a`, as BIDS asks."""
    with whole(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", lineterminator="\n")


def read_table(path: Path) -> pd.DataFrame:
    """Read a TSV; identifiers (`participant_id`, ...) stay text, `n/a` is missing."""
    columns = (
        "participant_id", "split", "site", "image", "label", "region", "scan_sha256",
        "label_sha256",
    )  # fmt: skip
    text = dict.fromkeys(columns, str)
    return pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False, dtype=text)


def save_pairs(path: Path, pairs: np.ndarray) -> None:
    """Write image-label pairs, uint8 of shape (N, 2, H, W), as one .npy.

    Channel 0 is the image in 0..255, channel 1 the label in {0, 1}. A flat .npy opens
    instantly as a memory map and is the fastest store for random reads.
    """
    if pairs.dtype != np.uint8 or pairs.ndim != 4 or pairs.shape[1] != 2:
        raise ArtifactError(
            f"{path}: pairs of {pairs.dtype} {pairs.shape}; allowed is uint8 (N, 2, H, W)"
        )
    with whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, pairs)


def open_pairs(path: Path) -> np.ndarray:
    """Open image-label pairs as a read-only memory map, uint8 (N, 2, H, W)."""
    pairs: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if pairs.dtype != np.uint8 or pairs.ndim != 4 or pairs.shape[1] != 2:
        raise ArtifactError(
            f"{path}: holds {pairs.dtype} {pairs.shape}; allowed is uint8 (N, 2, H, W)"
        )
    return pairs


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as one safetensors file with a SHA-256 inside."""
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(meta), sort_keys=True)
    with whole(path) as temporary:
        # One key only: safetensors writes several in no fixed order, and files are compared.
        note = json.dumps({"meta": text, "sha256": _digest(held, text)})
        save_file(held, temporary, {"veil": note})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata, or raise ArtifactError if anything was altered."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("veil", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: unreadable: {error}") from None
    if header.get("sha256") != _digest(tensors, header.get("meta", "")):
        raise ArtifactError(f"{path}: checksum mismatch: the file was damaged or altered")
    return tensors, json.loads(header["meta"])


def check_stated(weights: Path, privacy: Path) -> None:
    """Raise ArtifactError unless `privacy` is the statement that was written with `weights`."""
    stated = read_sealed(privacy)["weights_sha256"]
    if file_hash(weights) != stated:
        raise ArtifactError(
            f"{weights}: {privacy} states the privacy of other weights "
            f"(weights_sha256: {stated}); allowed are the weights it was written with"
        )


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    import torch

    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path) -> None:
    """Write down what a finished file or folder holds, beside it."""
    write_text(_seal_of(path), _content_hash(path) + "\n")


def check_seal(path: Path) -> None:
    """Raise ArtifactError unless a file or folder is what was sealed; what has no seal passes."""
    try:
        sealed = _seal_of(path).read_bytes().strip()
    except FileNotFoundError:
        return
    if not re.fullmatch(rb"[0-9a-f]{64}", sealed):
        raise ArtifactError(
            f"{_seal_of(path)}: damaged; allowed: the SHA-256 of {path.name}. Restore it, or "
            f"delete both to have {path.name} made again"
        )
    if _content_hash(path) != sealed.decode():
        raise ArtifactError(
            f"{path}: its SHA-256 is not {sealed.decode()[:16]}... of {_seal_of(path).name}: "
            "damaged or edited since its job ended. Allowed is what the job left: restore it, or "
            "delete it to have it made again"
        )


def sealed_below(folder: Path) -> list[Path]:
    """Every file and folder below this one that was sealed, whether it is still there or not."""
    seals = folder.rglob(_seal_of(Path("*")).name)
    return sorted(path.with_name(path.name[1 : -len(SEAL)]) for path in seals)


def _seal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{SEAL}")


def _content_hash(path: Path) -> str:
    if not path.is_dir():
        return file_hash(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        # Hidden files are the workflow engine's, which marks a folder after its job.
        if file.is_file() and not file.name.startswith("."):
            digest.update(f"{file.relative_to(path)}\0{file_hash(file)}\n".encode())
    return digest.hexdigest()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock file, or raise ArtifactError if another process does.

    A driver that is killed leaves its jobs running: a second run beside one of them would write
    the same checkpoint. The system lets go of the lock when its holder dies; a network file system
    may need a while to notice that a node did, hence the patience. The file stays: if it were
    removed, two processes could hold two files of its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for attempt in range(PATIENCE + 1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == PATIENCE:
                    raise ArtifactError(
                        f"{path}: held by another process, which makes the same; allowed is "
                        f"one. End it (`fuser {path}` names it): the next run goes on from its "
                        "checkpoint"
                    ) from None
                time.sleep(1)
            except OSError as error:
                log.warning("%s: no locks here (%s): unguarded", path, error.strerror)
                break
        yield
