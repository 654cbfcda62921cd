"""Run llama.cpp's conversion script with the pre-tokenizer of a vocabulary that it does not know.

A program for the script's own Python, which has nothing of impruver: PRE SCRIPT ARGUMENT…
"""

import importlib
import sys
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
    module = importlib.import_module(script.stem)
    try:
        from conversion.base import TextModel
    except ImportError:  # before llama.cpp had a package of its models
        TextModel = getattr(module, "TextModel", None) or module.Model
    set_fallback(TextModel, pre)
    module.main()


if __name__ == "__main__":
    main()
