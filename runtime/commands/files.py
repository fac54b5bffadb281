"""Files that commands read and write: pipes, results that would overwrite their inputs, other formats."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from ..errors import InputError, MotionError, OutputError, PictureError
from ..files import motion_errors

LONGEST_NAME = 255
"""Bytes of a file's name on usual file systems."""
STANDARD_INPUT = "the standard input"
"""The name of its copy, for messages."""


def check_output(output: str, inputs: list[Path]) -> None:
    """Raise `OutputError` if the result would be written over one of its inputs."""
    from ..media.writer import numbers_picture

    path = _folder_or_file(output)
    for given in inputs:
        there = os.path.exists(given) and not is_stream(path)
        if there and ((os.path.exists(path) and path.samefile(given)) or numbers_picture(output, given)):
            raise OutputError(
                f"the output {output} is an input too.", remedy="Choose another output.", field="output"
            )


def check_read_once(inputs: list[Path]) -> None:
    """Raise `MotionError` if the standard input (`-`) is named for more than one input."""
    if [str(path) for path in inputs].count("-") > 1:
        raise MotionError(
            "the standard input is named twice.", remedy="Name a file for one of them.", field="motion"
        )


def check_files(image: Path, motions: list[Path], outputs: list[str]) -> None:
    """Before a bundle is loaded, which may take minutes: the inputs are there, and the outputs can be written.

    Raises `PictureError`, `MotionError` or `OutputError`. Nothing is left behind; streams are not opened.
    """
    from ..media.writer import VideoWriter

    check_there(image, PictureError, "image")
    for motion in motions:
        check_there(motion, MotionError, "motion")
    for output in outputs:
        if output != "-" and not is_stream(Path(output)):
            VideoWriter(output, fps=1, size=(64, 64)).abort()


def check_there(path: Path, kind: type[InputError], field: str) -> None:
    """Raise an error of this kind for a path that leads nowhere."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = getattr(error, "strerror", None) or error
        message = f"{path} does not exist." if missing else f"{str(path)!r:.200} cannot be read: {reason}."
        raise kind(message, remedy="Check the path.", field=field) from error


def preview_path(output: str) -> Path:
    """Where previews of a video are written: `out.preview.jpg` beside `out.mp4`; raises `OutputError` for streams."""
    path = Path(output)
    if output == "-" or is_stream(path):
        raise OutputError(
            "previews are written beside the output, and the output is a stream.",
            remedy="Leave --preview out, or name a file as the output.",
            field="output",
        )
    path = _folder_or_file(output)
    end = ".preview.jpg"
    stem = os.fsencode(path.stem)[: LONGEST_NAME - len(end)].decode(errors="ignore")
    return path.with_name(f"{stem}{end}")


def _folder_or_file(output: str) -> Path:
    """What is written: of pictures `f/%04d.png` their folder."""
    path = Path(output)
    return path.parent if path.suffix.lower() == ".png" and "%" in path.name else path


def whole_file(path: Path, folder: Path) -> Path:
    """A file that can be read more than once: the standard input (`-`) and pipes are copied into `folder`."""
    if str(path) != "-" and not is_stream(path):
        return path
    copy = folder / str(len(list(folder.iterdir()))) / (path.name if str(path) != "-" else STANDARD_INPUT)
    copy.parent.mkdir()
    with motion_errors(path), copy.open("wb") as file:
        source = open(0, "rb", closefd=False) if str(path) == "-" else path.open("rb")  # noqa: SIM115
        with source:
            shutil.copyfileobj(source, file)
    return copy


def is_stream(path: Path) -> bool:
    """Whether this is a pipe or a device."""
    return os.path.exists(path) and (path.is_fifo() or path.is_char_device())


def convert(video: Path, output: str) -> str:
    """Write a video in another format, sound included; returns what was lost of it."""
    from ..media.reader import VideoReader
    from ..media.record import read_comment
    from ..media.writer import VideoWriter

    reader = VideoReader(video)
    audio = video if reader.has_audio else None
    comment = partial(read_comment, video)
    with VideoWriter(output, fps=reader.fps, size=reader.size, audio=audio, comment=comment) as writer:
        for _, frame in reader.frames():
            writer.write(frame)
    return writer.note
