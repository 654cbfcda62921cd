"""README's first example runs as it stands, but for the tokenizer's name; what it lists is all there is."""

import re

import pytest
from support import ROOT

README = ROOT / "packages" / "impruver-compose" / "README.md"


@pytest.fixture(scope="module")
def readme():
    return re.sub(r"<!-- made: .*?<!-- /made -->", "", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_first_example(readme, files, tokenizer_dir, tmp_path, capfd):
    from impruver_compose.cli import main

    for language, name in (("yaml", "my_recipe.yaml"), ("python", "my_converters.py")):
        block = re.search(rf"```{language}\n(# {name}\n.*?)```", readme, re.DOTALL)[1]
        (tmp_path / name).write_text(block, encoding="utf-8")
    files.write("questions.jsonl", [{"question": f"question {at}", "answer": f"answer {at}"} for at in range(3)])
    (tmp_path / "faq.csv").write_text("title,text\nhow long?,an hour\n")
    files.write("chats.jsonl", [{"topic": topic, "q": topic, "a": f"about {topic}"} for topic in ("rain", "spam")])
    commands = re.findall(r"^impruver-compose (.*?)(?: +#.*)?$", readme, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        code = main([*command.split(), "--set", f"tokenizer.name={tokenizer_dir}"])
        assert code == 0, capfd.readouterr().err
    assert [len(files.read(f"data/{name}.jsonl")) for name in ("train", "val", "train.dropped")] == [4, 1, 1]
    assert files.read("data/train.dropped.jsonl")[0]["reason"] == "converter_skipped"


def test_converters_and_reasons_are_all_listed(readme):
    from impruver_compose.converters.detection import BUILTIN

    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("**/src/impruver_co[rm]*/**/*.py"))
    reasons = set(re.findall(r'(?:Refused(?:Error)?\(|DroppedGroup\(|reason = |exact else )"(\w+)"', sources))
    listed = re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE)
    converters = [name.removeprefix("impruver.") for name in BUILTIN]
    assert sorted(name for name in listed if name != "train_path" and name != "val_path") == sorted(
        [*reasons, *converters]
    )
