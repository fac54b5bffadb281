"""Proves and times the GPU step on any CUDA machine, in stages that can be resumed.

    python benchmarks/gpu_check.py [--stage NAME]… [--resume] [--bundle DIR] [--work DIR] [--minutes N]

Every stage consists of parts, and what a part finds is written to `benchmarks/results/` at once: a JSON file named
by GPU and date, and beside it a plot. A part that fails is told with its reason and the next one runs. `--resume`
goes on in the newest file of this GPU and these versions, with the parts that are not done; what these are divided
by is measured again, so that a ratio is of one run: one process on one card. On a machine without a GPU the stages
that need none run on small shapes, and the rest is listed as owed. Prints every figure, then what the GPU step is to
reach beside what was measured, and ends with one line of JSON.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from gpu_plot import plot
from gpu_stages import STAGES, Machine, Stage
from gpu_targets import judged, verdict
from pages import write
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.engines.cuda import Gpu
from mimicmotion_trt.engines.cuda_memory import error_class
from mimicmotion_trt.errors import DeviceLost, MimicMotionError

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "cuda-core",
    "nvidia-cuda-nvrtc",
    "onnxruntime",
    "numpy",
)
BASELINES = {"matmul", "plain", "plain-video"}
"""Parts that others are held against; they are cheap beside these."""
Report = dict[str, Any]


def main(
    stage: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(STAGES)}; all if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Leave out the parts that are done already.")] = False,
    bundle: Annotated[
        str,
        typer.Option(
            help="Bundle for same-bytes and two-jobs, name or folder; the golden networks if empty."
        ),
    ] = "",
    device: Annotated[int, typer.Option(help="Number of the GPU; the others are hidden.", min=0)] = 0,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    work: Annotated[
        Path | None, typer.Option(help="Folder to keep bundles and plans in; else a temporary one.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no part after so many minutes.", min=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON line only.")] = False,
) -> None:
    """Run the stages in order."""
    console = Console(quiet=as_json, markup=False)
    unknown = sorted(set(stage or ()) - set(STAGES))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(STAGES)}")
    show_only(device, os.environ)
    with tempfile.TemporaryDirectory() as temporary:
        machine = Machine.look(0, bundle, work or Path(temporary))
        path, report = opened(results, machine.name, resume)
        name = run_name(machine.gpu, datetime.datetime.now(datetime.UTC))
        run = Run(report, lambda: write(path, json.dumps(report, indent=1) + "\n"), console, name, minutes)
        for chosen in in_order(stage):
            run.stage(chosen, STAGES[chosen], machine)
    report["targets"] = judged(report)
    run.save()
    console.print(table(report))
    console.print(target_table(report["targets"]))
    owed = [name for name, found in report["stages"].items() if found["state"] == "owed"]
    if owed:
        console.print(f"owed, since this machine has no GPU: {', '.join(owed)}")
    plot(report, path.with_suffix(".png"))
    console.print(f"written to {path}")
    print(json.dumps({"file": str(path), **report}))


def in_order(chosen: Sequence[str] | None) -> list[str]:
    """The stages in the order in which all run, whatever order they are asked for in: the profiler's is last."""
    return [name for name in STAGES if name in (chosen or STAGES)]


def run_name(gpu: Gpu | None, began: datetime.datetime) -> str:
    """Of this process on this card: figures are of one run if they have it in common."""
    card = "cpu" if gpu is None else importlib.import_module("cuda.core").Device(gpu.index).uuid
    return f"{card} {began:%Y-%m-%dT%H:%M:%S} {os.getpid()}"


