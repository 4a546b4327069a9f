# Part `node`, sourced by guest.sh: a cluster on this machine, what limits do to its pods, and its
# removal without a trace.

export KUBECONFIG=/etc/vetch/admin.kubeconfig
PIDS=64
FLAGS=(--pod-pids-limit $PIDS --swap limited)

. /lab/picture.sh

pods() {
	cat <<-'END'
		apiVersion: apps/v1
		kind: Deployment
		metadata: { name: nginx }
		spec:
		  replicas: 2
		  selector: { matchLabels: { app: nginx } }
		  template:
		    metadata: { labels: { app: nginx } }
		    spec:
		      containers: [{ name: nginx, image: "nginx:1", ports: [{ containerPort: 80 }] }]
		---
		apiVersion: v1
		kind: Service
		metadata: { name: nginx }
		spec: { selector: { app: nginx }, ports: [{ port: 80 }] }
	END
	# Memory is what one read takes: a pod ends well when it fits. Figures are MiB.
	# name, memory limit, swap limit, taken
	while read -r name limit swap taken; do
		cat <<-END
			---
			apiVersion: v1
			kind: Pod
			metadata: { name: $name, annotations: { $([ "$swap" = - ] || echo "vetch.dev/swap-limit.c: ${swap}Mi") } }
			spec:
			  restartPolicy: Never
			  containers:
			  - name: c
			    image: busybox:1
			    command: [dd, if=/dev/zero, of=/dev/null, bs=${taken}M, count=1]
			    resources: { limits: { memory: ${limit}Mi } }
		END
	done <<-'END'
		fits          48 -  24
		too-much      48 -  96
		swap-fits     48 32 64
		swap-too-much 48 32 112
	END
	cat <<-'END'
		---
		apiVersion: v1
		kind: Pod
		metadata: { name: spins }
		spec:
		  terminationGracePeriodSeconds: 0
		  containers:
		  - name: c
		    image: busybox:1
		    command: [sh, -c, "while :; do :; done"]
		    resources: { limits: { cpu: 200m, memory: 32Mi } }
		---
		apiVersion: v1
		kind: Pod
		metadata: { name: forks }
		spec:
		  terminationGracePeriodSeconds: 0
		  containers:
		  - name: c
		    image: busybox:1
		    command: [sh, -c, "sh -c 'for i in $(seq 200); do sleep 1000 & done'; exec tail -f /dev/null"]
		    resources: { requests: { memory: 64Mi }, limits: { memory: 96Mi } }
	END
}

well() {
	vetch check && ! vetch check | grep -v '^ok'
}

# ends POD REASON CODE: the pod's only container ended so.
ends() {
	local path='{.status.containerStatuses[0].state.terminated'
	kubectl wait "pod/$1" --timeout=60s --for=jsonpath="$path.reason}=$2" &&
		[ "$(kubectl get pod "$1" -o jsonpath="$path.exitCode}")" = "$3" ] && return
	kubectl get pod "$1" -o yaml
	return 1
}

# group POD: the folder of the pod's control group.
group() {
	find /sys/fs/cgroup/vetch -type d -name "*$(kubectl get pod "$1" -o jsonpath='{.metadata.uid}')*" | head -1
}

answers() {
	local address
	kubectl wait deployment/nginx --for=condition=Available --timeout=90s || { kubectl get pods -o wide; kubectl get events; return 1; }
	address=$(kubectl get service nginx -o jsonpath='{.spec.clusterIP}')
	curl -sS --retry 5 --retry-connrefused --retry-delay 1 --max-time 20 "http://$address/" | grep "Welcome to nginx"
}

demo_answers() {
	curl -sS --max-time 20 "http://$(kubectl -n demo get service demo -o jsonpath='{.spec.clusterIP}')/" | grep 'Hello from pod demo-'
}

