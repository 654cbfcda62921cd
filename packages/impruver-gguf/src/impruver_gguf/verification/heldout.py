"""What files are verified against: the trained model, its tokenizer, and held-out rows encoded as training would.

The rows are those of output_dir's heldout.jsonl, else a small set that comes with this package.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from impruver_core.chat_template.masking.loss_mask import encode_chat
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.io.json_schema import OBJECT, TEXT, WHOLE, check_keys, list_of
from impruver_core.io.jsonl import read_numbered_rows
from impruver_core.labels import IGNORE_INDEX, find_target_positions
from impruver_core.recipe.sections import ModelSection
from impruver_core.tokenizer import encode_text

from impruver_gguf.ollama.modelfile import get_model_context
from impruver_gguf.verification.llama_runtime import AnswerPrompt
from impruver_gguf.vocab.saved_tokenizer import SavedTokenizer

BUILT_IN = Path(__file__).with_name("heldout.jsonl")
MAX_ROWS, MAX_TOKENS, MAX_TARGETS = 32, 4096, 2048  # of which logits are taken
MAX_ANSWERS = 4
BASE_ROOM, ROOM_FACTOR, MAX_ROOM = 32, 2, 160  # an answer's tokens: 32 and twice the row's own, at most 160
ROW_KEYS = {"text": TEXT, **dict.fromkeys(("input_ids", "labels"), list_of(WHOLE))}
ROW_KEYS |= {"tools": list_of(OBJECT), "chat_template_kwargs": OBJECT}


@dataclass(frozen=True)
class TrainedModelInfo:
    """The model that files were made from."""

    output_dir: Path
    turn_ends: Sequence[str]  # texts
    template_kwargs: Mapping[str, Any]  # the recipe's tokenizer.chat_template_kwargs
    model: ModelSection
    recipe_dir: Path | None  # where the recipe's local names are looked for


@dataclass(frozen=True)
class HeldOutChat:
    """A conversation and how it is rendered; `before` are the messages before its last answer, None without one."""

    messages: list[dict]
    tools: list[dict] | None
    template: str
    variables: dict[str, Any]
    template_kwargs: dict[str, Any]
    before: list[dict] | None

    def render(self, template: str | None = None) -> str:
        """Render the conversation, with another template if one is given."""
        text = render_template(template or self.template, self.messages, self.tools, variables=self.variables)
        return str.__str__(text)

    def render_prompt(self, **variables: Any) -> str:
        """Render what asks for the last answer, with further variables."""
        known = self.variables | variables
        text = render_template(self.template, self.before, self.tools, add_generation_prompt=True, variables=known)
        return str.__str__(text)


@dataclass(frozen=True)
class HeldOutExample:
    """A held-out row, rendered and encoded."""

    where: str  # its file and line
    text: str
    text_ids: list[int]  # the tokenizer's ids of the text
    ids: list[int]  # what it was trained on, or would be
    labels: list[int]  # as compose made them, or the loss mask
    chat: HeldOutChat | None = None  # what the text was rendered from
    prompt_ids: list[int] | None = None  # ids of what asks for the last answer

    @property
    def target_positions(self) -> list[int]:
        """The positions whose logits predict a target token: one before each."""
        return [position - 1 for position in find_target_positions(self.labels)]

    @property
    def target_ids(self) -> list[int]:
        """The target tokens that these positions predict."""
        return [self.labels[position] for position in find_target_positions(self.labels)]


@dataclass
class HeldOutSet:
    """All examples, those that logits are taken of, prompts to be answered, and rows that could not be encoded."""

    examples: list[HeldOutExample] = field(default_factory=list)
    measured: list[HeldOutExample] = field(default_factory=list)
    prompts: list[AnswerPrompt] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class VerificationInputs:
    """What files are verified against: the model, its tokenizer, held-out rows, and the ids that end a turn."""

    model: TrainedModelInfo
    tokenizer: SavedTokenizer
    heldout: HeldOutSet
    end_ids: list[int]


def read_inputs(model: TrainedModelInfo) -> VerificationInputs | None:
    """Read what `model`'s files are verified against, before they are made; None where nothing can be verified."""
    output_dir = model.output_dir
    if not (output_dir / "tokenizer.json").is_file():
        warn(f"{output_dir} has no tokenizer.json: the files can't be proven")
        return None
    tokenizer = SavedTokenizer(output_dir)
    heldout = read_heldout(output_dir, tokenizer, model.template_kwargs, get_model_context(output_dir))
    ids = [tokenizer.backend_tokenizer.token_to_id(text) for text in model.turn_ends]
    return VerificationInputs(model, tokenizer, heldout, [token_id for token_id in ids if token_id is not None])


