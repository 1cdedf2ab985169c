#!/usr/bin/env bash
# Usage: scripts/free_threaded.sh [PYTEST ARGUMENTS]   runs the tests on a free-threaded Python, with the GIL off.
#
# Which one: $FREE_THREADED_PYTHON, else python3.14t or python3.13t, whichever is found. Without one nothing is tested.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
build=$root/build/free-threaded

for name in "${FREE_THREADED_PYTHON:-}" python3.14t python3.13t; do
    [[ -n $name ]] && found=$(command -v "$name") && break
done
if [[ -z ${found:-} ]]; then
    echo "free-threaded: skipped: no python3.14t or python3.13t here, and FREE_THREADED_PYTHON names none"
    exit 0
fi
"$found" -c 'import sysconfig, sys; sys.exit(not sysconfig.get_config_var("Py_GIL_DISABLED"))' ||
    { echo "free-threaded: $found is not built without the GIL" >&2; exit 1; }

python=$build/bin/python
[[ -x $python ]] && "$python" -c '' 2>/dev/null || "$found" -m venv --clear "$build"
"$python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps .
"$python" -m pip install --quiet --disable-pip-version-check ".[xdp,cli]" \
    --constraint constraints.txt pytest pytest-timeout hypothesis scapy
echo "free-threaded: testing with $("$python" -VV)"
(($#)) || set -- tests/core tests/conformance tests/adversity tests/os tests/workers tests/xdp
"$python" -X gil=0 -m pytest "$@"
