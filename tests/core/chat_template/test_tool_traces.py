"""Ten shapes of tool traces on every stock template that renders calls: exact, or refused for a limit of its own.

Judged from outside: by the rendering of untraced messages (rendering/test_renderer.py holds it equal to
`apply_chat_template`), by words that stand in one message alone, by where the text leaves the prompt, and by the
template's plainest call, whose turn opens and ends as those of the others do.
"""

import json
import re
from contextlib import suppress

import pytest
from impruver_core import Refused, RefusedError, encode_chats
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.tokenizer import get_special_tokens
from support.messages import assistant, user
from support.tokenizers import STOCK_NAMES, stock_template, target_runs, tokenizer_for

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


@pytest.mark.parametrize("shard", range(8))
def test_exact_or_refused(shard):
    counts = {"exact": 0, "refused": 0}
    for name in STOCK_NAMES[shard::8]:
        template = stock_template(name)
        tokenizer = tokenizer_for(template)
        if "tool_calls" not in template or not _renders_calls(tokenizer):
            continue
        rows = encode_chats(tokenizer, SHAPES.values(), [TOOLS] * len(SHAPES), add_bos=False, add_eos=False)
        plain: dict[str, str] = {}
        for (shape, messages), row in zip(SHAPES.items(), rows, strict=True):
            reason = row.reason if isinstance(row, Refused) else "exact"
            assert reason == REASONS.get((name, shape), "exact"), (name, shape, row)
            if reason == "exact":
                _check(name, shape, tokenizer, messages, row, plain)
            if reason != "template_refused":  # which renders nothing
                counts["exact" if reason == "exact" else "refused"] += 1
    assert counts["exact"] > 0.9 * sum(counts.values())  # of all shards together 0.95: test_how_many_are_exact


def test_how_many_are_exact():
    """Of what the templates render: one that drops the text beside a call, or all calls but the first, does not."""
    mask = sum(reason == "mask_refused" for reason in REASONS.values())
    refused = sum(reason != "template_refused" for reason in REASONS.values())
    rows = len(SHAPES) * COUNT
    assert 1 - mask / rows > 0.98
    assert 1 - refused / rows > 0.945
    assert set(REASONS.values()) == {"mask_refused", "template_lost_text", "template_refused"}


def _check(name, shape, tokenizer, messages, row, plain):
    text = next(text for text in _render(tokenizer, messages) if _ids(tokenizer, text) == row.input_ids)
    runs = target_runs(tokenizer, row)
    turns = [message for message in messages if message["role"] == "assistant"]
    assert len(runs) == len(turns), (name, shape, runs)
    for message, run in zip(turns, runs, strict=True):
        own = _words(message) - DROPPED.get(name, set())
        assert own <= set(WORDS.findall(run)) <= own | {"zlook", "zbook"}, (name, shape, run)
        assert run in text, (name, shape, run)
        kind = "calls" if "tool_calls" in message else "answer"
        last = max(run.rfind(word) + len(word) for word in own)
        assert not HEADER.search(CLOSING.sub("", run[last:])), (name, shape, run)
        if kind == "calls" and shape != "last":
            assert run.endswith(plain.setdefault("end", run[-4:])), (name, shape, run)
        if kind == "calls" and shape not in ("with_text", "last"):  # whose reasoning templates may show
            start = run[: min(run.find(word) for word in own)]
            assert start == plain.setdefault("start", start), (name, shape, run)
    if shape == "text":
        places = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        for place, run in zip(places, runs, strict=True):
            _check_start(name, tokenizer, messages[:place], text, run)


