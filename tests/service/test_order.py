"""In which order jobs begin, who makes room for whom, and who may join the queue."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt import errors
from mimicmotion_trt.events import Done
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.service import AsyncClient, Client
from mimicmotion_trt.service.admission import Admission
from mimicmotion_trt.service.order import HALF_LIFE, STRETCH, Demand, Order, Queue, forecast
from mimicmotion_trt.service.rates import Rates
from mimicmotion_trt.service.status import Busy, TooLate
from mimicmotion_trt.settings import Settings

from .hosting import hosted, script, until

VIDEO = b"a video"


def first(order: Order, now: float, *jobs: Demand) -> Demand:
    return min(jobs, key=lambda job: order.rank(job, now))


# ---- the order ----


def test_the_shortest_goes_first_until_the_longer_one_has_waited():
    order, long, short = Order(), Demand("a", 0.0, 60.0), Demand("a", 10.0, 1.0)
    assert first(order, 10.0, long, short) is short
    late = replace(short, came=STRETCH * 60.0)
    assert first(order, late.came, long, late) is long, "it has waited ten times its own seconds"


def test_a_higher_priority_goes_before_all_others():
    order, short, urgent = Order(), Demand("a", 0.0, 1.0), Demand("a", 5.0, 60.0, priority=1)
    assert first(order, 5.0, short, urgent) is urgent


def test_a_client_that_had_much_lets_others_go_first():
    order, greedy, other = Order(), Demand("greedy", 0.0, 2.0), Demand("other", 1.0, 3.0)
    assert first(order, 1.0, greedy, other) is greedy
    order.charge("greedy", 10.0, now=0.0)
    assert first(order, 1.0, greedy, other) is other
    assert order.used("greedy", HALF_LIFE) == pytest.approx(5.0)
    order.charge("greedy", -20.0, now=HALF_LIFE)
    assert order.used("greedy", HALF_LIFE) == 0.0


def test_a_deadline_is_kept_where_it_can_be():
    order, short = Order(), Demand("a", 0.0, 5.0)
    hurried = Demand("a", 0.0, 20.0, deadline=30.0)
    assert first(order, 0.0, short, hurried) is hurried, "it has to begin in 10 s"
    assert first(order, 0.0, short, replace(hurried, deadline=300.0)) is short


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100), st.floats(0, 50)), max_size=30))
def test_nobody_starves(jobs):
    """Whoever comes after a job's moment goes behind it, whatever else has happened."""
    order = Order()
    order.charge("a", 40.0, 0.0)
    waits = Demand("a", 0.0, 10.0)
    moment = order.rank(waits, 0.0)[1]
    assert moment <= STRETCH * (10.0 + HALF_LIFE / math.log(2))
    for client, after, seconds in jobs:
        later = Demand(client, moment + after, seconds)
        assert first(order, later.came, waits, later) is waits


def test_room_is_made_for_much_shorter_jobs_only():
    order, long, short = Order(), Demand("a", 0.0, 60.0), Demand("a", 10.0, 2.0)
    makes_room = order.makes_room
    assert makes_room(long, 1.0, 20.0, short, 10.0)
    assert not makes_room(long, 1.0, 3.0, short, 10.0), "it has only just begun"
    assert not makes_room(replace(long, seconds=5.0), 1.0, 20.0, short, 10.0), "it is nearly done"
    assert not makes_room(replace(long, deadline=71.0), 1.0, 20.0, short, 10.0), "it would miss its deadline"
    assert not makes_room(replace(long, priority=1), 1.0, 20.0, short, 10.0)
    assert makes_room(replace(long, seconds=5.0), 1.0, 20.0, replace(short, priority=1, seconds=99.0), 10.0)


def test_forecasts_fill_the_place_that_is_free_first():
    assert forecast([3.0, 1.0], [5.0, 1.0, 2.0]) == [1.0, 3.0, 4.0]


# ---- who may join ----


def queue(*seconds: float, measured: bool = True, client: str = "a") -> Queue:
    jobs = [Demand(client, 0.0, some) for some in seconds]
    return Queue(jobs, forecast([2.0], seconds), 1, measured)


def test_whoever_is_sent_away_is_told_when_a_place_will_be_free():
    admission, told = Admission(3, 1000.0, clock=lambda: 0.0), []
    for _ in range(4):
        with pytest.raises(Busy) as caught:
            admission.check_room(queue(10.0, 20.0, 30.0), Demand("b", 0.0, 1.0), None)
        told.append(caught.value.retry_after)
    for predicted, seconds in zip((2.0, 12.0, 32.0, 47.0), told, strict=True):
        assert predicted <= seconds <= 1.25 * predicted, "each is told a place of its own"


def test_a_client_that_has_its_places_waits_for_one_of_its_own_jobs():
    admission, one = Admission(10, 1000.0, clock=lambda: 0.0), Demand("a", 0.0, 1.0)
    with pytest.raises(Busy, match="2 jobs of yours"):
        admission.check_room(queue(10.0, 20.0), one, 2)
    admission.check_room(queue(10.0, 20.0), replace(one, client="b"), 2)
    admission.check_room(queue(10.0, 20.0), one, 3)


def test_callers_behind_one_name_are_told_one_place_each():
    admission, told = Admission(10, 1000.0, clock=lambda: 0.0), []
    for _ in range(2):
        with pytest.raises(Busy) as caught:
            admission.check_room(queue(10.0, 20.0), Demand("a", 0.0, 1.0), 2)
        told.append(caught.value.retry_after)
    assert 2.0 <= told[0] <= 2.5
    assert 12.0 <= told[1] <= 15.0


