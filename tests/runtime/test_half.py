"""A bundle whose networks multiply in float16, from picture and poses to latents and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mimicmotion_trt import Animator
from mimicmotion_trt.engines.bundle import describe_file
from mimicmotion_trt.export.options import Options


@pytest.fixture(scope="module")
def half(build_golden: Callable[[str, Options], Path]) -> Iterator[Animator]:
    """The golden networks in float16."""
    options = Options(
        precision="fp16", sizes=((64, 128), (128, 64)), segment=16, defaults={"canvas": 512, "steps": 3}
    )
    with Animator.load(build_golden("test-bundle-fp16", options), threads=2) as loaded:
        yield loaded


def relative(value: np.ndarray, expected: np.ndarray) -> float:
    """|value - expected| / |expected|, Euclidean norms."""
    return float(np.linalg.norm(value.astype(np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.slow
def test_every_step_is_near_that_of_float32(half, animator, golden_run):
    run = golden_run("single")
    settings = animator.resolve(run.settings)
    steps: list[list[np.ndarray]] = [[], []]
    results = [
        one.sample(
            run.picture,
            run.poses,
            settings,
            image_noise=run.noise,
            on_step=lambda index, latents, seen=seen: seen.append(latents),
        )
        for one, seen in ((half, steps[0]), (animator, steps[1]))
    ]
    errors = [relative(value, expected) for value, expected in zip(*steps, strict=True)]
    print(errors)
    assert results[0].dtype == np.float32
    assert len(errors) == settings.steps
    assert max(errors) < 5e-3
    pictures = [one.decode(latents) for one, latents in zip((half, animator), results, strict=True)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() < 1


@pytest.fixture(scope="module")
def half_poses(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with features of the pose in float16: PoseNet rounds them, the U-Net widens them."""
    import onnx
    from onnx import TensorProto, helper

    folder = tmp_path_factory.mktemp("half") / "bundle"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, tensors in (("pose_net", "outputs"), ("unet", "inputs")):
        model = onnx.load(path := folder / f"{name}.onnx")
        graph, network = model.graph, manifest["networks"][name]
        (pose,) = (
            value for value in (graph.output if tensors == "outputs" else graph.input)
            if value.name in ("pose", "features")
        )  # fmt: skip
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = ["wide" if one == pose.name else one for one in names]
        pose.type.tensor_type.elem_type = TensorProto.FLOAT16
        if tensors == "outputs":
            graph.node.append(helper.make_node("Cast", ["wide"], [pose.name], to=TensorProto.FLOAT16))
        else:
            graph.node.insert(0, helper.make_node("Cast", [pose.name], ["wide"], to=TensorProto.FLOAT))
        onnx.save(model, path)
        (told,) = (tensor for tensor in network["spec"][tensors] if tensor["name"] == pose.name)
        told["dtype"] = "float16"
        network["files"] = [asdict(describe_file(path))]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_arrays_are_of_the_engines_dtypes(half_poses, animator, pose_pictures):
    poses = pose_pictures(5, 128, 64)
    settings = animator.settings(steps=2, segment=4, overlap=2)
    with Animator.load(half_poses, threads=2) as mixed:
        conditions = mixed.networks.condition(poses[0], 3, settings)
        assert conditions.pose.dtype == np.float16
        assert conditions.embedding.dtype == conditions.image_latents.dtype == np.float32
        found = mixed.sample(poses[0], poses, settings)
    expected = animator.sample(poses[0], poses, settings)
    assert 0 < relative(found, expected) < 1e-3


@pytest.mark.slow
def test_networks_that_are_kept_in_float32_run_beside_those_in_float16(build_golden, animator, golden_run):
    options = Options(
        precision="fp16", keep_fp32=("unet", "vae_decoder"), sizes=((64, 128),), segment=16,
        defaults={"canvas": 512, "steps": 3},
    )  # fmt: skip
    run = golden_run("single")
    with Animator.load(build_golden("test-bundle-kept", options), threads=2) as kept:
        dtypes = {
            name: kept.networks[name].spec.outputs[0].dtype for name in ("unet", "vae_decoder", "pose_net")
        }
        assert dtypes == {"unet": "float32", "vae_decoder": "float32", "pose_net": "float16"}
        found, expected = (
            one.sample(run.picture, run.poses, animator.resolve(run.settings), image_noise=run.noise)
            for one in (kept, animator)
        )
        assert relative(found, expected) < 2.5e-3  # what remains is PoseNet's and the encoders' float16
        np.testing.assert_array_equal(kept.decode(expected), animator.decode(expected))
