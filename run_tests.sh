#!/usr/bin/env bash
# Fresh machine -> virtual environment -> tests. Arguments go to pytest: ./run_tests.sh -k tokens
set -euo pipefail
cd "$(dirname "$0")"
source ./setup_venv.sh
ruff check --quiet .
export OMP_NUM_THREADS=1  # two tests at a time, each on one core
# -rs prints which tests were skipped, and why
python -m pytest -q -rs -n 2 --dist loadfile --max-worker-restart 0 "$@"
