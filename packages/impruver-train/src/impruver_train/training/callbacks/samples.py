"""Answers of the model in training to held-out prompts, at each evaluation: in metrics.jsonl, report and trackers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.cli.console import warn
from impruver_core.labels import IGNORE_INDEX

from impruver_train.modeling.chunked_loss import get_base

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

LONGEST = 128  # tokens of an answer
BEGINNING = 32  # tokens of a plain text that stand for a prompt


class Prompt(NamedTuple):
    """The ids that are answered, and what the row has there."""

    input_ids: list[int]
    expected: list[int]


def split_prompt(row: Mapping[str, list[int]]) -> Prompt:
    """The prompt of a token row, up to its first target token, and the targets that follow.

    A row of targets alone, as of a plain text, is split after its first tokens.
    """
    ids, labels = row["input_ids"], row["labels"]
    start = next((place for place, label in enumerate(labels) if place and label != IGNORE_INDEX), len(ids))
    if start == 1:
        start = max(1, min(BEGINNING, len(ids) // 2))
    return Prompt(ids[:start], list(takewhile(lambda label: label != IGNORE_INDEX, labels[start:])))


class SamplesCallback:
    """Callback that has the model answer `prompts` after each evaluation, greedily: no random number is drawn for it.

    The answers become a row of `path` and go to `trackers`. `positions`: how many tokens the model takes, if limited.
    """

    def __init__(self, path: Path, prompts: Sequence[Prompt], positions: int | None) -> None:
        self.path, self.prompts, self.positions = path, prompts, positions
        self.trackers: list[TrainerCallback] = []
        self.step = -1

    def on_evaluate(self, args, state, control, model=None, processing_class=None, **_):
        if not state.is_world_process_zero or self.step == state.global_step:
            return
        self.step = state.global_step
        try:
            with computing_as_trained(args):
                samples = [self.answer(model, processing_class, prompt) for prompt in self.prompts]
        except Exception as error:  # a model that can be trained and not asked
            warn(f"trainer.samples: this model answers no prompt: {error!s:.300}; training goes on without samples")
            self.prompts = []
            return
        if not samples:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, "samples": samples}, ensure_ascii=False) + "\n")
        log_samples(self.trackers, state.global_step, samples)

    def answer(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> dict[str, str]:
        """The prompt, what the row has for an answer and what the model says, as texts."""
        import torch
        from transformers import GenerationConfig

        ids = torch.tensor([prompt.input_ids], device=model.device)
        room = LONGEST if self.positions is None else min(LONGEST, self.positions - len(prompt.input_ids))
        answer: list[int] = []
        if room > 0:
            base = get_base(model)
            own = base.generation_config  # whose penalties and ways of sampling would be no greedy answer
            ends = {name: getattr(own, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
            base.generation_config = GenerationConfig(max_new_tokens=room, do_sample=False, **ends)
            try:
                with torch.no_grad():
                    answered = base.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
            finally:
                base.generation_config = own
            answer = answered[0, ids.shape[1] :].tolist()
        texts = {"prompt": prompt.input_ids, "expected": prompt.expected, "answer": answer}
        return {name: tokenizer.decode(part, skip_special_tokens=name != "prompt") for name, part in texts.items()}


@contextmanager
def computing_as_trained(arguments: TrainingArguments) -> Iterator[None]:
    """Computes in the dtype of training where weights are held in another, and leaves random numbers as they were."""
    import torch

    dtype = torch.bfloat16 if arguments.bf16 else torch.float16
    casting = torch.autocast(arguments.device.type, dtype=dtype, enabled=arguments.bf16 or arguments.fp16)
    devices = [arguments.device] if arguments.device.type == "cuda" else []
    with torch.random.fork_rng(devices), casting:
        yield


def log_samples(trackers: Iterable[TrainerCallback], step: int, samples: list[dict[str, Any]]) -> None:
    """Shows `samples` in those trackers that take texts; one that fails is warned about."""
    for tracker in trackers:
        try:
            _log_to(tracker, step, samples)
        except Exception as error:
            warn(f"{type(tracker).__name__} did not take the samples of step {step}: {error!s:.300}")


def _log_to(tracker: TrainerCallback, step: int, samples: list[dict[str, Any]]) -> None:
    columns = list(samples[0])
    rows = [[sample[column] for column in columns] for sample in samples]
    kind = type(tracker).__name__
    if kind == "TensorBoardCallback" and tracker.tb_writer is not None:
        texts = ("\n\n".join(f"**{name}**\n\n    {sample[name]}" for name in columns) for sample in samples)
        for number, text in enumerate(texts):
            tracker.tb_writer.add_text(f"samples/{number}", text, step)
    elif kind == "WandbCallback" and tracker._wandb is not None and tracker._wandb.run is not None:
        tracker._wandb.log({"samples": tracker._wandb.Table(columns=columns, data=rows), "train/global_step": step})
    elif kind == "MLflowCallback" and getattr(tracker, "_initialized", False):
        tracker._ml_flow.log_text(json.dumps(samples, ensure_ascii=False, indent=1), f"samples/{step}.json")
