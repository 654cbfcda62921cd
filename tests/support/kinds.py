"""What kind of test each is. The longest name that a test's path begins with tells; a fixture may tell more."""

KINDS = {
    "": "integration",
    "test_workspace.py": "unit",
    "configs/test_readme.py": "unit",
    "docs/test_readme.py": "unit",
    "core/": "unit",
    "core/cli/test_runner.py": "integration",
    "core/commands/": "integration",
    "core/io/test_locks.py": "integration",
    "core/test_library_logging.py": "integration",
    "core/test_tokenizer_trial.py": "integration",
    "core/chat_template/test_every_template.py": "integration",
    "core/chat_template/test_tool_traces.py": "integration",
    "core/chat_template/rendering/test_limits.py": "integration",
    "core/chat_template/rendering/test_renderer.py::test_render_equals": "integration",
    "core/chat_template/masking/test_prompt_consistency.py::test_both_texts": "integration",
    "compose/": "unit",
    "compose/test_cli.py": "integration",
    "compose/test_bad_rows.py": "integration",
    "compose/test_control_text.py": "integration",
    "compose/test_foreign_files.py": "integration",
    "compose/test_use.py": "integration",
    "compose/decontamination/test_decontamination.py": "integration",
    "compose/encoding/test_text_encoder.py": "integration",
    "compose/encoding/test_workers.py": "integration",
    "compose/reporting/test_preview.py::test_colours": "integration",
    "compose/stages/": "integration",
    "train/config/": "unit",
    "train/checkpointing/test_pickles.py": "unit",
    "train/checkpointing/test_trainer_state.py": "unit",
    "train/saving/test_html_report.py": "unit",
    "chat/test_conversation.py": "unit",
    "chat/batch/test_answers.py": "unit",
    "chat/generation/": "unit",
    "chat/responses/": "unit",
}
# Fixtures that install or start another project's program.
ORACLES = {"chromium", "llama_cpp", "llama_cpp_source", "ollama", "oracle", "templates_of_others", "transformers_4"}


def get_kind(path: str, fixtures: list[str]) -> str:
    """unit, integration or oracle. `path`: a test's id without `tests/`."""
    if ORACLES.intersection(fixtures):
        return "oracle"
    return KINDS[max((name for name in KINDS if path.startswith(name)), key=len)]
