#!/bin/bash
# The full tables: every method on every cluster of the lab, for BERT-Large and ViT-Large, and the pictures of them.
# As root, after: bash jobs/make-venv.sh mpi,pictures. Takes one to two hours, as fast as the machine is.
#   bash tests/lab/tables.sh [FOLDER]        FOLDER: for stores, documents and pictures; default: tables
#   CLUSTERS="even4 pi54" bash tests/lab/tables.sh   of these clusters only
# What is there already is not measured again.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck disable=SC1091
[ ! -e .venv/bin/activate ] || . .venv/bin/activate
python -c 'import matplotlib' || { echo "error: the pictures need matplotlib; install it with: bash jobs/make-venv.sh mpi,pictures" >&2; exit 2; }
folder=${1:-tables}
repeat=${REPEAT:-1} # what is emulated repeats within 2 %; see repeat.sh
# slow motion in which two cores keep up with every method: much where links are fast, little where ranks wait for them
slow=${SLOW:-even4=3,mixed4=1.6,skewed4=1.5,slowlink4=1.8,wifi3=2,pi4x4=3,pi54=5,desk3=2.2,pair22=3,pi8=2}
methods=hepti,hepti-float16,tensor,sequence,megatron,voltage,galaxy,coedge,edgeflow,ram,single,galaxy-boost,coedge-boost,hybrid
mkdir -p "$folder"

slowed() { # CLUSTER: how slow its motion is, which SLOW says by cluster or, as one number, for all
    local one
    for one in ${slow//,/ }; do
        [ "${one%%=*}" != "$1" ] && [ "$one" != "${one#*=}" ] || { echo "${one#*=}" && return; }
    done
    echo 1
}
measure() { # CLUSTER MODEL ROWS METHODS [NAME OPTION...]
    local cluster=$1 model=$2 rows=$3 names=$4 name=${5:-$1} begin=$SECONDS
    local file="$folder/$name-$model.json" records="$folder/$name-$model.jsonl"
    shift $(($# < 5 ? 4 : 5))
    [ ! -e "$file" ] || return 0
    echo "== $model, $rows rows, $name $*"
    rm -f "$records" # of one that was cut off
    python -m tests.lab run --slow "$(slowed "$cluster")" --share "$folder" "$cluster" -- bench --weights "$folder/$model.h5" --rows "$rows" --repeat "$repeat" \
        --cluster "$name" --methods "$names" --output "$records" --json "$@" | grep '^{' >"$file.part"
    mv "$file.part" "$file"
    echo "took $((SECONDS - begin)) s"
}

for model in bert-large vit-large; do
    [ -e "$folder/$model.h5" ] || python -m hepti_mpi slice "random:$model" "$folder/$model.h5"
done
clusters="even4 mixed4 skewed4 slowlink4 wifi3 pi4x4 pi54 desk3 pair22 pi8"
# other sizes by a quarter of the layers: every layer takes as long as every other
for cluster in ${CLUSTERS:-$clusters}; do
    measure "$cluster" bert-large 128,64:6,384:6 "$methods"
done
for cluster in ${CLUSTERS:-$clusters}; do
    measure "$cluster" vit-large 197,64:6 "$methods" # a picture is 197 rows, and no request has more
done
measure mixed4 bert-large 128 hepti,tensor,megatron,galaxy,galaxy-boost mixed4-430M --memory-limit 430M # only tensor fits
{
    echo "Commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)."
    python -m tests.lab.tables "$folder"
} | tee "$folder/tables.md"
mkdir -p "$folder/pictures"
python -m tests.lab.tables --records "$folder" >"$folder/pictures/records.jsonl"
python -m hepti_mpi report "$folder/pictures/records.jsonl" --output "$folder/pictures"
echo "documents, tables and pictures are in $folder"
