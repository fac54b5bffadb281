"""An ONNX graph to a TensorRT or TensorRT-RTX plan: strongly typed, no plugins, progress told."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..engines import EnginePlan, EngineSpec, Placement, Profile
from ..engines.tensorrt_backend import open_engine
from ..engines.tensorrt_library import Library
from ..errors import ExportError
from .options import PlanOptions
from .target import CAPABILITIES, gpu_name, set_capabilities

ANOTHER = (
    "Install the version that this was made for (pip install 'tensorrt-cu13==11.4.*', or "
    "'tensorrt-rtx-cu13==1.7.*' for TensorRT-RTX), or report this if it is that one."
)
Progress = Callable[[float], None]
"""Told a share of the build, 0 to 1; estimates, since the library does not know how many phases come."""


def compile_plan(
    library: Library,
    graph: Path,
    spec: EngineSpec,
    profiles: tuple[Profile, ...],
    options: PlanOptions,
    output: Path,
    progress: Progress = lambda share: None,
) -> EnginePlan:
    """Compile `graph` (a float16 ONNX file in the standard's operators) into the file `output`.

    The build runs on a thread of its own, so that an interrupt reaches this one: it is then called off, and
    nothing is written. Raises `ExportError` with what the library said.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(1, "tensorrt") as worker:
        future = worker.submit(_compile, library, graph, spec, profiles, options, output, stop, progress)
        try:
            return future.result()
        except BaseException:
            stop.set()
            raise


def _compile(
    library: Library,
    graph: Path,
    spec: EngineSpec,
    profiles: tuple[Profile, ...],
    options: PlanOptions,
    output: Path,
    stop: threading.Event,
    progress: Progress,
) -> EnginePlan:
    api = library.api
    library.messages.clear()  # what was said of an earlier network is not this one's error
    builder = library.start(api.Builder)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(graph)):
        told = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise ExportError(f"{graph.name} cannot be read by {library.version}: {told}", remedy=ANOTHER)
    check_tensors(api, network, spec, graph.name)
    if graph.stem.startswith("vae"):
        allow_pieces(api, network)
    config = builder.create_builder_config()
    target = configure(api, config, options)
    add_profiles(builder, config, spec, profiles)
    config.progress_monitor = make_monitor(api, stop, progress)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        said, remedy = library.explain("Try another --level, or report it with the text above.")
        raise ExportError(f"{library.version} could not compile {graph.name}: {said}", remedy=remedy)
    write(output, memory)
    return EnginePlan(library.version, target, profiles, options.refit, options.weight_streaming)


def refit_plan(
    library: Library,
    graph: Path,
    spec: EngineSpec,
    profiles: tuple[Profile, ...],
    options: PlanOptions,
    former: tuple[Path, EnginePlan | None],
    output: Path,
) -> EnginePlan:
    """Write a plan of another bundle with the weights of `graph` into the file `output`: seconds, not minutes.

    Raises `ExportError` if that plan is not what would be compiled here but for its weights, `EngineError` if it
    does not take them, `BundleError` if it does not run here.
    """
    path, plan = former
    portable = hasattr(library.api, "ComputeCapability")
    target = " ".join(options.capabilities) if portable else gpu_name()
    wanted = EnginePlan(library.version, target, profiles, options.refit, options.weight_streaming)
    if plan != wanted:
        raise ExportError(
            f"{path.name} is not the plan that is asked for: {plan} instead of {wanted}.",
            remedy="Give the former bundle's options, or leave out --refit-from to compile.",
            field="refit_from",
        )
    engine = open_engine(path, spec, Placement("cuda"), plan=plan)
    try:
        engine.refit(graph)
        write(output, engine.serialize())
    finally:
        engine.close()
    return wanted


def write(output: Path, data: Any) -> None:
    """Write beside, then rename."""
    beside = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("wb") as stream:
            stream.write(data)
        os.replace(beside, output)
    finally:
        beside.unlink(missing_ok=True)


