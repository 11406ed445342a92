"""The command of ``benchmarks.avx2``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.avx2 import hindrance, run


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a command as on a processor with AVX2.")
    parser.add_argument("folder", type=Path, help="of the changed copies of runtimes")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if reason := hindrance():
        sys.exit(reason)
    sys.exit(run(arguments.folder, arguments.command))


if __name__ == "__main__":
    main()
