#!/usr/bin/env bash
# Fresh machine -> virtual environment -> scripts 00 to 06 on the built-in catalogue -> results.
# Run it again and finished stages are skipped; a stage that was cut goes on.
# ./run_demo.sh [DATA_DIR]
set -euo pipefail
cd "$(dirname "$0")"
source ./setup_venv.sh
DATA="${1:-data/demo}"
START=$SECONDS

stage() {
  local begin=$SECONDS
  echo; echo "== $*"
  python "$@" --data-dir "$DATA"
  echo "== $((SECONDS - begin)) s"
}

stage 00_prepare_data.py demo
stage 01_extract_embeddings.py
stage 02_quantize.py
stage 03_synthesize.py simulate
stage 04_train.py
stage 05_infer.py predict
stage baselines/random_order.py
stage baselines/popularity.py
stage baselines/bm25.py
stage 06_evaluate.py
echo; echo "== one dialogue of the test set, with the model's answers"
python 05_infer.py show --data-dir "$DATA" --dialogue test-0
echo; echo "pipeline: $((SECONDS - START)) s. Talk to it:"
echo "source .venv/bin/activate && python 05_infer.py chat --data-dir $DATA"
