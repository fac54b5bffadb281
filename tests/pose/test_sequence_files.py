"""Pose files: what is saved comes back, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mimicmotion_trt.errors import LimitError, MotionError, OutputError
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.pose import PoseSequence
from mimicmotion_trt.pose.sequence import SHAPES


@st.composite
def sequences(draw):
    frames = draw(st.integers(1, 3))
    coordinate = st.floats(-(2.0**99), 2.0**99, width=32)
    score = st.floats(0, 1, width=32)
    arrays = {
        name: draw(
            hnp.arrays(np.float32, (frames, *shape), elements=score if "score" in name else coordinate)
        )
        for name, shape in SHAPES.items()
    }
    fps = draw(st.floats(1e-3, 1e6))
    return PoseSequence(**arrays, fps=fps, size=draw(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6))))


@pytest.mark.parametrize("suffix", [".npz", ".json"])
@given(sequence=sequences())
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
def test_what_is_saved_comes_back_exactly(tmp_path, suffix, sequence):
    path = tmp_path / f"poses{suffix}"
    sequence.save(path)
    assert PoseSequence.load(path) == sequence
    assert PoseSequence.load(str(path)) == sequence
    assert PoseSequence.load(path.read_bytes()) == sequence
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing left beside it


@pytest.fixture(params=[".npz", ".json"])
def saved(request, tmp_path, make_sequence):
    path = tmp_path / f"poses{request.param}"
    make_sequence().save(path)
    return path


def test_the_content_counts_not_the_name(saved, make_sequence):
    assert PoseSequence.load(saved.rename(saved.with_suffix(".dat"))) == make_sequence()


def test_a_truncated_file_is_refused_wherever_it_ends(saved):
    data = saved.read_bytes()
    for end in [*range(64), *range(64, len(data), max(1, len(data) // 60)), len(data) - 1]:
        with pytest.raises(MotionError) as caught:
            PoseSequence.load(data[:end])
        assert caught.value.remedy


@given(data=st.data())
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
def test_a_damaged_file_raises_nothing_but_motion_errors(saved, data):
    raw = bytearray(saved.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MotionError):
        PoseSequence.load(bytes(raw))


@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"{", b'{"body":', b"\xef\xbb\xbf{"]))
@settings(max_examples=100)
def test_foreign_bytes_are_refused(data, start):
    with pytest.raises(MotionError):
        PoseSequence.load(start + data)


def test_deeply_nested_json_is_refused():
    with pytest.raises(MotionError, match="damaged"):
        PoseSequence.load(b'{"body":' + b"[" * 200_000)


def test_unknown_and_missing_keys_are_named(tmp_path, make_sequence):
    path = tmp_path / "poses.json"
    make_sequence().save(path)
    values = json.loads(path.read_text())
    del values["face"]
    values["feet"] = []
    with pytest.raises(MotionError, match=r"lacks face and has unknown feet"):
        PoseSequence.load(json.dumps(values).encode())


def test_a_wrong_value_inside_names_file_and_field(tmp_path, make_sequence):
    path = tmp_path / "poses.json"
    make_sequence().save(path)
    path.write_text(path.read_text().replace('"fps":30.0', '"fps":NaN'))
    with pytest.raises(MotionError, match=r"poses\.json: fps is nan") as caught:
        PoseSequence.load(path)
    assert caught.value.field == "motion.fps"


def test_another_format_is_refused(tmp_path, make_sequence):
    path = tmp_path / "poses.json"
    make_sequence().save(path)
    with pytest.raises(MotionError, match="format 2; this version reads 1"):
        PoseSequence.load(path.read_bytes().replace(b'"format":1', b'"format":2'))


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_nothing_is_unpickled():
    buffer = io.BytesIO()
    np.savez(buffer, body=np.array([_Trap()], dtype=object), allow_pickle=True)
    for data in (buffer.getvalue(), pickle.dumps({"body": 1})):
        with pytest.raises(MotionError):
            PoseSequence.load(data)


def _npz(member: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("body.npy", member)
    return buffer.getvalue()


def test_a_header_that_promises_terabytes_allocates_nothing():
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 18, 2)}
    )
    with pytest.raises(MotionError, match="damaged"):
        PoseSequence.load(_npz(stream.getvalue() + b"\0" * 64))


def test_numpy_files_written_elsewhere_load(make_sequence):
    sequence = make_sequence()
    buffer = io.BytesIO()
    arrays = {name: np.asfortranarray(getattr(sequence, name).astype(">f8")) for name in SHAPES}
    np.savez(buffer, format=1, fps=30, size=[64, 128], **arrays)
    assert PoseSequence.load(buffer.getvalue()) == sequence


def test_a_path_that_cannot_be_read_or_written_says_why(tmp_path, make_sequence):
    with pytest.raises(MotionError, match="cannot be read"):
        PoseSequence.load(tmp_path / "absent.npz")
    with pytest.raises(OutputError, match=r"neither \.npz nor \.json"):
        make_sequence().save(tmp_path / "poses.txt")
    with pytest.raises(OutputError, match="cannot be written"):
        make_sequence().save(tmp_path / "absent" / "poses.npz")


def test_the_demo_motion_loads(demo_motion):
    assert (len(demo_motion), demo_motion.size, demo_motion.fps) == (50, (480, 854), 30.0)


@pytest.mark.parametrize(
    "filler", [b"[],", b"[0],", b'"x",', b"{},", b"0.1,[[[[[[[[[0]]]]]]]]],"], ids=lambda filler: filler[:4]
)
def test_json_that_would_take_many_times_its_length_is_refused_before_it_is_parsed(filler):
    data = b'{"body":[' + filler * (3 * 2**20 // len(filler)) + b"0]}"
    tracemalloc.start()
    with pytest.raises(MotionError, match="damaged JSON"):
        PoseSequence.load(data)
    assert tracemalloc.get_traced_memory()[1] < 8 * len(data), "not the 20 times of parsed lists"
    tracemalloc.stop()


def test_files_over_the_limits_are_refused_before_they_are_read(saved, make_sequence):
    data = saved.read_bytes()
    with pytest.raises(LimitError) as caught:
        PoseSequence.load(data, Limits(keypoint_bytes=1000, json_bytes=1000))
    assert caught.value.field == "motion"
    with zipfile.ZipFile(bomb := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("body.npy", bytes(2**24))
    with pytest.raises(LimitError, match="unpacked"):
        PoseSequence.load(bomb.getvalue(), Limits(keypoint_bytes=2**20))


def test_an_archive_of_many_files_or_of_a_foreign_packing_is_refused():
    with zipfile.ZipFile(many := io.BytesIO(), "w") as archive:
        for index in range(100):
            archive.writestr(f"{index}.npy", b"")
    with zipfile.ZipFile(foreign := io.BytesIO(), "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("body.npy", b"x")
    for file in (many, foreign):
        with pytest.raises(MotionError, match="damaged"):
            PoseSequence.load(file.getvalue())


@pytest.mark.parametrize("header", [b"{'descr': '''", b"(" * 5000, b"{'descr': \xff", b"\0\1\2", b"1 if"])
def test_a_garbled_header_is_the_files_fault(header):
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with pytest.raises(MotionError, match="damaged header"):
        PoseSequence.load(_npz(member))
