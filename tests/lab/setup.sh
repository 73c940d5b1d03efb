#!/usr/bin/env bash
# Install what tests/lab needs of the system: an ssh server, rsync, ip, tc, unshare, nsenter. Takes no time when all is there.
#
#   sudo bash tests/lab/setup.sh
#
# For Debian, Ubuntu and Raspberry Pi OS. The ssh server is for the lab's own hosts; on this machine none is started.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

packages=()
need() { # PACKAGE PROGRAM...: the package is missing where one of its programs is
    local program
    for program in "${@:2}"; do
        if ! command -v "$program" >/dev/null; then
            packages+=("$1")
            return
        fi
    done
}
need openssh-server sshd
need openssh-client ssh ssh-keygen
need rsync rsync
need iproute2 ip tc
need util-linux unshare nsenter
if [ ${#packages[@]} = 0 ]; then
    exit
fi

fail() {
    echo "error: $*" >&2
    exit 2
}
[ "$(id -u)" = 0 ] || fail "installing ${packages[*]} needs root; start this with sudo"
command -v apt-get >/dev/null || fail "no apt-get here; install by hand: ${packages[*]}"

# Debian starts a service as it is installed, unless this says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
fi
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
{ apt-get -q update && apt-get -q -y --no-install-recommends install "${packages[@]}"; } >"$log" 2>&1 ||
    fail "apt-get could not install ${packages[*]}: $(tail -n 3 "$log" | tr '\n' ' ')"
rm -f "$log"
# nor at the next start of the machine
case " ${packages[*]} " in
*" openssh-server "*) systemctl disable --quiet ssh.service ssh.socket >/dev/null 2>&1 || true ;;
esac
echo "installed ${packages[*]}"
