"""Reports: one page that loads nothing, runs nothing, and shows any text as it is."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from impruver_core.reporting import charts
from impruver_core.reporting.html import (
    build_facts,
    build_pairs,
    build_section,
    build_table,
    build_texts,
    mark_strings,
    render_page,
    truncate_spans,
)

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"'"


class Seen(HTMLParser):
    """Tags with their attributes, and the text outside of style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.inside = [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        self.text += data if self.inside != "style" else ""

    def handle_endtag(self, tag):
        self.inside = None


def everything(text):
    """A page that has `text` wherever a text may stand."""
    spans = [(text, ""), (text, "learned")]
    return render_page(
        text,
        text,
        [
            build_section("", text, build_facts({text: text})),
            build_section(
                text, text, build_table([text], [[text]]), build_table([text, "other"], [[text, {text: [text]}]])
            ),
            build_section(
                "charts",
                text,
                charts.render_bars(text, {text: [1, 2]}, (text, text)),
                charts.render_histogram(text, [0, 1, 2], [3, 4], {text: 2}, text, text),
                charts.render_lines(text, {text: [(0, 1), (1, 2)], "b": [(0, 1)]}, text),
            ),
            build_section(
                "texts", "", build_texts([(text, spans)]), build_pairs([(text, (text, spans), (text, spans))])
            ),
        ],
    )


def test_everything_is_escaped():
    seen, harmless = Seen(everything(EVIL)), Seen(everything("harmless"))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in harmless.tags]
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in seen.tags}
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]
    assert seen.text.count(EVIL) >= 20


def test_nothing_is_loaded_from_elsewhere():
    text = everything("a")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg\")", text)
    names = [(tag, name, value) for tag, attributes in Seen(text).tags for name, value in attributes.items()]
    assert not [each for each in names if each[1] in ("src", "srcset", "data")]
    assert all(value.startswith("#") for _, name, value in names if name == "href")
    assert "default-src 'none'" in text


def test_what_utf8_has_no_bytes_for_is_replaced():
    assert "a?b" in render_page("a\ud800b", "", [])


def test_numbers_stand_to_the_right_and_other_values_can_be_read():
    text = render_page(
        "", "", [build_section("s", "", build_table(["n", "w"], [[1234567, "word"], [True, None], [0.25, "12.5%"]]))]
    )
    assert '<td class="number">1,234,567</td><td>word</td>' in text
    assert "<td>yes</td><td></td>" in text
    assert '<td class="number">0.25</td><td class="number">12.5%</td>' in text


def test_long_spans_are_cut_and_told():
    spans = [("abc", ""), ("defg", "learned"), ("hi", "")]
    assert truncate_spans(spans, 9) == spans
    assert truncate_spans(spans, 5) == [("abc", ""), ("de", "learned"), ("… 4 more characters", "left_out")]


def test_marked_strings_keep_what_their_span_is():
    spans = [("<a>x<a|>", "learned"), ("y", "")]
    marks = [("<a>", "learned special"), ("x", "learned"), ("<a|>", "learned special"), ("y", "")]
    assert mark_strings(spans, ["<a", "<a>", "<a|>", ""]) == marks
    assert mark_strings(spans, []) == spans


def drawn(part):
    """Its series: the numbers of each path, or x, y, width, height of each rect."""
    root = ElementTree.fromstring(part["svg"])
    groups = [group for group in root.iter() if group.get("class", "").startswith("series")]
    paths = [[float(n) for n in re.findall(r"-?[\d.]+", path.get("d"))] for g in groups for path in g if path.get("d")]
    bars = [[float(r.get(name)) for name in ("x", "y", "width", "height")] for g in groups for r in g if r.get("width")]
    return paths or bars


def test_bars_are_as_long_as_their_values():
    one, two, part_one, part_two = drawn(charts.render_bars("b", {"a": (100, 25), "b": (50, 50)}, ("all", "some")))
    lengths = {round(bar[2] / max(one[2], two[2]), 2) for bar in (one, two)}
    assert lengths == {1.0, 0.5}
    assert {round(bar[2] / max(one[2], two[2]), 2) for bar in (part_one, part_two)} == {0.25, 0.5}
    assert one[1] != two[1]


def test_a_histogram_has_its_limit_where_it_is():
    area, limit = drawn(charts.render_histogram("h", [0, 10, 20], [1, 3], {"limit": 15}, "x", "y"))
    left, right = min(area[::2]), max(area[::2])
    assert limit[0] == limit[2] == pytest.approx(left + (right - left) * 15 / 20, abs=1)


def test_a_line_keeps_its_spikes():
    points = [(step, 100.0 if step == 7777 else 1.0) for step in range(50_000)]
    part = charts.render_lines("l", {"loss": points})
    (path,) = drawn(part)
    assert min(path[1::2]) < max(path[1::2]) - 150
    assert len(part["svg"]) < 40_000


@pytest.mark.parametrize(
    "values", [[2e-4] * 5, [0, 0], [-3.0], [1e12, 1e12], [float("nan"), 1, float("inf")], [5, 5.0001]]
)
def test_lines_of_any_numbers_stand_within_the_chart(values):
    (path,) = drawn(charts.render_lines("l", {"x": list(enumerate(values))}))
    assert all(-1 <= y <= charts.LINES_HEIGHT for y in path[1::2])
    assert all(-1 <= x <= charts.WIDTH for x in path[::2])


@pytest.mark.parametrize("value", [0, 1, 7, 10**9, 0.5])
def test_bars_of_any_numbers(value):
    assert drawn(charts.render_bars("b", {"a": [value]}))


def test_without_anything_to_draw_there_is_no_chart():
    assert charts.render_bars("b", {}) is None
    assert charts.render_lines("l", {"a": [], "b": [(1, float("nan"))]}) is None
    assert charts.render_histogram("h", [0], [], {}, "x", "y") is None
    assert "<figure" not in render_page("", "", [build_section("s", "", charts.render_lines("l", {}))])


def test_names_that_are_cut_stay_apart():
    part = charts.render_bars("b", {"n" * 50 + str(at): [1] for at in range(3)})
    assert len({round(bar[1]) for bar in drawn(part)}) == 3
