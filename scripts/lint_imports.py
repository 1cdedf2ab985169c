"""import-linter over src/, for `make lint`.

The editable install's import hook shows it an assembled package without directories; the sources are what we check.
"""

import sys

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

sys.meta_path = [finder for finder in sys.meta_path if type(finder).__name__ != "MesonpyMetaFinder"]
sys.path.insert(0, "src")
sys.exit(lint_imports(no_cache=True) != EXIT_STATUS_SUCCESS)
