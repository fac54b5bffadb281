"""A log that cannot be written ends no job."""

from __future__ import annotations

import io
import json
import os
import time

import pytest

from mimicmotion_trt.service import Client
from mimicmotion_trt.service.logs import LineWriter, make_logger

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


@pytest.mark.parametrize("stderr", ["full", "closed"])
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
