"""The bounded store of jobs."""

from __future__ import annotations

import asyncio

import pytest

from mimicmotion_trt.errors import Cancelled, EngineError
from mimicmotion_trt.events import Done, Queued
from mimicmotion_trt.service.jobs import JobStore, Keep
from mimicmotion_trt.service.status import KeyReused, NotFound
from mimicmotion_trt.settings import Settings


def done(size: int = 10, frames: int = 10, seconds: float = 1.0) -> Done:
    shares = dict.fromkeys(("pose", "encode", "denoise", "decode", "write"), seconds / 5)
    return Done(frames, 12.0, (64, 64), size, "", shares)


def in_loop(story):
    async def run():
        await story()
        await asyncio.sleep(0.05)  # folders are removed in a thread

    asyncio.run(run())


@pytest.mark.parametrize(
    ("keep", "left"),
    [(Keep(jobs=2), 2), (Keep(bytes=35), 3), (Keep(seconds=2.5), 2), (Keep(), 5)],
)
def test_the_oldest_finished_jobs_go_first(tmp_path, keep, left):
    async def story():
        store = JobStore(tmp_path, keep, clock=lambda: 5.0)
        jobs = [store.create("", b"", "video", Settings()) for _ in range(5)]
        running = store.create("", b"", "video", Settings())
        for second, job in enumerate(jobs):
            job.end(done(10), now=second)
        kept = store.all()
        assert kept[0] is running
        assert kept[1:] == jobs[::-1][: len(kept) - 1]
        assert len(kept) - 1 == left
        with pytest.raises(NotFound):
            store.get("no such job")

    in_loop(story)


def test_a_job_that_is_read_stays_and_a_dropped_one_takes_its_folder_along(tmp_path):
    async def story():
        store = JobStore(tmp_path, Keep(jobs=1), clock=lambda: 5.0)
        first, second = (store.create("", b"", "video", Settings()) for _ in range(2))
        reader = first.events()
        first.log.append(Queued(0, None))
        await anext(reader)
        first.end(done(), 1.0)
        second.end(done(), 2.0)
        assert store.all() == [second, first]
        await reader.aclose()
        third = store.create("", b"", "video", Settings())
        third.end(done(), 3.0)
        assert store.all() == [third]

    in_loop(story)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_end_drops_inputs_and_keeps_only_a_whole_video(tmp_path):
    async def story():
        store = JobStore(tmp_path, Keep())
        for outcome, left in ((done(), ["video.mp4"]), (EngineError("x"), []), (Cancelled("x"), [])):
            job = store.create("", b"", "video", Settings())
            for name in ("picture", "motion", "reference_pose", "video.mp4"):
                (job.folder / name).write_bytes(b"x")
            job.end(outcome, 1.0)
            assert [path.name for path in job.folder.iterdir()] == left

    in_loop(story)


def test_a_key_gives_the_same_job_until_it_failed(tmp_path):
    async def story():
        store = JobStore(tmp_path, Keep())
        job = store.create("key", b"content", "video", Settings())
        store.create("", b"content", "video", Settings())
        assert store.same("key", b"content") is job
        assert store.same("other", b"content") is None
        assert store.same("", b"content") is None, "no key is never the same"
        with pytest.raises(KeyReused):
            store.same("key", b"other content")
        job.end(EngineError("x"), 1.0)
        assert store.same("key", b"content") is None

    in_loop(story)
