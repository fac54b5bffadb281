"""The real size on a GPU with random weights: the plain PyTorch loop, and ours with each step switched on in turn."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimicmotion_trt.cuda.device import CudaDevice
from mimicmotion_trt.cuda.program import Layout, Rows, StepProgram
from mimicmotion_trt.denoise import Conditions, guidance_ramp
from mimicmotion_trt.engines import EngineSpec, network_specs
from mimicmotion_trt.engines.cuda_memory import Gpu
from mimicmotion_trt.engines.torch_binding import TorchBinding
from mimicmotion_trt.export.half import to_half
from mimicmotion_trt.export.networks import DecoderEngine, UNetEngine
from mimicmotion_trt.prediction import MIMICMOTION
from mimicmotion_trt.schedule import Step, euler_steps, initial_scale, karras_sigmas
from mimicmotion_trt.segments import fusion_weights, plan_segments

CONFIGS = Path(__file__).parents[1] / "tests" / "data" / "golden" / "real-size"
HIGH, WIDE = 72, 128
STEPS = 25
"""Steps of a whole run; fewer are timed, since every step is the same work."""
TIMED = 3


class ModuleEngine:
    """A PyTorch module as an engine on the GPU: what StepProgram needs of one."""

    def __init__(self, run: Callable[..., Tensor], spec: EngineSpec) -> None:
        self._run, self.spec = run, spec

    def bind(self, inputs: Any, outputs: Any) -> TorchBinding:
        """See `TorchBinding`."""
        return TorchBinding(self._run, self.spec, inputs, outputs, torch.device("cuda"))

    def close(self) -> None:
        """Nothing is held."""


def compare_loops(gpu: Gpu, frames: int) -> dict[str, Any]:
    """Seconds of 25 steps, guided, of one segment of `frames` frames at 1024x576, float16.

    In turn: the plain loop; with `torch.compile`; our rewritten U-Net in the step program without graphs, with
    one captured graph, and compiled. TFLOP/s count the operations of the published network.
    """
    conditions, noise = random_conditions(frames)
    figures: dict[str, Any] = {"matmul_tflops": matmul_ceiling()}
    unet = random_module("unet").half()
    pose_net = random_pose_net(unet).half()
    figures["plain_s"] = time_plain(unet, pose_net, conditions, noise)
    compiled = torch.compile(unet)
    figures["plain_compiled_s"] = time_plain(compiled, pose_net, conditions, noise)
    torch._dynamo.reset()
    ours = to_half(UNetEngine(unet), "unet").cuda().eval()
    specs = network_specs(pose_channels=320, token_width=1024, image_size=224, dtype="float16")
    device = CudaDevice(gpu, "float16")
    for name, run, graphs in (
        ("ours_eager", ours, False),
        ("ours_graph", ours, True),
        ("ours_compiled_graph", torch.compile(ours), True),
    ):
        engine = ModuleEngine(run, specs["unet"])
        figures |= time_program(device, engine, frames, conditions, noise, graphs, name)
    flops = 2 * MIMICMOTION.works["unet"].flops(rows=1, frames=frames, cells=HIGH * WIDE)
    best = min(value for name, value in figures.items() if name.endswith("_s"))
    figures["unet_tflops"] = flops * STEPS / best / 1e12
    figures["share_of_ceiling"] = figures["unet_tflops"] / figures["matmul_tflops"]
    figures["speedup"] = figures["plain_s"] / best
    figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def time_program(
    device: CudaDevice,
    engine: ModuleEngine,
    frames: int,
    conditions: Conditions,
    noise: Any,
    graphs: bool,
    name: str,
) -> dict[str, Any]:
    """Seconds of 25 steps of the step program, and how much of a step is not the U-Net."""
    plan = plan_segments(frames, frames, 6, "reference")
    weights = fusion_weights(plan, "triangular")
    rows = Rows(tuple(map(tuple, plan.tolist())), tuple(map(tuple, weights.tolist())), (True, False), (1, 1))
    layout = Layout((rows,), frames, (HIGH, WIDE))
    program = StepProgram(device, engine, layout, graphs=graphs)
    program.start(conditions, guidance_ramp((2.0, 2.0), frames), noise)
    steps = euler_steps(karras_sigmas(STEPS, 0.002, 700.0))

    def several() -> None:
        for step in steps[:TIMED]:
            program.step(step)

    whole = timed(several, device.gpu) / TIMED

    def networks(stream: Any) -> None:
        for call in program.calls:
            device.call(call, stream)

    alone = device.record(networks, graphs=graphs)
    unet = timed(alone, device.gpu)
    return {
        f"{name}_s": whole * STEPS,
        f"{name}_step_ms": whole * 1e3,
        f"{name}_not_unet": 1 - unet / whole,
    }


def time_plain(unet: Any, pose_net: nn.Module, conditions: Conditions, noise: Any) -> float:
    """Seconds of 25 steps in the reference's order: PoseNet and two U-Net calls for the segment at every step."""
    frames = len(noise)
    generator = torch.Generator("cuda").manual_seed(0)
    poses = torch.rand((frames, 3, HIGH * 8, WIDE * 8), generator=generator, device="cuda").half() * 2 - 1
    image = torch.from_numpy(conditions.image_latents).cuda().half()
    embedding = torch.from_numpy(conditions.embedding).cuda().half()[None]
    ids = torch.tensor([conditions.time_ids], device="cuda")
    state = {"latents": torch.from_numpy(noise).cuda()}

    def step(numbers: Step) -> None:
        latents = state["latents"]
        scaled = (latents * numbers.scale).half()
        answers = []
        for keep in (0.0, 1.0):
            pose = pose_net(poses)[None] if keep else None
            inputs = torch.cat([scaled, (image * keep).expand(frames, -1, -1, -1)], dim=1)[None]
            time_step = torch.tensor([numbers.timestep], device="cuda")
            answers.append(unet(inputs, time_step, embedding * keep, ids, pose)[0][0].float())
        v = answers[0] + 2.0 * (answers[1] - answers[0])
        state["latents"] = latents * numbers.keep + v * numbers.push

    steps = euler_steps(karras_sigmas(STEPS, 0.002, 700.0))
    with torch.inference_mode():
        step(steps[0])
        torch.cuda.synchronize()
        began = time.perf_counter()
        for numbers in steps[:TIMED]:
            step(numbers)
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMED * STEPS


