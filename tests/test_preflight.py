"""What cannot work is told before the first step, in one line that says what to do."""

import copy
import re
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import PARAMETERS
from test_families import LATENT
from tokenizers import Tokenizer, models, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import bmwqa_utils as bq
from bmwqa import preflight
from bmwqa.answers import stream_answer
from bmwqa.models import load_model, resolve_model, save_finished
from bmwqa.one_pass import reference_nll, separate_rows
from bmwqa.settings import read_settings


def settings(**changes):
    return read_settings(PARAMETERS | changes)


@pytest.fixture
def config(tiny_model_folder):
    return AutoConfig.from_pretrained(tiny_model_folder)


def test_a_good_tokenizer_passes(embedded_tokenizer, config):
    line = preflight.check_tokenizer(embedded_tokenizer, config)
    assert "begins with no token of its own, ends with '<|im_end|>'" in line


def test_a_tokenizer_without_its_files_is_refused(config):
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    with pytest.raises(ValueError, match="gives '' back .* Are its files there\\? Copy"):
        preflight.check_tokenizer(empty, config)


def test_a_tokenizer_without_an_end_is_refused(embedded_tokenizer, config):
    endless = copy.deepcopy(embedded_tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="has no end of text. Set eos_token"):
        preflight.check_tokenizer(endless, config)


def test_a_tokenizer_of_another_model_is_refused(embedded_tokenizer, config):
    config.vocab_size = 100
    with pytest.raises(ValueError, match="do not belong together"):
        preflight.check_tokenizer(embedded_tokenizer, config)


def test_a_token_that_a_tokenizer_begins_with_is_in_training_and_in_the_prompt(
    embedded_tokenizer, config, tiny_model_folder
):
    begins = copy.deepcopy(embedded_tokenizer)
    begins.bos_token = "<|im_start|>"
    begins._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begins.bos_token_id)]
    )
    assert "begins with '<|im_start|>'" in preflight.check_tokenizer(begins, config)
    row = {"article_id": "T1", "context": "Ulm.", "question": "Where?", "answer": "Ulm"}
    plain = bq.encode_example(embedded_tokenizer, row)["input_ids"]
    ids = bq.encode_example(begins, row)["input_ids"]
    assert ids == [begins.bos_token_id, *plain]
    assert bq.prompt_ids(begins, "Ulm.", "Where?") == ids[: -len(bq.encode_text(begins, "Ulm")) - 1]
    assert bq.token_lengths([row], begins) == [len(ids)]

    class Prompt:
        def put(self, value):
            self.first = getattr(self, "first", value.flatten().tolist())

        def end(self):
            pass

    stream_answer(load_model(tiny_model_folder), begins, "Ulm.", "Where?", 2, seen := Prompt())
    assert seen.first == bq.prompt_ids(begins, "Ulm.", "Where?")


@pytest.mark.parametrize(
    "template", ["<|im_start|> $A <|im_end|>", "<|im_start|> <|endoftext|> $A"]
)
def test_another_beginning_is_in_the_prompt_or_refused(template, embedded_tokenizer, config):
    begins, names = copy.deepcopy(embedded_tokenizer), re.findall(r"<[^>]+>", template)
    begins.bos_token = "<|im_start|>"
    special = [(name, begins.convert_tokens_to_ids(name)) for name in names]
    template = processors.TemplateProcessing(single=template, special_tokens=special)
    begins._tokenizer.post_processor = template
    begin = begins("Ulm")["input_ids"][: 2 if "endoftext" in names[1] else 1]
    refused = pytest.raises(ValueError, match="begins a text with .* and prompts lack it")
    has_it = bq.prompt_ids(begins, "", "")[: len(begin)] == begin
    with nullcontext() if has_it else refused:
        preflight.check_tokenizer(begins, config)


def test_max_tokens_beyond_the_positions_is_refused(config):
    config.max_position_embeddings = 1024
    with pytest.raises(ValueError, match="the model has 1,024 positions. Set MAX_TOKENS to 832"):
        preflight.check_positions(config, settings())
    assert "1,024, enough for 832" in preflight.check_positions(config, settings(MAX_TOKENS=832))


@pytest.mark.parametrize("targets", [["q_proj", "value"], "all_linear", [], "", "q_proj,v_proj"])
def test_layers_that_are_not_there_are_refused_with_those_that_are(targets, tiny_model_folder):
    message = "LORA_TARGETS is .*refused: a layer is not there. Set it to some of .*q_proj"
    with pytest.raises(ValueError, match=message):
        preflight.check_targets(load_model(tiny_model_folder), targets)


