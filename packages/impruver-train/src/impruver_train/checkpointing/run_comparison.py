"""What sets one run apart from another: the recipe's parts that matter to the model, the hashes of what goes in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

MATTERS = ("tokenizer", "model", "lora", "trainer", "ddp")  # sections whose change makes another model

# Arguments of `trainer` that change nothing of what is trained; those of saving do where the best one is looked for.
REPORTING = ("report_to", "run_name", "project", "logging_steps", "logging_strategy", "logging_first_step")
SAVING = ("save_steps", "save_strategy", "save_total_limit", "save_only_model")


def changes(known: dict[str, Any], recipe: dict[str, Any], digests: dict[str, str]) -> list[str]:
    """What sets the run that a manifest, or a checkpoint's marker, tells of apart from `recipe` on these inputs."""
    now, then = dict(flat(recipe)), dict(flat(known.get("recipe") or {}))
    changed = [
        f"{key}: {then.get(key, 'not set')} then, {now.get(key, 'not set')} now"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key)
    ]
    before = {part["role"]: part["sha256"] for part in known.get("inputs") or [] if "role" in part}
    names = sorted(digests.keys() | before.keys())
    return changed + [f"{name}: another content" for name in names if digests.get(name) != before.get(name)]


def touched(output_dir: Path, manifest: dict[str, Any]) -> list[str]:
    """Outputs that a manifest describes and that are gone or have another size."""
    paths = [(output_dir / Path(part["path"]).name, part["bytes"]) for part in manifest.get("outputs") or []]
    there = [(path, path.stat().st_size if path.exists() else -1, size) for path, size in paths]
    return [f"{path.name}: gone or changed since" for path, size, wanted in there if size != wanted]


def flat(recipe: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Key paths and values of the sections that matter to the model, without where it is reported to and kept."""
    left_out = ("resume_from_checkpoint", *REPORTING) if before == "trainer." else ()
    if left_out and not recipe.get("load_best_model_at_end"):
        left_out += SAVING
    for name, value in recipe.items():
        if (not before and name not in MATTERS) or name in left_out:
            continue
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        else:
            yield before + name, value
