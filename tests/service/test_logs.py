"""A log that cannot be written ends no job."""

from __future__ import annotations

import io
import json
import os
import time

import pytest

from mimicmotion_trt.service import Client
from mimicmotion_trt.service.logs import LibraryLines, LineWriter, make_logger
from mimicmotion_trt.service.status import NotFound

from .hosting import process, script

VIDEO = b"a video"


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError("no space left")


def test_a_stream_that_fails_costs_lines_only():
    writer = LineWriter(Broken())
    make_logger(True, writer).info("said", job="a")
    writer.close()
    assert writer.dropped == 1


def test_values_that_cannot_be_printed_cost_their_line_only():
    class Unprintable:
        def __str__(self) -> str:
            raise ValueError

    stream = io.StringIO()
    writer = LineWriter(stream)
    logger = make_logger(True, writer)
    logger.info("bad", value=Unprintable())
    logger.info("good", text="\ud800")
    writer.close()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["good"]


def test_a_reader_that_sleeps_blocks_nobody():
    reading, writing = os.pipe()
    with open(reading, "rb", 0), open(writing, "w", encoding="utf-8") as stream:
        writer = LineWriter(stream)
        began = time.monotonic()
        for number in range(20_000):
            writer.msg(f"{number:099}")
        writer.close(0.2)
        assert time.monotonic() - began < 30
        assert writer.dropped > 0


@pytest.mark.parametrize("stderr", ["full", pytest.param("closed", marks=pytest.mark.slow)])
def test_a_server_whose_log_cannot_be_written_serves(stderr):
    """As on a full disk, and as after `serve 2>&1 | head`."""
    if stderr == "full":
        target = open("/dev/full", "w")  # noqa: SIM115
    else:
        reading, writing = os.pipe()
        os.close(reading)
        target = open(writing, "w", encoding="utf-8")  # noqa: SIM115
    with target, process(stderr=target) as (running, address), Client(address) as client:
        client.wait_until_ready(60)
        for _ in range(2):
            assert client.animate(script(), VIDEO).result().done.frames == 6
        running.terminate()
        assert running.wait(60) == 0


def test_what_libraries_print_becomes_lines_of_the_log(capfd):
    """gRPC's core writes past Python, to the descriptor."""
    writer = LineWriter()
    logger = make_logger(True, writer)
    with LibraryLines(logger, writer):
        os.write(2, b"E1130 19:53:29.839907   27901 add_port.cc:83] Failed to add port\n")
        os.write(2, b"a line of another library\n")
        logger.info("ours")
    writer.close()
    os.write(2, b"after\n")
    *lines, after = capfd.readouterr().err.splitlines()
    found = {line["event"]: line for line in map(json.loads, lines)}
    assert set(found) == {"grpc", "library", "ours"}
    assert (found["grpc"]["level"], found["grpc"]["text"]) == ("error", "Failed to add port")
    assert found["library"]["text"] == "a line of another library"
    assert after == "after"


def test_a_traceback_stays_whole_for_people(capfd):
    writer = LineWriter()
    with LibraryLines(make_logger(False, writer), writer, plain=True):
        os.write(2, b"Traceback (most recent call last):\n  File engine.py\n")
        os.write(2, b"E1130 19:53:29.839907   27901 add_port.cc:83] Failed to add port\n")
    writer.close()
    first, second, grpc = capfd.readouterr().err.splitlines()
    assert [first, second] == ["Traceback (most recent call last):", "  File engine.py"]
    assert "grpc" in grpc
    assert "text='Failed to add port'" in grpc


def test_a_server_says_when_it_listens_starts_and_ends():
    """One line of JSON each, and nothing else."""
    with process(json_logs=True) as (running, address), Client(address) as client:
        client.wait_until_ready(20)
        with pytest.raises(NotFound):
            client.cancel("nobody's")
        running.terminate()
        said = [json.loads(line) for line in running.communicate(timeout=20)[1].splitlines()]
    events = [line["event"] for line in said]
    assert events[:3] == ["listening", "ready", "next step"]
    assert events[-2:] == ["draining", "stopped"]
    assert said[0]["address"] == address
    port = address.rpartition(":")[2]
    assert said[2]["command"].endswith(f"--server localhost:{port}")
    assert "call failed" in events
