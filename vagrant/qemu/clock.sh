# Part `clock`, sourced by guest.sh: a cluster whose machine has a wrong clock, and then the right one.
# Whatever is dated wrongly is issued anew, for everyone who uses it, without a restart.

export KUBECONFIG=/etc/vetch/admin.kubeconfig
# Emulated.
SOON=30

# at DATE COMMAND...: with the clock at DATE.
at() {
	date -s "$1" >/dev/null && shift && "$@"
}

# works: administrator, node and its streams, within $SOON seconds.
works() {
	local end=$((SECONDS + SOON)) said
	until said=$(kubectl exec clock -- echo reached 2>&1) && [ "$said" = reached ] &&
		said=$(kubectl logs clock 2>&1) && [ "$said" = begun ] &&
		said=$(kubectl get --raw /readyz 2>&1) && [ "$said" = ok ]; do
		[ $SECONDS -lt $end ] || { echo "$said"; date; return 1; }
		sleep 0.5
	done
}

pod() {
	vetch image import /lab/images/busybox.tar &&
		kubectl run clock --image=busybox:1 --restart=Never --command -- sh -c 'echo begun; exec sleep 1000000' &&
		kubectl wait pod/clock --for=condition=Ready --timeout=60s && works
}

clock() {
	local now
	now=$(date +%s)
	ok "first start in 1970" at @100000 timeout 120 vetch up --detach || return
	ok "a pod in 1970" pod
	ok "the clock is corrected" at "@$now" works
	ok "and it is the year after" at "@$((now + 366 * 86400))" works
	ok "vetch reset in the next century" at "@$((now + 100 * 365 * 86400))" vetch reset --yes
	date -s "@$now" >/dev/null
	ok "first start ten hours ahead" at "@$((now + 36000))" timeout 120 vetch up --detach || return
	ok "a pod ten hours ahead" pod
	ok "the clock is set back" at "@$now" works
	ok "a restart" eval 'vetch down && vetch up --detach && works'
	ok "vetch reset" vetch reset --yes
}

clock
