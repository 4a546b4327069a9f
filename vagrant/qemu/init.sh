#!/bin/bash
# Makes the machine what a Linux host with systemd is to vetch (pure cgroup v2), runs the tests and
# gives their verdict.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C

# QEMU ends when the machine is switched off, or reboots.
verdict() {
	echo "$1"
	sync
	poweroff -f
	reboot -f
}
trap 'verdict FAILED' EXIT

mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sys /sys
mkdir -p /dev/pts /dev/shm
mkdir -p -m 1777 /var/tmp
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev shm /dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755 run /run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmp /tmp
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 /sys/fs/cgroup
mount --make-rshared /
ln -sfn /proc/self/fd /dev/fd

for port in /sys/class/virtio-ports/*; do
	[ "$(cat "$port/name")" = out ] && exec >"/dev/${port##*/}" 2>&1
done

# One of several machines, each on a network of its own, or the only one.
number=$(sed -n 's/.*host=\([0-9]\).*/\1/p' /proc/cmdline)
name=${number:+machine$number}
name=${name:-lab}
hostname "$name"
modprobe -a virtio_net vxlan overlay veth bridge br_netfilter nf_tables nf_conntrack zram virtio_rng 2>/dev/console
ip link set lo up
ip link set eth0 up
if [ "$number" ]; then
	ip address add "10.90.$number.2/24" dev eth0
	ip route add default via "10.90.$number.1"
else
	ip address add 10.0.2.15/24 dev eth0
	ip route add default via 10.0.2.2
fi
# The kernel's own address of the link comes when the link does: parts compare the host before and after.
for _ in $(seq 50); do
	ip -6 -o address show dev eth0 scope link | grep -qv tentative && break
	sleep 0.1
done
echo 'nameserver 10.0.2.3' >/etc/resolv.conf
printf '127.0.0.1 localhost %s\n' "$name" >/etc/hosts
echo "$name" >/etc/hostname
cat /proc/sys/kernel/random/uuid | tr -d - >/etc/machine-id

# As under systemd: nothing but kernel threads lives in the root group, and groups count memory and tasks.
mkdir -p /sys/fs/cgroup/init.scope
echo $$ >/sys/fs/cgroup/init.scope/cgroup.procs
echo +memory +pids >/sys/fs/cgroup/cgroup.subtree_control
echo 128M >/sys/block/zram0/disksize
mkswap /dev/zram0 >/dev/null && swapon /dev/zram0

/lab/guest.sh "$(sed -n 's/.*lab=\([^ ]*\).*/\1/p' /proc/cmdline)" </dev/null && trap 'verdict PASSED' EXIT
exit