def _check_start(name, tokenizer, before, text, run):
    """A run begins where the text behind question or result leaves the prompt there, but in no special token."""
    word = before[-1]["content"]
    prompts = [each for each in _render(tokenizer, before, add_generation_prompt=True) if word in each]
    prompt = next((each for each in prompts if text.startswith(each[: each.rindex(word)])), "".join(prompts[:1]))
    if word not in prompt:  # the template refuses a prompt there
        assert name in WITHOUT_PROMPTS, name
        return
    behind, prompted = (each[each.rindex(word) :] for each in (text, prompt))
    shared = next((i for i, (a, b) in enumerate(zip(behind, prompted, strict=False)) if a != b), len(prompted))
    for token in sorted(tokenizer.get_added_vocab(), key=len):
        for each in (behind, prompted):
            start = each.find(token, max(0, shared - len(token) + 1), shared + len(token) - 1)
            shared = start if 0 <= start < shared < start + len(token) else shared
    unlike = name in UNLIKE_THEIR_PROMPT or (name in UNLIKE_BEHIND_RESULTS and before[-1]["role"] == "tool")
    assert behind[shared:].startswith(run) or unlike, (name, behind, prompted, run)


def _render(tokenizer, messages, **options):
    """The texts of a trace with arguments as objects and as JSON text; without those that the template refuses."""
    for as_text in (False, True):
        with suppress(RefusedError):
            yield _render_template(tokenizer, _fill(messages, as_text), **options)


def _render_template(tokenizer, messages, **options):
    variables = get_special_tokens(tokenizer)
    return render_template(tokenizer.chat_template, messages, TOOLS, variables=variables, **options)


def _fill(messages, as_text):
    def fill(called):
        arguments = called["function"].get("arguments", {})
        arguments = json.dumps(arguments) if as_text else arguments
        return {**called, "function": {**called["function"], "arguments": arguments}}

    calls = [message.get("tool_calls", []) for message in messages]
    return [
        {**message, "tool_calls": [fill(each) for each in called]} if called else message
        for message, called in zip(messages, calls, strict=True)
    ]


def _renders_calls(tokenizer):
    rendered = (text.partition("zquestion")[2] for text in _render(tokenizer, SHAPES["text"]))
    return any("zlook" in text and "zvalue" in text for text in rendered)


def _ids(tokenizer, text):
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def _words(message):
    functions = [each["function"] for each in message.get("tool_calls", [])]
    return set(WORDS.findall(json.dumps([message["content"], functions])))


