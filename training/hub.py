"""What a run's `final/` tells whoever gets it, and how it is put on the Hugging Face Hub.

The layout is that of the reference's repository: the checkpoint of `unet.*` and `pose_net.*` lies at the root, as
`.pth` and as `.safetensors`. Beside it are the settings of its bundle, the run's config, and a base folder if the run
trained or made one.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import OutputError, SettingsError, counted
from .config import BUNDLE_FILE, Config


def check_hub(repository: str) -> None:
    """Raise `SettingsError` unless OWNER/NAME can be one, and the hub's library and a token are there."""
    try:
        import huggingface_hub
    except ImportError:
        raise SettingsError(
            "the Hugging Face Hub needs huggingface_hub, which is not installed.",
            remedy="`pip install 'mimicmotion-trt[hub]'`.",
            field="push_to_hub",
        ) from None
    if huggingface_hub.get_token() is None:
        raise SettingsError(
            "there is no token for the Hugging Face Hub.",
            remedy="`hf auth login`, or set HF_TOKEN.",
            field="push_to_hub",
        )
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository, re.ASCII):
        raise SettingsError(
            f"{repository!r} is no repository of the Hugging Face Hub.",
            remedy="Give OWNER/NAME, of letters, digits, '-', '_' and '.'.",
            field="push_to_hub",
        )


def push(final: Path, repository: str) -> str:
    """Upload a run's final folder to a private repository OWNER/NAME; returns its address. Needs a network.

    Raises `OutputError` where that fails; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    try:
        address = HfApi().create_repo(repository, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=final)
    except Exception as error:  # the library's errors and those of its transports have no base in common
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OutputError(
            f"{final} could not be uploaded to {repository}: {first}",
            remedy=f"The weights are safe there. Try again with: hf upload {repository} {final} --private",
            field="push_to_hub",
        ) from error
    return str(address)


def write_card(final: Path, config: Config) -> None:
    """Write `README.md`, a model card that the hub reads as well, for what is in a run's final folder."""
    base, found = config.base or "random networks", {path.name for path in final.iterdir()}
    steps = counted(config.steps, "step")
    data = f"{config.data.source}, {config.data.width}x{config.data.height}, {counted(config.data.frames, 'frame')}"
    hub_id = config.base is not None and not Path(config.base).exists() and config.base.count("/") == 1
    head = ["---", "pipeline_tag: image-to-video", "tags: [mimicmotion, mimicmotion-trt]"]
    lines = [
        *head,
        *([f"base_model: {base}"] if hub_id else []),
        "---",
        f"# {Path(config.output).name}",
        "",
        f"Trained with mimicmotion-trt: stage `{config.stage}`, {steps} on {data}, begun with {base}.",
        "`config.yaml` is the whole config.",
    ]
    if BUNDLE_FILE in found:
        where = "base" if "base" in found else base
        lines += [
            "",
            "`mimicmotion.pth` and `mimicmotion.safetensors` hold U-Net and PoseNet.",
            f"`{BUNDLE_FILE}` says how they are to be sampled, and the builder reads it:",
            "",
            "```sh",
            f"mimicmotion-trt build --base {where} --checkpoint mimicmotion.safetensors --output BUNDLE",
            "```",
        ]
    (final / "README.md").write_text("\n".join(lines) + "\n")
