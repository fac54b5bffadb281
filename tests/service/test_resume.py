"""A server that was killed or stopped: its next life goes on with every job, and makes the same bytes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from mimicmotion_trt import errors
from mimicmotion_trt.events import Event, Progress
from mimicmotion_trt.service import AsyncClient, Client
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2 as pb
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from mimicmotion_trt.service.status import Draining, KeyReused, NotFound
from mimicmotion_trt.service.transfer import Upload

from .hosting import hosted, process, script, until

DEMO = Path(__file__).parents[2] / "demo"
PERSON, MOTION = DEMO / "person.jpg", DEMO / "balance.npz"
VIDEO = b"a video"
PICTURE = script(frames=6, noise=True, size=[128, 128], pause=0.03)
SETTINGS = {"steps": 6, "decode_chunk": 2}
SLOW = pytest.mark.slow
STOPS = [
    ("denoise", 4),
    *(
        pytest.param(*stop, marks=SLOW)
        for stop in [("pose", 2), ("denoise", 1), ("decode", 2), ("decode", 4)]
    ),
]


@pytest.fixture(scope="module")
def undisturbed() -> bytes:
    """The video of a job that nothing happened to."""
    with hosted() as host, Client(host.address) as client:
        video: bytes = client.animate(PICTURE, VIDEO, SETTINGS).result().read()
        return video


def options(store: Path, **more: Any) -> dict[str, Any]:
    return {"store": str(store), "checkpoint_share": 1e6, **more}


def watch_until(client: Client, job: str, stage: str, step: int) -> list[Event]:
    """The job's events up to one of its progress."""
    seen: list[Event] = []
    with client.watch(job) as watching:
        for event in watching:
            seen.append(event)
            if isinstance(event, Progress) and event.stage == stage and event.step >= step:
                break
    return seen


def video_of(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if event.kind == "video")


@pytest.mark.parametrize(("stage", "step"), STOPS)
def test_a_killed_server_goes_on_with_its_job(tmp_path, undisturbed, stage, step):
    """A watcher that comes back with its last number misses nothing and sees nothing twice."""
    with process(**options(tmp_path)) as (running, address), Client(address) as client:
        client.wait_until_ready(60)
        job = client.create(PICTURE, VIDEO, SETTINGS, request_id="mine").job
        before = watch_until(client, job, stage, step)
        engine = psutil.Process(running.pid).children()
        running.kill()
        psutil.wait_procs(engine, timeout=30)
    with hosted(**options(tmp_path)) as host, Client(host.address) as client:
        assert client.create(PICTURE, VIDEO, SETTINGS, request_id="mine").job == job
        after = list(client.watch(job, after=before[-1].sequence))
        assert video_of(before) + video_of(after) == undisturbed == client.watch(job).result().read()
        numbers = [event.sequence for event in (*before, *after)]
        assert numbers == sorted(set(numbers))
        kinds = [event.kind for event in (*before, *after) if event.kind in ("accepted", "started", "done")]
        assert kinds == ["accepted", "started", "done"]
        steps = [event.step for event in after if isinstance(event, Progress) and event.stage == "denoise"]
        assert steps == list(range(7 - len(steps), 7)), "no step is made again"
        if stage != "pose":
            assert len(steps) <= 6 - (step if stage == "denoise" else 6)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=SLOW)])
def test_a_stop_keeps_running_and_waiting_jobs_for_the_next_life(tmp_path, undisturbed, number):
    with process(**options(tmp_path, grace=0.1)) as (running, address), Client(address, patience=0) as client:
        client.wait_until_ready(60)
        animation = client.animate(PICTURE, VIDEO, {**SETTINGS, "steps": 300})
        next(animation)
        waiting = client.create(PICTURE, VIDEO, SETTINGS).job
        until(lambda: (progress := client.get(animation.job).progress) is not None and progress.step > 3)
        running.send_signal(number)
        with pytest.raises(Draining) as caught:
            animation.result()
        assert "Watch the job again" in caught.value.remedy
        assert running.wait(60) == 0
    with hosted(**options(tmp_path)) as host, Client(host.address) as client:
        assert client.get(animation.job).state in ("queued", "running")
        client.cancel(animation.job)
        with pytest.raises(errors.Cancelled):
            client.watch(animation.job).result()
        assert client.watch(waiting).result().read() == undisturbed
    with hosted(**options(tmp_path)) as host, Client(host.address) as client:
        assert host.server.scheduler.rates.jobs > 0, "predictions go on as well"
        assert {info.job: info.state for info in client.list()} == {
            animation.job: "cancelled",
            waiting: "succeeded",
        }
        assert client.watch(waiting).result().read() == undisturbed


class Blocking:
    """A caller of `Client`."""

    def __init__(self, address: str) -> None:
        self.client = Client(address)

    def animate(self, *given: Any) -> list[Event]:
        self.animation = self.client.animate(*given)
        self.events = list(islice(self.animation, 8))
        return self.events

    def rest(self) -> bytes:
        self.events += self.animation
        return self.animation.result().read()

    def leave(self) -> None:
        """Hear of some more events, so that the new server sends them, and go."""
        list(islice(self.animation, 30))
        self.animation.cancel()
        self.client.close()


