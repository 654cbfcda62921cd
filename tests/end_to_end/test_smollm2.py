"""The real chat model that the other tests train: out of its package it is itself."""


def test_it_answers(smollm2):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, do_sample=False, max_new_tokens=12)
    assert (
        tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        == "The capital of France is Paris."
    )
