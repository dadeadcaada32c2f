"""Tells whether the generated Python is what ``make generate`` would write now."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from difflib import unified_diff
from pathlib import Path

_REPOSITORY = Path(__file__).parents[1]
_GENERATED = Path("clients", "python", "duostore", "v1")
# Written by hand, and never by a plugin.
_BY_HAND = frozenset({"__init__.py"})


def main() -> int:
    """Print how the two differ; return 1 if they do."""
    with tempfile.TemporaryDirectory(prefix="duostore-") as folder:
        subprocess.run(
            [Path(sys.executable).with_name("buf"), "generate", "--output", folder],
            cwd=_REPOSITORY,
            check=True,
        )
        fresh = _texts(Path(folder, _GENERATED))
    kept = _texts(_REPOSITORY / _GENERATED)
    for name in sorted(fresh.keys() | kept.keys()):
        sys.stdout.writelines(
            unified_diff(
                kept.get(name, []),
                fresh.get(name, []),
                f"{_GENERATED / name}",
                f"{_GENERATED / name} (fresh)",
            )
        )
    if fresh != kept:
        print("the generated code is not fresh: run `make generate`", file=sys.stderr)
    return int(fresh != kept)


def _texts(folder: Path) -> dict[str, list[str]]:
    return {
        path.name: path.read_text().splitlines(keepends=True)
        for path in folder.glob("*.py*")
        if path.is_file() and path.name not in _BY_HAND
    }


if __name__ == "__main__":
    sys.exit(main())
