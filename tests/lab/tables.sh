#!/bin/bash
# The full tables: every method on every cluster of the lab, for BERT-Large and ViT-Large, and the pictures of them.
# As root, after: bash jobs/make-venv.sh mpi,pictures. Takes about two hours; nothing else should use the machine.
#   bash tests/lab/tables.sh [FOLDER]        FOLDER: for stores, records and pictures; default: tables
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck disable=SC1091
[ ! -e .venv/bin/activate ] || . .venv/bin/activate
python -c 'import matplotlib' || { echo "error: the pictures need matplotlib; install it with: bash jobs/make-venv.sh mpi,pictures" >&2; exit 2; }
folder=${1:-tables}
methods=hepti,hepti-float16,tensor,sequence,megatron,voltage,galaxy,coedge,edgeflow,ram,single,galaxy-boost,coedge-boost
mkdir -p "$folder"

measure() { # CLUSTER MODEL ROWS METHODS [OPTION...]
    local cluster=$1 model=$2 rows=$3 names=$4
    shift 4
    echo "== $model, $rows rows, $cluster $*"
    python -m tests.lab run --share "$folder" "$cluster" -- bench --weights "$folder/$model.h5" --rows "$rows" --repeat 5 \
        --cluster "$cluster" --methods "$names" --output "$folder/records.jsonl" "$@"
}

for model in bert-large vit-large; do
    [ -e "$folder/$model.h5" ] || python -m hepti_mpi slice "random:$model" "$folder/$model.h5"
done
for model in bert-large vit-large; do
    rows=128
    [ "$model" = bert-large ] || rows=197
    for cluster in even4 mixed4 skewed4 slowlink4 wifi3; do
        measure "$cluster" "$model" "$rows" "$methods,hybrid"
    done
    measure pi8 "$model" "$rows" "$methods" # eight ranks with hybrid's weights too would need more than 24 GB
done
measure mixed4 bert-large 64 "$methods"
measure mixed4 bert-large 384 "$methods"
measure mixed4 bert-large 128 hepti,tensor,megatron,galaxy,galaxy-boost --memory-limit 430M --cluster mixed4-430M # only tensor fits
python -m hepti_mpi report "$folder/records.jsonl" --output "$folder/pictures"
echo "records and pictures are in $folder"
