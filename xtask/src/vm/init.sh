#!/usr/bin/dash
# The init process of a machine of the kernel matrix: sets the machine up, runs the tests, and turns it off.
export PATH=/usr/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t securityfs securityfs /sys/kernel/security
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
# The kernel's command line names the port for the results. Raw: a terminal would change the line ends.
stty -F "/dev/$results" raw -echo
exec </dev/null >"/dev/$results" 2>&1
ip link set lo up
echo "machine: kernel $(uname -r)"
for module in /modules/*.ko; do
    insmod "$module" >/dev/null 2>&1 || echo "machine: refused ${module##*/}"
done
if [ -e /lab/bench ]; then
    /lab/bench bench --inside /lab/probe
    echo "machine: exit $?"
    poweroff -f
fi
export NETREADY_PROBE=/lab/probe NETREADY_PATIENCE=4
threads=4
if [ "$(uname -m)" = aarch64 ]; then
    # This architecture is emulated three times more slowly.
    NETREADY_PATIENCE=12 threads=2
fi
[ -e /lab/threads ] && threads=$(cat /lab/threads)
echo 'machine: doctor'
/lab/probe doctor -o json
echo 'machine: end'
# Lists what still runs shortly before the host stops the machine. A test's thread has the test's name.
(
    sleep "$unfinished"
    echo 'machine: unfinished'
    for task in /proc/[0-9]*/task/[0-9]*; do
        command=$(tr '\0' ' ' <"${task%/task/*}/cmdline")
        [ -z "$command" ] || echo "$(cat "$task/comm"), $(cat "$task/wchan"): $command" | cut -c -160
    done 2>/dev/null
) &
failed=0
for test in /lab/tests/*; do
    "$test" --include-ignored --test-threads $threads $(cat /lab/filter) || failed=1
done
echo "machine: exit $failed"
poweroff -f
