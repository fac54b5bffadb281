"""A server process of its own: `python -m tests.service.serve_stand_in '{"options": …}'`, in the repository."""

import json
import sys

from mimicmotion_trt.service import ServiceConfig, serve

from .hosting import STAND_IN

if __name__ == "__main__":
    serve(ServiceConfig(**STAND_IN | json.loads(sys.argv[1])))
