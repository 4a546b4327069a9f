# Part `firewalld`, sourced by guest.sh: pods serve on a machine whose firewall is firewalld's, which makes
# its rules anew now and then.

export KUBECONFIG=/etc/vetch/admin.kubeconfig
# Seconds from the end of a reload until all traffic goes again.
RESUMES=5

served() {
	cat <<-'END'
		apiVersion: v1
		kind: Pod
		metadata: { name: web, labels: { app: web } }
		spec:
		  containers: [{ name: web, image: "nginx:1", ports: [{ containerPort: 80, hostPort: 8088 }] }]
		---
		apiVersion: v1
		kind: Pod
		metadata: { name: client }
		spec:
		  terminationGracePeriodSeconds: 0
		  containers: [{ name: client, image: "busybox:1", command: [sleep, "1000000"] }]
		---
		apiVersion: v1
		kind: Service
		metadata: { name: web }
		spec: { selector: { app: web }, ports: [{ port: 80 }] }
	END
}

# from_node: the Service and the port of the node answer this machine.
from_node() {
	curl -sS --max-time 2 "http://$(cat /tmp/address)/" | grep "Welcome to nginx" &&
		curl -sS --max-time 2 "http://10.0.2.15:8088/" | grep "Welcome to nginx"
}

# from_pod: the Service answers another pod, across the bridge.
from_pod() {
	local netns
	netns=$(cat /tmp/client)
	nsenter -t "$netns" -n curl -sS --max-time 2 "http://$(cat /tmp/address)/" | grep "Welcome to nginx"
}

serves() {
	local end=$((SECONDS + $1)) said
	until said=$(from_node 2>&1 && from_pod 2>&1); do
		[ $SECONDS -lt $end ] || { echo "$said"; nft list ruleset; return 1; }
		sleep 0.2
	done
}

pods() {
	vetch image import /lab/images/busybox.tar && vetch image import /lab/images/nginx-1.tar &&
		served | kubectl create --validate=false -f - &&
		kubectl wait pod/web pod/client --for=condition=Ready --timeout=60s || return
	kubectl get service web -o jsonpath='{.spec.clusterIP}' >/tmp/address
	grep -lz '^1000000$' /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3 | head -1 >/tmp/client
	serves 30
}

firewall() {
	local end=$((SECONDS + 120))
	firewalld --nofork --nopid >/tmp/firewalld.log 2>&1 &
	echo $! >/tmp/firewalld.pid
	until firewall-cmd --state; do
		[ $SECONDS -lt $end ] || { cat /tmp/firewalld.log; return 1; }
		sleep 1
	done
}

first() {
	mkdir -p /run/dbus
	dbus-daemon --config-file=/lab/dbus.conf --fork && firewall || return
	# As users must, for what pods send each other.
	firewall-cmd --permanent --zone=trusted --add-interface=vetch0 && reload --reload
}

# reload HOW: returns when firewalld is done, which under emulation takes longer than D-Bus waits for an
# answer. Meanwhile it lets nothing through.
reload() {
	local end=$((SECONDS + 180))
	firewall-cmd "$1" && return
	until firewall-cmd --state; do
		[ $SECONDS -lt $end ] || return
		sleep 1
	done
}

tables() {
	nft list tables | grep vetch
}

# reloaded HOW: firewalld makes its rules anew, and ours stay or come back.
reloaded() {
	reload "$1" && serves $RESUMES && diff <(echo "$before") <(tables)
}

# As an administrator would, or a firewall that thinks that all rules are its own. firewalld itself cannot
# reload after that (it misses its table, and lets nothing through): it starts again.
flushed() {
	nft flush ruleset && serves $RESUMES && diff <(echo "$before") <(tables) || return
	local pid end=$((SECONDS + 60))
	pid=$(cat /tmp/firewalld.pid)
	kill "$pid"
	while kill -0 "$pid" 2>/dev/null; do
		[ $SECONDS -lt $end ] || return
		sleep 0.2
	done
	firewall && serves $RESUMES && diff <(echo "$before") <(tables)
}

ok "vetch up --detach" timeout 120 vetch up --detach &&
	ok "pods serve" pods && {
	before=$(tables)
	ok "firewalld starts" first
	ok "pods serve behind it" serves $RESUMES
	ok "and after firewall-cmd --reload" reloaded --reload
	ok "and after firewall-cmd --complete-reload" reloaded --complete-reload
	ok "and after nft flush ruleset" flushed
}
[ $failed = 0 ] || tail -40 /var/log/vetch/vetch.log
ok "vetch reset" vetch reset --yes
