"""All that is known before weights are loaded: inputs, tokenizer, precision, training arguments, size, rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.chat_template.selection import get_end_of_turn
from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.integrity import FileState
from impruver_core.io.model_files import get_context_length
from impruver_core.modeling.loading import choose_device
from impruver_core.recipe.paths import find_recipes_root

from impruver_train import distributed
from impruver_train.checkpointing.resume import ResumePoint
from impruver_train.config import training_arguments
from impruver_train.config.lora_fields import check_quantization
from impruver_train.config.precision import Precision, choose_precision
from impruver_train.data import token_dataset
from impruver_train.data.packing import PackingPlan, plan_packing
from impruver_train.data.token_dataset import TokenFileStats
from impruver_train.data.token_files import VAL, TokenFiles, check_data_manifest, format_line
from impruver_train.modeling import building, checks
from impruver_train.modeling.building import ModelSize
from impruver_train.modeling.chunked_loss import LogitsPath, limit_logits_path
from impruver_train.modeling.continued_adapter import ContinuedAdapter, check_agreement, list_token_ids
from impruver_train.optimization.optimizer_check import check_optimizer

if TYPE_CHECKING:
    from impruver_core.recipe.sections import ModelSection, TokenizerSection
    from numpy import ndarray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainingArguments


@dataclass(frozen=True)
class RunInputs:
    """What a run is of, and where it starts; `recipe` is the resolved one; `files`, `sizes`, `digests` are by role.

    `sizes`: bytes of the rows that the digests are of, unpacked, all parts together. `states`: what the system knew of
    each file before it was hashed. What is read of one later must be the same.
    """

    output_dir: Path
    recipe: dict[str, Any]
    files: dict[str, TokenFiles]
    sizes: dict[str, int]
    states: dict[Path, FileState]
    digests: dict[str, str]
    start: ResumePoint
    val_name: str
    adapter: ContinuedAdapter | None

    def get_states(self, role: str) -> dict[Path, FileState]:
        """The states of the files of a role."""
        return {part: self.states[part] for part in self.files[role].parts}


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained and how."""

    model: ModelSection
    lora: dict[str, Any] | None
    adapter: Path | None  # the folder of one that is trained on
    loraplus_lr_ratio: float | None
    optimizer: str | None  # one that transformers does not have
    trainer_class: str | None
    recipe_dir: Path | None
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    vocabulary: int  # embedding rows once `new_ids` have theirs
    new_ids: list[int]  # of the recipe's new tokens
    precision: Precision
    arguments: TrainingArguments
    size: ModelSize
    packing: bool
    logits_note: str

    @property
    def bits(self) -> int | None:
        """4 or 8 for a quantized base."""
        return self.model.bits


@dataclass(frozen=True)
class TrainingData:
    """The token files by role, and how training's rows become batches: None in a dry run that is ahead of compose.

    `held_out`: rows of val_path that a finished run keeps; read now, as the file may be another by then.
    """

    stats: dict[str, TokenFileStats]
    datasets: dict[str, Any]  # empty in a dry run
    batches: PackingPlan | None
    manifest: dict[str, Any]
    end_of_turn: list[str]
    held_out: list[dict[str, Any]]
    val_name: str  # of the first file of validation rows, by which eval_loss is logged too; "" for a single path


def plan_training(
    model: ModelSection,
    tokenizer_section: TokenizerSection,
    lora: dict[str, Any] | None,
    trainer: dict[str, Any],
    recipe_path: Path,
    recipe_dir: Path | None,
    output_dir: Path,
    val_names: list[str],
    adapter: ContinuedAdapter | None,
) -> TrainingPlan:
    """Tokenizer, configuration, precision, training arguments and size; logs its notes."""
    from impruver_core.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_section, model.name, recipe_dir=recipe_dir, warn=warn)
    config, vocabulary = building.load_model_config(model, tokenizer, recipe_dir)
    if adapter is not None:
        new_ids = list_token_ids(adapter, len(tokenizer), config.get_text_config().vocab_size)
    else:
        new_ids = building.find_new_token_ids(tokenizer_section, tokenizer, model.name, config, recipe_dir)
    values, notes = training_arguments.build_argument_values(trainer)
    device = "cpu" if values.get("use_cpu") else choose_device()
    precision, warnings = choose_precision(model.dtype, values, device)
    if device == "cpu" and model.attn_implementation == "flex_attention":
        raise ImpruverError("model.attn_implementation: flex_attention can't be trained with on a CPU; set sdpa")
    check_quantization(lora, model.bits, getattr(config, "quantization_config", None), device)
    values |= {"output_dir": str(output_dir), "use_cpu": device == "cpu"}
    values |= {name: precision.autocast == name for name in ("bf16", "fp16")}
    packing = bool(trainer.get("packing"))
    # Before DeepSpeed hears of the run: ZeRO 3 would spread what is measured on the meta device.
    lora = dict(lora) if lora is not None else None
    loraplus_lr_ratio = lora.pop("loraplus_lr_ratio", None) if lora else None
    optimizer = values.pop("optim") if values.get("optim") == training_arguments.MUON else None
    size, meta_model = building.measure_model(model, config, vocabulary, lora, new_ids, recipe_dir, packing)
    if adapter is not None:
        check_agreement(meta_model, adapter)
    arguments = training_arguments.build_arguments({"run_name": name_run(recipe_path)} | values)
    training_arguments.check_evaluates(arguments, trainer)
    trainer_class = training_arguments.load_trainer_class(trainer.get("class"), recipe_dir)
    own_trainer = not trainer_class.__module__.startswith("transformers.")
    if not own_trainer:
        training_arguments.check_metric(arguments, val_names)
    for text in [*notes, *building.list_config_notes(model, config)]:
        log_info(f"note: {text}")
    for text in [*warnings, *checks.list_merge_warnings(lora)]:
        warn(text)
    check_optimizer(meta_model, arguments, trainer_class, optimizer, loraplus_lr_ratio)
    limit = limit_logits_path(arguments, own_trainer, lora is None)
    size = replace(size, logits=min(size.logits, limit))
    return TrainingPlan(
        model=model,
        lora=lora,
        adapter=adapter.folder if adapter is not None else None,
        loraplus_lr_ratio=loraplus_lr_ratio,
        optimizer=optimizer,
        trainer_class=trainer.get("class"),
        recipe_dir=recipe_dir,
        tokenizer=tokenizer,
        config=config,
        vocabulary=vocabulary,
        new_ids=new_ids,
        precision=precision,
        arguments=arguments,
        size=size,
        packing=packing,
        logits_note=_describe_logits(size, limit),
    )


