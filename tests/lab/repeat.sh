#!/bin/bash
# Does a bench say the same again? Five times the same, the second and the fourth beside a process that keeps one core busy.
# As root; takes about a quarter of an hour.
#   bash tests/lab/repeat.sh [FOLDER]        FOLDER: for the store and the documents; default: repeated
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck disable=SC1091
[ ! -e .venv/bin/activate ] || . .venv/bin/activate
folder=${1:-repeated}
mkdir -p "$folder"
[ -e "$folder/bert-large.h5" ] || python -m hepti_mpi slice random:bert-large "$folder/bert-large.h5"
trap '[ -z "${busy:-}" ] || kill "$busy"' EXIT
for number in 1 2 3 4 5; do
    busy=
    name=alone
    if [ $((number % 2)) = 0 ]; then
        name=busy
        python -c 'while True: pass' &
        busy=$!
    fi
    python -m tests.lab run --slow 2 --share "$folder" mixed4 -- bench --weights "$folder/bert-large.h5" --cluster mixed4 --repeat 3 \
        --methods hepti,hepti-float16,tensor,sequence,megatron,coedge,single --json | tail -n 1 >"$folder/$number-$name.json"
    [ -z "$busy" ] || kill "$busy"
    busy=
done
python -m tests.lab.tables --repeated "$folder" | tee "$folder/repeated.md"
