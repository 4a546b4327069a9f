# Part `cluster`, sourced by guest.sh in each of three machines with a router between them: the first has the
# control plane, the others join it. The third loses its power. Afterwards nothing is left on the others.

. /lab/machines.sh

tunnelled() {
	ip -o -d link show type vxlan | grep -q "dstport 8472" && ip route | grep -q "via .* dev .* onlink"
}
gone() {
	kubectl get node machine3 --no-headers | grep -q NotReady
}

server() {
	ok "vetch up" vetch up "${FLAGS[@]}" || return
	vetch token create $TOKEN >/dev/null
	ok "three machines are Ready" until_ok 300 ready 3
	kubectl get nodes -o wide
	manifest | kubectl apply -f - >/dev/null
	ok "a pod runs on each" until_ok 200 all_run 3
	ok "the machines reach each other by a tunnel" tunnelled
	ok "pods of one machine reach those of the second" until_ok 60 reaches 2
	ok "pods of one machine reach those of the third" until_ok 60 reaches 3
	ok "large answers come through" large 3
	ok "a Service has the pods of all machines" until_ok 60 answering 3
	ok "logs of a pod elsewhere" kubectl logs "$(pod 2 metadata.name)"
	takes
	echo "LOSE 3"
	ok "a machine that is lost is NotReady" until_ok 150 gone
	ok "its pods answer for no Service any more" until_ok 60 answering 2
	ok "vetch down and reset" eval "vetch down --pods && vetch reset --yes"
	ok "nothing is left on the first machine" same_as_before
}

picture >/tmp/before
case $number in
1) server ;;
*) agent : ;;
esac
