"""The keypoints of one person over time: what estimators give, files hold and drawing takes.

Files are `.npz` (numpy arrays in a zip) and `.json` (nested lists); nothing is ever unpickled.
"""

from __future__ import annotations

import io
import json
import math
import operator
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import LimitError, MotionError, OutputError
from ..files import motion_errors, output_errors, write_atomic
from ..limits import Limits, check_limit
from ..validation import described_clip

Floats = npt.NDArray[np.float32]

SHAPES: dict[str, tuple[int, ...]] = {
    "body": (18, 2),
    "body_score": (18,),
    "hands": (2, 21, 2),
    "hands_score": (2, 21),
    "face": (68, 2),
    "face_score": (68,),
}
"""Shape of one frame of each array."""

FORMAT = 1
"""Version of the layout; a file of another one is refused rather than guessed at."""
_KEYS = {"format", "fps", "size", *SHAPES}
_MEMBERS, _TEXTS, _DEPTH = 64, 64, 8
"""More arrays in an .npz, quotation marks in a JSON or lists in lists than any file of ours has (7, 18 and 5)."""
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SHOWN, _SHOWN_HEIGHT = 8, 160  # skeletons on the sheet in a notebook, and their pixels
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_REMEDY = "Give a .npz or .json file written by PoseSequence.save, or estimate the poses again."


