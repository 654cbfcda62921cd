"""The report of compose: what it tells, and what is to be seen of it in a browser."""

import json
import re
import subprocess
from html import unescape
from pathlib import Path

import pytest
from impruver_compose.reporting.html_report import build_template_check_section
from impruver_compose.reporting.text_diff import build_diff_spans
from impruver_core.reporting.html import render_page

REPORT = Path("out/train.report.html")
EVIL = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"


@pytest.fixture
def report(composed, files):
    """The report of two data sets with duplicates, rows that are too long and markup; and the outcome."""
    rows = files.unlike(40)
    near = [message["content"] for message in rows[3]["messages"]]
    words = " ".join(f"word{at} river" for at in range(30))
    rows += [files.chat(near[0], near[1]), files.chat("long", "river " * 400), files.chat("only a question")]
    rows += [files.chat(f"tell {words} one", "yes"), files.chat(f"tell {words} two", "yes")]
    files.write("data.jsonl", rows)
    files.write("evil.jsonl", [files.chat(f"evil {at} {EVIL}", f"{EVIL} answer {at}" * 2) for at in range(3)])
    done = composed(
        datasets=[{"name": "data.jsonl", "max_tokens_count": 300}, {"name": "evil.jsonl"}],
        split={"val_rows": 3},
        dedup={"threshold": 0.7},
    )
    return done, REPORT.read_text(encoding="utf-8")


def sections(html):
    """Heading → its text, tags gone."""
    found = re.findall(r"<section.*?<h2>(.*?)</h2>(.*?)</section>", html, re.DOTALL)
    return {title: unescape(re.sub(r"<[^>]*>", "", text)) for title, text in found}


def test_it_tells_what_was_made_and_dropped(report):
    done, html = report
    told = sections(html)
    assert list(told) == ["Data sets", "Lengths", "Dropped", "Template checks", "Sample rows", "Duplicates"]
    for each in done.manifest["counts"]:
        for name in ("train_rows", "val_rows", "tokens"):
            assert f"{each[name]:,}" in told["Data sets"]
        for reason, number in each["dropped"].items():
            assert re.search(rf"{reason}\s*{number}(row \d|$)", told["Dropped"])
    assert "max_tokens_count 300" in told["Lengths"]
    assert "Longer than its limit, and dropped: 1." in told["Lengths"]
    assert "train.dropped.jsonl" in told["Dropped"]


def test_sample_rows_show_what_is_learned(report, learned):
    done, html = report
    shown = re.findall(r"<pre>(.*?)</pre>", html.partition("Sample rows</h2>")[2], re.DOTALL)
    runs = [run for row in done.train for run in learned(row)]
    first = "".join(re.findall(r'<span class="learned[^"]*">(.*?)</span>', shown[0], re.DOTALL))
    assert unescape(first) in runs
    assert '<span class="learned special">&lt;|im_end|&gt;</span>' in shown[0]
    assert '<span class="special">&lt;|im_start|&gt;</span>' in shown[0]


def test_the_closest_pairs_stand_side_by_side(report):
    done, html = report
    (near,) = [line for line in done.dropped if line["reason"] == "near_duplicate" and line["dataset_index"] == 0]
    told = sections(html)["Duplicates"]
    assert f"similarity {near['similarity']:.4f}" in told
    assert told.index("similarity") < told.index("exact duplicate")  # exact ones have nothing to compare
    assert f"kept: data set 0 (data.jsonl), row {near['kept']['row']}" in told
    assert f"dropped: data set 0 (data.jsonl), row {near['row']}" in told
    assert '<span class="differs">one</span>' in html
    assert '<span class="differs">two</span>' in html


def test_rows_are_escaped(report):
    html = report[1]
    assert "&lt;script&gt;document.title" in html
    assert "<script" not in html
    assert "<img" not in html


def test_it_names_no_folder_of_this_machine(report, tmp_path):
    assert str(tmp_path) not in report[1]


def test_the_gate_is_shown_where_there_is_one():
    entry = {"dataset_index": 1, "dataset": "d", "learned_share": 0.5, "nothing_to_learn": 3, "ended": 7, "rows": 9}
    entry |= {"unlike_prompt": 2, "probed": 100, "reasoning_stripped": 4, "warnings": [f"why {EVIL}"]}
    entry["example"] = {"row": 5, "part": 0, "trained": "assistant\n<think>\n", "prompt": "assistant\n"}
    html = render_page("t", "", [build_template_check_section([entry, entry | {"example": None, "warnings": []}])])
    told = sections(html)["Template checks"]
    for text in ("50%", "7 of 9", "2 of 100", "4 of 100", f"why {EVIL}", "data set 1, row 5", "in training"):
        assert text in told
    assert "<script" not in html
    assert '<span class="differs">' in html


