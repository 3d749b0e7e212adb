#!/usr/bin/env bash
# `python -m bench.gpu` on a machine that has torch and no network, from a checkout and the wheels of `make bundle`:
#   bash bench/gpu.sh --out FOLDER …
# BUNDLE names the wheels' folder, SCRATCH one to install them into instead of a temporary one, PYTHON the interpreter.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=${SCRATCH:-$(mktemp -d)}
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$scratch/site" \
  "${BUNDLE:-$root/dist/bundle}"/*.whl
# Away from the repository's root, whose ptmst/ lacks the kernels of the installed one.
rm -rf "$scratch/run"
mkdir -p "$scratch/run"
cp -r "$root/bench" "$root/tests" "$root/docs" "$root/README.md" "$root/pyproject.toml" "$scratch/run"
export PYTHONPATH="$scratch/site:$scratch/run" PYTHONSAFEPATH=1
exec "$python" -m bench.gpu "$@"
