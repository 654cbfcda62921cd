"""Templates that would take all time or memory: each is stopped, in its words, and ordinary ones are not slowed."""

import json
import signal
import threading

import pytest
from impruver_core.chat_template.rendering import limits
from impruver_core.chat_template.rendering.renderer import compile_template, render_template
from impruver_core.errors import ImpruverError, RefusedError
from support.cli import run_python

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
GROWING = "{%% set ns = namespace(s=%s) %%}{%% for i in range(999) %%}{%% set ns.s = %s %%}{%% endfor %%}{{ ns.s%s }}"
NUMBER = 9_999_999_999
LARGE = {
    "center, the filter": f"{{{{ 'a'|center({NUMBER}) }}}}",
    "center, by name": f"{{{{ 'a'|center(width={NUMBER}) }}}}",
    "center, mapped": f"{{{{ messages|map('center', {NUMBER})|list }}}}",
    "center of many": "{{ range(99999)|map('string')|map('center', 900000)|join }}",
    "center": f"{{{{ 'a'.center({NUMBER}) }}}}",
    "ljust": f"{{{{ messages[0].content.ljust({NUMBER}) }}}}",
    "rjust": f"{{{{ 'a'.rjust({NUMBER}, '-') }}}}",
    "zfill": f"{{{{ 'a'.zfill({NUMBER}) }}}}",
    "expandtabs": "{{ ('\\t' * 99999).expandtabs(99999) }}",
    "indent": f"{{{{ 'a\\nb'|indent({NUMBER}) }}}}",
    "indent by a text": "{{ ('\\n' * 99999)|indent('x' * 99999) }}",
    "batch": f"{{{{ [1]|batch({NUMBER}, 'x')|list }}}}",
    "slice": f"{{{{ []|slice({NUMBER})|list }}}}",
    "tojson": f"{{{{ messages|tojson(indent={NUMBER}) }}}}",
    "wordwrap": "{{ ('a ' * 99999)|wordwrap(1, wrapstring='x' * 9999999) }}{{ 'a'|wordwrap(99999999) }}",
    "times": f"{{{{ 'a' * {NUMBER} }}}}",
    "times, turned round": f"{{{{ {NUMBER} * messages[0].content }}}}",
    "a list, many times": f"{{{{ ['a'] * {NUMBER} }}}}",
    "a large text in a list, many times": "{% set a = 'a' * 9999999 %}{{ [a] * 99999 }}",
    "plus": GROWING % ("'ab'", "ns.s + ns.s", ""),
    "tilde": GROWING % ("'ab'", "ns.s ~ ns.s", ""),
    "a block": "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = x %}{% endfor %}",
    "lists, added": GROWING % ("['ab']", "ns.s + ns.s", ""),
    "lists in lists": GROWING % ("['ab']", "[ns.s, ns.s]", ""),
    "lists in lists, compared": GROWING % ("['ab']", "[ns.s, ns.s]", " == [1]"),
    "lists in tuples": GROWING % ("['ab']", "(ns.s, ns.s)", "|tojson"),
    "mappings in mappings": GROWING % ("{}", "{'a': ns.s, 'b': ns.s}", "|tojson"),
    "mappings by dict": GROWING % ("{}", "dict(a=ns.s, b=ns.s)", "|string"),
    "replace": "{% set a = 'a' * 9999 %}{{ a.replace('a', a) }}",
    "replace, the filter": "{% set a = 'a' * 9999 %}{{ a|replace('a', a) }}",
    "join": "{% set a = 'a' * 999999 %}{{ a.join('b' * 9999) }}",
    "join, the filter": "{% set a = 'a' * 999999 %}{{ range(9999)|join(a) }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "split": "{{ (',' * 33000000).split(',')|length }}",
    "split at blanks": "{{ ('a ' * 16000000).split()|length }}",
    "splitlines": "{{ ('a\n' * 16000000).splitlines()|length }}",
    "escaped, over and over": "{{ ('<' * 5000000)|e|forceescape|forceescape|length }}",
    "escaped by joining": "{{ ('' | safe) ~ ('<' * 33000000) + ('a'|safe) }}",
    "urlencode, over and over": "{{ ('\ufdfa' * 2500000)|urlencode|urlencode|urlencode|length }}",
    "tojson, over and over": "{{ ('\x01' * 5000000)|tojson|tojson|tojson|length }}",
    "upper, over and over": "{{ ('\ufb03' * 11000000)|upper|title|length }}",
    "separators": "{{ range(9999)|list|tojson(separators=('a' * 99999, 'b')) }}",
    "a printed list": "{% set a = 'a' * 9999999 %}{% set ns = namespace(l=[a]) %}{% for i in range(999) %}"
    "{% set ns.l = ns.l + [a] %}{% endfor %}{{ ns.l }}",
}
OTHERS = {
    "a power": ("{{ 9 ** (9 ** 9) }}", "thousands of digits"),
    "a power of a power": (
        "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "thousands",
    ),
    "a format": (f"{{{{ '%{NUMBER}d' % 1 }}}}", "width that no text has"),
    "a format, the filter": (f"{{{{ '%{NUMBER}d'|format(1) }}}}", "width that no text has"),
    "a format's method": (f"{{{{ '{{:>{NUMBER}}}'.format(1) }}}}", "width that no text has"),
    "a width among the values": ("{{ '%*d' % (999999999, 1) }}", "width that no text has"),
    "a width among the method's values": ("{{ '{:{}}'.format(1, 999999999) }}", "characters"),
    "a width of several values": ("{{ '{0:{1}{2}}'.format(5, 9999, 99999) }}", "width that no text has"),
    "a width that is a text": ("{{ '{:{}}'.format(5, '<999999999') }}", "width that no text has"),
    "a width in a mapping": ("{{ '{a:{b}}'.format_map({'a': 1, 'b': 999999999}) }}", "characters"),
    "bytes": ("{{ 'a'.encode().ljust(999999999) }}", "it makes bytes"),
    "bytes of a number": ("{{ (5).to_bytes(9999999999, 'big') }}", "it makes bytes"),
    "bytes, by a filter": ("{{ (''|attr('encode'))() }}", "it makes bytes"),
    "strip": ("{{ ('a' * 33000000).lstrip('b' * 9999999 ~ 'a') }}", "searches a long text"),
    "trim": ("{{ ('a' * 33000000)|trim('b' * 9999999 ~ 'a') }}", "searches a long text"),
    "rfind": ("{{ ('a' * 33000000).rfind('b' ~ 'a' * 16000000) }}", "searches a long text"),
    "decimals": (f"{{{{ 1.5|round({NUMBER}) }}}}", "decimals"),
    "lipsum": ("{{ lipsum(n=99999999) }}", "no use for lipsum"),
    "a range": (f"{{% for i in range({NUMBER}) %}}{{% endfor %}}", "Range too big"),
    "a macro that calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses without end"),
}
SLOW = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over what is written there": "{% for a in [1, 2, 3, 4, 5, 6, 7, 8] %}" * 12 + "{% endfor %}" * 12,
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
}
DEEP = {
    "parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "lists": "{{ " + "[" * 50_000 + "]" * 50_000 + " }}",
    "blocks": "{% if a %}" * 3_000 + "{% endif %}" * 3_000,
    "loops": "{% for a in b %}" * 60 + "{% endfor %}" * 60,
    "signs": "{{ " + "-" * 50_000 + "1 }}",
    "sums": "{{ " + "+".join("a" * 10_000) + " }}",
    "a text of megabytes": "x" * (2 << 20),
}