# What is refused, and why: the template drops the text beside a call or all calls but the first (template_lost_text),
# allows one call (template_refused), or writes no header before a call, or a message's text behind another's.
REFUSED = {
    ("mask_refused", "text list object scalars empty missing several out_of_order last"): """
        tiiuae-Falcon-H1-Tiny-Tool-Calling-90M tiiuae-Falcon3-7B-Instruct
    """,
    ("mask_refused", "text list object scalars empty missing several with_text out_of_order"): """
        danish-foundation-models-croco-munin-apertus-8b-da-simpo-full-50k
    """,
    ("mask_refused", "text list object scalars empty missing several with_text out_of_order last"): """
        CohereForAI-c4ai-command-r-plus-tool_use
    """,
    ("mask_refused", "with_text"): """
        Gryphe-Gemma-4-31B-StyleTune OBLITERATUS-gemma-4-E4B-it-OBLITERATED darthcrawl-Lilith-31B-v1.0
        ewald1976-G4-Plainsong-12B farbodtavakkoli-OTel-LLM-E4B-IT google-diffusiongemma-26B-A4B-it
        google-gemma-4-26B-A4B-it google-gemma-4-31B-it google-gemma-4-E4B-it nabin2004-AOS-gemma4-manim-sft
        yuxinlu1-gemma-4-12B-agentic-fable5-composer2.5-v2-3.5x-tau2
    """,
    ("template_lost_text", "last"): """
        nvidia-NVIDIA-Nemotron-Nano-12B-v2 nvidia-NVIDIA-Nemotron-Nano-9B-v2-Japanese
    """,
    ("template_lost_text", "several out_of_order"): """
        GigaChat3-10B-A1.8B GigaChat3.1-10B-A1.8B OpenGVLab-InternVL3_5-GPT-OSS-20B-A4B-Preview
        ai-sage-GigaChat3.1-10B-A1.8B microsoft-OptiMind-SFT
    """,
    ("template_lost_text", "several with_text out_of_order"): """
        CrowtherLabs-Atom-Electron-1.0 LLMWildling-gpt-oss-220a20b Salesforce-FARE-20B
        llm-jp-llm-jp-4-8b-instruct llm-jp-llm-jp-4-8b-thinking microsoft-SchGen openai-gpt-oss-120b
        openai-gpt-oss-safeguard-20b unsloth-gpt-oss-20b
    """,
    ("template_lost_text", "text list object scalars empty missing several with_text out_of_order last"): """
        moonshotai-Kimi-K2-Instruct moonshotai-Kimi-K2-Instruct-0905 moonshotai-Kimi-K2-Thinking
        moonshotai-Kimi-K2.5 moonshotai-Kimi-K2.6 moonshotai-Kimi-K2.7-Code
        moonshotai-Kimi-Linear-48B-A3B-Instruct
    """,
    ("template_lost_text", "with_text"): """
        0xA50C1A1-Mistral-Nemo-Instruct-2407-Heretic-v2 ApolloRaines-Llama-3.3-8B-Instruct-128K-Jbliterated
        Cohere2MoE CohereForAI-c4ai-command-r7b-12-2024-tool_use CohereLabs-command-a-plus-05-2026-w4a4
        DeSTA-ntu-Llama-3.1-8B-Instruct DeepHat-DeepHat-V1-7B KISTI-KONI-KONI-Llama3.1-8B-Instruct-20241024
        Mistral-Small-3.2-24B-Instruct-2506 Neelectric-Ministral-8B-Instruct-2410_SFT_mathv00.01
        NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use Novaciano-SEX_ROLEPLAY-3.2-1B
        OpenPipe-Llama-3.1-8B-Instruct Salesforce-Llama-xLAM-2-8b-fc-r Salesforce-xLAM-2-32b-fc-r
        Skywork-Skywork-Reward-Llama-3.1-8B arcee-ai-Arcee-SuperNova-v1
        atomgptlab-microscopy_gpt_llama3.2_vision_11b baseten-Llama-3.2-3B-Instruct-pythonic
        c4tdr0ut-grok-oss-Revenant-70B meta-llama-Llama-3.1-8B-Instruct meta-llama-Llama-3.2-3B-Instruct
        mistralai-Mistral-7B-Instruct-v0.3 mistralai-Mistral-Nemo-Instruct-2407
        nvidia-Llama-3.1-Nemotron-70B-Instruct-HF nvidia-Llama-3.1-Nemotron-Nano-8B-v1 sandbagging-games-cedar
        upstage-Solar-Open-100B zonzonzik-NMC-heretic-2-heretic
    """,
    ("template_refused", "list object scalars last"): """
        microsoft-FrogMini-14B-2510
    """,
    ("template_refused", "several out_of_order"): """
        ApolloRaines-Llama-3.3-8B-Instruct-128K-Jbliterated DeSTA-ntu-Llama-3.1-8B-Instruct
        KISTI-KONI-KONI-Llama3.1-8B-Instruct-20241024 Novaciano-SEX_ROLEPLAY-3.2-1B
        OpenPipe-Llama-3.1-8B-Instruct Skywork-Skywork-Reward-Llama-3.1-8B arcee-ai-Arcee-SuperNova-v1
        atomgptlab-microscopy_gpt_llama3.2_vision_11b c4tdr0ut-grok-oss-Revenant-70B
        meta-llama-Llama-3.1-8B-Instruct meta-llama-Llama-3.2-3B-Instruct
        nvidia-Llama-3.1-Nemotron-70B-Instruct-HF nvidia-Llama-3.1-Nemotron-Nano-8B-v1 sandbagging-games-cedar
    """,
}
REASONS = {
    (name, shape): reason
    for (reason, shapes), names in REFUSED.items()
    for name in names.split()
    for shape in shapes.split()
}
COUNT = 367  # templates that render calls
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