def test_a_huge_row_makes_no_huge_page(composed, files):
    files.write("data.jsonl", [files.chat("much", "river " * 40_000), files.chat("much", "river " * 40_000)])
    composed(tokenizer={"max_tokens_count": 10**7})
    html = REPORT.read_text(encoding="utf-8")
    assert len(html) < 100_000
    assert "more characters" in html


@pytest.mark.parametrize("rows", [[{"text": "a document of words " * 30}, {"text": "a document of words " * 30}], None])
def test_text_alone_and_nothing_dropped(rows, composed, files):
    files.write("data.jsonl", rows or files.unlike(1))
    composed(tokenizer={"max_tokens_count": 40 if rows else 1000})
    told = sections(REPORT.read_text(encoding="utf-8"))
    assert ("Nothing was dropped" in told["Dropped"]) == (rows is None)
    assert ("exact duplicate" in told.get("Duplicates", "")) == (rows is not None)


def test_val_path_where_the_report_goes(refused, files):
    files.write("data.jsonl", files.unlike(3))
    assert "where the report goes" in refused(val_path="out/train.report.html")


def test_differences_keep_both_texts():
    left, right = "the red fox  runs\nhome", "the blue fox  runs home, 我们走"
    spans = build_diff_spans(left, right)
    assert tuple("".join(text for text, _ in side) for side in spans) == (left, right)
    assert [text for text, kind in spans[0] if kind] == ["red", "\n"]
    assert [text for text, kind in spans[1] if kind] == ["blue", " ", ", 我们走"]


def test_what_is_long_and_the_same_is_told_in_short():
    same = " ".join(f"w{at}" for at in range(1000))
    for side in build_diff_spans(f"a {same}", f"b {same}"):
        assert sum(len(text) for text, _ in side) < len(same) / 3
        assert "words, the same on both sides" in side[2][0]


# Runs in a copy of the page whose rule against scripts is taken out; what markup of a row did would show, too.
PROBE = """<script>
const box = element => element.getBoundingClientRect(), all = name => [...document.querySelectorAll(name)];
const style = element => getComputedStyle(element);
const colour = name => { const found = document.querySelector(name); return found && style(found).backgroundColor; };
const told = {
  title: document.title, text: document.body.innerText, loaded: performance.getEntriesByType("resource").length,
  wide: document.documentElement.scrollWidth, window: innerWidth, ink: style(document.body).color,
  paper: colour("body"), learned: colour(".learned"), differs: colour(".differs"), card: colour("pre"),
  charts: all("svg").map(svg => [box(svg).width, box(svg).height]),
  bars: all("figure.bars .series rect").map(bar => [box(bar).width, box(bar).height, style(bar).fill]),
  area: all("figure.histogram .series:first-child path").map(path => [box(path).width, box(path).height]),
  limits: all("figure.histogram .series:not(:first-child) path").map(path => box(path).height),
  sides: all(".sides").map(pair => [...pair.children].map(side => [box(side).left, box(side).top, box(side).width])),
};
document.body.textContent = JSON.stringify(told);
</script></body>"""


def seen(chromium, html, folder, *flags):
    """What a browser makes of the page."""
    copy = folder / "copy.html"
    copy.write_text(re.sub("<meta http-equiv.*?>", "", html).replace("</body>", PROBE), encoding="utf-8")
    own = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}", *flags]
    command = [chromium, *own, "--dump-dom", copy.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(unescape(re.search(r"<body>(.*)</body>", dom, re.DOTALL)[1]))


def light_of(colour):
    return sum(int(number) for number in re.findall(r"\d+", colour)[:3])


def test_in_a_browser(report, chromium, tmp_path):
    html = report[1]
    found = seen(chromium, html, tmp_path, "--window-size=1200,900", "--blink-settings=preferredColorScheme=1")
    assert (found["title"], found["loaded"]) == ("train.jsonl", 0)
    assert EVIL in found["text"]
    for text in ("Data sets", "0 data.jsonl", "near_duplicate", "max_tokens_count 300", "<|im_end|>", "similarity 0."):
        assert text in found["text"]
    assert len(found["charts"]) == 4
    assert all(width > 500 and height > 60 for width, height in found["charts"])
    assert sum(width > 20 and height > 10 and fill != "none" for width, height, fill in found["bars"]) >= 6
    assert all(width > 100 and height > 100 for width, height in found["area"])
    assert found["limits"]
    assert min(found["limits"]) > 100
    assert len({found[name] for name in ("paper", "card", "learned", "differs")}) == 4
    assert light_of(found["paper"]) > 600 > 300 > light_of(found["ink"])
    for (left, top, width), (other, other_top, _) in found["sides"]:
        assert top == other_top
        assert left + width < other
    dark = seen(chromium, html, tmp_path, "--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    assert light_of(dark["paper"]) < 300 < 500 < light_of(dark["ink"])
    for each in (found, dark):
        assert each["wide"] <= each["window"]  # on a narrow screen, too, nothing stands out
