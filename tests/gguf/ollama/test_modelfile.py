"""Modelfiles say what was trained, and Ollama reads back what was put in."""

import json
import shutil

import pytest
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.errors import ImpruverError
from impruver_gguf.ollama.go_template import translate_to_go
from impruver_gguf.ollama.modelfile import ModelDefaults, format_modelfile
from support.models import edit_json
from support.tokenizers import CHATML
from support.tokenizers import ROLE_TAGS as OWN


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
            format_modelfile("model.gguf", ModelDefaults(["<|im_end|>"], 512, {}, system))
        return
    text = format_modelfile("model.gguf", ModelDefaults(["<|im_end|>"], 512, {}, system))
    assert read(text) == [
        ("FROM", "./model.gguf"),
        ("stop", "<|im_end|>"),
        ("num_ctx", "512"),
        ("SYSTEM", system),
    ]


def test_a_line_that_would_end_the_text_is_refused():
    with pytest.raises(ImpruverError, match="ends the text in a Modelfile"):
        format_modelfile("model.gguf", ModelDefaults([], None, {}, 'first """ \nFROM elsewhere'))


@pytest.mark.parametrize("dropped", ["\u200b", "\u00ad", "\0", "\u202e", "\x7f", "\u3000", "\ue000", "\U000e0001"])
def test_characters_that_ollama_drops_hide_no_end_of_a_text(dropped):
    """Before it looks for quotes: what stands between them there is none."""
    text = f'x\n""{dropped}"{dropped}\nFROM /etc/passwd\nSYSTEM """y'
    for defaults in (
        ModelDefaults([], None, {}, text),
        ModelDefaults([text], None, {}),
        ModelDefaults([], None, {"stop": [text]}),
    ):
        with pytest.raises(ImpruverError, match="change that line"):
            format_modelfile("model.gguf", defaults)
    for text in (f'{dropped}"', f'{dropped}"""\nx', f'{dropped}"a"', f'a"{dropped}', f'{dropped}""'):
        try:
            written = format_modelfile("model.gguf", ModelDefaults([], None, {}, text))
        except ImpruverError:
            continue
        assert read(written) == [("FROM", "./model.gguf"), ("SYSTEM", text.replace(dropped, ""))]


def test_parameters():
    parameters = {"temperature": 0.5, "top_k": 40, "stop": ["a b", '"'], "num_ctx": 99, "penalize_newline": False}
    commands = read(format_modelfile("m.gguf", ModelDefaults(["<e>", "\n\n"], 512, parameters, None)))
    assert [value for name, value in commands if name == "stop"] == ["<e>", "\n\n", "a b", '"']
    others = {name: value for name, value in commands if name not in ("FROM", "stop")}
    assert others == {"num_ctx": "99", "temperature": "0.5", "top_k": "40", "penalize_newline": "false"}


DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|system|>Be {% raw %}{{ kind }}{% endraw %}.<|end|>{% endif %}" + OWN
)
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + OWN
GREETING = [{"role": role, "content": f" {role}: \n{{{{ . }}}}"} for role in ("system", "user", "assistant", "user")]
CHATS = [GREETING, GREETING[1:], GREETING[3:], [{"role": "user", "content": "<think>\nx\n</think>\n\n"}]]


@pytest.mark.parametrize(
    "template", [OWN, DEFAULT, "{{ bos_token }}" + OWN, OWN.replace("<|end|>", '<|end|>}}{{ "{{-" }}\n {{ "{{{" }}')]
)
def test_the_template_in_go_says_the_same(template, ollama):
    named = {"bos_token": "<s>", "eos_token": "<|end|>", "additional_special_tokens": ["<|user|>", "<|assistant|>"]}
    defaults = ModelDefaults([], None, {}, None, translate_to_go(template, named, "<s>"))
    written = dict(read(format_modelfile("m.gguf", defaults)))["TEMPLATE"]
    wanted = [render_template(template, chat, add_generation_prompt=True, variables=named) for chat in CHATS]
    assert ollama(written, CHATS) == [text.removeprefix("<s>") for text in wanted]


@pytest.mark.parametrize(
    "template",
    [
        CHATML,  # as Ollama's own
        TOOLS,  # where Ollama takes the Jinja
        OWN.replace("m['content']", "m['content'] | trim"),
        "{{ strftime_now('%Y-%m-%d') }}" + OWN,  # another text tomorrow
        "{{ date_string or '26 Jul 2024' }}" + OWN,
        OWN.replace("m['content']", "m['content'].split('</think>')[-1]"),
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + OWN,
    ],
)
def test_no_go_template_where_it_is_not_needed_or_not_exact(template):
    assert translate_to_go(template, {"eos_token": "<|im_end|>", "additional_special_tokens": []}, None) is None


def test_sampling_is_that_of_generation_config_and_recipe(adapter, gguf):
    saved = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
    (adapter / "generation_config.json").write_text(json.dumps(saved), encoding="utf-8")
    found = dict(made(gguf, adapter)[0])
    assert (found["temperature"], found["top_p"], found["top_k"], found["repeat_penalty"]) == (
        "0.6",
        "0.9",
        "20",
        "1.1",
    )
    assert found["repeat_last_n"] == "-1"
    flags = ("--set", "chat.temperature=0.3", "--set", "gguf.parameters={top_p: 0.5}")
    found = dict(made(gguf, adapter, *flags)[0])
    assert (found["temperature"], found["top_p"], found["top_k"]) == ("0.3", "0.5", "20")
    found = dict(made(gguf, adapter, "--set", "chat.do_sample=false")[0])
    assert found["temperature"] == "0"
    assert "top_p" not in found
    (adapter / "generation_config.json").write_text('{"temperature": "hot"}', encoding="utf-8")
    code, _, told = gguf("--output_dir", adapter)
    assert code == 2
    assert "generation_config.json: temperature must be a number" in told


