"""Chat templates: programs that compute without end, grow, nest, reach for what is not theirs, or do not parse."""

from functools import cache
from pathlib import Path

from fuzzing.example import Example
from fuzzing.mutations import TEXTS, dump_json, mutate_text
from fuzzing.samples import CHAT, COMPOSE, GGUF, RECIPE
from hypothesis import strategies as st

NAMES = [
    *("messages", "messages", "m", "m", "loop", "tools", "ns", "x", "bos_token", "eos_token"),
    *("add_generation_prompt", "documents", "range", "dict", "namespace", "cycler", "joiner", "lipsum"),
    *("raise_exception", "strftime_now", "self", "caller", "varargs", "kwargs", "undefined", "f", "x.y"),
    *("messages[0]", "messages[0].content", "messages[-1]['content']", "m.content", "m['role']", "true", "none"),
    *("loop.index", "loop.previtem", "loop.depth0", "date_string", "enable_thinking", "tools[0].function"),
]
ATTRIBUTES = [
    *("content", "role", "items", "keys", "values", "upper", "split", "format", "format_map", "join", "replace"),
    *("center", "ljust", "zfill", "expandtabs", "translate", "encode", "append", "extend", "pop", "copy", "update"),
    *("get", "index", "count", "startswith", "__class__", "__mro__", "__subclasses__", "__globals__", "__init__"),
    *("__dict__", "_x", "mro", "gi_frame", "f_back", "func_globals", "tool_calls", "function", "arguments", "x"),
    *("next", "reset", "current", "cycle", "changed", "maketrans", "splitlines", "bit_length", "to_bytes"),
    *("as_integer_ratio", "hex", "fromhex", "name", "source", "start", "rsplit", "partition", "casefold"),
    *("isalpha", "setdefault"),
]
LITERALS = [
    *("0", "1", "2", "-1", "7", "1000", "99999", "10**6", "2**31", "2**63", "9999999999", "1.5", "1e308", "1e999"),
    *("''", "'a'", "' '", "'<|im_start|>'", "'{0}'", "'{0:>9999999}'", "'%9999999d'", "'%s' * 9"),
    *("'{0.__class__}'", "'a' * 1000", "[]", "{}", "()", "[1, 2]", "{'a': 1}", "{'role': 'user', 'content': 'x'}"),
    *("'\\n'", "'\\x1b[31m'", "'\\u202e'", "'\\ud800'", "('a', 'b')", "none", "true"),
]
BINARY = [
    *("+", "+", "-", "*", "*", "/", "//", "%", "**", "~", "~", "==", "!=", "<", ">=", "and", "or", "in", "not in"),
]
FILTERS = [
    *("abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape"),
    *("filesizeformat", "first", "float", "forceescape", "format", "groupby", "indent", "int", "items", "join"),
    *("last", "length", "list", "lower", "map", "max", "min", "pprint", "random", "reject", "rejectattr"),
    *("replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "striptags", "sum"),
    *("title", "tojson", "trim", "truncate", "unique", "upper", "urlencode", "urlize", "wordcount", "wordwrap"),
    *("xmlattr", "nonesuch"),
]
TESTS = [
    *("defined", "none", "string", "mapping", "sequence", "number", "iterable", "callable", "sameas x", "in [1]"),
    *("eq 1", "odd", "divisibleby 0"),
]
LOOP = (
    "{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{%- endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WHOLE = [  # programs that no grammar would come upon soon
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(a='x' * 1000) %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=2) %}{% for i in range(60) %}{% set ns.a = ns.a * ns.a %}{% endfor %}{{ ns.a }}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ range(99999) | list | map('string') | join('x' * 9999) }}",
    "{{ range(99999) | map('string') | groupby('x') | list }}",
    "{{ (range(99999) | list | string) * 999 }}",
    "{{ range(99999) | list | sort(attribute='x') | unique | list | length }}",
    "{{ ('a' * 99999) | wordwrap(1) | indent(999) | urlize }}",
    "{{ ('a@b.c ' * 99999) | urlize }}{{ ('<' * 999999) | striptags }}",
    "{{ ('a ' * 999999).split() | batch(2) | list | tojson(indent=999) }}",
    "{{ 9 ** 9 ** 9 }}{{ 2 ** 65536 }}{{ '%0999999999d' % 1 }}{{ 1 // 0 }}{{ 1e308 * 10 }}",
    "{{ range(10**12) | list }}{{ range(0, 10**18, 1) | length }}{{ messages * 10**9 }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__cl' ~ 'ass__'] }}{{ '' | attr('__class__') }}{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ messages[0].update({'role': 'x'}) }}{{ messages.append(messages) }}{{ messages }}",
    "{% set x = dict(a=1) %}{% set _ = x.update({'x': x}) %}{{ x | tojson }}{{ x }}",
    "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}{{ ns.a.a.a | tojson }}",
    "{{ strftime_now('%Y' * 999999) }}{{ strftime_now('%') }}{{ strftime_now('\\ud800') }}",
    "{{ raise_exception('\\x1b[31m\\u202e') }}",
    "{% include 'x' %}{% extends 'y' %}{% import 'z' as z %}{% from 'a' import b %}",
    "{% autoescape true %}{{ '<' * 99 }}{% endautoescape %}{% block a %}{{ self.a() }}{% endblock %}",
    "{{ " + "(" * 300 + "1" + ")" * 300 + " }}",
    "{{ " + "[" * 90 + "]" * 90 + " }}",
    "{% if a %}" * 150 + "{% endif %}" * 150,
    "{% for a in messages %}" * 25 + "x" + "{% endfor %}" * 25,
    "{{ " + " ~ ".join(["'a'"] * 3000) + " }}",
    "{{ " + " + ".join(["1"] * 3000) + " }}",
    "{{ x" + ".a" * 3000 + " }}",
    "{{ x" + " | upper" * 3000 + " }}",
    "{% set a = 1 %}" * 20_000,
    "{#" * 9999 + "{{" * 9999 + "{% raw %}" * 99,
    "{% generation %}" * 50 + "{% endgeneration %}" * 50,
    "{% break %}{% continue %}{% endfor %}{% else %}",
    "{{ messages | map(attribute='content.x.y') | list }}{{ messages | sum(attribute='content', start='a' * 999) }}",
    "{{ 'a' | center(10**9) }}{{ 'a'.ljust(10**10) }}{{ 'a' | indent(10**9) }}{{ 1.5 | round(10**9) }}",
    "{{ ('x' * 33000000) | length }}" * 20,
    "{{ '" + "\\\\" * 5000 + "' }}",
]
COPIES = {name: name for name in ("data.jsonl", "questions.jsonl", "tokenizer", "model")}


