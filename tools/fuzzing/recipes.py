"""Recipes: any value for any key, YAML that multiplies, nests or is none; and flags."""

import copy
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from fuzzing.example import Content, Example
from fuzzing.mutations import (
    NUMBERS,
    RAW,
    TEXTS,
    dump_json,
    mutate_bytes,
    mutate_text,
    mutate_value,
    numbers,
    texts,
    values,
)
from fuzzing.samples import ASK, CHAT, COMPOSE, FIXED, GGUF, RECIPE, ROOT
from hypothesis import strategies as st
from impruver_chat.sections import SECTIONS as CHAT_SECTIONS
from impruver_compose.sections import SECTIONS as COMPOSE_SECTIONS
from impruver_core.recipe.schema import ListOf, Scalar, get_fields
from impruver_core.recipe.sections import OWNERS, SECTIONS
from impruver_gguf.sections import SECTIONS as GGUF_SECTIONS

STEPS = list(zip("abcdefgh", "bcdefghi", strict=True))
TIMES = {name: ", ".join([f"*{name}"] * 9) for name, _ in STEPS}
BOMB = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *(f"{b}: &{b} [{TIMES[a]}]" for a, b in STEPS)])
MERGES = "\n".join(["a: &a {x: 1, y: 2}", *(f"{b}: &{b} {{<<: [{TIMES[a]}], k{b}: *{a}}}" for a, b in STEPS)])
ATTACKS = [  # lines of YAML
    *(BOMB, MERGES, "a: &a [*a]", "a: &a {b: *a}", "<<: &a {<<: *a}", "? [1, 2]\n: 3", "? {a: b}\n: 3"),
    *("? &a [*a]\n: 1", "!!python/object/apply:os.system [id]", "a: !!python/name:os.system", "a: !!binary x"),
    *("a: !!set {a, b}", "a: !x y", "a: !!float x", "a: !!int ''", "a: !!timestamp 2001-99-99", "a: !!null x"),
    *("a: !!omap [a: 1]", "a: !!bool maybe", "---\na: 1\n---\nb: 2", "--- |\n x", "%YAML 9.9\n---\na: 1"),
    *("%TAG ! tag:x,1:\n---\na: !b c", "...", "a: |9\n  x", "a: >-\n", "\ta: 1", "a: 'x", 'a: "\\x'),
    *('a: "\\ud800"', 'a: "\\0"', 'a: "\\x1b[31m"', 'a: "\\u202e"', "a: @b", "a: `b", "a: %b", "a: *b"),
    *("a" * 2000 + ": 1", "a: " + "[" * 5000, "a: " + "{a: " * 5000, "- " * 5000, "? " * 5000),
    *("a: " + "9" * 100_000, "a: 1e999", "a: 0x" + "f" * 39, "a: 0o777", "a: 1__0", "a: +.inf", "a: -.inf"),
    *("a: .nan", "seed: 1e3", "seed: 1_0", "seed: .nan", "null: 1", "true: 1", "1: 2", "1.5: 2", ".nan: 2", "~: 1"),
    *("'': 1", "[]: 1", "datasets: [[]]", "datasets: {}", "datasets: x", "datasets.0.name: x", "trainer.: 1"),
    *(".a: 1", "a..b: 1", "trainer: [1]", "model: x", "tokenizer: [a, b]", "lora: true"),
]
DRY = ("--config", "recipe.yaml", "--dry_run")
COMMANDS = [
    *[COMPOSE] * 2,
    *[("impruver-compose", *DRY)] * 3,
    *[("impruver-compose", "--config", "recipe.yaml", "--show", "2")] * 2,
    *[("impruver-train", *DRY, "--output_dir", "new")] * 4,
    ("impruver-train", *DRY),
    *[("impruver-gguf", *DRY)] * 2,
    *[("impruver-chat", *DRY)] * 2,
    ("impruver", "check", "--config", "recipe.yaml"),
    ("impruver", "check", "--config", "recipe.yaml", "--set=output_dir=new"),
    *[("impruver-chat", "--config", "recipe.yaml", "--output_dir", "model", "--overwrite", *ASK)] * 2,
    *[("impruver-gguf", "--config", "recipe.yaml", "--output_dir", "model", "--overwrite", "--verify", "false")] * 2,
]
FOREIGN = [GGUF, CHAT, (*CHAT, "--dry_run"), (*GGUF, "--dry_run")]
COPIES = {name: name for name in ("data.jsonl", "questions.jsonl", "tokenizer", "out", "model")}
# Names that a dotted path may lead to, and that do nothing; a recipe that is named with --config may run any of them.
DOTTED = [
    *("transformers.AutoModel", "json.loads", "os.system", "builtins.eval", "mine.convert", "numpy.zeros", "a..b"),
    ".",
]


