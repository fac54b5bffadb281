"""What every room's tests share: the golden data, a real bundle built from it, and an animator on it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest

if TYPE_CHECKING:
    from mimicmotion_trt import Animator, Settings
    from mimicmotion_trt.engines import Bundle, Engine
    from mimicmotion_trt.export.options import Options

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).parents[1]
# An example takes as long as the machine is busy; its time says nothing.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")
AS_BUILT: dict[str, Any] = {
    "sizes": ((64, 128), (128, 64)), "segment": 16, "defaults": {"canvas": 512, "steps": 3},
}  # fmt: skip
"""Options of the bundles that all tests share."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One file that builds the shared bundle goes first, then those that need none, which others run meanwhile."""
    needing = {item.path for item in items if "deep_bundle" in getattr(item, "fixturenames", ())}
    first = min(needing, default=None)
    items.sort(key=lambda item: 0 if item.path == first else 1 + (item.path in needing))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The golden folder: `tiny/` holds small networks and three runs of the reference on them."""
    return ROOT / "tests" / "data" / "golden"


@dataclass(frozen=True)
class GoldenRun:
    """One run of the reference implementation."""

    picture: Path
    settings: Settings
    arrays: dict[str, Array]

    def __getattr__(self, name: str) -> Array:
        return self.arrays[name]

    @property
    def poses(self) -> Array:
        """uint8 [F,H,W,3]"""
        return np.ascontiguousarray(self.arrays["pose_frames"].transpose(0, 2, 3, 1))

    @property
    def noise(self) -> Array | None:
        """float32 [3,H,W] if the picture was noised."""
        return self.arrays["image_noise"][0] if self.settings.noise_aug else None


@pytest.fixture(scope="session")
def golden_run(golden: Path) -> Callable[[str], GoldenRun]:
    """A run by name: single, long, augmented."""

    def load(name: str) -> GoldenRun:
        from mimicmotion_trt import Settings

        with np.load(golden / "tiny" / f"{name}.npz") as file:
            arrays = dict(file)
        given = json.loads(str(arrays.pop("settings")))
        keys = ("segment", "overlap", "steps", "noise_aug", "guidance", "decode_chunk")
        settings = Settings(**{key: given[key] for key in keys})
        return GoldenRun(golden / "tiny" / f"{name}.png", settings, arrays)

    return load


@pytest.fixture(scope="session")
def build_golden(golden: Path) -> Callable[[str, Options], Path]:
    """Builds the golden networks into build/NAME; once, later runs find the bundle by its build key."""

    def build(name: str, options: Options) -> Path:
        import torch
        from filelock import FileLock

        from mimicmotion_trt.export.build import build_bundle

        weights, folder = golden / "tiny", ROOT / "build" / name
        folder.parent.mkdir(exist_ok=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # networks so small that threads only wait for each other
        try:
            with FileLock(f"{folder}.lock"):  # tests run in several processes
                build_bundle(weights / "svd", weights / "mimicmotion.pth", folder, options)
        finally:
            torch.set_num_threads(threads)
        return folder

    return build


@pytest.fixture(scope="session")
def deep_bundle(build_golden: Callable[[str, Options], Path]) -> Path:
    """The folder of a bundle of the tiny networks, built with --deep-cache."""
    from mimicmotion_trt.export.options import Options

    return build_golden("test-deep-bundle", Options(**AS_BUILT, deep_cache=True))


@pytest.fixture(scope="session")
def bundle(golden: Path, deep_bundle: Path) -> Path:
    """The same without --deep-cache: two networks fewer, the others are the same files."""
    from filelock import FileLock

    from mimicmotion_trt.engines import NETWORKS, Bundle
    from mimicmotion_trt.export.build import build_key
    from mimicmotion_trt.export.options import Options

    options, folder = Options(**AS_BUILT), ROOT / "build" / "test-bundle"
    key = build_key(golden / "tiny" / "svd", golden / "tiny" / "mimicmotion.pth", options)
    with FileLock(f"{folder}.lock"):
        if not folder.exists() or Bundle.load(folder).manifest.build != key:
            shutil.rmtree(folder, ignore_errors=True)
            built = Bundle.load(deep_bundle)
            networks = {name: built.manifest.networks[name] for name in NETWORKS}
            shutil.copytree(deep_bundle, coming := folder.with_name("test-bundle.coming"), dirs_exist_ok=True)
            for name in built.manifest.networks.keys() - networks.keys():
                for path in coming.glob(f"{name}.*"):
                    path.unlink()
            manifest = replace(built.manifest, networks=networks, build=key, options=options.arguments)
            (coming / "manifest.json").write_text(manifest.to_json())
            coming.rename(folder)
    return folder


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    """That bundle, its manifest read and its files checked."""
    from mimicmotion_trt.engines import Bundle

    return Bundle.load(bundle)


@pytest.fixture(scope="module")
def pose_net(opened: Bundle) -> Engine:
    """Its smallest network."""
    from mimicmotion_trt.engines import Placement, open_engine

    return open_engine(opened, "pose_net", Placement(threads=1))


@pytest.fixture(scope="session")
def torch_bundle(build_golden: Callable[[str, Options], Path]) -> Path:
    """The same networks for PyTorch, at one size."""
    from mimicmotion_trt.export.options import Options

    return build_golden("test-bundle-torch", Options(**{**AS_BUILT, "sizes": ((64, 128),)}, backend="torch"))


def write_lora(path: Path, bundle: Path, seed: int = 0) -> None:
    """A LoRA of the attentions of a bundle's U-Net: random, the same for the same seed."""
    from safetensors.numpy import save_file

    from mimicmotion_trt.engines import Bundle

    random, keys = np.random.default_rng(seed), {}
    for layer, weight in Bundle.load(bundle).weight_table("unet").items():
        if layer.endswith((".attn1.to_v", ".attn2.to_v")):
            outputs, inputs = weight.shape
            for side, shape in (("A", (2, inputs)), ("B", (outputs, 2))):
                keys[f"unet.{layer}.lora_{side}.weight"] = random.normal(size=shape).astype(np.float32) * 0.5
    save_file(keys, path)


