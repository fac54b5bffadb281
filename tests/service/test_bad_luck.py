"""A full disk, a read-only folder, files that vanish: one job or call is told, and the service goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimicmotion_trt import errors
from mimicmotion_trt.service import Client
from mimicmotion_trt.service.status import Busy

from .hosting import Host, fill, hosted, script, until

VIDEO = b"a video"


@pytest.fixture(scope="module")
def host(disk: Path) -> Iterator[Host]:
    with hosted(store=disk / "store", checkpoint_share=1e6) as running:
        yield running


@pytest.fixture(autouse=True)
def the_next_job_runs(host: Host, client: Client) -> Iterator[None]:
    pid = host.engine_pid
    yield
    assert client.animate(script(frames=2), VIDEO).result().done.frames == 2
    assert host.engine_pid == pid
    assert host.server.scheduler.uploads == 0


def test_an_upload_that_does_not_fit_is_sent_away(host, client):
    with pytest.raises(Busy, match="cannot store the upload: No space left") as caught:
        client.create(script(), b"v" * 8 * 2**20)
    assert caught.value.retry_after == 60.0
    until(lambda: all(job.state != "receiving" for job in host.server.store.active()))


def test_a_video_that_does_not_fit_ends_its_job(client):
    job = client.create(script(frames=120, noise=True, size=[256, 256]), VIDEO, {"decode_chunk": 16}).job
    with pytest.raises(errors.OutputError, match="No space left"):
        client.watch(job).result()
    assert client.get(job).state == "failed"


def test_checkpoints_that_do_not_fit_are_left_out(client, disk):
    job = client.create(script(frames=2, pause=0.02), VIDEO, {"steps": 40}).job
    until(lambda: (progress := client.get(job).progress) is not None and progress.stage == "denoise")
    filler = fill(disk)
    until(lambda: (progress := client.get(job).progress) is not None and progress.step > 10)
    filler.unlink()
    assert client.watch(job).result().done.frames == 2


def test_while_the_folder_is_read_only_calls_are_refused(client, disk):
    files = disk / "store" / "jobs"
    subprocess.run(["mount", "--bind", files, files], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", files], check=True)
    try:
        with pytest.raises(Busy, match="Read-only file system"):
            client.create(script(), VIDEO)
        assert client.health() == "SERVING"
    finally:
        subprocess.run(["umount", files], check=True)


@pytest.mark.parametrize("part", ["picture", "."])
def test_files_that_vanish_end_their_job_by_name(host, client, part):
    running = client.create(script(pause=0.05), VIDEO, {"steps": 200}).job
    waiting = client.create(script(frames=2), VIDEO, priority=-9).job
    until(lambda: client.get(running).state == "running")
    folder = host.server.store.get(waiting).folder
    shutil.rmtree(folder) if part == "." else (folder / part).unlink()
    client.cancel(running)
    with pytest.raises(errors.OutputError, match=r"upload is gone from the server's disk \(picture\)"):
        client.watch(waiting).result()
