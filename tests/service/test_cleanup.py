"""After everything that can happen to a call nothing is left of it, and the next job runs.

Three ways to ask for a video, and seven things that happen meanwhile. After each, no job is half alive, and no task,
file descriptor, process or temporary file is left. Seven cases run always, the others are slow tests; all 21:
`python -m pytest tests/service/test_cleanup.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from mimicmotion_trt import errors
from mimicmotion_trt.service import Client
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2 as pb
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2_grpc as pb_grpc
from mimicmotion_trt.service.status import Busy, Late, from_rpc_error
from mimicmotion_trt.service.transfer import Upload

from .hosting import Host, fill, hosted, process, script, until

VIDEO = b"a video"
PICTURE = script(frames=6, noise=True, size=[128, 128], pause=0.03)
SETTINGS = {"steps": 20, "decode_chunk": 2}
ENDLESS = SETTINGS | {"steps": 1000}
NEXT = script(frames=3, noise=True, size=[64, 64])
SPAWN = multiprocessing.get_context("spawn")


# ---- three ways to ask ----


class Animate:
    """One call, which owns its job."""

    def __init__(self, address: str, settings: Any, timeout: float | None = None, output: Path | None = None):
        self.client = Client(address, patience=0)
        self.animation = self.client.animate(PICTURE, VIDEO, settings, timeout=timeout, output=output)
        self.job = next(self.animation).job

    def send_rest(self) -> None:
        """All of it was sent."""

    def cancel(self) -> None:
        self.animation.cancel()

    def end(self) -> str:
        """Wait for it; the SHA-256 of the video."""
        return str(self.animation.result().done.sha256)

    def close(self) -> None:
        self.client.close()


class CreateAndWatch(Animate):
    """A job of its own, and a call that watches it."""

    def __init__(self, address: str, settings: Any, timeout: float | None = None, output: Path | None = None):
        self.client = Client(address, patience=0)
        self.job = self.client.create(PICTURE, VIDEO, settings).job
        self.animation = self.client.watch(self.job, timeout=timeout, output=output)

    def cancel(self) -> None:
        self.client.cancel(self.job)


class HalfAnUpload:
    """An upload that has sent the picture, and the motion not yet."""

    def __init__(self, address: str, settings: Any, timeout: float | None = None, output: Path | None = None):
        self.client, self.channel, self.output = (
            Client(address, patience=0),
            grpc.insecure_channel(address),
            output,
        )
        self.go_on = threading.Event()
        create = pb_grpc.AnimationServiceStub(self.channel).CreateAnimation
        self.call = create.future(self._parts(settings), timeout=timeout)

    def _parts(self, settings: Any) -> Iterator[pb.CreateAnimationRequest]:
        for part in Upload(PICTURE, VIDEO, settings):
            if part.WhichOneof("part") == "motion":
                self.go_on.wait(20)
            yield pb.CreateAnimationRequest(upload=part)

    def send_rest(self) -> None:
        self.go_on.set()

    def cancel(self) -> None:
        self.call.cancel()

    def end(self) -> str:
        try:
            job = self.call.result(20).animation.job
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return str(self.client.watch(job, output=self.output).result().done.sha256)

    def close(self) -> None:
        self.call.cancel()
        self.go_on.set()
        self.channel.close()
        self.client.close()


WAYS = {"Animate": Animate, "Create and Watch": CreateAndWatch, "upload": HalfAnUpload}


@contextmanager
def under_way(way: str, address: str, *arguments: Any) -> Iterator[Any]:
    """A call that the server works on: it runs the job, or receives the upload."""
    with closing(WAYS[way](address, *arguments)) as call, Client(address) as client:
        until(lambda: any(job.state in ("receiving", "running") for job in client.list()))
        yield call


# ---- seven things that happen meanwhile ----


def nothing(host: Host, way: str, output: Path, right: str) -> None:
    with under_way(way, host.address, SETTINGS, None, output) as call:
        call.send_rest()
        assert call.end() == right


def cancel(host: Host, way: str, output: Path, right: str) -> None:
    with under_way(way, host.address, ENDLESS, None, output) as call:
        call.cancel()


def deadline(host: Host, way: str, output: Path, right: str) -> None:
    settings = ENDLESS if way == "Animate" else SETTINGS
    with under_way(way, host.address, settings, 0.5, output) as call, pytest.raises(Late):
        call.end()


def kill_client(host: Host, way: str, output: Path, right: str) -> None:
    begun = SPAWN.Event()
    client = SPAWN.Process(target=begin_and_wait, args=(way, host.address, begun))
    client.start()
    assert begun.wait(20)
    client.kill()
    client.join()
    client.close()


def begin_and_wait(way: str, address: str, begun: Any) -> None:
    """What the client does that is killed."""
    with under_way(way, address, ENDLESS if way == "Animate" else SETTINGS):
        begun.set()
        signal.pause()


def kill_engine(host: Host, way: str, output: Path, right: str) -> None:
    with under_way(way, host.address, SETTINGS, None, output) as call:
        os.kill(host.engine_pid, signal.SIGKILL)
        call.send_rest()
        assert call.end() == right


def fill_disk(host: Host, way: str, output: Path, right: str) -> None:
    with under_way(way, host.address, SETTINGS, None, output) as call:
        filler = fill(host.server.store.folder.parent)
        call.send_rest()
        if way == "upload":
            with pytest.raises(Busy, match="No space left"):
                call.end()
            filler.unlink()
        else:
            job = host.server.store.get(call.job)
            until(lambda: job.outcome is not None)
            filler.unlink()
            with pytest.raises(errors.OutputError, match="No space left"):
                call.end()


# ---- what is left ----


def states_of(host: Host) -> dict[str, str]:
    """The state of each job in the list."""
    with Client(host.address) as client:
        return {job.job: job.state for job in client.list()}


def files_of(host: Host) -> Counter[str]:
    """Files and folders of the store, but for the folders and finished videos of known jobs."""
    store = host.server.store
    jobs = store.page(1000)[0]  # not by a call, which would have a task and descriptors of its own
    kept = {job.folder for job in jobs} | {
        video for job in jobs if job.state == "succeeded" for video in job.videos
    }
    return Counter(
        f"file {path.relative_to(store.folder)}" for path in store.folder.rglob("*") if path not in kept
    )


def tasks_of(host: Host) -> Counter[str]:
    async def names() -> list[str]:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        return [f"task {getattr(task.get_coro(), '__qualname__', '')}" for task in tasks]

    return Counter(host.call(names))


def held(host: Host) -> Counter[str]:
    """A server's tasks and files; descriptors, child processes and temporary files of this process, where it runs."""
    found = tasks_of(host) + files_of(host)
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists the folder
            found[f"descriptor of {re.sub('[0-9]+', '', os.readlink(descriptor))}"] += 1
    found["processes"] = len(psutil.Process().children(recursive=True))
    return found + Counter(f"temporary {name}" for name in os.listdir(tempfile.gettempdir()))


