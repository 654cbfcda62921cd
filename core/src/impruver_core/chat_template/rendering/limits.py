"""Limits of what a chat template may compute: it is code from elsewhere, and a line of it can fill any memory.

Time is limited by a timer of this process's CPU time. It ends loops; it can't end a single operation that Python does
not leave, so the size of whatever such an operation makes is checked before: texts that are repeated, padded, joined
or formatted, powers, and lists that hold each other many times over.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import reduce, wraps
from types import SimpleNamespace
from typing import Any

import jinja2

from impruver_core.chat_template.rendering.traced_string import TracedStr, join_traced, trace_printed
from impruver_core.errors import ImpruverError
from impruver_core.time_limit import start_timer, stop_timer

COMPILE_SECONDS = 5  # of CPU time, as all of these
SECONDS, SECONDS_PER_MESSAGE = 2, 1e-4  # for one rendering
MOST_TIMEOUTS = 3  # renderings that may take longer, before the template is not used any more
LARGEST = 1 << 25  # characters of a text, or items and characters of a list or mapping
MOST_MADE = 1 << 28  # characters of all that one rendering makes
MOST_DIGITS = 7  # of a width in a format
MOST_BITS = 1 << 16  # of a whole number
MOST_DECIMALS = 1000
FEW_ITEMS = 64  # of a list that is printed without being measured: those in it were, when they were made
ITEM = 32  # what an item takes, in characters
ESCAPED = 6  # characters that one becomes, as in `\u0001` and `&quot;`
LARGEST_TEMPLATE = 1 << 20  # characters
PLAIN_TEXTS = frozenset((str, TracedStr))
GROWING = frozenset(  # methods of texts whose result may be larger than their text
    (
        *("center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "translate", "format", "format_map"),
        *("split", "rsplit", "splitlines"),
    )
)
SEARCHING = frozenset(  # methods of texts that look at each of their characters for each of their argument's
    ("strip", "lstrip", "rstrip", "rsplit", "rfind", "rindex", "rpartition")
)
MAKING_BYTES = frozenset(("encode", "to_bytes"))  # methods whose result nothing here measures, and no template needs
MEASURED = GROWING | SEARCHING | MAKING_BYTES
QUICK = SEARCHING | {"split", "splitlines"}  # on short texts, which ordinary templates do all the time
SHORT = 1 << 12  # characters
MOST_COMPARED = 1 << 29  # characters, by one of those
LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
BLANKS = f"{LINE_ENDS}\t\x1f \xa0\u3000"  # the usual ones


# Of the rendering that goes on: characters made so far, seconds that it may take, whether its timer is set.
_state = SimpleNamespace(made=0, seconds=0.0, timed=False)
_timeouts: Counter[str] = Counter()  # by template


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template that goes beyond a limit."""


class TemplateTimeoutError(TemplateLimitError):
    """A template that takes too long."""


def begin_rendering(seconds: float) -> None:
    """From now on, until `end_rendering`, TemplateLimitError is raised for what takes longer or makes too much."""
    _state.made, _state.seconds = 0, seconds
    _state.timed = start_timer(seconds, _build_timeout)


def _build_timeout() -> TemplateTimeoutError:
    return TemplateTimeoutError(f"it takes more than {_state.seconds:.3g} seconds")


def end_rendering() -> None:
    """Ends what `begin_rendering` began."""
    if _state.timed:
        _state.timed = False
        stop_timer()


def count_timeout(template: str, renderings: int = 1) -> None:
    """Counts renderings that took too long; ImpruverError once there are too many of a template."""
    _timeouts[template] += renderings
    if _timeouts[template] > MOST_TIMEOUTS:
        raise ImpruverError("the chat template takes too long, for one row after another")


def check_size(size: int) -> None:
    """TemplateLimitError for so many characters or items that a template is about to make."""
    _state.made += size
    if size > LARGEST or _state.made > MOST_MADE:
        raise TemplateLimitError(f"it makes texts or lists of more than {LARGEST:,} characters")


