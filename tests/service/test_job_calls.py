"""A job as a thing of its own: created, watched, fetched, listed, cancelled, estimated."""

from __future__ import annotations

import threading
import time

import pytest

from mimicmotion_trt import errors
from mimicmotion_trt.events import Done, Progress, Queued
from mimicmotion_trt.service import Client, Keep
from mimicmotion_trt.service.status import Busy, KeyReused, NotFound

from .hosting import hosted, script, until

VIDEO = b"a video"
LONG = script(pause=0.05, frames=4)


def sequences(events) -> list[int]:
    return [event.sequence for event in events]


def test_a_created_job_can_be_watched_again_from_any_point(client, tmp_path):
    job = client.create(script(frames=30, noise=True), VIDEO).job
    first = client.watch(job, output=tmp_path / "first.mp4")
    live = list(first)
    assert isinstance(live[-1], Done)
    assert client.watch(job).result().read() == (tmp_path / "first.mp4").read_bytes()
    kept = [event for event in client.watch(job) if not isinstance(event, Progress | Queued)]
    assert kept == [e for e in live if not isinstance(e, Progress | Queued)], (
        "only reports are merged or dropped"
    )
    for after in (0, kept[3].sequence, kept[-2].sequence, kept[-1].sequence, 10**9):
        seen = [event for event in client.watch(job, after=after) if not isinstance(event, Progress | Queued)]
        assert sequences(seen) == [n for n in sequences(kept) if n > after]


def test_watching_from_the_middle_gives_no_half_video(client, tmp_path):
    job = client.create(script(), VIDEO).job
    client.watch(job).result()
    with pytest.raises(errors.ServiceError):
        client.watch(job, after=3, output=tmp_path / "out.mp4").result()
    assert list(tmp_path.iterdir()) == []


def test_many_watch_one_job_at_once(client):
    job = client.create(LONG, VIDEO).job
    videos: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: videos.append(client.watch(job).result().read())) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(videos) == 5
    assert len(set(videos)) == 1


def test_the_same_key_gives_the_same_job(client):
    picture = script(frames=3)
    first = client.create(picture, VIDEO, request_id="mine")
    assert client.create(picture, VIDEO, request_id="mine").job == first.job
    assert client.create(picture, VIDEO).job != first.job
    animation = client.animate(picture, VIDEO, request_id="mine")
    assert animation.result().done.frames == 3
    assert animation.job == first.job
    with pytest.raises(KeyReused):
        client.create(picture, VIDEO, {"steps": 2}, request_id="mine")


def test_a_key_runs_again_after_a_failure(client):
    with pytest.raises(errors.EngineError):
        client.animate(script(fail="EngineError"), VIDEO, request_id="again").result()
    client.create(script(frames=1), VIDEO, request_id="again")


def test_concurrent_creates_under_one_key_run_once(host):
    jobs: list[str] = []

    def create() -> None:
        with Client(host.address) as client:
            jobs.append(client.create(script(frames=2), VIDEO, request_id="one").job)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(jobs) == 8
    assert len(set(jobs)) == 1


def test_positions_count_down_and_come_with_a_time(client):
    client.animate(LONG, VIDEO).result()  # something to measure
    running = client.create(LONG, VIDEO).job
    waiting = [client.create(script(frames=i + 1), VIDEO).job for i in range(3)]
    client.cancel(client.create(script(), VIDEO).job)  # behind them all: their positions stay
    last = list(client.watch(waiting[-1]))
    queued = [event for event in last if isinstance(event, Queued)]
    assert [event.position for event in queued] == [2, 1, 0]
    assert all(event.eta is not None for event in queued)
    assert queued[0].eta > 0
    order = sorted([running, *waiting], key=lambda job: client.get(job).started or 0.0)
    assert order == [running, *waiting], "first come, first served"


def test_get_tells_each_state(client):
    job = client.create(script(pause=0.05), VIDEO, {"steps": 20}, request_id="states")
    assert job.state in ("queued", "running")
    until(lambda: client.get(job.job).progress is not None)
    info = client.get(job.job)
    assert (info.state, info.request_id, info.settings.steps) == ("running", "states", 20)
    assert info.created <= (info.started or 0.0) <= time.time()
    client.watch(job.job).result()
    info = client.get(job.job)
    assert info.state == "succeeded"
    assert info.done is not None
    assert info.done.frames == 6
    assert info.last_sequence == info.done.sequence
    assert (info.ended or 0.0) > (info.started or 0.0)
    assert client.list()[0].job == job.job


