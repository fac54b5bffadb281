"""The log that stands between an engine and its readers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from mimicmotion_trt.events import Event, Preview, Progress, Queued, Stage, Video
from mimicmotion_trt.service.eventlog import EventLog


def progress(step: int, stage: Stage = "denoise") -> Progress:
    return Progress(stage, step, 1000)


async def read(log: EventLog, after: int = 0) -> list[Event]:
    return [event async for event in log.follow(after)]


def test_a_late_reader_gets_the_newest_progress_and_all_the_rest():
    log = EventLog()
    events = [Queued(1, None), Queued(0, 2.0), progress(1), progress(2), Video(0, 5, 1), progress(1, "decode"),
               Preview(b"a", 1, 2), progress(3), Preview(b"b", 2, 2), Video(5, 5, 2)]  # fmt: skip
    for event in events:
        log.append(event)
    log.close()
    kept = asyncio.run(read(log))
    assert kept == [replace(events[i], sequence=i + 1) for i in (1, 4, 5, 7, 8, 9)]
    assert asyncio.run(read(log, after=6)) == kept[3:]


def test_endless_reports_take_no_room():
    log = EventLog()
    for step in range(20_000):
        log.append(progress(step, "pose" if step % 2 else "denoise"))
    assert len(log) == 2
    assert log.last_sequence == 20_000


def test_a_reader_that_keeps_up_sees_everything_and_a_slow_one_the_newest():
    async def story():
        log, seen = EventLog(), {"fast": [], "slow": []}

        async def follow(name, pause):
            async for event in log.follow():
                seen[name].append(event.sequence)
                await asyncio.sleep(pause)

        readers = [asyncio.create_task(follow("fast", 0)), asyncio.create_task(follow("slow", 0.02))]
        for step in range(100):
            log.append(progress(step))
            for _ in range(4):
                await asyncio.sleep(0)
        log.close()
        await asyncio.gather(*readers)
        return seen

    seen = asyncio.run(story())
    assert seen["fast"] == list(range(1, 101))
    assert 2 <= len(seen["slow"]) < 50
    assert seen["slow"][-1] == 100
    assert seen["slow"] == sorted(set(seen["slow"]))


def test_readers_are_independent_and_end_with_the_log():
    async def story():
        log = EventLog()
        readers = [asyncio.create_task(read(log, after)) for after in (0, 1, 2)]
        await asyncio.sleep(0)
        log.append(Queued(1, None))
        await asyncio.sleep(0)
        log.append(Queued(0, None))
        log.close()
        return await asyncio.gather(*readers)

    assert [[event.sequence for event in seen] for seen in asyncio.run(story())] == [[1, 2], [2], []]
