"""On every stock template: exact, or refused. Judged from outside, by renderings of the conversation's prefixes."""

import re

import pytest
from impruver_core import Refused, encode_chats
from support.messages import assistant, system, user
from support.tokenizers import STOCK_NAMES, stock_template, target_runs, tokenizer_for

CHATS = {
    "two": [user("What is the capital of France?"), assistant("Paris it is."), user("And Italy?"), assistant("Rome.")],
    "system": [system("Be brief."), user("Привет"), assistant("Как дела?"), user("assistant"), assistant("assistant")],
    "padded": [user("  hello \n"), assistant(" \n Paris \n\n"), user("user"), assistant("user\n")],
}
ENCODED_AT_LEAST = 0.9  # of the chats that templates render; some render them in part, some are no chat templates


ROLE = re.compile("assistant|user|system|human", re.IGNORECASE)
CLOSING = re.compile(r"</assistant>|<\|(?:/assistant|assistant_end)\|>|<｜hy_Assistant｜>")


@pytest.mark.parametrize("shard", range(8))
def test_exact_or_refused(shard):
    rendered = encoded = 0
    for name in STOCK_NAMES[shard::8]:
        tokenizer = tokenizer_for(stock_template(name))
        chats = list(CHATS.values())
        for messages, row in zip(chats, encode_chats(tokenizer, chats, add_bos=False, add_eos=False), strict=True):
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False)
            except Exception:  # jinja2's, or whatever Python raises inside a template
                assert isinstance(row, Refused), name
                continue
            rendered += 1
            if isinstance(row, Refused):
                assert row.reason in ("template_lost_text", "mask_refused"), (name, row)
                continue
            encoded += 1
            expected = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            assert row.input_ids == expected["input_ids"], name
            runs = target_runs(tokenizer, row)
            answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
            assert len(runs) == len(answers), (name, runs)
            assert all(answer in run for answer, run in zip(answers, runs, strict=True)), (name, runs)
            asked = [message["content"].strip() for message in messages if message["role"] != "assistant"]
            assert not any(words in run for words in asked for run in runs if words not in answers), (name, runs)
            _check_ends(name, tokenizer, runs, answers)
            _check_start(name, tokenizer, messages, text, row, expected["offset_mapping"])
    assert encoded >= ENCODED_AT_LEAST * rendered


def _check_ends(name, tokenizer, runs, answers):
    """Behind an answer a run has the end of its turn, and no header: no role but in a closing tag, no prose."""
    for run, answer in zip(runs, answers, strict=True):
        behind = CLOSING.sub("", run[run.rindex(answer) + len(answer) :])
        assert not ROLE.search(behind), (name, run)
        assert len(behind) < 60, (name, run)


def _check_start(name, tokenizer, messages, text, row, offsets):
    """The last run starts where the text leaves the prompt: at that character, or with the token that holds it."""
    before = messages[:-1]
    prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
    if prompt == tokenizer.apply_chat_template(before, tokenize=False) or name in UNLIKE_THEIR_PROMPT:
        return
    pairs = enumerate(zip(text, prompt, strict=False))
    border = next((i for i, (a, b) in pairs if a != b), min(len(text), len(prompt)))
    first = next(i for i, (start, end) in enumerate(offsets) if end > border and start < end)
    last_run = len(row.labels) - next(i for i, label in enumerate(row.labels[::-1]) if label != -100) - 1
    while last_run and row.labels[last_run - 1] != -100:
        last_run -= 1
    # A special token is not cut: <｜Assistant｜></think> shares no "<" with <｜Assistant｜><think>.
    assert last_run == first, (name, tokenizer.decode(row.input_ids[last_run:]), text[border:])


# Their answers do not start as their prompts do: a blank more, a token more, a thought that only the prompt asks for.
UNLIKE_THEIR_PROMPT = (
    "Motif-Technologies-Motif-2-12.7B-Instruct",
    "Motif-Technologies-Motif-2-12.7B-Reasoning",
    "SvalTek-Q3-CharThink-9B-temp",
    "ai21labs-AI21-Jamba-Reasoning-3B",
    "allenai-Molmo2-8B",
    "upstage-solar-pro2-tokenizer",
)