def build_recipes(samples: Path) -> st.SearchStrategy[Example]:
    """Recipes with a command that reads them, and no flag that lets it write where the recipe says."""
    keys = list_key_paths()
    recipe = st.one_of(write_mutated(keys), write_mutated(keys), write_attacks(), edit_installed())
    return st.one_of(make_own(recipe, keys), make_own(recipe, keys), make_foreign(recipe))


def list_key_paths() -> dict[str, st.SearchStrategy]:
    """All keys of a recipe, as --set names them, with what may stand there by its type, odd as it may be."""
    paths = dict.fromkeys([*OWNERS, *OPEN_KEYS], st.one_of(numbers, texts, st.sampled_from(DOTTED)))
    for name, spec in (SECTIONS | COMPOSE_SECTIONS | GGUF_SECTIONS | CHAT_SECTIONS).items():
        prefix = f"{name}.0" if isinstance(spec, ListOf) else name
        if isinstance(spec, Scalar):
            paths[name] = build_fitting(spec.type)
            continue
        section = spec.section if isinstance(spec, ListOf) else spec
        hints = typing.get_type_hints(section)
        for key, declared in get_fields(section).items():
            choices = declared.metadata.get("choices")
            paths[f"{prefix}.{key}"] = st.sampled_from(choices) if choices else build_fitting(hints[declared.name])
    return paths | dict.fromkeys(PATH_KEYS, st.one_of(st.sampled_from(PATHS), texts))


def build_fitting(hint: Any) -> st.SearchStrategy:
    """Values of a type, large, small and odd ones."""
    whole = st.one_of(st.sampled_from([number for number in NUMBERS if isinstance(number, int)]), st.integers(0, 300))
    strategies = {
        bool: st.booleans(),
        int: whole,
        float: st.one_of(numbers, st.sampled_from((0.1, 0.5, 0.999, 1e9))),
        str: st.one_of(texts, st.sampled_from(DOTTED)),
        list: st.lists(texts, max_size=3),
        dict: st.dictionaries(texts, st.one_of(texts, numbers), max_size=3),
    }
    arms = [hint] if typing.get_origin(hint) in strategies else typing.get_args(hint) or [hint]
    kinds = [typing.get_origin(arm) or arm for arm in arms]
    return st.one_of([strategies[kind] for kind in kinds if kind in strategies] or [values])


PATH_KEYS = (
    *("output_dir", "train_path", "val_path", "datasets.0.name", "tokenizer.name", "tokenizer.chat_template"),
    *("model.name", "trainer.resume_from_checkpoint"),
)
PATHS = [
    *("", " ", ".", "..", "/", "//", "~", "~nobody/x", "a/", "a/.", "a/..", "/dev/null", "/dev/full", "/dev/stdin"),
    *("-", "data.jsonl", "data.jsonl/x", "tokenizer", "out", "out/train.jsonl", "out/val.jsonl", "model"),
    *("model/config.json", "recipe.yaml", "mine.py", "x.gz", "x.txt", "x.arrow", "*", "**", "**/*", "[", "data*"),
    *("[!a]*", "a\0b", "a" * 300, "a" * 5000, "http://localhost:1/x", "file:///etc/passwd", "s3://a/b"),
    *("hf://a/b", "a/b", "a/b/c", "a--b", "a b", "\x1b[31m", "\u202e", "\udcff", "\n", "a\nb", "C:\\x", "%s"),
    *("{0}", "$HOME", "out/../out", "./././.", ".hidden"),
]
# Of sections that take any name.
LORA_KEYS = [
    *("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "modules_to_save", "bias", "task_type"),
    *("lora_dropout", "use_dora", "init_lora_weights", "layers_to_transform", "exclude_modules", "layers_pattern"),
]
TRAINER_KEYS = [
    *("class", "packing", "learning_rate", "num_train_epochs", "max_steps", "optim", "optim_args", "report_to", "seed"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "warmup_steps", "lr_scheduler_type", "save_steps"),
    *("lr_scheduler_kwargs", "eval_strategy", "eval_steps", "resume_from_checkpoint", "save_total_limit", "bf16"),
    *("logging_steps", "fsdp", "deepspeed", "dataloader_num_workers", "adam_beta1", "max_grad_norm", "torch_compile"),
    *("neftune_noise_alpha", "metric_for_best_model", "load_best_model_at_end", "use_cache", "label_names", "no.such"),
]
CONFIG_KEYS = [
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act"),
    *("rope_parameters", "max_position_embeddings", "intermediate_size", "head_dim", "dtype", "attn_implementation"),
]
OPEN_KEYS = [
    *(f"lora.{key}" for key in LORA_KEYS),
    *(f"trainer.{key}" for key in TRAINER_KEYS),
    *(f"model.config.{key}" for key in CONFIG_KEYS),
    *(f"tokenizer.special_tokens.{key}" for key in ("eos_token", "pad_token_id", "additional_special_tokens")),
    *("tokenizer.chat_template_kwargs.a", "datasets.0.mapping.messages", "gguf.parameters.stop", "gguf.limits.kl"),
    *("hub_token", "trainer.hub_token", "no.such.key", "ddp.find_unused_parameters", "ddp.ddp_timeout"),
]
odd = st.one_of(values, values, st.sampled_from(DOTTED))


@st.composite
def write_mutated(draw: st.DrawFn, keys: dict[str, st.SearchStrategy]) -> bytes:
    """A valid recipe with odd values for some keys, of their types or of any, as JSON or YAML."""
    recipe, names = copy.deepcopy(RECIPE), list(keys)
    if draw(st.integers(0, 3)) == 0:
        recipe = draw(mutate_value(recipe, 2, odd))
    for path in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)):
        recipe = set_key(recipe, path.split("."), draw(odd if draw(st.integers(0, 3)) == 0 else keys[path]))
    if draw(st.booleans()) and not any(name in repr(recipe) for name in RAW):
        text = yaml.safe_dump(recipe, allow_unicode=True, default_flow_style=draw(st.sampled_from((None, True, False))))
        return text.encode("utf-8", "surrogatepass")
    return dump_json(recipe, ensure_ascii=draw(st.booleans()))


