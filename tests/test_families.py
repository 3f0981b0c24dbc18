"""Model families as tiny random models: exact in one pass, or in separate rows, and said so.

Each goes the whole way: checks, a step of full fine-tuning and of LoRA, pruning with save and
reload, scoring and answering; what comes out equals the model's own eager attention, row by row.
"""

import math

import pytest
import torch
from conftest import PARAMETERS
from transformers import AutoConfig, AutoModelForCausalLM

import bmwqa_utils as bq
from bmwqa import preflight
from bmwqa.answers import answer_rows
from bmwqa.int8 import to_int8
from bmwqa.models import load_model, save_finished
from bmwqa.pruning import prune_layers
from bmwqa.run import Run, base_model, lora_model, train
from bmwqa.settings import read_settings

SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
SMALL |= dict(num_key_value_heads=2, head_dim=8, max_position_embeddings=512, vocab_size=49152)
SMALL |= dict(initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2)
EXPERTS = dict(num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
LATENT = dict(kv_lora_rank=8, q_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
LATENT |= dict(num_key_value_heads=4, num_experts_per_tok=2, first_k_dense_replace=1)
SHORT_CONV = ["conv", "full_attention", "conv", "full_attention"]
ONE_PASS = {  # full attention everywhere, and a mask that reaches it
    "qwen2": {},
    "llama": {},
    "qwen3": {},
    "olmo2": {},
    "granite": {},
    "smollm3": dict(no_rope_layers=[1, 1, 0, 1], layer_types=["full_attention"] * 4),
    "mixtral": EXPERTS | dict(sliding_window=None),
    "qwen3_moe": EXPERTS,
    "gpt_neox": {},
}
SEPARATE = {  # windows, sinks, states, positions or masks of another kind
    "mistral": dict(sliding_window=16),
    "phi3": dict(sliding_window=16, rope_scaling=None),
    "gemma3_text": dict(sliding_window=16, layer_types=["sliding_attention"] * 4),
    "gpt2": dict(n_embd=32, n_layer=4, n_head=4, n_positions=512),
    "stablelm": {},
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=512),  # sinks
    "gptj": dict(n_embd=32, n_layer=4, n_head=4, n_positions=512, rotary_dim=4),
    "bloom": dict(n_layer=4, n_head=4),
    "deepseek_v3": LATENT | dict(n_routed_experts=4, n_group=1, topk_group=1),
    "lfm2": dict(layer_types=SHORT_CONV, full_attn_idxs=[1, 3], block_auto_adjust_ff_dim=False),
}
CONTEXTS = ["Ulm. A short one.", "Munich. " + "Every day the plant builds one more car. " * 12]


def rows_of(context: str, number: int) -> list[dict]:
    pairs = [
        ("Where?", "Ulm"),
        ("What is built every day?", "one more car"),
        ("Is it short?", "Yes"),
    ]
    row = {"article_id": f"T{number}", "source": "written", "kind": "who", "context": context}
    return [row | {"question": question, "answer": answer} for question, answer in pairs]


ROWS = [row for number, context in enumerate(CONTEXTS) for row in rows_of(context, number)]


@pytest.fixture(scope="module", params=[*ONE_PASS, *SEPARATE])
def family(request, tmp_path_factory, embedded_tokenizer):
    """(name, folder of a saved model, its checks, the settings of a run)."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SMALL | (ONE_PASS | SEPARATE)[name])
    save_finished(folder / "tiny", AutoModelForCausalLM.from_config(config), embedded_tokenizer)
    changes = dict(MODEL=str(folder / "tiny"), OUT_DIR=str(folder), MAX_STEPS=1, EVAL_STEPS=1)
    changes |= dict(MAX_TOKENS=300, HELD_OUT=0, WARMUP_STEPS=0)
    settings = read_settings(PARAMETERS | changes)
    model = load_model(folder / "tiny")
    checks = preflight.check_all(
        model, embedded_tokenizer, bq.group_by_article(ROWS, embedded_tokenizer), settings, folder
    )
    return name, folder, checks, settings


def eager(folder, rows, tokenizer):
    """(NLL, first eight new tokens) of each row, alone, by the stock model with eager attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for row in rows:
        example = bq.encode_example(tokenizer, row)
        ids, labels = (torch.tensor([example[key]]) for key in ("input_ids", "labels"))
        supervised = (labels != bq.IGNORE).sum()
        with torch.no_grad():
            nll = model(input_ids=ids, labels=labels).loss * supervised
            prompt = ids[:, : ids.shape[1] - supervised]
            new = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=8,
                do_sample=False,
                pad_token_id=2,
            )
        yield nll.item(), new[0, prompt.shape[1] :].tolist()


