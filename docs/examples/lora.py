"""A LoRA at several strengths: `python docs/examples/lora.py LORA.safetensors PICTURE MOTION sheet.png [STRENGTH…]`.

Writes a sheet with a row of frames for each strength. The U-Nets of all strengths are kept, so that a second round is
as fast as without a LoRA.
"""

import sys
from pathlib import Path

import mimicmotion_trt as mm
from mimicmotion_trt.media.picture import write_picture
from mimicmotion_trt.media.sheet import contact_sheet


def main(lora: str, picture: str, motion: str, output: str, *strengths: str, bundle: str = "tiny") -> None:
    name, rows = Path(lora).stem, []
    chosen = [float(strength) for strength in strengths or ("0", "0.5", "1")]
    limits = mm.Limits(lora_choices=len(chosen))
    with mm.Animator.load(bundle, loras={name: lora}, limits=limits) as animator:
        for strength in chosen:
            settings = animator.settings(lora=(f"{name}:{strength}",), frames=4)
            frames = animator.animate(picture, motion, settings).result().frames()
            rows.append((f"{name} at {strength:g}", list(frames)))
    write_picture(output, contact_sheet(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
