# Part `restart`, sourced by guest.sh in two lives of the machine: it loses its power while a cluster
# runs, and when it is back, the pods and what they had stored are too.

export KUBECONFIG=/etc/vetch/admin.kubeconfig
STAGE=/lab/restart

rows() {
	cat <<-'END'
		apiVersion: apps/v1
		kind: StatefulSet
		metadata: { name: rows }
		spec:
		  serviceName: rows
		  selector: { matchLabels: { app: rows } }
		  template:
		    metadata: { labels: { app: rows } }
		    spec:
		      terminationGracePeriodSeconds: 0
		      containers:
		      - name: c
		        image: busybox:1
		        command: [sh, -c, "echo start >>/data/starts && sync /data/starts && touch /tmp/ready && exec sleep 1000000"]
		        readinessProbe: { exec: { command: [test, -e, /tmp/ready] }, periodSeconds: 1 }
		        volumeMounts: [{ name: data, mountPath: /data }]
		  volumeClaimTemplates:
		  - metadata: { name: data }
		    spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 16Mi } } }
	END
}

# ready: the pod runs, and its container has begun this often on this volume.
ready() {
	local end=$((SECONDS + 90)) said
	until [ "$(kubectl exec rows-0 -- cat /data/starts 2>&1 | grep -c start)" = "$1" ] &&
		kubectl wait pod/rows-0 --for=condition=Ready --timeout=1s; do
		[ $SECONDS -lt $end ] || { kubectl get pods,pvc,events; return 1; }
		sleep 0.5
	done
}

# identity: which pod and which volume it is.
identity() {
	kubectl get "$1" -o jsonpath='{.metadata.uid} {.spec.volumeName} {.status.phase}'
}

# same OBJECT FILE: it is the one of the first life.
same() {
	local now before
	now=$(identity "$1") before=$(cat "$2")
	echo "now $now, before $before"
	[ "$before" ] && [ "$now" = "$before" ]
}

first_life() {
	ok "vetch up --detach" timeout 120 vetch up --detach &&
		ok "import busybox" vetch image import /lab/images/busybox.tar &&
		ok "kubectl create" eval 'rows | kubectl create --validate=false -f -' &&
		ok "a pod with a claim" ready 1 &&
		ok "a row" kubectl exec rows-0 -- sh -c 'echo row >/data/row && sync /data/row' || return
	identity pvc/data-rows-0 >$STAGE/claim
	identity pod/rows-0 >$STAGE/pod
	sync $STAGE/claim $STAGE/pod
	# As when the power goes: nothing is told, nothing is written back.
	echo 1 >/proc/sys/kernel/sysrq
	echo b >/proc/sysrq-trigger
	sleep 60
}

second_life() {
	ok "vetch up --detach after the power came back" timeout 120 vetch up --detach || return
	ok "the pod runs again, on its volume" ready 2
	ok "it is the same pod" same pod/rows-0 $STAGE/pod
	ok "its claim has the same volume" same pvc/data-rows-0 $STAGE/claim
	ok "the row is there" eval '[ "$(kubectl exec rows-0 -- cat /data/row)" = row ]'
	ok "another pod gets the volume" eval 'kubectl delete pod rows-0 && ready 3'
	ok "the row is there still" eval '[ "$(kubectl exec rows-0 -- cat /data/row)" = row ]'
	ok "vetch reset" vetch reset --yes
}

if mkdir $STAGE 2>/dev/null; then
	sync
	first_life
else
	second_life
fi