def read_heldout(
    output_dir: Path, tokenizer: SavedTokenizer, template_kwargs: Mapping[str, Any], context: int | None
) -> HeldOutSet:
    """Read the held-out rows, and choose what is measured of them, for a model with so many tokens of context."""
    path = output_dir / "heldout.jsonl"
    lines = list(read_numbered_rows(path)) if path.is_file() else []
    heldout = _encode_rows(lines or read_numbered_rows(BUILT_IN), path if lines else None, tokenizer, template_kwargs)
    if lines and not heldout.examples:
        raise ImpruverError(f"no row can be used: {heldout.refused[0]}; move the file away to use the built-in set")
    tokens = targets = 0
    for example in heldout.examples:
        all_tokens, all_targets = tokens + len(example.ids), targets + len(example.target_ids)
        fits = all_tokens <= MAX_TOKENS and all_targets <= MAX_TARGETS and len(example.ids) <= (context or MAX_TOKENS)
        if fits and len(heldout.measured) < MAX_ROWS and example.target_ids:
            heldout.measured.append(example)
            tokens, targets = all_tokens, all_targets
    for example in heldout.examples:
        room = min(BASE_ROOM + ROOM_FACTOR * len(example.target_ids), MAX_ROOM)
        prompt = example.prompt_ids
        if prompt and len(heldout.prompts) < MAX_ANSWERS and len(prompt) + room <= (context or MAX_TOKENS):
            heldout.prompts.append(AnswerPrompt(prompt, room))
    return heldout


def _encode_rows(
    rows: Iterable[tuple[int, dict]], path: Path | None, tokenizer: SavedTokenizer, template_kwargs: Mapping[str, Any]
) -> HeldOutSet:
    """Encode numbered rows of the file `path`, None for the built-in set."""
    heldout, selector = HeldOutSet(), TemplateSelector(tokenizer)
    for number, row in rows:
        where = f"{path}, line {number}" if path else f"the built-in set, line {number}"
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # JSON can write half a character, which no tokenizer takes
            raise ImpruverError(f"{where}: half a character (a lone surrogate); mend the row or take it out") from None
        check_keys(row, ROW_KEYS, where)
        try:
            if "messages" not in row:
                example = _build_text_example(row, where, tokenizer) if row.get("text") is not None else None
            elif path is None and not tokenizer.chat_template:  # such a model has seen no chats
                example = _build_text_example({"text": row["messages"][-1]["content"]}, where, tokenizer)
            else:
                example = _build_chat_example(row, where, tokenizer, selector, template_kwargs)
        except RefusedError as error:
            heldout.refused.append(f"{where}: {error.detail}")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ImpruverError(f"{where}: no row of messages or text ({type(error).__name__}: {error})") from None
        else:
            if example and example.text_ids:
                heldout.examples.append(example)
            elif path:
                heldout.refused.append(f"{where}: it has no messages and no text")
    return heldout


def _build_chat_example(
    row: dict, where: str, tokenizer: SavedTokenizer, selector: TemplateSelector, template_kwargs: Mapping[str, Any]
) -> HeldOutExample:
    messages, tools = row["messages"], row.get("tools")
    kwargs = {**template_kwargs, **(row.get("chat_template_kwargs") or {})}
    template, variables, template_format = selector.select(tools, kwargs)
    normalized = normalize_messages(messages, template_format)
    answers = (position for position, message in enumerate(normalized) if message["role"] == "assistant")
    last_answer = max(answers, default=0)
    chat = HeldOutChat(normalized, tools, template, variables, kwargs, normalized[:last_answer] or None)
    try:
        prompt = chat.render_prompt() if chat.before else None
    except RefusedError:
        chat, prompt = replace(chat, before=None), None
    text = chat.render()
    tokens = _get_tokens(row, where, tokenizer)
    if tokens is None:
        encoded = encode_chat(tokenizer, messages, tools, chat_template_kwargs=kwargs)
        tokens = encoded.input_ids, encoded.labels
    (ids, labels), text_ids = tokens, encode_text(tokenizer, text)
    bos = ids[:1] if ids[:1] == [tokenizer.bos_token_id] != text_ids[:1] else []
    prompt_ids = bos + encode_text(tokenizer, prompt) if prompt else None
    return HeldOutExample(where, text, text_ids, ids, labels, chat, prompt_ids)


def _build_text_example(row: dict, where: str, tokenizer: SavedTokenizer) -> HeldOutExample:
    text_ids = encode_text(tokenizer, row["text"])
    ids, labels = _get_tokens(row, where, tokenizer) or (text_ids, [IGNORE_INDEX, *text_ids[1:]])
    return HeldOutExample(where, row["text"], text_ids, ids, labels)


def _get_tokens(row: dict, where: str, tokenizer: SavedTokenizer) -> tuple[list[int], list[int]] | None:
    """The ids and labels that compose made of a row; None where it has none."""
    ids, labels = row.get("input_ids"), row.get("labels")
    if ids is None or labels is None:
        return None
    all_ids = [*ids, *(set(labels) - {IGNORE_INDEX})]
    if len(ids) != len(labels) or not all(0 <= token_id < tokenizer.size for token_id in all_ids):
        raise ImpruverError(
            f"{where}: input_ids and labels are not this tokenizer's, or of two lengths; take the heldout.jsonl that "
            "training left, or move it away to use the built-in set"
        )
    return ids, labels