def build_templates(samples: Path) -> st.SearchStrategy[Example]:
    """Templates that are rendered by core alone, or in the tools."""
    programs = st.one_of(write_program(), write_program(), edit_stock(), edit_stock(), choose_whole())
    return st.one_of(render_alone(programs), render_alone(programs), render_in_tool(programs))


def write_expressions() -> st.SearchStrategy[str]:
    """Expressions, of names, literals and what they can be put into."""
    leaf = st.one_of(st.sampled_from(NAMES), st.sampled_from(LITERALS))

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        named = st.tuples(st.sampled_from(("attribute", "indent", "width", "default", "x", "self", "start")), inner)
        call = st.one_of(inner, named.map("=".join))
        arguments = st.lists(call, max_size=3).map(", ".join)
        return st.one_of(
            st.tuples(inner, st.sampled_from(BINARY), inner).map(lambda parts: f"({' '.join(parts)})"),
            st.tuples(inner, st.sampled_from(FILTERS), arguments).map(lambda p: f"({p[0]} | {p[1]}({p[2]}))"),
            st.tuples(inner, st.sampled_from(FILTERS)).map(lambda p: f"({p[0]} | {p[1]})"),
            st.tuples(inner, st.sampled_from(ATTRIBUTES)).map(".".join),
            st.tuples(inner, st.sampled_from(ATTRIBUTES), arguments).map(lambda p: f"{p[0]}.{p[1]}({p[2]})"),
            st.tuples(inner, inner).map(lambda p: f"{p[0]}[{p[1]}]"),
            st.tuples(inner, inner, inner).map(lambda p: f"{p[0]}[{p[1]}:{p[2]}]"),
            st.tuples(
                st.sampled_from(("range", "f", "dict", "namespace", "cycler", "joiner", "loop", "caller")), arguments
            ).map(lambda p: f"{p[0]}({p[1]})"),
            st.tuples(inner, inner, inner).map(lambda p: f"({p[0]} if {p[1]} else {p[2]})"),
            st.tuples(inner, st.sampled_from(TESTS)).map(" is ".join),
            st.lists(inner, max_size=3).map(lambda p: f"[{', '.join(p)}]"),
            st.tuples(inner, inner).map(lambda p: f"{{{p[0]}: {p[1]}}}"),
            inner.map(lambda p: f"(not {p})"),
        )

    return st.recursive(leaf, extend, max_leaves=8)


