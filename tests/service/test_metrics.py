"""Prometheus metrics of a real server, as a scraper reads them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import urllib.request
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mimicmotion_trt import errors
from mimicmotion_trt.service import Client
from mimicmotion_trt.service.status import Busy, NotFound

from .hosting import ROOT, Host, hosted, script, until

VIDEO = b"a video"
DASHBOARD = ROOT / "docs" / "grafana.json"


def scrape(host: Host) -> str:
    url = f"http://127.0.0.1:{host.server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def value(host: Host, name: str, /, **labels: str) -> float | None:
    """Of one sample; None if there is none."""
    for family in text_string_to_metric_families(scrape(host)):
        for sample in family.samples:
            if sample.name == f"mimicmotion_{name}" and sample.labels == labels:
                return float(sample.value)
    return None


def test_a_server_counts_what_it_does_and_tells_what_it_is_doing():
    with hosted(metrics_port=0, max_queue=1) as host, Client(host.address) as client:
        assert value(host, "ready") == 1
        done = client.animate(script(pause=0.01), VIDEO, {"steps": 3}).result().done
        with pytest.raises(NotFound):
            client.get("nothing")
        running = client.create(script(pause=0.02), VIDEO, {"steps": 1000}).job
        until(lambda: client.get(running).state == "running")
        waiting = client.create(script(pause=0.02), VIDEO, {"steps": 1000}).job
        with pytest.raises(Busy):
            client.create(script(), VIDEO)
        assert value(host, "requests_total", method="Animate", code="OK") == 1
        assert value(host, "requests_total", method="GetAnimation", code="NOT_FOUND") == 1
        assert value(host, "refusals_total", reason="BUSY") == 1
        assert (value(host, "queue_jobs"), value(host, "jobs_running")) == (1, 1)
        assert value(host, "queue_seconds") >= 0
        assert (value(host, "jobs_stored"), value(host, "stored_bytes")) == (3, done.bytes)
        assert value(host, "step_seconds_count") >= 3
        assert value(host, "stage_seconds_sum", stage="denoise") == pytest.approx(done.seconds["denoise"])
        client.cancel(waiting)
        client.cancel(running)
        until(lambda: value(host, "jobs_total", state="cancelled", reason="CANCELLED") == 2)
        assert value(host, "jobs_total", state="succeeded", reason="") == 1
        assert value(host, "frames_total") == 6


def test_a_lost_engine_is_counted_and_readiness_told():
    with hosted(metrics_port=0) as host:
        os.kill(host.engine_pid, signal.SIGKILL)
        until(lambda: value(host, "engine_restarts_total", device="auto") == 1)
        until(lambda: value(host, "ready") == 1)


def test_gpus_are_told_where_nvml_finds_them(monkeypatch):
    """NVML of a machine with one GPU; there is none here."""
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda gpu: "NVIDIA H200",
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=5, total=7),
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=50),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with hosted(metrics_port=0) as host:
        gpu = {"gpu": "0", "name": "NVIDIA H200"}
        assert value(host, "gpu_memory_used_bytes", **gpu) == 5
        assert value(host, "gpu_memory_total_bytes", **gpu) == 7
        assert value(host, "gpu_use_ratio", **gpu) == 0.5


def test_the_metrics_of_two_servers_in_a_process_are_their_own():
    with hosted(metrics_port=0) as one, hosted(metrics_port=0) as other:
        with Client(one.address) as client:
            client.animate(script(frames=2), VIDEO).result()
        assert (value(one, "frames_total"), value(other, "frames_total")) == (2, 0)


def test_nothing_is_served_unless_asked_for(host):
    assert host.server.metrics_port == 0


def test_a_port_of_metrics_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(errors.ServiceError) as caught:
        Host(metrics_port=taken.getsockname()[1])
    assert caught.value.field == "metrics_port"


def test_the_dashboard_asks_for_metrics_that_there_are():
    with hosted(metrics_port=0) as host:
        text = scrape(host)
    served = {family.name for family in text_string_to_metric_families(text)}
    gpu = {
        "mimicmotion_gpu_memory_used_bytes",
        "mimicmotion_gpu_memory_total_bytes",
        "mimicmotion_gpu_use_ratio",
    }
    queries = [t["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for t in panel["targets"]]
    asked = set(re.findall(r"(?:mimicmotion|process)_\w+", " ".join(queries)))
    assert len(asked) > 12
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked} <= {
        re.sub(r"_total$", "", name) for name in served | gpu
    }
