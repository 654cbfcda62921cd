"""Answers with transformers: what output_dir holds, as the recipe's model section says it is to be loaded."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from impruver_core import encode_prompt, load_tokenizer
from impruver_core.chat_template.selection import get_end_of_turn
from impruver_core.cli.console import warn
from impruver_core.io.model_files import get_context_length
from impruver_core.library_logging import quiet_libraries
from impruver_core.modeling.devices import choose_device, has_bf16, resolve_dtype
from impruver_core.modeling.loading import load_adapter, load_model, loading_errors_as_user_errors

from impruver_chat.backends.base import ActiveGeneration, Answer, Prompt
from impruver_chat.backends.transformers import batching as together
from impruver_chat.backends.transformers.batch_sampling import check_no_nan
from impruver_chat.backends.transformers.prompt_cache import PromptCache
from impruver_chat.generation.detokenizer import StopCriteria, make_stop_criteria
from impruver_chat.generation.parameters import GREEDY, SamplingParams
from impruver_chat.model_dir import ModelDirectory, read_end_of_turn, read_eos_token_ids
from impruver_chat.responses.template_markers import TemplateMarkers, find_tokenizer_markers


class TransformersBackend:
    """A model and its tokenizer, ready to answer."""

    answer_batch = together.answer_batch

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stops: StopCriteria,
        options: dict[str, Any],
        no_comparison_reason: str | None = None,
    ):
        self.model, self.tokenizer, self.stops, self.no_comparison_reason = (
            model,
            tokenizer,
            stops,
            no_comparison_reason,
        )
        self.markers = find_tokenizer_markers(tokenizer, options["chat_template_kwargs"])
        self.encode, self.decode = partial(encode_messages, tokenizer, options), make_decoder(tokenizer, self.markers)
        self.context_length: int | None = get_context_length(model.config)
        self._kept = PromptCache()
        self.is_exact = str(model.dtype) == "torch.float32" and not getattr(model, "is_quantized", False)
        clear_generation_defaults(model)

    def stream_answer(self, prompt: Prompt, sampling: SamplingParams, emit: Callable[[str], None]) -> Answer:
        """As `Backend.stream`."""
        import torch

        reply = ActiveGeneration(self, prompt, emit=emit)

        def take(ids, scores, **_):  # as a stopping criterion: called once for each new token
            return torch.full((1,), reply.add_token(int(ids[0, -1])), device=ids.device)

        ids = torch.tensor([prompt.ids], device=self.model.device)
        torch.manual_seed(prompt.seed)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=self.make_generation_config(prompt.max_new_tokens, sampling),
            logits_processor=[check_no_nan],
            stopping_criteria=[take],
            **self._kept.pop_shared_prefix(self.model, prompt.ids),
        )
        self._kept.store(self.model, getattr(out, "past_key_values", None), out.sequences[0, :-1].tolist())
        return reply.finish()

    def without_adapter(self) -> AbstractContextManager:
        """As `Backend.without_adapter`."""
        return self.model.disable_adapter()

    def compute_scores(self, ids: Any) -> Any:
        """The scores [1, vocabulary] of what follows `ids` [1, tokens], computed with nothing beside or before it."""
        once = self.make_generation_config(1)
        once.output_logits, once.use_cache = True, False
        out = self.model.generate(input_ids=ids, attention_mask=ids.new_ones(ids.shape), generation_config=once)
        return out.logits[0]

    def make_generation_config(self, room: int, sampling: SamplingParams = GREEDY) -> Any:
        """A GenerationConfig for `room` tokens that gives the cache back; what ends an answer is not its business."""
        from transformers import GenerationConfig

        drawn = {}
        if sampling.do_sample:
            drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        return GenerationConfig(
            do_sample=sampling.do_sample,
            repetition_penalty=sampling.repetition_penalty,
            max_new_tokens=room,
            pad_token_id=0,
            return_dict_in_generate=True,
            **drawn,
        )


def load_backend(
    found: ModelDirectory, model: Any, tokenizer: Any, options: dict[str, Any], recipe_dir: Path
) -> TransformersBackend:
    """The backend of what was found; `model` and `tokenizer` are the recipe's sections, `options` as for `encode`."""
    quiet_libraries("transformers", errors_only=True)
    with redirect_stdout(sys.stderr):  # what libraries print is no answer
        fast = load_saved_tokenizer(found.output_dir, tokenizer)
        stops = find_stop_criteria(fast, found.output_dir)
        device = choose_device()
        dtype = resolve_dtype(model.dtype, device)
        if model.dtype == "bf16" and not has_bf16(device):
            warn(f"model.dtype: bf16 is emulated on this {device}, some 30 times slower; --set model.dtype=fp32")
        section = replace(model, name=found.base or str(found.output_dir))
        check_generation_config(Path(section.name))
        loaded = load_model(section, dtype, device=device, search_dir=recipe_dir)
        if found.base is not None:
            loaded = load_adapter(loaded, found.output_dir, found.vocab_size)
    return TransformersBackend(loaded.eval(), fast, stops, options, found.no_comparison_reason)


def load_saved_tokenizer(output_dir: Path, section: Any) -> Any:
    """The tokenizer that training saved, with its template; of the recipe's section only the class counts."""
    return load_tokenizer(replace(section, name=str(output_dir), special_tokens={}, chat_template=None))


def encode_messages(
    tokenizer: Any, options: dict[str, Any], messages: list, tools: list | None = None, kwargs: dict | None = None
) -> list[int]:
    """`encode_prompt` with the recipe's `options` (add_bos, chat_template_kwargs); a row's own kwargs win."""
    variables = {**options["chat_template_kwargs"], **(kwargs or {})}
    return encode_prompt(tokenizer, messages, tools, add_bos=options["add_bos"], chat_template_kwargs=variables or None)


def make_decoder(tokenizer: Any, markers: TemplateMarkers) -> Callable[[Sequence[int]], str]:
    """Ids → text, each blank as the model wrote it; of special tokens only those that are marks."""
    specials = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    hidden = {number for number, text in specials.items() if text not in markers.special_tokens}

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([n for n in ids if int(n) not in hidden], clean_up_tokenization_spaces=False)

    return decode


def find_stop_criteria(tokenizer: Any, output_dir: Path) -> StopCriteria:
    """Every end of turn: the manifest's (else the template's own), the generation configuration's, EOS."""
    texts = read_end_of_turn(output_dir)
    if texts is None:
        texts = get_end_of_turn(tokenizer)
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    return make_stop_criteria(texts, [*read_eos_token_ids(output_dir), tokenizer.eos_token_id], added.get)


def check_generation_config(folder: Path) -> None:
    """Loading a model reads this file after the weights, and would not name it."""
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    if path.is_file():
        with loading_errors_as_user_errors("model.name", str(path)):
            GenerationConfig.from_pretrained(folder)


def clear_generation_defaults(model: Any) -> None:
    """Without this, `generate` fills what a GenerationConfig leaves open from the model's own."""
    from transformers import GenerationConfig

    for part in (model, getattr(model, "get_base_model", lambda: model)()):
        part.generation_config = GenerationConfig()
