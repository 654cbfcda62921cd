"""Renders chat templates in jinja2's sandbox, as transformers does, without transformers.

The environment follows transformers' own (trimmed blocks, `{% generation %}`, loop controls, its filters and
functions), so that a rendering equals `apply_chat_template(tokenize=False)`; besides, it keeps the runs of traced
strings. A template is code from elsewhere: it sees plain JSON types only.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

from impruver_core.chat_template.rendering.traced_string import TracedStr, join_traced, trace_transformed
from impruver_core.errors import ImpruverError, RefusedError

TODAY = "_today"  # among the variables: the day, as 2026-11-22, that strftime_now gives; no template sees it
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # names of one thing; templates read either


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    @jinja2.compiler.optimizeconst
    def visit_Concat(self, node, frame):
        self.write("environment.join_parts((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _GenerationTag(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    concat = staticmethod(join_traced)
    join_parts = staticmethod(join_traced)

    def getattr(self, obj, attribute):
        return super().getattr(TracedStr(obj) if type(obj) is str else obj, attribute)


class _Dict:
    """`dict` for templates: callable, without the attributes of the class."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):  # no named self: a template may say namespace(self=…)
        self, args = args[0], args[1:]
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name, value):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template may not store the name {name!r}")
        super().__setitem__(name, value)


def _raise_template_error(message):
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return trace_transformed(text, value)


@jinja2.pass_environment
def _join(environment, value, d="", attribute=None):
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return join_traced(map(str, value), str(d))


def _indent(s, width=4, first=False, blank=False):
    indention = width if isinstance(width, str) else " " * width
    head, *rest = join_traced((s, "\n")).splitlines()
    lines = [head, *(indention + line if line or blank else line for line in rest)]
    return join_traced((indention if first else "", join_traced(lines, "\n")))


@lru_cache(maxsize=256)
def compile_template(template: str) -> jinja2.Template:
    """The compiled template; ImpruverError with the line for one that does not parse."""
    extensions = [_GenerationTag, jinja2.ext.loopcontrols]
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters |= {"tojson": _tojson, "join": _join, "indent": _indent}
    environment.globals |= {"raise_exception": _raise_template_error, "dict": _Dict(), "namespace": _Namespace}
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ImpruverError(f"the chat template does not parse, line {error.lineno}: {error.message}") from None


def render_template(
    template: str,
    messages: Sequence[Mapping],
    tools: Sequence[Mapping] | None = None,
    *,
    add_generation_prompt: bool = False,
    variables: Mapping | None = None,
) -> str:
    """Renders `messages` (plain JSON types) as `apply_chat_template(tokenize=False)` would.

    `variables` are the special tokens by name and the chat_template_kwargs; a `date_string` among them is also the day
    that `strftime_now` gives. Raises RefusedError("template_refused") in the words of what the template raised.
    """
    compiled = compile_template(template)
    variables = dict(variables or {})
    day = variables.pop(TODAY, None)
    chat = [_add_reasoning_fields({k: v for k, v in message.items() if v is not None}) for message in messages]
    try:
        return compiled.render(
            {
                "strftime_now": lambda pattern: _format_today(pattern, variables.get("date_string") or day),
                **variables,
                "messages": chat,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
    except RecursionError:
        raise RefusedError("template_refused", "the template recurses without end") from None
    except jinja2.TemplateError as error:
        raise RefusedError("template_refused", error.message or type(error).__name__) from None
    except Exception as error:  # a template may fail in any way that Python can
        raise RefusedError("template_refused", f"{type(error).__name__}: {error}") from None


def _add_reasoning_fields(message: dict) -> dict:
    reasoning = next((message[key] for key in REASONING_FIELDS if key in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _format_today(pattern: str, date_string: str | None) -> str:
    if date_string is None:
        return datetime.now().strftime(pattern)
    for form in ("%Y-%m-%d", "%d %b %Y", "%d %B %Y", "%B %d, %Y"):
        with suppress(ValueError):
            return datetime.strptime(date_string, form).strftime(pattern)
    return date_string