@pytest.fixture(scope="session")
def make_lora(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a LoRA of the shared bundle under a name, as `write_lora` does."""

    def make(name: str, seed: int = 0) -> Path:
        path = tmp_path_factory.mktemp("lora") / f"{name}.safetensors"
        write_lora(path, bundle, seed)
        return path

    return make


@pytest.fixture(scope="session")
def overflowing_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """That bundle with one network that answers NaN; the U-Net only where motion_bucket is above 1000."""

    def make(network: str) -> Path:
        import onnx
        from onnx import TensorProto, helper

        from mimicmotion_trt.engines.bundle import describe_file

        folder = tmp_path_factory.mktemp("overflowing") / network
        shutil.copytree(bundle, folder)
        model = onnx.load(path := folder / f"{network}.onnx")
        graph = model.graph
        answer = graph.output[0].name
        for node in graph.node:
            node.output[:] = ["sound" if name == answer else name for name in node.output]
        nodes = [
            helper.make_node("Log", ["negative"], ["nan"]),
            helper.make_node("Add", ["sound", "nan"], [answer]),
        ]
        if network == "unet":
            graph.initializer.append(helper.make_tensor("bucket", TensorProto.INT64, [1], [1]))
            graph.initializer.append(helper.make_tensor("most", TensorProto.FLOAT, [1], [1001.0]))
            graph.initializer.append(helper.make_tensor("none", TensorProto.FLOAT, [1], [0.0]))
            nodes = [
                helper.make_node("Gather", ["time_ids", "bucket"], ["buckets"], axis=1),
                helper.make_node("Sub", ["most", "buckets"], ["room"]),
                helper.make_node("Log", ["room"], ["log"]),
                helper.make_node("Mul", ["log", "none"], ["none or nan"]),
                helper.make_node("ReduceSum", ["none or nan"], ["nan"], keepdims=0),
                nodes[1],
            ]
        else:
            graph.initializer.append(helper.make_tensor("negative", TensorProto.FLOAT, [1], [-1.0]))
        graph.node.extend(nodes)
        onnx.save(model, path)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["networks"][network]["files"] = [asdict(describe_file(path))]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


@pytest.fixture(scope="session")
def animator(bundle: Path) -> Iterator[Animator]:
    """One animator for the whole session; its jobs share nothing but the engines."""
    from mimicmotion_trt import Animator

    with Animator.load(bundle, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place: Path = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)
