"""Reasoning, text and calls told apart as an answer comes, in the words of stock templates."""

import json
import re

import pytest
from impruver_chat.responses.stream_parser import ResponseStreamParser
from impruver_chat.responses.template_markers import TemplateMarkers, find_markers
from impruver_core.chat_template.analysis.analyzer import analyze_template
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.rendering.renderer import render_template
from support.tokenizers import stock_template

SPECIAL = re.compile(r"<[|｜][^<>{}\s|]+[|｜]>|\[/?[A-Z_]{3,}\]|<(?:start|end)_of_turn>|</?s>")
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "What is it like?"}
THOUGHT = {"role": "assistant", "content": "It is fine, 好.", "reasoning_content": "Let me see:\n\nit is."}
PLAIN = {"role": "assistant", "content": "It is fine, 好."}
CALLS = [{"name": "get_weather", "arguments": {"city": "Rio", "days": 3}}, {"name": "now", "arguments": {"in": "UTC"}}]


class Template:
    """A stock template: its marks, and what a model has to say for a message."""

    def __init__(self, name):
        self.text = stock_template(name)
        self.specials = sorted(set(SPECIAL.findall(self.text)))
        self.shape = analyze_template(self.text, VARIABLES, self.specials)
        self.marks = find_markers(self.text, VARIABLES, self.shape)

    def render(self, *messages, prompt=False):
        messages = normalize_messages(messages, self.shape)
        return str.__str__(render_template(self.text, messages, add_generation_prompt=prompt, variables=VARIABLES))

    def said(self, message):
        """The text of the model's turn, without the token that ends it."""
        whole, prompt = self.render(USER, message), self.render(USER, prompt=True)
        assert whole.startswith(prompt.rstrip())
        said = whole[len(prompt.rstrip()) :]
        ends = [end for end in (*self.shape.stops, "<|call|>") if said.rstrip().endswith(end)]
        return said.rstrip().removesuffix(ends[0]) if ends else said.rstrip()


def heard(marks, text, size=1):
    """(the message, the pieces by kind) of an answer that comes in pieces."""
    pieces = {"reasoning": "", "text": ""}

    def emit(kind, piece):
        pieces[kind] += piece

    speech = ResponseStreamParser(marks, emit)
    for at in range(0, len(text), size):
        speech.feed(text[at : at + size])
    return speech.finish(), pieces


THINKING = [
    "Qwen-Qwen3-0.6B@a55ee1",
    "openai-gpt-oss-120b",
    "mistralai-Ministral-3-3B-Reasoning-2512",
    "zai-org-GLM-5.1",
]
CALLING = [
    "Qwen-Qwen3-0.6B@a55ee1",
    "Qwen-Qwen3-VL-8B-Instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "mistralai-Ministral-3-3B-Reasoning-2512",
    "deepseek-ai-DeepSeek-V3.1",
    "Qwen-Qwen3.6-35B-A3B",
    "zai-org-GLM-4.5-Air",
]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("name", THINKING)
def test_reasoning_of_stock_templates(name, size):
    template = Template(name)
    assert template.marks.reasoning.has_field
    message, pieces = heard(template.marks, template.said(THOUGHT), size)
    assert message == THOUGHT
    assert pieces | {"reasoning": pieces["reasoning"].strip()} == {
        "reasoning": THOUGHT["reasoning_content"],
        "text": THOUGHT["content"],
    }
    assert template.render(USER, message, USER) == template.render(USER, THOUGHT, USER)
    assert heard(template.marks, template.said(PLAIN), size)[0] == PLAIN


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", CALLING)
def test_calls_of_stock_templates(name, count):
    template = Template(name)
    content = json.dumps(CALLS[0] if count == 1 else CALLS)
    message, pieces = heard(template.marks, template.said({"role": "function_call", "content": content}))
    assert (message["role"], json.loads(message["content"])) == ("function_call", json.loads(content))
    assert pieces["text"].strip() == ""


def test_calls_stay_as_the_model_wrote_them_for_a_role_of_calls():
    template = Template("Qwen-Qwen3-Coder-Next")
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALLS[0]}]}
    message, _ = heard(template.marks, template.said(called))
    assert [call["function"] for call in message["tool_calls"]] == [CALLS[0]]
    assert template.render(USER, message) == template.render(USER, called)


def test_a_call_behind_reasoning_and_text():
    template = Template("Qwen-Qwen3-0.6B@a55ee1")
    text = "<think>\nhm\n</think>\n\nI look.\n" + '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    message, pieces = heard(template.marks, text)
    assert message == {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": "now", "arguments": {}}}],
    }
    assert "<tool_call>" in template.render(USER, message)
    assert pieces == {"reasoning": "hm\n", "text": "I look.\n"}


@pytest.mark.parametrize(
    "broken", ['{"name": "now", "arg', '{"name": 5}', "no JSON", '{"name": "now", "arguments": {}} x']
)
def test_what_is_no_call_is_shown_as_text(broken):
    marks = Template("Qwen-Qwen3-VL-8B-Instruct").marks
    message, pieces = heard(marks, f"So:\n<tool_call>\n{broken}")
    assert message == {"role": "assistant", "content": f"So:\n<tool_call>\n{broken}"}
    assert pieces["text"] == message["content"]


def test_bare_json_is_a_call_where_calls_have_a_role():
    template = Template("NousResearch-Meta-Llama-3.1-8B-Instruct")
    assert template.marks.supports_function_roles
    text = json.dumps(CALLS[0])
    assert heard(template.marks, text)[0] == {"role": "function_call", "content": text}
    assert heard(template.marks, "{}")[0] == {"role": "assistant", "content": "{}"}
    assert heard(TemplateMarkers(), text)[0] == {"role": "assistant", "content": text}


def test_reasoning_stays_in_the_text_where_the_template_wants_it():
    message, pieces = heard(TemplateMarkers(), "<think>hm</think>\n\nyes")
    assert message == {"role": "assistant", "content": "<think>hm</think>\n\nyes"}
    assert pieces == {"reasoning": "hm", "text": "yes"}
    opened = Template("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B@56a144").marks
    assert opened.starts_in_reasoning
    message, pieces = heard(opened, "hm\n</think>\n\nyes")
    assert message == {"role": "assistant", "content": "hm\n</think>\n\nyes"}
    assert pieces == {"reasoning": "hm\n", "text": "yes"}


@pytest.mark.parametrize("text", ["", "  ", "  a <b", "<", "<thin", "a <think>b</think>", "<think", "\n\na"])
def test_text_without_marks_comes_as_it_is(text):
    message, pieces = heard(TemplateMarkers(), text)
    assert message == {"role": "assistant", "content": text}
    assert pieces == {"reasoning": "", "text": text}
