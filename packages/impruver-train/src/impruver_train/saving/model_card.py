"""The model card of a model that is uploaded: what it is of, in the hub's own metadata and for people."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from typing import Any, NamedTuple

METHODS = {"load_in_4bit": "4-bit LoRA (QLoRA)", "load_in_8bit": "8-bit LoRA"}


class BaseName(NamedTuple):
    """What a base is called in public: its id on the hub, or the bare name of its folder."""

    name: str
    is_local: bool


def build_model_card(
    manifest: dict[str, Any], base: BaseName | None, adapter: bool, repo_id: str, metrics: list[dict[str, Any]]
) -> str:
    """README.md of a finished run: front matter, what was trained on what and how it went, how to use it.

    `manifest`: the run's, without paths of this machine. `metrics`: the rows of metrics.jsonl.
    """
    recipe = manifest.get("recipe") or {}
    title = repo_id.rpartition("/")[2]
    sections = [
        _build_front_matter(base, adapter),
        f"# {title}\n\n{_describe_model(recipe, base, adapter)}",
        f"## Training\n\n{_build_table(_list_facts(manifest, recipe, adapter, metrics))}",
        f"## Use\n\n{_describe_use(repo_id, title, base if adapter else None)}",
    ]
    return "\n\n".join(sections) + "\n"


def make_base_name(name: str | None) -> BaseName | None:
    """The base by what is written in output_dir, where a local one is an absolute path; None from scratch."""
    if not name:
        return None
    return BaseName(PurePath(name).name, True) if PurePath(name).is_absolute() else BaseName(name, False)


def _build_front_matter(base: BaseName | None, adapter: bool) -> str:
    method = ["lora"] if adapter else []
    plain = base is not None and re.fullmatch(r"[A-Za-z][\w.-]*(/[A-Za-z][\w.-]*)?", base.name)
    name = base.name if plain else json.dumps(base.name if base else "", ensure_ascii=False)
    lines = [f"base_model: {name}"] if base else []
    lines += [f"library_name: {'peft' if adapter else 'transformers'}", "pipeline_tag: text-generation", "tags:"]
    lines += [f"- {tag}" for tag in ("impruver", *method)]
    return "\n".join(["---", *lines, "---"])


def _describe_model(recipe: dict[str, Any], base: BaseName | None, adapter: bool) -> str:
    made = "with Impruver"
    if base is None:
        kind = (recipe.get("model") or {}).get("config_class") or "a language model"
        return f"A model of `{str(kind).rpartition('.')[2]}`, trained from scratch {made}."
    return f"{'A LoRA adapter for' if adapter else 'A fine-tuned'} `{base.name}`, trained {made}."


def _list_facts(
    manifest: dict[str, Any], recipe: dict[str, Any], adapter: bool, metrics: list[dict[str, Any]]
) -> list[tuple[str, Any]]:
    """(name, value) of what is known of the run; what is not known is left out."""
    model, counts = recipe.get("model") or {}, manifest.get("counts") or {}
    sets = [PurePath(str(each["name"])).name for each in recipe.get("datasets") or [] if (each or {}).get("name")]
    inputs = [entry for entry in manifest.get("inputs") or [] if entry.get("role") != "base" and "path" in entry]
    method = next((text for key, text in METHODS.items() if model.get(key)), "LoRA") if adapter else "full"
    facts = [
        ("data sets", ", ".join(dict.fromkeys(sets))),
        ("files", ", ".join(f"{PurePath(entry['path']).name} ({entry.get('rows', 0):,} rows)" for entry in inputs)),
        ("rows", counts.get("rows")),
        ("target tokens", counts.get("learned_tokens")),
        ("steps", counts.get("steps")),
        ("method", method if model.get("name") else "from scratch"),
        ("parameters trained", counts.get("trained_parameters")),
        ("dtype", model.get("dtype")),
        *_list_losses(metrics),
        ("chat template", _describe_template(manifest)),
        ("trained with", f"{manifest.get('tool')} {manifest.get('version')}"),
    ]
    return [(name, value) for name, value in facts if value not in (None, "")]


def _list_losses(metrics: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    losses = [row["loss"] for row in metrics if row.get("loss") is not None]
    last = losses[-max(1, len(losses) // 10) :]
    facts = [("training loss, first step", losses[0]), ("training loss, mean of the last tenth", sum(last) / len(last))]
    evaluated = [row["eval_loss"] for row in metrics if row.get("eval_loss") is not None]
    return (facts if losses else []) + ([("validation loss, lowest", min(evaluated))] if evaluated else [])


def _describe_template(manifest: dict[str, Any]) -> str:
    fingerprint = (manifest.get("template") or {}).get("fingerprint")
    ends = " or ".join(f"`{json.dumps(end, ensure_ascii=False)[1:-1]}`" for end in manifest.get("end_of_turn") or [])
    name = f"the tokenizer's own (sha256 {fingerprint[:12]}…)" if fingerprint else "none"
    return f"{name}; an answer ends with {ends}" if ends and fingerprint else name


def _build_table(facts: list[tuple[str, Any]]) -> str:
    rows = [f"| {name} | {_format_cell(value)} |" for name, value in facts]
    return "\n".join(["| | |", "| --- | --- |", *rows, "", "`recipe.yaml` is the whole recipe, `report.html` the run."])


def _format_cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _describe_use(repo_id: str, title: str, base: BaseName | None) -> str:
    more = f" --set model.name=PATH/TO/{base.name}" if base and base.is_local else ""
    lines = [
        f"hf download {repo_id} --local-dir {title}",
        f"impruver-chat --output_dir {title}{more}",
        f"impruver-gguf --output_dir {title}{more}  # for llama.cpp and Ollama",
    ]
    return "\n".join(["```bash", "pip install impruver-chat impruver-gguf", *lines, "```"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; [] where it is not there or can't be read."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict)]
