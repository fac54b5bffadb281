"""What stands before every call: bounds, and requests that are none."""

from __future__ import annotations

import time
from contextlib import ExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mimicmotion_trt import errors
from mimicmotion_trt.service import Client
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2 as pb
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from mimicmotion_trt.service.status import Busy

from .hosting import hosted, script, until

VIDEO = b"a video"
ENDLESS = script(pause=0.02)
THOUSAND = {"steps": 1000}
METHODS = {  # of all four kinds
    "mimicmotion.v1.AnimationService/GetAnimation": ("unary_unary", False),
    "mimicmotion.v1.AnimationService/CreateAnimation": ("stream_unary", True),
    "mimicmotion.v1.AnimationService/WatchAnimation": ("unary_stream", False),
    "mimicmotion.v1.AnimationService/Animate": ("stream_stream", True),
    "grpc.health.v1.Health/Check": ("unary_unary", False),
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ("stream_stream", True),
}


@pytest.mark.parametrize("name", METHODS)
def test_bytes_that_are_no_message_are_the_callers_fault(host, capfd, name):
    kind, streams = METHODS[name]
    with grpc.insecure_channel(host.address) as channel:
        call, request = getattr(channel, kind)(f"/{name}"), iter([b"\xff\xff"]) if streams else b"\xff\xff"
        with pytest.raises(grpc.RpcError) as caught:
            list(call(request, timeout=60))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in capfd.readouterr().err


def test_health_and_cancel_work_when_all_calls_are_taken():
    with hosted(max_calls=8, client_calls=6) as host, Client(host.address) as client, ExitStack() as stack:
        job = client.create(ENDLESS, VIDEO, THOUSAND).job
        for _ in range(6):
            next(stack.enter_context(client.watch(job)))
        with pytest.raises(Busy, match="6 calls of yours"):
            client.list()
        assert client.health() == "SERVING"
        assert client.cancel(job).job == job
        until(lambda: _tried(client.list) is not None)


def test_those_who_watch_health_take_nobodys_place():
    with hosted(max_calls=4, client_calls=4) as host, grpc.insecure_channel(host.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        watchers = [watch(health_pb2.HealthCheckRequest()) for _ in range(4)]
        for watcher in watchers:
            next(watcher)
        with pytest.raises(grpc.RpcError) as caught:
            next(watch(health_pb2.HealthCheckRequest()))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with Client(host.address) as client:
            assert client.animate(script(), VIDEO).result().done.frames == 6


def test_one_client_cannot_take_every_place_of_the_queue():
    with hosted(max_queue=4, client_queue=2) as host, Client(host.address) as client:
        running = client.create(ENDLESS, VIDEO, THOUSAND).job
        until(lambda: client.get(running).state == "running")
        for _ in range(2):
            client.create(script(), VIDEO)
        with pytest.raises(Busy, match="2 jobs of yours") as caught:
            client.create(script(), VIDEO)
        assert caught.value.retry_after >= 1
        client.cancel(running)


def test_an_upload_that_only_trickles_gives_its_place_back():
    """One byte in each pause that is allowed: never silent for long, and never done."""
    picture = script(words="x" * 300)  # 30 s at that pace
    with hosted(upload_patience=0.3, upload_rate=1000.0) as host:

        def trickle():
            header = pb.AnimationHeader(
                motion_kind=pb.MOTION_KIND_VIDEO, picture_bytes=len(picture), motion_bytes=1000
            )
            yield pb.CreateAnimationRequest(upload=pb.AnimationUpload(header=header))
            for byte in picture:
                time.sleep(0.1)
                yield pb.CreateAnimationRequest(upload=pb.AnimationUpload(picture=bytes([byte])))

        began = time.monotonic()
        with grpc.insecure_channel(host.address) as channel, pytest.raises(grpc.RpcError) as caught:
            pb_grpc.AnimationServiceStub(channel).CreateAnimation(trickle())
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 15
        until(lambda: host.server.scheduler.uploads == 0)


def _tried(function):
    try:
        return function()
    except errors.ServiceError:
        return None