def show_only(device: int, variables: MutableMapping[str, str]) -> None:
    """Hide the other GPUs from CUDA: engines, compilers and PyTorch all take the first one that they see."""
    shown = [name for name in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if shown or device:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(shown[device : device + 1]) if shown else str(device)


def opened(results: Path, machine: str, resume: bool) -> tuple[Path, Report]:
    """The file to write and what it holds: with `resume` the newest of this machine and these versions."""
    own: Report = {"machine": machine, "versions": versions(), "python": platform.python_version()}
    start = f"gpu-check-{slug(machine)}-"
    for path in sorted(results.glob(f"{start}[0-9]*.json"), reverse=True) if resume else ():
        found = json.loads(path.read_text())
        if own.items() <= found.items():
            return path, found
    return results / f"{start}{datetime.date.today().isoformat()}.json", {"stages": {}, **own}


class Run:
    """The parts of stages, one after the other; the report is saved after every figure.

    A stage's `figures` are the last of each, and its `runs` what each run found, by its name.
    """

    def __init__(
        self,
        report: Report,
        save: Callable[[], None],
        console: Console,
        name: str,
        minutes: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._report, self.save, self._console, self._clock = report, save, console, clock
        self._name = name
        self._until = None if minutes is None else clock() + 60 * minutes
        self._lost = False

    def stage(self, name: str, stage: Stage, machine: Machine) -> None:
        """All its parts that are not done yet, if this machine can run it."""
        if stage.needs_gpu and machine.gpu is None:
            self._report["stages"][name] = {"state": "owed", "why": machine.why}
            self.save()
            return
        self._console.print(f"{name}: {stage.says}", style="bold")
        found = self._report["stages"].setdefault(name, {})
        found.pop("why", None)
        found |= {"state": "begun", **{key: found.get(key, {}) for key in ("figures", "runs", "parts")}}
        try:
            parts = stage.parts(machine)
        except Exception as error:  # the stage cannot even be laid out here: others may
            found |= {"state": "failed", "why": reason(error)}
            self.save()
            return
        for part in self._left(parts, found["parts"]):
            self._part(part, parts[part], found)
        failed = [part for part in parts if found["parts"].get(part, {}).get("state") != "done"]
        found["state"] = "failed" if failed else "done"
        if failed:
            found["why"] = "; ".join(f"{part}: {found['parts'][part]['why']}" for part in failed)
        self.save()

    def _left(self, parts: Iterable[str], told: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Those that are not done; and if any is left, what it is held against, if that is of another run."""
        runs = {name: part.get("run") for name, part in told.items() if part["state"] == "done"}
        left = {name for name in parts if name not in runs}
        again = {name for name in BASELINES if runs.get(name) != self._name} if left - BASELINES else set()
        return [name for name in parts if name in left | again]

    def _part(self, name: str, work: Any, found: Report) -> None:
        late = self._until is not None and self._clock() >= self._until
        if late or self._lost:
            why = "the GPU was lost" if self._lost else "no time was left"
            found["parts"][name] = {"state": "left", "why": f"{why}: go on with --resume"}
            return
        began = self._clock()
        # A process that is ended from outside leaves this behind.
        found["parts"][name] = {"state": "begun", "why": "it was interrupted"}
        self.save()
        try:
            for figures in work():
                found["figures"] |= figures
                found["runs"].setdefault(self._name, {}).update(figures)
                self.save()
                self._console.print(f"  {name}: {', '.join(f'{k} {shown(v)}' for k, v in figures.items())}")
        except Exception as error:  # a part that breaks must not cost the others their figures
            told = {"state": "failed", "why": reason(error)}
            if not isinstance(error, MimicMotionError | AssertionError):
                told["trace"] = traceback.format_exc()
            found["parts"][name] = told
            self._lost = is_lost(error)
        else:
            seconds = round(self._clock() - began, 1)
            found["parts"][name] = {"state": "done", "seconds": seconds, "run": self._name}
        self.save()


def is_lost(error: Exception) -> bool:
    """Whether every further call of this process will fail, too."""
    said = error.message if isinstance(error, MimicMotionError) else str(error)
    return isinstance(error, DeviceLost) or error_class(said) is DeviceLost


def reason(error: Exception) -> str:
    """What went wrong."""
    return str(error) if isinstance(error, MimicMotionError) else f"{type(error).__name__}: {error}"


def table(report: Report) -> Table:
    """Every figure of every stage, and what failed."""
    made = Table("stage", "figure", "value")
    for name, found in report["stages"].items():
        if found["state"] != "done":
            made.add_row(name, found["state"], found.get("why", ""))
        for figure, value in found.get("figures", {}).items():
            made.add_row(name, figure, shown(value))
    return made


def target_table(targets: Sequence[Mapping[str, Any]]) -> Table:
    """What is to be reached, and what was."""
    made = Table("stage", "target", "", "measured", "")
    for told in targets:
        figure = "–" if told["figure"] is None else shown(told["figure"])
        made.add_row(told["stage"], told["what"], told["target"], figure, verdict(told))
    return made


def shown(value: Any) -> str:
    """A figure for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def versions() -> dict[str, str]:
    """What is installed of what matters."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def slug(name: str) -> str:
    """`nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    typer.run(main)
