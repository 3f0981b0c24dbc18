"""What cannot work is told before the first step, in one line that says what to do."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import PARAMETERS
from tokenizers import Tokenizer, models, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import bmwqa_utils as bq
from bmwqa import preflight
from bmwqa.answers import stream_answer
from bmwqa.models import load_model, resolve_model, save_finished
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


def test_max_tokens_beyond_the_positions_is_refused(config):
    config.max_position_embeddings = 1024
    with pytest.raises(ValueError, match="the model has 1,024 positions. Set MAX_TOKENS to 832"):
        preflight.check_positions(config, settings())
    assert "1,024, enough for 832" in preflight.check_positions(config, settings(MAX_TOKENS=832))


@pytest.mark.parametrize("targets", [["q_proj", "value"], "all_linear"])
def test_layers_that_are_not_there_are_refused_with_those_that_are(targets, tiny_model_folder):
    message = "LORA_TARGETS is .*(value|all_linear).* There are: .*q_proj"
    with pytest.raises(ValueError, match=message):
        preflight.check_targets(load_model(tiny_model_folder), targets)


def test_layers_that_peft_refuses_are_told_before_the_first_training(tiny_model_folder):
    config = AutoConfig.for_model("mamba", hidden_size=8, num_hidden_layers=1, vocab_size=9)
    with pytest.raises(ValueError, match="'out_proj' is incompatible .* There are: .*in_proj"):
        preflight.check_targets(AutoModelForCausalLM.from_config(config), "all-linear")


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
