"""The transformers backend: an adapter on its base or a whole model, as the recipe's model section has it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import replace
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError, describe_error
from impruver_core.io.model_files import get_context_length
from impruver_core.library_logging import quiet_libraries
from impruver_core.modeling.loading import (
    choose_device,
    has_bf16,
    load_adapter,
    load_model,
    loading_errors_as_user_errors,
    resolve_dtype,
)
from impruver_core.recipe.sections import ModelSection, TokenizerSection

from impruver_chat.backends import chat_tokenizer as tokenizers
from impruver_chat.backends.base import ActiveGeneration, Answer, Emit, IndexedAnswers
from impruver_chat.backends.chat_tokenizer import ChatTokenizer, EncodingOptions
from impruver_chat.backends.transformers import batching
from impruver_chat.backends.transformers.batching import check_no_nan, make_generation_config
from impruver_chat.generation.prompt import Prompt, SamplingParams
from impruver_chat.model_dir import ModelDirectory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedModel

LIBRARIES = ("torch", "transformers", "bitsandbytes", "peft")
DEVICE_ERRORS = ("OutOfMemoryError", "AcceleratorError")  # told as such


class TransformersBackend:
    """A model in memory that answers with transformers' `generate`; see `Backend`."""

    def __init__(self, model: PreTrainedModel, tokenizer: ChatTokenizer, no_comparison_reason: str | None = None):
        from transformers import GenerationConfig

        self.model, self.tokenizer, self.no_comparison_reason = model, tokenizer, no_comparison_reason
        self.context_length = get_context_length(model.config)
        self._cache = PromptCache()
        self._has_answered = False
        # `generate` fills what a GenerationConfig leaves open from the model's own
        for part in (model, getattr(model, "get_base_model", lambda: model)()):
            part.generation_config = GenerationConfig()

    def stream_answer(self, prompt: Prompt, sampling: SamplingParams, emit: Emit) -> Answer:
        """Answer one prompt; see `Backend`."""
        import torch

        generation = ActiveGeneration(self.tokenizer, prompt, emit=emit)

        def stop_at_end(ids: Tensor, scores: Tensor, **_) -> Tensor:  # called once for each new token
            return torch.full((1,), generation.add_token(int(ids[0, -1])), device=ids.device)

        ids = torch.tensor([prompt.ids], device=self.model.device)
        torch.manual_seed(prompt.seed)
        with self._first_errors_as_user_errors():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=make_generation_config(prompt.max_new_tokens, sampling),
                logits_processor=[check_no_nan],
                stopping_criteria=[stop_at_end],
                **self._cache.pop_shared_prefix(self.model, prompt.ids),
            )
        self._cache.store(self.model, getattr(out, "past_key_values", None), out.sequences[0, :-1].tolist())
        return generation.finish()

    def without_adapter(self) -> AbstractContextManager:
        """Switch the adapter off within the context; see `Backend`."""
        return self.model.disable_adapter()

    def answer_batch(self, prompts: Sequence[Prompt], sampling: SamplingParams, size: int) -> IndexedAnswers:
        """Answer prompts in batches; see `Backend`."""
        with self._first_errors_as_user_errors():
            yield from batching.answer_batch(self.model, self.tokenizer, prompts, sampling, size)

    @contextmanager
    def _first_errors_as_user_errors(self) -> Iterator[None]:
        """Turns what torch and transformers raise before anything was answered into one ImpruverError.

        A config.json may describe what can be built, and can't compute: layers of kinds that the class has not, an
        output of another form. Later on an error is none of the configuration's.
        """
        try:
            yield
            self._has_answered = True
        except Exception as error:
            if self._has_answered or type(error).__name__ in DEVICE_ERRORS or find_origin(error) not in LIBRARIES:
                raise
            raise ImpruverError(
                f"{self.model.config._name_or_path}/config.json: the model that it describes can't compute an answer "
                f"({describe_error(error)}); copy it again from where the model was trained"
            ) from error


def find_origin(error: BaseException) -> str:
    """The package whose code raised an error."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place.tb_frame.f_globals.get("__name__", "").partition(".")[0] if place is not None else ""


class PromptCache:
    """Keys and values of the last conversation, reused for the tokens that the next prompt shares with it.

    What a chat template changes in earlier turns is computed anew from there on. The model without its adapter has a
    cache of its own: their states differ.
    """

    def __init__(self) -> None:
        self._caches: dict[bool, tuple[Cache | None, list[int]]] = {}

    def pop_shared_prefix(self, model: PreTrainedModel, ids: Sequence[int]) -> dict[str, Any]:
        """Take the cache of the longest common prefix with `ids` out, as a keyword of `generate`; {} without one.

        A cache that can't be cropped to that prefix (of a recurrent state, of a sliding window that has moved on) is
        dropped.
        """
        cache, cached_ids = self._caches.pop(is_adapter_disabled(model), (None, []))
        shared = len(commonprefix([cached_ids, ids]))  # noqa: RUF071 (no paths)
        shared = min(shared, len(ids) - 1)  # the last token is always computed: its scores are wanted
        if cache is None or not shared:
            return {}
        if shared < len(cached_ids):
            if not cache.is_croppable:
                return {}
            try:
                cache.crop(shared - len(cached_ids))
            except RuntimeError:
                return {}
        return {"past_key_values": cache}

    def store(self, model: PreTrainedModel, cache: Cache | None, ids: list[int]) -> None:
        """Store the cache after `ids`, unless its length is another (a model with its own kind of cache)."""
        if cache is not None and cache.get_seq_length() == len(ids):
            self._caches[is_adapter_disabled(model)] = (cache, ids)


def is_adapter_disabled(model: PreTrainedModel) -> bool:
    """Whether the model has an adapter that is switched off."""
    return any(getattr(part, "disable_adapters", False) is True for part in model.modules())


def load_backend(
    source: ModelDirectory, model: ModelSection, tokenizer: TokenizerSection, options: EncodingOptions, recipe_dir: Path
) -> TransformersBackend:
    """Load the model of an output directory, on its base where it is an adapter."""
    quiet_libraries("transformers", errors_only=True)
    with redirect_stdout(sys.stderr):  # what libraries print is no answer
        saved = tokenizers.load_saved_tokenizer(source.output_dir, tokenizer, recipe_dir)
        chat_tokenizer = tokenizers.make_chat_tokenizer(saved, source.output_dir, options)
        device = choose_device()
        dtype = resolve_dtype(model.dtype, device)
        if model.dtype == "bf16" and not has_bf16(device):
            warn(f"model.dtype: bf16 is emulated on this {device}, some 30 times slower; --set model.dtype=fp32")
        section = replace(model, name=source.base or str(source.output_dir))
        if (path := Path(section.name, "generation_config.json")).is_file():
            from transformers import GenerationConfig

            with loading_errors_as_user_errors("model.name", str(path)):  # loading the model would not name the file
                GenerationConfig.from_pretrained(section.name)
        loaded = load_model(section, dtype, device=device, search_dir=recipe_dir)
        if source.base is not None:
            loaded = load_adapter(loaded, source.output_dir, source.vocab_size)
    return TransformersBackend(loaded.eval(), chat_tokenizer, source.no_comparison_reason)
