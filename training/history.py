"""How a model came to be: its stages, read from the folders of their runs, and kept beside its weights.

Runs are large and get lost; what a card tells of them is kept in a `history.json` of a few kilobytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from .curves import Curve, Profile, profile, read_curve
from .files import replace_text
from .snapshots import STATE, list_snapshots

STAGES = {
    "vae": "tiny-vae", "colours": "tiny-colours", "motion": "tiny", "longer": "tiny-longer", "last": "tiny-last",
    "decoder": "tiny-decoder", "together": "tiny-together", "structure": "tiny-structure",
    "finish": "tiny-finish",
}  # fmt: skip
"""The folders of the runs in the order of training, and their configs."""
ANIMATING = ("motion", "longer", "last", "together", "structure", "finish")
"""Those that write U-Net and PoseNet."""
BASES = ("vae", "colours", "decoder", "together", "structure", "finish")
"""Those that write a base folder."""
PROCESSES = {"structure": 2, "finish": 2}
"""Those that ran in several processes, each with a batch of its own."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of the model's training."""

    name: str
    profile: Profile
    config: Mapping[str, Any]
    """As the run's newest checkpoint tells it."""
    curve: Curve | None
    picture: str | None = None
    """File name of the picture of its curve, where only that is left."""


def read_stages(runs: Path, history: Path | None = None) -> list[Stage]:
    """The kept stages and the runs below a folder, which go before kept ones, in the order of training.

    Raises `SettingsError` if there are none, or the history cannot be read.
    """
    stages = {stage.name: stage for stage in (read_history(history) if history and history.exists() else [])}
    for folder in (runs / name for name in STAGES):
        if (folder / "metrics.jsonl").is_file():
            snapshots = list_snapshots(folder / "checkpoints")
            config = json.loads((snapshots[-1] / STATE).read_text())["config"] if snapshots else {}
            stages[folder.name] = Stage(folder.name, profile(folder), config, read_curve(folder))
    if not stages:
        raise SettingsError(
            f"{runs} holds none of the runs {', '.join(STAGES)}.", remedy="Train first.", field="runs"
        )
    return [stages[name] for name in STAGES if name in stages]


def read_history(path: Path) -> list[Stage]:
    """The stages that `write_history` kept."""
    try:
        return [
            Stage(
                one["name"],
                Profile(**one["profile"]),
                one["config"],
                Curve(**one["curve"]) if one["curve"] else None,
                one["picture"],
            )
            for one in json.loads(path.read_text())
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", field="history") from None


def write_history(path: Path, stages: Sequence[Stage]) -> None:
    """Keep the stages, a line each; raises `OutputError`."""
    lines = ",\n".join(json.dumps(asdict(stage)) for stage in stages)
    replace_text(path, f"[\n{lines}\n]\n")
