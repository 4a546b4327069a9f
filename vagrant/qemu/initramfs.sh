#!/bin/busybox sh
# First program of the machine: mounts its disk and goes there (pivot_root refuses an initramfs).
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
	insmod "$module"
done </modules/order
mount -t ext4 /dev/vda /root
mount --move /dev /root/dev
umount /proc /sys
exec switch_root /root /lab/init.sh
