"""What TensorRT says is answered with what helps."""

from __future__ import annotations

from collections import deque

import pytest

from mimicmotion_trt.engines.tensorrt_library import Library


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("CUDA driver version is insufficient for CUDA runtime version", "GPU's driver"),
        ("Error Code 1: Cuda Driver (Loader version is insufficient for fatbin)", "GPU's driver"),
        ("Insufficient driver: 12040 < 13000", "GPU's driver"),
        (
            "Error Code 10: Internal Error (Could not find any implementation for node conv due to insufficient "
            "workspace. See verbose log for requested sizes.)",
            "more --workspace",
        ),
        ("Try increasing the workspace size with IBuilderConfig::setMemoryPoolLimit.", "more --workspace"),
        ("Insufficient workspace: provided 12 bytes but plan requires 34 bytes.", "more --workspace"),
        ("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (out of memory)", "fewer pixels"),
        ("Error Code 2: OutOfMemory (Requested size was 123 bytes.)", "fewer pixels"),
        ("Cannot reformat, possibly due to insufficient memory.", "fewer pixels"),
        ("CHECK(status == CUDA_SUCCESS) failed. Error Code 1: Cuda Driver (out of memory)", "fewer pixels"),
        (
            "The engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 7.5, "
            "please rebuild.",
            "on this machine, or with --capability",
        ),
        ("The engine cannot run on this GPU, which has compute capability 9.0", "with --capability"),
        (
            "The engine plan file is not compatible with this version of TensorRT, expecting library version "
            "11.4.0 got 11.3.0, please rebuild.",
            "version that built",
        ),
        (
            "Error Code 1: Serialization (Version tag does not match. Note: Current Version: 96, Serialized Engine "
            "Version: 97)",
            "version that built",
        ),
        ("Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.", "damaged"),
        ("CHECK(res == CUDA_SUCCESS) failed. ", "leave out --refit"),
        ("Insufficient registers (255) to compile instruction at line 3", "as usual"),
        ("This version does not support building engines for Windows.", "as usual"),
    ],
)
def test_what_the_library_says_is_answered_with_what_helps(said, remedy):
    library = Library("tensorrt", None, None, deque([said]))
    told, answer = library.explain("as usual")
    assert told == said
    assert remedy in answer
