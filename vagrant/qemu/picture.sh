# Sourced by the parts that compare a host before and after.

# picture: all that a cluster could leave on a host.
picture() {
	echo "mounts:"; awk '{ print $5, $(NF - 2) }' /proc/self/mountinfo | sort
	echo "groups:"; find /sys/fs/cgroup -type d | sort
	echo "links:"; ip -o link | awk '{ print $2, $NF }' | sort
	echo "addresses:"; ip -o address | awk '{ print $2, $4 }' | sort
	echo "routes:"; ip route show table all | grep -v "^multicast\|^local\|^fe80\|^ff00" | sort; ip rule; ip neighbour show nud permanent
	echo "tables:"; nft list ruleset
	echo "namespaces:"; ls /run/netns 2>/dev/null
	echo "files:"; ls -d /etc/vetch /var/lib/vetch /run/vetch /var/log/vetch 2>/dev/null
	echo "processes:"; ps -o comm | grep vetch
	true
}
