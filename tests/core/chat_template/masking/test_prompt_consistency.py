"""Before the last learned answer: the text of training, what asks for it, and the reasoning that is lost."""

import pytest
from impruver_core.chat_template.masking.loss_mask import compare_prompt
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.errors import ImpruverError
from support.messages import assistant, system, user
from support.tokenizers import STOCK_NAMES, stock_template, tokenizer_for

SMOL, QWEN3 = "HuggingFaceTB-SmolLM2-135M-Instruct", "Qwen-Qwen3-0.6B"
CHATS = [
    [user("What is it?"), assistant("A stone.")],
    [system("Be kind."), user("What is it?"), assistant("A stone."), user("And that?"), assistant("A river. 🍏")],
]
ALL_THOUGHTS = (  # takes the tags away and writes its own
    "{% for m in messages %}{{ m.role }}: {% set parts = m.content.split('</think>') %}"
    "{% if parts | length == 2 %}<think>\n{{ parts[0].removeprefix('<think>') }}\n</think>{% endif %}"
    "{{ parts[-1] }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("part", range(4))
def test_both_texts_are_those_of_transformers(part):
    found = 0
    for name in STOCK_NAMES[part::24]:
        tokenizer = tokenizer_for(stock_template(name))
        for messages in CHATS:
            try:
                met = compare_prompt(TemplateSelector(tokenizer), messages)
            except ImpruverError:
                continue
            found += 1
            assert met.number == len(messages) - 1
            assert tokenizer.apply_chat_template(messages, tokenize=False).startswith(met.trained), name
            asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            assert met.prompt == asked, name
    assert found > 20


def test_the_last_answer_that_is_learned():
    templates = TemplateSelector(tokenizer_for(stock_template(SMOL)))
    messages = [*CHATS[0], user("And that?"), assistant("A river.", train=False)]
    assert compare_prompt(templates, messages).number == 1
    assert compare_prompt(templates, messages[:2]).trained == compare_prompt(templates, messages).trained
    assert compare_prompt(templates, messages[2:]) is None
    assert compare_prompt(templates, [user("no answer")]) is None


def test_reasoning_of_earlier_turns():
    tagged = [user("a"), assistant("<think>\nwhy\n</think>\n\nb"), user("c"), assistant("<think>how</think>d")]
    field = [user("a"), assistant("b", reasoning_content="why"), user("c"), assistant("d")]
    for template, lost in ((stock_template(QWEN3), True), (stock_template(SMOL), False), (ALL_THOUGHTS, False)):
        templates = TemplateSelector(tokenizer_for(template))
        assert compare_prompt(templates, tagged).strips_reasoning == lost
        assert not compare_prompt(templates, tagged[2:]).strips_reasoning
    assert compare_prompt(TemplateSelector(tokenizer_for(stock_template(QWEN3))), field).strips_reasoning