def settled(host: Host) -> Counter[str]:
    """What is held when nothing happens."""
    seen: Counter[str] = Counter()
    while (now := held(host)) != seen:
        seen = now
        time.sleep(0.2)
    return seen


def what_stays(look: Callable[[], Counter[str]], before: Counter[str]) -> Counter[str]:
    """What is held beyond what was held before, and is not gone within seconds."""
    with suppress(AssertionError):
        until(lambda: not look() - before)
    return look() - before


# ---- the servers ----


@pytest.fixture(scope="module", autouse=True)
def temporary_files(tmp_path_factory) -> Iterator[None]:
    """A folder for temporary files that no other process uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Iterator[Host]:
    with hosted(store=tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def small_host(disk: Path) -> Iterator[Host]:
    with hosted(store=disk / "store") as running:
        yield running


@pytest.fixture(scope="module")
def videos(host: Host) -> dict[bytes, str]:
    """The SHA-256 of each picture's video when nothing happens."""
    return {picture: video_of(host, picture) for picture in (PICTURE, NEXT)}


def video_of(host: Host, picture: bytes) -> str:
    with Client(host.address) as client:
        result = client.animate(picture, VIDEO, SETTINGS).result()
        assert hashlib.sha256(result.read()).hexdigest() == result.done.sha256
        return str(result.done.sha256)


# ---- the table: each job's state in the list afterwards; "": there is no job ----

ROWS = [
    ("ok", nothing, ("succeeded", "succeeded", "succeeded")),
    ("cancel", cancel, ("cancelled", "cancelled", "")),
    ("deadline", deadline, ("cancelled", "succeeded", "")),
    ("client killed", kill_client, ("cancelled", "succeeded", "")),
    ("engine killed", kill_engine, ("succeeded", "succeeded", "succeeded")),
    ("disk full", fill_disk, ("failed", "failed", "")),
]
CASES = [
    pytest.param(way, happens, state, id=f"{way}, {name}", marks=() if way == "Animate" else pytest.mark.slow)
    for name, happens, states in ROWS
    for way, state in zip(WAYS, states, strict=True)
]


@pytest.mark.parametrize(("way", "happens", "state"), CASES)
def test_nothing_is_left_of_a_call_and_the_next_job_runs(request, tmp_path, videos, way, happens, state):
    host: Host = request.getfixturevalue("small_host" if happens is fill_disk else "host")
    assert video_of(host, NEXT) == videos[NEXT]
    before, known = settled(host), states_of(host)
    happens(host, way, tmp_path / "video.mp4", videos[PICTURE])
    until(lambda: not set(states_of(host).values()) & {"receiving", "queued", "running"})
    after = states_of(host)
    assert [after[job] for job in after.keys() - known.keys()] == ([state] if state else [])
    assert what_stays(lambda: held(host), before) == Counter()
    assert os.listdir(tmp_path) == (["video.mp4"] if happens in (nothing, kill_engine) else [])
    assert video_of(host, NEXT) == videos[NEXT]


@pytest.mark.parametrize(
    ("way", "state"),
    [
        pytest.param("Animate", "succeeded", marks=pytest.mark.slow),
        ("Create and Watch", "succeeded"),
        pytest.param("upload", "", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_of_a_call_whose_server_is_killed_and_started_again(
    host, tmp_path, videos, way, state
):
    store, output = tmp_path / "store", tmp_path / "video.mp4"
    before = settled(host)
    with process(store=str(store)) as (running, address), Client(address) as client:
        client.wait_until_ready(60)
        with under_way(way, address, SETTINGS, None, output) as call:
            engine = psutil.Process(running.pid).children(recursive=True)
            running.kill()
            with pytest.raises(errors.ServiceError):
                call.end()
        assert psutil.wait_procs(engine, timeout=30)[1] == []
    with hosted(store=store) as again, Client(again.address) as client:
        for job in client.list():
            assert client.watch(job.job).result().done.sha256 == videos[PICTURE]
        assert list(states_of(again).values()) == ([state] if state else [])
        idle = tasks_of(host) + files_of(host)
        assert what_stays(lambda: tasks_of(again) + files_of(again), idle) == Counter()
        assert video_of(again, NEXT) == videos[NEXT]
    assert os.listdir(tmp_path) == ["store"]
    assert what_stays(lambda: held(host), before) == Counter()
