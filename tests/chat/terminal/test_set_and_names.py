"""What /set and /think reach in the chat template, names of commands by meaning, history as the context has it."""

import json
import shutil

import pytest
from impruver_core import encode_prompt
from support.chat_models import WORDS
from support.jsonl import read_jsonl
from support.messages import user
from support.models import edit_json


@pytest.fixture
def switched(copy):
    """Writes a chat template that reads this argument before the one of `full`; the folder, and its tokenizer."""
    from transformers import AutoTokenizer

    def write(switch):
        folder = copy("full")
        template = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").write_text(switch + template)
        return folder, AutoTokenizer.from_pretrained(folder)

    return write


def test_think_and_set_reach_the_template(talk, recipe, switched, given):
    folder, tokenizer = switched(
        "{% if enable_thinking is defined %}{{ 'on ' if enable_thinking else 'off ' }}{% endif %}"
        "{{ mood | default('') }}"
    )
    asked = ["red", "/reset", "/think off", "red", "/reset", "/think on", "red", "/reset", "/set mood glad", "red"]
    named = ["/reset", "/set chat_template_kwargs.enable_thinking false", "/set mood null", "red", "/reset"]
    whole = ["/set chat_template_kwargs {mood: 5}", "red", "/reset", "/set chat_template_kwargs null", "red", "/set"]
    wrong = ["/think maybe", "/set mod x", "/set mood", "/set mood [", "/set chat_template_kwargs 5", "/think"]
    keys = {"tokenizer": {"chat_template_kwargs": {"mood": "calm"}}}
    _, err = talk(recipe(folder, **keys), *asked, *named, *whole, *wrong, "/set chat_template_kwargs.odd 1")
    used = [
        {"mood": "calm"},
        {"mood": "calm", "enable_thinking": False},
        {"mood": "calm", "enable_thinking": True},
        {"mood": "glad", "enable_thinking": True},
        {"mood": "calm", "enable_thinking": False},
        {"mood": 5},
        {"mood": "calm"},
    ]
    assert given == [encode_prompt(tokenizer, [user("red")], chat_template_kwargs=kwargs) for kwargs in used]
    for told in (
        "reasoning: off (enable_thinking)",
        "chat template: enable_thinking true, mood glad\n",
        "chat template: none (it reads: enable_thinking, mood)",
        "history_limit none",
        "warning: /think on or /think off",
        "warning: no parameter mod, did you mean mood?; there are ",
        "warning: mood: give a value, too",
        "warning: mood: '[' is no value in YAML",
        "warning: chat_template_kwargs: a mapping of names is wanted",
        "reasoning: as the chat template or recipe has it (enable_thinking)",
        "note: the chat template does not read odd",
    ):
        assert told in err, told


def test_a_prompt_that_opens_the_reasoning_only_when_it_is_on(talk, recipe, thinker, tmp_path):
    """The answer is read as what the prompt makes of it, whatever the switch was when the model was loaded."""
    folder = shutil.copytree(thinker, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    opened = "<|assistant|>{% if thinking %}<think>{% endif %}{% endif %}"
    (folder / "chat_template.jinja").write_text(template.replace("<|assistant|>{% endif %}", opened))
    out, err = talk(recipe(folder), "think", "/reset", "/think on", "think")
    assert out.splitlines() == ["ответ", "ответ"]
    assert err.count("let me see") == 2


def test_a_template_without_a_switch_says_so(talk, recipe):
    _, err = talk(recipe(), "/think on", "/set enable_thinking true")
    assert "warning: the model's chat template has no switch for reasoning" in err
    assert "warning: no parameter enable_thinking; there are " in err


NAMES = {
    "/quit": ["/exit", "/q", "/bye", "/EXIT"],
    "/reset": ["/clear", "/new", "/forget", "/cler"],
    "/retry": ["/regenerate", "/regen", "/again", "/regenrate", "/redo"],
    "/resume": ["/load", "/restore", "/continue"],
    "/help": ["/?", "/commands", "/h", "/hepl"],
    "/undo": ["/delete", "/rewind", "/edit"],
    "/set": ["/temperature", "/settings", "/options"],
    "/think": ["/thinking", "/reasoning", "/no-think", "/no_think"],
    "/save": ["/export", "/write"],
    "/system": ["/persona", "/prompt", "/sys"],
}


def test_unknown_commands_by_meaning_and_plain_words_that_leave(talk, recipe):
    typed = [(name, meant) for meant, names in NAMES.items() for name in names]
    out, err = talk(recipe(), *(name for name, _ in typed), "/zzzzzz", "exit now", "Quit", "red")
    for name, meant in typed:
        assert f"warning: no command {name}, did you mean {meant}?" in err
    assert "no command /zzzzzz; /help lists them" in err
    assert len(out.splitlines()) == 1  # "exit now" is a question, and nothing came after Quit


def test_history_is_what_the_context_holds_unless_a_limit_is_given(talk, recipe, given, copy, tmp_path):
    from transformers import AutoTokenizer

    words = [*WORDS, *WORDS, *WORDS]
    _, err = talk(recipe(), *words, f"/save {tmp_path / 'a'}")
    tokenizer = AutoTokenizer.from_pretrained(json.loads(recipe().read_text())["output_dir"])
    assert given[-1] == encode_prompt(tokenizer, read_jsonl(tmp_path / "a")[0]["messages"][:-1])
    assert len(given) == len(words)
    assert "forgotten" not in err
    # An answer may be as long as the context: history still has most of it.
    folder = copy("full")
    edit_json(folder / "config.json", max_position_embeddings=200)
    given.clear()
    _, err = talk(recipe(folder), *words, flags=["--max_new_tokens", "200"])
    assert "oldest messages are forgotten: the model's context is 200 tokens" in err
    assert all(len(ids) <= 150 for ids in given)
    assert len(given[-1]) > 75
    _, err = talk(recipe(chat={"history_limit": 3}), "red", "green", "/set history_limit none", "blue", "white")
    assert "forgotten" not in err