class Asyncio(Blocking):
    """A caller of `AsyncClient`."""

    def __init__(self, address: str) -> None:
        self.runner = asyncio.Runner()
        self.address = address

    def animate(self, *given: Any) -> list[Event]:
        async def story() -> list[Event]:
            self.client = AsyncClient(self.address)
            self.animation = self.client.animate(*given)
            return [await anext(self.animation) for _ in range(8)]

        self.events = self.runner.run(story())
        return self.events

    def rest(self) -> bytes:
        async def story() -> bytes:
            self.events += [event async for event in self.animation]
            return (await self.animation.result()).read()

        return self.runner.run(story())

    def leave(self) -> None:
        async def story() -> None:
            for _ in range(30):
                await anext(self.animation)
            self.animation.cancel()
            await self.client.close()

        self.runner.run(story())
        self.runner.close()


@pytest.mark.parametrize(
    ("kind", "number"), [(Blocking, signal.SIGKILL), pytest.param(Asyncio, signal.SIGTERM, marks=SLOW)]
)
def test_a_caller_goes_on_where_the_server_is_started_again(tmp_path, undisturbed, kind, number):
    """It calls once and gets every event once; leaving later still cancels its job."""
    config = options(tmp_path, grace=0.1, limits={"jobs": 2})
    with process(**config) as (running, address):
        with Client(address) as client:
            client.wait_until_ready(60)
        endless, caller = kind(address), kind(address)
        endless.animate(PICTURE, VIDEO, {**SETTINGS, "steps": 1000})
        before = list(caller.animate(PICTURE, VIDEO, {**SETTINGS, "steps": 12}))
        running.send_signal(number)
        running.wait(60)
    with process(**config, port=int(address.rpartition(":")[2])), Client(address) as client:
        video = caller.rest()
        events = caller.events
        assert video == video_of(events)
        assert [event.sequence for event in events] == sorted({event.sequence for event in events})
        kinds = [event.kind for event in events if event.kind in ("accepted", "started", "done")]
        assert kinds == ["accepted", "started", "done"]
        assert before == events[:8]
        endless.leave()
        until(lambda: client.get(endless.animation.job).state == "cancelled")
        again = client.animate(PICTURE, VIDEO, {**SETTINGS, "steps": 12}).result().read()
        assert video == again != undisturbed


def test_another_build_does_not_go_on_with_the_latents_and_the_queue_does(tmp_path):
    with hosted(**options(tmp_path)) as host, Client(host.address) as client:
        job = client.create(PICTURE, VIDEO, {**SETTINGS, "steps": 300}).job
        waiting = client.create(PICTURE, VIDEO, SETTINGS).job
        watch_until(client, job, "denoise", 3)
    with hosted(**options(tmp_path, bundle='{"build": "another"}')) as host, Client(host.address) as client:
        with pytest.raises(errors.CheckpointError, match="another build"):
            client.watch(job).result()
        assert client.watch(waiting).result().done.frames == 6


def test_without_a_store_nothing_is_left(tmp_path):
    with process(folder=str(tmp_path)) as (running, address), Client(address) as client:
        client.wait_until_ready(60)
        job = client.create(script(frames=2), VIDEO).job
        client.watch(job).result()
        running.kill()
    assert [path.name.startswith("mimicmotion-") for path in tmp_path.iterdir()] == [True]
    with hosted(folder=tmp_path) as host, Client(host.address) as client:
        (folder,) = tmp_path.iterdir()
        assert folder == host.server.store.folder, "what the killed server left is removed"
        with pytest.raises(NotFound):
            client.get(job)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "place",
    [("denoise", 13), pytest.param(("decode", 8), marks=SLOW), pytest.param(("denoise", 9), marks=SLOW)],
)
def test_a_server_that_is_killed_in_the_second_video_goes_on_there(tmp_path, place):
    """The first is taken as it is, also what of it was not told; none is told twice."""
    settings = {**SETTINGS, "seeds": (3, 1, 2)}
    with hosted() as host, Client(host.address) as client:
        undisturbed = [video.read() for video in client.animate(PICTURE, VIDEO, settings).result().videos]
    with process(**options(tmp_path)) as (running, address), Client(address) as client:
        client.wait_until_ready(20)
        job = client.create(PICTURE, VIDEO, settings).job
        before = watch_until(client, job, *place)
        engine = psutil.Process(running.pid).children()
        running.kill()
        psutil.wait_procs(engine, timeout=5)
    with hosted(**options(tmp_path)) as host, Client(host.address) as client:
        after = list(client.watch(job, after=before[-1].sequence))
        result = client.watch(job).result()
        assert [video.read() for video in result.videos] == undisturbed
        assert [video.done.facts.settings.seed for video in result.videos] == [3, 1, 2]
        for number, video in enumerate(undisturbed, 1):
            told = [event for event in (*before, *after) if event.kind == "video" and event.video == number]
            assert b"".join(event.data for event in told) == video
        steps = [event.step for event in after if isinstance(event, Progress) and event.stage == "denoise"]
        assert min(steps) > 6, "the first video is not made again"


