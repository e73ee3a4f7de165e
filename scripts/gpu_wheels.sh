#!/usr/bin/env bash
# Lists what this project needs and the GPU machine lacks, one requirement a line; with a folder, downloads it there.
#   scripts/gpu_wheels.sh                 # on the GPU machine: the list
#   scripts/gpu_wheels.sh wheels < list   # elsewhere: pip downloads the list for Linux; then pip install --no-index -f wheels
set -euo pipefail
if [ $# -gt 0 ]; then
    exec python -m pip download --no-deps --only-binary=:all: --dest "$1" -r /dev/stdin
fi
python - "$(dirname "$0")/../constraints.txt" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

for line in Path(sys.argv[1]).read_text().splitlines():
    name, _, wanted = line.partition("==")
    if not wanted or line.startswith("#"):
        continue
    try:
        version(name.strip())
    except PackageNotFoundError:
        print(line.strip())
PYTHON