TINY = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
TINY |= dict(num_key_value_heads=4, head_dim=8, num_experts_per_tok=2, pad_token_id=0)
EXPERTS = dict(num_local_experts=4, n_routed_experts=4, n_group=1, topk_group=1)
STATES = dict(mamba_d_state=8, mamba_ngroups=1, mamba_headdim=8, n_mamba_heads=8)


def tiny(name, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **TINY | dict(vocab_size=49152) | changes)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("name", "changes", "targets", "reason", "good"),
    [
        ("mamba", {}, "all-linear", "'out_proj' is incompatible", ["in_proj", "x_proj"]),
        ("phimoe", EXPERTS, "all-linear", "'tuple' object has no", ["k_proj", "q_proj"]),
        (
            "llama",
            dict(tie_word_embeddings=True),
            ["lm_head"],
            "shares its weights",
            ["q_proj"],
        ),
        (
            "zamba2",
            STATES | dict(layers_block_type=["hybrid"] * 2, num_hidden_layers=2, num_mem_blocks=1),
            "all-linear",
            "shares its weights",
            ["in_proj"],
        ),
    ],
)
def test_an_adapter_that_cannot_work_is_told_with_the_layers_that_can(
    name, changes, targets, reason, good
):
    model = tiny(name, **changes)
    with pytest.raises(ValueError, match=reason) as error:
        preflight.check_targets(model, targets)
    assert set(good) <= set(re.findall(r"'(\w+)'", str(error.value).partition("an adapter")[2]))
    assert preflight.check_targets(model, good) == f"adapter: beside {', '.join(good)}"


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("llama", {}, ""),
        ("deepseek_v3", EXPERTS | LATENT, "its config cannot say"),
        ("gemma4_text", dict(hidden_size_per_layer_input=0), "without a layer"),
        ("jamba", dict(attn_layer_period=2, attn_layer_offset=1, num_experts=2), "without a layer"),
    ],
)
def test_a_pruned_model_that_would_not_be_the_saved_one_is_left_out(
    name, changes, reason, embedded_tokenizer
):
    model, row = tiny(name, **changes), {"article_id": "T1", "context": "Ulm."}
    row |= {"question": "Where?", "answer": "Ulm"}
    (group,) = bq.group_by_article([row], embedded_tokenizer)
    before, config = reference_nll(model, group, separate_rows), model.config.to_dict()
    assert preflight.why_not_prunable(model) == ""
    told = preflight.why_not_saved_pruned(model, group)
    assert reason in told and bool(told) == bool(reason)
    assert torch.equal(reference_nll(model, group, separate_rows), before)
    assert model.config.to_dict() == config


def test_the_questions_of_the_evaluation_are_checked_before_the_training(
    tmp_path, embedded_tokenizer
):
    row = dict.fromkeys(bq.ROW_KEYS, "Ulm.") | {"article_id": "T1"}
    line = {"id": "q", "article_id": "T1", "kind": "who", "question": "Who?", "answers": ["Ulm"]}
    bq.write_json(tmp_path / "manifest.json", {})
    bq.write_jsonl(tmp_path / "eval.jsonl", [row])
    bq.write_jsonl(tmp_path / "benchmark.jsonl", [line])
    places = settings(PROCESSED_DIR=str(tmp_path), BENCHMARK=str(tmp_path / "benchmark.jsonl"))
    kept, dropped = bq.evaluation_questions(embedded_tokenizer, places)
    assert [question["slice"] for question in kept] == ["rule_made", "benchmark"] and not dropped
    bq.write_jsonl(tmp_path / "benchmark.jsonl", [line | {"id": "T1-r01"}])
    with pytest.raises(ValueError, match="'T1-r01' is the id of a question by rule, too. Choo"):
        bq.evaluation_questions(embedded_tokenizer, places)
    for name in ("benchmark.jsonl", "eval.jsonl", "manifest.json"):
        (tmp_path / name).write_text("{")
        with pytest.raises(ValueError, match=f"{name}.* not JSON"):
            bq.evaluation_questions(embedded_tokenizer, places)
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing"):
            bq.evaluation_questions(embedded_tokenizer, places)


def test_the_check_of_an_adapter_leaves_the_model_as_it_was(tiny_model_folder):
    model = load_model(tiny_model_folder)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert preflight.check_targets(model, "all-linear") == "adapter: beside all-linear"
    assert all(torch.equal(weight, before.pop(name)) for name, weight in model.state_dict().items())
    assert not before


