"""`mimicmotion-trt inspect`: what a bundle holds, how far its engines are from PyTorch, what they are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import explained
from ..errors import MimicMotionError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..engines import Bundle, Manifest
    from ..engines.tensorrt_backend import Layers

NAMED = 20
"""Layers that are named of those that answer in float32."""


def inspect(
    bundle: Annotated[str, typer.Argument(help="Bundle, by name or folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Check a bundle's files and say what it holds."""
    from rich.console import Console

    from ..bundles import load_bundle

    with explained(as_json):
        found = load_bundle(bundle)
        if as_json:
            print(json.dumps(json.loads(found.manifest.to_json())))
        else:
            show_bundle(found, Console(markup=False))


def show_bundle(bundle: Bundle, console: Console) -> None:
    """Print what a bundle holds, how far its engines are from PyTorch, and what they are made of.

    The console may not read markup: names, notes and tensors have brackets of their own.
    """
    manifest = bundle.manifest
    console.print(f"{bundle.folder}: {manifest.backend}, {manifest.precision}, build {manifest.build[:12]}")
    for table in tables(manifest):
        console.print(table)
    for line in (*plan_lines(manifest), *layer_lines(bundle)):
        console.print(line)
    settings = f"rows {list(manifest.rows)}, defaults {dict(manifest.defaults)}"
    console.print(f"sizes {list(manifest.sizes)}, {settings}")
    console.print(f"built by: {manifest.command}", soft_wrap=True)
    if manifest.note:
        console.print(f"note: {manifest.note}")


def tables(manifest: Manifest) -> tuple[Table, ...]:
    """Of each network its size and tensors, how far it is from PyTorch, and what its graph is made of."""
    from rich.table import Table

    from ..engines import GraphStats

    networks = Table("network", "MB", "inputs and outputs")
    errors = Table("errors", "rel. L2", "bound", "largest difference", "cases", "run by")
    graphs = Table("audit", *manifest.networks)
    for name, network in manifest.networks.items():
        size, a = sum(file.bytes for file in network.files) / 1e6, network.accuracy
        tensors = "\n".join(map(str, (*network.spec.inputs, *network.spec.outputs)))
        networks.add_row(name, f"{size:.1f}", tensors)
        errors.add_row(name, f"{a.rel_l2:.1e}", f"{a.bound:.0e}", f"{a.max_abs:.1e}", str(a.cases), a.runner)
    for kind in fields(GraphStats):
        counts = (getattr(network.stats, kind.name) for network in manifest.networks.values())
        graphs.add_row(kind.name, *map(str, counts))
    return networks, errors, graphs


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
        wide = f"{len(layers.wide)} of them answer in float32: {', '.join(layers.wide[:NAMED])}{more}"
    return f"{layers.count} layers after compilation ({kinds}); {wide}"
