"""An environment that holds the wheel, as users have it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel and what it depends on, and nothing of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    config = folder / "build.cfg"  # nothing is written into the repository
    config.write_text(f"[build]\nbuild_base={folder}/build\n[egg_info]\negg_base={folder}\n")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    environment = {**os.environ, "DIST_EXTRA_CONFIG": str(config)}
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, env=environment)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    import numpy

    for path in Path(numpy.__file__).parents[1].iterdir():
        if not re.match(r"mimicmotion_trt|__editable__|.*\.pth$|__pycache__", path.name):
            (site / path.name).symlink_to(path)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    return python
