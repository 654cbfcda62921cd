"""Modelfiles say what was trained, and Ollama reads back what was put in."""

import json

import pytest
from impruver_core.errors import ImpruverError
from impruver_gguf.modelfile import modelfile
from make_models import edit_json


def read(text: str) -> list[tuple[str, str]]:
    """(name, value) of each command, by the rules of Ollama's parser: quotes without escapes, ended at a line's end."""
    commands, value, name = [], None, ""
    for char in text:
        if value is None:
            name += char
            words = name.split()
            whole = len(words) == (2 if words and words[0] == "PARAMETER" else 1)
            if words and whole and char in " \t":
                name, value = words[-1], ""
            continue
        if char in "\r\n" and (done := unquoted(value.strip())) is not None:
            commands.append((name, done))
            name, value = "", None
        elif char.isprintable() or char in "\r\n\t":
            value += char
    assert not name.strip()
    return commands


def unquoted(text: str) -> str | None:
    for quote in ('"""', '"'):
        if text.startswith(quote):
            whole = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if whole else None
    return text


SYSTEMS = [
    "You answer briefly.",
    'He said "hello" and left',
    '"Quoted" from the start',
    'ends in a quote"',
    '"""',
    'three """ within a line',
    'starts\n"""on a line',
    "two\nlines\n\nand a blank one",
    "back\\slashes \\n stay, 'single' too",
    "PARAMETER stop x\nFROM /etc/passwd\nSYSTEM evil",
    '"\nFROM elsewhere',
    '""""\nFROM elsewhere"',
    "  blanks around  ",
    "# no comment",
]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_prompt_is_read_back(system):
    if any(line.rstrip().endswith('"""') for line in system.split("\n")[:-1]):
        with pytest.raises(ImpruverError, match="change that line"):
            modelfile("model.gguf", ["<|im_end|>"], 512, {}, system)
        return
    text = modelfile("model.gguf", ["<|im_end|>"], 512, {}, system)
    assert read(text) == [
        ("FROM", "./model.gguf"),
        ("stop", "<|im_end|>"),
        ("num_ctx", "512"),
        ("SYSTEM", system),
    ]


def test_a_line_that_would_end_the_text_is_refused():
    with pytest.raises(ImpruverError, match="ends the text in a Modelfile"):
        modelfile("model.gguf", [], None, {}, 'first """ \nFROM elsewhere')


def test_parameters():
    parameters = {"temperature": 0.5, "top_k": 40, "stop": ["a b", '"'], "num_ctx": 99, "penalize_newline": False}
    commands = read(modelfile("m.gguf", ["<e>", "\n\n"], 512, parameters, None))
    assert [value for name, value in commands if name == "stop"] == ["<e>", "\n\n", "a b", '"']
    others = {name: value for name, value in commands if name not in ("FROM", "stop")}
    assert others == {"num_ctx": "99", "temperature": "0.5", "top_k": "40", "penalize_newline": "false"}


def made(gguf, folder, *flags):
    code, _, told = gguf("--output_dir", folder, *flags)
    assert code == 0, told
    return read((folder / "gguf" / "Modelfile.f16").read_text(encoding="utf-8")), told


def test_what_the_files_say(adapter, gguf):
    commands, _ = made(gguf, adapter)
    assert commands == [("FROM", "./model-f16.gguf"), ("stop", "<|im_end|>"), ("num_ctx", "2048")]


def test_trainings_manifest_counts_for_more(adapter, gguf):
    trained = {"impruver": 1, "end_of_turn": ["<|a|>", "<|b|>"], "max_tokens_count": 321}
    trained["recipe"] = {"chat": {"system_prompt": "Be kind."}}
    (adapter / "impruver.json").write_text(json.dumps(trained), encoding="utf-8")
    commands, _ = made(gguf, adapter)
    assert commands[1:] == [("stop", "<|a|>"), ("stop", "<|b|>"), ("num_ctx", "321"), ("SYSTEM", "Be kind.")]


def test_the_recipe_counts_for_most(adapter, gguf):
    (adapter / "impruver.json").write_text(json.dumps({"impruver": 1, "max_tokens_count": 321}), encoding="utf-8")
    flags = ["--set", "gguf.num_ctx=77", "--set", "gguf.parameters={temperature: 0.2}"]
    flags += ["--set", "chat.system_prompt=Not me", "--set", "gguf.system_prompt=Be\u200dbrief"]
    commands, told = made(gguf, adapter, *flags)
    assert commands[2:] == [("num_ctx", "77"), ("temperature", "0.2"), ("SYSTEM", "Bebrief")]
    assert "U+200D" in told
    assert dict(made(gguf, adapter, *flags[:6])[0])["SYSTEM"] == "Not me"


def test_a_tokenizer_without_a_template_has_no_stops(adapter, gguf):
    edit_json(adapter / "tokenizer_config.json", chat_template=None)
    assert [name for name, _ in made(gguf, adapter)[0]] == ["FROM", "num_ctx"]


@pytest.mark.parametrize("name", ["a b", "x\nFROM", "", "tempé"])
def test_a_parameter_is_one_word(name, adapter, gguf):
    code, _, told = gguf("--output_dir", adapter, "--set", f"gguf.parameters={json.dumps({name: 1})}")
    assert code == 2
    assert "gguf" in told


@pytest.mark.parametrize("value", [None, "", {"a": 1}, [[1]], [None], float("nan")])
def test_a_parameter_has_a_value_that_a_line_can_hold(value, adapter, gguf):
    flag = f"gguf.parameters={json.dumps({'stop': value}).replace('NaN', '.nan')}"
    code, _, told = gguf("--output_dir", adapter, "--set", flag)
    assert code == 2
    assert "stop" in told
    assert "neither a text, a number" in told
