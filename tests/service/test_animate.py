"""One call from picture and motion to a finished video, over a real channel."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest
from typer.testing import CliRunner

from mimicmotion_trt import Settings, errors
from mimicmotion_trt.cli import app
from mimicmotion_trt.events import Preview, Progress, Video
from mimicmotion_trt.pose import PoseSequence
from mimicmotion_trt.service import AsyncClient, Client

from .hosting import script

SHORT = script(frames=10)


def poses(frames: int = 3) -> PoseSequence:
    shapes = {"body": (18, 2), "body_score": (18,), "hands": (2, 21, 2), "hands_score": (2, 21),
              "face": (68, 2), "face_score": (68,)}  # fmt: skip
    arrays = {name: np.full((frames, *shape), 0.5, np.float32) for name, shape in shapes.items()}
    return PoseSequence(**arrays, fps=25.0, size=(640, 480))


def kinds(events) -> list[str]:
    return [event.kind for event in events]


def test_events_tell_the_whole_story_in_order(client):
    animation = client.animate(SHORT, b"a video", {"steps": 5})
    events = list(animation)
    assert kinds(events)[:3] == ["accepted", "queued", "started"]
    assert kinds(events)[-1] == "done"
    assert "preview" not in kinds(events), "not asked for"
    numbers = [event.sequence for event in events]
    assert numbers == sorted(set(numbers))
    accepted, started, done = events[0], events[2], events[-1]
    assert accepted.settings == Settings(steps=5, segment=8, overlap=3, canvas=256), "the bundle's filled in"
    assert (started.frames, started.fps, started.size) == (10, 12.5, (64, 128))
    assert (done.frames, done.fps, done.size) == (10, 12.5, (64, 128))
    assert set(done.seconds) == {"pose", "encode", "denoise", "decode", "write"}
    assert done.note == "graphs True, threads None", "what the bundle says of itself"
    stages = [event.stage for event in events if isinstance(event, Progress)]
    assert sorted(set(stages), key=stages.index) == ["pose", "encode", "denoise", "decode"]
    assert all(str(event) for event in events)


def test_the_video_is_the_servers_file_byte_for_byte(host, client, tmp_path):
    output = tmp_path / "out.mp4"
    animation = client.animate(script(frames=40, noise=True, size=[128, 128]), b"a video", output=output)
    pieces = [event.data for event in animation if isinstance(event, Video)]
    result = animation.result()
    made = (host.server.store.get(animation.job)).videos[0].read_bytes()
    assert b"".join(pieces) == made == output.read_bytes() == result.read()
    assert hashlib.sha256(made).hexdigest() == result.done.sha256
    assert max(map(len, pieces)) <= 2**20
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"], "nothing is left beside it"
    assert result.save(tmp_path / "copy.mp4").read_bytes() == made


def test_a_piece_larger_than_a_chunk_is_cut(client):
    settings = {"decode_chunk": 64}
    animation = client.animate(script(frames=64, noise=True, size=[256, 256]), b"a video", settings)
    sizes = [len(event.data) for event in animation if isinstance(event, Video)]
    assert max(sizes) == 2**20
    assert len(animation.result().read()) == sum(sizes) > 2**21


def test_the_video_plays(client, tmp_path):
    import av

    path = client.animate(SHORT, b"a video").save(tmp_path / "x.mp4")
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.shape(frames) == (10, 128, 64, 3)


def test_previews_come_where_they_are_asked_for(client):
    events = list(client.animate(script(pause=0.01), b"a video", {"preview": 2, "steps": 6}))
    previews = [event for event in events if isinstance(event, Preview)]
    assert previews
    assert all(event.jpeg.startswith(b"\xff\xd8") and event.step % 2 == 0 for event in previews)


def test_every_kind_of_motion_arrives_as_what_it_is(client, tmp_path):
    sequence = poses()
    for suffix in ("npz", "json"):
        sequence.save(tmp_path / f"poses.{suffix}")
    (tmp_path / "dance.mp4").write_bytes(b"a video")
    given = {
        "PosixPath": [b"a video", tmp_path / "dance.mp4", str(tmp_path / "dance.mp4")],
        "PoseSequence": [sequence, tmp_path / "poses.npz", (tmp_path / "poses.json").read_bytes()],
        "memmap": [np.zeros((3, 64, 64, 3), np.uint8)],
    }
    for name, motions in given.items():
        for motion in motions:
            assert client.animate(script(motion=name), motion).result().done.frames == 6


def test_what_a_video_shows_is_said_to_the_server(client):
    for kind in ("auto", "video", "pose-video"):
        for run in (client.animate, lambda *given, **more: client.watch(client.create(*given, **more).job)):
            video = run(script(motion="PosixPath", motion_kind=kind), b"a video", motion_kind=kind)
            assert video.result().done.frames == 6
    assert client.animate(script(), poses(), motion_kind="pose-video").result().done.frames == 6  # no video
    with pytest.raises(errors.MotionError, match="pose-video") as caught:
        client.animate(script(), b"a video", motion_kind="dance")
    assert caught.value.field == "motion_kind"


def test_the_command_line_says_to_a_server_what_a_video_shows(host, tmp_path):
    person, motion, output = (tmp_path / name for name in ("person.png", "dance.mp4", "out.mp4"))
    person.write_bytes(script(motion_kind="pose-video"))
    motion.write_bytes(b"a video")
    line = ["animate", person, motion, "-o", output, "--server", host.address, "--motion-kind", "pose-video"]
    done = CliRunner().invoke(app, [str(word) for word in line])
    assert done.exit_code == 0, done.output
    assert output.stat().st_size > 500


def test_pictures_come_from_files_as_well_and_a_reference_pose_along(client, tmp_path):
    path = tmp_path / "person.png"
    path.write_bytes(script(reference_pose=True))
    assert client.animate(path, b"a video", reference_pose=poses(1)).result().done.frames == 6


def test_a_picture_array_is_sent_as_png(client):
    with pytest.raises(errors.EngineError, match="UnicodeDecodeError"):  # the stand-in reads JSON
        client.animate(np.zeros((8, 8, 3), np.uint8), b"a video").result()
    with pytest.raises(errors.PictureError):
        client.animate(np.zeros((8, 8), np.uint8), b"a video")


def test_missing_files_are_named_before_anything_is_sent(client, tmp_path):
    with pytest.raises(errors.PictureError, match=r"nobody\.png"):
        client.animate(tmp_path / "nobody.png", b"a video")
    with pytest.raises(errors.MotionError, match=r"nothing\.mp4"):
        client.animate(SHORT, tmp_path / "nothing.mp4")
    with pytest.raises(errors.OutputError, match="no folder"):
        client.animate(SHORT, b"a video", output=tmp_path / "no folder" / "out.mp4")
    with pytest.raises(errors.SettingsError, match="unknown setting 'stepz'"):
        client.animate(SHORT, b"a video", {"stepz": 1})


def test_the_async_client_does_the_same(host, tmp_path):
    async def story():
        async with AsyncClient(host.address) as client:
            await client.wait_until_ready()
            animation = client.animate(SHORT, b"a video", Settings(steps=3), output=tmp_path / "out.mp4")
            seen = kinds([event async for event in animation])
            result = await animation.result()
            with pytest.raises(errors.PictureError):
                await client.animate(script(fail="PictureError"), b"a video").result()
            async with client.animate(script(pause=0.02), b"a video", {"steps": 1000}) as endless:
                await anext(endless)
            with pytest.raises(errors.Cancelled):
                await client.watch(endless.job).result()
            created = await client.create(script(frames=5), b"a video", {"frames": 4})
            await client.watch(created.job).save(tmp_path / "second.mp4")
            info = await client.get(created.job)
            assert (info.state, info.done.frames) == ("succeeded", 4)
            assert created.job in [job.job for job in await client.list()]
            assert (await client.estimate(10)).measured_jobs > 0
            assert (await client.cancel(created.job)).state == "succeeded"
            assert await client.health() == "SERVING"
            return seen, result.read()

    async def nobody_there():
        async with AsyncClient("127.0.0.1:1") as client:
            with pytest.raises(errors.ServiceError, match="not ready after"):
                await client.wait_until_ready(0.1)

    asyncio.run(nobody_there())
    seen, video = asyncio.run(story())
    assert (seen[0], seen[-1]) == ("accepted", "done")
    assert video == (tmp_path / "out.mp4").read_bytes()
    assert (tmp_path / "second.mp4").stat().st_size > 0


def test_a_name_of_another_format_is_refused(client, tmp_path):
    with pytest.raises(errors.OutputError, match="would be an MP4"):
        client.animate(SHORT, b"a video", output=tmp_path / "out.gif")
    received = client.animate(SHORT, b"a video").result()
    with pytest.raises(errors.OutputError, match="would be an MP4"):
        received.save(tmp_path / "out.webm")


def test_a_closed_client_says_so(host):
    closed = Client(host.address)
    closed.close()
    closed.close()
    for call in (closed.list, closed.health, lambda: closed.animate(SHORT, b"a video")):
        with pytest.raises(errors.ServiceError, match="the client is closed"):
            call()


def test_clients_and_animations_say_what_they_are(host, client):
    animation = client.animate(SHORT, b"a video")
    assert repr(client) == f"<Client of {host.address}>"
    video = animation.result()
    assert "BytesIO" not in repr(video)
    assert "SpooledTemporaryFile" not in repr(video)
    assert 'src="data:video/mp4;base64,' in video._repr_html_()
    assert repr(animation) == f"<Animation of job {animation.job}>"


def test_several_videos_come_one_after_the_other(client, tmp_path):
    seeds = (5, 6)
    animation = client.animate(script(frames=4), b"a video", {"seeds": seeds}, output=tmp_path / "out.mp4")
    numbers = [event.video for event in animation if event.kind == "video"]
    assert numbers == sorted(numbers)
    assert set(numbers) == {1, 2}
    result = animation.result()
    assert [video.path.name for video in result.videos] == ["out-1.mp4", "out-2.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-1.mp4", "out-2.mp4"]
    assert [video.done.facts.settings.seed for video in result.videos] == list(seeds)
    for video, seed in zip(result.videos, seeds, strict=True):
        alone = client.animate(script(frames=4), b"a video", {"seed": seed}).result()
        assert video.read() == alone.read()
        assert (video.done.bytes, video.done.sha256) == (alone.done.bytes, alone.done.sha256)
    assert result.done.total_bytes == sum(len(video.read()) for video in result.videos)
    assert client.get(animation.job).done == result.done


def test_videos_that_cannot_be_named_are_refused(client, tmp_path):
    with pytest.raises(errors.OutputError, match="2 videos cannot be written"):
        client.animate(script(frames=4), b"a video", {"seeds": (1, 2)}, output=tmp_path / "%d.png").result()
