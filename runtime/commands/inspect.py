"""`mimicmotion-trt inspect`: what a bundle holds, how far its engines are from PyTorch, what they are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import explained, waiting
from ..errors import MimicMotionError, counted
from .options import as_typed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..engines import Bundle, Manifest
    from ..engines.tensorrt_backend import Layers

PURPOSES = {
    "unet": "denoises latents",
    "unet_caching": "and keeps features",
    "unet_shallow": "reuses features",
    "pose_net": "poses to features",
    "vae_encoder": "picture to latents",
    "vae_decoder": "latents to frames",
    "image_encoder": "CLIP of the picture",
}
"""What each network does."""
OPERATORS = {
    "operators": "operators",
    "products": "products",
    "wide": "in float32",
    "attention": "attentions",
    "softmax": "in pieces",
    "norms": "norms",
    "transposes": "transposes",
    "casts": "casts",
    "shapes": "of sizes",
}
"""The fields of `GraphStats`, in words."""
OPERATORS_TOLD = (
    "Operators of each graph. Products are those of matrices and convolutions, and how many of them are in float32; "
    "attentions are fused or left in pieces, which is slower; the last row counts operators that compute sizes only."
)
TYPES = {"fp32": "float32", "fp16": "float16", "fp8": "float8"}
LARGE = 0.05
"""A relative error from which on pictures may look worse; fp32 and fp16 bundles are never so far off."""
NAMED = 20
"""Layers that are named of those that answer in float32."""


def inspect(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle, by name or folder.")],
    details: Annotated[
        bool, typer.Option("--details", help="Tensors, compiled plans, and what the graphs are made of, too.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all that the bundle says of itself.")
    ] = False,
) -> None:
    """Check a bundle's files and say what it holds.

    mimicmotion-trt inspect tiny
    mimicmotion-trt inspect bundles/mm11 --details
    """
    from rich.console import Console

    from ..bundles import load_bundle

    with explained():
        with waiting(f"reading {bundle}", quiet=as_json):
            found = load_bundle(bundle)
        if as_json:
            print(json.dumps(json.loads(found.manifest.to_json())))
        else:
            show_bundle(found, Console(markup=False, highlight=False), details, name=bundle)


def show_bundle(bundle: Bundle, console: Console, details: bool = False, name: str = "") -> None:
    """Print a verdict, an advice, what a bundle holds, and with `details` what its engines are made of.

    `name` is what the user calls the bundle, its folder if empty. The console may not read markup: names, notes and
    tensors have brackets of their own.
    """
    manifest = bundle.manifest
    said, advice = verdict(bundle.manifest, name or str(bundle.folder))
    console.print(said, soft_wrap=True)
    console.print(advice, soft_wrap=True)
    facts = {
        "bundle": f"{bundle.folder}, build {manifest.build[:12]}",
        "runs on": where(manifest),
        "makes": f"videos of {listed('x'.join(map(str, size)) for size in manifest.sizes)}",
        "settings": ", ".join(f"{name} {as_typed(value)}" for name, value in manifest.defaults.items()),
        "U-Net": f"up to {counted(max(manifest.rows), 'row')} at once ({listed(map(str, manifest.rows))})",
        "LoRAs": "can be added at load" if manifest.networks["unet"].for_lora else "",
        "note": manifest.note,
        "built by": manifest.command,
    }
    console.print()
    for name, text in facts.items():
        if text:
            console.print(f"{name:9} {text}", soft_wrap=True)
    console.print(networks_table(manifest))
    if details:
        console.print(tensors_table(manifest))
        console.print(operators_table(manifest))
        for line in (*plan_lines(manifest), *layer_lines(bundle)):
            console.print(line, soft_wrap=True)


def verdict(manifest: Manifest, name: str) -> tuple[str, str]:
    """One line that says whether the bundle is sound, and one that says what to do next."""
    networks = manifest.networks
    worst = max(networks, key=lambda each: networks[each].accuracy.rel_l2)
    accuracy = networks[worst].accuracy
    error, bound = percent(accuracy.rel_l2), percent(accuracy.bound)
    if accuracy.rel_l2 > LARGE:
        numbers = TYPES.get(manifest.precision, manifest.precision)
        said = f"{name} is whole, but in {numbers} {worst} is {error} off from PyTorch ({bound} are allowed)."
        todo = "Compare finished videos with those of a float16 bundle before you use it"
        return said, f"{todo}: mimicmotion-trt evaluate --bundle {name}"
    said = f"{name} is whole, and each network agrees with PyTorch: {worst} is furthest off, by {error}."
    if networks["unet"].plan is not None:
        return said, f"Whether it runs here: mimicmotion-trt doctor --bundle {name}"
    return said, f"Use it: mimicmotion-trt animate person.jpg dance.mp4 -o out.mp4 --bundle {name}"


def where(manifest: Manifest) -> str:
    """What runs the engines, and on what."""
    plan, numbers = manifest.networks["unet"].plan, TYPES.get(manifest.precision, manifest.precision)
    if plan is not None:
        return f"{plan.target}, by {plan.library}, in {numbers}"
    if manifest.backend == "torch":
        return f"CPUs and GPUs, by PyTorch, in {numbers}"
    return f"CPUs, by ONNX Runtime, in {numbers}"


def networks_table(manifest: Manifest) -> Table:
    """Of each network its purpose, its size, and how far it is from PyTorch."""
    from ..doctor.printed import plain_table

    table = plain_table("network", "what it does", "MB", "off by", "allowed", "cases", caption=(
        "Off by: the largest relative L2 error against the PyTorch original, over so many cases."
    ))  # fmt: skip
    for name, network in manifest.networks.items():
        size, a = sum(file.bytes for file in network.files) / 1e6, network.accuracy
        table.add_row(
            name, PURPOSES.get(name, ""), f"{size:.1f}", percent(a.rel_l2), percent(a.bound), str(a.cases)
        )
    return table


def tensors_table(manifest: Manifest) -> Table:
    """What goes into each network, and what comes out."""
    from ..doctor.printed import plain_table

    table = plain_table("network", "", "tensor", "type and shape")
    for name, network in manifest.networks.items():
        for way, tensors in (("in", network.spec.inputs), ("out", network.spec.outputs)):
            for tensor in tensors:
                title, _, shape = str(tensor).partition(" ")
                table.add_row(name, way, title, shape)
                name = ""
    return table


def operators_table(manifest: Manifest) -> Table:
    """What the graphs are made of."""
    from ..doctor.printed import plain_table

    table = plain_table("operators", *manifest.networks, caption=OPERATORS_TOLD)
    for field, words in OPERATORS.items():
        table.add_row(words, *(str(getattr(each.stats, field)) for each in manifest.networks.values()))
    return table


def percent(part: float) -> str:
    """Two digits: `17 %`, `0.00014 %`."""
    digits = f"{100 * part:.2g}"
    return f"{float(digits):.10f}".rstrip("0").rstrip(".") + " %"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def plan_lines(manifest: Manifest) -> Iterator[str]:
    """What each plan was compiled for, and what may be done with it."""
    for name, network in manifest.networks.items():
        if (plan := network.plan) is not None:
            weights = "takes other weights" if plan.refittable else "keeps its weights"
            place = ", which may stay in the host's memory" if plan.streamable else ""
            yield f"{name}: {plan.library} for {plan.target}; {weights}{place}"
            yield from (f"  {profile}" for profile in plan.profiles)


def layer_lines(bundle: Bundle) -> Iterator[str]:
    """The layers that the plans of a bundle really have, where there is a GPU that loads them; else why not."""
    from ..engines import open_engine

    for name, network in bundle.manifest.networks.items():
        if network.plan is None:
            continue
        try:
            engine: Any = open_engine(bundle, name)
            with closing(engine):
                layers = engine.layers()
        except MimicMotionError as error:
            yield f"layers after compilation cannot be read here: {error}"
            return
        yield f"{name}: {describe_layers(layers)}"


def describe_layers(layers: Layers) -> str:
    """How many layers of each kind, and the names of the first that answer in float32."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in layers.kinds.items())
    wide = "none answers in float32"
    if layers.wide:
        more = f" and {len(layers.wide) - NAMED} more" if len(layers.wide) > NAMED else ""
        answer = "answers" if len(layers.wide) == 1 else "answer"
        wide = f"{len(layers.wide)} of them {answer} in float32: {', '.join(layers.wide[:NAMED])}{more}"
    return f"{counted(layers.count, 'layer')} after compilation ({kinds}); {wide}"