spends() {
	local dir before after from to percent
	kubectl wait pod/spins --for=condition=Ready --timeout=60s || return
	dir=$(group spins)
	[ "$dir" ] || return
	# Less than its share is what others leave it: then it gets another chance. More is wrong at once.
	for _ in 1 2 3; do
		from=$(cut -d' ' -f1 /proc/uptime) before=$(awk '/^usage_usec/ { print $2 }' "$dir/cpu.stat")
		sleep 5
		after=$(awk '/^usage_usec/ { print $2 }' "$dir/cpu.stat") to=$(cut -d' ' -f1 /proc/uptime)
		percent=$(awk "BEGIN { printf \"%.1f\", ($after - $before) / ($to - $from) / 10000 }")
		echo "$percent % of one CPU"
		awk "BEGIN { exit !($percent > 22) }" && return 1
		awk "BEGIN { exit !($percent >= 18) }" && return
	done
	return 1
}

# The pod has as many processes as it may, its shell was told that there are no more, and others go on.
forked() {
	local dir end=$((SECONDS + 30))
	kubectl wait pod/forks --for=condition=Ready --timeout=60s || return
	dir=$(group forks)
	until kubectl logs forks | grep "can't fork"; do
		[ $SECONDS -lt $end ] || return
		sleep 0.5
	done
	grep . "$dir/pids.max" "$dir/pids.current"
	# (the shell that was refused has ended)
	[ "$(cat "$dir/pids.max") $(cat "$dir/pids.current")" = "$PIDS $((PIDS - 1))" ]
}

# --swap limited: a pod that asks for less memory than it may have gets its part of the swap.
shared() {
	local dir want
	dir=$(group forks)
	want=$(awk '/^MemTotal/ { memory = $2 } /^SwapTotal/ { swap = $2 }
		END { print int(64 * 1024 * swap / memory / 4) * 4096 }' /proc/meminfo)
	grep -H . "$dir"/*/memory.swap.max
	echo "wanted: $want"
	grep -qx "$want" "$dir"/*/memory.swap.max
}

# The limits as the kernel holds them, and that the pods' groups are where users look for them.
written() {
	local dir
	dir=$(group spins)
	grep -rh . "$dir"/*/cpu.max "$dir"/*/memory.max "$dir"/*/memory.swap.max "$dir"/*/memory.oom.group
	grep -qx '20000 100000' "$dir"/*/cpu.max && grep -qx $((32 << 20)) "$dir"/*/memory.max && grep -qx 0 "$dir"/*/memory.swap.max
}

survives() {
	local before
	before=$(kubectl get pods -o jsonpath='{.items[*].status.containerStatuses[*].containerID}')
	kill -9 "$(cat /run/vetch/vetch.lock)" && vetch up --detach "${FLAGS[@]}" &&
		kubectl wait node --all --for=condition=Ready --timeout=60s &&
		[ "$before" ] && [ "$(kubectl get pods -o jsonpath='{.items[*].status.containerStatuses[*].containerID}')" = "$before" ] &&
		kubectl get pods
}

gone() {
	cp /var/log/vetch/vetch.log /tmp/
	vetch reset --yes && picture >/tmp/after && diff /tmp/before /tmp/after
}

cluster() {
	local archive
	ok "vetch check lacks nothing" well
	ok "vetch up --detach" timeout 120 vetch up --detach "${FLAGS[@]}" || return
	ok "node is Ready" kubectl wait node --all --for=condition=Ready --timeout=60s || return
	for archive in /lab/images/*; do
		ok "import ${archive##*/}" vetch image import "$archive"
	done
	pods >/tmp/pods.yaml
	# (validation is another part's matter, and slow under emulation)
	ok "kubectl create" kubectl create --validate=false -f /tmp/pods.yaml || return
	ok "service answers" answers || return
	ok "memory within the limit" ends fits Completed 0
	ok "memory over the limit: OOMKilled" ends too-much OOMKilled 137
	ok "swap within its limit" ends swap-fits Completed 0
	ok "swap over its limit: OOMKilled" ends swap-too-much OOMKilled 137
	ok "swap by --swap limited" shared
	ok "processes stop at --pod-pids-limit" forked
	ok "CPU stays at 20 %, within a tenth" spends
	ok "limits are written to v2 files" written
	ok "pods survive kill -9 of the daemon" survives
	ok "service answers" answers
	ok "vetch up --demo" timeout 120 bash -c 'vetch down && vetch up --detach --demo'
	ok "demo answers" demo_answers
}

picture >/tmp/before
cluster
ok "vetch reset leaves nothing" gone
[ $failed = 0 ] || tail -40 /tmp/vetch.log
