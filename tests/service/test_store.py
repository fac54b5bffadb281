"""The store of jobs on disk: what it keeps, what it drops, and what it does with damage and a full disk."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import subprocess
import time
import zlib
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mimicmotion_trt.errors import Cancelled, EngineError, ServiceError
from mimicmotion_trt.events import Accepted, Done, Event, Progress, Queued, Started, Video
from mimicmotion_trt.service import Client
from mimicmotion_trt.service.config import Keep
from mimicmotion_trt.service.database import MIGRATIONS, Database
from mimicmotion_trt.service.jobs import StoredJob
from mimicmotion_trt.service.status import Busy, EngineLost, KeyReused, NotFound
from mimicmotion_trt.service.store import JobStore
from mimicmotion_trt.settings import Settings

from .hosting import process, script

PIECE = Video(0, 5, zlib.crc32(b"video"))


def done(size: int = 10) -> Done:
    return Done(10, 12.0, (64, 64), size, "", {"denoise": 1.0})


def story(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is written as a coroutine."""

    def test(tmp_path: Path) -> None:
        async def run() -> None:
            await function(tmp_path)
            await asyncio.sleep(0.05)  # folders are removed in a thread

        asyncio.run(run())

    test.__name__ = function.__name__
    return test


async def accepted(store: JobStore, key: str = "", content: bytes = b"", **more: Any) -> StoredJob:
    job = store.create(key, content, "video", Settings(), **more)
    job.file("picture").write_bytes(b"a picture")
    job.file("motion").write_bytes(b"a motion")
    await store.accept(job)
    return job


async def ended(
    store: JobStore, outcome: Done | Exception | None = None, now: float = 1.0, **more: Any
) -> str:
    job = await accepted(store, **more)
    if outcome is None:
        job.videos[0].write_bytes(b"video")
    job.end(outcome or done(), now)
    await job.over.wait()
    return job.id


async def events(job: StoredJob, after: int = 0) -> list[Event]:
    return [event async for event in job.events(after)]


async def swept(store: JobStore) -> list[str]:
    store.sweep()
    await store.flush()
    return [job.id for job in store.page()[0]]


# ---- what is kept ----


@pytest.mark.parametrize(
    ("keep", "left"),
    [(Keep(jobs=2), 2), (Keep(bytes=35), 3), (Keep(seconds=2.5), 2), (Keep(), 5)],
)
def test_the_oldest_finished_jobs_go_first(tmp_path, keep, left):
    async def run():
        store = JobStore(tmp_path, keep, clock=lambda: 5.0)
        jobs = [await ended(store, now=second) for second in range(5)]
        running = await accepted(store)
        kept = await swept(store)
        assert kept[0] == running.id
        assert kept[1:] == jobs[::-1][:left]
        await asyncio.sleep(0.1)
        assert len(list((tmp_path / "jobs").iterdir())) == left + 1
        with pytest.raises(NotFound):
            store.get("no such job")
        await store.close()

    asyncio.run(run())


@story
async def test_failed_jobs_push_out_no_video(tmp_path):
    store = JobStore(tmp_path, Keep(jobs=3), clock=lambda: 5.0)
    video = await ended(store)
    failed = [await ended(store, EngineError("x")) for _ in range(5)]
    assert await swept(store) == [*failed[:1:-1], video]
    await store.close()


@story
async def test_a_job_that_is_read_stays(tmp_path):
    store = JobStore(tmp_path, Keep(jobs=1), clock=lambda: 5.0)
    first = await accepted(store)
    reader = first.events()
    await anext(reader)
    first.end(done(), 1.0)
    second = await ended(store, now=2.0)
    assert await swept(store) == [second, first.id]
    await reader.aclose()
    assert await swept(store) == [second]
    await store.close()


@story
async def test_the_end_drops_inputs_and_keeps_only_a_whole_video(tmp_path):
    store = JobStore(tmp_path, Keep())
    for outcome, left in ((done(), ["video.mp4"]), (EngineError("x"), []), (Cancelled("x"), [])):
        job = await accepted(store)
        for name in ("video.mp4", "latents-a.npz", "poses.npz"):
            (job.folder / name).write_bytes(b"x")
        job.end(outcome, 1.0)
        await job.over.wait()
        assert [path.name for path in job.folder.iterdir()] == left
    await store.close()


