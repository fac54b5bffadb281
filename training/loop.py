"""The training loop, the same for every stage, on one device or many (accelerate)."""

from __future__ import annotations

import importlib
import itertools
import math
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MotionError, SettingsError, counted
from ..files import lock_folder
from .checkpoints import RANDOM, write_folder
from .config import Config, OptimizerConfig
from .hub import write_card
from .metrics import describe
from .muon import Muon
from .progress import Pace
from .run_folder import (
    Journal,
    check_inputs,
    check_output,
    list_snapshots,
    load_snapshot,
    save_snapshot,
    write_start,
)
from .stages import STAGES
from .stages.base import Batch

Say = Callable[[str], None]
Show = Callable[[int, int, str], None]
"""Steps done, steps in all, and how they go."""


class Trainer:
    """One run: `Trainer(config, output).run(stop)`."""

    def __init__(
        self,
        config: Config,
        output: Path,
        *,
        resume: bool = False,
        say: Say = print,
        show: Show = lambda done, total, note: None,
    ) -> None:
        import accelerate
        from diffusers.training_utils import EMAModel

        self.config, self.output = config, output
        check_inputs(config)
        check_output(output, resume=resume)
        if config.precision == "fp16" and not torch.cuda.is_available():  # gradients are scaled there only
            raise SettingsError("fp16 needs a GPU.", remedy="Choose no or bf16.", field="precision")
        # A VAE of one layer a block has an attention that nothing runs.
        unused = config.stage not in ("motion", "image_encoder")
        self.accelerator = accelerate.Accelerator(
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulation,
            kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=unused)],
        )
        self._sharded = self.accelerator.distributed_type.value in ("FSDP", "DEEPSPEED")
        if self._sharded:
            check_sharded(config)
        if (plugin := self.accelerator.state.deepspeed_plugin) is not None:
            configure_deepspeed(plugin, config)
        main = self.accelerator.is_main_process
        self._say: Say = say if main else lambda _: None
        self._show: Show = show if main else lambda done, total, note: None
        accelerate.utils.set_seed(config.seed)
        with self.accelerator.main_process_first():  # which makes a random base, or downloads one, for all
            if self.accelerator.is_main_process and not list_snapshots(output):
                with lock_folder(output):
                    shutil.rmtree(output / RANDOM, ignore_errors=True)  # of a run that never took a step
            self.stage = STAGES[config.stage](config, self.accelerator.device, output)
        optimizer = make_optimizer(config.optimizer, trainable(self.stage.network))
        self.network, self.optimizer = self.accelerator.prepare(self.stage.network, optimizer)
        self.parameters = trainable(self.network)
        self.average: Any = None
        if config.ema is not None:
            self.average = EMAModel(self.parameters, decay=config.ema)
            self.average.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.average)
        for part in self.stage.parts:
            self.accelerator.register_for_checkpointing(part)
        if self.stage.parts and self.accelerator.num_processes > 1:
            raise SettingsError(
                "a discriminator learns in one process only.",
                remedy="Start one process, or set vae.adversarial_weight: 0.",
                field="vae.adversarial_weight",
            )
        self.begin = load_snapshot(self.accelerator, output, config) if resume else 0
        self._skipped_steps = 0
        self._skipped_clips: Counter[str] | None = None

    def run(self, stop: int | None = None) -> None:
        """Train up to step `stop` (the config's `steps` if None) and write the final weights.

        The learning rate follows the config's `steps` wherever the run stops. Whatever ends the process, a
        resumed run goes on from the last snapshot with the losses that this one would have had.
        """
        stop = self.config.steps if stop is None else stop
        if not self.accelerator.is_main_process:
            self._run(stop, None)
            return
        with lock_folder(self.output):
            device, processes = self.accelerator.device, self.accelerator.num_processes
            machine = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
            write_start(self.output, self.config, self.begin, machine, processes)
            journal = Journal(self.output, self.begin, self.config.trackers)
            try:
                self._run(stop, journal)
            finally:
                journal.close()

    def _run(self, stop: int, journal: Journal | None) -> None:
        config = self.config
        count = sum(parameter.numel() for parameter in trainable(self.stage.network))
        self._say(f"{config.stage}: {count:,} numbers train, steps {self.begin} to {stop}")
        self._say(self.stage.start if not self.begin else f"resumed at step {self.begin}")
        prepared = self._prepare(stop)
        self._report_skipped(journal)
        step, batches, pace = self.begin, self._batches(stop), Pace()
        try:
            for step in range(self.begin + 1, stop + 1):
                values = self._step(step, batches)
                if journal is not None:
                    journal.step(step, values if step > self.begin + 1 else {**values, **prepared})
                if step % config.save_every == 0 or step == stop:
                    save_snapshot(self.accelerator, self.output, config, step)
                if config.validation.every and step % config.validation.every == 0:
                    self._validate(step, journal)
                pace.step()
                self._show(step, stop, self._note(values, pace, stop - step))
        except KeyboardInterrupt:
            self._say(f"interrupted in step {step}; --resume goes on from the last snapshot")
            raise
        finally:
            batches.close()
        self._report_skipped(journal)
        self._finish(step)

    def _note(self, values: Mapping[str, float], pace: Pace, steps: int) -> str:
        """How a run goes that has so many steps before it."""
        config = self.config
        clips = config.batch * config.accumulation * self.accelerator.num_processes / max(pace.seconds, 1e-9)
        loss, rate = f"loss {values['loss']:.4g}", f"rate {values['lr']:.2g}"
        return f"{loss}  {rate}  {clips:.3g} clips/s  {pace.left(steps)}"

    def positions(self, stop: int) -> Iterator[range]:
        """The positions of this process's clips in each forward pass to come, up to step `stop`."""
        config, accelerator = self.config, self.accelerator
        for number in range(self.begin * config.accumulation, stop * config.accumulation):
            first = (number * accelerator.num_processes + accelerator.process_index) * config.batch
            yield range(first, first + config.batch)

    def _prepare(self, stop: int) -> dict[str, float]:
        began = last = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal last
            if done == total or time.monotonic() - last > 10:
                last = time.monotonic()
                self._say(f"prepared {done} of {total} clips in {last - began:.0f} s")

        self.stage.prepare(itertools.chain.from_iterable(self.positions(stop)), report)
        self.accelerator.wait_for_everyone()
        return {"prepare_seconds": time.monotonic() - began}

    def _report_skipped(self, journal: Journal | None) -> None:
        """Report the clips that were left out, if there are others than at the last report."""
        if journal is not None and (skipped := self.stage.skipped()) != self._skipped_clips:
            self._skipped_clips = skipped
            journal.skipped(skipped)
            for reason, times in sorted(skipped.items()):
                self._say(f"left out {times}x: {reason}")

    def _step(self, step: int, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step; returns what is logged of it."""
        config, accelerator = self.config, self.accelerator
        began = time.perf_counter()
        rate = learning_rate(config.optimizer, step - 1, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        waiting, norm = 0.0, float("nan")
        parts: dict[str, float] = {}
        for _ in range(config.accumulation):
            asked = time.perf_counter()
            batch = next(batches)
            waiting += time.perf_counter() - asked
            with accelerator.accumulate(self.network):
                with accelerator.autocast():
                    loss, more = self.stage.loss(self.network, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = self._update()
            for name, value in {"loss": loss.detach(), **more}.items():
                parts[name] = parts.get(name, 0.0) + self._mean(value) / config.accumulation
        seconds = time.perf_counter() - began
        return {**parts, "grad_norm": norm, "lr": rate, "data_seconds": waiting, "step_seconds": seconds}

    def _batches(self, stop: int) -> Generator[Batch]:
        """The batches of all steps to come; the next one is read while the device computes."""
        positions = self.positions(stop)
        with ThreadPoolExecutor(1, "reader") as reader:
            coming = deque(reader.submit(self.stage.batch, clips) for clips in itertools.islice(positions, 2))
            while coming:
                batch = coming.popleft().result()
                if (clips := next(positions, None)) is not None:
                    coming.append(reader.submit(self.stage.batch, clips))
                yield {name: value.to(self.accelerator.device) for name, value in batch.items()}

    def _update(self) -> float:
        """Clip, step, average; gradients that are not finite are dropped. Returns their norm before clipping."""
        limit = self.config.optimizer.clip_norm
        norm = self.accelerator.clip_grad_norm_(self.parameters, float("inf") if limit is None else limit)
        value = float(norm) if norm is not None else float("nan")  # DeepSpeed clips by itself
        if norm is None or self.accelerator.scaler is not None or torch.isfinite(torch.tensor(value)):
            with self.accelerator.autocast():  # Muon's products of matrices
                self.optimizer.step()
            if self.average is not None:
                self.average.step(self.parameters)
        else:
            self._skipped_steps += 1
        self.optimizer.zero_grad()
        return value

    def _mean(self, value: Tensor) -> float:
        if self.accelerator.num_processes == 1:
            return float(value)
        return float(self.accelerator.reduce(value.float(), reduction="mean"))

    def _validate(self, step: int, journal: Journal | None) -> None:
        if journal is not None and not self._sharded:  # a shard cannot sample: use evaluate.py afterwards
            began = time.monotonic()
            try:
                with averaged(self.average, self.parameters):
                    measures, sheet = self.stage.validate()
                journal.validation(step, measures, sheet)
                self._say(f"step {step}: {describe(measures)} ({time.monotonic() - began:.0f} s)")
            except MotionError as error:
                self._say(f"step {step} is not validated: {error}")
            self._report_skipped(journal)
        self.accelerator.wait_for_everyone()

    def _finish(self, step: int) -> None:
        with averaged(self.average, self.parameters):
            state = self.accelerator.get_state_dict(
                self.network
            )  # the network's own tensors: save it in here
            if self.accelerator.is_main_process:

                def fill(folder: Path) -> None:
                    self.stage.save(folder, state)
                    shutil.copy(self.output / "config.yaml", folder)
                    write_card(folder, self.config)

                write_folder(self.output / "final", fill)
        if self.accelerator.is_main_process:
            if self._skipped_steps:
                self._say(
                    f"{counted(self._skipped_steps, 'step')} had gradients that were not finite: skipped"
                )
            final = self.output / "final"
            self._say(f"step {step}: final weights are in {final}\nNext: {self.stage.next_step(final)}")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def check_sharded(config: Config) -> None:
    """Raise `SettingsError` for what a run cannot do whose weights or optimizer are divided among devices."""
    if config.stage == "together":
        raise SettingsError(
            "the stage together samples while it trains, which sharded weights cannot.",
            remedy="Launch it without FSDP and DeepSpeed: `accelerate launch --multi_gpu`.",
            field="stage",
        )
    if config.ema is not None:
        raise SettingsError(
            "a moving average of sharded weights is not kept whole: a resumed run would lose it.",
            remedy="Set ema: null, or launch without FSDP and DeepSpeed: `accelerate launch --multi_gpu`.",
            field="ema",
        )


def configure_deepspeed(plugin: Any, config: Config) -> None:
    """Give accelerate's DeepSpeed plugin what it would else ask a data loader for, and what the config says."""
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch
    plugin.deepspeed_config["gradient_accumulation_steps"] = config.accumulation
    plugin.deepspeed_config["gradient_clipping"] = config.optimizer.clip_norm or 0.0  # 0 is off


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that train."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the config names; raises `SettingsError` if its library is not there."""
    kind: Any = Muon if config.name == "muon" else torch.optim.AdamW
    if config.name == "adamw8bit":
        try:
            kind = importlib.import_module("bitsandbytes.optim").AdamW8bit
        except ImportError:
            raise SettingsError(
                "optimizer adamw8bit needs bitsandbytes, which is not installed.",
                remedy="`pip install bitsandbytes` on a machine with a GPU, or choose adamw.",
                field="optimizer.name",
            ) from None
    optimizer: torch.optim.Optimizer = kind(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    return optimizer


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step 0, 1, …, steps-1: a linear rise over `warmup` steps, then constant or half a cosine."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return config.lr
    share = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))


@contextmanager
def averaged(average: Any, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The moving average (diffusers' `EMAModel`, or None for none) in place of the weights."""
    if average is None:
        yield
        return
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)