def check_container(value: Any, times: int = 1) -> Any:
    """`value`, a list or mapping; TemplateLimitError where all that it holds, so many times over, is too large."""
    if measure(value) * times > LARGEST:
        raise TemplateLimitError(f"it makes texts or lists of more than {LARGEST:,} characters")
    return value


def check_growth(value: Any, times: int) -> Any:
    """`value`, for a function that may make so many characters of one; TemplateLimitError where that is too large."""
    size = len(value) if isinstance(value, str) else measure(value)
    if size * times > LARGEST:
        raise TemplateLimitError(f"it makes texts or lists of more than {LARGEST:,} characters")
    return value


def check_printed(value: Any) -> Any:
    """`value`, about to become a text; TemplateLimitError where it is a list that would be too long a one."""
    return check_container(value) if isinstance(value, (list, tuple)) and len(value) > FEW_ITEMS else value


def measure(value: Any) -> int:
    """The characters in a value and ITEM for each item, as often as it is printed; no further than beyond LARGEST."""
    size, left = 0, [value]
    while left and size <= LARGEST:
        value = left.pop()
        size += ITEM
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, dict):
            left += value
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
    return size


def add(left: Any, right: Any) -> Any:
    """`left + right`; TemplateLimitError where that is too large."""
    if isinstance(left, str) and isinstance(right, str):
        check_size(len(left) + len(right))
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        size = len(left) + len(right)
        check_size(size if size * ITEM <= LARGEST else LARGEST + 1)
    return left + right


def add_all(values: tuple) -> Any:
    """`values[0] + values[1] + …`; TemplateLimitError where that is too large."""
    if not PLAIN_TEXTS.issuperset(map(type, values)):  # markup escapes what it is joined with
        return reduce(add, values)
    check_size(sum(map(len, values)))
    return join_traced(values)


def to_text(value: Any) -> str:
    """A value as it is printed; TemplateLimitError where that is too large."""
    if isinstance(value, str):
        return value
    return trace_printed(check_printed(value)) if isinstance(value, (list, tuple, dict)) else str(value)


def check_binop(operator: str, left: Any, right: Any) -> None:
    """TemplateLimitError for an operation of two values whose result would be too large."""
    if operator == "*":
        for text, times in ((left, right), (right, left)):
            if isinstance(text, str) and isinstance(times, int):
                check_size(len(text) * max(times, 0))
            elif isinstance(text, (list, tuple)) and isinstance(times, int):
                check_container(text, max(times, 0))
        if isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() * max(right, 0))
    elif operator == "%" and isinstance(left, str):
        check_format(left, right)


def check_bits(count: int) -> None:
    """TemplateLimitError for a whole number of so many bits."""
    if count > MOST_BITS:
        raise TemplateLimitError("it computes a number of thousands of digits")


def check_format(form: str, values: Any) -> None:
    """TemplateLimitError where a format has a width, or repeats values, beyond what a text may be."""
    if re.search(rf"\d{{{MOST_DIGITS},}}|%[-+ #0\d.]*\*", form):
        raise TemplateLimitError("it formats with a width that no text has")
    if re.search(r"{[^{}]*{", form):  # a width that is a value
        _check_width_values(form, values)
    widths = sum(map(int, re.findall(r"\d+", form)))
    fields = 1 + form.count("%") + form.count("{")
    check_size(len(form) + widths + fields * measure(values))


def _check_width_values(form: str, values: Any) -> None:
    """TemplateLimitError where a width that is a value, or is put together of several, is beyond what a text has."""
    flat = []
    for value in values.values() if isinstance(values, dict) else values:
        flat += value.values() if isinstance(value, dict) else [value]
    check_numbers(flat)
    together = len(re.findall(r"{[^{}]*{", form)) != len(re.findall(r"{[^{}]*:[^{}\d]*{[^{}]*}[^{}\d]*}", form))
    if together or any(isinstance(value, str) and re.search(rf"\d{{{MOST_DIGITS},}}", value) for value in flat):
        raise TemplateLimitError("it formats with a width that no text has")


