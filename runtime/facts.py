"""What was done to make a video: goes with its result, into its file and over the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .errors import InputError
from .settings import Settings

MAKER = "mimicmotion-trt"
"""The `made_by` of a record."""


@dataclass(frozen=True)
class Facts:
    """How one video was made. The times that it took are not among them: the same job has the same facts."""

    settings: Settings
    """In force, all filled in."""
    bundle: str
    """Name of the bundle's folder."""
    build: str
    """The bundle's key: a hash of all that its engines were made from."""
    version: str
    """Of this package."""
    device: str
    """`cpu`, or the names of the GPUs."""
    people_in_picture: int | None = None
    """Found by the estimator; None where none looked: the pose was given."""
    people_in_motion: int | None = None
    """The most that were found in one frame; None where no estimator looked: keypoints or pose pictures."""
    held: int = 0
    """Frames in which the driving person was not seen: they hold the last pose."""

    def of_seed(self, seed: int) -> Facts:
        """Those of one of several videos: the same settings but for the seed make it alone."""
        return replace(self, settings=replace(self.settings, seed=seed, seeds=None))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; the seed also stands by itself."""
        return {**asdict(self), "settings": self.settings.to_dict(), "seed": self.settings.seed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Facts:
        """What `to_dict` gave; raises `SettingsError` for settings that this version does not know."""
        known = {f.name for f in fields(cls)} & set(values)
        return cls(
            **{name: values[name] for name in known} | {"settings": Settings.from_dict(values["settings"])}
        )

    def to_json(self) -> str:
        """What stands in the metadata of the video's file; the same for the same job.

        `preview` is left out: it changes nothing of the video.
        """
        values = replace(self, settings=replace(self.settings, preview=0)).to_dict()
        del values["settings"]["preview"]
        return json.dumps({"made_by": MAKER, **values}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, name: str) -> Facts:
        """What `to_json` wrote into the file `name`.

        Raises `InputError` if it is something else, or has a key or setting that this version does not know.
        """
        try:
            values = json.loads(text)
            if values.pop("made_by") != MAKER:
                raise ValueError
            values.pop("seed", None)
            unknown = set(values) - {f.name for f in fields(cls)}
            found = cls.from_dict(values)
        except InputError as error:
            raise InputError(
                f"{name} was made with settings that this version cannot use: {error.message}",
                remedy=f"Use version {values.get('version')} of mimicmotion-trt, or give the settings as flags.",
                field="like",
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise not_ours(name) from error
        if unknown:
            raise InputError(
                f"{name} says of itself what this version does not know: {', '.join(sorted(unknown))}.",
                remedy=f"Use version {found.version} of mimicmotion-trt, or give the settings as flags.",
                field="like",
            )
        return found

    def difference(self, now: Facts) -> str:
        """What else than settings has changed since then, in words; "" if nothing."""
        pairs = {name: (getattr(self, name), getattr(now, name)) for name in ("build", "version", "device")}
        return ", ".join(
            f"{name} {old:.12} then, {new:.12} now" for name, (old, new) in pairs.items() if old != new
        )


def not_ours(name: str) -> InputError:
    """The error for a file without a record."""
    return InputError(
        f"{name} does not say how it was made.",
        remedy="Give an .mp4, .mov, .mkv or .webm that mimicmotion-trt wrote; GIFs and PNGs hold no record.",
        field="like",
    )
