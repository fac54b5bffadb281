"""From the start of a server to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time

import grpc
import psutil
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from typer.testing import CliRunner

from mimicmotion_trt import Animator, errors, service
from mimicmotion_trt.cli import app
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.service import AnimationServer, Client, ServiceConfig
from mimicmotion_trt.service.status import Draining, NotReady

from .hosting import ROOT, STAND_IN, Host, hosted, process, script, until

VIDEO = b"a video"


@pytest.mark.parametrize("graphs", ["on", "off"])
def test_graphs_are_on_or_off_in_the_engine_process_and_in_the_commands_own(graphs, monkeypatch, tmp_path):
    seen = []

    def kept(*arguments, **options):
        seen.extend([*arguments, *([options["graphs"]] if options else [])])
        raise errors.ServiceError("This is enough.")

    monkeypatch.setattr(service, "serve", kept)
    monkeypatch.setattr(Animator, "load", kept)
    run = CliRunner().invoke
    run(app, ["serve", "--graphs", graphs])
    files = [str(ROOT / "demo" / name) for name in ("person.jpg", "balance.npz")]
    run(app, ["animate", *files, "--output", str(tmp_path / "c.mp4"), "--graphs", graphs])
    config, _, in_process = seen
    assert (config.graphs, in_process) == (graphs == "on", graphs == "on")
    assert config.engines()[0].graphs is config.graphs


def test_an_engine_process_is_told_what_the_config_says():
    with hosted(graphs=False, threads=3) as host:
        assert host.server.scheduler.engines[0].ready.note == "graphs False, threads 3"


def test_health_tells_loading_warm_lost_and_draining():
    with hosted(warm=False, bundle='{"pause": 0.5}', grace=5.0) as host, Client(host.address) as client:
        assert client.health() == "NOT_SERVING", "loading"
        with pytest.raises(NotReady):
            client.animate(script(), VIDEO).result()
        client.wait_until_ready(60)
        psutil.Process(host.engine_pid).kill()
        until(lambda: client.health() == "NOT_SERVING")
        client.wait_until_ready(60)
        running = client.create(script(pause=0.05), VIDEO).job
        until(lambda: client.get(running).state == "running")
        waiting = client.create(script(), VIDEO).job
        video: list[bytes] = []
        watcher = threading.Thread(target=lambda: video.append(client.watch(running).result().read()))
        watcher.start()
        stopping = threading.Thread(target=host.stop, args=(5.0,))
        stopping.start()
        until(lambda: client.health() == "NOT_SERVING")
        with pytest.raises(Draining):
            client.create(script(), VIDEO)
        with pytest.raises(Draining):
            client.watch(waiting).result()
        watcher.join(60)
        stopping.join(60)
        assert len(video) == 1, "the running job was finished and delivered"


def test_what_does_not_finish_in_the_grace_is_told_that_the_server_drains():
    with hosted() as host, Client(host.address) as client:
        animation = client.animate(script(pause=0.02), VIDEO, {"steps": 1000})
        next(animation)
        folder, pid = host.server.store.folder, host.engine_pid
        began = time.monotonic()
        host.stop(0.3)
        assert time.monotonic() - began < 15
        with pytest.raises(Draining):
            animation.result()
        assert not folder.exists()
        assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_drains_the_process(tmp_path, number):
    ready = tmp_path / "ready"
    with process(ready_file=str(ready), grace=10, json_logs=True) as (running, address):
        until(ready.exists)
        assert ready.read_text() == address
        children = psutil.Process(running.pid).children(recursive=True)
        with Client(address) as client:
            animation = client.animate(script(pause=0.05), VIDEO)
            next(animation)
            until(lambda: client.get(animation.job).state == "running")
            running.send_signal(number)
            assert animation.result().done.frames == 6
        _, log = running.communicate(timeout=60)
        assert running.returncode == 0
        assert not ready.exists()
        assert psutil.wait_procs(children, timeout=30)[1] == [], "no process is left"
        lines = [json.loads(line) for line in log.splitlines()]
        said = {line["event"]: line for line in lines}
        around = {"listening", "ready", "next step", "draining", "stopped"}
        assert set(said) == around | {"accepted", "started", "ended"}
        assert {line["job"] for line in lines if "job" in line} == {animation.job}
        assert said["draining"]["running"] == [animation.job]
        ended = said["ended"]
        assert (ended["state"], ended["frames"], ended["size"]) == ("succeeded", 6, "64x128")


def test_the_engine_dies_with_its_server():
    with process() as (running, address):
        with Client(address) as client:
            client.wait_until_ready(60)
            next(client.animate(script(pause=0.05), VIDEO, {"steps": 1000}))
        children = psutil.Process(running.pid).children(recursive=True)
        assert children
        running.kill()
        assert psutil.wait_procs(children, timeout=30)[1] == []


def test_readers_that_stop_reading_cost_no_memory(monkeypatch):
    """Eight callers take the first event of an 8 MB video and then sleep. gRPC buffers 5 MiB for each, however
    long the video is; nothing else may be held for them."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # a heap for each thread would add 10 MB of chance
    picture, readers = script(frames=200, noise=True, size=[256, 256]), 8
    with process() as (running, address), Client(address) as client, contextlib.ExitStack() as stack:
        client.wait_until_ready(60)
        job = client.create(picture, VIDEO, {"decode_chunk": 64}).job
        done = client.watch(job).result().done
        before = psutil.Process(running.pid).memory_info().rss
        asleep = [stack.enter_context(Client(address)).watch(job) for _ in range(readers)]
        for animation in asleep:
            next(animation)
        time.sleep(0.5)  # longer than the whole video takes to send
        grown = psutil.Process(running.pid).memory_info().rss - before
        assert done.bytes > 7e6
        assert grown < readers * 6.5e6, f"{grown / 1e6:.0f} MB"
        for animation in asleep[:2]:
            assert animation.result().done == done, "and they still get everything"


