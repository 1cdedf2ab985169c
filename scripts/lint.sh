#!/usr/bin/env bash
# All checks that run no test. Each one runs even when an earlier one failed, so that one run shows everything.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
export PATH=$PWD/$bin:$PATH             # cython-lint looks for pycodestyle there
failed=()

check() {
    local name=$1
    shift
    local output
    if output=$("$@" 2>&1); then
        printf 'lint: %-12s ok\n' "$name"
    else
        printf 'lint: %-12s FAILED\n%s\n' "$name" "$output"
        failed+=("$name")
    fi
}

# pyright would otherwise tell of newer versions; ours is pinned.
export PYRIGHT_PYTHON_IGNORE_WARNINGS=1

check ruff "$bin/ruff" check .
check format "$bin/ruff" format --check .
check cython-lint "$bin/cython-lint" --max-line-length 120 src
check mypy "$bin/mypy"
check pyright "$bin/pyright"
check imports "$bin/python" scripts/lint_imports.py
check repository "$bin/python" scripts/check_repo.py

if ((${#failed[@]})); then
    echo "lint: failed: ${failed[*]}"
    exit 1
fi
