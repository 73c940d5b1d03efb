#!/bin/sh
# The first process of a host, in its own network, UTS, IPC, mount and process namespaces. It becomes the host's sshd, so the host
# lives as long as that does.
#
#   sh host.sh LAB NAME HOME [FOLDER...]
#
# LAB: folder with ssh/, hosts, passwd and shadow for all, boards/NAME/run for this one. HOME: of root. FOLDER: stays visible in spite of the
# host's own /tmp, /run and /dev/shm. All else is shared with the machine, as on boards with one network file system.
set -eu
lab=$1 name=$2 home=$3
board=$lab/boards/$name
shift 3

# /proc is still the one of the machine, so this is the process id there
read -r id _ </proc/self/stat
echo "$id" >"$board/id.part"
mv "$board/id.part" "$board/id"

hostname "$name"
mount -t proc proc /proc
# /sys with the network of this host, and the machine's cgroups
mkdir -p "$board/run/cgroup"
mount --rbind /sys/fs/cgroup "$board/run/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$board/run/cgroup" /sys/fs/cgroup
for file in hosts passwd shadow; do
    mount --bind "$lab/$file" /etc/$file
done
mount --bind "$lab/ssh" /etc/ssh
if [ -d "$home/.ssh" ]; then
    mount -t tmpfs tmpfs "$home/.ssh"
fi

# The shared folders are kept in /run/shared while the folders above them are covered.
count=0
for folder; do
    count=$((count + 1))
    mkdir -p "$board/run/shared/$count"
    mount --bind "$folder" "$board/run/shared/$count"
done
mount --rbind "$board/run" /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
count=0
for folder; do
    count=$((count + 1))
    mkdir -p "$folder"
    mount --bind "/run/shared/$count" "$folder"
done

mkdir -p /run/sshd
cd /
exec /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config
