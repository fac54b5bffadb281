"""One picture and motion under several settings: a sheet with a row of frames for each.

python docs/examples/variants.py PICTURE MOTION sheet.png '{"seed": 1}' '{"seed": 2}' '{"pose_strength": 0.5}'
"""

import json
import sys

import mimicmotion_trt as mm
from mimicmotion_trt.media.picture import write_picture
from mimicmotion_trt.media.sheet import contact_sheet


def main(picture: str, motion: str, output: str, *variants: str, bundle: str = "tiny") -> None:
    rows = []
    with mm.Animator.load(bundle) as animator:
        for variant in variants:
            settings = animator.settings(**{"frames": 6, **json.loads(variant)})
            frames = animator.animate(picture, motion, settings).result().frames()
            rows.append((variant, list(frames)))
    write_picture(output, contact_sheet(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