@story
async def test_a_key_gives_the_same_job_until_it_failed(tmp_path):
    store = JobStore(tmp_path, Keep())
    upload = store.create("key", b"content", "video", Settings())
    assert store.same("key", b"content") is None, "an upload that may be dead is nobody's job"
    store.discard(upload)
    job = await accepted(store, "key", b"content")
    await accepted(store, "", b"content")
    assert store.same("key", b"content") is job
    assert store.same("key", b"content", "somebody else") is None
    assert store.same("other", b"content") is None
    assert store.same("", b"content") is None, "no key is never the same"
    with pytest.raises(KeyReused):
        store.same("key", b"other content")
    job.cancel_asked = True
    assert store.same("key", b"content") is None, "it is about to be cancelled"
    job.end(EngineError("x"), 1.0)
    await job.over.wait()
    assert store.same("key", b"content") is None
    await store.close()


@story
async def test_pages_go_from_the_newest_to_the_oldest(tmp_path):
    store = JobStore(tmp_path, Keep(seconds=1e10))
    jobs = [await ended(store, client="ab"[index % 2]) for index in range(7)][::-1]
    uploading = store.create("", b"", "video", Settings())
    first, before = store.page(3)
    second, before = store.page(3, before)
    third, end = store.page(3, before)
    assert [job.id for job in (*first, *second, *third)] == [uploading.id, *jobs]
    assert end == 0
    assert store.page(8)[1] == 0
    mine, before = store.page(2, may_see=lambda client: client == "a")
    rest, end = store.page(2, before, may_see=lambda client: client == "a")
    assert [job.id for job in (*mine, *rest)] == jobs[::2]
    await store.close()


# ---- from one server to the next ----


@story
async def test_what_was_told_is_there_again_and_numbers_go_on(tmp_path):
    store = JobStore(tmp_path, Keep())
    job = await accepted(store, "key", b"content", priority=3)
    for event in (Queued(0, None), Started(9, 12.5, (64, 128)), Progress("pose", 1, 2), PIECE):
        job.tell(event)
    job.deaths = 1
    job.save()
    job.videos[0].write_bytes(b"video")
    await store.flush()
    told = job.log.last_sequence
    await store.close()
    store = JobStore(tmp_path, Keep())
    (again,) = store.unfinished
    assert (again.id, again.state, again.deaths, again.priority, again.frames) == (job.id, "queued", 1, 3, 9)
    assert again.told == [PIECE]
    assert store.same("key", b"content") is again
    again.tell(Queued(0, None))
    await store.flush()
    await asyncio.sleep(0)
    assert again.log.last_sequence > told
    again.end(done(), 2.0)
    found = await events(again)
    assert [type(event) for event in found] == [Accepted, Started, Video, Queued, Done]
    assert found[2].data == b"video"
    assert await events(again, after=found[2].sequence) == found[3:]
    await store.close()
    store = JobStore(tmp_path, Keep(seconds=1e10))
    finished = store.get(job.id)
    assert store.unfinished == []
    assert [type(event) for event in await events(finished)] == [Accepted, Started, Video, Done]
    assert (finished.info().state, finished.info().last_sequence) == ("succeeded", found[-1].sequence)
    await store.close()


@story
async def test_a_piece_that_a_power_cut_took_is_waited_for(tmp_path):
    store = JobStore(tmp_path, Keep())
    job = await accepted(store)
    job.tell(PIECE)
    reader = job.events(after=1)
    piece = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0.15)
    job.videos[0].write_bytes(bytes(5))
    await asyncio.sleep(0.15)
    assert not piece.done()
    job.videos[0].write_bytes(b"video")
    event = await piece
    assert isinstance(event, Video)
    assert event.data == b"video"
    job.end(done(), store.clock())
    await job.over.wait()
    job.videos[0].write_bytes(b"other")
    with pytest.raises(ServiceError, match="damaged at byte 0"):
        await events(job)
    job.videos[0].unlink()
    with pytest.raises(NotFound, match="gone from the server's disk"):
        await events(job)
    await store.close()


@story
async def test_an_error_is_the_same_after_a_restart(tmp_path):
    store = JobStore(tmp_path, Keep())
    lost = EngineLost("It died.", remedy="Try.", retry_after=7.5)
    job = await ended(store, lost, now=time.time())
    await store.close()
    store = JobStore(tmp_path, Keep())
    with pytest.raises(EngineLost, match="It died") as caught:
        await events(store.get(job))
    assert (caught.value.remedy, caught.value.retry_after) == ("Try.", 7.5)
    await store.close()


