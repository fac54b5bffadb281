"""An ONNX graph to a TensorRT or TensorRT-RTX plan: for which shapes, for which GPU, and how it is compiled.

Plans are strongly typed (precision lives in the graph) and use no plugins.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from ..cuda.batch_sizes import countable_rows
from ..engines import EnginePlan, EngineSpec, Manifest, Placement, Profile, call_sizes
from ..engines.cuda import open_gpu
from ..engines.tensorrt_backend import open_engine
from ..engines.tensorrt_library import Library, open_library
from ..errors import BundleError, ExportError
from ..files import write_atomic
from ..networks import POSE_CHUNK
from ..settings import Settings
from .options import FLOAT8_SINCE, Options, PlanOptions

CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""What a TensorRT-RTX plan is for if no capability is given: Ampere, Ada and Blackwell."""
REINSTALL = "Install the version that the extra `gpu` or `rtx` names, or report this if it is that one."
Progress = Callable[[float], None]
"""Receives the share of a build that is done, 0 to 1; an estimate, since the library adds phases as it goes."""


# --- the shapes that plans are compiled for --------------------------------------------------------------


def make_profiles(name: str, spec: EngineSpec, options: Options) -> tuple[Profile, ...]:
    """One profile for each size; of the U-Net, for each size, length of segment and usable number of rows.

    The U-Net's shapes are fixed in each profile: its kernels are the fastest that way, and TensorRT-RTX 1.7
    does not compile its token matrices with free sizes. What comes in chunks (PoseNet, VAE decoder) takes any
    number of frames up to the chunk. Raises `SettingsError` if no number of rows is usable.
    """
    latent_sizes = [(height // 8, width // 8) for width, height in options.sizes]
    if name.startswith("unet"):
        lengths = sorted({options.model_defaults["segment"], *options.plan.frames}, reverse=True)
        calls = [
            call_sizes(frames, latent_size, rows=rows)
            for latent_size, frames in product(latent_sizes, lengths)
            for rows in countable_rows(spec, options.rows, frames, latent_size)
        ]
    else:
        decoded = options.model_defaults.get("decode_chunk", Settings().decode_chunk)
        chunk = {"pose_net": POSE_CHUNK, "vae_decoder": decoded}.get(name, 1)
        calls = [call_sizes(chunk, latent_size) for latent_size in latent_sizes]
    free = list(dict.fromkeys(dim for tensor in spec.inputs for dim in tensor.shape if isinstance(dim, str)))
    least = {} if name.startswith("unet") else {"frames": 1}
    profiles = (
        Profile({dim: (least.get(dim, size[dim]), size[dim], size[dim]) for dim in free}) for size in calls
    )
    return tuple({str(profile): profile for profile in profiles}.values())


def left_out(manifest: Manifest) -> list[str]:
    """Sentences on the shapes that a bundle of plans was asked for and not compiled for."""
    plan = manifest.networks["unet"].plan
    if plan is None:
        return []
    made = {tuple(high for _, _, high in profile.dims.values()) for profile in plan.profiles}
    lines = []
    for frames, height, width in dict.fromkeys(shape[1:] for shape in made):
        rows = [count for count in manifest.rows if (count, frames, height, width) not in made]
        if rows:
            counts, size = " or ".join(map(str, rows)), f"{width * 8}x{height * 8}"
            lines.append(
                f"not compiled for {counts} rows of {frames} frames of {size}: "
                "a tensor would have over 2^31 elements"
            )
    return sorted(lines)


# --- the GPU that plans are compiled for -----------------------------------------------------------------


def check_target(options: Options) -> None:
    """Raise `ExportError` for plans that cannot be compiled here, before anything is loaded or exported."""
    if options.backend == "tensorrt":
        name = gpu_name()
        if options.precision == "fp8" and int(name.rpartition("SM")[2]) < FLOAT8_SINCE:
            raise ExportError(
                f"{name} cannot multiply in float8.",
                remedy=f"Choose --precision fp16, or a GPU of SM{FLOAT8_SINCE} or newer.",
                field="precision",
            )
    elif options.backend == "tensorrt-rtx":
        api = open_library(options.backend).api
        offered = [name for name in dir(api.ComputeCapability) if name.startswith("SM")]
        unknown = [name for name in options.plan.capabilities if name not in offered]
        if unknown:
            raise ExportError(
                f"TensorRT-RTX {api.__version__} does not compile for {', '.join(unknown)}.",
                remedy=f"It offers {', '.join(offered)}; data-centre GPUs need --backend tensorrt.",
                field="capability",
            )
        if options.plan.refit:
            gpu_name("TensorRT-RTX compiles with --refit only where a GPU is: leave it out, or build there.")


def gpu_name(remedy: str = "Build on the GPU host; --backend tensorrt-rtx builds on any machine.") -> str:
    """The first GPU, named as in `Session.target`; raises `ExportError` if there is none."""
    try:
        gpu = open_gpu(0)
    except BundleError as error:
        raise ExportError(
            f"no GPU to compile for ({error.message}).", remedy=remedy, field="backend"
        ) from error
    return f"{gpu.name} {gpu.capability}"


def runs_here(options: Options) -> bool:
    """Whether this machine has a GPU for the plans that it compiles."""
    try:
        gpu = open_gpu(0)
    except BundleError:
        return False
    return options.backend == "tensorrt" or gpu.capability in (options.plan.capabilities or CAPABILITIES)


# --- compiling -------------------------------------------------------------------------------------------


def compile_plan(
    library: Library,
    graph: Path,
    spec: EngineSpec,
    profiles: tuple[Profile, ...],
    options: PlanOptions,
    output: Path,
    progress: Progress = lambda share: None,
    timings: Path | None = None,
) -> EnginePlan:
    """Compile `graph` (a float16 ONNX file in the standard's operators) into the file `output`.

    `timings` is TensorRT's timing cache, read and written: kernels that an earlier build timed on this GPU, also
    one that was interrupted, are not timed again. The build runs on a thread of its own, so that an interrupt
    reaches this one: the build is then stopped, and no plan is written. Raises `ExportError` with the
    library's messages.
    """
    stop, api = threading.Event(), library.api

    def build() -> EnginePlan:
        library.messages.clear()  # of an earlier network
        builder = library.start(api.Builder)
        network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = api.OnnxParser(network, library.logger)  # holds the weights until the plan is built
        if not parser.parse_from_file(str(graph)):
            reason = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
            raise ExportError(f"{graph.name} cannot be read by {library.version}: {reason}", remedy=REINSTALL)
        if graph.stem.startswith("vae"):
            allow_decomposition(api, network)
        config = builder.create_builder_config()
        configure(api, config, options)
        add_profiles(builder, config, spec, profiles)
        config.progress_monitor = make_monitor(api, stop, progress)
        with timing_cache(library, config, timings):
            memory = builder.build_serialized_network(network, config)
        if memory is None:
            raise ExportError(
                f"{library.version} could not compile {graph.name}: {library.reason()}",
                remedy="Try another --level, more --workspace, or a smaller --size, --segment or --batch.",
            )
        write_atomic(output, memory)
        return describe_plan(library, profiles, options)

    with ThreadPoolExecutor(1, "tensorrt") as worker:
        future = worker.submit(build)
        try:
            return future.result()
        except BaseException:
            stop.set()
            raise


@contextlib.contextmanager
def timing_cache(library: Library, config: Any, path: Path | None) -> Iterator[None]:
    """Let a build read and extend the timing cache `path`; TensorRT-RTX times nothing."""
    if path is None or library.flavour != "tensorrt":
        yield
        return
    known = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)  # of another GPU
    try:
        yield
    finally:
        write_atomic(path, config.get_timing_cache().serialize())


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

    Raises `ExportError` if that plan differs by more than its weights from what would be compiled here,
    `EngineError` if it does not take them, `BundleError` if it does not run here.
    """
    path, plan = former
    wanted = describe_plan(library, profiles, options)
    if plan != wanted:
        raise ExportError(
            f"{path.name} is not the plan that is asked for: {plan} instead of {wanted}.",
            remedy="Give the former bundle's options, or leave out --refit-from to compile.",
            field="refit_from",
        )
    with contextlib.closing(open_engine(path, spec, Placement("cuda"), plan=plan)) as engine:
        engine.refit(graph)
        write_atomic(output, engine.serialize())
    return wanted


def describe_plan(library: Library, profiles: tuple[Profile, ...], options: PlanOptions) -> EnginePlan:
    """What the manifest says of a plan that is compiled like this."""
    portable = hasattr(library.api, "ComputeCapability")
    target = " ".join(options.capabilities or CAPABILITIES) if portable else gpu_name()
    return EnginePlan(library.version, target, profiles, options.refit, options.weight_streaming)


def configure(api: Any, config: Any, options: PlanOptions) -> None:
    """Set the builder's options."""
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
    if hasattr(api, "ComputeCapability"):
        names = options.capabilities or CAPABILITIES
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(api.ComputeCapability, name), index)


def allow_decomposition(api: Any, network: Any) -> None:
    """Let attentions without a fused kernel be compiled as products and a softmax: the VAE's one wide head.

    Everywhere else a missing kernel is an error, since it would cost most of the speed without a message.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == api.LayerType.ATTENTION_INPUT:
            layer.__class__ = api.IAttentionInputLayer  # the bindings hand out the base class
            layer.attention.decomposable = True


def add_profiles(builder: Any, config: Any, spec: EngineSpec, profiles: tuple[Profile, ...]) -> None:
    """Compile for all of them, in this order; raises `ExportError` for one that the library refuses."""
    for index, profile in enumerate(profiles):
        made = builder.create_optimization_profile()
        for tensor in spec.inputs:
            made.set_shape(tensor.name, *(tensor.sized(profile.sizes(which)) for which in range(3)))
        if config.add_optimization_profile(made) != index:
            raise ExportError(f"the profile {profile} was refused.", remedy=REINSTALL)


def make_monitor(api: Any, stop: threading.Event, progress: Progress) -> Any:
    """Reports how far a build is and stops it when `stop` is set."""

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
