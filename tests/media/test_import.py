"""Importing the package must stay light: PyAV and OpenCV load when they are needed."""

import subprocess
import sys

import pytest

import mimicmotion_trt.media as media


def test_the_room_loads_nothing_heavy():
    code = "import sys, mimicmotion_trt.media; print(sorted({'av', 'cv2', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_its_names_are_found():
    assert all(callable(getattr(media, name)) for name in media.__all__)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = media.nothing_here
