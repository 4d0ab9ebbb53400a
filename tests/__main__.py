"""Every check and test, up to the first that fails: ``python -m tests [PYTEST ARGUMENT]...``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [n for n in ("taskcast_trio", "tests", "examples", "benchmarks") if (ROOT / n).is_dir()]


def main(pytest_arguments: list[str]) -> int:
    """Run the steps from the project's root; return the exit code of the first that fails, or 0."""
    steps = [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["flake8", *SOURCES],
        ["mypy"],
        ["pytest", *pytest_arguments],
    ]
    for step in steps:
        print("==>", *step, flush=True)
        code = subprocess.run([sys.executable, "-m", *step], cwd=ROOT, check=False).returncode
        if code:
            print(f"==> failed: {step[0]} (exit code {code})", flush=True)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
