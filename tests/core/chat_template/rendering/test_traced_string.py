"""Traced strings are ordinary strings, and what they say of their characters is true."""

import json
import random

import pytest
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.rendering.traced_string import (
    TextRun,
    TextSource,
    TracedStr,
    find_message_spans,
    get_runs,
    join_traced,
    trace_transformed,
    trace_value,
)

OPERATIONS = [
    lambda s, r: s.strip(),
    lambda s, r: s.lstrip("\n a"),
    lambda s, r: s.rstrip(),
    lambda s, r: s + "<end>",
    lambda s, r: "<start>" + s,
    lambda s, r: s[r.randrange(5) :],
    lambda s, r: s[: r.randrange(1, 30)],
    lambda s, r: s[-3],
    lambda s, r: s.split("b")[-1],
    lambda s, r: "|".join(s.split("a")),
    lambda s, r: s.split()[0],
    lambda s, r: " ".join(s.split(None, 2)),
    lambda s, r: s.rsplit("c", 1)[0],
    lambda s, r: "~".join(s.splitlines()),
    lambda s, r: "".join(s.splitlines(keepends=True)),
    lambda s, r: s.partition("a")[2],
    lambda s, r: s.rpartition("b")[0],
    lambda s, r: s.replace("a", "xx"),
    lambda s, r: s.replace("ab", "", 1),
    lambda s, r: s.removeprefix("a").removesuffix("c"),
    lambda s, r: s.upper(),
    lambda s, r: s.capitalize(),
    lambda s, r: s.join(["1", "2", "3"]),
]


@pytest.mark.parametrize("seed", range(20))
def test_operations_equal_those_of_str_and_keep_true_sources(seed):
    chance = random.Random(seed)
    for _ in range(200):
        text = "".join(chance.choice("abc \nя") for _ in range(chance.randrange(40)))
        source = TextSource(0, "content", text)
        plain, traced = text, TracedStr(text, [TextRun(0, len(text), source, 0)])
        for _ in range(chance.randrange(1, 4)):
            operation, state = chance.choice(OPERATIONS), chance.getstate()
            try:
                plain = operation(plain, chance)
            except IndexError:
                continue
            chance.setstate(state)
            if operation in OPERATIONS[9:10] + OPERATIONS[11:12] + OPERATIONS[13:15]:
                traced = _with_traced_join(operation, traced, chance)
            else:
                traced = operation(traced, chance)
        assert str.__str__(traced) == plain
        for start, end, _, offset in get_runs(traced):
            assert 0 <= start <= end <= len(plain)
            if offset >= 0:
                assert plain[start:end].lower() == text[offset : offset + end - start].lower()


def _with_traced_join(operation, traced, chance):
    """`"|".join(…)` of a plain string is C code: templates get it through the environment, as here."""
    marked = {9: "|", 11: " ", 13: "~", 14: ""}
    separator = marked[OPERATIONS.index(operation)]
    parts = {
        9: lambda: traced.split("a"),
        11: lambda: traced.split(None, 2),
        13: lambda: traced.splitlines(),
        14: lambda: traced.splitlines(keepends=True),
    }[OPERATIONS.index(operation)]()
    return join_traced(parts, separator)


def test_iteration_and_json_keep_sources():
    source = TextSource(3, "content", "ab")
    traced = TracedStr("ab", [TextRun(0, 2, source, 0)])
    assert [get_runs(character)[0].offset for character in traced] == [0, 1]
    dumped = trace_transformed(json.dumps({"x": traced}), {"x": traced})
    assert get_runs(dumped) == ((0, len(dumped), source, -1),)


def test_an_empty_text_keeps_its_place():
    text = render_template(
        "<u>{{ messages[0].content | trim }}</u>", [{"role": "user", "content": trace_value(" \n", 0, "content")}]
    )
    assert text == "<u></u>"
    assert [(start, end) for start, end, _, _ in get_runs(text)] == [(3, 3)]


@pytest.mark.parametrize(
    "expression",
    [
        "m.content",
        "'<' ~ m.content ~ '>'",
        "'%s' ~ m.content",
        "m.content | trim",
        "m.content.split(' ')[-1]",
        "' '.join([m.content, 'x'])",
        "[m.content, 'x'] | join(', ')",
        "m.content | replace('a', 'b')",
        "m.content | upper",
        "m | tojson",
        "m.content | indent(2)",
        "(m.content.split('n') | first)",
        "m.content | string",
        "m.content[1:]",
    ],
)
def test_what_a_template_does_to_a_text_is_followed(expression):
    template = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + ("
        + expression
        + ") %}{% endfor %}{{ ns.t }}"
    )
    message = {"role": "user", "content": "an answer"}
    plain = render_template(template, [message])
    traced = render_template(template, [{"role": "user", "content": trace_value("an answer", 0, "content")}])
    assert traced == plain
    assert {run.source.message for run in get_runs(traced)} == {0}


@pytest.mark.parametrize("texts", [["Hi", "Yes!", "Why?", "So."], ["Hi", "", "Why?", ""], ["", "Yes!"], ["Hi"]])
def test_spans_of_messages_are_the_same_whether_a_text_is_one_run_or_two(texts):
    traced = [trace_value(text, number, "content") for number, text in enumerate(texts)]
    whole = join_traced(piece for text in traced for piece in ("<t>", text, "</t>"))
    cut = join_traced(piece for text in traced for piece in ("<t>", text[:1], text[1:], "</t>"))
    places = [
        {
            number: (span.start, span.end, span.previous_end, span.previous_message, span.gaps, span.mixed, span.path)
            for number, span in find_message_spans(get_runs(text), len(text)).items()
        }
        for text in (whole, cut)
    ]
    assert len(get_runs(cut)) > len(get_runs(whole))
    assert places[0] == places[1]
    assert [whole[start:end] for start, end, *_ in places[0].values()] == texts