def configure(api: Any, config: Any, options: PlanOptions) -> str:
    """Set the builder's options; returns what the plan is for."""
    config.builder_optimization_level = options.level
    if options.workspace is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.refit:
        config.set_flag(api.BuilderFlag.REFIT)
    if options.weight_streaming:
        config.set_flag(api.BuilderFlag.WEIGHT_STREAMING)
    # Without it TensorRT-RTX is not for CUDA graphs; weights that are streamed rule it out.
    if hasattr(api.BuilderFlag, "REQUIRE_USER_ALLOCATION") and not options.weight_streaming:
        config.set_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # so that `inspect` can tell layers apart
    if not hasattr(api, "ComputeCapability"):
        return gpu_name()
    return set_capabilities(api, config, options.capabilities or CAPABILITIES)


def check_tensors(api: Any, network: Any, spec: EngineSpec, name: str) -> None:
    """Raise `ExportError` unless the network's tensors are the spec's: names, dtypes, free dimensions."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    found = {t.name: (api.nptype(t.dtype)().dtype.name, tuple(t.shape)) for t in (*inputs, *outputs)}
    wanted = {
        t.name: (t.dtype, tuple(-1 if isinstance(d, str) else d for d in t.shape))
        for t in (*spec.inputs, *spec.outputs)
    }
    # Of an output's dimensions the parser may know more than the spec says.
    same = set(found) == set(wanted) and all(
        found[t][0] == wanted[t][0] and len(found[t][1]) == len(wanted[t][1]) for t in found
    )
    if not same or any(found[t.name] != wanted[t.name] for t in spec.inputs):
        raise ExportError(f"{name} has tensors {found} instead of {wanted}.", remedy=ANOTHER)


def allow_pieces(api: Any, network: Any) -> None:
    """Let attentions without a fused kernel be compiled as products and a softmax: the VAE's one wide head.

    Everywhere else a missing kernel is an error: it would cost most of the speed without a word.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == api.LayerType.ATTENTION_INPUT:
            layer.__class__ = api.IAttentionInputLayer  # the bindings hand out the base class
            layer.attention.decomposable = True


def add_profiles(builder: Any, config: Any, spec: EngineSpec, profiles: tuple[Profile, ...]) -> None:
    """Compile for all of them, in this order; raises `ExportError` for one that the library refuses."""
    for index, profile in enumerate(profiles):
        if config.add_optimization_profile(make_profile(builder, spec, profile)) != index:
            raise ExportError(f"the profile {profile} was refused.", remedy=ANOTHER)
    if config.num_optimization_profiles != len(profiles):
        raise ExportError(
            f"{config.num_optimization_profiles} profiles were taken of {len(profiles)}.", remedy=ANOTHER
        )


def make_profile(builder: Any, spec: EngineSpec, profile: Profile) -> Any:
    """The library's form of a profile."""
    made = builder.create_optimization_profile()
    for tensor in spec.inputs:
        made.set_shape(tensor.name, *(profile.shape(tensor.shape, which) for which in range(3)))
    return made


def make_monitor(api: Any, stop: threading.Event, progress: Progress) -> Any:
    """Tells how far a build is and calls it off when `stop` is set."""

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self.steps: dict[str, tuple[int, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = (0, max(num_steps, 1))

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                self.steps[phase_name] = (step + 1, self.steps[phase_name][1])
                done, of = map(sum, zip(*self.steps.values(), strict=True))
                progress(min(done / of, 1.0))
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def plan_name(network: str, build: str, plan: EnginePlan) -> str:
    """`unet-0123456789abcdef.plan`: named by the build (weights, precision, options), profiles, target, library."""
    profiles = [sorted(profile.dims.items()) for profile in plan.profiles]
    named = repr((build, profiles, plan.target, plan.library))
    return f"{network}-{hashlib.sha256(named.encode()).hexdigest()[:16]}.plan"
