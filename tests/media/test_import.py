"""Importing the package must stay light: PyAV and OpenCV load when they are needed."""

import subprocess
import sys


def test_the_room_loads_nothing_heavy():
    code = "import sys, mimicmotion_trt.media; print(sorted({'av', 'cv2', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