def name_run(recipe_path: Path) -> str:
    """What trackers call a run unless the recipe says: an installed recipe's name, else the file's."""
    path, root = recipe_path.absolute(), find_recipes_root()
    return str(path.relative_to(root).with_suffix("")) if root in path.parents else path.stem


def _describe_logits(size: ModelSize, limit: LogitsPath) -> str:
    """The line of the run's summary: which logits are computed and, of all of them, why."""
    if limit is LogitsPath.ALL:
        return "logits: of all positions, which the recipe's trainer looks at (its class, kernels or label smoothing)"
    if size.logits is LogitsPath.ALL:
        return "logits: of all positions; of target positions alone this model has no logits, or another loss"
    how = ", a chunk at a time with their loss" if size.logits is LogitsPath.CHUNKED else ""
    tested = "" if size.logits_tested else ", if the loaded model passes the test of it"
    return f"logits: of target positions alone{how}{tested}"


def load_data(plan: TrainingPlan, inputs: RunInputs, max_tokens: int | None, dry_run: bool) -> TrainingData:
    """Checks and reads the token files, memory-mapped unless it is a dry run."""
    arguments = plan.arguments
    token_rows = plan.lora is not None and (plan.new_ids or plan.lora.get("trainable_token_indices"))
    distributed.check_sharding(arguments, bool(token_rows), dry_run)
    manifest = check_data_manifest(inputs.files.get("train"), plan.tokenizer)
    positions = get_context_length(plan.config)
    stats, datasets, batches = {}, {}, None
    for name, files in inputs.files.items():
        states = inputs.get_states(name)
        if dry_run:
            stats[name], lengths = token_dataset.read_stats(files, inputs.digests[name], states)
        else:
            stats[name], datasets[name] = token_dataset.load_token_dataset(files, inputs.digests[name], states)
        if name == "train" or stats[name].rows:
            for text in token_dataset.check_rows(stats[name], files, plan.vocabulary, positions):
                log_info(f"note: {text}")
        if name == "train":
            lengths = lengths if dry_run else token_dataset.get_row_lengths(datasets[name])
            batches = plan_batches(plan, lengths, stats[name], files, max_tokens)
    if "train" in datasets:
        by_length = arguments.train_sampling_strategy == "group_by_length"
        datasets["train"] = batches.build_dataset(datasets["train"], by_length)
    val_to_come = bool(inputs.recipe.get("val_path")) and VAL not in inputs.files  # in a dry run before compose
    if arguments.eval_strategy != "no" and not val_to_come and not (VAL in stats and stats[VAL].rows):
        raise ImpruverError(
            f"trainer.eval_strategy: {arguments.eval_strategy.value}, and there are no rows to evaluate on; set "
            "val_path to some, or trainer.eval_strategy: no (with trainer.load_best_model_at_end: false)"
        )
    for role in (role for role in stats if role.startswith(f"{VAL}.") and not stats[role].rows):
        if arguments.eval_strategy != "no":
            raise ImpruverError(f"val_path: {inputs.files[role]} has no rows to evaluate on; take it out")
    end_of_turn = list(manifest.get("end_of_turn") or get_end_of_turn(plan.tokenizer))
    val = inputs.files.get(VAL) if not dry_run else None
    held_out = token_dataset.read_held_out_rows(val, inputs.get_states(VAL)) if val is not None else []
    return TrainingData(stats, datasets, batches, manifest, end_of_turn, held_out, inputs.val_name)


def plan_batches(
    plan: TrainingPlan, lengths: ndarray, stats: TokenFileStats, files: TokenFiles, max_tokens: int | None
) -> PackingPlan:
    """How training's rows become batches; ImpruverError for rows that can't be packed."""
    arguments = plan.arguments
    if plan.packing and stats.masked_line:
        raise ImpruverError(
            f"{format_line(files, stats.masked_line)}: its attention_mask hides tokens, and packed rows have none; "
            "leave such tokens out of the rows, or set trainer.packing: false"
        )
    if arguments.dataloader_drop_last and len(lengths) < arguments.train_batch_size:
        raise ImpruverError(
            f"trainer.dataloader_drop_last: {len(lengths)} rows are less than a batch of "
            f"{arguments.train_batch_size}, so that none is left; set it to false, or a smaller batch"
        )
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    return plan_packing(lengths, plan.packing, max_tokens, seed)
