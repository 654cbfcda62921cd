"""What a model's tokenizer and chat template do for a backend: prompts to ids, ids to text, stop criteria, markers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core import load_tokenizer
from impruver_core.chat_template.selection import TemplateSelector, get_end_of_turn, get_template
from impruver_core.errors import ImpruverError
from impruver_core.recipe.sections import TokenizerSection

from impruver_chat.generation.detokenizer import StopCriteria, make_stop_criteria
from impruver_chat.model_dir import read_end_of_turn, read_eos_token_ids
from impruver_chat.responses.template_markers import TemplateMarkers, find_markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodingOptions:
    """How the recipe has prompts encoded: whether BOS stands before them, and the variables of the chat template.

    `control_text` and `own_tokens` are those of core's `encode_prompt`.
    """

    add_bos: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    control_text: str = "keep"
    own_tokens: Sequence[str] = ()


def has_bos(datasets: Sequence[Any] | None) -> bool:
    """Whether training rows began with BOS, by `add_global_bos` of the recipe's datasets (dataclasses or mappings)."""
    sections = [each if isinstance(each, dict) else vars(each) for each in datasets or []]
    return not sections or any(section.get("add_global_bos", True) for section in sections)


@dataclass(frozen=True)
class ChatTokenizer:
    """Encodes conversations as prompts and decodes answers, as one model does it.

    `encode(messages, tools=None, chat_template_kwargs=None)` gives the ids of a prompt, or raises RefusedError;
    `decode(ids)` gives the text, each blank as the model wrote it, � for what is no whole character. `template` is the
    chat template, "" without one; `find_markers(chat_template_kwargs)` finds what it writes with other arguments.
    """

    encode: Callable[..., list[int]]
    decode: Callable[[Sequence[int]], str]
    stops: StopCriteria
    markers: TemplateMarkers
    template: str = ""
    find_markers: Callable[[dict], TemplateMarkers] | None = None

    def get_markers(self, chat_template_kwargs: dict | None) -> TemplateMarkers:
        """What the template writes with these arguments: whether its prompt opens the reasoning may depend on them."""
        if not chat_template_kwargs or self.find_markers is None:
            return self.markers
        return self.find_markers(chat_template_kwargs)


def load_saved_tokenizer(
    output_dir: Path, section: TokenizerSection, recipe_dir: Path | None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer and chat template that training saved; of the recipe's section only the class counts."""
    section = replace(section, name=str(output_dir.absolute()), special_tokens={}, chat_template=None)
    return load_tokenizer(section, recipe_dir=recipe_dir)


def make_chat_tokenizer(
    tokenizer: PreTrainedTokenizerBase, output_dir: Path, options: EncodingOptions
) -> ChatTokenizer:
    """Make the ChatTokenizer of transformers' tokenizer that was saved in `output_dir`."""
    selector = TemplateSelector(tokenizer)

    def find(kwargs: dict) -> TemplateMarkers:
        try:
            return find_markers(*selector.select(None, {**options.chat_template_kwargs, **kwargs}))
        except ImpruverError:  # no template: encoding will say so
            return TemplateMarkers()

    markers = find({})
    specials = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    hidden = {number for number, text in specials.items() if text not in markers.special_tokens}

    def encode(messages: list[dict], tools: list | None = None, kwargs: dict | None = None) -> list[int]:
        kwargs = {**options.chat_template_kwargs, **(kwargs or {})} or None
        control = {"control_text": options.control_text, "own_tokens": options.own_tokens}
        from impruver_core import encode_prompt  # with numpy, which --help and --dry_run need not wait for

        return encode_prompt(
            tokenizer, messages, tools, add_bos=options.add_bos, chat_template_kwargs=kwargs, **control
        )

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([n for n in ids if int(n) not in hidden], clean_up_tokenization_spaces=False)

    try:
        template = get_template(tokenizer)
    except ImpruverError:
        template = ""
    stops = find_stop_criteria(tokenizer, output_dir)
    return ChatTokenizer(encode, decode, stops, markers, template, cache_by_arguments(find))


def cache_by_arguments(find: Callable[[dict], Any]) -> Callable[[dict], Any]:
    """Have `find` work once for each mapping of arguments, which may hold lists and mappings."""
    results: dict[str, Any] = {}

    def find_once(kwargs: dict) -> Any:
        key = repr(kwargs)
        if key not in results:
            results[key] = find(kwargs)
        return results[key]

    return find_once


def find_stop_criteria(tokenizer: PreTrainedTokenizerBase, output_dir: Path) -> StopCriteria:
    """Find every end of turn: the manifest's (else the chat template's), generation_config.json's, and EOS."""
    texts = read_end_of_turn(output_dir)
    if texts is None:
        texts = get_end_of_turn(tokenizer)
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    return make_stop_criteria(texts, [*read_eos_token_ids(output_dir), tokenizer.eos_token_id], added.get)
