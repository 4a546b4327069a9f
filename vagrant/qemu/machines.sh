# Sourced by the parts that have several machines, in each of them: the first has the control plane, the others join it.

export KUBECONFIG=/etc/vetch/admin.kubeconfig
TOKEN=abcdef.0123456789abcdef
SERVER=https://10.90.1.2:6443
number=$(sed -n 's/.*host=\([0-9]\).*/\1/p' /proc/cmdline)
# How full the small disk is does not matter here.
FLAGS=(--detach --images-dir /lab/images '--eviction-hard=memory.available<20Mi' --image-gc-high-threshold=100)
. /lab/picture.sh

# until SECONDS COMMAND...: tries until it works.
until_ok() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || return 1
		sleep 1
	done
}

same_as_before() {
	picture | diff /tmp/before -
}

ready() {
	[ "$(kubectl get nodes --no-headers | grep -c ' Ready ')" = "$1" ]
}

manifest() {
	cat <<-'END'
		apiVersion: apps/v1
		kind: DaemonSet
		metadata: { name: web }
		spec:
		  selector: { matchLabels: { app: web } }
		  template:
		    metadata: { labels: { app: web } }
		    spec:
		      terminationGracePeriodSeconds: 0
		      containers:
		      - name: c
		        image: busybox:1
		        command: [sh, -c, "mkdir /w; hostname > /w/name; dd if=/dev/zero of=/w/large bs=1k count=512; exec httpd -f -p 80 -h /w"]
		        readinessProbe: { httpGet: { port: 80, path: /name }, periodSeconds: 1 }
		---
		apiVersion: v1
		kind: Service
		metadata: { name: web }
		spec: { selector: { app: web }, ports: [{ port: 80 }] }
	END
}

# On the first machine: `pod N`, what runs on that one, and `in_pod COMMAND...`, in that of the first.
pod() {
	kubectl get pods -l app=web --field-selector "spec.nodeName=machine$1" -o "jsonpath={.items[0].$2}"
}
in_pod() {
	kubectl exec "$(pod 1 metadata.name)" -- "$@"
}
all_run() {
	[ "$(kubectl get daemonset web -o 'jsonpath={.status.numberReady}')" = "$1" ]
}
reaches() {
	[ "$(in_pod timeout 5 wget -qO- "http://$(pod "$1" status.podIP)/name")" = "$(pod "$1" metadata.name)" ]
}
large() {
	[ "$(in_pod timeout 20 wget -qO- "http://$(pod "$1" status.podIP)/large" | wc -c)" = $((512 * 1024)) ]
}
# answering COUNT: so many pods answer for the Service by its name.
answering() {
	[ "$(in_pod sh -c 'for i in $(seq 40); do timeout 5 wget -qO- http://web/name; done' | sort -u | wc -l)" = "$1" ]
}
# What the daemon takes of the machine's memory.
takes() {
	awk '/^Pss:/ { printf "        the daemon takes %d MB\n", $2 / 1024 }' "/proc/$(cut -d' ' -f1 /run/vetch/vetch.lock)/smaps_rollup"
}

served() {
	curl -sk -m 15 -o /dev/null "$SERVER/readyz"
}
# Not for a moment only: emulated machines are slow.
unserved() {
	! served && sleep 10 && ! served && sleep 10 && ! served
}

# agent COMMAND...: all that a machine does beside the first; COMMAND runs while it is a node.
agent() {
	ok "the server answers" until_ok 200 served
	ok "vetch agent" until_ok 100 vetch agent "${FLAGS[@]}" --server $SERVER --token $TOKEN
	"$@"
	ok "the server has gone" until_ok 900 unserved
	takes
	ok "vetch down and reset" eval "vetch down --pods && vetch reset --yes"
	ok "nothing is left on machine $number" same_as_before
}
