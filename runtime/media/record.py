"""How a video was made, from the metadata of its file."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError, MotionError
from ..facts import Facts, not_ours
from ..files import plain_file
from ..limits import Limits
from .source import Source


def read_facts(video: str | Path) -> Facts:
    """What the file of a video says of how it was made: its settings in force, bundle, people found.

    Raises `InputError` for a file that is no video of this package, or of a version with other settings.
    """
    path = plain_file(video, "video", _fault, "Give a video that mimicmotion-trt wrote.")
    comment = read_comment(path)
    if not comment:
        raise not_ours(path.name)
    return Facts.from_json(comment, path.name)


def read_comment(video: Path) -> str:
    """The comment in the metadata of a video; "" if there is none. Raises `InputError` if it is no video."""
    try:
        with Source(video, Limits(motion_bytes=2**62)).open() as container:
            named = {key.lower(): value for key, value in container.metadata.items()}  # Matroska: COMMENT
    except MotionError as error:
        raise not_ours(video.name) from error
    return named.get("comment", "")


def _fault(message: str, remedy: str) -> InputError:
    return InputError(message, remedy=remedy, field="like")
