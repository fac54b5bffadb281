"""A storm on the service: many clients with mixed jobs, engines that are killed, and what became of every job.

    python benchmarks/service_load.py --minutes 10 --clients 200
    python benchmarks/service_load.py --minutes 2 --leak          the check of memory has to fail
    python benchmarks/service_load.py --overhead                  the service against a job in this process

A few clients always have a long job, some send what cannot be used, all others send short jobs and think between
them. Every job of one kind has the same settings, so its video has to have the same bytes, whatever happened to it.
Prints a table and, last, one line of JSON; exits with 1 if something of what is promised does not hold.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from common import PERSON, AsJson, BundleName, keypoints
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.animator import Animator
from mimicmotion_trt.errors import InputError, ServiceError
from mimicmotion_trt.events import Accepted
from mimicmotion_trt.pose import PoseSequence
from mimicmotion_trt.service import AsyncClient, Client, local_server
from mimicmotion_trt.service.status import EngineLost, Refused
from mimicmotion_trt.settings import SettingsDict

KINDS = {"short": (2, 1), "middle": (6, 4), "long": (12, 100)}
"""Frames and steps of each kind of job, 64x64."""
LONG_CLIENTS = 3
BAD_SHARE, MIDDLE_SHARE = 0.05, 0.1
KILL_EVERY = 20.0, 40.0
SHORT_ACCEPTED = 1.5
"""Seconds: the 95th percentile of what it takes from a call to `accepted`."""
FLAT = 1.02
"""Memory of the second half over that of the first, at most."""
FASTER = 2.0
"""How many times sooner short jobs are finished than first-in-first-out, at the 95th percentile."""
LEAK = """
from mimicmotion_trt.service.eventlog import EventLog
put, kept = EventLog.put, []
def leaking(self, *arguments):
    kept.append(b"x" * 20_000 + bytes(len(kept) % 2))
    put(self, *arguments)
EventLog.put = leaking
"""


@dataclass
class Job:
    """One job of the storm. Times are seconds of the monotonic clock."""

    kind: str
    asked: float
    accepted: float = 0.0
    done: float = 0.0
    digest: str = ""


@dataclass
class Storm:
    """What is known of a storm."""

    jobs: list[Job] = field(default_factory=list)
    refusals: int = 0
    given_up: int = 0
    """Jobs under which two engines were killed: their clients send them again."""
    told: list[float] = field(default_factory=list)
    """Seconds after which refused callers were told to come back."""
    faults: Counter[str] = field(default_factory=Counter)
    """Errors that nobody expected, by class."""
    kills: int = 0
    memory: list[float] = field(default_factory=list)
    """MiB of the server's process, once a second."""


# ---- the storm ----


@contextmanager
def storm_server(
    bundle: str, folder: Path, *, max_queue: int, leak: bool
) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own: its address and the process."""
    ready, log = folder / "ready", folder / "log"
    start = f"{LEAK if leak else ''}\nfrom mimicmotion_trt.cli import main\nmain()"
    places = str(max_queue)
    bounds = [
        "--max-queue",
        places,
        "--client-queue",
        places,
        "--max-calls",
        "2000",
        "--client-calls",
        "2000",
    ]
    command = [sys.executable, "-c", f"if __name__ == '__main__':{start.replace(chr(10), chr(10) + '    ')}"]
    command += [
        "serve",
        "--bundle",
        bundle,
        "--port",
        "0",
        "--threads",
        "1",
        "--ready-file",
        str(ready),
        "--keep-jobs",
        "100000",
        *bounds,
    ]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            while not (ready.exists() and ready.read_text()):
                if server.poll() is not None:
                    raise ServiceError(f"the server did not start: {log.read_text()[-2000:]}")
                time.sleep(0.05)
            yield ready.read_text(), psutil.Process(server.pid)
        finally:
            server.terminate()
            server.wait()


async def send_jobs(storm: Storm, address: str, until: float, number: int, think: float) -> None:
    """One client, from its first job to its last; `think`: seconds between two, on average."""
    chance, poses = random.Random(number), keypoints(max(frames for frames, _ in KINDS.values()))
    long = number < LONG_CLIENTS
    async with AsyncClient(address) as client:
        if not long:
            await asyncio.sleep(min(chance.uniform(0, think), until - time.monotonic()))
        while time.monotonic() < until:
            draw = chance.random()
            kind = (
                "long"
                if long
                else "bad"
                if draw < BAD_SHARE
                else "middle"
                if draw < MIDDLE_SHARE
                else "short"
            )
            await send_job(storm, client, kind, poses, until)
            pause = 0.0 if long else chance.expovariate(1 / think)
            await asyncio.sleep(max(0.0, min(pause, until - time.monotonic())))


async def send_job(storm: Storm, client: AsyncClient, kind: str, poses: PoseSequence, until: float) -> None:
    """One job, sent again for as long as the server is full."""
    frames, steps = KINDS.get(kind, (1, 1))
    key = secrets.token_hex(8)
    picture = b"no picture" if kind == "bad" else PERSON
    settings = {"steps": steps, "size": (64, 64), "seed": 1}
    while True:
        job = Job(kind, time.monotonic())
        try:
            call = client.animate(picture, poses[:frames], settings, reference_pose=poses[:1], request_id=key)
            async for event in call:
                if isinstance(event, Accepted):
                    job.accepted = time.monotonic()
            job.done, job.digest = time.monotonic(), (await call.result()).done.sha256
        except Refused as refused:
            if isinstance(refused, EngineLost):
                storm.given_up += 1
            else:
                storm.refusals += 1
                storm.told.append(refused.retry_after)
            if time.monotonic() + refused.retry_after > until:
                return
            await asyncio.sleep(refused.retry_after)
            continue
        except InputError as error:
            if kind != "bad":
                storm.faults[type(error).__name__] += 1
            return
        except Exception as error:
            storm.faults[type(error).__name__] += 1
            return
        if kind == "bad":
            storm.faults["a bad picture passed"] += 1
        storm.jobs.append(job)
        return


async def kill_engines(storm: Storm, server: psutil.Process, until: float) -> None:
    """Now and then, until that time, the engine's process dies."""
    chance = random.Random(0)
    while True:
        await asyncio.sleep(chance.uniform(*KILL_EVERY))
        if time.monotonic() > until:
            return
        for child in server.children():
            with suppress(psutil.Error):
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    storm.kills += 1


