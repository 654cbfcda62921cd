"""Renders chat templates in jinja2's sandbox, as transformers does, without transformers.

The environment follows transformers' own (trimmed blocks, `{% generation %}`, loop controls, its filters and
functions), so that a rendering equals `apply_chat_template(tokenize=False)`; besides, it keeps the runs of traced
strings. A template is code from elsewhere: it sees plain JSON types only, and what it may compute has limits.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, update_wrapper

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

from impruver_core.chat_template.rendering import limits
from impruver_core.chat_template.rendering.markup import escape_traced, mark_safe
from impruver_core.chat_template.rendering.traced_string import (
    TracedStr,
    join_traced,
    trace_formatted,
    trace_transformed,
)
from impruver_core.errors import ImpruverError, RefusedError, describe_error

TODAY = "_today"  # among the variables: the day, as 2026-11-22, that strftime_now gives; no template sees it
OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "strftime_now")  # of a rendering itself
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # names of one thing; templates read either


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    @jinja2.compiler.optimizeconst
    def visit_Concat(self, node, frame):
        self.write("environment.join_parts((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    @jinja2.compiler.optimizeconst
    def visit_Add(self, node, frame):
        operands = [node.right]  # of `a + b + c` all at once: each sum of two would be a traced string of its own
        while isinstance(node.left, jinja2.nodes.Add):
            node = node.left
            operands.append(node.right)
        operands.append(node.left)
        self.write("environment.add_all((")
        for operand in reversed(operands):
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def _output_child_pre(self, node, frame, finalize):
        self.write("environment.to_text(")

    def visit_List(self, node, frame):
        self._visit_checked(super().visit_List, node, frame)

    def visit_Dict(self, node, frame):
        self._visit_checked(super().visit_Dict, node, frame)

    def visit_Tuple(self, node, frame):
        self._visit_checked(super().visit_Tuple, node, frame)

    def _visit_checked(self, visit, node, frame):
        """Lists that hold a variable twice, and each other, would soon hold more than any memory."""
        checked = getattr(node, "ctx", "load") == "load" and any(node.find_all(_VARIABLE))
        self.write("environment.check_container(" if checked else "")
        visit(node, frame)
        self.write(")" if checked else "")


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
    intercepted_binops = frozenset(("*", "**", "%"))
    add_all = staticmethod(limits.add_all)
    check_container = staticmethod(limits.check_container)
    to_text = staticmethod(limits.to_text)

    @staticmethod
    def concat(parts):
        parts = list(parts)
        limits.check_size(sum(map(len, parts)))
        return join_traced(parts)

    @staticmethod
    def join_parts(parts):
        return _Environment.concat(map(limits.to_text, parts))

    def call_binop(self, context, operator, left, right):
        limits.check_binop(operator, left, right)
        if operator == "%" and isinstance(left, str):
            return _interpolate(left, right)
        return self.binop_table[operator](left, right)

    def call(__self, __context, __obj, *args, **kwargs):  # no named self: a template may pass self=…
        if getattr(__obj, "__name__", None) in limits.GROWING:
            limits.check_method(__obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value):
        form = super().wrap_str_format(value)
        if form is None:
            return None
        return update_wrapper(lambda *arguments, **named: trace_formatted(form, arguments, named), value)

    def getattr(self, obj, attribute):
        return super().getattr(TracedStr(obj) if type(obj) is str else obj, attribute)


class _Dict:
    """`dict` for templates: callable, without the attributes of the class."""

    def __call__(self, *args, **kwargs):
        return limits.check_container(dict(*args, **kwargs))

    def fromkeys(self, *args, **kwargs):
        return limits.check_container(dict.fromkeys(*args, **kwargs))


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

    def __repr__(self):  # two that hold each other's texts would be printed without end
        return "<Namespace>"


def _raise_template_error(message):
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    limits.check_printed(value)
    if indent:
        limits.check_container(value, indent if isinstance(indent, int) else len(indent))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return trace_transformed(text, value)


@jinja2.pass_environment
def _join(environment, value, d="", attribute=None):
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    texts = [str(limits.check_printed(each)) for each in value]
    limits.check_size(sum(map(len, texts)) + len(texts) * len(str(d)))
    return join_traced(texts, str(d))


def _replace(s, old, new, count=-1):
    text = str(limits.check_printed(s))
    limits.check_method(text.replace, (str(old), str(new)), {})
    return text.replace(str(old), str(new), -1 if count is None else count)


def _indent(s, width=4, first=False, blank=False):
    s = str(limits.check_printed(s))
    limits.check_size((1 + s.count("\n")) * (width if isinstance(width, int) else len(width)))
    indention = width if isinstance(width, str) else " " * width
    head, *rest = join_traced((s, "\n")).splitlines()
    lines = [head, *(indention + line if line or blank else line for line in rest)]
    return join_traced((indention if first else "", join_traced(lines, "\n")))


def _format(value, *args, **kwargs):
    limits.check_format(str(value), kwargs or args)
    if args and kwargs:
        return jinja2.filters.do_format(value, *args, **kwargs)  # which raises
    return _interpolate(_string(value), kwargs or args)


def _interpolate(form, values):
    """`form % values`; the values of a tuple, a mapping or one alone are followed."""
    if isinstance(values, dict):
        return trace_formatted(lambda **named: form % named, (), values)
    several = isinstance(values, tuple)
    return trace_formatted(lambda *given: form % (given if several else given[0]), values if several else (values,), {})


def _string(value):
    return value if isinstance(value, str) else limits.to_text(value)


def _trim(value, chars=None):
    return _string(value).strip(chars)


def _safe(value):
    return mark_safe(value if hasattr(value, "__html__") else _string(value))


def _escape(value):
    return escape_traced(value if hasattr(value, "__html__") else _string(value))


def _force_escape(value):
    return escape_traced(str.__str__(value) if hasattr(value, "__html__") else _string(value))


def _round(value, precision=0, method="common"):
    if abs(precision) > limits.MOST_DECIMALS:
        raise limits.TemplateLimitError(f"it rounds to {precision} decimals")
    return jinja2.filters.do_round(value, precision, method)


def _lipsum(*args, **kwargs):
    raise jinja2.exceptions.SecurityError("a template has no use for lipsum")


_VARIABLE = (jinja2.nodes.Name, jinja2.nodes.Getattr, jinja2.nodes.Getitem, jinja2.nodes.Call, jinja2.nodes.Filter)
_LIMITED = (
    *("upper", "lower", "capitalize", "title", "striptags"),
    *("center", "batch", "truncate", "wordcount", "urlencode", "xmlattr", "pprint"),
)
FILTERS = {
    **{name: limits.limit_filter(jinja2.filters.FILTERS[name]) for name in _LIMITED},
    **{name: limits.limit_filter(jinja2.filters.FILTERS[name], repeats=True) for name in ("wordwrap", "urlize")},
    "slice": limits.limit_filter(jinja2.filters.sync_do_slice),
    "string": _string,
    "trim": _trim,
    "safe": _safe,
    "escape": _escape,
    "e": _escape,
    "forceescape": _force_escape,
    "tojson": _tojson,
    "join": _join,
    "indent": _indent,
    "format": _format,
    "round": _round,
    "replace": _replace,
}


@lru_cache(maxsize=256)
def compile_template(template: str) -> jinja2.Template:
    """The compiled template; ImpruverError with the line for one that does not parse."""
    extensions = [_GenerationTag, jinja2.ext.loopcontrols]
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters |= FILTERS
    environment.globals |= {"raise_exception": _raise_template_error, "dict": _Dict(), "namespace": _Namespace}
    environment.globals["lipsum"] = _lipsum
    if len(template) > limits.LARGEST_TEMPLATE:
        raise ImpruverError(f"the chat template has {len(template):,} characters, more than any that is one")
    limits.begin_rendering(limits.COMPILE_SECONDS)
    try:
        compiled = environment.from_string(template)
        compiled.globals = dict(compiled.globals)  # each rendering copies them: a ChainMap takes several times as long
        return compiled
    except jinja2.TemplateSyntaxError as error:
        raise ImpruverError(f"the chat template does not parse, line {error.lineno}: {error.message}") from None
    except Exception as error:  # nested too deep for jinja2, or for the Python that it makes
        raise ImpruverError(f"the chat template does not parse: {describe_error(error)}") from None
    finally:
        limits.end_rendering()


def find_variables(template: str) -> frozenset[str]:
    """The names that a template reads and that a caller may set by chat_template_kwargs; special tokens are none.

    What a template sets itself is none, either, unless it asks before whether it is set.
    """
    environment = compile_template(template).environment
    tree = environment.parse(template)
    asked = (*tree.find_all(jinja2.nodes.Test), *tree.find_all(jinja2.nodes.Filter))
    optional = {
        node.node.name
        for node in asked
        if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, jinja2.nodes.Name)
    }
    stored = {node.name for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "store"}
    names = jinja2.meta.find_undeclared_variables(tree) - set(environment.globals) - (stored - optional)
    return frozenset(name for name in names - set(OWN_VARIABLES) if not name.endswith("_token"))


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
    values = {
        "strftime_now": lambda pattern: _format_today(pattern, variables.get("date_string") or day),
        **variables,
        "messages": chat,
        "tools": tools or None,  # an empty list is none
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    limits.begin_rendering(limits.SECONDS + limits.SECONDS_PER_MESSAGE * len(chat))
    try:
        return compiled.render(values)
    except RecursionError:
        raise RefusedError("template_refused", "the template recurses without end") from None
    except limits.TemplateLimitError as error:
        if isinstance(error, limits.TemplateTimeoutError):
            limits.count_timeout(template)
        raise RefusedError("template_refused", f"the template was stopped: {error.message}") from None
    except jinja2.TemplateError as error:
        raise RefusedError("template_refused", error.message or type(error).__name__) from None
    except Exception as error:  # a template may fail in any way that Python can
        raise RefusedError("template_refused", f"{type(error).__name__}: {error}") from None
    finally:
        limits.end_rendering()


def _add_reasoning_fields(message: dict) -> dict:
    if message.keys().isdisjoint(REASONING_FIELDS):  # as most
        return message
    reasoning = next(message[key] for key in REASONING_FIELDS if key in message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _format_today(pattern: str, date_string: str | None) -> str:
    if date_string is None:
        return datetime.now().strftime(pattern)
    for form in ("%Y-%m-%d", "%d %b %Y", "%d %B %Y", "%B %d, %Y"):
        with suppress(ValueError):
            return datetime.strptime(date_string, form).strftime(pattern)
    return date_string