def test_losses_that_are_no_numbers_are_not_exact(tiny_model_folder, embedded_tokenizer):
    model = load_model(tiny_model_folder)
    model.model.norm.weight.data.fill_(torch.nan)
    row = {"article_id": "T1", "context": "Ulm.", "question": "Where?", "answer": "Ulm"}
    groups = bq.group_by_article([row], embedded_tokenizer)
    exact, line = preflight.check_exact(model, embedded_tokenizer, groups)
    assert not exact and "losses are off by a relative nan" in line


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("rwkv", dict(attention_hidden_size=32), "computes rows .* wrongly when they are padded"),
        (
            "bert",
            dict(initializer_range=0.3),
            "reads what comes after a token. Need a causal",
        ),
        ("xlstm", {}, "cannot score and answer a row: RuntimeError .* Use another MODEL"),
        ("mpt", dict(d_model=32, n_heads=4, n_layers=2), ""),
    ],
)
def test_a_model_whose_plain_rows_are_wrong_is_refused(name, changes, reason, embedded_tokenizer):
    model, row = tiny(name, **changes), {"article_id": "T1", "context": "Ulm."}
    rows = [row | {"question": "Where is it?", "answer": answer} for answer in ("Ulm", "In Ulm, I")]
    (group,) = bq.group_by_article(rows, embedded_tokenizer)
    with pytest.raises(ValueError, match=f"MODEL {reason}") if reason else nullcontext():
        preflight.check_rows(model, embedded_tokenizer, group)
    if name == "rwkv":
        one = group | {"branches": group["branches"][:1]}
        preflight.check_rows(model, embedded_tokenizer, one)


@pytest.mark.parametrize("name", ["num_kv_shared_layers", "hidden_size_per_layer_input"])
def test_layers_that_need_one_another_are_not_cut_out(name, tiny_model_folder):
    model = load_model(tiny_model_folder)
    assert preflight.why_not_prunable(model) == ""
    setattr(model.config, name, 2)
    assert f"its config has {name}" in preflight.why_not_prunable(model)


def test_memory_and_disk_are_estimated(tiny_model_folder, tmp_path, monkeypatch):
    model = load_model(tiny_model_folder)
    assert preflight.check_machine(model, tmp_path / "new").startswith("memory: 0.0 GB")
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ValueError, match="0.0 GB free. Make room, or set OUT_DIR"):
        preflight.check_machine(model, tmp_path)


@pytest.mark.parametrize(("dtype", "gb"), [(torch.float32, 16), (torch.bfloat16, 10)])
def test_a_model_too_large_for_the_memory_is_refused(dtype, gb, tmp_path, monkeypatch):
    model = torch.nn.Linear(10**5, 10**4, bias=False, device="meta")  # a billion weights
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: SimpleNamespace(total=9e9))
    with pytest.raises(ValueError, match=f"keeps {gb}.0 GB in memory, this machine has 9.0 GB"):
        preflight.check_machine(model, tmp_path, dtype)


def test_answers_that_take_all_positions_are_refused(config):
    config.max_position_embeddings = 512
    with pytest.raises(ValueError, match="go up to 600; the model has 512 positions. Lower them"):
        preflight.check_positions(config, settings(MAX_NEW_TOKENS=600))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_STEPS", True),
        ("MAX_STEPS", 10**30),
        ("LEARNING_RATE_LORA", "inf"),
        ("LEARNING_RATE_FULL", 100),
        ("LORA_ALPHA", float("inf")),
        ("LORA_R", 10**6),
        ("SEED", 2**32),
        ("SEED", False),
        ("TRAIN_KINDS", []),
        ("EARLY_STOPPING", False),
    ],
)
def test_parameters_out_of_their_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value!r}".replace("[]", "..")):
        settings(**{name: value})


def test_an_adapter_as_model_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter, need a whole model. Name its base"):
        resolve_model(str(tmp_path))


def test_a_local_model_whose_weights_change_is_another_one(tmp_path, tiny_model_folder):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    before = resolve_model(str(folder))
    assert resolve_model(str(folder)) == before
    model = load_model(folder)
    model.get_input_embeddings().weight.data += 1
    model.save_pretrained(folder)
    assert resolve_model(str(folder))["revision"] != before["revision"]


def test_saved_models_can_be_read_by_others(tmp_path, tiny_model_folder, embedded_tokenizer):
    save_finished(tmp_path / "model", load_model(tiny_model_folder), embedded_tokenizer)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o644}
