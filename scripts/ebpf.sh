#!/usr/bin/env bash
# Usage: scripts/ebpf.sh [--check]   compile the XDP program to the objects that are committed, or compare with them.
# The same compiler makes the same bytes anywhere. Another version may not; then --check only sees that it compiles.
set -euo pipefail
cd "$(dirname "$0")/../src/fast_socket/xdp/ebpf"
version=14                              # Debian 12's clang made the committed objects

check=
case ${1:-} in
    "") ;;
    --check) check=yes ;;
    *) echo "usage: scripts/ebpf.sh [--check]" >&2; exit 2 ;;
esac

# clang-14 where the plain name is another version.
clang=clang strip=llvm-strip
if command -v "clang-$version" >/dev/null && command -v "llvm-strip-$version" >/dev/null; then
    clang=clang-$version strip=llvm-strip-$version
fi
major=$("$clang" -dumpversion)
major=${major%%.*}
if [[ -z $check && $major != "$version" ]]; then
    echo "ebpf: clang $version makes the committed objects, and this is $major: with it, change the version in $0" >&2
    exit 1
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# linux/bpf.h asks for the architecture's types, which clang does not look for when it compiles for BPF.
include=/usr/include/$(uname -m)-linux-gnu

compile() {
    local object=$1
    shift
    "$clang" -target bpfel -mcpu=v3 -O2 -g -fdebug-compilation-dir=. -isystem "$include" \
        -Wall -Wextra -Werror -Wno-unused-parameter "$@" -c redirect.bpf.c -o "$out/$object"
    "$strip" -g "$out/$object"          # DWARF goes, BTF stays
}

compile redirect.bpf.o
compile redirect_timestamps.bpf.o -DTIMESTAMPS

for object in redirect.bpf.o redirect_timestamps.bpf.o; do
    if [[ -z $check ]]; then
        cp "$out/$object" "$object"
    elif [[ $major == "$version" ]] && ! cmp -s "$out/$object" "$object"; then
        echo "ebpf: $object is not what redirect.bpf.c compiles to: run \`make ebpf\` and commit it" >&2
        exit 1
    fi
done
if [[ -z $check ]]; then echo "ebpf: compiled"
elif [[ $major == "$version" ]]; then echo "ebpf: the committed objects are up to date"
else echo "ebpf: compiles with clang $major; only clang $version can compare"
fi
