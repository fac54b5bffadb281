"""Files that commands read and write: pipes, results that would overwrite their inputs, other formats."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from ..errors import MotionError, OutputError, PictureError
from ..files import motion_errors


def check_output(output: str, inputs: list[Path]) -> None:
    """Raise `OutputError` if the result would be written over one of its inputs."""
    path = Path(output)
    if "%" in path.name:
        path = path.parent
    for given in inputs:
        if path.exists() and given.exists() and path.samefile(given) and not is_stream(path):
            raise OutputError(
                f"the output {output} is an input too.", remedy="Choose another output.", field="output"
            )


def check_files(image: Path, motions: list[Path], outputs: list[str]) -> None:
    """Before a bundle is loaded, which may take minutes: the inputs are there, and the outputs can be written.

    Raises `PictureError`, `MotionError` or `OutputError`. Nothing is left behind; streams are not opened.
    """
    from ..media.writer import VideoWriter

    if not image.exists():
        raise PictureError(f"{image} does not exist.", remedy="Check the path.", field="image")
    for motion in motions:
        if not motion.exists():
            raise MotionError(f"{motion} does not exist.", remedy="Check the path.", field="motion")
    for output in outputs:
        if output != "-" and not is_stream(Path(output)):
            VideoWriter(output, fps=1, size=(64, 64)).abort()


def preview_path(output: str) -> Path:
    """Where previews of a video are written: `out.preview.jpg` beside `out.mp4`; raises `OutputError` for streams."""
    path = Path(output)
    if output == "-" or is_stream(path):
        raise OutputError(
            "previews are written beside the output, and the output is a stream.",
            remedy="Leave --preview out, or name a file as the output.",
            field="output",
        )
    path = path.parent if "%" in path.name else path
    return path.with_name(f"{path.stem}.preview.jpg")


def whole_file(path: Path, folder: Path) -> Path:
    """A file that can be read more than once: the standard input (`-`) and pipes are copied into `folder`."""
    if str(path) != "-" and not is_stream(path):
        return path
    copy = folder / f"input{len(list(folder.iterdir()))}"
    with motion_errors(path), copy.open("wb") as file:
        source = open(0, "rb", closefd=False) if str(path) == "-" else path.open("rb")  # noqa: SIM115
        with source:
            shutil.copyfileobj(source, file)
    return copy


def is_stream(path: Path) -> bool:
    """Whether this is a pipe or a device; raises `MotionError` for a path that cannot be looked at."""
    with motion_errors(path):
        return path.exists() and (path.is_fifo() or path.is_char_device())


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
