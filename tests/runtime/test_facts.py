"""What was done goes with the result and into the file, so that a video can be made again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import pytest

from mimicmotion_trt import Facts, InputError, Result, read_facts
from mimicmotion_trt.events import STAGES
from mimicmotion_trt.media.writer import VideoWriter


@pytest.fixture(scope="module")
def result(animator, person, clip_of) -> Result:
    settings = animator.settings(steps=1, guidance=1, size=(64, 64), seed=5, preview=1)
    return animator.animate(person, clip_of(4), settings).result()


def test_a_result_says_how_it_was_made(animator, result):
    facts = result.facts
    assert facts.settings == animator.settings(steps=1, guidance=1, size=(64, 64), seed=5, preview=1)
    assert (facts.bundle, facts.build, facts.device) == ("test-bundle", animator.manifest.build, "cpu")
    assert (facts.people_in_picture, facts.people_in_motion, facts.held) == (1, 1, 0)
    assert list(result.seconds) == list(STAGES)
    assert min(result.seconds.values()) > 0


def test_who_was_given_was_not_found(animator, person, person_pose, dance):
    settings = animator.settings(steps=1, frames=2, guidance=1, size=(64, 64))
    facts = animator.animate(person, dance, settings, reference_pose=person_pose).result().facts
    assert (facts.people_in_picture, facts.people_in_motion) == (None, None)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
def test_the_file_says_the_same(result, tmp_path, suffix):
    """But for previews, which change nothing of the video."""
    path = result.save(tmp_path / f"out.{suffix}")
    assert read_facts(path) == replace(result.facts, settings=replace(result.facts.settings, preview=0))


def test_other_programs_read_it_as_a_comment(result, tmp_path):
    with av.open(str(result.save(tmp_path / "out.mp4"))) as container:
        said = json.loads(container.metadata["comment"])
    assert (said["made_by"], said["seed"], said["settings"]["size"]) == ("mimicmotion-trt", 5, [64, 64])
    assert "seconds" not in said, "the same job gives the same bytes"


def test_the_record_changes_no_frame(result, tmp_path):
    def pictures(name: str, **more: object) -> list[bytes]:
        with VideoWriter(tmp_path / name, fps=15, size=result.size, **more) as writer:
            for frame in result:
                writer.write(frame)
        with av.open(str(tmp_path / name)) as container:
            return [bytes(packet) for packet in container.demux(video=0)]

    assert pictures("a.mp4") == pictures("b.mp4", comment=result.facts.to_json)


def saved(result: Result, path: Path, comment: str) -> Path:
    with VideoWriter(path, fps=15, size=result.size, comment=lambda: comment) as writer:
        writer.write(next(iter(result)))
    return path


@pytest.mark.parametrize(
    "comment", ["", "made by hand", '{"made_by": "somebody"}', '{"made_by": "mimicmotion-trt"}']
)
def test_a_video_without_a_record_is_refused(result, tmp_path, comment):
    with pytest.raises(InputError, match=r"a.mp4 does not say how it was made") as caught:
        read_facts(saved(result, tmp_path / "a.mp4", comment))
    assert caught.value.field == "like"


def test_so_are_gifs_pictures_and_what_is_not_there(result, tmp_path):
    result.save(tmp_path / "a.gif")
    result.save(f"{tmp_path}/frames/")
    for name in ("a.gif", "frames/00001.png", "frames", "missing.mp4"):
        with pytest.raises(InputError) as caught:
            read_facts(tmp_path / name)
        assert caught.value.remedy


@pytest.mark.parametrize("name", ["http:a.mp4", "b\udcff.mp4", "concat:a|b.mp4"])
def test_a_name_is_only_a_name(result, tmp_path, monkeypatch, name):
    """Also one that FFmpeg would take for an address, and one in no encoding."""
    monkeypatch.chdir(tmp_path)
    path = result.save(tmp_path / "a.mp4")
    facts = read_facts(path)
    path.rename(name)
    assert read_facts(name) == facts


def test_a_record_of_a_newer_version_is_named(result, tmp_path):
    values = json.loads(result.facts.to_json()) | {"version": "9.9"}
    other = values | {"settings": values["settings"] | {"magic": 1}}
    with pytest.raises(InputError, match="unknown setting 'magic'") as caught:
        read_facts(saved(result, tmp_path / "a.mp4", json.dumps(other)))
    assert "version 9.9" in caught.value.remedy
    with pytest.raises(InputError, match="does not know: weather"):
        read_facts(saved(result, tmp_path / "a.mp4", json.dumps(values | {"weather": "fine"})))


def test_what_has_changed_since_then_is_said(result):
    now: Facts = replace(result.facts, build="0" * 64, device="NVIDIA H200")
    assert result.facts.difference(result.facts) == ""
    assert (
        result.facts.difference(now)
        == f"build {result.facts.build[:12]} then, 000000000000 now, device cpu then, NVIDIA H200 now"
    )
