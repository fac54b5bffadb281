"""`mimicmotion-trt pose`: keypoints of a person, and what of a picture would be animated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..console import explained
from ..errors import SettingsError, counted
from ..flags import Given
from ..limits import Limits
from ..settings import Framing, Settings, driver_of, make_settings
from .files import check_output
from .options import AsJson, BundleName, Estimator, Threads, read_settings

if TYPE_CHECKING:
    from ..pose import PoseSequence


def pose(
    source: Annotated[
        Path | None, typer.Argument(help="Video or picture of a person; with --image the motion, or nothing.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="SOURCE as keypoints (.npz, .json) or drawn: a folder/ or a video.")
    ] = None,
    form: Annotated[
        Literal["mimicmotion", "openpose", "coco-wholebody"],
        typer.Option("--format", help="Of a .json; openpose is ComfyUI's POSE_KEYPOINT too."),
    ] = "mimicmotion",
    estimator: Estimator = "mediapipe",
    stride: Annotated[int, typer.Option(help="Look at every n-th frame.")] = 1,
    threads: Threads = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also write a sheet: skeletons over some of the frames.")
    ] = None,
    person: Annotated[str | None, typer.Option(help="Who of several people, as in animate.")] = None,
    image: Annotated[Path | None, typer.Option(help="A reference picture, for --sheet.")] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Write what animate would make of --image: its part, its pose, SOURCE fitted."),
    ] = None,
    driver: Annotated[str | None, typer.Option(help="With --image: who of several people in SOURCE.")] = None,
    framing: Annotated[
        Framing, typer.Option(help="With --image: person, centre or pad, as in animate.")
    ] = "person",
    size: Annotated[str, typer.Option(help="With --image: WIDTHxHEIGHT; the bundle's own if empty.")] = "",
    bundle: BundleName = "tiny",
    as_json: AsJson = False,
) -> None:
    """Find the keypoints of a person, or show what of a picture would be animated.

    mimicmotion-trt pose dance.mp4 -o dance.npz
    mimicmotion-trt pose dance.mp4 --image person.jpg --sheet sheet.png
    """
    from ..pose import PoseSequence, estimate_poses
    from ..pose.motion import folder_of_keypoints, is_keypoints

    with explained(as_json):
        if (image is None) != (sheet is None) or (source is None and (image is None or output is not None)):
            raise SettingsError(
                "there is nothing to do.",
                remedy="Give a video or picture with --output, or --image with --sheet.",
                field="source",
            )
        named = {"person": person, "driver": driver, "framing": framing}
        settings = read_settings({**named, **({"size": size} if size else {})})
        poses = recording = None
        if source is not None and output is not None:
            check_output(output, [source])
        if source is not None and source.is_dir():
            poses = folder_of_keypoints(source, Limits()).strided(stride)
        elif source is not None and is_keypoints(source):
            poses = PoseSequence.load(source).strided(stride)
        elif source is not None:
            who = driver_of(Settings(**settings)) if image else Settings(**settings).person
            poses = estimate_poses(source, estimator, stride=stride, threads=threads, person=who)
            recording = source
        values: Given = {}
        if poses is not None:
            values |= _write_poses(poses, output, form)
        if poses is not None and picture is not None:
            values |= _write_sheet(poses, recording, stride, picture)
        if image is not None and sheet is not None:
            values |= _write_preview(image, poses, settings, sheet, bundle, estimator, threads)
        if as_json:
            print(json.dumps({"event": "done", **values}))
        elif poses is not None:
            seen = f"{counted(len(poses), 'frame')} at {poses.fps:g} per second"
            seen += f", a person in {values['frames_with_person']}"
            print(f"{output or source}: {seen}")
            if picture is not None:
                drawn = "skeletons over some of the frames"
                print(f"{picture}: {drawn if values['picture'] else 'not written, for nobody is seen'}")
        if sheet is not None and not as_json:
            print(f"{sheet}: of the picture, {values['crop']} (left, top, right, bottom) would be animated")


def _write_poses(poses: PoseSequence, output: str | None, form: str) -> Given:
    """Write keypoints; returns what there is to say of them."""
    from ..pose.formats import save_poses

    if output is not None:
        save_poses(poses, output, form)
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


def _write_sheet(poses: PoseSequence, recording: Path | None, stride: int, path: Path) -> Given:
    """Write skeletons over the frames that they were found in, or over black; nothing where nobody is seen."""
    from ..doctor.preview import pose_sheet
    from ..media.picture import write_picture

    if not poses.body_score.any():
        return {"picture": None}
    write_picture(path, pose_sheet(poses, recording, stride))
    return {"picture": str(path)}
