"""Every signal to every process of a server, idle and at work: health is right, nothing hangs, nobody is left.

The whole matrix: `python -m pytest tests/service/test_signals.py` (two minutes).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil
import pytest

from mimicmotion_trt import errors
from mimicmotion_trt.service import Client, ServiceConfig, serve

from .hosting import STAND_IN, hosted, process, script, until

VIDEO = b"a video"
SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "KILL": signal.SIGKILL}
QUICK = [("idle", "server", "TERM"), ("loaded", "engine", "KILL"), ("loaded", "server", "INT")]
CASES = [
    pytest.param(load, target, name, marks=() if (load, target, name) in QUICK else pytest.mark.slow)
    for load in ("idle", "loaded")
    for target in ("engine", "server")
    for name in SIGNALS
]


@pytest.mark.parametrize(("load", "target", "name"), CASES)
def test_a_signal_leaves_health_right_and_nothing_behind(tmp_path, load, target, name):
    with process(folder=str(tmp_path), grace=60) as (running, address), Client(address) as client:
        client.wait_until_ready(60)
        children = psutil.Process(running.pid).children(recursive=True)
        engine = next(child for child in children if "spawn_main" in " ".join(child.cmdline()))
        job = client.create(script(pause=0.05), VIDEO, {"steps": 20}).job if load == "loaded" else ""
        if job:
            until(lambda: client.get(job).state == "running")
        if target == "engine":
            engine.send_signal(SIGNALS[name])
            if name == "KILL":
                until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
            until(lambda: _health(client) == "SERVING")
            assert client.health("live") == "SERVING"
            if job:
                assert client.watch(job).result().done.frames == 6
            assert client.animate(script(frames=2), VIDEO).result().done.frames == 2
            children = psutil.Process(running.pid).children(recursive=True)
            running.terminate()
        else:
            running.send_signal(SIGNALS[name])
            until(lambda: _health(client) != "SERVING")
            if job and name != "KILL":
                assert client.watch(job).result().done.frames == 6, "it is finished within the grace"
        began = time.monotonic()
        code = running.wait(60)
        assert time.monotonic() - began < 30
        assert code == (-signal.SIGKILL if (target, name) == ("server", "KILL") else 0)
        assert psutil.wait_procs(children, timeout=30)[1] == [], "no orphan"


def _health(client: Client) -> str:
    try:
        return client.health()
    except errors.MimicMotionError:
        return "UNREACHABLE"


@pytest.mark.parametrize("seconds", [0.1, pytest.param(0.05, marks=pytest.mark.slow), 0.2])
def test_ctrl_c_while_the_engine_starts_leaves_no_traceback(seconds):
    """A terminal sends it to the engine process, too, which may still be importing."""
    with process() as (running, _):
        time.sleep(seconds)
        os.killpg(running.pid, signal.SIGINT)
        _, log = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "stopped" in log
    assert "Traceback" not in log


def test_a_reader_that_sleeps_does_not_hold_up_the_end():
    picture = script(frames=200, noise=True, size=[256, 256])
    with process(grace=60) as (running, address), Client(address) as client:
        client.wait_until_ready(60)
        job = client.create(picture, VIDEO, {"decode_chunk": 64}).job
        client.watch(job).result()
        with Client(address) as sleepy:
            next(sleepy.watch(job))
            began = time.monotonic()
            running.terminate()
            assert running.wait(60) == 0
            assert time.monotonic() - began < 30


def test_a_supervisor_that_dies_takes_liveness_and_then_the_process_with_it():
    with hosted() as other, Client(other.address) as client:
        assert client.health("live") == "SERVING"
        engine = other.server.scheduler.engines[0]
        os.kill(engine.pid, signal.SIGKILL)
        other.call(_cancel, engine.supervisor)
        until(lambda: client.health("live") == "NOT_SERVING")
        assert client.health() == "NOT_SERVING"
        assert other.server.over.is_set()
        assert other.server.fault is not None


def test_a_process_whose_server_failed_ends_with_an_error():
    def break_a_task(port: int) -> None:
        for task in asyncio.all_tasks():
            if "_sweep" in str(task.get_coro()):
                task.cancel()

    with pytest.raises(errors.ServiceError, match="The server failed"):
        serve(ServiceConfig(**STAND_IN), on_ready=break_a_task)


async def _cancel(task) -> None:
    task.cancel()
