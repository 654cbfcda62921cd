"""Run llama.cpp's conversion script with the pre-tokenizer of a vocabulary that it does not know.

A program for the script's own Python, which has nothing of impruver: PRE SCRIPT ARGUMENT…
"""

import importlib
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def set_fallback(model_class: Any, pre: str) -> None:
    """Have a vocabulary that the script does not recognize take this pre-tokenizer instead of an error."""
    recognize = model_class.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return recognize(self, tokenizer)
        except NotImplementedError:
            return pre

    model_class.get_vocab_base_pre = get_vocab_base_pre


def main() -> None:
    """Run the script as Python would, but for its fallback."""
    pre, script = sys.argv[1], Path(sys.argv[2])
    sys.argv = sys.argv[2:]
    sys.path[0] = str(script.parent)  # where the script imports from
    if "get_vocab_base_pre" in script.read_text(encoding="utf-8"):  # before llama.cpp had a package of its models
        module = importlib.import_module(script.stem)
        set_fallback(getattr(module, "TextModel", None) or module.Model, pre)
        module.main()
        return
    with suppress(ImportError):
        set_fallback(importlib.import_module("conversion.base").TextModel, pre)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
