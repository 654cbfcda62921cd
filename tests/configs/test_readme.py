"""The recipe table in configs/README.md names every recipe and nothing else."""

import re
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_readme_names_every_recipe():
    files = CONFIGS.joinpath("impruver_configs").rglob("*.yaml")
    recipes = {f"{path.parent.name}/{path.stem}" for path in files}
    named = re.findall(r"^\| `([^`]+)` \|", CONFIGS.joinpath("README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(recipes) >= 26
    assert sorted(named) == sorted(recipes)