def test_reflection_lists_the_service(host):
    with grpc.insecure_channel(host.address) as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert services >= {"mimicmotion.v1.AnimationService", "grpc.health.v1.Health"}


def test_reflection_can_be_left_out():
    with hosted(reflection=False) as host, grpc.insecure_channel(host.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
def test_a_server_that_everybody_can_reach_warns(capfd, host, warned):
    with hosted(host=host, json_logs=True):
        pass
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["without"] for line in lines if line["event"] == "open to the network"] == (
        ["TLS and tokens"] if warned else []
    )


def test_an_embedded_server_is_warm_when_entered_and_calls_back():
    called: list[int] = []

    async def story() -> None:
        config = ServiceConfig(**STAND_IN)
        async with AnimationServer(config, on_ready=called.append) as server:
            assert server.scheduler.warm
            await asyncio.sleep(0.05)
            assert called == [server.port]

    asyncio.run(story())


@pytest.mark.parametrize(("bundle", "kind"), [('{"fail": "BundleError"}', errors.BundleError),
                                              ('{"fail": "ValueError"}', errors.EngineError)])  # fmt: skip
def test_a_bundle_that_does_not_load_is_told_at_the_start(bundle, kind):
    async def story() -> None:
        async with AnimationServer(ServiceConfig(**STAND_IN | {"bundle": bundle})):
            pass

    with pytest.raises(kind):
        asyncio.run(story())


def test_a_process_whose_bundle_does_not_load_ends_with_the_reason():
    with process(bundle='{"fail": "BundleError"}') as (running, _):
        _, log = running.communicate(timeout=60)
        assert running.returncode == 1
        assert "BundleError" in log


def test_a_port_in_use_is_a_service_error():
    told = pytest.raises(errors.ServiceError, match="cannot be bound")
    with socket.create_server(("127.0.0.1", 0)) as taken, told:
        Host(port=taken.getsockname()[1])


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"devices": ()}, {"devices": ("gpu",)}, {"max_queue": 0}, {"grace": -1.0}]
)
def test_a_config_that_cannot_work_is_refused(wrong):
    with pytest.raises(errors.ServiceError) as caught:
        ServiceConfig(**wrong)
    assert caught.value.field in wrong


@pytest.mark.parametrize(("engines", "each"), [(2, 1), (1, 2)])
def test_two_jobs_run_at_once(engines, each):
    options = {"devices": ("cpu",) * engines, "limits": Limits(jobs=each)}
    with hosted(**options) as host, Client(host.address) as client:
        until(lambda: all(engine.warm for engine in host.server.scheduler.engines))
        jobs = [client.create(script(pause=0.05), VIDEO, {"steps": 200}).job for _ in range(3)]
        until(lambda: [client.get(job).state for job in jobs] == ["running", "running", "queued"])
        client.cancel(jobs[0])
        until(lambda: client.get(jobs[2]).state == "running")
        for job in jobs[1:]:
            client.cancel(job)


def test_jobs_of_one_engine_end_apart_and_run_again_apart():
    with hosted(limits=Limits(jobs=3)) as host, Client(host.address) as client:
        long, failing, other = (
            client.create(picture, VIDEO, {"steps": 200}).job
            for picture in (
                script(pause=0.05),
                script(pause=0.01, fail="EngineError", stage="decode"),
                script(pause=0.05, frames=3),
            )
        )
        until(lambda: client.get(failing).state == "failed")
        assert [client.get(job).state for job in (long, other)] == ["running", "running"]
        again = client.create(script(pause=0.05), VIDEO, {"steps": 200}).job
        until(lambda: client.get(again).state == "running")
        client.cancel(other)
        until(lambda: client.get(other).state == "cancelled")
        os.kill(host.engine_pid, signal.SIGKILL)
        for job in (long, again):
            until(lambda job=job: client.get(job).state == "running")
            client.cancel(job)
            with pytest.raises(errors.Cancelled):
                client.watch(job).result()
        assert client.animate(script(frames=2), VIDEO).result().done.frames == 2


def test_an_unreachable_server_is_a_service_error():
    with Client("127.0.0.1:1") as client:
        with pytest.raises(errors.ServiceError, match="cannot be reached"):
            client.animate(script(), VIDEO).result()
        with pytest.raises(errors.ServiceError, match="not ready after"):
            client.wait_until_ready(0.1)
