"""The PyTorch backend: TorchScript files served eager or compiled, imported for torch bundles only."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mimicmotion_trt import Animator, BundleError, EngineError  # noqa: E402
from mimicmotion_trt.engines import Bundle, EngineSpec, Placement, TensorSpec  # noqa: E402
from mimicmotion_trt.engines.torch_backend import (  # noqa: E402
    MODE_VARIABLE,
    TorchEngine,
    limit_threads,
    open_engine,
    read_trace,
)
from mimicmotion_trt.errors import DeviceLost  # noqa: E402

SPEC = EngineSpec(
    (TensorSpec("x", "float32", ("rows", 4, "width")), TensorSpec("y", "float32", ("rows",))),
    (TensorSpec("z", "float32", ("rows", "half", 6)),),
)


class Small(torch.nn.Module):
    """Sizes computed from sizes, a tensor made on the input's device, weights, a list that is taken apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 6)

    def forward(self, x, y):
        rows, width, length = x.shape
        half = length // 2
        x = x.transpose(1, 2).reshape(rows * half * 2, width)
        x = self.layer(x).reshape(rows, half * 2, 6)
        first, second = x.chunk(2, dim=1)
        steps = torch.arange(half, device=x.device)[:, None]
        return first * steps + second * y[:, None, None] / 2


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A traced network."""
    path = tmp_path_factory.mktemp("traced") / "small.ts"
    torch.jit.trace(Small().eval(), (torch.zeros(2, 4, 6), torch.zeros(2)), check_trace=False).save(str(path))
    return path


def arrays(rows: int = 3, width: int = 8, seed: int = 0):
    random = np.random.default_rng(seed)
    inputs = {name: random.normal(size=shape).astype(np.float32)
              for name, shape in (("x", (rows, 4, width)), ("y", (rows,)))}  # fmt: skip
    return inputs, {"z": np.full((rows, width // 2, 6), np.nan, np.float32)}


def expected(inputs) -> np.ndarray:
    with torch.inference_mode():
        return Small()(*(torch.from_numpy(array.copy()) for array in inputs.values())).numpy()


@pytest.mark.parametrize(("rows", "width"), [(1, 2), (2, 6), (5, 40), (1, 6)])
def test_free_sizes_may_differ_from_call_to_call(file, rows, width):
    inputs, outputs = arrays(rows, width)
    open_engine(file, SPEC, Placement("cpu", threads=1)).bind(inputs, outputs)()
    np.testing.assert_allclose(outputs["z"], expected(inputs), rtol=1e-5, atol=1e-6)


def test_a_call_reads_its_arrays_anew_even_those_that_it_may_not_write(file):
    inputs, outputs = arrays()
    readonly = inputs["y"].view()
    readonly.flags.writeable = False
    call = TorchEngine(file, SPEC, "cpu", None).bind(inputs | {"y": readonly}, outputs)
    for value in (1.0, -2.0):
        for array in inputs.values():
            array[:] = value
        call()
        np.testing.assert_allclose(outputs["z"], expected(inputs), rtol=1e-5, atol=1e-6)


class Two(torch.nn.Module):
    """Two answers; one of them is the other's half way."""

    def forward(self, x, y):
        kept = x.sum(1) + y[:, None]
        return 2 * kept, kept


def test_each_answer_goes_where_its_name_says(tmp_path):
    spec = EngineSpec(
        SPEC.inputs, tuple(TensorSpec(name, "float32", ("rows", "width")) for name in ("twice", "kept"))
    )
    given = (torch.zeros(2, 4, 6), torch.zeros(2))
    torch.jit.trace(Two(), given, check_trace=False).save(str(tmp_path / "two.ts"))
    inputs, _ = arrays()
    outputs = {name: np.zeros((3, 8), np.float32) for name in ("kept", "twice")}
    TorchEngine(tmp_path / "two.ts", spec, "cpu", 1).bind(inputs, outputs)()
    kept = inputs["x"].sum(1) + inputs["y"][:, None]
    np.testing.assert_allclose(outputs["kept"], kept, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs["twice"], 2 * kept, rtol=1e-5, atol=1e-6)