def test_a_default_system_prompt_needs_a_template(adapter, gguf):
    edit_json(adapter / "tokenizer_config.json", chat_template=DEFAULT)
    commands = dict(made(gguf, adapter)[0])
    assert 'Be {{ "{{" }} kind }}.' in commands["TEMPLATE"]


def test_a_template_that_a_modelfile_can_not_hold_is_left_out(adapter, gguf):
    edit_json(adapter / "tokenizer_config.json", chat_template='<|x|>"""\n' + OWN)
    commands, told = made(gguf, adapter)
    assert "TEMPLATE" not in dict(commands)
    assert "no TEMPLATE is written" in told


def made(gguf, folder, *flags):
    code, _, told = gguf("--output_dir", folder, *flags)
    assert code == 0, told
    return read((folder / "gguf" / "Modelfile.f16").read_text(encoding="utf-8")), told


def test_what_the_files_say(adapter, gguf):
    commands, _ = made(gguf, adapter)
    assert commands == [("FROM", "./model-f16.gguf"), ("stop", "<|im_end|>"), ("num_ctx", "2048")]


def test_trainings_manifest_counts_for_more(adapter, gguf):
    trained = {"impruver": 1, "end_of_turn": ["<|a|>", "<|b|>"], "counts": {"longest_row": 3210}}
    trained["recipe"] = {"chat": {"system_prompt": "Be kind."}}
    (adapter / "impruver.json").write_text(json.dumps(trained), encoding="utf-8")
    commands, _ = made(gguf, adapter)
    assert commands[1:] == [("stop", "<|a|>"), ("stop", "<|b|>"), ("num_ctx", "3210"), ("SYSTEM", "Be kind.")]


def test_the_recipe_counts_for_most(adapter, gguf):
    (adapter / "impruver.json").write_text(
        json.dumps({"impruver": 1, "counts": {"longest_row": 3210}}), encoding="utf-8"
    )
    flags = ["--set", "gguf.num_ctx=77", "--set", "gguf.parameters={temperature: 0.2}"]
    flags += ["--set", "chat.system_prompt=Not me", "--set", "gguf.system_prompt=Be\u200dbrief"]
    commands, told = made(gguf, adapter, *flags)
    assert commands[2:] == [("num_ctx", "77"), ("temperature", "0.2"), ("SYSTEM", "Bebrief")]
    assert "U+200D" in told
    assert dict(made(gguf, adapter, *flags[:6])[0])["SYSTEM"] == "Not me"


CONTEXTS = {  # the model's limit, the longest row of training, the recipe's keys; the context, and why
    "a small model": (2048, None, [], 2048, "the model's limit"),
    "rows shorter than the limit": (2048, 300, [], 2048, "the model's limit"),
    "a large model": (131072, 300, [], 8192, "the model's limit is 131,072"),
    "long rows": (131072, 20000, [], 20000, "the longest row of training"),
    "asked for": (131072, 20000, ["gguf.num_ctx=131072"], 131072, "gguf.num_ctx"),
    "asked for as a parameter": (131072, None, ["gguf.num_ctx=5", "gguf.parameters.num_ctx=77"], 77, "gguf.parameters"),
    "no limit known": (None, 300, [], 8192, "as usual"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_context_is_that_of_usual_chats_and_of_every_row(name, tmp_path, tiny_base):
    from impruver_gguf.ollama.modelfile import find_model_defaults
    from impruver_gguf.sections import GgufSection

    limit, longest, asked, tokens, why = CONTEXTS[name]
    shutil.copytree(tiny_base, tmp_path / "m")
    edit_json(tmp_path / "m/config.json", max_position_embeddings=limit)
    keys = dict(pair.removeprefix("gguf.").split("=") for pair in asked)
    section = GgufSection(num_ctx=int(keys.get("num_ctx", 0)) or None)
    if "parameters.num_ctx" in keys:
        section = GgufSection(num_ctx=section.num_ctx, parameters={"num_ctx": int(keys["parameters.num_ctx"])})
    training = {"counts": {"longest_row": longest}} if longest else {}
    defaults = find_model_defaults(tmp_path / "m", [], training, section, {})
    assert (defaults.num_ctx, defaults.num_ctx_reason) == (tokens, why)
    commands = read(format_modelfile("m.gguf", defaults))
    assert [value for name, value in commands if name == "num_ctx"] == [str(tokens)]


def test_the_context_is_reported(adapter, gguf):
    edit_json(adapter / "config.json", max_position_embeddings=131072)
    commands, told = made(gguf, adapter)
    assert ("num_ctx", "8192") in commands
    assert "num_ctx of the Modelfiles: 8192 tokens (the model's limit is 131,072)" in told
    assert json.loads((adapter / "gguf/impruver.json").read_text(encoding="utf-8"))["num_ctx"] == 8192


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


def test_a_system_prompt_of_the_recipe_breaks_nothing(adapter, gguf):
    system = 'Say "no" to \\n and """ within a line.\nPARAMETER stop x'
    commands = dict(made(gguf, adapter, "--set", f"gguf.system_prompt={json.dumps(system)}")[0])
    assert commands["SYSTEM"] == system
    assert commands["stop"] == "<|im_end|>"
    code, _, told = gguf(
        "--output_dir", adapter, "--set", f"gguf.system_prompt={json.dumps(chr(34) * 3 + chr(10) + 'FROM x')}"
    )
    assert code == 2
    assert "change that line" in told
