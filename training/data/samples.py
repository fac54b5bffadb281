"""Samples: what a data set gives of a clip, the data set of synthetic people, and clips that are held out."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from ...errors import MimicMotionError, MotionError, SettingsError
from ...pose import PoseSequence, draw_poses
from ...pose.draw import BODY_THRESHOLD
from ..config import Config, DataConfig

Picture = NDArray[np.uint8]


class Sample(TypedDict):
    """One clip of one person."""

    frames: Picture
    """uint8 [F,H,W,3] RGB: consecutive frames."""
    observed: PoseSequence
    """Their F poses with an estimator's confidences and errors."""
    reference: Picture
    """uint8 [H,W,3]: the same person elsewhere in the video."""
    reference_pose: PoseSequence
    """The one pose in the reference picture."""
    truth: NotRequired[PoseSequence]
    """The F poses without errors, where they are known."""


class ClipDataset(Protocol):
    """Clips by number. It must be picklable, because worker processes get copies.

    A data set that reads files should have an attribute `content`, a text that changes with them (see `clips_key`).
    It may have `skipped`: reason -> how many clips were left out when it was opened.
    """

    def __len__(self) -> int:
        """Number of clips in an epoch."""

    def __getitem__(self, index: int) -> Sample:
        """Clip `index`, always the same; raises `MimicMotionError` if its data cannot be used."""


@dataclass(frozen=True)
class SyntheticClips:
    """Generated people: clip i is motion `first + i` of one of `config.characters` characters."""

    config: DataConfig
    first: int = 0

    def __len__(self) -> int:
        return self.config.clips

    def __getitem__(self, index: int) -> Sample:
        from ..synthetic import make_clip

        config = self.config
        clip = make_clip(
            self.first + index, config.frames - 1, config.height, config.width, fps=config.fps,
            character_seed=self.first + index % config.characters, style=config.style,
        )  # fmt: skip
        return {
            "frames": clip.frames, "observed": clip.observed,
            "reference": clip.reference, "reference_pose": clip.reference_pose, "truth": clip.truth,
        }  # fmt: skip


def open_dataset(config: DataConfig, *, held_out: bool = False) -> ClipDataset:
    """The data set that the config names; raises `SettingsError`.

    With `held_out` the people are others than those trained on. Another source than `synthetic` is called as
    `NAME(config, held_out=…)`.
    """
    if config.source == "synthetic":
        from ..synthetic import VALIDATION_SEEDS

        return SyntheticClips(config, VALIDATION_SEEDS.start if held_out else 0)
    module, _, name = config.source.partition(":")
    try:
        factory: Callable[..., ClipDataset] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"data.source {config.source!r} cannot be used: {error}.",
            remedy="Give synthetic, or MODULE:NAME of a function that returns a ClipDataset.",
            field="data.source",
        ) from None
    return factory(config, held_out=held_out)


def clips_key(config: DataConfig, dataset: ClipDataset) -> str:
    """A text that changes with what the clips hold; what is prepared of them is stored under it."""
    named = replace(config, cache=None, workers=0, clips=1)  # these three change no clip
    return f"{named!r} {getattr(dataset, 'content', '')}"


def usable_sample(dataset: ClipDataset, index: int) -> tuple[Sample, str]:
    """Clip `index` and an empty reason; if it cannot be used, another clip and the reason.

    The order in which others are tried is random and depends on `index`, so the clips of a lost shard are not all
    replaced by the same one. Raises `MotionError` if no clip of the data set can be used.
    """
    reason = ""
    for candidate in _candidates(index, len(dataset)):
        try:
            return checked(dataset[candidate]), reason
        except MimicMotionError as error:
            reason = reason or error.message.rstrip(".")
    raise MotionError(
        f"none of {len(dataset)} clips can be used: {reason}.", remedy="Prepare the data again.", field="data"
    )


def _candidates(index: int, clips: int) -> Iterator[int]:
    yield index
    others = np.random.default_rng(index).permutation(clips)
    yield from (int(other) for other in others if other != index)


class HeldOut:
    """Clips of people never trained on, for validation. A run that validates opens them at its start.

    In stages that sample videos they have `validation.frames` frames, in the others as many as in training.
    """

    def __init__(self, config: Config) -> None:
        """Raises `SettingsError` if there are none."""
        self._config = config
        self._faults: dict[int, str] = {}
        if config.validation.every:
            _ = self._dataset

    @cached_property
    def _dataset(self) -> ClipDataset:
        data, validation = self._config.data, self._config.validation
        samples = self._config.stage in ("motion", "together")
        frames = validation.frames + 1 if samples else data.frames
        wanted = replace(data, frames=frames, clips=max(data.clips, validation.clips))
        try:
            return open_dataset(wanted, held_out=True)
        except SettingsError as error:
            name = "validation.frames" if samples else "data.frames"
            raise SettingsError(
                f"no clips for validation: {error.message}",
                remedy=f"{error.remedy} Or lower {name}, now {frames - samples}; validation.every: 0 needs none.",
                field=name,
            ) from error

    def samples(self) -> list[Sample]:
        """The first `validation.clips` that can be used, or fewer. Raises `MotionError` if there are none."""
        found: list[Sample] = []
        for index in range(len(self._dataset)):
            if len(found) == self._config.validation.clips:
                break
            try:
                found.append(checked(self._dataset[index]))
            except MimicMotionError as error:
                self._faults[index] = error.message.rstrip(".")
        if not found:
            first = next(iter(self._faults.values()), "there is none")
            raise MotionError(f"no clip that is held out can be used: {first}.", field="data")
        return found

    @property
    def skipped(self) -> Counter[str]:
        """Why clips could not be used for validation, and how many."""
        return Counter(f"held out: {reason}" for reason in self._faults.values())


def checked(sample: Sample) -> Sample:
    """The sample; raises `MotionError` if its parts do not fit together."""
    frames, reference = sample["frames"], sample["reference"]
    pictures = frames.dtype == reference.dtype == np.uint8 and frames.ndim == 4
    poses = len(frames) == len(sample["observed"]) and len(sample["reference_pose"]) == 1
    if not (pictures and poses and reference.shape == frames.shape[1:]):
        raise MotionError(
            f"a clip has frames {frames.dtype}{list(frames.shape)}, {len(sample['observed'])} poses and "
            f"a reference {reference.dtype}{list(reference.shape)}.",
            field="data",
        )
    return sample


def with_reference(sample: Sample) -> tuple[Picture, PoseSequence]:
    """The frames of a segment: pictures uint8 [1+F,H,W,3] and their poses, the reference first."""
    pictures = np.concatenate([sample["reference"][None], sample["frames"]])
    height, width = pictures.shape[1:3]
    same: dict[str, Any] = {"fps": sample["observed"].fps, "size": (width, height)}
    parts = (sample["reference_pose"], sample["observed"])
    return pictures, PoseSequence.concat(replace(part, **same) for part in parts)


def drawn_poses(
    poses: PoseSequence, height: int, width: int, canvas: int, *, confidence_aware: bool = True
) -> Picture:
    """What PoseNet learns from, uint8 [F,height,width,3]: the runtime's pose pictures, or those of `certain`."""
    return draw_poses(poses if confidence_aware else certain(poses), height, width, canvas)


def certain(poses: PoseSequence) -> PoseSequence:
    """The poses with a confidence of 1 where it is above the threshold of drawing, and 0 elsewhere."""
    scores = (poses.body_score, poses.hands_score, poses.face_score)
    body, hands, face = ((score > BODY_THRESHOLD).astype(np.float32) for score in scores)
    return replace(poses, body_score=body, hands_score=hands, face_score=face)
