# Shared by the scripts of this folder; sourced, not run.

cache=${CONFORMANCE_CACHE:-/var/cache/conformance}
bin=$cache/bin
out=$cache/images
gopath=$cache/gopath
kubernetes=$gopath/src/k8s.io/kubernetes
version=v1.20.2
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../images/lib.sh"
