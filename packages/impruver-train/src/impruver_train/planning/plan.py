"""All that is known before weights are loaded: files, tokenizer, precision, training arguments, size, rows."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.modeling.devices import choose_device
from impruver_core.recipe.loading import Recipe
from impruver_core.recipe.paths import find_recipes_root

from impruver_train.config import training_arguments as arguments
from impruver_train.config.precision import Precision, choose_precision
from impruver_train.data import token_dataset as data
from impruver_train.data import validation
from impruver_train.data.packing import Layout, lay_out
from impruver_train.modeling import building as build
from impruver_train.modeling import checks
from impruver_train.modeling.chunked_loss import LogitsPath, may_chunk_head, may_use_sparse_logits
from impruver_train.modeling.logits_path import describe_logits_path
from impruver_train.modeling.model_size import Size


@dataclass(frozen=True)
class Plan:
    """What is trained and how. `vocabulary`: embedding rows once `new_ids`, the recipe's new tokens, have theirs."""

    tokenizer: Any
    config: Any
    vocabulary: int
    new_ids: list[int]
    precision: Precision
    arguments: Any
    size: Size
    packing: bool
    logits_note: str


def recipe_name(file: Path) -> str:
    """`family/name` of an installed recipe, the file's name of another."""
    path = file.absolute()
    return (
        str(path.relative_to(find_recipes_root()).with_suffix("")) if find_recipes_root() in path.parents else path.stem
    )


def find_inputs(train_path: str | None, val_path: str | None, recipe_path: Path, dry_run: bool) -> dict[str, Path]:
    """The token files as {"train": …, "val": …}; in a dry run those that compose has yet to make may be missing."""
    if not train_path:
        raise ImpruverError(f"{recipe_path}: train_path is not set")
    inputs = {"train": Path(train_path).expanduser()}
    if val_path:
        inputs["val"] = Path(val_path).expanduser()
    for name, path in list(inputs.items()):
        if path.is_file():
            continue
        if path.is_dir():
            raise ImpruverError(f"{name}_path: {path} is a folder, not a JSONL file")
        if path.exists() or path.is_symlink():
            raise ImpruverError(f"{name}_path: {path} is no regular file" + " (a broken link)" * (not path.exists()))
        absent = f"{name}_path: {path} is not there; impruver-compose --config {recipe_path} makes it"
        if not dry_run:
            raise ImpruverError(absent)
        log_info(f"note: {absent}")
        del inputs[name]
    return inputs


def plan_model(recipe: Recipe, output_dir: Path) -> Plan:
    """Tokenizer, configuration, precision, training arguments and size; tells its notes."""
    from impruver_core.tokenizer import load_tokenizer

    model, lora, given, recipe_dir = recipe.model, recipe.lora, recipe.trainer | recipe.ddp, recipe.base_dir
    tokenizer = load_tokenizer(recipe.tokenizer, model.name, recipe_dir=recipe_dir, warn=warn)
    config, vocabulary = build.model_config(model, tokenizer, recipe_dir)
    new_ids = build.new_token_ids(recipe.tokenizer, tokenizer, model, config, recipe_dir)
    values, notes = arguments.argument_values(given)
    device = "cpu" if values.get("use_cpu") else choose_device()
    precision, warnings = choose_precision(model.dtype, values, device)
    if device == "cpu" and model.attn_implementation == "flex_attention":
        raise ImpruverError("model.attn_implementation: flex_attention can't be trained with on a CPU; set sdpa")
    values |= {
        "output_dir": str(output_dir),
        "use_cpu": device == "cpu",
        "bf16": precision.autocast == "bf16",
        "fp16": precision.autocast == "fp16",
    }
    packing = bool(given.get("packing"))
    # Before DeepSpeed hears of the run: ZeRO 3 would spread what is measured on the meta device.
    size = build.measure(model, config, vocabulary, lora, new_ids, recipe_dir, packing)
    training = arguments.build_arguments({"run_name": recipe_name(Path(recipe.path))} | values)
    own_trainer = not arguments.trainer_class(given.get("class"), recipe_dir).__module__.startswith("transformers.")
    if not own_trainer:
        arguments.check_metric(training)
    for text in [*notes, *build.config_notes(model, config)]:
        log_info(f"note: {text}")
    for text in [*warnings, *checks.merge_warnings(lora)]:
        warn(text)
    allowed = may_use_sparse_logits(training, own_trainer)
    limit = LogitsPath.CHUNKED if may_chunk_head(training, lora is None) else LogitsPath.TARGETS
    size = replace(size, logits=min(size.logits, limit) if allowed else LogitsPath.ALL)
    logits_note = describe_logits_path(size.logits, size.logits_tested, allowed)
    return Plan(tokenizer, config, vocabulary, new_ids, precision, training, size, packing, logits_note)


def read_rows(
    recipe: Recipe, inputs: dict[str, Path], digests: dict[str, str], plan: Plan, map_rows: bool
) -> tuple[dict, dict, Layout | None]:
    """Facts of each file, if `map_rows` its rows, and how training's become batches or packs.

    Makes every check of rows that the model and tokenizer allow.
    """
    positions = getattr(plan.config.get_text_config(), "max_position_embeddings", None)
    facts, rows, layout = {}, {}, None
    for name, path in inputs.items():
        if map_rows:
            facts[name], rows[name] = data.prepare(path, digests[name])
        else:
            facts[name], lengths = data.read_facts(path, digests[name])
        if name == "train" or facts[name].rows:
            for text in validation.check_rows(facts[name], path, plan.vocabulary, positions):
                log_info(f"note: {text}")
        if name == "train":
            lengths = data.row_lengths(rows[name]) if map_rows else lengths
            layout = pack_rows(lengths, facts[name], path, plan, recipe.tokenizer.max_tokens_count)
            grouped = plan.arguments.train_sampling_strategy == "group_by_length"
            rows = {name: layout.over(part, grouped) for name, part in rows.items()}
    to_come = bool(recipe.val_path) and "val" not in inputs  # in a dry run before compose
    if plan.arguments.eval_strategy != "no" and not to_come and not ("val" in facts and facts["val"].rows):
        raise ImpruverError(
            f"trainer.eval_strategy: {plan.arguments.eval_strategy.value}, and there are no rows to evaluate on; set "
            "val_path to some, or trainer.eval_strategy: no (with trainer.load_best_model_at_end: false)"
        )
    return facts, rows, layout


def pack_rows(lengths: Any, facts: data.Facts, path: Path, plan: Plan, room: int | None) -> Layout:
    """How training's rows become batches; ImpruverError for rows that can't be packed."""
    if plan.packing and facts.masked_line:
        raise ImpruverError(
            f"{path}, line {facts.masked_line}: its attention_mask hides tokens, and packed rows have none; leave such "
            "tokens out of the rows, or set trainer.packing: false"
        )
    if plan.arguments.dataloader_drop_last and len(lengths) < plan.arguments.train_batch_size:
        raise ImpruverError(
            f"trainer.dataloader_drop_last: {len(lengths)} rows are less than a batch of "
            f"{plan.arguments.train_batch_size}, so that none is left; set it to false, or a smaller batch"
        )
    seed = plan.arguments.seed if plan.arguments.data_seed is None else plan.arguments.data_seed
    return lay_out(lengths, plan.packing, room, seed)