@pytest.mark.parametrize("what", LARGE)
def test_no_text_or_list_grows_without_end(what):
    with pytest.raises(RefusedError) as caught:
        render_template(LARGE[what], CHAT)
    assert caught.value.reason == "template_refused"
    assert "more than 33,554,432 characters" in caught.value.detail


@pytest.mark.parametrize("what", OTHERS)
def test_what_else_would_take_all_time_or_memory(what):
    template, told = OTHERS[what]
    with pytest.raises(RefusedError, match=told):
        render_template(template, CHAT)


@pytest.mark.parametrize("what", SLOW)
def test_a_template_that_takes_too_long_is_stopped(what, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    with pytest.raises(RefusedError, match=r"the template was stopped: it takes more than 0\.2 seconds"):
        render_template(SLOW[what], CHAT)
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0
    assert render_template("{{ messages[0].content }}", CHAT) == "Hi"


@pytest.mark.parametrize("what", DEEP)
def test_a_template_nested_too_deep_does_not_parse(what):
    with pytest.raises(ImpruverError, match=r"the chat template (does not parse|has 2,097,152 characters)"):
        compile_template(DEEP[what])


def test_a_profilers_timer_is_left_alone_and_other_threads_render(monkeypatch):
    mine = signal.signal(signal.SIGPROF, lambda number, frame: None)
    try:
        handler = signal.getsignal(signal.SIGPROF)
        assert render_template("{{ messages[0].content }}", CHAT) == "Hi"
        assert signal.getsignal(signal.SIGPROF) is handler
    finally:
        signal.signal(signal.SIGPROF, mine)
    rendered = []
    thread = threading.Thread(target=lambda: rendered.append(render_template("{{ messages[1].content }}", CHAT)))
    thread.start()
    thread.join()
    assert rendered == ["Ho"]


def test_what_ordinary_templates_do_is_allowed():
    long = [{"role": "user", "content": "x" * 3_000_000}, *CHAT * 1_000]
    template = (
        "{%- set ns = namespace(list=[], text='') -%}"
        "{%- for m in messages -%}{%- set ns.list = ns.list + [m.content] -%}"
        "{%- set ns.text = ns.text ~ m.role[0] -%}{%- endfor -%}{{ ns.list|length }} {{ ns.text|length }} "
        "{{ messages[1].content.split('i')[0] }}{{ messages[1].content.split()|length }}{{ '{:{}}'.format('a', 3) }} "
        "{{ ns.list|join('')|length }} {{ '%5.1f %s'|format(1.25, 'a') }} {{ 'ab'|center(6) }}| {{ '=' * 10 }}"
    )
    assert render_template(template, long) == "2001 2001 H1a   3004000   1.2 a   ab  | =========="


CODE = """
import json, resource, sys
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.errors import RefusedError

resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for template in json.load(sys.stdin):
    try:
        render_template(template, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
    except RefusedError as error:
        assert "MemoryError" not in str(error), template
"""


def test_memory_stays_small():
    """All the above in one process that may have no more than a gigabyte."""
    texts = json.dumps([*LARGE.values(), *(template for template, _ in OTHERS.values())])
    done = run_python(CODE, input=texts)
    assert done.returncode == 0, done.stderr


def test_no_timer_is_left_when_the_process_ends():
    code = (
        "from impruver_core.chat_template.rendering import limits, renderer\n"
        "limits.SECONDS = 0.05\n"
        "renderer.render_template('{{ messages|length }}', [])\n"
        "sum(range(20_000_000))\n"
    )
    assert run_python(code).returncode == 0


def test_lists_are_weighed_before_they_are_added():
    with pytest.raises(limits.TemplateLimitError):
        limits.add([1] * (limits.LARGEST // limits.ITEM), [1])
    assert limits.add([1], [2]) == [1, 2]
    assert limits.add("a", "b") == "ab"
    assert limits.add(1, 2) == 3
