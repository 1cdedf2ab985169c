#!/usr/bin/env bash
# Usage: scripts/setup.sh [TARGET]   what `make TARGET` needs: Debian packages, .venv, pinned tools, the package itself.
# Run again, it only compares: a fraction of a second when there is nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-setup}
venv=.venv

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- Debian packages -------------------------------------------------------------------------------------------------
# We look for the thing and not for the package, so that a system with other package names works as well.

missing=()      # must be there
wished=()       # better there; the target runs without
need() { [[ " ${missing[*]-} " == *" $1 "* ]] || missing+=("$1"); }
wish() { [[ " ${wished[*]-} " == *" $1 "* ]] || wished+=("$1"); }

install_missing() {
    local packages=("${missing[@]}" "${wished[@]}")
    ((${#packages[@]})) || return 0
    local command="apt-get install --no-install-recommends ${packages[*]}"
    if ((EUID == 0)) && have apt-get; then
        say "installing Debian packages: ${packages[*]}"
        # Lists may be absent or old on a fresh machine; another apt may hold the lock for a while.
        apt-get -qq -o DPkg::Lock::Timeout=300 update || say "apt-get update failed; going on with the lists there are"
        if ! DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
            install --no-install-recommends "${packages[@]}" >/dev/null; then
            ((${#missing[@]} == 0)) || die "could not install: ${missing[*]}"
            say "could not install ${wished[*]}; going on without"
        fi
    elif ((${#missing[@]})); then
        die "missing on this system. As root, run: $command"
    else
        say "optional and missing; what needs it is left out. To have it, as root: $command"
    fi
    missing=() wished=()
}

have gcc || have cc || need gcc
have gcc && { echo '#include <stdio.h>' | gcc -E -o /dev/null - 2>/dev/null || need libc6-dev; }
have gcc || need libc6-dev
have git || wish git                                    # the sdist and the checks of the tree ask it what belongs to it
case $target in
    bench)
        have iperf3 || wish iperf3
        have valgrind || wish valgrind
        # What AF_XDP is compared with: C loops over libxdp, testpmd (Debian has it in dpdk-dev), xdp-trafficgen.
        echo '#include <xdp/xsk.h>' | gcc -E -o /dev/null - 2>/dev/null || wish libxdp-dev
        have dpdk-testpmd || wish dpdk-dev
        have xdp-trafficgen || wish xdp-tools
        have trafgen || wish netsniff-ng
        have tcpreplay || wish tcpreplay ;;             # scapy's sendpfast
    browser) have chromium || have chromium-browser || have google-chrome || wish chromium ;;
    gates) have valgrind || need valgrind ;;
    ebpf)
        have clang || need clang
        have llvm-strip || need llvm
        [[ -e /usr/include/linux/bpf.h ]] || need linux-libc-dev ;;
    test) [[ -n $(compgen -G '/usr/lib*/libbpf.so.1'; compgen -G '/usr/lib/*/libbpf.so.1') ]] || wish libbpf1 ;;
    wheel) have git || need git ;;
    test-asan)
        # gcc answers with a bare name where it has no such file.
        have gcc && [[ $(gcc -print-file-name=libasan.so) == /* ]] || need gcc ;;
esac

# Compiling the XDP program wants nothing of Python, nor does a browser.
if [[ $target == ebpf || $target == browser ]]; then install_missing; exit 0; fi

# --- Python ----------------------------------------------------------------------------------------------------------

suitable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        suitable "$PYTHON" || die "PYTHON=$PYTHON is not a Python >= 3.11"
        echo "$PYTHON"
        return
    fi
    # Plain python3 first where it is as new as any: it is the one with headers and venv on most systems.
    local best= best_version=0 version
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        suitable "$candidate" || continue
        version=$("$candidate" -c 'import sys; print(sys.version_info[1])')
        ((version > best_version)) && best=$candidate best_version=$version
    done
    echo "$best"
}

# A directory without a working interpreter (a moved tree, a Python that is gone) is made anew.
if [[ -e $venv ]] && ! suitable "$venv/bin/python"; then
    say "$venv has no working Python >= 3.11; making it again"
    rm -rf "$venv"
fi
if [[ -e $venv ]]; then
    python=$venv/bin/python
else
    python=$(find_python)
    if [[ -z $python ]]; then
        need python3
        need python3-dev
        need python3-venv
        install_missing
        python=$(find_python)
        [[ -n $python ]] || die "needs Python >= 3.11 and found none; install one and name it: PYTHON=python3.12 make $target"
    fi
fi
# The venv's stamp below was written with both present; asking costs two interpreter starts.
if [[ ! -e $venv/fast-socket.stamp ]]; then
    short=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need "$short-venv"
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || need "$short-dev"
fi
install_missing

# --- .venv -----------------------------------------------------------------------------------------------------------
# The stamp holds a hash of all that decides what is in .venv. Sources are not in it: an editable install rebuilds
# changed extensions when it is imported. The path is, because a moved venv is a broken one.

stamp=$venv/fast-socket.stamp
find_meson_files() { find src -name meson.build -print0 | sort -z | xargs -0 cat; }
state() {
    { pwd; "$venv/bin/python" -VV; cat constraints.txt pyproject.toml meson.build scripts/setup.sh; find_meson_files; } |
        sha256sum
}

if [[ ! -e $venv ]]; then
    say "making $venv with $("$python" -V)"
    # A virtual environment cannot be made with another one's activation in force.
    env -u VIRTUAL_ENV "$python" -m venv "$venv"
fi

# Two makes at once (make -j, two terminals) must not install into one venv together.
if have flock; then exec 9>"$venv/fast-socket.lock"; flock 9; fi
now=$(state)
[[ -e $stamp && $(<"$stamp") == "$now" ]] && exit 0

rm -f "$stamp"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
export PATH=$PWD/$venv/bin:$PATH        # meson-python looks for meson and ninja there
# By its full path, or a rebuild on import would need .venv/bin in PATH. Meson asks once per build directory, so begin anew.
export CYTHON=$PWD/$venv/bin/cython
rm -rf build/cp3*
say "installing the pinned tools (constraints.txt)"
"$venv/bin/python" -m pip install -qq --requirement constraints.txt
say "building the package"
# Without isolation, because the editable install calls the same meson and ninja again on import.
"$venv/bin/python" -m pip install -qq --no-build-isolation --no-deps --editable .
"$venv/bin/python" -m pip check --quiet || "$venv/bin/python" -m pip check
echo "$now" >"$stamp"
say "done"
