#!/bin/bash
# Runs in the machine: `guest.sh PART,PART`. Fails when one of its checks fails.
set -u
failed=0 passed=0

# ok NAME COMMAND...: one check; its output is shown when it fails.
ok() {
	local name=$1 said=/tmp/said began=$SECONDS
	shift
	# (a file: whatever a failed check leaves running may keep it open)
	if ("$@") >$said 2>&1; then
		passed=$((passed + 1))
		echo "ok      $name ($((SECONDS - began)) s)"
	else
		failed=$((failed + 1))
		echo "NOT OK  $name"
		sed 's/^/        /' $said
		burden
		return 1
	fi
}

# burden: what the machine has left, and for how long (%) something waited lately.
burden() {
	echo "        $(awk '/^(MemAvailable|Cached|Shmem|SwapFree)/ { printf "%s %d MiB, ", $1, $2 / 1024 }' /proc/meminfo)" \
		"$(awk '/^some/ { print FILENAME, $2, $3 }' /proc/pressure/{cpu,memory,io} | sed 's#/proc/pressure/##' | paste -sd, -)"
}

crates() {
	local program name
	for program in /lab/tests/*-*; do
		name=${program##*/}
		# Listing 100,000 elements takes minutes under emulation.
		ok "tests of ${name%-*}" timeout 90 "$program" --include-ignored --test-threads=1 --skip a_large_transaction
	done
	ok "limits inside a container" boxed timeout 30 /lab/tests/limits-* --include-ignored forks_stop_at_the_limit
}

# tests PROGRAM NAMES. Each test starts a cluster of its own; an emulated processor takes several times as long.
tests() {
	local test
	export VETCH_TEST_KUBECTL=/usr/local/bin/kubectl VETCH_TEST_IMAGES=/lab/images VETCH_TEST_PATIENCE=10 TMPDIR=/var/tmp
	for test in $("/lab/tests/$1" --list "$2" | sed -n 's/: test$//p'); do
		ok "$test" timeout -k 10 900 "/lab/tests/$1" --include-ignored --exact "$test"
	done
}

# boxed COMMAND...: as in a container, whose processes start in the root that it sees.
boxed() {
	local group=/sys/fs/cgroup/box
	mkdir $group
	echo +cpu >/sys/fs/cgroup/cgroup.subtree_control
	(
		echo $BASHPID >$group/cgroup.procs
		exec unshare --cgroup --mount bash -c 'umount /sys/fs/cgroup &&
			mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"' boxed "$@"
	)
}

echo "Linux $(uname -r), cgroup v2: $(cat /sys/fs/cgroup/cgroup.controllers), up $(cut -d' ' -f1 /proc/uptime) s"
for part in ${1//,/ }; do
	case $part in
	crates) crates ;;
	runtime) ok "tests of the runtime" timeout 120 /lab/tests/runtime --include-ignored --test-threads=1 ;;
	escapes | network) tests attacks "$part::" ;;
	services) tests services every_feature_over_ipv4 ;;
	clock | cluster | firewalld | node | restart | wireguard) . /lab/$part.sh ;;
	esac
	burden
done
echo "$passed passed, $failed failed, after $(cut -d' ' -f1 /proc/uptime) s"
[ $failed = 0 ] && [ $passed -gt 0 ]