# ---- a crash at every place, with the real animator: pytest tests/service/test_resume.py -m slow ----

PLACES = [("denoise", step) for step in range(1, 5)] + [("decode", frame) for frame in range(1, 6)]
REAL = {"steps": 4, "frames": 5, "decode_chunk": 1, "seed": 7}


@contextmanager
def real_server(bundle: Path, store: Path) -> Iterator[tuple[psutil.Process, Client]]:
    """`mimicmotion-trt serve` that keeps every step; gives (its process, a client)."""
    ready = store.parent / "ready"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "mimicmotion_trt", "serve", "--bundle", str(bundle), "--threads", "1"]
    command += ["--port", "0", "--store", str(store), "--ready-file", str(ready), "--checkpoint-share", "1e6"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: ready.exists(), 60)
        with Client(ready.read_text()) as client:
            yield psutil.Process(running.pid), client
    finally:
        running.kill()
        running.wait()


def at(event: Event, stage: str, step: int) -> bool:
    return isinstance(event, Progress) and event.stage == stage and event.step >= step


@pytest.fixture(scope="module")
def real_video(bundle, tmp_path_factory) -> bytes:
    with real_server(bundle, tmp_path_factory.mktemp("undisturbed") / "store") as (_, client):
        video: bytes = client.animate(PERSON, MOTION, REAL).result().read()
        return video


@pytest.mark.slow
def test_an_engine_that_dies_at_any_step_or_chunk_changes_no_byte(bundle, tmp_path, real_video):
    with real_server(bundle, tmp_path / "store") as (server, client):
        for place in PLACES:
            client.wait_until_ready(60)
            (engine,) = (one for one in server.children() if "spawn_main" in " ".join(one.cmdline()))
            animation = client.animate(PERSON, MOTION, REAL)
            for event in animation:
                if engine.is_running() and at(event, *place):
                    engine.kill()
                    engine.wait()
            assert animation.result().read() == real_video


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_server_that_dies_at_any_step_or_chunk_changes_no_byte(bundle, tmp_path, real_video, place):
    with real_server(bundle, tmp_path / "store") as (server, client):
        job, before = client.create(PERSON, MOTION, REAL).job, []
        with client.watch(job) as watching:
            for event in watching:
                before.append(event)
                if at(event, *place):
                    break
        server.kill()
    with real_server(bundle, tmp_path / "store") as (_, client):
        after = list(client.watch(job, after=before[-1].sequence))
        assert video_of(before) + video_of(after) == real_video == client.watch(job).result().read()


# ---- callers and keys ----


def test_a_job_ends_with_its_last_caller_only(host, client):
    picture = script(pause=0.03, frames=5)
    first = client.animate(picture, VIDEO, {"steps": 300}, request_id="two callers")
    next(first)
    with Client(host.address) as other:
        second = other.animate(picture, VIDEO, {"steps": 300}, request_id="two callers")
        next(second)
        assert second.job == first.job
        first.cancel()
        time.sleep(0.3)
        assert client.get(first.job).state == "running"
        second.cancel()
        until(lambda: client.get(first.job).state == "cancelled")
        third = other.animate(script(frames=5), VIDEO, {"steps": 300}, request_id="two callers")
        assert third.result().done.frames == 5, "the key is free again"


def test_one_caller_that_detaches_keeps_the_job(host, client):
    picture = script(pause=0.02, frames=7)
    first = client.animate(picture, VIDEO, request_id="detached later")
    next(first)
    with Client(host.address) as other:
        second = other.animate(picture, VIDEO, request_id="detached later", detach=True)
        next(second)
        second.cancel()
    first.cancel()
    assert client.watch(first.job).result().done.frames == 7


def test_another_picture_of_the_same_length_is_another_request(client):
    client.create(script(frames=3), VIDEO, request_id="content")
    with pytest.raises(KeyReused):
        client.create(script(frames=4), VIDEO, request_id="content")


def test_a_retry_does_not_wait_for_an_upload_that_died(host, client):
    """Nor does the first one disturb it, should it still be alive."""
    parts = list(Upload(script(frames=3), VIDEO, None, request_id="retried"))
    goes_on = threading.Event()

    def slow() -> Iterator[pb.CreateAnimationRequest]:
        yield pb.CreateAnimationRequest(upload=parts[0])
        goes_on.wait(20)
        yield from (pb.CreateAnimationRequest(upload=part) for part in parts[1:])

    with grpc.insecure_channel(host.address) as channel:
        first = pb_grpc.AnimationServiceStub(channel).CreateAnimation.future(slow())
        until(lambda: host.server.scheduler.uploads == 1)
        retried = client.animate(script(frames=3), VIDEO, request_id="retried").result()
        goes_on.set()
        answer = first.result(20)
    assert retried.done.frames == 3
    assert answer.existed
    assert client.watch(answer.animation.job).result().read() == retried.read()
