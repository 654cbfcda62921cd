"""What users of such tools get wrong, and what ours say of it: what is wrong, where, and what to do.

The mistakes are those of the field's issue trackers, some of which are named. A recipe, files and a command line stand
here as the user would have them; the commands are the real ones, on a small base that really was trained and converted.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

COMPOSE, TRAIN, CHAT = (f"impruver-{tool} --config recipe.yaml" for tool in ("compose", "train", "chat"))
GGUF = "impruver-gguf --config recipe.yaml --overwrite"
ASK = f"{CHAT} --output answers.jsonl --input"
ROW = '{"instruction": "Where is Peru?", "output": "There."}'
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 538090408\n"
CALL_ROW = json.dumps(
    {
        "messages": [
            {"role": "user", "content": "Go"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "go", "arguments": '{"to": "A", "to": "B"}'}}]},
        ]
    }
)
NAMES = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"


class Mistake(NamedTuple):
    """`recipe`: what stands in it in place of what is right (`conftest.RECIPE`). `told`: all of it, in this order."""

    command: str
    told: list[str]
    recipe: str = ""
    files: dict[str, str | bytes] = {}  # noqa: RUF012
    gone: str = ""
    code: int = 2


MISTAKES = {
    # A system prompt beside the list of rows: none of them would have it.
    "a system prompt beside the rows of a document": Mistake(
        COMPOSE,
        ["data.json has system beside its list data: put them into each row"],
        "datasets:\n  - name: data.json",
        {"data.json": f'{{"system": "Be brief.", "data": [{ROW}]}}'},
    ),
    # A key that stands twice in a call's arguments: JSON would keep the last of them without a word.
    "arguments with a key twice": Mistake(
        COMPOSE,
        ["bad_row", 'row 0: arguments of a tool call of message 1: the key "to" occurs twice'],
        files={"data.jsonl": CALL_ROW},
    ),
    # hiyouga/LlamaFactory 3018: the list of rows stands in a .txt. It can be read, so it is: with a warning.
    "a list of rows named .txt": Mistake(
        COMPOSE,
        ["warning: recipe.yaml:2: datasets.0: ", "data.txt is read as plain text", "name it .json or .jsonl"],
        "datasets:\n  - name: data.txt",
        {"data.txt": f"[{ROW},\n{ROW.replace('Peru', 'Oman')}\n]"},
        code=0,
    ),
    # hiyouga/LlamaFactory 1344, 3639: "Not able to read records in the JSON file", "Expecting value"
    "a list of rows named .jsonl": Mistake(
        COMPOSE,
        ["data.jsonl, line 1, column 2: not JSON", "a list of rows from a file whose name ends in .json"],
        files={"data.jsonl": f"[\n{ROW}\n]"},
    ),
    "commas between rows": Mistake(
        COMPOSE,
        ["data.jsonl, line 1, column 54: not JSON", "rows have no comma between them"],
        files={"data.jsonl": f"{ROW},\n{ROW}\n"},
    ),
    # Written by str(), not by json.dumps.
    "rows as Python writes them": Mistake(
        COMPOSE,
        ["data.jsonl, line 2, column 2: not JSON", "JSON has double quotes"],
        files={"data.jsonl": f"{ROW}\n{json.loads(ROW)}\n"},
    ),
    "data that Git LFS did not fetch": Mistake(
        COMPOSE,
        ["data.parquet is a pointer of Git LFS", "git lfs pull"],
        "datasets:\n  - name: data.parquet",
        {"data.parquet": POINTER},
    ),
    "the page that shows the data": Mistake(
        COMPOSE,
        ["data.jsonl, line 1, column 1: not JSON", "this is a web page: download the file itself"],
        files={"data.jsonl": "<!DOCTYPE html>\n<html lang=en>\n"},
    ),
    # hiyouga/LlamaFactory 7016: UnicodeDecodeError
    "a CSV in the system's code page": Mistake(
        COMPOSE,
        ["data.csv, line 2: not UTF-8 (byte 1 of the line)", "save the file as UTF-8"],
        "datasets:\n  - name: data.csv",
        {"data.csv": "instruction,output\nГде Перу?,Там.\n".encode("cp1251")},
    ),
    "a CSV with a comma in a cell": Mistake(
        COMPOSE,
        [
            "datasets.0: ",
            "data.csv, line 3: 3 cells, and the header has 2",
            "a cell that holds the separator needs quotes",
        ],
        "datasets:\n  - name: data.csv",
        {"data.csv": "instruction,output\nPeru,There\nWhere, then,Here\n"},
    ),
    "a CSV whose last cells were left out": Mistake(
        COMPOSE,
        ["recipe.yaml:2: datasets.0: ", "data.csv, line 3: 1 cell, and the header has 2", "write the empty cells, too"],
        "datasets:\n  - name: data.csv",
        {"data.csv": "instruction,output\nPeru,There\nWhere\n"},
    ),
    "a CSV with two columns of one name": Mistake(
        COMPOSE,
        ["data.csv, line 1: the header has output more than once", "name each column otherwise"],
        "datasets:\n  - name: data.csv",
        {"data.csv": "instruction,output,output\nPeru,There,Here\n"},
    ),
    "a quote that nobody closes": Mistake(
        COMPOSE,
        ["data.csv, line 3: a quote opens a cell", "is written in quotes, with each of its own doubled"],
        "datasets:\n  - name: data.csv",
        {"data.csv": 'instruction,output\n"Where, then?",There\nA shelf,"12 inch\n'},
    ),
    "a split that the folder does not have": Mistake(
        COMPOSE,
        ["recipe.yaml:2: datasets.0.split: ./rows has no split test", "the names of its files say train, validation"],
        "datasets:\n  - name: ./rows\n    split: test",
        {"rows/train.jsonl": f"{ROW}\n", "rows/dev.jsonl": f"{ROW}\n"},
    ),
    "several configs, and none is named": Mistake(
        COMPOSE,
        ["recipe.yaml:2: datasets.0: ", "rows has several configs: set subset to one of en, ru"],
        "datasets:\n  - name: ./rows",
        {
            "rows/en.jsonl": f"{ROW}\n",
            "rows/ru.jsonl": f"{ROW}\n",
            "rows/README.md": "---\nconfigs:\n- {config_name: en, data_files: en.jsonl}\n"
            "- {config_name: ru, data_files: ru.jsonl}\n---\n",
        },
    ),
    # pandas: DataFrame.to_json() without orient
    "a table written by columns": Mistake(
        COMPOSE,
        ["data.json is written by columns", "orient='records'"],
        "datasets:\n  - name: data.json",
        {"data.json": '{"instruction": {"0": "Where?", "1": "Who?"}, "output": {"0": "There.", "1": "She."}}'},
    ),
    "an answer twice in a row": Mistake(
        COMPOSE,
        ["no usable rows are left of 1", "bad_row", 'the key "output" occurs twice in one object'],
        files={"data.jsonl": ROW.replace("}", ', "output": "Here."}') + "\n"},
    ),
    # hiyouga/LlamaFactory 7577, 5294, 5503: KeyError 'instruction'
    "a mapping from columns to fields": Mistake(
        COMPOSE,
        [
            "datasets.0: no converter fits the columns Question, Answer",
            "mapping: {instruction: COLUMN, output: COLUMN}",
        ],
        "datasets:\n  - name: data.jsonl\n    mapping: {Question: instruction, Answer: output}",
        {"data.jsonl": '{"Question": "Where?", "Answer": "There."}\n'},
    ),
    "pairs of preference training": Mistake(
        COMPOSE,
        ["no converter fits the columns prompt, chosen, rejected", "preference", "{output: chosen, rejected: _}"],
        files={"data.jsonl": '{"prompt": "Where?", "chosen": "There.", "rejected": "Here."}\n'},
    ),
    "pictures of a data set for another kind of model": Mistake(
        COMPOSE,
        ["no usable rows are left of 1", "bad_row", "images: only text can be trained on", "mapping: {images: _}"],
        files={"data.jsonl": '{"prompt": "Colour?", "completion": "Red.", "images": ["a.png"]}\n'},
    ),
    "arguments of a call under another name": Mistake(
        COMPOSE,
        ["no usable rows are left of 1", "bad_row", "the call f of message 1 has args, which is not read"],
        files={
            "data.jsonl": '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": '
            '[{"function": {"name": "f", "args": {"city": "Paris"}}}]}]}\n'
        },
    ),
    # hiyouga/LlamaFactory 6878, 6924: KeyError 'user', KeyError 'from'
    "roles that nobody learns": Mistake(
        COMPOSE,
        [
            "no usable rows are left of 1",
            "nothing_to_learn",
            "row 0: no assistant's turn is trained on (roles: user, Oracle)",
            "needs the role assistant",
        ],
        files={"data.jsonl": '{"messages": [{"role": "user", "content": "a"}, {"role": "Oracle", "content": "b"}]}\n'},
    ),
    # `type: alpaca` of axolotl-ai-cloud/axolotl, `formatting: sharegpt` of hiyouga/LlamaFactory
    "another kit's name of a format": Mistake(
        COMPOSE,
        ["recipe.yaml:2: datasets.0.converter: alpaca", "impruver.instruction_to_messages", "as in mine.convert"],
        "datasets:\n  - name: data.jsonl\n    converter: alpaca",
    ),
    # hiyouga/LlamaFactory 5231, 3945: rows are cut there unsaid
    "a limit that no row keeps": Mistake(
        COMPOSE,
        ["no usable rows are left of 8", "row 0: ", "tokens, at most 8 (max_tokens_count)", "raise max_tokens_count"],
        "tokenizer:\n  max_tokens_count: 8",
    ),
    # `template: llama3` of hiyouga/LlamaFactory, `chat_template: chatml` of axolotl-ai-cloud/axolotl
    "another kit's name of a template": Mistake(
        COMPOSE,
        ["tokenizer.chat_template: chatml is neither a template nor a file", "left out, it is the tokenizer's own"],
        "tokenizer:\n  chat_template: chatml",
    ),
    "a template without quotes": Mistake(
        COMPOSE,
        ["recipe.yaml:2: not valid YAML", "put the value in quotes"],
        f"tokenizer:\n  chat_template: {NAMES}",
    ),
    "a Windows path in double quotes": Mistake(
        COMPOSE,
        ["recipe.yaml:2: not valid YAML", "unknown escape", "in single quotes a backslash is one"],
        'datasets:\n  - name: "C:\\data\\rows.jsonl"',
    ),
    "one data set and no dash": Mistake(
        COMPOSE,
        ["recipe.yaml:1: datasets: expected a list, found a mapping", "begin each item with a dash"],
        "datasets:\n  name: data.jsonl",
    ),
    "a share in percent": Mistake(
        COMPOSE, ["recipe.yaml:2: split.val_ratio: ", "(0.05 is 5%), not 5.0"], "split:\n  val_ratio: 5"
    ),
    # Unknown keys are dropped unsaid by axolotl-ai-cloud/axolotl and unslothai/unsloth.
    "a recipe of another kit": Mistake(
        TRAIN,
        [
            "4 faults in the recipe",
            "recipe.yaml:1: base_model: no such key; did you mean model.name?",
            "recipe.yaml:2: sequence_len: no such key; did you mean tokenizer.max_tokens_count?",
            "recipe.yaml:3: micro_batch_size: no such key; did you mean trainer.per_device_train_batch_size?",
            "recipe.yaml:4: learning_rate: no such key; did you mean trainer.learning_rate?",
        ],
        "base_model: ./base\nsequence_len: 2048\nmicro_batch_size: 2\nlearning_rate: 2e-4",
    ),
    # huggingface/trl 1450, hiyouga/LlamaFactory 4014, 4149: 2e-4 is a text in YAML 1.1; here only quotes make it one
    "a number in quotes": Mistake(
        TRAIN,
        ["recipe.yaml:2: trainer.learning_rate: '2e-4' is not of type float", "take the quotes away"],
        'trainer:\n  learning_rate: "2e-4"',
    ),
    # All of TrainingArguments are flags in huggingface/trl and hiyouga/LlamaFactory.
    "a key of the recipe as a flag": Mistake(
        f"{TRAIN} --learning_rate=1e-4",
        ["unknown flag --learning_rate", "set by --set trainer.learning_rate=1e-4"],
    ),
    "--set with a blank": Mistake(
        f"{TRAIN} --set trainer.max_steps 5", ["--set trainer.max_steps: expected KEY=VALUE, without blanks"]
    ),
    # hiyouga/LlamaFactory 3171
    "flash attention that is not installed": Mistake(
        f"{TRAIN} --output_dir new",
        ["model: attn_implementation: FlashAttention2", "installed", "Left out, the model's own is taken"],
        "model:\n  name: ./base\n  attn_implementation: flash_attention_2",
    ),
    "an optimizer by its class": Mistake(
        f"{TRAIN} --output_dir new",
        ["trainer.optim: there is no AdamW", "adamw_torch"],
        "trainer:\n  use_cpu: true\n  optim: AdamW",
    ),
    # huggingface/peft 1206, hiyouga/LlamaFactory 181: "Target modules … not found in the base model"
    "LoRA's targets in one text": Mistake(
        TRAIN,
        ["recipe.yaml:2: lora.target_modules: ", "several names are a list: write [q_proj, v_proj]"],
        "lora:\n  target_modules: q_proj, v_proj",
    ),
    # For whoever has the model as ollama has it.
    "a GGUF file to train": Mistake(
        f"{TRAIN} --output_dir new",
        ["model.name: ", "model.gguf is a GGUF file, which can't be trained: name the model it was made from"],
        "model:\n  name: ./model.gguf",
        {"model.gguf": b"GGUF\x03\x00\x00\x00"},
    ),
    # huggingface/transformers 27923, deepseek-ai/DeepSeek-V3 557: HeaderTooLarge
    "weights that Git LFS did not fetch": Mistake(
        f"{TRAIN} --output_dir new --dry_run",
        ["base/model.safetensors is a pointer of Git LFS", "git lfs pull"],
        files={"base/model.safetensors": POINTER},
    ),
    "data of instructions as train_path": Mistake(
        f"{TRAIN} --output_dir new --train_path data.jsonl",
        ["data.jsonl, line 1: no 'input_ids' in this row", "impruver-compose makes token rows of data"],
    ),
    # axolotl-ai-cloud/axolotl 1832, 2014; hiyouga/LlamaFactory 10530: trained with one template, asked with another
    "another template after composing": Mistake(
        f"{TRAIN} --output_dir new",
        ["train.jsonl was made with another chat template", "run impruver-compose with this recipe again"],
        f'tokenizer:\n  chat_template: "{NAMES}"',
    ),
    "another rate in the same folder": Mistake(
        TRAIN,
        [
            "output_dir: out holds another run",
            "trainer.learning_rate: not set then, 0.01 now",
            "--overwrite",
            "another",
        ],
        "trainer:\n  max_steps: 2\n  use_cpu: true\n  learning_rate: 0.01",
    ),
    # huggingface/transformers 15341: "No valid checkpoint found in output directory"
    "a checkpoint that there is not": Mistake(
        f"{TRAIN} --output_dir new",
        ["trainer.resume_from_checkpoint: ", "out/checkpoint-500 is not there", "new holds none", "Left out, "],
        "trainer:\n  max_steps: 4\n  use_cpu: true\n  resume_from_checkpoint: out/checkpoint-500",
    ),
    "a level that is none": Mistake(
        GGUF,
        ["recipe.yaml:2: gguf.quantization_levels: 4bit is no level", "q4_k_m"],
        "gguf:\n  quantization_levels: [4bit]",
    ),
    # ggml-org/llama.cpp 12551, 8451: the adapter is there, its base is not
    "a base that was moved": Mistake(
        GGUF, ["the adapter's base ./base is not there", "--set model.name=FOLDER"], gone="base"
    ),
    "the folder of the base in place of training's": Mistake(
        "impruver-gguf --output_dir base", ["--output_dir base holds no recipe.yaml", "give a recipe"]
    ),
    "questions as plain lines": Mistake(
        f"{ASK} questions.txt",
        ["questions.txt, line 1, column 1: not JSON", "a row is one JSON object on a line"],
        files={"questions.txt": "Where is Peru?\nWhere is Oman?\n"},
    ),
    # The run goes on, as for any row that can't be asked.
    "questions under another name": Mistake(
        f"{ASK} questions.jsonl",
        ["line 1 can't be asked: neither messages nor a prompt", "2 of them with an error"],
        files={"questions.jsonl": '{"question": "Where is Peru?"}\n{"question": "Where is Oman?"}\n'},
        code=0,
    ),
    # huggingface/transformers 29279: a message that quotes the template ends its turn. Here it is text, and is counted.
    "data that quote the template": Mistake(
        COMPOSE,
        ["control text, such as <|im_end|>, in 1 of 3 conversations: encoded as text, marked by --show"],
        files={
            "data.jsonl": f"{ROW}\n{ROW.replace('There.', 'It ends in <|im_end|>.')}\n{ROW.replace('Peru', 'Oman')}\n"
        },
        code=0,
    ),
    "data that quote the template, refused": Mistake(
        f"{COMPOSE} --set tokenizer.control_text=refuse",
        [
            "no usable rows are left of 1",
            "row 0: '<|im_end|>' in content of message 0 (user), at 9",
            "tokenizer.control_text: text encodes",
        ],
        files={"data.jsonl": ROW.replace("Peru", "<|im_end|>")},
    ),
    "another word for control_text": Mistake(
        f"{COMPOSE} --set tokenizer.control_text=escape",
        ["tokenizer.control_text: 'escape' is none of text, refuse, keep"],
    ),
    "an adapter as --gguf": Mistake(
        f"{CHAT} --gguf out/adapter_model.safetensors",
        ["--gguf: out/adapter_model.safetensors is no GGUF file", "without --gguf output_dir answers"],
    ),
    "a decimal comma": Mistake(f"{CHAT} --temperature 0,7", ["--temperature: expected a number, got '0,7'"]),
    # As in `axolotl train` and `llamafactory-cli train`.
    "a tool as a verb": Mistake("impruver train --config recipe.yaml", ["no command train", "did you mean run train?"]),
    "the launcher's options behind the name": Mistake(
        "impruver run finetune --config recipe.yaml --nproc_per_node 2",
        ["--nproc_per_node is an option of the launcher", "put it before the name, ahead of finetune"],
    ),
    "a recipe without --config": Mistake(
        "impruver-compose recipe.yaml", ["unexpected argument 'recipe.yaml'", "--config recipe.yaml"]
    ),
}
AS_PROCESSES = (
    "a key of the recipe as a flag",
    "a template without quotes",
    "a tool as a verb",
    "a level that is none",
)


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "cache" not in path.relative_to(folder).parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_told(name, folder, recipe_of, run):
    mistake = MISTAKES[name]
    (folder / "recipe.yaml").write_text(recipe_of(mistake.recipe), encoding="utf-8")
    for file, content in mistake.files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    if mistake.gone:
        shutil.rmtree(folder / mistake.gone)
    before = contents(folder)
    code, out, err = run(mistake.command, as_process=name in AS_PROCESSES)
    told = err if code else err + out
    assert code == mistake.code, told
    assert "Traceback" not in told
    at = 0
    for part in mistake.told:
        assert part in told[at:], told
        at = told.index(part, at) + len(part)
    if code:
        assert out == ""
        assert err.count(": error: ") == 1
        assert contents(folder) == before