def timed(work: Callable[[], Any], gpu: Gpu) -> float:
    """Seconds of work after one round of warming up."""
    work()
    gpu.wait()
    began = time.perf_counter()
    work()
    gpu.wait()
    return time.perf_counter() - began


def decode_frames(frames: int = 8) -> dict[str, Any]:
    """Seconds a frame of the VAE decoder as its engine computes it, eager and compiled."""
    decoder = to_half(DecoderEngine(random_module("vae")), "vae_decoder").cuda().eval()
    latents = torch.randn((frames, 4, HIGH, WIDE), device="cuda").half()
    figures: dict[str, Any] = {}
    for name, run in (("eager", decoder), ("compiled", torch.compile(decoder))):
        with torch.inference_mode():
            run(latents)
            torch.cuda.synchronize()
            began = time.perf_counter()
            run(latents)
            torch.cuda.synchronize()
        figures[f"{name}_s_a_frame"] = (time.perf_counter() - began) / frames
    return figures


def matmul_ceiling(side: int = 8192, times: int = 30) -> float:
    """TFLOP/s of side x side float16 products."""
    a, b = (torch.randn((side, side), device="cuda").half() for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        a @ b
    torch.cuda.synchronize()
    return 2 * side**3 * times / (time.perf_counter() - began) / 1e12


def random_conditions(frames: int) -> tuple[Conditions, Any]:
    """Conditions of a clip and its latents at the first sigma."""
    chance = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return chance.normal(size=shape).astype(np.float32)

    conditions = Conditions(
        embedding=drawn(1, 1024),
        image_latents=drawn(4, HIGH, WIDE),
        pose=(drawn(frames, 320, HIGH, WIDE) * 0.1).astype(np.float16),
        time_ids=(6.0, 127.0, 0.02),
    )
    scale = np.float32(initial_scale(karras_sigmas(STEPS, 0.002, 700.0)))
    return conditions, drawn(frames, 4, HIGH, WIDE) * scale


def random_module(part: str) -> Any:
    """A network of the real configuration on the GPU, its weights drawn so that values keep their size."""
    from diffusers import AutoencoderKLTemporalDecoder

    from mimicmotion_trt.training.networks import UNet

    kind = {"unet": UNet, "vae": AutoencoderKLTemporalDecoder}[part]
    values = json.loads((CONFIGS / part / "config.json").read_text())
    with torch.device("cuda"):
        module: Any = kind(**{key: value for key, value in values.items() if not key.startswith("_")})
    draw_weights(module)
    return module.eval().requires_grad_(False)


def random_pose_net(unet: Any) -> nn.Module:
    """PoseNet as wide as the U-Net."""
    from mimicmotion_trt.training.networks import PoseNet

    with torch.device("cuda"):
        pose_net = PoseNet(unet.config["block_out_channels"][0])
    draw_weights(pose_net)
    return pose_net.eval().requires_grad_(False)


def draw_weights(module: nn.Module) -> None:
    """Normal weights of variance 1 / inputs; norms stay as they are."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, values in module.named_parameters():
            if values.dim() > 1 and "norm" not in name:
                values.normal_(std=1 / math.sqrt(values[0].numel()))
