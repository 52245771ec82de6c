#!/usr/bin/env bash
# Fresh machine -> virtual environment -> the tests. Arguments go to pytest: ./run_tests.sh -k tokens
set -euo pipefail
cd "$(dirname "$0")"
source ./setup_venv.sh
python -m pytest -q "$@"
