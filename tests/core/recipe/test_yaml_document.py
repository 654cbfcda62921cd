"""YAML as recipes are read: words, lines, faults of form, and texts that come back equal."""

import math
import random

import pytest
from impruver_core.recipe.yaml_document import Document, dump, parse_text, read_document


def parsed(text):
    document = Document("recipe.yaml")
    parse_text(text, document, place=lambda line: f"recipe.yaml:{line}")
    assert document.faults == []
    return document.data


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("2e-4", 2e-4),
        ("5e-6", 5e-6),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.1", -0.1),
        ("1_000", 1000),
        ("0x10", 16),
        ("010", 10),
        ("10:30", "10:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("yes", "yes"),
        ("On", "On"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("''", ""),
        ("'2e-4'", "2e-4"),
        ("!!str 5", "5"),
        ("train[:1000]", "train[:1000]"),
        ("-.inf", -math.inf),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("_", "_"),
        ("<|im_end|>", "<|im_end|>"),
        ("<s>", "<s>"),
    ],
)
def test_words(word, value):
    data = parsed(f"a: {word}\n")["a"]
    assert data == value
    assert type(data) is type(value)


def test_folded_and_literal_texts_anchors_and_merges():
    data = parsed("base: &b {r: 8, bias: none}\nlora: {<<: *b, r: 4}\nt: >\n  {{ a }}\n  {{ b }}\nl: |\n  x\n   y\n")
    assert data["lora"] == {"r": 4, "bias": "none"}
    assert data["t"] == "{{ a }} {{ b }}\n"
    assert data["l"] == "x\n y\n"


def test_places_of_values(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("# c\nseed: 1\ndatasets:\n  - name: a\n\n  - name: b\n    split: train\n")
    document = read_document(path)
    assert document.locate(("datasets", 1, "split")) == f"{path}:7"
    assert document.locate(("datasets", 1, "absent")) == f"{path}:6"
    assert document.locate(("elsewhere",)) == str(path)


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "not valid YAML"),
        ("a: 1\n b: 2\n", 2, "not valid YAML"),
        ("a:\n\tb: 2\n", 2, "not tabs"),
        ("seed: 1\nmodel:\n  name: a\n  name: b\n", 4, "model.name: repeated: it also stands in line 3"),
        ("a: {{ x }}\n", 1, "needs quotes"),
        ("a: !!python/object:os.system x\n", 1, "can't be read"),
        ("a: !mine x\n", 1, "can't be read"),
        ("a: &x [1, *x]\n", 1, "alias"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
        ("a: @x\n", 1, "not valid YAML"),
    ],
)
def test_faults_of_form(tmp_path, content, line, what):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    faults = read_document(path).faults
    assert faults
    assert faults[0].startswith(f"{path}:{line}: ")
    assert what in faults[0]


def test_not_utf8_names_the_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    assert read_document(path).faults == [f"{path}:2: this is no UTF-8 text"]


def test_a_mark_at_the_start_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes("\ufeffseed: 1\n".encode())
    assert read_document(path).data == {"seed": 1}


def test_what_is_dumped_reads_back_equal():
    words = [
        "2e-4",
        "10:30",
        "no",
        "null",
        "",
        "~",
        "1_0",
        "0x1",
        "true",
        " a",
        "a ",
        "a\nb\n",
        "\n x\n\n",
        "a: b",
        "#",
    ]
    words += ["{{ bos_token }}\n  {%- if x -%}\n", "<|im_end|>\n", "тест\n\tтаб", "- a", "\x7f", "a\r\nb", "\u2028x\n"]
    words += ["  indented first\nline\n", "trailing  \nblank\n", "<<", "=", "1.5", ".5", "1e5", "é\n", "'", '"', "\\n"]
    values = [*words, 5, 2e-4, 5e-6, 1e16, 1e-300, -0.0, True, None, [], {}, [[], {"a": []}], math.inf]
    random_numbers = random.Random(1)
    for _ in range(300):
        values.append("".join(random_numbers.choice(" \n\t:#-'\"{}[]|>aяb0e.\\%@`&*!?,") for _ in range(9)))
    for value in values:
        for data in ({"k": value}, {"a": {"k": [value, {"b": value}]}}):
            assert parsed(dump(data)) == data, repr(value)
    assert "t: |" in dump({"t": "a\nb\n"})


def test_nested_too_deep(tmp_path):
    path = tmp_path / "deep.yaml"
    path.write_text("seed: 1\nmodel: {config: " + "[" * 50_000)
    document = read_document(path)
    assert document.faults == [f"{path}:2: not valid YAML: nested more than 100 deep"]


def multiply(levels, width, line="a{n}: &a{n} [{aliases}]"):
    """Lists of aliases of lists of aliases …: width ** levels values."""
    lines = ["a0: &a0 [x]"]
    for n in range(1, levels + 1):
        lines.append(line.format(n=n, aliases=", ".join([f"*a{n - 1}"] * width)))
    return "\n".join(lines)


BOMBS = {
    "aliases that multiply": (multiply(9, 9), "more than 100,000 values"),
    "aliases of mappings that multiply": (
        "a0: &a0 {k: x}\n" + "\n".join(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}" for n in range(1, 40)),
        "more than 100,000 values",
    ),
    "aliases that nest": (multiply(5_000, 1), "nested more than 100 deep"),
    "merges that nest": (
        "a0: &a0 {k: x}\n" + "\n".join(f"a{n}: &a{n} {{<<: *a{n - 1}}}" for n in range(1, 5_000)),
        "nested more than 100 deep",
    ),
    "many values": ("a: [" + "x," * 200_000 + "]", "more than 100,000 values"),
    "a whole number of many digits": ("a: " + "9" * 100_000, "can't be read as int"),
    "a hexadecimal number of many digits": ("a: 0x" + "f" * 1_000_000, "can't be read as int"),
    "mappings in each other": ("{a: " * 100_000, "nested more than 100 deep"),
    "a large file": ("# " + "x" * (5 << 20), "larger than 4 MiB"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_recipe_that_would_take_all_memory_or_time(what, tmp_path):
    content, told = BOMBS[what]
    path = tmp_path / "bomb.yaml"
    path.write_text(content)
    faults = read_document(path).faults
    assert len(faults) == 1
    assert told in faults[0]
    assert len(faults[0]) < 400
