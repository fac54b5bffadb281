"""Generate the Python stubs of proto/ into runtime/service/generated/.

    .venv/bin/python proto/generate.py            write the stubs
    .venv/bin/python proto/generate.py --check    exit with 1 if the committed stubs are stale

Needs grpcio-tools and mypy-protobuf (the `dev` extra). protoc writes absolute imports of the schema's own
package, which would claim a top-level module called `mimicmotion`; they are made package-relative here.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

SCHEMA = Path(__file__).resolve().parent
STUBS = SCHEMA.parent / "runtime" / "service" / "generated"
ABSOLUTE = re.compile(r"^from mimicmotion\.v1 import (\w+)", re.MULTILINE)


def generate(target: Path) -> list[Path]:
    """Write the stubs of every schema file below `target`; returns their paths relative to it."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"  # google/protobuf/*.proto
    sources = sorted(str(path.relative_to(SCHEMA)) for path in SCHEMA.rglob("*.proto"))
    outputs = [
        f"--{kind}={target}" for kind in ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")
    ]
    # protoc finds its mypy plugins on PATH; they lie beside the running interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if (
        protoc.main(["protoc", f"--proto_path={SCHEMA}", f"--proto_path={well_known}", *outputs, *sources])
        != 0
    ):
        raise SystemExit("protoc failed")
    written = sorted(path for path in target.rglob("*_pb2*") if path.suffix in (".py", ".pyi"))
    for path in written:
        path.write_text(ABSOLUTE.sub(r"from . import \1", path.read_text()))
    return [path.relative_to(target) for path in written]


def stale() -> list[str]:
    """Names of committed stubs that differ from what the schema gives now, or have no schema."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = {name: (Path(folder) / name).read_text() for name in generate(Path(folder))}
    kept = {p.relative_to(STUBS): p.read_text() for p in STUBS.rglob("*_pb2*") if p.suffix in (".py", ".pyi")}
    return sorted(str(name) for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the gRPC stubs.")
    parser.add_argument("--check", action="store_true", help="only say whether the committed stubs are stale")
    if not parser.parse_args().check:
        for name in generate(STUBS):
            print(name)
        return 0
    names = stale()
    for name in names:
        print(f"stale: {name}", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
