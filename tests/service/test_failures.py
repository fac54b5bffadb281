"""Whatever goes wrong with one job, the next one runs."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import threading
import time
from pathlib import Path

import grpc
import psutil
import pytest

from mimicmotion_trt import errors
from mimicmotion_trt.events import Accepted, Progress, Queued
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.service import Client, ServiceConfig
from mimicmotion_trt.service.delivery import Delivery
from mimicmotion_trt.service.engine_process import EngineProcess
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2 as pb
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from mimicmotion_trt.service.status import EngineLost, Late
from mimicmotion_trt.service.transfer import Upload
from mimicmotion_trt.service.watching import Animation, Reconnection

from .hosting import STAND_IN, hosted, script, until

VIDEO = b"a video"
SLOW = pytest.mark.slow
ENDLESS = script(pause=0.02)
THOUSAND = {"steps": 1000}
NAMED = ["SettingsError", "PictureError", "MotionError", "LimitError", "BundleError", "CheckpointError",
         "ExportError", "EngineError", "OutputError", "ServiceError", "Cancelled"]  # fmt: skip
CODES = {
    "INVALID_ARGUMENT": NAMED[:4],
    "FAILED_PRECONDITION": ["BundleError", "CheckpointError"],
    "INTERNAL": ["ExportError", "EngineError", "OutputError"],
    "UNAVAILABLE": ["ServiceError"],
    "CANCELLED": ["Cancelled"],
}


@pytest.fixture(autouse=True)
def nothing_left(host):
    """After every way to fail: no job, reader or upload is left, and no file but finished videos."""
    yield
    server = host.server
    until(lambda: not server.scheduler.busy and not server.scheduler.queue_length)
    until(lambda: all(job.unread.is_set() for job in server.store.page(1000)[0]))
    until(lambda: server.scheduler.warm)
    assert server.scheduler.uploads == 0
    jobs = server.store.page(1000)[0]
    kept = {video for job in jobs if job.state == "succeeded" for video in job.videos}
    until(lambda: {path for path in (server.store.folder / "jobs").rglob("*") if path.is_file()} == kept)


def code_of(host, job: str) -> str:
    with grpc.insecure_channel(host.address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(pb_grpc.AnimationServiceStub(channel).WatchAnimation(pb.WatchAnimationRequest(job=job)))
    return str(caught.value.code().name)


@pytest.mark.parametrize("stage", ["stream", "denoise", "decode"])
@pytest.mark.parametrize("name", NAMED)
def test_every_error_comes_through_and_the_next_job_runs(host, client, name, stage):
    pid = host.engine_pid
    job = client.create(script(fail=name, stage=stage), VIDEO).job
    with pytest.raises(errors.MimicMotionError, match="It went wrong") as caught:
        client.watch(job).result()
    assert type(caught.value) is getattr(errors, name)
    assert (caught.value.remedy, caught.value.field) == ("Do better.", "settings.steps")
    assert name in CODES[code_of(host, job)]
    assert client.animate(script(frames=2), VIDEO).result().done.frames == 2
    assert host.engine_pid == pid


@pytest.mark.parametrize("name", ["ValueError", "MemoryError", "AssertionError"])
def test_unexpected_errors_are_engine_errors(client, name):
    with pytest.raises(errors.EngineError, match=f"{name}: unexpected"):
        client.animate(script(fail=name, stage="denoise"), VIDEO).result()
    assert client.animate(script(frames=2), VIDEO).result().done.frames == 2


def test_what_no_job_survives_ends_two_engines_and_not_the_service(host, client):
    pid = host.engine_pid
    with pytest.raises(EngineLost, match="exit code") as caught:
        client.animate(script(fail="SystemExit", stage="denoise"), VIDEO).result()
    assert "2. engine" in caught.value.remedy
    client.wait_until_ready(60)
    assert client.animate(script(frames=2), VIDEO).result().done.frames == 2
    assert host.engine_pid != pid


@pytest.mark.parametrize(
    "stage", ["denoise", *(pytest.param(one, marks=SLOW) for one in ("stream", "decode"))]
)
def test_a_lost_gpu_is_told_and_the_next_job_runs_in_a_new_process(host, client, stage):
    pid = host.engine_pid
    lost = client.create(script(fail="DeviceLost", stage=stage, pause=0.05), VIDEO).job
    waiting = client.create(script(frames=3), VIDEO).job
    with pytest.raises(errors.DeviceLost, match="It went wrong") as caught:
        client.watch(lost).result()
    assert "Do better." in caught.value.remedy
    assert code_of(host, lost) == "INTERNAL"
    assert client.watch(waiting).result().done.frames == 3
    assert host.engine_pid != pid


def test_too_little_memory_is_no_reason_to_start_again(host, client):
    pid = host.engine_pid
    with pytest.raises(errors.OutOfMemory, match="It went wrong"):
        client.animate(script(fail="OutOfMemory", stage="denoise"), VIDEO).result()
    assert client.animate(script(frames=2), VIDEO).result().done.frames == 2
    assert host.engine_pid == pid


def test_a_very_long_message_still_arrives(client):
    with pytest.raises(errors.MotionError, match=r"It went wrong\.!!!!"):
        client.animate(script(fail="MotionError", long=100_000), VIDEO).result()


def test_nothing_is_left_of_a_failed_video(client, tmp_path):
    animation = client.animate(script(crash=True, stage="decode"), VIDEO, output=tmp_path / "out.mp4")
    with pytest.raises(EngineLost):
        animation.result()
    assert list(tmp_path.iterdir()) == []
    client.wait_until_ready(60)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.slow)])
def test_the_job_of_a_killed_engine_runs_again_once(host, client, number):
    running = client.animate(ENDLESS, VIDEO, THOUSAND)
    assert isinstance(next(running), Accepted)
    waiting = client.create(script(frames=3), VIDEO).job
    for _ in range(2):
        until(lambda: client.get(running.job).state == "running")
        pid = host.engine_pid
        os.kill(pid, number)
        until(lambda pid=pid: not psutil.pid_exists(pid))
    with pytest.raises(EngineLost) as caught:
        running.result()
    assert 0 < caught.value.retry_after < 10
    assert code_of(host, running.job) == "UNAVAILABLE"
    assert client.watch(waiting).result().done.frames == 3, "the queue goes on"


@pytest.mark.parametrize("stage", ["denoise", "decode", pytest.param("pose", marks=SLOW)])
def test_a_killed_engine_changes_no_byte_and_no_event_comes_twice(host, client, stage):
    picture = script(frames=12, noise=True, pause=0.02)
    undisturbed = client.animate(picture, VIDEO).result().read()
    animation, events = client.animate(picture, VIDEO), []
    for event in animation:
        events.append(event)
        if isinstance(event, Progress) and event.stage == stage and event.step == 3:
            os.kill(host.engine_pid, signal.SIGKILL)
            stage = None
    assert animation.result().read() == undisturbed
    kinds = [event.kind for event in events if not isinstance(event, Progress | Queued)]
    assert kinds == ["accepted", "started", *["video"] * (len(kinds) - 3), "done"]
    assert [event.sequence for event in events] == sorted({event.sequence for event in events})


def test_no_finished_step_is_done_again():
    """The job is stopped to make room, its engine is killed, and it is stopped once more. A reader that is late sees
    the newest step of several, so steps may be left out here, but none comes twice."""
    with hosted(checkpoint_share=1e6) as host, Client(host.address) as client:
        picture = script(frames=4, noise=True, pause=0.03)
        undisturbed = client.animate(picture, VIDEO, {"steps": 20}).result().read()
        animation, steps = client.animate(picture, VIDEO, {"steps": 20}), []
        disturb = [(5, "suspend"), (10, "kill"), (15, "suspend")]
        for event in animation:
            if not isinstance(event, Progress) or event.stage != "denoise":
                continue
            steps.append(event.step)
            if not disturb or event.step < disturb[0][0]:
                continue
            if disturb.pop(0)[1] == "kill":
                os.kill(host.engine_pid, signal.SIGKILL)
            else:
                job = host.server.store.get(animation.job)
                host.call(as_coroutine, host.server.scheduler.suspend, job)
        assert animation.result().read() == undisturbed
        assert steps == sorted(set(steps))
        assert steps[-1] == 20
        assert not disturb


def test_an_engine_that_hangs_is_killed_and_its_job_runs_again():
    with hosted(engine_patience=1.5) as host, Client(host.address) as client:
        client.animate(script(frames=2), VIDEO).result()  # something to predict from
        animation = client.animate(script(pause=0.05), VIDEO)
        until(lambda: host.server.scheduler.busy)
        pid = host.engine_pid
        os.kill(pid, signal.SIGSTOP)
        assert animation.result().done.frames == 6
        assert host.engine_pid != pid


def test_an_engine_that_ignores_a_cancel_is_killed():
    with hosted(engine_patience=1.5) as host, Client(host.address) as client:
        pid = host.engine_pid
        job = client.create(script(pause=60), VIDEO).job
        until(lambda: client.get(job).last_sequence == 3)  # started
        time.sleep(0.2)
        client.cancel(job)
        with pytest.raises(errors.Cancelled):
            client.watch(job).result()
        assert client.animate(script(frames=2), VIDEO).result().done.frames == 2
        assert host.engine_pid != pid


def test_a_job_that_kills_its_engines_takes_no_other_along():
    with hosted(limits=Limits(jobs=3)) as host, Client(host.address) as client:
        jobs = [client.create(script(pause=0.02, frames=frames), VIDEO).job for frames in (3, 4)]
        with pytest.raises(EngineLost):
            client.animate(script(crash=True, stage="denoise", pause=0.01), VIDEO).result()
        assert [client.watch(job).result().done.frames for job in jobs] == [3, 4]


@pytest.mark.parametrize("broken", ["on_end", "spawn"])
def test_faults_beside_the_work_do_not_break_it(monkeypatch, broken):
    """A clean-up that fails, and no descriptors left for a new engine."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with hosted() as host, Client(host.address) as client:
        client.animate(script(frames=2), VIDEO).result()
        if broken == "on_end":
            monkeypatch.setattr(Path, "unlink", fail)
        else:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            os.kill(host.engine_pid, signal.SIGKILL)
            time.sleep(0.7)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for _ in range(3):
            assert client.animate(script(frames=2), VIDEO).result().done.frames == 2


