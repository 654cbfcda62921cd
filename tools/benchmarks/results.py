"""What a benchmark measured, for tools/bench.py: a line of JSON each, in the file that IMPRUVER_FIGURES names."""

import json
import os


def record(name: str, value: float) -> None:
    """Notes one figure; does nothing where nobody asked for it."""
    path = os.environ.get("IMPRUVER_FIGURES")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "value": round(float(value), 6)}) + "\n")
