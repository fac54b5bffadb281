"""`mimicmotion-trt pose`: keypoints of a person, and what of a picture would be animated."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..console import Tell, explained, spoken_to, waiting
from ..errors import MotionError, SettingsError, counted
from ..flags import Given, make_flag, with_flags
from ..limits import Limits
from ..settings import Face, Framing, Settings, driver_of, make_settings
from .files import check_output, check_read_once, whole_file
from .options import AsJson, Estimator, Threads, read_settings, refuse

if TYPE_CHECKING:
    from ..pose import PoseSequence
    from ..pose.draw import Drawing
    from ..pose.motion import Picture


SOURCE, SHEET = "Keypoints", "What animate would make of a picture"


def picture_flags() -> list[inspect.Parameter]:
    """What is said of a reference picture."""
    return [
        make_flag("sheet", Path, help="Where to write it.", panel=SHEET, metavar="FILE"),
        make_flag("driver", str, help="Who of several people in SOURCE.", panel=SHEET, metavar="WHO"),
        make_flag("face", Face, help="As in animate. [default: driver]", panel=SHEET),
        make_flag("framing", Framing, help="As in animate. [default: person]", panel=SHEET),
        make_flag("size", str, help="The bundle's own if not given.", panel=SHEET, metavar="WIDTHxHEIGHT"),
        make_flag("bundle", str, help="By name or folder. [default: tiny]", panel=SHEET, metavar="NAME"),
    ]


def source_flags() -> list[inspect.Parameter]:
    """What is done with the poses of a source."""
    forms = Literal["mimicmotion", "openpose", "coco-wholebody"]
    drawn = "Also write a sheet: skeletons over some of the frames."
    return [
        make_flag(
            "output",
            str,
            "-o",
            "--output",
            help=".npz, .json, a folder/, a video, .webp, .apng, .avi (Motion JPEG).",
            panel=SOURCE,
            metavar="FILE",
        ),
        make_flag("format", forms, help="Of a .json.", panel=SOURCE),
        make_flag(
            "stride", int, help="Look at every n-th frame. [default: 1]", panel=SOURCE, metavar="NUMBER"
        ),
        make_flag("start", float, help="Begin at this second of it.", panel=SOURCE, metavar="NUMBER"),
        make_flag("end", float, help="End at this second of it.", panel=SOURCE, metavar="NUMBER"),
        make_flag(
            "smooth", float, help="Smooth the keypoints, cutoff in Hz.", panel=SOURCE, metavar="NUMBER"
        ),
        make_flag(
            "draw", str, help="What of them is drawn, if not all.", panel=SOURCE, metavar="body,hands,face"
        ),
        make_flag("picture", Path, help=drawn, panel=SOURCE, metavar="FILE"),
    ]


@with_flags("of_picture", picture_flags())
@with_flags("of_source", source_flags())
def pose(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="SOURCE", help="Video or picture of a person, or keypoints.", rich_help_panel=SOURCE
        ),
    ] = None,
    *,
    image: Annotated[
        Path | None,
        typer.Option(
            "-i", "--image", metavar="FILE", help="The picture; SOURCE is its motion.", rich_help_panel=SHEET
        ),
    ] = None,
    person: Annotated[
        str | None, typer.Option(metavar="WHO", help="Who of several people, as in animate.")
    ] = None,
    estimator: Estimator = "mediapipe",
    threads: Threads = None,
    as_json: AsJson = False,
    of_source: Given,
    of_picture: Given,
) -> None:
    """Find the keypoints of a person, or show what of a picture would be animated.

    mimicmotion-trt pose dance.mp4 -o dance.npz
    mimicmotion-trt pose dance.mp4 --image person.jpg --sheet sheet.png
    """
    from ..pose.draw import Drawing

    with (
        explained(as_json),
        waiting("finding poses", quiet=as_json) as tell,
        tempfile.TemporaryDirectory(prefix="mimicmotion-") as folder,
    ):
        sheet, output, picture = (
            of_picture.pop("sheet", None),
            of_source.get("output"),
            of_source.get("picture"),
        )
        if (image is None) != (sheet is None) or (source is None and (image is None or output is not None)):
            raise SettingsError(
                "there is nothing to do.",
                remedy="Give a video or picture with --output, or --image with --sheet.",
                field="source",
            )
        if image is None:
            refuse(of_picture, "without --image", "Give the picture, and --sheet.")
        if source is None:
            refuse(of_source, "without a video or picture", "Name it.")
        if "format" in of_source and not str(output).endswith(".json"):
            refuse(["format"], "without a .json as the output", "Leave it out.")
        bundle = of_picture.pop("bundle", "tiny")
        known: Given = {
            name: of_source[name] for name in ("start", "end", "smooth", "draw") if name in of_source
        }
        settings = read_settings(
            {"person": person, "stride": of_source.get("stride", 1), **known, **of_picture}
        )
        poses = recording = None
        taken: Sequence[int] = ()
        read = [path for path in (source, image) if path is not None]
        check_read_once(read)
        for written in (output, sheet, picture):
            if written is not None:
                check_output(str(written), read)
        if source is not None:
            checked = Settings(**settings)
            who = driver_of(checked) if image else checked.person
            whole = whole_file(source, Path(folder))
            poses, taken, recording = _read_poses(whole, checked, estimator, threads, who, tell)
        settings.pop("smooth", None)  # they are smooth by now
        drawing = Drawing.of(Settings(**settings))
        values: Given = {}
        if poses is not None:
            values |= _write_poses(poses, output, of_source.get("format", "mimicmotion"), drawing)
        if poses is not None and picture is not None:
            values |= _write_sheet(poses, recording, taken, drawing, picture)
        if image is not None and sheet is not None:
            whole = whole_file(image, Path(folder))
            values |= _write_preview(whole, poses, settings, sheet, bundle, estimator, threads)
        say = partial(print, file=spoken_to(output), flush=True)
        if as_json:
            say(json.dumps({"event": "done", **values}))
        elif poses is not None:
            seen = f"{counted(len(poses), 'frame')} at {poses.fps:g} per second"
            seen += f", a person in {values['frames_with_person']}"
            say(f"{output or source}: {seen}")
            if output is not None and Path(output).suffix in (".npz", ".json"):
                say(f"Next: mimicmotion-trt animate person.jpg {output} -o out.mp4")
            if output is None and picture is None and sheet is None:
                say("Nothing was written: -o FILE keeps the keypoints, --picture FILE shows them.")
            if picture is not None:
                drawn = "skeletons over some of the frames"
                say(f"{picture}: {drawn if values['picture'] else 'not written, for nobody is seen'}")
        if sheet is not None and not as_json:
            say(f"{sheet}: of the picture, {values['crop']} (left, top, right, bottom) would be animated")


def _read_poses(
    source: Path, settings: Settings, estimator: str, threads: int | None, who: str | None, tell: Tell
) -> tuple[PoseSequence, Sequence[int], Path | None]:
    """The poses of a source, smoothed as settings say; which of its frames they are; the source if it has frames."""
    from ..files import read_head
    from ..media.picture import picture_format
    from ..pose import estimate_poses
    from ..pose.motion import MANY, folder_of_keypoints, is_folder, open_motion
    from ..pose.smooth import smooth_poses

    folder = is_folder(source)
    if not folder and picture_format(read_head(source)) not in ("", "GIF"):
        return estimate_poses(source, estimator, threads=threads, person=who), (0,), source
    given = folder_of_keypoints(source, Limits(), who) if folder else source
    motion = open_motion(given, replace(settings, person=None, driver=who), Limits(frames=MANY), "video")
    if motion.video is not None:
        frames = _counted(motion.video(), len(motion.sampling.taken), tell)
        found = estimate_poses(frames, estimator, threads=threads, person=who)
        poses = replace(found, fps=motion.sampling.rate)
    elif motion.poses is not None:
        poses = motion.poses
    else:
        raise MotionError(
            f"{source} holds pose pictures.", remedy="Give a video, a picture, or keypoints.", field="source"
        )
    if settings.smooth is not None:
        poses = smooth_poses(poses, settings.smooth)
    return poses, motion.sampling.taken, None if motion.video is None else source


def _counted(frames: Iterable[Picture], total: int, tell: Tell) -> Iterator[Picture]:
    """The frames, telling how many of them are done when the next one is asked for."""
    tell(0, total)
    for done, frame in enumerate(frames, 1):
        yield frame
        tell(done, total)


def _write_poses(poses: PoseSequence, output: str | None, form: str, drawing: Drawing) -> Given:
    """Write keypoints; returns what there is to say of them."""
    from ..pose.formats import save_poses

    if output is not None:
        save_poses(poses, output, form, drawing)
    seen = int((poses.body_score.max(axis=1) > 0).sum())
    said = {"output": str(output)} if output is not None else {}
    return {**said, "frames": len(poses), "frames_with_person": seen, "fps": poses.fps}


def _write_preview(
    image: Path,
    motion: PoseSequence | None,
    settings: Given,
    sheet: Path,
    bundle: str,
    estimator: str,
    threads: int | None,
) -> Given:
    """Write what would be animated; returns where it is and the part of the picture that is taken."""
    from ..bundles import load_bundle
    from ..doctor.preview import preview_sheet
    from ..media.picture import write_picture

    manifest = load_bundle(bundle).manifest
    chosen = make_settings(manifest.defaults, settings)
    drawn, crop = preview_sheet(image, motion, chosen, manifest.sizes, estimator=estimator, threads=threads)
    write_picture(sheet, drawn)
    return {"sheet": str(sheet), "crop": list(crop)}


def _write_sheet(
    poses: PoseSequence, recording: Path | None, taken: Sequence[int], drawing: Drawing, path: Path
) -> Given:
    """Write skeletons over the frames that they were found in, or over black; nothing where nobody is seen."""
    from ..doctor.preview import pose_sheet
    from ..media.picture import write_picture

    if not poses.body_score.any():
        return {"picture": None}
    write_picture(path, pose_sheet(poses, recording, taken, drawing))
    return {"picture": str(path)}
