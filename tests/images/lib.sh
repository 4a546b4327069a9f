# Images from Debian's packages, without any registry. Sourced, not run.
#
# Expects $cache (a folder that may be deleted at any time) and $out (where archives go).

export LC_ALL=C

die() { echo "${0##*/}: $*" >&2; exit 1; }
say() { echo "== $*" >&2; }

# apt_get ARGS: apt-get with lists, cache and (empty) package database of its own
# on Debian bookworm's packages and sources; the system's are left alone.
apt_get() {
	local conf=$cache/apt/apt.conf
	if [ ! -e "$cache/apt/ready" ]; then
		local mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(CREATED_BY)' |
			awk '$2 == "bookworm" && $3 == "Packages" { print $1; exit }')}
		[ "$mirror" ] || die "apt has no bookworm here: set DEBIAN_MIRROR to a Debian mirror's URL"
		mkdir -p "$cache"/apt/{lists/partial,cache/archives/partial}
		: >"$cache/apt/status" # its folder has the lock: others may be at work beside us
		printf '%s [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s bookworm main\n' \
			deb "$mirror" deb-src "$mirror" >"$cache/apt/sources.list"
		cat >"$conf" <<-END
			Dir::Etc::sourcelist "$cache/apt/sources.list";
			Dir::Etc::sourceparts "/dev/null";
			Dir::State::lists "$cache/apt/lists";
			Dir::State::status "$cache/apt/status";
			Dir::Cache "$cache/apt/cache";
			APT::Sandbox::User "root";
			APT::Install-Recommends "false";
			APT::Get::List-Cleanup "false";
			Acquire::Languages "none";
			Acquire::Retries "3";
		END
		apt-get -qq -c "$conf" update && touch "$cache/apt/ready"
	fi
	apt-get -qq -c "$conf" "$@"
}

# tree NAME PACKAGE...: a root folder with the packages and the libraries they depend on, unpacked
# but not configured, above busybox's commands. Prints its path; fails (1) when it was there already.
tree() {
	local root=$cache/trees/$1 wanted files file applet
	shift
	echo "$root"
	[ -e "$root.done" ] && return 1
	rm -rf "$root"
	mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{etc,proc,sys,dev,root,run,var/log,home} "$root"/usr/local/bin
	mkdir -m 1777 "$root/tmp"
	for file in bin sbin lib lib64; do ln -s usr/$file "$root/$file"; done
	printf '%s\n' root:x:0:0:root:/root:/bin/sh www-data:x:33:33::/var/www:/bin/false \
		nobody:x:65534:65534::/:/bin/false >"$root/etc/passwd"
	printf '%s\n' root:x:0: tty:x:5: www-data:x:33: nogroup:x:65534: >"$root/etc/group"
	echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
	wanted=$(printf '%s|' busybox-static "$@")'zlib1g|lib[^_]*|[^_]*-libs|nginx[^_]*|postgresql-client-15'
	mkdir -p "$cache/apt/none/partial" # (the list has only what is not in the cache)
	files=$(apt_get -y -o Dir::Cache::archives="$cache/apt/none" --print-uris install busybox-static "$@" |
		awk '{ print $2 }' | grep -E "^($wanted)_" | grep -vE '^lib(perl|llvm|z3|[^_]*-perl)')
	apt_get -y --download-only install busybox-static "$@" >&2
	for file in $files; do
		dpkg-deb --fsys-tarfile "$cache/apt/cache/archives/$file" |
			tar -x -C "$root" --keep-directory-symlink --no-same-owner \
				--exclude './usr/share/[dmlb]*' --exclude './usr/share/zoneinfo' --exclude './usr/lib/*/gconv' \
				--exclude './usr/lib/postgresql/*/lib/bitcode'
	done
	for applet in $("$root/bin/busybox" --list); do
		[ -e "$root/bin/$applet" ] || [ -e "$root/sbin/$applet" ] || ln -s busybox "$root/bin/$applet"
	done
	touch "$root.done"
}

# layer NAME FOLDER: a layer's tar, the same bytes for the same files.
layer() {
	mkdir -p "$out/layers"
	tar --sort=name --mtime=@0 --numeric-owner --owner=0 --group=0 -C "$2" -cf "$out/layers/$1.tar" .
}

# archive FILE REFERENCE LAYER... CONFIG: one docker-archive; $ARCH overrides the architecture.
archive() {
	local file=$1 ref=$2 config=${*: -1} layers=("${@:3:$#-3}") dir sums
	dir=$(mktemp -d "$out/tmp.XXXXXX")
	for l in "${layers[@]}"; do ln -s "$out/layers/$l.tar" "$dir/$l.tar"; done
	sums=$(for l in "${layers[@]}"; do sha256sum <"$out/layers/$l.tar" | sed 's/\(.*\)  -/"sha256:\1"/'; done | paste -sd,)
	printf '{"architecture":"%s","os":"linux","created":"1970-01-01T00:00:00Z","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]}}' \
		"${ARCH:-$(dpkg --print-architecture)}" "$config" "$sums" >"$dir/config.json"
	printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":[%s]}]' "$ref" \
		"$(printf '"%s.tar"\n' "${layers[@]}" | paste -sd,)" >"$dir/manifest.json"
	tar -C "$dir" --sort=name --mtime=@0 --numeric-owner --owner=0 --group=0 -h -cf "$out/$file" .
	rm -r "$dir"
	printf '%s\t%s\n' "$ref" "$out/$file" >>"$out/list.tmp"
}

# The folder that nginx is made in; the first time with a configuration of ours.
nginx_tree() {
	local root
	if root=$(tree nginx nginx-light); then
		mkdir -p "$root/var/lib/nginx" "$root/usr/share/nginx/html"
		echo '<html><body><h1>Welcome to nginx!</h1></body></html>' >"$root/usr/share/nginx/html/index.html"
		cat >"$root/etc/nginx/nginx.conf" <<-'END'
			user nobody nogroup;
			worker_processes 1;
			pid /run/nginx.pid;
			error_log /dev/stderr;
			events { worker_connections 256; }
			http { access_log ACCESS; server { listen 80; root /usr/share/nginx/html; } }
		END
		sed -i "s#ACCESS#${1:-off}#" "$root/etc/nginx/nginx.conf"
	fi
	echo "$root"
}

# The folder that postgres is made in. It never compiles a query: that library is larger than all the rest.
postgres_tree() {
	local root
	if root=$(tree postgres postgresql-15); then
		echo postgres:x:999:999::/tmp:/bin/sh >>"$root/etc/passwd"
		echo postgres:x:999: >>"$root/etc/group"
		mkdir -p -m 1777 "$root/var/run/postgresql"
		rm -f "$root"/usr/lib/postgresql/15/lib/llvmjit*
	fi
	echo "$root"
}
