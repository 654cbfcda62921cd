"""The chat template on its way into a GGUF: no generation tags, and llama.cpp's engine where one is at hand."""

import json
import sys

import pytest
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_gguf.vocab.vocabulary import strip_generation_tags
from support.gguf_cases import read_quality
from support.jsonl import write_jsonl
from support.messages import conversation
from support.models import edit_json
from support.oracles import write_program

BODY = "{{ message['content'] }}<|im_end|>"
FORMS = [
    "{% generation %}" + BODY + "{% endgeneration %}",
    "{%- generation -%}" + BODY + "{%- endgeneration -%}",
    "{%- generation %}\n  " + BODY + "\n  {% endgeneration -%}",
    "\n    {% generation %}\n" + BODY + "\n    {% endgeneration %}\n\n",
    " x {%generation%} " + BODY + " {%endgeneration%} y ",
    "a\n{%+ generation %}" + BODY + "\n{% endgeneration +%}\nb",
    "{% generation %}" + BODY + "\n{% endgeneration %}",
]
AROUND = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{FORM}{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = conversation("Hi", "  Ho\n")["messages"] * 2


@pytest.mark.parametrize("form", FORMS)
def test_generation_tags_go_and_nothing_else_changes(form):
    template = AROUND.replace("{FORM}", form)
    exported = strip_generation_tags(template)
    assert "generation %}" not in exported.replace("add_generation_prompt", "")
    for prompt in (False, True):
        before = render_template(template, MESSAGES, add_generation_prompt=prompt)
        assert render_template(exported, MESSAGES, add_generation_prompt=prompt) == before
    assert strip_generation_tags(exported) == exported


def test_plain_tags_are_just_taken_out():
    template = AROUND.replace("{FORM}", FORMS[0])
    assert strip_generation_tags(template) == AROUND.replace("{FORM}", BODY)


LITERALS = [
    "{{ '{% generation %}' }}",
    "{% raw %}\r\n  {% generation %}{% endraw %}\n",
    "{# {% endgeneration %} #}\r\n",
]


@pytest.mark.parametrize("literal", LITERALS)
def test_tags_in_texts_stay(literal):
    template = literal + "\n {%- if true %} x{% endif -%}  " + AROUND.replace("{FORM}", FORMS[0])
    assert strip_generation_tags(template) == template.replace(FORMS[0], BODY)


def template_in(folder) -> str:
    from gguf import GGUFReader

    return GGUFReader(folder / "gguf/model-f16.gguf").get_field("tokenizer.chat_template").contents()


def test_what_stands_in_the_file(tiny, proven):
    (tiny / "chat_template.jinja").write_text(AROUND.replace("{FORM}", FORMS[3]), encoding="utf-8")
    edit_json(tiny / "tokenizer_config.json", chat_template=None)
    write_jsonl(tiny / "heldout.jsonl", [conversation("Hi", "Ho")])
    code, _, told = proven("--output_dir", tiny)
    assert code == 0, told
    assert template_in(tiny) == strip_generation_tags(AROUND.replace("{FORM}", FORMS[3]))
    assert "endgeneration" not in template_in(tiny)


def test_several_templates_keep_their_names(tiny, proven):
    named = [
        {"name": name, "template": AROUND.replace("{FORM}", form)} for name, form in zip("ab", FORMS, strict=False)
    ]
    named[0]["name"] = "default"
    edit_json(tiny / "tokenizer_config.json", chat_template=named)
    code, _, told = proven("--output_dir", tiny)
    assert code == 0, told
    assert template_in(tiny) == AROUND.replace("{FORM}", BODY)


OTHER, TOOLS = AROUND.replace("{FORM}", "! " + BODY), AROUND.replace("{FORM}", "{{ tools }}" + BODY)
SHORT = "{{ messages | length }}"
LISTED = [{"name": "default", "template": OTHER}, {"name": "rag", "template": SHORT}]
PLACES = {  # tokenizer_config.json's chat_template, files of templates
    "a file wins": (OTHER, {"chat_template.jinja": TOOLS}),
    "the configuration alone": (OTHER, {}),
    "the configuration, null, and a file": (None, {"chat_template.jinja": OTHER}),
    "a file wins over a list": (LISTED, {"chat_template.jinja": TOOLS}),
    "a list": (LISTED, {}),
    "a list of none": ([], {}),
    "an object": ({"default": OTHER, "tool_use": TOOLS}, {}),
    "further files": (
        OTHER,
        {
            "chat_template.jinja": TOOLS,
            "additional_chat_templates/tool_use.jinja": OTHER,
            "additional_chat_templates/a-b.jinja": SHORT,
        },
    ),
    "further files win alone": (LISTED, {"additional_chat_templates/tool_use.jinja": SHORT}),
}


@pytest.fixture
def placed(tiny):
    """Puts chat templates into a copy of the small Llama, as PLACES has them."""

    def place(name: str):
        in_config, files = PLACES[name]
        config = json.loads((tiny / "tokenizer_config.json").read_text(encoding="utf-8"))
        (tiny / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": in_config}), encoding="utf-8")
        (tiny / "chat_template.jinja").unlink(missing_ok=True)
        for path, text in files.items():
            (tiny / path).parent.mkdir(exist_ok=True)
            (tiny / path).write_text(text, encoding="utf-8")
        return tiny

    return place


def templates_in(path) -> dict[str, str]:
    """The chat templates of a GGUF file by the names in its keys."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    found = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.chat_template")}
    named = found.pop("tokenizer.chat_templates", [])
    assert named == sorted(key.rpartition(".")[2] for key in found if key != "tokenizer.chat_template")
    return {key.removeprefix("tokenizer.chat_template").lstrip(".") or "default": text for key, text in found.items()}


@pytest.mark.parametrize("name", PLACES)
def test_templates_are_those_that_transformers_reads(name, placed, proven):
    """The file, and what it is proven against: impruver-chat has the tokenizer's template from transformers."""
    from transformers import AutoTokenizer

    folder = placed(name)
    expected = AutoTokenizer.from_pretrained(folder).chat_template or {}
    expected = {"default": expected} if isinstance(expected, str) else expected
    has_default = "default" in expected
    write_jsonl(folder / "heldout.jsonl", [conversation("Hi", "Ho") if has_default else {"text": "Hi there"}])
    code, _, told = proven("--output_dir", folder)
    assert code == 0, told
    written = templates_in(folder / "gguf/model-f16.gguf")
    assert written == {name.replace("-", "_"): text for name, text in expected.items()}
    assert list(read_quality(folder)) == ["f16", "q8_0"]


def test_names_that_a_gguf_file_would_not_tell_apart(placed, refused):
    folder = placed("further files")
    (folder / "additional_chat_templates/a_b.jinja").write_text(OTHER, encoding="utf-8")
    refused(folder, "a-b and a_b would both be tokenizer.chat_template.a_b in a GGUF file")


@pytest.mark.parametrize("name", [name for name, (_, files) in PLACES.items() if files])
def test_llama_cpps_script_is_given_the_template_in_force(name, placed, gguf, tmp_path):
    from impruver_gguf.vocab.saved_tokenizer import read_chat_templates

    folder = placed(name)
    edit_json(folder / "config.json", architectures=["NewForCausalLM"])
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(GIVEN, encoding="utf-8")
    before = (folder / "tokenizer_config.json").read_bytes()
    code, _, told = gguf("--output_dir", folder, "--llama_cpp_convert_script", script, "--quantization_levels")
    assert code == 0, told
    read = json.loads((folder / "gguf/model-f16.gguf").read_text(encoding="utf-8"))
    template = read["chat_template"]
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    assert template == read_chat_templates(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(read["files"])
    assert (folder / "tokenizer_config.json").read_bytes() == before


GIVEN = """
import json, pathlib, sys
from gguf import SpecialVocab
folder = pathlib.Path(sys.argv[1])
files = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix in (".json", ".safetensors"))
read = {"chat_template": SpecialVocab(folder).chat_template, "files": files}
pathlib.Path(sys.argv[3]).write_text(json.dumps(read))
"""
SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
import jinja2
from gguf import GGUFReader
given = dict(zip(sys.argv[1::1], sys.argv[2::1]))
template = GGUFReader(given["-m"]).get_field("tokenizer.chat_template").contents()
how = sys.argv[0].rpartition(".")[2]
if how == "broken":
    sys.exit("no such model architecture")
environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)


class Handler(BaseHTTPRequestHandler):
    def answer(self, code, content):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def do_GET(self):
        self.answer(200, {"status": "ok"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if how == "old" or self.path != "/apply-template":
            return self.answer(404, {})
        if how == "refusing":
            return self.answer(500, {"error": "no filter named tojson"})
        if how == "trimming":
            asked["messages"] = [m | {"content": m["content"].strip()} for m in asked["messages"]]
        self.answer(200, {"prompt": environment.from_string(template).render(**asked)})

    def log_message(self, *_):
        pass


HTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()
"""
ENDS = {  # exit code, what is told
    "right": (0, "renders 1 conversations as the tokenizer's template does"),
    "trimming": (3, "renders", "otherwise", "Hi  there  <|im_end|>", "Hi  there<|im_end|>", "heldout.jsonl, line 1"),
    "refusing": (3, "refuses", "no filter named tojson"),
    "old": (0, "too old to render templates"),
    "broken": (0, "does not start", "no such model architecture"),
}


@pytest.mark.parametrize("how", ENDS)
def test_llama_cpps_own_engine_is_asked_where_it_is_there(how, tiny, proven, tmp_path):
    folder = tmp_path / "llama.cpp/build/bin"
    folder.mkdir(parents=True)
    program = folder / f"server.{how}"
    write_program(program, f"#!{sys.executable}{SERVER}")
    write_program(folder / "llama-server", f'#!/bin/sh\nexec "{program}" "$@"\n')
    (tiny / "chat_template.jinja").write_text(AROUND.replace("{FORM}", FORMS[0]), encoding="utf-8")
    edit_json(tiny / "tokenizer_config.json", chat_template=None)
    write_jsonl(tiny / "heldout.jsonl", [conversation("Hi  there  ", "Ho")])
    code, _, told = proven("--output_dir", tiny, "--llama_cpp", tmp_path / "llama.cpp")
    wanted, *words = ENDS[how]
    assert code == wanted, told
    for word in words:
        assert word in told, told
    assert list(read_quality(tiny)) == ["f16", "q8_0"]
    failed = json.loads((tiny / "gguf/impruver.json").read_text(encoding="utf-8")).get("failed")
    assert failed == (["f16", "q8_0"] if wanted else None)  # the level is made from it


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
DATED = (
    "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}\n"
    + AROUND.replace("{FORM}", BODY)
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALLED = [
    {"role": "user", "content": " Rain?\n"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "Yes"},
]
ASKED = {  # template, kwargs of the row, what llama-server is to be started with
    "plain": (AROUND.replace("{FORM}", BODY), {}, None),
    "thinks by itself": (THINKS, {}, '{"enable_thinking": false}'),
    "thought in training": (THINKS, {"enable_thinking": True}, None),
    "told not to": (THINKS, {"enable_thinking": False}, '{"enable_thinking": false}'),
    "a day": (DATED, {}, "the day in training's text"),
    "a day of the recipe": (DATED, {"date_string": "01 Jan 2026"}, '{"date_string": "01 Jan 2026"}'),
}


@pytest.mark.parametrize("how", ASKED)
def test_llama_cpps_real_engine_renders_alike(how, tiny, proven, llama_cpp):
    template, kwargs, needed = ASKED[how]
    (tiny / "chat_template.jinja").write_text(template, encoding="utf-8")
    edit_json(tiny / "tokenizer_config.json", chat_template=None)
    rows = [
        conversation("Hi  there {{ x }} ", 'Ho "'),
        {"messages": [{"role": "system", "content": " s\n"}, *MESSAGES]},
    ]
    if template == THINKS:
        rows.append({"messages": CALLED, "tools": [{"type": "function", "function": TOOL}]})
    write_jsonl(tiny / "heldout.jsonl", [row | {"chat_template_kwargs": kwargs} for row in rows])
    code, _, told = proven("--output_dir", tiny, "--llama_cpp", llama_cpp)
    assert code == 0, told
    assert f"renders {len(rows)} conversations as the tokenizer's template does" in told
    assert (needed or "llama-server asks as training did only") in told if needed else "asks as training" not in told


def test_what_llama_cpps_real_engine_renders_otherwise(tiny, proven, llama_cpp):
    """It defines a variable that the template asks for, and no value of it is what training had: none."""
    template = THINKS.replace("{% if enable_thinking %}", "{% if enable_thinking is defined %}")
    (tiny / "chat_template.jinja").write_text(template, encoding="utf-8")
    edit_json(tiny / "tokenizer_config.json", chat_template=None)
    write_jsonl(tiny / "heldout.jsonl", [conversation("Hi", "Ho")])
    code, _, told = proven("--output_dir", tiny, "--llama_cpp", llama_cpp)
    assert code == 3
    assert "llama.cpp's engine renders" in told
    assert "assistant\\n<think>" in told
