"""Let things go wrong with each tool: `uv run python tools/faults.py`, all of the table in tests/faults.

Prints a line for each cell that does not pass, and a table of all; the exit code is 1 where there is any.
"""

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1] / "tests")  # in place of this folder, whose faults.py is another

from faults.table import FAULTS, judge  # noqa: E402
from faults.workspace import TOOLS, Project  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    arguments = parser.parse_args()
    cells = [(fault, tool) for fault in FAULTS if arguments.only in fault for tool in arguments.tools]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults.") as root:
        project = Project(Path(root) / "project")
        project.build()

        def run(number: int) -> list[str]:
            folder = Path(root) / f"cell-{number}"
            folder.mkdir()
            try:
                return judge(*cells[number], project, folder / "workspace")
            finally:
                shutil.rmtree(folder)

        results = {}
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for cell, wrong in zip(cells, pool.map(run, range(len(cells))), strict=True):
                results[cell] = wrong
                print(f"{len(results)}/{len(cells)} {cell[1]}, {cell[0]}", file=sys.stderr, flush=True)
                for line in wrong:
                    print(f"FAILED {cell[1]}, {cell[0]}: {line}", flush=True)
    print_table(results, arguments.tools)
    failed = sum(map(bool, results.values()))
    print(f"{len(cells) - failed} of {len(cells)} cells pass, in {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


def print_table(results: dict[tuple[str, str], list[str]], tools: list[str]) -> None:
    faults = list(dict.fromkeys(fault for fault, _ in results))
    width = max(map(len, faults))
    print(" ".join([" " * width, *tools]))
    for fault in faults:
        marks = ["FAIL" if results[fault, tool] else "ok" for tool in tools]
        print(" ".join([fault.ljust(width), *(mark.ljust(len(tool)) for mark, tool in zip(marks, tools, strict=True))]))


if __name__ == "__main__":
    raise SystemExit(main())