def check_numbers(arguments: Iterable[Any], factor: int = 1) -> None:
    """TemplateLimitError for a number among the arguments of a function that makes `factor` times as much of it."""
    for value in arguments:
        if isinstance(value, int):
            check_size(min(abs(value), LARGEST + 1) * factor)


def check_method(method: Any, arguments: tuple, named: dict) -> None:
    """TemplateLimitError for a method, one of MEASURED of a text, whose result or work would be too large."""
    method = getattr(method, "__wrapped__", method)  # the sandbox wraps `format`
    text, name = getattr(method, "__self__", None), method.__name__
    if name in MAKING_BYTES and isinstance(text, (str, int)):
        raise TemplateLimitError(f"it makes bytes of a text or a number ({name}), which no template needs")
    if not isinstance(text, str):
        return
    if name in SEARCHING and arguments and isinstance(arguments[0], str):
        check_compared(text, arguments[0])
    check_numbers((*arguments, *named.values()))
    if name == "replace" and len(arguments) > 1 and isinstance(arguments[0], str) and isinstance(arguments[1], str):
        check_size(len(text) + (text.count(arguments[0])) * len(arguments[1]))
    elif name == "join" and arguments and isinstance(arguments[0], (list, tuple, dict, str)):
        check_size(measure(arguments[0]) + len(arguments[0]) * len(text))
    elif name in ("split", "rsplit", "splitlines"):
        check_parts(text, name, next(iter((*arguments, named.get("sep"))), None))
    elif name == "expandtabs":
        width = next(iter((*arguments, *named.values())), 8)
        check_size(len(text) + text.count("\t") * (width if isinstance(width, int) else 8))
    elif name == "translate" and arguments and isinstance(arguments[0], dict):
        check_size(len(text) * max((len(to) for to in arguments[0].values() if isinstance(to, str)), default=1))
    elif name in ("format", "format_map"):
        check_format(text, [*arguments, *named.values()])


def is_long(method: Any, arguments: tuple, named: dict) -> bool:
    """Whether a text, whose method is one of QUICK, or what it is searched for is long."""
    text = getattr(method, "__self__", "")
    if "sep" in named or not isinstance(text, str) or len(text) > SHORT:  # jinja adds names of its own
        return True
    return bool(arguments) and isinstance(arguments[0], str) and len(arguments[0]) > SHORT


def check_compared(text: str, other: str) -> None:
    """TemplateLimitError where each character of a text would be compared with too many of another."""
    if len(text) * len(other) > MOST_COMPARED:
        raise TemplateLimitError("it searches a long text for a long one")


def check_parts(text: str, method: str, separator: Any) -> None:
    """TemplateLimitError for a text that is split into too many parts, each of which takes more than its characters."""
    if method == "splitlines":
        separators = LINE_ENDS
    else:
        separators = [separator] if isinstance(separator, str) and separator else BLANKS
    if len(text) * ITEM > LARGEST:  # else it has no more characters than a list may have items
        check_size(len(text) + ITEM * sum(map(text.count, separators)))


def limit_filter(function: Callable, times: int = 1, repeats: bool = False) -> Callable:
    """A filter of jinja's that checks its value and the numbers behind.

    `times`: so many characters it may make of one; `repeats`: it may repeat the texts behind.
    """
    position = int(hasattr(function, "jinja_pass_arg"))  # behind the environment

    @wraps(function)  # with what jinja passes it
    def limited(*arguments: Any, **named: Any) -> Any:
        check_growth(arguments[position], times)
        behind = (*arguments[position + 1 :], *named.values())
        if behind:
            check_numbers(behind, ITEM)
        if behind and repeats:
            check_size(len(str(arguments[position])) * sum(len(text) for text in behind if isinstance(text, str)))
        return function(*arguments, **named)

    return limited