async def watch_memory(storm: Storm, server: psutil.Process) -> None:
    while True:
        await asyncio.sleep(1.0)
        storm.memory.append(server.memory_info().rss / 2**20)


@asynccontextmanager
async def beside(*works: Any) -> AsyncIterator[None]:
    """Work that goes on while something else does."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def rage(
    storm: Storm, address: str, server: psutil.Process, minutes: float, clients: int, think: float
) -> None:
    """The whole storm: it takes the minutes, and what its last jobs need."""
    until = time.monotonic() + 60 * minutes
    async with beside(kill_engines(storm, server, until), watch_memory(storm, server)):
        await asyncio.gather(*(send_jobs(storm, address, until, number, think) for number in range(clients)))


# ---- what became of it ----


def first_in_first_out(jobs: list[Job], seconds: dict[str, float]) -> list[float]:
    """How long the same short jobs would have taken on one engine that serves whoever came first."""
    free, taken = 0.0, []
    for job in sorted(jobs, key=lambda job: job.accepted):
        free = max(free, job.accepted) + seconds[job.kind]
        if job.kind == "short":
            taken.append(free - job.accepted)
    return taken


def percentile(values: list[float], part: float = 0.95) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def judge(storm: Storm, finished: list[str], seconds: dict[str, float], *, leak: bool) -> dict[str, Any]:
    """Figures of a storm, and which promises did not hold.

    `finished`: keys of the jobs that the server says succeeded; `seconds`: what a job of each kind takes by itself.
    """
    short = [job.done - job.accepted for job in storm.jobs if job.kind == "short"]
    fifo = first_in_first_out(storm.jobs, seconds)
    digests = {kind: len({job.digest for job in storm.jobs if job.kind == kind}) for kind in KINDS}
    middle = len(storm.memory) // 2
    warm = storm.memory[middle // 2 : middle]  # the first quarter is for caches to fill
    growth = statistics.median(storm.memory[middle:]) / statistics.median(warm) if warm else 1.0
    figures: dict[str, Any] = {
        "jobs": Counter(job.kind for job in storm.jobs),
        "kills": storm.kills,
        "refusals": storm.refusals,
        "given_up": storm.given_up,
        "told_p95": round(percentile(storm.told), 2),
        "accepted_p95": round(percentile([job.accepted - job.asked for job in storm.jobs]), 3),
        "short_p95": round(percentile(short), 2),
        "fifo_p95": round(percentile(fifo), 2),
        "memory_mib": round(statistics.median(storm.memory[middle:]), 1) if storm.memory else 0.0,
        "memory_growth": round(growth, 4),
        "faults": storm.faults,
    }
    promises = {
        "none lost": not storm.faults,
        "none twice": max(Counter(key for key in finished if key).values(), default=0) <= 1,
        "same bytes": all(count <= 1 for count in digests.values()),
        "accepted soon": figures["accepted_p95"] < SHORT_ACCEPTED,
        "short ones first": figures["fifo_p95"] >= FASTER * figures["short_p95"],
        "memory is flat": (growth <= FLAT) != leak,
    }
    return {**figures, "broken": [name for name, holds in promises.items() if not holds]}


def time_alone(address: str, poses: PoseSequence) -> dict[str, float]:
    """Seconds of a job of each kind on a server that has nothing else to do."""
    seconds = {}
    with Client(address) as client:
        for kind, (frames, steps) in KINDS.items():
            for _ in range(2):  # the second time pictures are known already, as in the storm
                began = time.monotonic()
                settings = {"steps": steps, "size": (64, 64), "seed": 1}
                client.animate(PERSON, poses[:frames], settings, reference_pose=poses[:1]).result()
                seconds[kind] = time.monotonic() - began
    return seconds


# ---- overhead ----


def measure_overhead(bundle: str, repeat: int) -> dict[str, float]:
    """Seconds of `repeat` pairs of the same job of about 2 s, in this process and through a server, in turn.

    The host's cores differ, and change by a third within a minute. So what computes is always on the first core, the
    rest of the server on the last one, the pairs are short, and it is their sums that are compared.
    """
    poses = keypoints(12)
    settings: SettingsDict = {"steps": 50, "size": (64, 64)}
    with local_server(bundle, threads=1) as client, Animator.load(bundle, threads=1) as animator:

        def here() -> None:
            job = animator.animate(PERSON, poses, animator.settings(**settings), reference_pose=poses[:1])
            with tempfile.TemporaryDirectory() as folder:
                job.result().save(Path(folder) / "out.mp4")

        def there() -> None:
            client.animate(PERSON, poses, settings, reference_pose=poses[:1]).result()

        first, last = 0, (os.cpu_count() or 1) - 1
        for process in psutil.Process().children(recursive=True):
            set_core(process, first if "--multiprocessing-fork" in process.cmdline() else last)
        seconds = {here: 0.0, there: 0.0}
        for number in range(-1, repeat):  # the first pair warms up
            for run in (here, there) if number % 2 else (there, here):
                set_core(psutil.Process(), first if run is here else last)
                began = time.monotonic()
                run()
                seconds[run] += time.monotonic() - began if number >= 0 else 0.0
    return {
        "in_process": seconds[here],
        "service": seconds[there],
        "overhead": seconds[there] / seconds[here] - 1,
    }


def set_core(process: psutil.Process, core: int) -> None:
    """Let all threads of a process run on this core only."""
    for thread in process.threads():
        with suppress(psutil.NoSuchProcess):
            psutil.Process(thread.id).cpu_affinity([core])


def main(
    minutes: Annotated[float, typer.Option(help="How long clients send jobs.")] = 10.0,
    clients: Annotated[int, typer.Option(help="Callers at the same time.")] = 200,
    think: Annotated[float, typer.Option(help="Seconds between two jobs of a client, on average.")] = 120.0,
    max_queue: Annotated[int, typer.Option(help="Places in the server's queue.")] = 500,
    leak: Annotated[bool, typer.Option(help="Let the server leak: this has to be found.")] = False,
    overhead: Annotated[bool, typer.Option(help="Measure the service's overhead instead.")] = False,
    repeat: Annotated[int, typer.Option(help="Pairs of jobs whose seconds are added for the overhead.")] = 20,
    bundle: BundleName = "tiny",
    as_json: AsJson = False,
) -> None:
    """Run a storm and judge it."""
    console = Console(quiet=as_json, markup=False)
    if overhead:
        found: dict[str, Any] = measure_overhead(bundle, repeat)
    else:
        storm = Storm()
        with (
            tempfile.TemporaryDirectory() as folder,
            storm_server(bundle, Path(folder), max_queue=max_queue, leak=leak) as (address, server),
        ):
            seconds = time_alone(address, keypoints(12))
            asyncio.run(rage(storm, address, server, minutes, clients, think))
            with Client(address) as client:
                finished = [info.request_id for info in client.list() if info.state == "succeeded"]
        found = {
            "minutes": minutes,
            "clients": clients,
            "alone": seconds,
            **judge(storm, finished, seconds, leak=leak),
        }
    table = Table("figure", "value")
    for name, value in found.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    print(json.dumps(found))
    raise typer.Exit(1 if found.get("broken") else 0)


if __name__ == "__main__":
    typer.run(main)
