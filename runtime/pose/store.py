"""Pose sequences in files: `.npz` (numpy arrays in a zip) and `.json` (nested lists), never unpickled."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MotionError, OutputError
from .sequence import SHAPES, PoseSequence

FORMAT = 1
"""Version of the layout; a file of another one is refused rather than guessed at."""
_KEYS = {"format", "fps", "size", *SHAPES}
_MOST_BYTES = 2**30  # unpacked; some 700,000 frames
_DAMAGE = (
    ValueError,
    KeyError,
    EOFError,
    OSError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)
_REMEDY = "Give a .npz or .json file written by PoseSequence.save, or estimate the poses again."


def save(sequence: PoseSequence, path: str | os.PathLike[str]) -> None:
    """Write `sequence` to `path`, whose suffix (.npz or .json) names the form; `OutputError` if it cannot."""
    target = Path(path)
    pack = {".npz": _pack_npz, ".json": _pack_json}.get(target.suffix.lower())
    if pack is None:
        raise OutputError(
            f"{target} is neither .npz nor .json.",
            remedy="Name a pose file with one of these.",
            field="output",
        )
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            beside.write_bytes(pack(sequence))
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}.",
            remedy="Check the folder and the free space.",
            field="output",
        ) from error


def load(source: str | os.PathLike[str] | bytes) -> PoseSequence:
    """Read a pose file from a path or from its bytes; `MotionError` says what is wrong with it."""
    data, name = (source, "The pose data") if isinstance(source, bytes) else _read(source)
    if data[:2] == b"PK":
        values = _unpack_npz(data, name)
    elif data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        values = _unpack_json(data, name)
    else:
        raise MotionError(f"{name} is not a pose file.", remedy=_REMEDY, field="motion")
    _check_keys(values, name)
    del values["format"]
    try:
        return PoseSequence(**values)
    except MotionError as error:
        raise MotionError(f"{name}: {error.message}", remedy=error.remedy, field=error.field) from None


def _read(path: str | os.PathLike[str]) -> tuple[bytes, str]:
    try:
        return Path(path).read_bytes(), str(path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise MotionError(
            f"{os.fspath(path)!r} cannot be read: {reason}.", remedy="Check the path.", field="motion"
        ) from error


def _check_keys(values: dict[str, Any], name: str) -> None:
    missing, unknown = sorted(_KEYS - values.keys()), sorted(values.keys() - _KEYS)
    if missing or unknown:
        faults = [
            f"{what} {', '.join(keys)}"
            for what, keys in (("lacks", missing), ("has unknown", unknown))
            if keys
        ]
        raise MotionError(f"{name} {' and '.join(faults)}.", remedy=_REMEDY, field="motion")
    if values["format"] != FORMAT:
        raise MotionError(
            f"{name} has format {values['format']!r}; this version reads {FORMAT}.",
            remedy=_REMEDY,
            field="motion",
        )


def _pack_json(sequence: PoseSequence) -> bytes:
    arrays = {name: getattr(sequence, name).tolist() for name in SHAPES}
    values = {"format": FORMAT, "fps": sequence.fps, "size": sequence.size, **arrays}
    return json.dumps(values, allow_nan=False, separators=(",", ":")).encode()


def _unpack_json(data: bytes, name: str) -> dict[str, Any]:
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise MotionError(f"{name} is damaged JSON: {error}.", remedy=_REMEDY, field="motion") from error
    return dict(values)


def _pack_npz(sequence: PoseSequence) -> bytes:
    buffer = io.BytesIO()
    arrays = {name: getattr(sequence, name) for name in SHAPES}
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        format=np.int64(FORMAT),
        fps=np.float64(sequence.fps),
        size=np.array(sequence.size, np.int64),
        **arrays,
    )
    return buffer.getvalue()


def _unpack_npz(data: bytes, name: str) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _MOST_BYTES:
                raise ValueError("it unpacks to more than 1 GiB")
            read = {m.filename.removesuffix(".npy"): _array(archive.read(m), m.filename) for m in members}
    except _DAMAGE as error:
        raise MotionError(f"{name} is damaged: {error}.", remedy=_REMEDY, field="motion") from error
    return {key: value.tolist() if key in ("format", "fps", "size") else value for key, value in read.items()}


def _array(raw: bytes, member: str) -> np.ndarray[Any, Any]:
    """One .npy file. The header is compared with the bytes at hand before anything is allocated."""
    stream = io.BytesIO(raw)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{member} has an unknown version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"{member} holds {dtype}")
    flat = np.frombuffer(raw, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")
