"""A server process of its own: `python serve_stand_in.py '{"options": …}'`."""

import json
import sys
from pathlib import Path

from mimicmotion_trt.service import ServiceConfig, serve

if __name__ == "__main__":
    options = {"port": 0, "animator": "stand_in_animator:load", "bundle": "{}"} | json.loads(sys.argv[1])
    if "ready_file" in options:
        options["ready_file"] = Path(options["ready_file"])
    serve(ServiceConfig(**options))
