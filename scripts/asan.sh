#!/usr/bin/env bash
# Usage: scripts/asan.sh [PYTEST ARGUMENTS]   runs the conformance tests on a debug build with AddressSanitizer.
#
# The build has an environment of its own: a venv that reads the packages of .venv through a .pth line. Python runs no
# .pth files of a directory that came in by a .pth line, so the editable package of .venv stays out, in this process and
# in every child that a test starts with sys.executable.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
build=$root/build/asan
venv=$build/venv
python=$venv/bin/python

[[ -x $python ]] && "$python" -c '' 2>/dev/null || "$root/.venv/bin/python" -m venv --clear --without-pip "$venv"
purelib() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
site=$(purelib "$python")
purelib "$root/.venv/bin/python" >"$site/tools.pth"

export PATH=$root/.venv/bin:$PATH        # meson, ninja and cython of .venv
options=(
    --buildtype=debug -Db_sanitize=address -Db_lundef=false   # Python itself has the sanitizer's symbols at run time only
    "-Dpython.purelibdir=$site" "-Dpython.platlibdir=$site"
)
if [[ -e $build/meson/build.ninja ]]; then
    meson configure "$build/meson" "${options[@]}" >/dev/null
else
    mkdir -p "$build"
    meson setup "$build/meson" "${options[@]}" >"$build/setup.log" || { cat "$build/setup.log" >&2; exit 1; }
fi
rm -rf "$site/fast_socket"               # a file that is gone from the sources must be gone here
meson compile -C "$build/meson" >"$build/compile.log" || { cat "$build/compile.log" >&2; exit 1; }
meson install -C "$build/meson" --no-rebuild --quiet

libasan=$(gcc -print-file-name=libasan.so)
[[ $libasan == /* ]] || { echo "asan: gcc has no libasan.so" >&2; exit 1; }
export LD_PRELOAD=$libasan
# The interpreter keeps memory until the end of the process by design: leaks are not what we look for here.
# PYTHONMALLOC=malloc puts each Python object in an allocation of its own, where the sanitizer sees its borders.
# pytest captures what a test writes, the sanitizer's report too: it goes to a file of its own.
report=$build/report
rm -f "$report".*
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:strict_string_checks=1:log_path=$report PYTHONMALLOC=malloc

"$python" - "$site" <<'END'
import sys, pathlib, fast_socket, fast_socket.core.memory as extension
for module in fast_socket, extension:
    assert pathlib.Path(module.__file__).is_relative_to(sys.argv[1]), f"{module.__file__} is not the sanitized build"
assert b"__asan_" in pathlib.Path(extension.__file__).read_bytes(), "the build has no sanitizer in it"
END
echo "asan: testing the build in ${site#"$root/"}"
(($#)) || set -- tests/conformance
status=0
"$python" -m pytest -o timeout=600 "$@" || status=$?
# A child that a test started may have died of it without the test's notice.
for file in "$report".*; do
    [[ -e $file ]] || continue
    cat "$file" >&2
    status=1
done
exit "$status"
