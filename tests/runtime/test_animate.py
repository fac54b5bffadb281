"""`Animator.animate`: a picture and a motion in any form become a video, told in events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimicmotion_trt import Animator, Cancelled, Event, Job, Limits, PoseSequence, Settings, SettingsError
from mimicmotion_trt.events import STAGES
from mimicmotion_trt.inputs import nearest_size
from mimicmotion_trt.media.picture import fit_picture, read_picture, write_picture
from mimicmotion_trt.media.writer import VideoWriter
from mimicmotion_trt.pose.motion import reference_stride


@pytest.fixture
def quick(animator: Animator) -> Callable[..., Settings]:
    """The bundle's settings, small: one step at 64x64, guidance 1."""

    def make(**settings):
        return animator.settings(**{"steps": 1, "guidance": 1, "size": (64, 64), "overlap": 3, **settings})

    return make


@pytest.fixture
def animate(
    animator: Animator, quick: Callable[..., Settings], person: Path, person_pose: PoseSequence
) -> Callable[..., Job]:
    """A job of the person, whose pose is known, with small settings."""

    def start(motion, image=person, **settings):
        return animator.animate(image, motion, quick(**settings), reference_pose=person_pose)

    return start


def test_everything_from_a_picture_and_a_video(animator, quick, person, clip_of):
    result = animator.animate(person, clip_of(5), quick()).result()
    assert len(result) == 3  # every second frame of a video at 30 fps
    assert result.fps == 15
    assert result.size == (64, 64)
    assert result.frames().shape == (3, 64, 64, 3)


def test_without_settings_the_bundles_own(animator, person, person_pose, dance):
    job = animator.animate(person, dance[:2], reference_pose=person_pose)
    assert job.animation.settings.steps == 3
    assert job.animation.size == (128, 64)  # of 64x128 and 128x64, as near to a square: the widest
    assert len(job.result()) == 2


def test_the_size_is_the_bundles_nearest_to_the_picture():
    sizes = ((576, 1024), (1024, 576))
    assert nearest_size((600, 800), sizes) == (576, 1024)
    assert nearest_size((4000, 3000), sizes) == (1024, 576)
    assert nearest_size((500, 500), sizes) == (1024, 576)
    assert nearest_size((500, 500), ((64, 128), (512, 512))) == (512, 512)


@pytest.mark.parametrize(("width", "height"), [(64, 128), (192, 64)])
def test_settings_may_ask_for_another_size(animate, dance, width, height):
    result = animate(dance[:2], size=(width, height)).result()
    assert result.frames().shape == (2, height, width, 3)


def test_one_driving_frame_makes_one_frame(animate, dance):
    result = animate(dance[7], guidance=2).result()
    assert len(result) == 1


def test_a_job_is_sampling_and_decoding(animator, animate, dance, person, person_pose, quick):
    """Its frames are those of `sample` and `decode` with the same poses, the reference's own frame dropped."""
    from mimicmotion_trt import draw_poses

    job = animate(dance[:4], seed=3, steps=2, guidance=2, decode_chunk=2)
    frames = job.result().frames()
    settings = replace(job.animation.settings, size=None)
    poses = draw_poses(job.animation.poses, 64, 64, canvas=512)
    latents = animator.sample(person, poses, settings)
    np.testing.assert_array_equal(frames, animator.decode(latents, 2)[1:])


