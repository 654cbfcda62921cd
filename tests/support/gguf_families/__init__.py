"""Families of models by groups: what the modules beside this one name, put together.

Each may have these:

- FAMILIES: name → (family as transformers' classes begin, tokenizer, configuration, functions that change the folder),
  or a function that fills a folder, given the tokenizers by name
- OLD_NAMES: name → (a name of FAMILIES, config.json's keys as transformers 4 or the hub wrote them; None removes)
- FURTHER_OUTTYPES: (name, outtype) to be compared with llama.cpp's script beside f16
- SCRIPT_FLAGS: name → further flags of llama.cpp's script
- LEVELS: name → the level that llama.cpp loads in a test, where that is not q8_0
- LOGITS: names whose logits in llama.cpp are compared with transformers'
"""

from importlib import import_module
from pkgutil import iter_modules

_MODULES = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
FAMILIES, OLD_NAMES, SCRIPT_FLAGS, LEVELS = (
    {name: row for module in _MODULES for name, row in getattr(module, table, {}).items()}
    for table in ("FAMILIES", "OLD_NAMES", "SCRIPT_FLAGS", "LEVELS")
)
FURTHER_OUTTYPES, LOGITS = (
    [row for module in _MODULES for row in getattr(module, table, ())] for table in ("FURTHER_OUTTYPES", "LOGITS")
)