def test_the_queue_is_bounded_in_seconds_of_work():
    admission, job = Admission(10, 60.0, clock=lambda: 0.0), Demand("a", 0.0, 25.0)
    with pytest.raises(Busy, match="50 predicted seconds") as caught:
        admission.check_room(queue(20.0, 30.0), job, None)
    assert 15.0 <= caught.value.retry_after <= 1.25 * 15.0
    admission.check_room(queue(), replace(job, seconds=600.0), None)
    admission.check_room(queue(0.0, 0.0, measured=False), replace(job, seconds=0.0), None)


# ---- a server ----


@pytest.fixture(scope="module")
def host():
    with hosted(max_queue_seconds=20.0, limits=Limits(job_seconds=60)) as host:
        yield host


@pytest.fixture
def busy(host, tmp_path):
    """A client of a server with one engine whose rates are those of a frame and 10 steps of 10 ms.

    They are set for each test: learned ones grow with every moment in which the machine stands still.
    """
    rates, seconds = Rates(), {"encode": 0.01, "pose": 0.01, "denoise": 0.1, "decode": 0.01, "write": 0.01}
    settings = Settings(segment=8, overlap=3, canvas=256, **steps(10))
    rates.learn(settings, Done(1, 12.5, (64, 128), 10, "", seconds))
    rates.save(tmp_path / "rates.json", "set")
    host.server.scheduler.rates.load(tmp_path / "rates.json", "set")
    with Client(host.address) as client:
        yield client


def steps(count: int) -> dict[str, int]:
    return {"steps": count, "frames": 1}


def test_short_jobs_go_before_longer_ones_that_came_earlier(busy):
    with busy.animate(script(pause=0.01), VIDEO, steps(1000), priority=2) as running:
        next(running)
        long = busy.create(script(pause=0.01), VIDEO, steps(100)).job
        short = busy.create(script(pause=0.01), VIDEO, steps(5)).job
        urgent = busy.create(script(pause=0.01), VIDEO, steps(50), priority=1).job
        running.cancel()
        for job in (long, short, urgent):
            busy.watch(job).result()
    began = {busy.get(job).started: job for job in (long, short, urgent)}
    assert [began[time] for time in sorted(began)] == [urgent, short, long]


def test_a_long_job_makes_room_for_a_short_one_and_is_finished_after_it(busy):
    long = busy.create(script(pause=0.01), VIDEO, steps(400)).job
    until(lambda: (progress := busy.get(long).progress) is not None and progress.step > 30)
    short = busy.create(script(pause=0.01), VIDEO, steps(5)).job
    busy.watch(short).result()
    assert busy.get(long).ended is None
    assert busy.watch(long).result().done.frames == 1


def test_a_deadline_that_cannot_be_kept_is_refused(busy):
    with pytest.raises(
        TooLate, match=r"would be finished in \d+\.\d s, after its deadline in [0-2]\.\d s"
    ) as caught:
        busy.create(script(pause=0.01), VIDEO, steps(1000), deadline=2.0)
    assert caught.value.field == "deadline"
    assert busy.animate(script(pause=0.01), VIDEO, steps(5), deadline=20.0).result().done.frames == 1


def test_a_deadline_is_looked_at_again_when_the_frames_are_known(busy):
    with pytest.raises(TooLate, match="would be finished"):
        busy.animate(script(pause=0.01, frames=100), VIDEO, {"steps": 5}, deadline=3.0).result()


def test_a_deadline_that_passes_while_a_job_waits_ends_it(busy):
    running = busy.create(script(pause=0.05), VIDEO, steps(100), priority=1).job
    waiting = busy.create(script(pause=0.01), VIDEO, steps(5), deadline=2.0).job
    with pytest.raises(TooLate, match=r"still waited when its 2\.0 s were over"):
        busy.watch(waiting).result()
    busy.cancel(running)


def test_work_for_more_than_the_bound_is_sent_away(busy):
    with busy.animate(script(pause=0.01), VIDEO, steps(800)) as running:
        next(running)
        jobs, refusal = [], None
        while refusal is None and len(jobs) < 10:
            try:
                jobs.append(busy.create(script(pause=0.01), VIDEO, steps(800)).job)
            except Busy as busy_server:
                refusal = busy_server
        assert "predicted seconds are waiting" in str(refusal)
        assert refusal.retry_after > 1.0
        assert jobs, "an empty queue takes any job"
        for job in jobs:
            busy.cancel(job)


def test_every_caller_that_is_sent_away_is_told_why():
    """grpc.aio loses the server's answer where it comes while a client is still writing."""

    async def create(address: str) -> str:
        async with AsyncClient(address) as client:
            try:
                await client.create(script(pause=0.05), b"v" * 300_000, steps(200))
            except errors.MimicMotionError as error:
                return type(error).__name__
        return "taken"

    async def all_at_once(address: str) -> list[str]:
        return await asyncio.gather(*(create(address) for _ in range(40)))

    with hosted(max_queue=3, client_queue=3) as host:
        told = asyncio.run(all_at_once(host.address))
    assert set(told) == {"taken", "Busy"}
    assert told.count("taken") <= 4


def test_no_job_runs_for_longer_than_the_limit():
    with hosted(limits=Limits(job_seconds=2)) as host, Client(host.address) as client:
        with pytest.raises(errors.LimitError, match="more than the 2 seconds"):
            client.animate(script(pause=0.02), VIDEO, {"steps": 1000}).result()
        client.animate(script(pause=0.01, frames=1), VIDEO, steps(10)).result()
        with pytest.raises(errors.LimitError, match="predicted seconds of the job"):
            client.animate(script(pause=0.01), VIDEO, steps(1000)).result()
