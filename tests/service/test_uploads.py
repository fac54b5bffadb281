"""Uploads that break the rules, by hand and by the hundred."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mimicmotion_trt import errors
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.service import Client
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2 as pb
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from mimicmotion_trt.service.transfer import Upload

from .hosting import hosted, script

PICTURE, MOTION = script(frames=1, steps=1), b"a video"
LIMITS = Limits(picture_bytes=2**20 + 10, motion_bytes=3 * 2**20, output_pixels=512 * 512)


@pytest.fixture(scope="module")
def host():
    with hosted(limits=LIMITS) as running:  # its patience of 60 s outlasts a busy machine
        yield running


@pytest.fixture(scope="module")
def stub(host):
    with grpc.insecure_channel(host.address) as channel:
        yield pb_grpc.AnimationServiceStub(channel)


def header(**changes) -> pb.AnimationUpload:
    fields = {"motion_kind": pb.MOTION_KIND_VIDEO, "picture_bytes": len(PICTURE), "motion_bytes": len(MOTION)}
    return pb.AnimationUpload(header=pb.AnimationHeader(**fields | changes))


def picture(data: bytes = PICTURE) -> pb.AnimationUpload:
    return pb.AnimationUpload(picture=data)


def motion(data: bytes = MOTION) -> pb.AnimationUpload:
    return pb.AnimationUpload(motion=data)


def answer(stub, *parts: pb.AnimationUpload) -> grpc.StatusCode:
    try:
        list(stub.Animate(iter([pb.AnimateRequest(upload=part) for part in parts]), timeout=60))
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


POSE = pb.AnimationUpload(reference_pose=b"x")
BROKEN = {
    "nothing": [],
    "no header": [picture(), motion()],
    "an empty message": [pb.AnimationUpload()],
    "header twice": [header(), header(), picture(), motion()],
    "motion first": [header(), motion(), picture()],
    "no motion": [header(), picture()],
    "picture cut off": [header(), picture(PICTURE[:-1]), motion()],
    "picture too long": [header(), picture(PICTURE + b"x"), motion()],
    "motion too long": [header(), picture(), motion(MOTION + b"x")],
    "more after the end": [header(), picture(), motion(), motion()],
    "undeclared reference pose": [header(), picture(), motion(), POSE],
    "missing reference pose": [header(reference_pose_bytes=1), picture(), motion()],
    "empty chunk": [header(), picture(b""), picture(), motion()],
    "empty message within": [header(), pb.AnimationUpload(), picture(), motion()],
    "chunk over 1 MiB": [header(picture_bytes=2**20 + 1), picture(b"x" * (2**20 + 1)), motion()],
    "no size of the picture": [header(picture_bytes=0), motion()],
    "no size of the motion": [header(motion_bytes=0), picture()],
    "no kind": [header(motion_kind=0), picture(), motion()],
    "unknown kind": [header(motion_kind=77), picture(), motion()],
    "unknown container": [header(container=9), picture(), motion()],
    "picture over the limit": [header(picture_bytes=LIMITS.picture_bytes + 1)],
    "motion over the limit": [header(motion_bytes=2**63), picture()],
    "reference pose over the limit": [header(reference_pose_bytes=2**20 + 1), picture()],
    "key too long": [header(request_id="k" * 129), picture(), motion()],
    "priority over 9": [header(priority=10), picture(), motion()],
    "deadline of no seconds": [header(deadline_seconds=0.0), picture(), motion()],
    "deadline that is no number": [header(deadline_seconds=float("nan")), picture(), motion()],
    "steps of 0": [header(settings=pb.AnimationSettings(steps=0)), picture(), motion()],
    "output over the limit": [
        header(settings=pb.AnimationSettings(size=pb.Size(width=1024, height=512))), picture(), motion()
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_uploads_are_invalid_arguments(stub, name):
    assert answer(stub, *BROKEN[name]) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_sound_upload_in_small_pieces_passes(stub, host):
    pieces = [picture(PICTURE[i : i + 1]) for i in range(len(PICTURE))]
    assert answer(stub, header(), *pieces, motion(MOTION[:3]), motion(MOTION[3:])) is grpc.StatusCode.OK
    assert {job.state for job in host.server.store.page(1000)[0]} == {"succeeded"}, (
        "broken ones leave nothing"
    )


def test_the_fault_is_named_in_the_details(stub):
    bad = header(settings=pb.AnimationSettings(segment=4, overlap=4))
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Animate(iter([pb.AnimateRequest(upload=bad)])))
    details = {}
    for detail in rpc_status.from_call(caught.value).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
            if detail.Is(kind.DESCRIPTOR):
                details[kind] = kind.FromString(detail.value)
    info = details[error_details_pb2.ErrorInfo]
    assert (info.reason, info.domain) == ("SETTINGS_ERROR", "mimicmotion.v1")
    assert info.metadata["remedy"] == "Choose an overlap below the segment's length."
    violation = details[error_details_pb2.BadRequest].field_violations[0]
    assert violation.field == "settings.overlap"
    assert "overlap 4 is not smaller" in violation.description


def test_limits_come_back_as_limit_errors(host):
    with Client(host.address) as client, pytest.raises(errors.LimitError) as caught:
        client.animate(b"x" * (LIMITS.picture_bytes + 1), MOTION).result()
    assert caught.value.field == "image"


def test_an_upload_that_stalls_is_dropped():
    dropped = threading.Event()

    def stalled():
        yield pb.CreateAnimationRequest(upload=header())
        dropped.wait(60)

    with hosted(upload_patience=0.5) as host, grpc.insecure_channel(host.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            pb_grpc.AnimationServiceStub(channel).CreateAnimation(stalled())
        dropped.set()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert all(job.state != "receiving" for job in host.server.store.page(1000)[0])


def test_a_caller_that_leaves_in_the_middle_leaves_nothing(stub, host):
    def slow():
        yield pb.AnimateRequest(upload=header())
        time.sleep(0.2)

    before = len(host.server.store.page(1000)[0])
    call = stub.Animate(slow())
    time.sleep(0.1)
    call.cancel()
    time.sleep(0.2)
    assert len(host.server.store.page(1000)[0]) == before
    assert answer(stub, header(), picture(), motion()) is grpc.StatusCode.OK


def test_bytes_that_are_no_message_do_no_harm(stub, host):
    with grpc.insecure_channel(host.address) as channel:
        raw = channel.stream_stream(
            "/mimicmotion.v1.AnimationService/Animate", lambda data: data, pb.AnimateResponse.FromString
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(raw(iter([b"\xff\xff\xff\xff"]), timeout=60))
    assert caught.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
    assert answer(stub, header(), picture(), motion()) is grpc.StatusCode.OK


SETTINGS = st.builds(
    pb.AnimationSettings,
    steps=st.none() | st.integers(0, 2**32 - 1),
    overlap=st.none() | st.integers(0, 9),
    noise_aug=st.none() | st.floats(),
    size=st.none() | st.builds(pb.Size, width=st.sampled_from([0, 64, 65, 2**32 - 1]), height=st.just(64)),
    fusion=st.none() | st.integers(0, 4),
    frames=st.just(1),
)
PARTS = st.one_of(
    st.builds(
        header,
        settings=SETTINGS,
        motion_kind=st.integers(0, 4),
        picture_bytes=st.sampled_from([0, 1, len(PICTURE), 2**64 - 1]),
        motion_bytes=st.sampled_from([0, len(MOTION), 2**40]),
        reference_pose_bytes=st.sampled_from([0, 0, 1]),
        want_previews=st.booleans(),
        detach=st.booleans(),
        request_id=st.sampled_from(["", "a", "b"]),
    ),
    st.just(header()),
    st.just(picture()),
    st.just(motion()),
    st.binary(max_size=40).map(picture),
    st.binary(max_size=40).map(motion),
    st.just(POSE),
    st.just(pb.AnimationUpload()),
)
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.INTERNAL,  # the stand-in's EngineError for a picture that is no script
}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(PARTS, max_size=5), straight=st.booleans())
def test_random_uploads_get_a_considered_answer(stub, host, parts, straight):
    pid = host.engine_pid
    parts = [header(), picture(), motion(), *parts] if straight else parts
    code = answer(stub, *parts)
    assert code in EXPECTED
    if code is grpc.StatusCode.INTERNAL:
        assert [part.WhichOneof("part") for part in parts[:2]] == ["header", "picture"]
    assert host.engine_pid == pid, "the engine is still the same process"
    assert host.server.scheduler.warm


def test_pictures_of_pillow_and_tensors_are_sent_as_arrays_are():
    shown, frames = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8), []
    for image, poses in ((shown[0], shown), (Image.fromarray(shown[0]), torch.tensor(shown))):
        parts = list(Upload(image, poses, None))
        np.testing.assert_array_equal(read_picture(b"".join(part.picture for part in parts)), shown[0])
        frames.append(b"".join(part.motion for part in parts))
    assert frames[0] == frames[1]


@pytest.mark.parametrize(("image", "motion"), [(3, MOTION), (PICTURE, 3), (PICTURE, {"frames": 2})])
def test_what_is_no_input_is_told_before_it_is_sent(image, motion):
    with pytest.raises(errors.InputError):
        Upload(image, motion, None)


@pytest.mark.parametrize(
    ("image", "motion", "kind"),
    [("nope.png", MOTION, errors.PictureError), (PICTURE, "nope.png", errors.MotionError)],
)
def test_a_file_that_is_not_there_is_told_as_without_a_server(image, motion, kind):
    with pytest.raises(kind, match=r"^nope\.png does not exist\. Check the path\.$"):
        Upload(image, motion, None)