def test_the_same_seed_gives_the_same_bytes(animate, dance):
    first, second, other = (animate(dance[:3], seed=seed).result().frames() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


# --- motions ---------------------------------------------------------------------------------------------


def test_keypoints_in_every_form(animate, dance, tmp_path):
    short = dance[:3]
    short.save(tmp_path / "motion.npz")
    short.save(tmp_path / "motion.json")
    (tmp_path / "nameless").write_bytes((tmp_path / "motion.npz").read_bytes())
    forms = [short, tmp_path / "motion.npz", str(tmp_path / "motion.json"), tmp_path / "nameless"]
    forms += [(tmp_path / f"motion.{suffix}").read_bytes() for suffix in ("npz", "json")]
    frames = [animate(form).result().frames().tobytes() for form in forms]
    assert len(set(frames)) == 1


def test_pose_pictures_in_every_form(animate, pose_pictures, tmp_path):
    pictures = pose_pictures(3)
    for index, picture in enumerate(pictures):
        write_picture(tmp_path / f"{index + 8}.png", picture)  # 8, 9, 10: in the order of numbers
    results = [animate(form).result() for form in (pictures, tmp_path, str(tmp_path))]
    assert len({result.frames().tobytes() for result in results}) == 1
    assert {(len(result), result.fps) for result in results} == {(3, 15.0)}


def test_a_video_in_every_form(animate, clip_of, tmp_path):
    data = clip_of(3)
    (tmp_path / "dance.mp4").write_bytes(data)
    (tmp_path / "no suffix").write_bytes(data)
    forms = [data, tmp_path / "dance.mp4", str(tmp_path / "no suffix")]
    frames = [animate(form).result().frames().tobytes() for form in forms]
    assert len(set(frames)) == 1


def test_a_picture_in_every_form(animate, dance, person):
    forms = [person, str(person), person.read_bytes(), read_picture(person)]
    frames = [animate(dance[:2], image=form).result().frames().tobytes() for form in forms]
    assert len(set(frames)) == 1


@pytest.mark.parametrize(
    ("stride", "frames", "length", "fps"),
    [
        (None, None, 7, 30.0),
        (2, None, 4, 15.0),
        (3, 2, 2, 10.0),
        (None, 5, 5, 30.0),
        (None, 99, 7, 30.0),
        (9, None, 1, 30 / 9),
    ],
)
def test_stride_and_frames_of_keypoints(animate, dance, stride, frames, length, fps):
    job = animate(dance[:7], stride=stride, frames=frames)
    assert (job.animation.frames, job.animation.fps) == (length, pytest.approx(fps))
    assert len(job.result()) == length


@pytest.mark.parametrize(
    ("stride", "frames", "length", "fps"), [(None, None, 5, 15.0), (2, None, 3, 7.5), (2, 1, 1, 7.5)]
)
def test_stride_and_frames_of_pose_pictures(animate, pose_pictures, tmp_path, stride, frames, length, fps):
    pictures = pose_pictures(5)
    for index, picture in enumerate(pictures):
        write_picture(tmp_path / f"{index}.png", picture)
    array, folder = (animate(form, stride=stride, frames=frames).result() for form in (pictures, tmp_path))
    assert (len(array), array.fps) == (length, fps)
    np.testing.assert_array_equal(array.frames(), folder.frames())


@pytest.mark.parametrize(
    ("fps", "stride", "frames", "length", "result"),
    [
        (30, None, None, 3, 15.0),
        (60, None, None, 2, 15.0),
        (30, 1, 2, 2, 30.0),
        (30, 5, None, 1, 6.0),
        (30, None, 2, 2, 15.0),
    ],
)
def test_stride_and_frames_of_a_video(animate, clip_of, fps, stride, frames, length, result):
    finished = animate(clip_of(5, fps), stride=stride, frames=frames).result()
    assert (len(finished), finished.fps) == (length, pytest.approx(result))


def test_the_references_stride():
    assert [reference_stride(fps) for fps in (10, 24, 25, 30, 47.9, 48, 60, 120)] == [2, 2, 2, 2, 2, 4, 4, 10]


def test_the_motion_is_fitted_to_the_person_unless_that_is_off(animate, dance):
    fitted, plain = (animate(dance[:3], rescale=rescale) for rescale in (True, False))
    assert not np.array_equal(fitted.result().frames(), plain.result().frames())
    np.testing.assert_array_equal(plain.animation.poses.body[1:], dance.body[:3])
    assert len(fitted.animation.poses) == 4  # the reference's own first


# --- events ----------------------------------------------------------------------------------------------


def test_events_come_stage_by_stage_and_count_up(animate, clip_of):
    job = animate(clip_of(20), steps=2, guidance=2, decode_chunk=4, segment=6)
    events = list(job)
    stages = [event.stage for event in events]
    assert list(dict.fromkeys(stages)) == list(STAGES)
    assert stages == sorted(stages, key=STAGES.index)
    for stage in STAGES:
        steps = [event.step for event in events if event.stage == stage]
        totals = {event.steps for event in events if event.stage == stage}
        assert steps == sorted(steps)
        assert totals == {steps[-1]}  # known from the start, reached at the end
    seconds = [event.seconds for event in events]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


def test_denoising_tells_its_segments(animate, dance):
    events = [e for e in animate(dance[:24], steps=2, guidance=2, segment=6) if e.stage == "denoise"]
    assert {event.segments for event in events} == {8}
    at = [(event.step, event.segment % event.segments) for event in events]
    assert at == sorted(at)
    assert [event.step for event in events if event.segment == event.segments] == [1, 2]


def test_decoding_hands_over_every_frame_once(animate, dance):
    job = animate(dance[:9], decode_chunk=4)
    first, *events = [event for event in job if event.stage == "decode"]
    assert (first.step, first.steps, first.frames) == (0, 9, None), "before the first chunk is decoded"
    parts = [event.frames for event in events]
    assert [len(part) for part in parts] == [3, 4, 2]  # the first chunk loses the reference's own frame
    np.testing.assert_array_equal(np.concatenate(parts), job.result().frames())


def test_every_frame_of_a_video_is_told_once_while_poses_are_found(animate, clip_of):
    told = [event.step for event in animate(clip_of(4), stride=1, steps=1) if event.stage == "pose"]
    assert told == [1, 2, 3, 4]


def test_no_frame_is_decoded_elsewhere(animate, dance):
    assert all(event.frames is None for event in animate(dance[:3]) if event.stage != "decode")


def test_previews(animate, dance):
    events = list(animate(dance[:5], steps=5, preview=2))
    shown = [event for event in events if event.preview is not None]
    assert [(event.stage, event.step) for event in shown] == [("denoise", 2), ("denoise", 4)]
    assert all(event.preview.shape == (64, 64, 3) for event in shown)
    assert all(event.preview.dtype == np.uint8 for event in shown)
    assert all(event.preview is None for event in animate(dance[:2], steps=2))


def test_previews_change_nothing(animate, dance):
    with_them, without = (animate(dance[:4], steps=3, preview=preview).result() for preview in (1, 0))
    np.testing.assert_array_equal(with_them.frames(), without.frames())


def test_an_event_says_what_it_is(animate, dance):
    texts = [str(event) for event in animate(dance[:2], steps=1)]
    assert any("denoise 1/1, segment 1/1" in text for text in texts)
    assert any("decode 2/2, 2 frames" in text for text in texts)


def test_progress_is_told_while_the_result_is_made(animate, dance):
    seen = []
    animate(dance[:2]).result(progress=seen.append)
    assert [event.stage for event in seen][-1] == "decode"


# --- owners who stop or stumble --------------------------------------------------------------------------


def run_until(job: Job, last: Callable[[Event], bool]) -> list[Event]:
    """The events of a job that is cancelled at the first event that `last` is true of."""
    seen = []
    for event in job:
        seen.append(event)
        if last(event):
            job.cancel()
    return seen


def test_cancelling_between_steps(animate, dance):
    job, steps = animate(dance[:5], steps=50), []

    def third(event):
        steps.append(event.step)
        return event.stage == "denoise" and event.step == 3

    with pytest.raises(Cancelled):
        run_until(job, third)
    assert steps[-1] == 3
    assert job.cancelled()
    with pytest.raises(Cancelled):
        job.result()


def test_cancelling_from_another_thread(animate, dance):
    job = animate(dance, steps=1000, guidance=2)
    timer = threading.Timer(0.5, job.cancel)
    began = time.monotonic()
    timer.start()
    with pytest.raises(Cancelled):
        job.result()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("stage", STAGES)
def test_cancelling_in_any_stage(animate, clip_of, stage):
    job, stages = animate(clip_of(8), stride=1, decode_chunk=2), []

    def there(event):
        stages.append(event.stage)
        return event.stage == stage

    with pytest.raises(Cancelled):
        run_until(job, there)
    assert stages.count(stage) == 1
    assert stages[-1] == stage


def test_a_cancelled_job_does_not_disturb_the_next(animate, dance):
    expected = animate(dance[:3]).result().frames()
    job = animate(dance[:3])
    job.cancel()
    with pytest.raises(Cancelled):
        job.result()
    np.testing.assert_array_equal(animate(dance[:3]).result().frames(), expected)


def test_who_stops_looking_can_go_on(animate, dance):
    job = animate(dance[:4], decode_chunk=2)
    for event in job:
        if event.frames is not None:
            break
    assert len(job.result()) == 4
    assert job.result() is job.result()


def test_a_mistake_in_the_owners_progress_is_not_the_jobs(animate, dance):
    def stumble(event):
        if event.stage == "denoise":
            raise ZeroDivisionError

    job = animate(dance[:3])
    with pytest.raises(ZeroDivisionError):
        job.result(stumble)
    np.testing.assert_array_equal(job.result().frames(), animate(dance[:3]).result().frames())


def test_an_unfinished_result_never_passes_for_a_finished_one(animate, dance, monkeypatch):
    job = animate(dance[:3])
    monkeypatch.setattr("mimicmotion_trt.networks.Networks.decode", _out_of_memory)
    with pytest.raises(MemoryError):
        job.result()
    monkeypatch.undo()
    with pytest.raises(MemoryError):
        job.result()


def _out_of_memory(*_):
    raise MemoryError


def test_two_jobs_at_once_share_nothing(animate, dance):
    expected = [animate(dance[:6], seed=seed, guidance=2).result().frames() for seed in (1, 2)]
    jobs = [animate(dance[:6], seed=seed, guidance=2) for seed in (1, 2)]
    threads = [threading.Thread(target=job.result) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job, frames in zip(jobs, expected, strict=True):
        np.testing.assert_array_equal(job.result().frames(), frames)


def test_interleaved_jobs_share_nothing(animate, dance):
    expected = animate(dance[:3], seed=4).result().frames()
    first, second = animate(dance[:3], seed=4), animate(dance[:5], seed=5, size=(128, 64))
    events = [iter(first), iter(second)]
    while any(next(job, None) for job in events):
        pass
    np.testing.assert_array_equal(first.result().frames(), expected)


def test_a_stream_keeps_nothing(animator, quick, person, person_pose, dance):
    clip = animator.stream(person, dance[:3], quick(), reference_pose=person_pose)
    assert (clip.frames, clip.fps, clip.size) == (3, 30.0, (64, 64))
    frames = [event.frames for event in clip if event.frames is not None]
    assert sum(map(len, frames)) == 3
    assert clip.settings.size == (64, 64)


def test_what_an_animator_says_of_itself(bundle):
    with Animator.load(str(bundle), device="cpu", threads=1, limits=Limits(frames=3)) as animator:
        assert animator.bundle_name == "test-bundle"
        assert animator.manifest.sizes == ((64, 128), (128, 64))
        assert animator.note == ""
        assert animator.threads == 1
        assert animator.limits.frames == 3


def test_one_thread_gives_what_two_give(bundle, animator, person, pose_pictures):
    settings = Settings(steps=2, segment=6, overlap=2)
    with Animator.load(bundle, threads=1) as single:
        alone = single.sample(person, pose_pictures(9), settings)
    together = animator.sample(person, pose_pictures(9), settings)
    assert np.abs(alone - together).max() < 1e-3


def test_the_reference_pose_may_be_given(animator, quick, person, person_pose, dance):
    estimated = animator.animate(person, dance[:2], quick()).result().frames()
    given = animator.animate(person, dance[:2], quick(), reference_pose=person_pose).result().frames()
    np.testing.assert_array_equal(estimated, given)
    moved = PoseSequence.concat([replace(person_pose, body=person_pose.body + np.float32(0.2))])
    other = animator.animate(person, dance[:2], quick(), reference_pose=moved).result().frames()
    assert not np.array_equal(other, given)


def test_the_person_at_the_side_of_a_picture_is_animated(animator, dance):
    """The picture that is encoded, and the pose that is drawn first, are those of the crop that holds them."""
    picture = Path(__file__).parents[1] / "data" / "framing" / "person_left.jpg"
    job = animator.animate(picture, dance[:2], animator.settings(steps=1, size=(64, 64), guidance=(1, 1)))
    job.result()
    assert job.animation.reference.crop.left == 0
    np.testing.assert_array_equal(job.animation.reference.pose.body[0], job.animation.poses.body[0])
    assert 0.1 < job.animation.poses.body[0, :, 0].min() < job.animation.poses.body[0, :, 0].max() < 0.5


def test_frames_without_the_person_hold_the_last_pose_and_are_counted(animate, person, tmp_path):
    picture = fit_picture(read_picture(person), 256, 256)
    with VideoWriter(tmp_path / "gap.mp4", fps=30, size=(256, 256)) as writer:
        for seen in (True, True, False, False, True):
            writer.write(picture if seen else np.full_like(picture, 127))
    result = animate(tmp_path / "gap.mp4", stride=1).result()
    assert (len(result), result.held) == (5, 2)
    poses = result.animation.poses[1:]
    np.testing.assert_array_equal(poses.body[2], poses.body[1])
    np.testing.assert_allclose(poses.body_score[3], poses.body_score[1] * 0.81, rtol=1e-5)
    assert animate(tmp_path / "gap.mp4", stride=1, frames=2).result().held == 0


@pytest.mark.parametrize(("who", "reference"), [("left", "left"), ("2", "right")])
def test_of_two_people_in_the_picture_the_one_who_is_asked_for_is_animated(animator, dance, who, reference):
    """Two dancers side by side; the crop is around the one who is meant."""
    dancer = read_picture(Path(__file__).parents[2] / "demo" / "dancer.png")
    picture = np.concatenate([dancer, np.full((384, 100, 3), 90, np.uint8), dancer[:, ::-1]], axis=1)
    settings = animator.settings(steps=1, size=(64, 128), person=who, guidance=(1, 1))
    job = animator.animate(picture, dance[:1], settings)
    job.result()
    crop = job.animation.reference.crop
    assert crop.right <= 306 if reference == "left" else crop.left >= 306
    with pytest.raises(SettingsError, match="person is 3, and no more than 2 people were seen"):
        animator.animate(picture, dance[:1], replace(settings, person="3")).result()
