"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mimicmotion_trt.files import cache_folder, keep_in_cache, write_atomic


@pytest.mark.parametrize("content", [b"new", "new", lambda file: file.write(b"new")])
def test_a_file_takes_the_place_of_the_old_one(content, tmp_path):
    umask = os.umask(0o027)
    os.umask(umask)
    path = tmp_path / "file"
    path.write_text("old")
    write_atomic(path, content)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_is_left_of_a_file_whose_writer_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_cannot_be_renamed_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomic(tmp_path / "folder", b"x")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("where a folder should be")
    keep_in_cache(tmp_path / "file" / "entry", b"x")
    keep_in_cache(tmp_path / "new" / "entry", b"x")
    assert (tmp_path / "new" / "entry").read_bytes() == b"x"


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("MIMICMOTION_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "mimicmotion"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "shared" / "mimicmotion"
    monkeypatch.setenv("MIMICMOTION_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