@dataclass(frozen=True, slots=True, eq=False)
class PoseSequence:
    """Keypoints of one person in F >= 1 frames, checked and read-only.

    Coordinates are fractions of the picture's width (x) and height (y), y down; points outside the picture
    lie outside [0, 1]. Scores are confidences in [0, 1]; 0 means not seen.

    Raises `MotionError`, naming the array (and the frame and point), when a shape, a coordinate, a score, the
    frame rate or the size is wrong.
    """

    body: Floats
    """[F,18,2], OpenPose order: nose, neck, right shoulder, elbow, wrist, left shoulder, elbow, wrist,
    right hip, knee, ankle, left hip, knee, ankle, right eye, left eye, right ear, left ear."""
    body_score: Floats
    """[F,18]"""
    hands: Floats
    """[F,2,21,2], left then right hand; wrist, then four points outwards for each finger, thumb first."""
    hands_score: Floats
    """[F,2,21]"""
    face: Floats
    """[F,68,2], dlib's order: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67."""
    face_score: Floats
    """[F,68]"""
    fps: float
    """Frames per second, positive."""
    size: tuple[int, int]
    """(width, height) in pixels of the pictures that the keypoints were found in."""

    def __post_init__(self) -> None:
        for name, shape in SHAPES.items():
            object.__setattr__(self, name, _checked_array(name, getattr(self, name), shape))
        object.__setattr__(self, "fps", _checked_fps(self.fps))
        object.__setattr__(self, "size", _checked_size(self.size))
        counts = {name: len(getattr(self, name)) for name in SHAPES}
        if len(set(counts.values())) != 1:
            raise _wrong(
                f"The arrays of a pose sequence differ in frames: {counts}.",
                "Give every array the same number of frames.",
            )

    def __len__(self) -> int:
        """Number of frames F."""
        return len(self.body)

    def __repr__(self) -> str:
        return f"<PoseSequence: {described_clip(len(self), self.size, self.fps)}>"

    def _repr_html_(self) -> str:
        """A sheet of some of the skeletons."""
        from ..media.notebook import picture_html
        from ..media.sheet import contact_sheet, evenly
        from .draw import draw_poses

        height = _SHOWN_HEIGHT
        width = max(1, round(height * self.size[0] / self.size[1]))
        label = repr(self).strip("<>")
        drawn = draw_poses(self.take(evenly(len(self), _SHOWN)), height, width, 2 * min(height, width))
        return picture_html(contact_sheet([(label, list(drawn))], tile_height=height), label)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PoseSequence):
            return NotImplemented
        same = (np.array_equal(getattr(self, name), getattr(other, name)) for name in SHAPES)
        return self.fps == other.fps and self.size == other.size and all(same)

    __hash__ = None  # type: ignore[assignment]  # the arrays have no cheap hash

    def __getitem__(self, index: int | slice) -> PoseSequence:
        """Some of the frames, or the one frame `index`, at the same frame rate."""
        chosen = range(len(self))[index]
        return self.take([chosen] if isinstance(chosen, int) else chosen)

    def __iter__(self) -> Iterator[PoseSequence]:
        return (self.take([index]) for index in range(len(self)))

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> PoseSequence:
        """The frames `indices` in that order, at the same frame rate; IndexError beyond the last frame."""
        chosen = np.asarray(indices, np.intp)
        return replace(self, **{name: getattr(self, name)[chosen] for name in SHAPES})

    def strided(self, stride: int) -> PoseSequence:
        """Every `stride`-th frame, with the frame rate divided to keep the speed of the motion."""
        if stride < 1:
            raise _wrong(f"stride is {stride}.", "Choose 1 or more.", "settings.stride")
        return replace(self[::stride], fps=self.fps / stride)

    @staticmethod
    def concat(parts: Iterable[PoseSequence]) -> PoseSequence:
        """The parts one after another; all must have the same frame rate and size."""
        whole = list(parts)
        if not whole:
            raise _wrong("There are no pose frames to join.", "Give at least one.")
        first = whole[0]
        for part in whole:
            if (part.fps, part.size) != (first.fps, first.size):
                raise _wrong(
                    f"Poses of {first.fps:g} fps {first.size} and {part.fps:g} fps {part.size} do not join.",
                    "Join sequences of one frame rate and picture size.",
                )
        joined: dict[str, Any] = {n: np.concatenate([getattr(p, n) for p in whole]) for n in SHAPES}
        return replace(first, **joined)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `path` as `.npz` (compressed) or `.json`, beside first and then renamed.

        Raises `OutputError` for another suffix or where it cannot be written.
        """
        target = Path(path)
        pack = {".npz": _pack_npz, ".json": _pack_json}.get(target.suffix.lower())
        if pack is None:
            raise OutputError(
                f"{target} is neither .npz nor .json.",
                remedy="Name a pose file with one of these.",
                field="output",
            )
        with output_errors(target):
            write_atomic(target, pack(self))

    def to_bytes(self) -> bytes:
        """An `.npz` file, which `load` takes."""
        return _pack_npz(self)

    @staticmethod
    def load(
        source: str | os.PathLike[str] | bytes, limits: Limits | None = None, person: str | None = None
    ) -> PoseSequence:
        """Read what `save` or another program wrote, from a path or from the file's bytes, recognised by content.

        Others are OpenPose, DWPose, ComfyUI and MMPose (JSON) and COCO-WholeBody (JSON, or `keypoints` [F,133,3] in
        an .npz). Of several people in their files `person` says whom, as `Settings.driver`; None takes the largest in
        the first frame. Nothing is unpickled. Raises `MotionError` for a missing or damaged file, `SettingsError` for
        a person who is not there, and `LimitError` for a file that is larger than `limits.keypoint_bytes` or
        `json_bytes`, before its values are read.
        """
        from .formats import read_foreign, wholebody_sequence

        limits = limits or Limits()
        if isinstance(source, bytes):
            data, name = source, "The pose data"
        else:
            data, name = _read(source, limits), Path(source).name
        check_limit(f"bytes of {name}", len(data), limits.keypoint_bytes, field="motion")
        if data[:2] == b"PK":
            values: Any = _unpack_npz(data, name, limits)
            if "keypoints" in values:
                return wholebody_sequence(values["keypoints"], name)
        elif data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
            values = _unpack_json(data, name, limits)
            if not (isinstance(values, dict) and _KEYS & values.keys() - {"fps"}):
                return read_foreign(values, name, person)
        else:
            raise _wrong(f"{name} is not a pose file.", _REMEDY)
        _check_keys(values, name)
        del values["format"]
        try:
            return PoseSequence(**values)
        except MotionError as error:
            raise _wrong(f"{name}: {error.message}", error.remedy, error.field) from None


def single_frame(size: tuple[int, int], **seen: npt.NDArray[Any]) -> PoseSequence:
    """One frame at 1 fps from arrays as in `SHAPES`; an array that is not given was not seen (score 0)."""
    frame: dict[str, Any] = {
        name: np.full(shape, 0.0 if name.endswith("score") else 0.5) for name, shape in SHAPES.items()
    }
    return PoseSequence(**{name: value[None] for name, value in (frame | seen).items()}, fps=1.0, size=size)


def read_json(path: str | os.PathLike[str], limits: Limits) -> Any:
    """What a JSON file of keypoints holds, bounded before it is parsed; raises `MotionError` and `LimitError`."""
    return _unpack_json(_read(path, limits), Path(path).name, limits)


def _read(path: str | os.PathLike[str], limits: Limits) -> bytes:
    with motion_errors(path), open(path, "rb") as file:
        return file.read(limits.keypoint_bytes + 1)


def _checked_array(name: str, value: Any, shape: tuple[int, ...]) -> Floats:
    try:
        given = np.asarray(value)
    except ValueError:  # ragged nested lists
        given = np.empty(0, object)
    if given.dtype.kind not in "fiu" or given.shape[1:] != shape or given.ndim != len(shape) + 1:
        raise _wrong(
            f"{name} has shape {list(given.shape)} and type {given.dtype}.",
            f"Give numbers of shape [F,{','.join(map(str, shape))}].",
            f"motion.{name}",
        )
    if not len(given):
        raise _wrong(f"{name} has no frames.", "Give at least one frame.", f"motion.{name}")
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which is named below
        array = np.array(given, np.float32)
    _refuse(name, array, ~np.isfinite(array), "Leave out what was not seen by giving it the score 0.")
    if name.endswith("score"):
        _refuse(name, array, (array < 0) | (array > 1), "Scores lie between 0 and 1.")
    array.setflags(write=False)
    return array


def _wrong(what: str, remedy: str, field: str = "motion") -> MotionError:
    return MotionError(what, remedy=remedy, field=field)


def _refuse(name: str, array: Floats, bad: npt.NDArray[np.bool_], remedy: str) -> None:
    if bad.any():
        frame, *point = (int(i) for i in np.argwhere(bad)[0])
        raise _wrong(
            f"{name} is {array[(frame, *point)]} in frame {frame}, point {point}.", remedy, f"motion.{name}"
        )


def _checked_fps(value: Any) -> float:
    try:
        fps = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        fps = math.nan
    if not (math.isfinite(fps) and fps > 0):
        raise _wrong(f"fps is {value!r:.80}.", "Give a positive number of frames per second.", "motion.fps")
    return fps


def _checked_size(value: Any) -> tuple[int, int]:
    try:
        width, height = (operator.index(side) for side in value)
    except (TypeError, ValueError):
        width = height = 0
    if width < 1 or height < 1:
        raise _wrong(f"size is {value!r:.80}.", "Give (width, height) in whole pixels.", "motion.size")
    return width, height


def _check_keys(values: dict[str, Any], name: str) -> None:
    missing, unknown = sorted(_KEYS - values.keys()), sorted(values.keys() - _KEYS)
    if missing or unknown:
        both = {"lacks": missing, "has unknown": unknown}
        faults = [f"{what} {', '.join(keys):.200}" for what, keys in both.items() if keys]
        raise _wrong(f"{name} {' and '.join(faults)}.", _REMEDY)
    if values["format"] != FORMAT:
        raise _wrong(f"{name} has format {values['format']!r:.80}; this version reads {FORMAT}.", _REMEDY)


def _pack_json(sequence: PoseSequence) -> bytes:
    arrays = {name: getattr(sequence, name).tolist() for name in SHAPES}
    values = {"format": FORMAT, "fps": sequence.fps, "size": sequence.size, **arrays}
    return json.dumps(values, allow_nan=False, separators=(",", ":")).encode()


def _unpack_json(data: bytes, name: str, limits: Limits) -> Any:
    check_limit(f"bytes of JSON in {name}", len(data), limits.json_bytes, field="motion")
    try:
        _check_nesting(data)
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) - 1
        what = "truncated" if cut else "damaged"
        raise _wrong(f"{name} is {what} JSON: {error}.", _REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise _wrong(f"{name} is damaged JSON: {error}.", _REMEDY) from error


def _check_nesting(data: bytes) -> None:
    """Raise `ValueError` for JSON of many lists or texts: each takes 20 times its length once it is parsed.

    A frame has 138 lists and 384 commas.
    """
    lists, commas = data.count(b"[") + data.count(b"{"), data.count(b",")
    if 2 * lists > commas + _TEXTS or data.count(b'"') > commas + _TEXTS:
        raise ValueError("it has more lists or texts than keypoints have")
    marks = np.frombuffer(data.translate(None, _NOT_BRACKETS), np.uint8)
    opened = (marks == ord("[")) | (marks == ord("{"))
    depth = np.cumsum(opened.view(np.int8) * 2 - 1, dtype=np.int32)
    if depth.max(initial=0) > _DEPTH:
        raise ValueError(f"lists lie more than {_DEPTH} deep")


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


def _unpack_npz(data: bytes, name: str, limits: Limits) -> dict[str, Any]:
    try:
        if data.count(b"PK\x01\x02") > _MEMBERS:  # entries of the table of contents, which is read as a whole
            raise ValueError("it holds too many files")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            check_limit(f"unpacked bytes of {name}", size, limits.keypoint_bytes, field="motion")
            if any(member.compress_type not in _PACKED for member in members):
                raise ValueError("it is packed in a way that numpy does not write")
            read = {m.filename.removesuffix(".npy"): _array(archive.read(m), m.filename) for m in members}
    except LimitError:
        raise
    except Exception as error:  # of zipfile, zlib, struct and numpy; they share no base class
        if b"PK\x05\x06" not in data:  # the end of every zip archive
            raise _wrong(f"{name} is truncated: the end of the archive is missing.", _REMEDY) from error
        raise _wrong(f"{name} is damaged: {error}.", _REMEDY) from error
    return {key: value.tolist() if key in ("format", "fps", "size") else value for key, value in read.items()}


def _array(raw: bytes, member: str) -> np.ndarray[Any, Any]:
    """One .npy file. Unlike `np.load` this takes no memory for a shape that the bytes at hand do not fill."""
    stream = io.BytesIO(raw)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{member} has an unknown version")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # it evaluates Python: TokenError, SyntaxError, RecursionError and more
        raise ValueError(f"{member} has a damaged header") from error
    return np.frombuffer(raw, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
