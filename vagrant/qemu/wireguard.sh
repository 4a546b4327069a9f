# Part `wireguard`, sourced by guest.sh in each of two machines on one link: the first has the control plane and asks for
# encryption, the second joins. What crosses the link is looked at from outside (wire.py).

. /lab/machines.sh
LINK=vetch0w

# phase NAME: says to who looks at the link what begins.
phase() {
	echo "phase-$1" >/dev/udp/10.90.2.2/9
}

sealed() {
	ip -d link show $LINK | grep -q wireguard && ip route show proto 86 | grep -q "dev $LINK" &&
		! ip route show proto 86 | grep -q via
}
plain() {
	! ip link show $LINK && ip route show proto 86 | grep -q "via 10.90" && ! nft list tables | grep wireguard
}
mtu() {
	[ "$(in_pod cat /sys/class/net/eth0/mtu)" = 1440 ]
}
# The second machine's DNS, over UDP, at its address in its own range of pods.
udp() {
	in_pod timeout 10 nslookup web.default.svc.cluster.local "$(pod 2 status.podIP | sed 's/[0-9]*$/1/')"
}
says() {
	in_pod timeout 10 wget -qO- "http://$(pod 2 status.podIP)/secret" | grep -q what-pods-say
}
# From the machine itself: its packets have an address of its own range.
host() {
	curl -s -m 5 "http://$(pod 2 status.podIP)/name" | grep -q web
}
key() {
	kubectl get node "machine$1" -o 'jsonpath={.metadata.annotations.vetch\.io/wireguard-public-key}'
}
has_keys() {
	[ "$(key 1 | wc -c)" = 44 ] && [ "$(key 2 | wc -c)" = 44 ] && [ "$(key 1)" != "$(key 2)" ]
}
has_none() {
	[ -z "$(key 1)" ] && [ -z "$(key 2)" ]
}
is_private() {
	[ "$(stat -c '%a %U' /var/lib/vetch/network/wireguard-private-key)" = "600 root" ]
}
restored() {
	kubectl get events -A | grep HostStateRestored | grep -q "WireGuard link"
}

server() {
	ok "WireGuard is there for the check" eval "vetch check | grep 'ok .*WireGuard'"
	ok "vetch up" vetch up "${FLAGS[@]}" --pod-encryption wireguard || return
	vetch token create $TOKEN >/dev/null
	ok "two machines are Ready" until_ok 300 ready 2
	manifest | sed "s|mkdir /w;|mkdir /w; echo what-pods-say > /w/secret;|" | kubectl apply -f - >/dev/null
	ok "a pod runs on each" until_ok 200 all_run 2
	ok "each Node tells a key" until_ok 60 has_keys
	ok "the private key is root's alone" is_private
	ok "the range of the other machine is reached by WireGuard" until_ok 60 sealed
	ok "pods reach each other" until_ok 60 reaches 2
	ok "pods' links take what the tunnel takes" until_ok 60 mtu
	ok "large answers come through" large 2
	ok "UDP comes through" until_ok 60 udp
	ok "the machine itself reaches pods of the other" host
	ok "what is said" says
	ok "a Service has the pods of both" until_ok 60 answering 2
	ok "logs of a pod elsewhere" kubectl logs "$(pod 2 metadata.name)"
	ip link delete $LINK
	ok "the link that was deleted is back" until_ok 30 sealed
	ok "and pods reach each other" until_ok 60 reaches 2
	ok "which is told" until_ok 30 restored
	first=$(key 1)
	ok "the daemon starts again" eval "vetch down && vetch up ${FLAGS[*]@Q} --pod-encryption wireguard"
	ok "with the same key" [ "$(key 1)" = "$first" ]
	ok "the machine itself still reaches pods of the other" until_ok 60 host
	ok "pods still reach each other" until_ok 60 reaches 2

	phase plain
	ok "without encryption" eval "vetch down && vetch up ${FLAGS[*]@Q}"
	ok "the link and its tables go" until_ok 60 plain
	ok "no Node tells a key" until_ok 60 has_none
	ok "pods reach each other as before" until_ok 60 reaches 2
	ok "what is said can be read" says
	ok "encrypted again" eval "vetch down && vetch up ${FLAGS[*]@Q} --pod-encryption wireguard"
	ok "both have new keys" until_ok 60 has_keys
	ok "other ones" [ "$(key 1)" != "$first" ]
	ok "the tunnel is there" until_ok 60 sealed
	ok "peers follow the keys" until_ok 60 reaches 2
	phase sealed
	ok "what is said again" says
	ok "vetch down and reset" eval "vetch down --pods && vetch reset --yes"
	ok "nothing is left on the first machine" same_as_before
}

# The machines are on one link, though their networks are two.
ip route add 10.90.0.0/16 dev eth0
picture >/tmp/before
case $number in
1) server ;;
*) agent : ;;
esac
