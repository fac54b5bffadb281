"""The real animator behind the server: the same bytes as in this process."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, errors
from mimicmotion_trt.events import Preview, Progress
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.media.writer import FragmentedMp4
from mimicmotion_trt.pose import PoseSequence
from mimicmotion_trt.pose.formats import write_foreign
from mimicmotion_trt.service import Client
from mimicmotion_trt.service.config import load_animator

from .hosting import hosted, until

DEMO = Path(__file__).parents[2] / "demo"
PERSON, MOTION = DEMO / "person.jpg", DEMO / "balance.npz"
SHORT = {"steps": 2, "frames": 5, "decode_chunk": 3, "seed": 7}


@pytest.fixture(scope="module")
def style(make_lora):
    return make_lora("style")


@pytest.fixture(scope="module")
def host(bundle, style):
    limits = Limits(jobs=2, memory_bytes=2**31)
    with hosted(
        load=load_animator, bundle=bundle, threads=1, limits=limits, lora=(f"style={style}",)
    ) as running:
        yield running


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"pose_strength": 2.0, "pose_start": 0.5, "pose_end": 1.0, "image_strength": 0.25},
        {"lora": ("style:0.5",)},
        {
            "draw": ("body", "face"),
            "face": "reference",
            "smooth": 0.5,
            "hold": 0.4,
            "confidence_floor": 0.2,
            "confidence_gain": 1.5,
            "fps": 60,
            "start": 0.1,
            "end": 0.2,
        },
    ],
)
def test_the_server_makes_what_the_library_makes(host, client, bundle, style, chosen):
    company = client.create(PERSON, MOTION, {**SHORT, "seed": 8}).job  # at the same time, on the same engine
    served = client.animate(PERSON, MOTION, {**SHORT, **chosen, "preview": 1})
    events = list(served)
    with Animator.load(bundle, threads=1, loras={"style": style}) as animator:
        clip = animator.stream(PERSON, MOTION, animator.settings(**SHORT, **chosen))
        video = file_of(clip)
        assert events[0].settings == animator.settings(**SHORT, **chosen, preview=1)
    assert served.result().read() == video
    assert served.result().done.facts == replace(clip.facts, settings=replace(clip.settings, preview=1))
    assert served.result().done.frames == client.watch(company).result().done.frames == 5
    previews = [event for event in events if isinstance(event, Preview)]
    assert previews[-1].step == 2  # a newer one replaces one that was not read yet
    assert "torch" not in Path(f"/proc/{host.engine_pid}/maps").read_text()


def file_of(clip: Any) -> bytes:
    """The file that a server makes of an animation."""
    mp4, video = None, b""
    for event in clip:
        if event.frames is not None:
            mp4 = mp4 or FragmentedMp4(clip.fps, clip.size, clip.audio, comment=clip.facts.to_json)
            video += mp4.write(event.frames)
    assert mp4 is not None
    return video + mp4.close()


def test_frames_in_which_nobody_is_seen_are_told_as_they_are_found(client):
    there = np.array([[1], [1], [0], [1], [1]], np.float32)
    gap = PoseSequence.load(MOTION)[:5]
    gap = replace(gap, body_score=gap.body_score * there)
    animation = client.animate(PERSON, gap, {**SHORT, "hold": 0.0})
    reports = [event for event in animation if isinstance(event, Progress)]
    assert reports[-1].held == animation.result().done.held == 1


@pytest.mark.slow
def test_a_killed_engine_goes_on_and_makes_the_same_bytes(bundle):
    options = {"load": load_animator, "bundle": bundle, "threads": 1, "checkpoint_share": 1e6}
    settings = {**SHORT, "steps": 4}
    with hosted(**options) as host, Client(host.address) as client:
        undisturbed = client.animate(PERSON, MOTION, settings).result().read()
        for stage in ("denoise", "decode"):
            animation, killed = client.animate(PERSON, MOTION, settings), False
            for event in animation:
                if isinstance(event, Progress) and not killed and event.stage == stage and event.step >= 1:
                    os.kill(host.engine_pid, signal.SIGKILL)
                    killed = True
            assert killed
            assert animation.result().read() == undisturbed


def test_unusable_inputs_are_told_apart_and_harm_nothing(host, client):
    pid = host.engine_pid
    grey = np.full((96, 96, 3), 128, np.uint8)
    cases = [
        (errors.PictureError, (b"no picture", MOTION, SHORT)),
        (errors.PictureError, (grey, MOTION, SHORT)),  # nobody is in it
        (errors.MotionError, (PERSON, b"no video", SHORT)),
        (errors.MotionError, (PERSON, b"PK no archive", SHORT)),
        (errors.MotionError, (PERSON, b"\x93NUMPY no array", SHORT)),
        (errors.MotionError, (PERSON, b"\x93NUMPY\x01\x00\x08\x00{'descr'" + bytes(64), SHORT)),
        (errors.MotionError, (PERSON, np.zeros((3, 64, 64), np.uint8), SHORT)),
        (errors.MotionError, (PERSON, MOTION, {**SHORT, "stride": 10_000})),
        (errors.SettingsError, (PERSON, MOTION, {"overlap": 4000})),
        (errors.SettingsError, (PERSON, MOTION, {"pose_start": 0.5, "pose_end": 0.25})),
        (errors.SettingsError, (PERSON, MOTION, {"lora": ["style", "gone"]})),
        (errors.LimitError, (PERSON, MOTION, {"size": (2048, 2048), "frames": 4})),
    ]
    for kind, arguments in cases:
        with pytest.raises(kind) as caught:
            client.animate(*arguments).result()
        assert type(caught.value) is kind
        assert caught.value.field
    assert client.animate(PERSON, MOTION, SHORT).result().done.frames == 5
    assert host.engine_pid == pid


def test_pose_pictures_and_a_given_reference_pose(client):
    reference = PoseSequence.load(MOTION)[:1]
    pictures = np.zeros((4, 64, 128, 3), np.uint8)
    result = client.animate(PERSON, pictures, {"steps": 1}, reference_pose=reference).result()
    assert result.done.frames == 4


def test_keypoints_of_other_programs_and_who_of_them_is_meant(client):
    frames = json.loads(write_foreign(PoseSequence.load(MOTION)[:4], "openpose"))
    for frame in frames:
        body = np.reshape(frame["people"][0]["pose_keypoints_2d"], (-1, 3))
        frame["people"].append({"pose_keypoints_2d": (body - [20, 0, 0] * (body > 0)).ravel().tolist()})
    data = json.dumps(frames).encode()
    for driver in ("left", "2"):
        assert client.animate(PERSON, data, {**SHORT, "driver": driver}).result().done.frames == 4
    with pytest.raises(errors.SettingsError, match="no more than 2 people"):
        client.animate(PERSON, data, {**SHORT, "driver": "3"}).result()
    whole = np.random.default_rng(0).uniform(0.2, 0.8, (3, 133, 3))
    assert client.animate(PERSON, whole, SHORT).result().done.frames == 3


def test_a_long_job_is_cancelled_within_a_step(host):
    with Client(host.address) as client:
        animation = client.animate(PERSON, MOTION, {"steps": 1000, "frames": 5})
        for event in animation:
            if isinstance(event, Progress) and event.stage == "denoise":
                break
        client.cancel(animation.job)
        with pytest.raises(errors.Cancelled):
            animation.result()


def test_a_job_that_made_room_gives_the_same_video(bundle):
    settings = {"steps": 60, "frames": 5, "size": (64, 64), "seed": 7}
    with hosted(load=load_animator, bundle=bundle, threads=1) as alone, Client(alone.address) as client:
        pose = PoseSequence.load(MOTION)[:1]
        client.animate(
            PERSON, MOTION, {**settings, "steps": 2}, reference_pose=pose
        ).result()  # to predict from
        undisturbed = client.animate(PERSON, MOTION, settings, reference_pose=pose).result().read()
        long = client.create(PERSON, MOTION, settings, reference_pose=pose).job
        until(lambda: (progress := client.get(long).progress) is not None and progress.step > 5)
        short = client.animate(PERSON, MOTION, {**settings, "steps": 1}, reference_pose=pose).result()
        assert client.get(long).ended is None, "the short one went first"
        assert short.done.frames == 5
        assert client.watch(long).result().read() == undisturbed


def test_an_engine_that_answers_nan_fails_the_job_by_name_and_the_next_one_runs(overflowing_bundle):
    bundle = overflowing_bundle("unet")
    with hosted(load=load_animator, bundle=bundle, threads=1) as host, Client(host.address) as client:
        pid = host.engine_pid
        with pytest.raises(errors.EngineError, match=r"the network unet answered with NaN .* in step 1 of 2"):
            client.animate(PERSON, MOTION, {**SHORT, "motion_bucket": 1010}).result()
        assert client.animate(PERSON, MOTION, SHORT).result().done.frames == 5
        assert host.engine_pid == pid
