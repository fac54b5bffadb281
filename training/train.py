"""`python training/train.py --config FILE.yaml [--steps N] [--output DIR] [--resume] [--seed S]`.

Several devices: `accelerate launch --config_file training/configs/accelerate/ddp.yaml training/train.py …`;
two processes on one CPU: `ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 training/train.py …`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from mimicmotion_trt.console import explained
from mimicmotion_trt.flags import App

app = App()

CONFIGS = Path(__file__).parent / "configs"
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "200000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Lets glibc keep the memory of large tensors between steps, and threads sleep where they wait: beside other
programs on the same cores steps are up to 7x faster."""


def print_example(name: str | None) -> None:
    """Print the config of this name, and end; one that is not known is explained."""
    if name is None:
        return
    known = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
    if name not in known:
        raise typer.BadParameter(f"there is no config {name!r}; choose one of {', '.join(known)}.")
    print(known[name].read_text(), end="")
    raise typer.Exit


@app.command()
def train(
    config: Annotated[Path, Option(metavar="FILE", help="YAML file; --example prints one to begin with.")],
    steps: Annotated[
        int | None,
        Option(min=1, help="Stop after this step; the learning rate still follows the config's steps."),
    ] = None,
    output: Annotated[
        Path | None,
        Option("-o", "--output", metavar="FOLDER", help="Folder of the run; the config's if not given."),
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Go on from the newest checkpoint in the output.")
    ] = False,
    seed: Annotated[int | None, Option(help="Seed instead of the config's.")] = None,
    push_to_hub: Annotated[
        str | None,
        Option(
            metavar="OWNER/NAME",
            help="Upload OUTPUT/final to this private repository of the Hugging Face Hub.",
        ),
    ] = None,
    example: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Print a config that the package brings, such as lora.",
            is_eager=True,
            callback=print_example,
        ),
    ] = None,
) -> None:
    """Train a stage of the model, or a LoRA.

    Each step adds a JSON line to OUTPUT/metrics.jsonl; OUTPUT/final holds the weights.

        mimicmotion-trt train --example lora > lora.yaml
        mimicmotion-trt train --config lora.yaml --resume
    """
    from mimicmotion_trt.training.config import load_config
    from mimicmotion_trt.training.hub import check_hub, push
    from mimicmotion_trt.training.progress import Display

    with explained():
        settings = load_config(config)
        if seed is not None:
            settings = replace(settings, seed=seed)
        if output is not None:
            settings = replace(settings, output=str(output))
        if push_to_hub is not None:
            check_hub(push_to_hub)
        from mimicmotion_trt.training.loop import Trainer  # loads PyTorch; by now the config is checked

        output = Path(settings.output)
        with Display("step", settings.log_every) as display:
            trainer = Trainer(settings, output, resume=resume, say=display.say, show=display.show)
            trainer.run(steps)
            if push_to_hub is not None and trainer.accelerator.is_main_process:
                display.say(f"final weights are at {push(output / 'final', push_to_hub)}")


def tune_environment() -> None:
    """Start this process again, once, with what it lacks of `ENVIRONMENT`, which libraries read at start."""
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


if __name__ == "__main__":
    tune_environment()
    app()
