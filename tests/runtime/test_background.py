"""What is behind a transparent picture: white, or a chosen colour; a picture without such parts keeps its own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimicmotion_trt import Animator, PoseSequence, SettingsError
from mimicmotion_trt.service.transfer import Upload
from mimicmotion_trt.settings import Settings


@pytest.fixture(scope="module")
def cut_out(person: Path) -> Image.Image:
    """The person, transparent on the left."""
    picture = Image.open(person).convert("RGBA")
    alpha = np.full((picture.height, picture.width), 255, np.uint8)
    alpha[:, : picture.width // 4] = 0
    picture.putalpha(Image.fromarray(alpha))
    return picture


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("background", "colour"), [("keep", (255, 255, 255)), ("green", (0, 128, 0)), ("#10f", (17, 0, 255))]
)
def test_a_transparent_picture_lies_over_the_chosen_colour(
    animator: Animator, cut_out: Image.Image, person_pose: PoseSequence, background, colour
) -> None:
    settings = animator.settings(size=(64, 64), background=background)
    for image in (png(cut_out), cut_out):
        taken = animator.reference(image, settings, reference_pose=person_pose).picture
        assert (taken[:, :12] == colour).all()
        assert not (taken[:, 40:] == colour).all(axis=2).any()


def test_the_video_shows_it(animator, cut_out, person_pose, dance) -> None:
    def frames(background: str) -> np.ndarray:
        settings = animator.settings(steps=1, frames=1, guidance=1, size=(64, 64), background=background)
        return animator.animate(png(cut_out), dance, settings, reference_pose=person_pose).result().frames()

    np.testing.assert_array_equal(frames("keep"), frames("white"))
    assert not np.array_equal(frames("keep"), frames("black"))


def test_an_opaque_picture_has_no_background_to_fill(animator, person, cut_out, person_pose) -> None:
    settings = animator.settings(size=(64, 64), background="red")
    filled = cut_out.copy()
    filled.putalpha(255)
    for image in (person, png(filled), np.zeros((64, 64, 3), np.uint8), cut_out.convert("RGB")):
        with pytest.raises(SettingsError, match="nothing of the picture is transparent") as caught:
            animator.reference(image, settings, reference_pose=person_pose)
        assert caught.value.field == "settings.background"
        assert caught.value.remedy
    kept = animator.settings(size=(64, 64))
    assert animator.reference(person, kept, reference_pose=person_pose).picture.shape == (64, 64, 3)


@pytest.mark.parametrize("background", ["grue", "#12", "", 7, "#ff00ff80", None])
def test_what_is_no_colour(background) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(background=background)
    assert caught.value.field == "settings.background"
    assert "#00ff00" in caught.value.remedy


def test_one_colour_has_one_spelling() -> None:
    assert Settings(background="Lime") == Settings(background="#0F0") == Settings(background="#00ff00")


def test_a_client_sends_what_is_transparent(cut_out) -> None:
    header, *parts = Upload(cut_out, b"a video", {"background": "green"})
    assert header.header.settings.background == "#008000"
    with Image.open(io.BytesIO(b"".join(part.picture for part in parts))) as sent:
        assert sent.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(sent), np.asarray(cut_out))
