#!/usr/bin/env bash
# Installs what a group of targets needs and this machine lacks, from Debian's
# packages. It does nothing, and asks for nothing, when all of it is there.
#
#   hack/deps.sh GROUP...     groups: go, root, race, net, disk, dns, peers, vm, generate, format
set -euo pipefail

# want COMMAND-OR-FILE PACKAGE notes the package if the thing is missing.
missing=()
want() {
	if [[ $1 == /* ]]; then
		[[ -e $1 ]] && return
	elif command -v "$1" >/dev/null; then
		return
	fi
	missing+=("$2")
}

check_go() {
	local need have
	need=$(awk '$1 == "go" {print $2; exit}' go.mod)
	if ! command -v "${GO:-go}" >/dev/null; then
		echo "deps: Go $need or newer is needed and '${GO:-go}' is not in PATH; see https://go.dev/doc/install" >&2
		exit 1
	fi
	have=$(GOTOOLCHAIN=local "${GO:-go}" env GOVERSION)
	have=${have#go}
	if [[ $(printf '%s\n' "$need" "$have" | sort -V | head -1) != "$need" ]]; then
		echo "deps: Go $need or newer is needed, this is $have" >&2
		exit 1
	fi
}

cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
for group in "$@"; do
	case $group in
	go) check_go ;;
	root)
		if ((EUID)); then
			echo "deps: this target makes network namespaces and loads BPF programs; run it as root" >&2
			exit 1
		fi
		;;
	race)
		# The race detector links through the C compiler.
		want gcc gcc
		want /usr/include/stdlib.h libc6-dev
		;;
	net)
		want ip iproute2
		want ethtool ethtool
		;;
	disk)
		want mkfs.ext4 e2fsprogs
		want losetup mount
		;;
	vm)
		# Kernels come by apt from wherever this machine gets Debian.
		want qemu-system-x86_64 qemu-system-x86
		want xz xz-utils
		want mkfs.ext4 e2fsprogs
		want nsenter util-linux
		want dig bind9-dnsutils
		want /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
		;;
	dns)
		want dnsmasq dnsmasq-base
		want unbound unbound
		want musl-gcc musl-tools
		want dig bind9-dnsutils
		want curl curl
		want unshare util-linux
		;;
	peers)
		want iptables-legacy-restore iptables
		want ipset ipset
		want nft nftables
		want dnsmasq dnsmasq-base
		want unbound unbound
		want nsenter util-linux
		;;
	generate)
		want clang-19 clang-19
		want llvm-strip-19 llvm-19
		want protoc protobuf-compiler
		want /usr/include/google/protobuf/descriptor.proto libprotobuf-dev
		want git git
		;;
	format) want clang-format-19 clang-format-19 ;;
	*)
		echo "deps: unknown group '$group'; groups are go, root, race, net, disk, dns, peers, vm, generate, format" >&2
		exit 2
		;;
	esac
done

((${#missing[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
	echo "deps: install these (Debian's names): ${missing[*]}" >&2
	exit 1
fi
if ((EUID)); then
	echo "deps: missing ${missing[*]}; as root run: apt-get install ${missing[*]}" >&2
	exit 1
fi

echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt_options=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
if ! { apt-get "${apt_options[@]}" update && apt-get "${apt_options[@]}" install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	cat "$log" >&2
	echo "deps: apt-get could not install ${missing[*]}" >&2
	exit 1
fi