def write_program() -> st.SearchStrategy[str]:
    """Statements within each other."""
    value = write_expressions()
    name = st.sampled_from(("x", "m", "ns.x", "ns", "x, y", "f", "loop", "messages"))
    leaf = st.one_of(
        value.map(lambda each: f"{{{{ {each} }}}}"),
        value.map(lambda each: f"{{{{ {each} }}}}"),
        st.tuples(name, value).map(lambda p: f"{{% set {p[0]} = {p[1]} %}}"),
        st.sampled_from(
            ("text", "<|end|>", "{# note #}", "{% break %}", "{% continue %}", "{%- endfor %}", LOOP, "\n", "{{", "%}")
        ),
        value.map(lambda each: f"{{% set ns = namespace(x={each}) %}}"),
        value.map(lambda each: f"{{% do {each} %}}"),
    )

    def extend(body: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(value, body).map(lambda p: f"{{% for m in {p[0]} %}}{p[1]}{{% endfor %}}"),
            st.tuples(value, body).map(
                lambda p: f"{{% for m in {p[0]} recursive %}}{p[1]}{{{{ loop({p[0]}) }}}}{{% endfor %}}"
            ),
            st.tuples(st.integers(1, 99999), body).map(lambda p: f"{{% for i in range({p[0]}) %}}{p[1]}{{% endfor %}}"),
            st.tuples(value, body, body).map(lambda p: f"{{% if {p[0]} %}}{p[1]}{{% else %}}{p[2]}{{% endif %}}"),
            st.tuples(value, body).map(
                lambda p: f"{{% macro f(x, y={p[0]}) %}}{p[1]}{{{{ f(x) }}}}{{% endmacro %}}{{{{ f(1) }}}}"
            ),
            st.tuples(st.sampled_from(FILTERS), body).map(lambda p: f"{{% filter {p[0]} %}}{p[1]}{{% endfilter %}}"),
            body.map(lambda each: f"{{% set x %}}{each}{{% endset %}}{{{{ x ~ x }}}}"),
            body.map(lambda each: f"{{% call(x) f() %}}{each}{{% endcall %}}"),
            body.map(lambda each: f"{{% generation %}}{each}{{% endgeneration %}}"),
            st.tuples(value, body).map(lambda p: f"{{% with x = {p[0]} %}}{p[1]}{{% endwith %}}"),
            st.lists(body, min_size=2, max_size=3).map("".join),
        )

    return st.recursive(leaf, extend, max_leaves=8)


@cache
def list_stock() -> list[str]:
    """The chat templates that the tests know."""
    from support.tokenizers import STOCK_FOLDER

    return [path.read_text(encoding="utf-8") for path in sorted(STOCK_FOLDER.glob("*.jinja"))]


@st.composite
def edit_stock(draw: st.DrawFn) -> str:
    """A real template with words moved, left out, or others put in."""
    dotted, piped = [f".{each}" for each in ATTRIBUTES], [f" | {each}" for each in FILTERS]
    pieces = [*NAMES, *dotted, *LITERALS, *BINARY, *piped, *TEXTS[:60], *WHOLE[:20]]
    return draw(mutate_text(draw(st.sampled_from(list_stock())), pieces))


@st.composite
def choose_whole(draw: st.DrawFn) -> str:
    """One of WHOLE, alone or with a loop over the messages; perhaps changed a little."""
    text = draw(st.sampled_from(WHOLE))
    text = draw(st.sampled_from((text, text + LOOP, LOOP + text, f"{{% for m in messages %}}{text}{{% endfor %}}")))
    changed = draw(st.booleans()) and len(text) < 9999
    return draw(mutate_text(text, [*LITERALS, *NAMES, *BINARY], 2)) if changed else text


@st.composite
def render_alone(draw: st.DrawFn, programs: st.SearchStrategy[str]) -> Example:
    """A template for core's renderer."""
    files = {"template.jinja": draw(programs).encode("utf-8", "replace")}
    return Example("templates", "rendered alone", ("render",), {}, files)


@st.composite
def render_in_tool(draw: st.DrawFn, programs: st.SearchStrategy[str]) -> Example:
    """A template in the recipe of compose, or in the folder of a model that answers or is exported."""
    text = draw(programs)
    command = draw(st.sampled_from((COMPOSE, (*COMPOSE, "--dry_run"), (*COMPOSE, "--show", "2"), CHAT, GGUF)))
    if command[0] != "impruver-compose":
        files = {"model/chat_template.jinja": text.encode("utf-8", "replace")}
    elif draw(st.booleans()):
        files = {"tokenizer/chat_template.jinja": text.encode("utf-8", "replace"), "recipe.yaml": dump_json(RECIPE)}
    else:
        section = RECIPE["tokenizer"] | {"chat_template": text}
        files = {"recipe.yaml": dump_json(RECIPE | {"tokenizer": section})}
    flags = ("--overwrite",) if command == GGUF else ()
    return Example("templates", f"in {command[0]}", (*command, *flags), COPIES, files)