class SpareGpu:
    """A `Gpu` by what `TorchEngine.close` asks of it."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.lock, self.reclaimable, self.wait = threading.RLock(), set[Any](), wait

    def activate(self) -> None:
        pass


def test_a_closed_engine_gives_back_what_pytorch_keeps_for_its_stream(file, monkeypatch):
    """If the GPU is lost, PyTorch must not be asked to: that would end the process."""
    done: list[str] = []

    def wait() -> None:
        done.append("waited")
        if "lost" in done:
            raise DeviceLost("the GPU failed.")

    gpu: Any = SpareGpu(wait)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("given back"))
    TorchEngine(file, SPEC, "cpu", 1, gpu=gpu).close()
    assert done == ["waited", "given back"]
    done[:] = ["lost"]
    TorchEngine(file, SPEC, "cpu", 1, gpu=gpu).close()
    assert done == ["lost", "waited"]


def test_compiled_as_one_graph(file):
    """Dynamo takes the program whole, with free sizes; its own compiler is too slow for a test."""
    program = torch.compile(
        TorchEngine(file, SPEC, "cpu", 1).program, backend="eager", dynamic=True, fullgraph=True
    )
    with torch.inference_mode():
        for rows, width in ((3, 8), (2, 12), (4, 6)):
            inputs, _ = arrays(rows, width)
            answer = program(*map(torch.from_numpy, inputs.values()))
            np.testing.assert_allclose(answer.numpy(), expected(inputs), rtol=1e-5, atol=1e-6)


def test_nothing_of_a_trace_stays_on_the_device_that_it_was_made_on(file):
    """PyTorch's meta device stands for a GPU: it refuses to work with tensors of the CPU."""
    device = torch.device("meta")
    program = read_trace(torch.jit.load(str(file)), device).to(device)
    answer = program(torch.empty(3, 4, 8, device=device), torch.empty(3, device=device))
    assert answer.device == device
    assert answer.shape == (3, 4, 6)


def test_threads_are_bounded_while_calls_run_and_put_back_after():
    before = torch.get_num_threads()
    with limit_threads(1):
        assert torch.get_num_threads() == 1
        with limit_threads(1):
            pass
        assert torch.get_num_threads() == 1
        with limit_threads(None):
            pass
    assert torch.get_num_threads() == before


def test_arrays_that_do_not_fit(file):
    engine = TorchEngine(file, SPEC, "cpu", 1)
    inputs, outputs = arrays()
    with pytest.raises(EngineError, match="float64"):
        engine.bind(inputs | {"y": np.zeros(3)}, outputs)
    wrong = {"z": np.zeros((3, 1, 6), np.float32)}  # it would take the answer's sum of rows, or repeat it
    with pytest.raises(EngineError, match=r"computes \[3, 4, 6\], not \[3, 1, 6\]"):
        engine.bind(inputs, wrong)()


def test_a_closed_engine_cannot_be_called(file):
    engine = TorchEngine(file, SPEC, "cpu", 1)
    call = engine.bind(*arrays())
    engine.close()
    for use in (call, lambda: engine.bind(*arrays())):
        with pytest.raises(EngineError, match="closed"):
            use()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "meta"])
def test_a_device_that_is_not_there(file, device):
    with pytest.raises(BundleError, match=repr(device)) as caught:
        open_engine(file, SPEC, Placement(device, threads=1))
    assert "auto" in caught.value.remedy


def test_an_unknown_mode(file, monkeypatch):
    monkeypatch.setenv(MODE_VARIABLE, "fast")
    with pytest.raises(BundleError, match="MIMICMOTION_TORCH is 'fast'"):
        open_engine(file, SPEC, Placement("cpu", threads=1))


def test_a_file_that_is_no_engine(tmp_path):
    (tmp_path / "small.ts").write_bytes(b"no engine")
    with pytest.raises(BundleError, match=r"small\.ts cannot be loaded by PyTorch"):
        TorchEngine(tmp_path / "small.ts", SPEC, "cpu", 1)


def test_without_pytorch_the_error_names_the_extra():
    code = (
        "import sys, importlib; sys.modules['torch'] = None\n"
        "from mimicmotion_trt import BundleError\n"
        "from mimicmotion_trt.engines.backend import BACKENDS\n"
        "try: importlib.import_module('mimicmotion_trt.engines.' + BACKENDS['torch'])\n"
        "except BundleError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'mimicmotion-trt[torch]'" in done.stdout, done.stderr


def test_the_same_latents_and_pictures_as_with_onnx_runtime(torch_bundle, animator):
    random = np.random.default_rng(0)
    poses = random.integers(0, 255, (6, 128, 64, 3), dtype=np.uint8)
    with Animator.load(torch_bundle, device="cpu", threads=1) as ours:
        manifest = Bundle.load(torch_bundle).manifest
        assert (manifest.backend, manifest.precision) == ("torch", "fp32")
        for network in manifest.networks.values():
            assert network.accuracy.rel_l2 < 1e-4
        settings = animator.settings(steps=2, segment=4, overlap=1)
        latents, theirs = (a.sample(poses[0], poses, settings) for a in (ours, animator))
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(latents, theirs, rtol=0, atol=1e-5 * scale)
        pictures = ours.decode(latents).astype(int)
    assert np.abs(pictures - animator.decode(latents)).max() <= 1


def test_a_torch_bundle_is_served_without_diffusers(torch_bundle):
    code = (
        "import sys, mimicmotion_trt as mm, numpy as np\n"
        f"animator = mm.Animator.load({str(torch_bundle)!r}, device='cpu', threads=1)\n"
        "animator.decode(np.zeros((1, 4, 8, 8), np.float32))\n"
        "print('torch' in sys.modules, sorted({'diffusers', 'transformers', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "True []", done.stderr
