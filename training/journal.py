"""What a run writes down: a JSON line per step and per validation, TensorBoard, contact sheets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..media.picture import write_picture
from .files import replace_text, writing

Values = Mapping[str, float | int | None]


class Journal:
    """`metrics.jsonl`, `validation.jsonl`, `validation/`, `skipped.json` and `tensorboard/` of a run's folder."""

    def __init__(self, folder: Path, begin: int, *, tensorboard: bool) -> None:
        """Lines of steps after `begin`, which will be made again, are dropped."""
        self._folder = folder
        self._board: Any = None
        for name in ("metrics.jsonl", "validation.jsonl"):
            cut_lines(folder / name, begin)
        with writing(folder / "metrics.jsonl"):
            self._steps = (folder / "metrics.jsonl").open("a")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with writing(folder / "tensorboard"):
                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=begin + 1)

    def step(self, step: int, values: Values) -> None:
        """One line of `metrics.jsonl`, on disk when this returns; what is not finite becomes null."""
        with writing(self._folder / "metrics.jsonl"):
            self._steps.write(_line(step, values))
            self._steps.flush()
        self._plot("train", step, values)

    def validation(self, step: int, values: Values, sheet: NDArray[np.uint8]) -> None:
        """One line of `validation.jsonl`, and the contact sheet as `validation/step-….png`."""
        with writing(self._folder / "validation"):
            (self._folder / "validation").mkdir(exist_ok=True)
        write_picture(self._folder / "validation" / f"step-{step:07d}.png", sheet)
        lines = self._folder / "validation.jsonl"
        with writing(lines), lines.open("a") as file:
            file.write(_line(step, values))
        self._plot("validation", step, values)
        if self._board is not None:
            self._board.add_image("validation/sheet", sheet, step, dataformats="HWC")

    def skipped(self, reasons: Mapping[str, int]) -> None:
        """`skipped.json`: why clips were left out, and how many."""
        text = json.dumps(dict(sorted(reasons.items())), indent=1)
        replace_text(self._folder / "skipped.json", f"{text}\n")

    def close(self) -> None:
        """Close the files."""
        self._steps.close()
        if self._board is not None:
            self._board.close()

    def _plot(self, group: str, step: int, values: Values) -> None:
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(f"{group}/{name}", value, step)


def _line(step: int, values: Values) -> str:
    finite = {
        name: value if value is not None and math.isfinite(value) else None for name, value in values.items()
    }
    return json.dumps({"step": step, **finite}) + "\n"


def cut_lines(path: Path, last: int) -> None:
    """Keep the whole lines of steps up to `last`; a line that a kill cut off goes, too."""
    if not path.exists():
        return
    kept = []
    with writing(path):
        lines = path.read_text().splitlines()
    for line in lines:
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    replace_text(path, "".join(kept))
