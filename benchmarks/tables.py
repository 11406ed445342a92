"""Writes the tables of the documentation from the figures in ``benchmarks/results``.

    python -m benchmarks.tables [--check]

A page marks where a table stands; what is between the marks is made from ``results/NAME.json``:

    <!-- table: NAME -->
    <!-- end -->
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from benchmarks import figures

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every page that may show figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
            ROOT / "artifacts" / "shapes-flash" / "README.md"]  # fmt: skip


def table(name: str) -> str:
    """A table and the line below it that says where its figures come from."""
    found = figures.read(RESULTS / f"{name}.json")
    return f"{figures.markdown(found.columns, found.rows)}\n\n{figures.provenance(found)}\n"


def rewritten(text: str) -> str:
    """A page with its tables made anew; raises FileNotFoundError for one without figures."""
    return BLOCK.sub(lambda found: found[1] + table(found["name"]) + found[3], text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables of the documentation, from figures.")
    parser.add_argument("--check", action="store_true", help="only say which pages would change")
    arguments = parser.parse_args()
    stale = [p for p in pages() if rewritten(p.read_text("utf-8")) != p.read_text("utf-8")]
    for page in stale:
        print(page.relative_to(ROOT))
        if not arguments.check:
            page.write_text(rewritten(page.read_text("utf-8")), "utf-8")
    sys.exit(1 if stale and arguments.check else 0)


if __name__ == "__main__":
    main()
