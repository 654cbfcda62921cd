"""On every stock template: exact, or refused. Judged from outside, by renderings of the conversation's prefixes."""

import re

import pytest
from impruver_core import Refused, encode_chats
from support.messages import assistant, system, user
from support.tokenizers import STOCK_NAMES, stock_template, target_runs, tokenizer_for

CHATS = {
    "two": [user("What is the capital of France?"), assistant("Paris it is."), user("And Italy?"), assistant("Rome.")],
    "system": [system("Be brief."), user("Привет"), assistant("Как дела?"), user("assistant"), assistant("assistant")],
    "padded": [user("  hello \n"), assistant(" \n Paris \n\n"), user("user"), assistant("user\n")],
}
ROLE = re.compile("assistant|user|system|human", re.IGNORECASE)
CLOSING = re.compile(r"</assistant>|<\|(?:/assistant|assistant_end)\|>|<｜hy_Assistant｜>")


@pytest.mark.parametrize("shard", range(8))
def test_exact_or_refused(shard):
    for name in STOCK_NAMES[shard::8]:
        tokenizer = tokenizer_for(stock_template(name))
        rows = encode_chats(tokenizer, CHATS.values(), add_bos=False, add_eos=False)
        for (chat, messages), row in zip(CHATS.items(), rows, strict=True):
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False)
            except Exception:  # jinja2's, or whatever Python raises inside a template
                assert isinstance(row, Refused), name
                continue
            if isinstance(row, Refused) or (name, chat) in REASONS:
                assert getattr(row, "reason", "encoded") == REASONS.get((name, chat)), (name, chat, row)
                continue
            expected = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            assert row.input_ids == expected["input_ids"], name
            runs = target_runs(tokenizer, row)
            answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
            assert len(runs) == len(answers), (name, runs)
            assert all(answer in run for answer, run in zip(answers, runs, strict=True)), (name, runs)
            asked = [message["content"].strip() for message in messages if message["role"] != "assistant"]
            assert not any(words in run for words in asked for run in runs if words not in answers), (name, runs)
            _check_ends(name, tokenizer, runs, answers)
            _check_start(name, tokenizer, messages, text, row, expected["offset_mapping"])


def _check_ends(name, tokenizer, runs, answers):
    """Behind an answer a run has the end of its turn, and no header: no role but in a closing tag, no prose."""
    for run, answer in zip(runs, answers, strict=True):
        behind = CLOSING.sub("", run[run.rindex(answer) + len(answer) :])
        assert not ROLE.search(behind), (name, run)
        assert len(behind) < 60, (name, run)


def _check_start(name, tokenizer, messages, text, row, offsets):
    """The last run starts where the text leaves the prompt: at that character, or with the token that holds it."""
    before = messages[:-1]
    prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
    if prompt == tokenizer.apply_chat_template(before, tokenize=False) or name in UNLIKE_THEIR_PROMPT:
        return
    pairs = enumerate(zip(text, prompt, strict=False))
    border = next((i for i, (a, b) in pairs if a != b), min(len(text), len(prompt)))
    first = next(i for i, (start, end) in enumerate(offsets) if end > border and start < end)
    last_run = len(row.labels) - next(i for i, label in enumerate(row.labels[::-1]) if label != -100) - 1
    while last_run and row.labels[last_run - 1] != -100:
        last_run -= 1
    # A special token is not cut: <｜Assistant｜></think> shares no "<" with <｜Assistant｜><think>.
    assert last_run == first, (name, tokenizer.decode(row.input_ids[last_run:]), text[border:])


