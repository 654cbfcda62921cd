"""Tokenizers as a recipe describes them."""

from types import SimpleNamespace

import pytest
from impruver_core import ImpruverError, encode_chat, load_recipe, load_tokenizer
from impruver_core.tokenizer import compute_template_fingerprint, get_special_tokens
from support.messages import assistant, user
from support.models import edit_json
from support.tokenizers import SMOLLM2_TEMPLATE, target_runs, tokenizer_for


@pytest.fixture
def folder(tmp_path):
    tokenizer_for(SMOLLM2_TEMPLATE, pad_token="<pad>").save_pretrained(tmp_path / "base")
    return tmp_path


def loaded(folder, text: str, **options):
    path = folder / "recipe.yaml"
    path.write_text(f"model: {{name: ./base}}\ntokenizer:\n{text}", encoding="utf-8")
    recipe = load_recipe(path)
    return load_tokenizer(recipe.tokenizer, recipe.model.name, **options)


def test_the_models_own_beside_the_recipe(folder):
    tokenizer = loaded(folder, "  max_tokens_count: 10\n")
    assert tokenizer.chat_template == SMOLLM2_TEMPLATE
    assert target_runs(tokenizer, encode_chat(tokenizer, [user("a"), assistant("b")])) == ["b<|im_end|>"]


def test_what_the_libraries_print_reaches_no_stdout(folder, capfd):
    """tokenizers' Rust names the fields of a token that it does not know, escape sequences and all."""
    token = {"__type": "AddedToken", "content": "<s>", "\x1b]0;pwn\x07": 1}
    edit_json(folder / "base/tokenizer_config.json", bos_token=token, more=[token])
    print("before")
    loaded(folder, "  max_tokens_count: 10\n")
    print("after")
    out, err = capfd.readouterr()
    assert out == "before\nafter\n"
    assert "\x1b" not in err


def test_the_text_of_a_special_token_counts(folder):
    tokens = "  special_tokens: {pad_token_id: 99, pad_token: <|im_start|>, eos_token: <new>}\n"
    warnings = []
    tokenizer = loaded(folder, tokens, warn=warnings.append)
    number = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert tokenizer.pad_token_id == number
    assert tokenizer.eos_token == "<new>"
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert len(warnings) == 1
    assert f"has the id {number}, not 99" in warnings[0]
    with pytest.warns(UserWarning, match="has the id"):
        loaded(folder, tokens)


def test_a_template_inline_and_from_a_file(folder):
    inline = loaded(folder, "  chat_template: >\n    {% for m in messages %}{{ m.content }}</s>{% endfor %}\n")
    assert inline.decode(encode_chat(inline, [user("a"), assistant("b")], add_eos=False).input_ids) == "a</s>b</s>"
    (folder / "mine.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    from_file = loaded(folder, "  chat_template: mine.jinja\n")
    assert from_file.chat_template == "{{ messages[0].content }}"
    assert compute_template_fingerprint(from_file) != compute_template_fingerprint(inline)


def test_additional_special_tokens_reach_a_recipes_template(folder):
    template = "{% for m in messages %}{{ m.role + additional_special_tokens[0] + m.content + eos_token }}{% endfor %}"
    tokenizer = loaded(folder, f'  chat_template: "{template}"\n')
    first = get_special_tokens(tokenizer)["additional_special_tokens"][0]
    row = encode_chat(tokenizer, [user("a"), assistant("b")])
    assert tokenizer.decode(row.input_ids).startswith(f"user{first}a")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "./nowhere"}, "tokenizer.name: ./nowhere is not there"),
        ({"name": None}, "names no tokenizer"),
        ({"name": "./base", "chat_template": "nowhere.jinja"}, "nowhere.jinja is neither a template nor a file"),
        ({"name": "./base", "class_": "transformers.AutoTokeniser"}, "AutoTokeni"),
        ({"name": "./base", "class_": "transformers.LlamaConfig"}, "loads no tokenizer but a LlamaConfig"),
        ({"name": "./base", "special_tokens": {"foo": "x"}}, "special_tokens.foo: no such token"),
        ({"name": "./base", "special_tokens": {"eos_token": 7}}, "special_tokens.eos_token: 7 is no text of a token"),
        ({"name": "./base", "special_tokens": {"additional_special_tokens": [7]}}, "tokenizer.special_tokens: "),
        ({"name": "./base", "special_tokens": {"additional_special_tokens": 7}}, "tokenizer.special_tokens: "),
        ({"name": "./empty"}, "can't be loaded"),
        ({"name": "nobody/nothing"}, "can't be loaded"),
    ],
)
def test_what_can_not_be_loaded_is_told(folder, section, message):
    (folder / "empty").mkdir()
    given = {"class_": None, "special_tokens": {}, "chat_template": None, "trust_remote_code": False} | section
    with pytest.raises(ImpruverError, match=message):
        load_tokenizer(SimpleNamespace(**given), recipe_dir=folder)