@story
async def test_what_cannot_go_on_says_why_and_the_others_do(tmp_path):
    store = JobStore(tmp_path, Keep())
    lost, cancelled, damaged, sound = [await accepted(store) for _ in range(4)]
    store.create("", b"", "video", Settings())
    (tmp_path / "jobs" / "of a job that was dropped").mkdir()
    cancelled.cancel_asked = True
    cancelled.save()
    await store.close()
    lost.file("motion").unlink()
    with sqlite3.connect(tmp_path / "jobs.db") as other:
        other.execute("UPDATE jobs SET record = replace(record, '{', '[') WHERE id = ?", [damaged.id])
    store = JobStore(tmp_path, Keep())
    assert [job.id for job in store.unfinished] == [sound.id]
    for job, kind, text in (
        (lost, ServiceError, "upload was lost.*motion"),
        (cancelled, Cancelled, "cancelled"),
        (damaged, ServiceError, "record is damaged"),
    ):
        with pytest.raises(kind, match=text):
            await events(store.get(job.id))
    left = {path.name for path in (tmp_path / "jobs").iterdir()}
    assert left == {job.id for job in (lost, cancelled, damaged, sound)}
    await store.close()


@story
async def test_a_job_that_servers_die_of_is_given_up(tmp_path):
    store = JobStore(tmp_path, Keep())
    poison, kept = await accepted(store), await accepted(store)
    for job in (poison, kept):
        job.state = "running"
        job.tell(Started(9, 12.5, (64, 128)))
    for life in range(3):
        kept = store.get(kept.id)
        kept.state = "running"
        kept.part(ServiceError("The server stops."))
        await store.close()
        store = JobStore(tmp_path, Keep())
        for job in store.unfinished:
            job.state = "running"
            job.save()
        assert len(store.unfinished) == (2 if life < 2 else 1)
    with pytest.raises(EngineLost, match="3 servers died"):
        await events(store.get(poison.id))
    await store.close()


def make_ten_thousand(folder: Path) -> None:
    """Of the one job of a store."""
    with sqlite3.connect(folder / "jobs.db") as store:
        store.execute(
            "WITH RECURSIVE n(x) AS (SELECT 2 UNION ALL SELECT x + 1 FROM n WHERE x < 10000)"
            " INSERT INTO jobs SELECT x, 'job' || x, client, 'key' || x, state, created, ended, bytes,"
            " numbered, record FROM jobs, n"
        )
        store.execute("INSERT INTO events SELECT jobs.id, sequence, event FROM events, jobs WHERE number > 1")


@pytest.mark.slow
def test_a_server_with_ten_thousand_finished_jobs_starts_as_an_empty_one_does(tmp_path):
    """Both in turn, five times; the fastest start of each counts."""
    keep = {"jobs": 20_000, "seconds": 1e10}
    seconds: dict[Path, list[float]] = {tmp_path / "empty": [], tmp_path / "full": []}
    with process(store=str(tmp_path / "full"), keep=keep) as (_, address), Client(address) as client:
        client.wait_until_ready(60)
        client.animate(script(frames=2), b"a video").result()
    make_ten_thousand(tmp_path / "full")
    for store in [*seconds] * 5:
        began = time.monotonic()
        with process(store=str(store), keep=keep) as (_, address), Client(address) as client:
            client.wait_until_ready(60)
            seconds[store].append(time.monotonic() - began)
            jobs, token = client.page(10)
            assert len(jobs) == (10 if token else 0)
    empty, full = (min(some) for some in seconds.values())
    print(f"empty {empty:.2f} s, with 10,000 jobs {full:.2f} s")
    assert full - empty < 2


@story
async def test_ten_thousand_finished_jobs_take_no_time(tmp_path):
    store = JobStore(tmp_path, Keep(jobs=20_000, seconds=1e10))
    job = await ended(store, key="key", content=b"content")
    await store.close()
    make_ten_thousand(tmp_path)
    began = time.process_time()
    store = JobStore(tmp_path, Keep(jobs=20_000, seconds=1e10))
    first, before = store.page(100)
    assert store.same("key", b"content") is not None
    assert [type(event) for event in await events(store.get("job9999"))] == [Accepted, Done]
    assert time.process_time() - began < 2.0
    assert (len(first), first[0].id, before) == (100, "job10000", 9901)
    began, count = time.process_time(), 100
    while before:
        page, before = store.page(1000, before)
        count += len(page)
    assert count == 10_000
    assert len(await swept(store)) == 100
    assert time.process_time() - began < 4.0
    assert store.get(job).state == "succeeded"
    await store.close()


def test_a_second_server_on_the_same_store_is_refused(tmp_path):
    store = JobStore(tmp_path, Keep())
    with pytest.raises(ServiceError, match="another run is at work"):
        JobStore(tmp_path, Keep())
    asyncio.run(store.close())
    asyncio.run(JobStore(tmp_path, Keep()).close())