# What templates render and is refused all the same: its reason and the chats, with the templates.
REFUSED = {
    ("mask_refused", "system"): """
        BAAI-BGE-VL-MLLM-S1 BAAI-BGE-VL-v1.5-mmeb UnicomLLM-Unichat-llama3-Chinese-8B
    """,
    ("mask_refused", "two padded"): """
        ServiceNow-AI-AprielGuard ibm-granite-granite-guardian-3.2-5b llamas-community-LlamaGuard-7b
        openguardrails-OpenGuardrails-Text-2510
    """,
    ("mask_refused", "two system padded"): """
        Huyisbeee-SFT-Guard-Llama-Guard-3-1B Huyisbeee-SFT-Guard-Qwen3Guard-Gen-0.6B Qwen-Qwen3Guard-Gen-4B
        arcee-ai-llama-8b-sft-qlora ibm-granite-granite-guardian-3.3-8b inclusionAI-SingGuard-2b
        nvidia-NVIDIA-Nemotron-3-Ultra-550B-A55B-GenRM nvidia-Qwen3-Nemotron-235B-A22B-GenRM-2603
    """,
    ("template_lost_text", "system"): """
        0xA50C1A1-Mistral-Nemo-Instruct-2407-Heretic-v2 AI-MO-NuminaMath-7B-TIR Azure99-blossom-v5.1-9b
        EleutherAI-less-replication-7b-warmup JetBrains-Mellum2-12B-A2.5B-Base-Pretrain Nekochu-nanochat-d24
        OrionStarAI-Orion-14B-Chat arcee-ai-Patent-Instruct-Pro bharatgenai-AyurParam bharatgenai-FinanceParam
        bharatgenai-LegalParam ibm-granite-granite-speech-4.1-2b llm-jp-llm-jp-3-1.8b-instruct
        microsoft-Phi-3-medium-128k-instruct microsoft-Phi-4-reasoning microsoft-Phi-4-reasoning-vision-15B
        mistralai-Codestral-22B-v0.1 mistralai-Mistral-7B-Instruct-v0.3 mistralai-Mistral-Nemo-Instruct-2407
        nvidia-Llama3-ChatQA-1.5-8B nvidia-Nemotron-3-Content-Safety nvidia-Nemotron-3.5-Content-Safety
        nvidia-Riva-Translate-4B-Instruct-v1.1 optimum-intel-internal-testing-tiny-random-Phi3ForCausalLM
        parasail-ai-GritLM-7B-vllm spitfire4794-supra-arith zai-org-GLM-Z1-Rumination-32B-0414
    """,
    ("template_lost_text", "two padded"): """
        alpindale-Llama-Guard-3-1B
    """,
    ("template_lost_text", "two system padded"): """
        BAAI-Emu3-Chat-hf HuggingFaceTB-SmolVLM-256M-Base HuggingFaceTB-SmolVLM-256M-Instruct
        HuggingFaceTB-SmolVLM-Instruct-DPO HuggingFaceTB-SmolVLM-Synthetic Kwaipilot-SRPO-Qwen-32B
        MiniMaxAI-MiniMax-VL-01 Qwen-Qwen2-VL-2B Qwen-Qwen3-ASR-0.6B-hf Qwen-Qwen3-ASR-1.7B
        Qwen-Qwen3-ForcedAligner-0.6B-hf Qwen-Qwen3-Reranker-0.6B StanfordAIMI-GREEN-RadLlama2-7b
        bezzam-VibeVoice-7B-hf ibm-granite-granite-guardian-3.0-2b ibm-granite-granite-guardian-3.1-2b
        ibm-granite-granite-guardian-3.2-8b-factuality-detection kakaocorp-kanana-safeguard-8b
        kakaocorp-kanana-safeguard-prompt-2.1b kakaocorp-kanana-safeguard-siren-8b microsoft-VibeVoice-ASR-HF
        nvidia-NVIDIA-Nemotron-Parse-v1.1-TC tencent-Hy-Embodied-VLM-1.0 zai-org-glm-edge-v-2b
    """,
}
REASONS = {
    (name, chat): reason
    for (reason, chats), names in REFUSED.items()
    for name in names.split()
    for chat in chats.split()
}
# Their answers do not start as their prompts do: a blank more, a token more, a thought that only the prompt asks for.
UNLIKE_THEIR_PROMPT = (
    "Motif-Technologies-Motif-2-12.7B-Instruct",
    "Motif-Technologies-Motif-2-12.7B-Reasoning",
    "SvalTek-Q3-CharThink-9B-temp",
    "ai21labs-AI21-Jamba-Reasoning-3B",
    "allenai-Molmo2-8B",
    "upstage-solar-pro2-tokenizer",
)
