#!/bin/sh
# The switch of a lab, and what ends with it: a process namespace for everything and a network namespace with a bridge.
#
#   sh switch.sh FOLDER
#
# Ends when its standard input does, so it never outlives the process that holds the other end; a line on it lets it stay.
set -eu
folder=$1
cd "$folder"

# shellcheck disable=SC2016
unshare --fork --kill-child --pid --net sh -euc '
    # /proc is still the one of the machine, so these are its process id and start there
    read -r line </proc/self/stat
    # shellcheck disable=SC2086
    set -- "$1" $line
    ip link add switch type bridge
    ip link set switch up
    echo "$2 ${23}" >"$1/switch.part"
    mv "$1/switch.part" "$1/switch"
    read -r line || exit 0
    exec sleep infinity
' sh "$folder" || true
# The kernel has ended all processes of the lab by now. A new lab of that name may have its folder there already: what is in the
# old one goes, and an empty one.
rm -rf --one-file-system ./*
rmdir "$folder" 2>/dev/null || true