def set_key(target: object, path: list[str], value: object) -> object:
    """The recipe with a value at a key path; what stands in its way gives way."""
    if not path:
        return value
    name, *rest = path
    if name == "0":
        first = target[0] if isinstance(target, list) and target else {}
        return [set_key(first, rest, value), *(target[1:] if isinstance(target, list) else [])]
    target = dict(target) if isinstance(target, dict) else {}
    return target | {name: set_key(target.get(name), rest, value)}


@st.composite
def write_attacks(draw: st.DrawFn) -> bytes:
    """A valid recipe among lines that are none, in some encoding, with some bytes changed."""
    parts = draw(st.lists(st.sampled_from(ATTACKS), min_size=1, max_size=3))
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), yaml.safe_dump(RECIPE))
    encodings = st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"))
    content = "\n".join(parts).encode(draw(encodings))
    return draw(mutate_bytes(content)) if draw(st.booleans()) else content


@st.composite
def edit_installed(draw: st.DrawFn) -> bytes:
    """A recipe of the repository with words moved, left out, or others put in."""
    path = draw(st.sampled_from(sorted((ROOT / "configs/impruver_configs").rglob("*.yaml"))))
    return draw(mutate_text(path.read_text(encoding="utf-8"), [*TEXTS[:-9], *ATTACKS])).encode("utf-8", "surrogatepass")


@st.composite
def make_own(draw: st.DrawFn, recipe: st.SearchStrategy[bytes], keys: Iterable[str]) -> Example:
    """A recipe that the user names."""
    command, files = draw(st.sampled_from(COMMANDS)), {"recipe.yaml": draw(recipe)}
    flags = [f"--set={text}" for text in draw(st.lists(write_override(list(keys)), max_size=2))]
    if flags and draw(st.booleans()):
        files["recipe.yaml"] = dump_json(RECIPE)
    if command == COMPOSE:
        flags += FIXED
    return Example("recipes", "the user's recipe", (*command, *flags), COPIES, with_module(files))


@st.composite
def write_override(draw: st.DrawFn, keys: list[str]) -> str:
    """What --set gets: no null bytes, which no command line can hold."""
    key = draw(st.one_of(st.sampled_from(keys), st.sampled_from(keys), texts, st.just("datasets.1.name")))
    written = odd.map(lambda value: dump_json(value).decode("utf-8", "surrogateescape"))
    text = draw(st.one_of(texts, st.sampled_from(ATTACKS[:40]), written))
    return f"{key}={text}"[:100_000].replace("\0", "").encode("utf-8", "replace").decode()


@st.composite
def make_foreign(draw: st.DrawFn, recipe: st.SearchStrategy[bytes]) -> Example:
    """A recipe in a model's folder, which the user did not name."""
    files = with_module({"model/recipe.yaml": draw(recipe)})
    return Example("recipes", "a recipe in a model's folder", draw(st.sampled_from(FOREIGN)), COPIES, files)


def with_module(files: dict[str, Content]) -> dict[str, Content]:
    """The files with a module that a dotted path finds beside the recipe."""
    return files | {"mine.py": b"def convert(row, mapping):\n    return row['messages']\n"}