def test_one_pass_where_it_is_exact_and_separate_rows_where_it_is_not(family):
    name, _, checks, _ = family
    assert (checks.collate.__name__ == "share_prefix") == (name in ONE_PASS), checks.lines
    assert (checks.attention is None) == (name in SEPARATE)
    assert any("rows stay separate" in line for line in checks.lines) == (name in SEPARATE)


def test_scores_and_answers_are_those_of_eager_rows(family, embedded_tokenizer):
    _, folder, checks, _ = family
    model = load_model(folder / "tiny", attention=checks.attention)
    plain = checks.attention is None
    answers = answer_rows(model, embedded_tokenizer, ROWS, 8, plain=plain)
    for answer, (nll, ids) in zip(
        answers, eager(folder / "tiny", ROWS, embedded_tokenizer), strict=True
    ):
        assert answer["nll"] == pytest.approx(nll, rel=1e-4)
        text = embedded_tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert answer["answer"] == text


def test_a_step_of_full_and_of_lora(family, embedded_tokenizer):
    _, folder, checks, settings = family
    groups = bq.group_by_article(ROWS, embedded_tokenizer)
    used = {"name": settings.model, "revision": "local folder", "why": ""}
    notes = {"rows": 6, "rows_too_long": 0, "one_pass": checks.one_pass}
    run = Run(settings, used, embedded_tokenizer, torch.float32, checks, groups, [], notes)
    for variant, model in (("full_ft", base_model(run)), ("lora", lora_model(run))):
        training = train(run, variant, model, 1e-3)
        assert training["losses"][0] > 0
        trained = load_model(run.folder(variant), attention=checks.attention)
        base = load_model(folder / "tiny", attention=checks.attention)
        scores = [
            answer_rows(one, embedded_tokenizer, ROWS, 0, plain=checks.attention is None)
            for one in (trained, base)
        ]
        assert scores[0] != scores[1]


def test_int8_layers_answer_where_the_check_says_so(family, embedded_tokenizer):
    name, folder, checks, _ = family
    # the first layer of lfm2 has no attention, so it cannot be tried alone
    assert checks.int8 == (checks.prunable and name != "lfm2"), checks.lines
    if checks.int8:
        model = to_int8(load_model(folder / "tiny", attention=checks.attention))
        plain = checks.attention is None
        answers = answer_rows(model, embedded_tokenizer, ROWS, 4, plain=plain)
        assert all(math.isfinite(answer["nll"]) and answer["tokens"] for answer in answers)


def test_a_pruned_model_is_the_one_that_is_saved(family, embedded_tokenizer, tmp_path):
    name, folder, checks, _ = family
    if not checks.prunable:
        assert name in ("gpt2", "gptj", "bloom", "lfm2", "deepseek_v3"), checks.lines
        assert any(line.startswith("pruning: no") for line in checks.lines)
        return
    model = load_model(folder / "tiny", attention=checks.attention)
    groups = bq.group_by_article(ROWS, embedded_tokenizer)
    removed = prune_layers(model, groups[:1], checks.collate)
    assert len(removed) == 1 and model.config.num_hidden_layers == 3
    save_finished(tmp_path / "pruned", model, embedded_tokenizer)
    again = load_model(tmp_path / "pruned", attention=checks.attention)
    plain = checks.attention is None
    before, after = (
        answer_rows(one, embedded_tokenizer, ROWS, 4, plain=plain) for one in (model, again)
    )
    for one, other in zip(before, after, strict=True):
        assert one["nll"] == pytest.approx(other["nll"], rel=1e-5)
        assert one["answer"] == other["answer"]