def test_a_failed_job_tells_why_to_everyone(client):
    job = client.create(script(fail="MotionError", stage="pose"), VIDEO).job
    for _ in range(2):
        with pytest.raises(errors.MotionError, match="It went wrong"):
            list(client.watch(job))
    info = client.get(job)
    assert info.state == "failed"
    assert isinstance(info.error, errors.MotionError)
    assert info.error.remedy == "Do better."


def test_cancel_stops_a_running_job_within_a_step_and_a_waiting_one_at_once(client):
    running = client.create(script(pause=0.05), VIDEO, {"steps": 1000}).job
    waiting = client.create(LONG, VIDEO).job
    until(lambda: client.get(running).state == "running")
    assert client.cancel(waiting).state == "cancelled"
    assert client.cancel(running).cancel_pending, "it stops within a step"
    began = time.monotonic()
    with pytest.raises(errors.Cancelled):
        client.watch(running).result()
    assert time.monotonic() - began < 30
    assert (client.get(running).state, client.get(running).cancel_pending) == ("cancelled", False)
    assert client.cancel(running).state == "cancelled", "cancelling twice is fine"
    assert client.animate(script(), VIDEO).result()


def test_estimates_grow_with_the_work(client):
    client.animate(script(pause=0.01), VIDEO).result()
    small, large = client.estimate(10), client.estimate(100)
    assert (small.frames, small.segments, large.segments) == (10, 2, 20)
    assert 0 < small.seconds < large.seconds
    assert client.estimate(100, {"steps": 400}).seconds > large.seconds
    assert client.estimate(100, {"frames": 10}).frames == 10
    assert client.estimate(seconds=10).frames == 150
    assert client.estimate(seconds=10, settings={"fps": 60}).frames == 600
    assert client.estimate(seconds=10, settings={"fps": 60, "start": 2, "end": 5}).frames == 180
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(errors.SettingsError, match="seconds is"):
            client.estimate(seconds=seconds)
    assert small.queue_seconds == 0.0
    assert small.measured_jobs > 0
    with pytest.raises(errors.SettingsError):
        client.estimate(0)
    with pytest.raises(errors.SettingsError):
        client.estimate(10, {"overlap": 8})


def test_unknown_jobs_are_not_found(client):
    for ask in (client.get, client.cancel, lambda job: list(client.watch(job))):
        with pytest.raises(NotFound):
            ask("no such job")


def test_a_full_queue_sends_callers_away_with_a_time():
    with hosted(max_queue=2) as host, Client(host.address) as client:
        jobs = [client.create(LONG, VIDEO).job]
        until(lambda: client.get(jobs[0]).state == "running")
        jobs += [client.create(LONG, VIDEO).job for _ in range(2)]
        with pytest.raises(Busy) as caught:
            client.create(LONG, VIDEO)
        assert caught.value.retry_after >= 1.0
        client.cancel(jobs[2])
        assert client.create(script(), VIDEO).job


def test_the_store_forgets_old_jobs_and_their_files():
    with hosted(keep=Keep(jobs=2)) as host, Client(host.address) as client:
        jobs = []
        for _ in range(4):
            jobs.append(client.create(script(frames=1), VIDEO, {"steps": 1}).job)
            client.watch(jobs[-1]).result()
        until(lambda: [info.job for info in client.list()] == jobs[:1:-1])
        until(
            lambda: sorted(p.name for p in (host.server.store.folder / "jobs").iterdir()) == sorted(jobs[2:])
        )
        assert [p.name for p in (host.server.store.folder / "jobs" / jobs[3]).iterdir()] == ["video.mp4"]


def test_priority_and_deadline_are_kept_with_the_job(client):
    job = client.create(script(), VIDEO, priority=3, deadline=60.0)
    assert job.priority == 3
    assert job.deadline == pytest.approx(job.created + 60.0, abs=1.0)
    for wrong in ({"priority": 10}, {"deadline": 0.0}, {"deadline": float("nan")}, {"deadline": -1}):
        with pytest.raises(errors.SettingsError) as caught:
            client.create(script(), VIDEO, **wrong)
        assert caught.value.field in wrong