def test_temporary_stores_of_servers_that_were_killed_are_removed(tmp_path):
    left, living = (JobStore.open(None, tmp_path, Keep()) for _ in range(2))
    copy = tmp_path / "mimicmotion-of-another-life"
    subprocess.run(["cp", "-r", left.folder, copy], check=True)  # nobody has its lock
    (tmp_path / "mimicmotion-of-something-else").mkdir()
    asyncio.run(JobStore.open(None, tmp_path, Keep()).close())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [left.folder.name, living.folder.name, "mimicmotion-of-something-else"]
    )
    for store in (left, living):
        asyncio.run(store.close())
    assert [path.name for path in tmp_path.iterdir()] == ["mimicmotion-of-something-else"]


@story
async def test_a_clock_that_jumps_drops_nothing(tmp_path):
    now = 1000.0
    store = JobStore(tmp_path, Keep(seconds=10.0), clock=lambda: now)
    job = await ended(store, now=1005.0)
    for time_of_day in (1000.0, 3.0, 1014.0):
        now = time_of_day
        assert await swept(store) == [job]
    now = 1016.0
    assert await swept(store) == []
    await store.close()


# ---- damage and a full disk ----


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True)
    if mount.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        for size in itertools.chain([4096] * 1000, [1] * 5000):
            file.write(bytes(size))
    return filler


def test_on_a_full_disk_calls_are_refused_and_events_wait_for_space(small_disk):
    async def run():
        store = JobStore(small_disk, Keep())
        job = await accepted(store)
        filler = fill(small_disk)
        for _ in range(200):  # until the database's file has no room left
            job.tell(PIECE)
            await asyncio.sleep(0)
        await store.flush()
        seen = job.log.last_sequence
        assert seen < 201
        with pytest.raises((Busy, OSError)):
            await accepted(store)
        job.end(EngineError("x"), 1.0)
        await asyncio.sleep(0.2)
        assert not job.over.is_set(), "what is not written is not told"
        filler.unlink()
        await asyncio.wait_for(job.over.wait(), 5.0)
        assert job.log.last_sequence == 201
        await accepted(store)
        await store.close()

    asyncio.run(run())


@story
async def test_a_torn_last_write_is_as_if_it_had_not_been(tmp_path):
    store = JobStore(tmp_path / "store", Keep())
    for _ in range(3):
        await accepted(store)
    subprocess.run(["cp", "-r", tmp_path / "store", tmp_path / "cut"], check=True)
    log = tmp_path / "cut" / "jobs.db-wal"
    log.write_bytes(log.read_bytes()[:-2000])
    again = JobStore(tmp_path / "cut", Keep())
    assert len(again.unfinished) == 2
    await again.close()
    await store.close()


@pytest.mark.parametrize("damage", ["page", "header", "version"])
def test_a_database_that_cannot_be_used_is_named(tmp_path, damage):
    path = tmp_path / "jobs.db"
    database = Database(path)
    for number in range(300):
        database.write(lambda c, n=number: c.execute("INSERT INTO events VALUES ('a', ?, ?)", (n, "x" * 50)))
    database.close()
    data = bytearray(path.read_bytes())
    if damage == "version":
        with sqlite3.connect(path) as other:
            other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    else:
        at = 4096 * (len(data) // 4096 - 1) if damage == "page" else 0
        data[at : at + 200] = bytes(200)
        path.write_bytes(data)
    with pytest.raises(ServiceError, match="newer" if damage == "version" else "jobs.db cannot be used"):
        JobStore(tmp_path, Keep())


@story
async def test_a_database_that_breaks_while_it_is_used_is_told_and_tells_nothing_untrue(tmp_path):
    store = JobStore(tmp_path, Keep())
    job = await accepted(store)
    with sqlite3.connect(tmp_path / "jobs.db") as other:
        other.execute("DROP TABLE events")
    job.tell(PIECE)
    with pytest.raises(sqlite3.Error, match="no such table"):
        await asyncio.wait_for(store.broken(), 5.0)
    assert job.log.last_sequence == 1, "what is not written is not told"
    with pytest.raises(Busy):
        await accepted(store)
    await store.close()


@story
async def test_a_folder_that_a_cleaner_removed_is_made_again(tmp_path):
    store = JobStore.open(None, tmp_path, Keep())
    before = await accepted(store)
    subprocess.run(["rm", "-r", store.folder], check=True)
    after = await accepted(store)
    assert after.file("picture").read_bytes() == b"a picture"
    store.sweep()
    before.end(EngineError("its files are gone"), store.clock())
    await asyncio.wait_for(before.over.wait(), 5.0)
    assert [job.id for job in store.page()[0]] == [after.id, before.id]
    await store.close()
    assert list(tmp_path.iterdir()) == []
