"""The recipe table in configs/README.md names every recipe and nothing else, with what `impruver ls` says of it."""

import re

from impruver_core.commands.ls import read_headline
from support import ROOT

CONFIGS = ROOT / "configs"


def test_readme_names_every_recipe():
    files = CONFIGS.joinpath("impruver_configs").rglob("*.yaml")
    recipes = {f"{path.parent.name}/{path.stem}": read_headline(path) for path in files}
    text = CONFIGS.joinpath("README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([^`]+)` \| (.+) \|$", text, re.MULTILINE)
    assert len(recipes) >= 26
    assert sorted((name, f"{makes}.") for name, makes in named) == sorted(recipes.items())