def test_an_idle_engine_that_dies_comes_back(host, client):
    pid = host.engine_pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: client.health() == "NOT_SERVING" or host.engine_pid != pid)
    assert client.animate(script(frames=2), VIDEO).result().done.frames == 2
    assert not psutil.pid_exists(pid)


def test_terminal_signals_do_not_reach_the_job(host, client):
    animation = client.animate(script(pause=0.02), VIDEO)
    next(animation)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(host.engine_pid, number)
    assert animation.result().done.frames == 6


@pytest.mark.parametrize("way", ["cancel", "close", "deadline"])
def test_a_caller_that_goes_away_frees_the_engine(host, way):
    with Client(host.address) as observer:
        client = Client(host.address)
        animation = client.animate(ENDLESS, VIDEO, THOUSAND, timeout=1.5 if way == "deadline" else None)
        next(animation)
        job = animation.job
        until(lambda: observer.get(job).state == "running")
        if way == "deadline":
            with pytest.raises(Late):
                animation.result()
        else:
            animation.cancel() if way == "cancel" else client.close()
        until(lambda: observer.get(job).state == "cancelled")
        assert observer.animate(script(frames=2), VIDEO).result().done.frames == 2
        client.close()


def test_a_detached_job_outlives_its_caller(client):
    animation = client.animate(script(pause=0.02), VIDEO, detach=True)
    next(animation)
    animation.cancel()
    assert client.watch(animation.job).result().done.frames == 6


