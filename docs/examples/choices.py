"""Pictures of docs/controls.md of choices between people, rates and parts of a motion, made with drawn people.

python docs/examples/choices.py docs/images     writes person.jpg, driver.jpg, fps.jpg and cut.jpg
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mimicmotion_trt as mm
from mimicmotion_trt.doctor.preview import overlaid
from mimicmotion_trt.media.picture import write_picture
from mimicmotion_trt.media.sheet import Row, contact_sheet
from mimicmotion_trt.pose import draw_poses, estimate_poses
from mimicmotion_trt.training.synthetic import make_clip

Picture = NDArray[np.uint8]

ROOT = Path(__file__).resolve().parents[2]
PERSON, MOTION = ROOT / "demo" / "dancer.png", ROOT / "demo" / "balance.npz"
WIDTH, HEIGHT = 512, 320
"""Of the pictures with several people."""
PEOPLE = ((1_050_053, 290, 0.17), (1_050_044, 240, 0.5), (1_050_084, 310, 0.83))
"""Of each a clip that no training has seen, the pixels of its height, and the place of its middle."""
WHO = ((None, "largest", "centre", "left"), ("right", 1, 2, (0.7, 0.1, 1.0, 1.0)))
WALK = 36
"""Frames in which two people pass each other."""


def main(folder: str, bundle: str = "tiny") -> None:
    pictures = Path(folder)
    write_picture(pictures / "person.jpg", several_people())
    write_picture(pictures / "driver.jpg", crossing())
    with mm.Animator.load(bundle) as animator:
        write_picture(pictures / "fps.jpg", rates(animator))
        write_picture(pictures / "cut.jpg", parts(animator))


def several_people() -> Picture:
    """Three people, and for each value of `person` the skeleton of the one who is taken."""
    people = [(dancer(seed, height), at) for seed, height, at in PEOPLE]
    picture = scene(people, 0)
    rows: list[Row] = []
    for values in WHO:
        persons = [mm.Settings(person=value).person for value in values]
        tiles = [skeleton_over(picture, estimate_poses(picture, person=person)) for person in persons]
        rows.append(("person: " + "; ".join(person or "not given" for person in persons), tiles))
    return contact_sheet(rows, columns=4, tile_height=150)


def crossing() -> Picture:
    """Two people who pass each other, and whom `driver` follows."""
    front, behind = (dancer(PEOPLE[index][0], 300, WALK) for index in (0, 2))
    places = np.linspace(0.2, 0.8, WALK)
    frames = [scene([(behind, 1 - at), (front, at)], index) for index, at in enumerate(places)]
    rows: list[Row] = []
    for who in ("left", "right"):
        poses = estimate_poses(frames, person=who)
        rows.append((f"driver {who}", [skeleton_over(*one) for one in zip(frames, poses, strict=True)]))
    return contact_sheet(rows, columns=6, tile_height=112)


def rates(animator: mm.Animator) -> Picture:
    """A motion of 5 poses a second, and four times as many: the poses that are drawn, and the video of these."""
    rows: list[Row] = []
    for fps, frames in ((5, 3), (20, 9)):
        poses, video = animated(animator, stride=6, fps=fps, frames=frames, start=0.8)
        for label, tiles in ((f"fps={fps}: poses", poses), (f"fps={fps}: the video", video)):
            rows.append((label, spread(tiles, 20 // fps)))
    return contact_sheet(rows, columns=9, tile_height=120)


def parts(animator: mm.Animator) -> Picture:
    """A motion of which `start` and `end` take a part, here not dimmed, and the video of it."""
    start, end, rate = 0.5, 1.3, 6
    whole, _ = animated(animator, stride=5)  # of 30 a second
    _, video = animated(animator, stride=5, start=start, end=end)
    taken = [start <= index / rate < end for index in range(len(whole))]
    poses = [tile if take else tile // 4 for tile, take in zip(whole, taken, strict=True)]
    rows = [
        (f"the motion, {rate} frames a second of it", poses),
        (f"start={start} end={end}: the video", [empty(video)] * taken.index(True) + video),
    ]
    return contact_sheet(rows, columns=len(whole), tile_height=120)


def animated(animator: mm.Animator, **settings: Any) -> tuple[list[Picture], list[Picture]]:
    """The poses that are drawn, and the video's frames."""
    job = animator.animate(PERSON, MOTION, animator.settings(**settings))
    video, clip = list(job.result()), job.animation
    assert clip.poses is not None
    chosen = replace(clip.settings, size=clip.size)
    return list(animator.draw_poses(clip.poses[1:], settings=chosen)), video


def dancer(seed: int, height: int, frames: int = 1) -> tuple[Picture, Picture]:
    """Frames uint8 [F,H,W,3] of a drawn person and their masks uint8 [F,H,W]."""
    clip = make_clip(seed, frames, height, height * 5 // 8, style="rich", blur=0.0, occlusion=False)
    return clip.frames, clip.masks


def scene(people: list[tuple[tuple[Picture, Picture], float]], frame: int) -> Picture:
    """A picture uint8 [HEIGHT,WIDTH,3] of people, each with the place of its middle in [0, 1], the last in front."""
    board = np.linspace((222, 226, 233), (150, 165, 180), HEIGHT)[:, None].repeat(WIDTH, 1)
    for (frames, masks), at in people:
        height, width = masks.shape[1:]
        left = min(max(round(at * WIDTH - width / 2), 0), WIDTH - width)
        place = board[HEIGHT - height :, left : left + width]
        share = masks[frame][..., None] / 255
        place[:] = place * (1 - share) + frames[frame] * share
    return board.astype(np.uint8)


def skeleton_over(picture: Picture, pose: mm.PoseSequence) -> Picture:
    """The skeleton of one frame on its picture."""
    height, width = picture.shape[:2]
    return overlaid(picture, draw_poses(pose, height, width, height)[0])


def spread(tiles: list[Picture], every: int) -> list[Picture]:
    """The tiles with empty places between them, so that each stands above the frame of the same time."""
    gap = [empty(tiles)] * (every - 1)
    return [part for tile in tiles for part in (tile, *gap)][: (len(tiles) - 1) * every + 1]


def empty(tiles: list[Picture]) -> Picture:
    """A tile that is not seen on a sheet."""
    return np.full_like(tiles[0], (24, 26, 31))


if __name__ == "__main__":
    main(*sys.argv[1:])
