#!/bin/busybox sh
# The first process of the virtual machine: runs every test and writes its exit code to the serial
# console. Lines that begin with "ipip:" are for the program that started the machine.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t bpf bpf /sys/fs/bpf
$b mount -t tmpfs tmp /tmp
$b mount -t tmpfs run /run
for module in /modules/*; do
    $b insmod "$module"
done
echo "ipip: began $($b uname -rv)"
. /arguments
for test in /tests/*; do
    echo
    echo "     Running ${test##*/}"
    "$test" "$@" $($b cat "/parts/${test##*/}" 2>/dev/null)
    echo "ipip: ${test##*/} exited $?"
done
# With -no-reboot the machine ends.
$b reboot -f
