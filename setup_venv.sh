# Sourced by run_demo.sh and run_tests.sh: makes .venv with the pinned requirements, and enters it.
PYTHON="${PYTHON:-python3}"
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed; name one with PYTHON=python3.11 $0" >&2
  exit 1
fi
if ! cmp -s requirements.txt .venv/installed.txt; then
  echo "installing the requirements into .venv (torch alone can be some GB)"
  "$PYTHON" -m venv .venv
  if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
      2> .venv/pip.log; then
    tail -n 20 .venv/pip.log >&2
    exit 1
  fi
  cp requirements.txt .venv/installed.txt
fi
source .venv/bin/activate
export PYTHONUTF8=1 TOKENIZERS_PARALLELISM=false
# Threads that wait sleep instead of spinning: see docs/speed.md
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