def test_a_watcher_that_leaves_does_not_cancel(client):
    job = client.create(script(pause=0.02), VIDEO).job
    watcher = client.watch(job)
    next(watcher)
    watcher.cancel()
    assert client.watch(job).result().done.frames == 6


@pytest.mark.parametrize("change", ["data", "offset", "crc32", "drop", "sequence"])
def test_damage_on_the_way_is_noticed_and_leaves_no_file(host, tmp_path, change):
    upload = Upload(script(frames=20, noise=True), VIDEO, None)
    requests = (pb.AnimateRequest(upload=part) for part in upload)
    with grpc.insecure_channel(host.address) as channel:
        call = _Damaged(pb_grpc.AnimationServiceStub(channel).Animate(requests), change)
        with pytest.raises(errors.ServiceError):
            Animation(call, Delivery(tmp_path / "out.mp4"), Reconnection(call, None, patience=0)).result()
    assert list(tmp_path.iterdir()) == []


async def as_coroutine(function, *arguments):
    return function(*arguments)


class _Damaged:
    def __init__(self, call, change: str) -> None:
        self._call = call
        self._change = change

    def __iter__(self):
        for response in self._call:
            event = response.event
            if event.WhichOneof("kind") == "done" and self._change == "drop":
                return
            if event.WhichOneof("kind") == "video" and event.video.offset > 0:
                if self._change == "data":
                    event.video.data = event.video.data[:-1] + bytes([event.video.data[-1] ^ 1])
                elif self._change in ("offset", "crc32"):
                    setattr(event.video, self._change, getattr(event.video, self._change) ^ 1)
                elif self._change == "sequence":
                    event.sequence = 1
            yield response

    def cancel(self) -> None:
        self._call.cancel()

    def done(self) -> bool:
        return bool(self._call.done())


def test_the_loop_is_never_blocked(host, client):
    """Health answers at once while an engine computes and a large upload and a large video pass by."""
    picture, slowest = script(frames=120, noise=True, size=[256, 256]), 0.0
    with Client(host.address) as other:
        other.health()
        upload = threading.Thread(
            target=lambda: other.animate(picture, b"v" * (40 * 2**20), {"decode_chunk": 64}).result()
        )
        upload.start()
        while upload.is_alive():
            began = time.perf_counter()
            assert client.health() == "SERVING"
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(0.005)
    assert slowest < 3  # an upload that is read on the loop takes longer


@pytest.mark.parametrize(
    ("does", "kind", "told"),
    [
        ('{"fail": "DeviceLost"}', errors.DeviceLost, "It went wrong"),
        ('{"crash": true}', errors.EngineError, "ended 2 times while loading"),
    ],
)
def test_an_engine_that_never_loads_is_given_up_with_its_reason(does, kind, told):
    async def story() -> EngineProcess:
        given_up = asyncio.Event()
        (config,) = ServiceConfig(**STAND_IN | {"bundle": does}).engines()
        engine = EngineProcess(
            config, on_event=lambda job, event: None, on_change=given_up.set, pause=0.0, tries=2
        )
        await engine.start()
        while engine.failure is None:
            await given_up.wait()
            given_up.clear()
        await engine.stop()
        return engine

    engine = asyncio.run(story())
    assert type(engine.failure) is kind
    assert told in str(engine.failure)
    assert engine.deaths == 2
