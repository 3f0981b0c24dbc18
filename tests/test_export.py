"""A trained folder in other tools: prompt, ends and answers are those of the project."""

import contextlib
import copy
import io
import re

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from test_families import SMALL
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import bmwqa_utils as bq
from bmwqa.answers import Stamps, stream_answer
from bmwqa.export import USER, chat_template, export_folder
from bmwqa.models import load_model, load_tokenizer, save_finished

CONTEXT = "A museum opens\n1 May 2025\n\nMunich. A museum opened."  # and the card's question
ODD = [
    CONTEXT,
    "",
    " Two  spaces,\ttabs\r\nand \n\n\n\nempty lines. \n",
    "{{ braces }} {% if %} {context} <|user|>\nQuestion:\nWho?\n\n<|assistant|>\nNobody",
    "Größe 5 m² – “quotes” 🚗 e\u0301 \u200b 日本語",
]


def training(name, base):
    """training.json of three steps."""
    names = {"run": f"{name}-12345678", "model": {"name": str(base), "revision": "abc"}}
    numbers = {"losses": [1.0] * 3, "articles": ["T1", "T2", "T1"], "questions": 1234}
    numbers |= {"learning_rate": 1e-4, "precision": "torch.float32", "trainable_parameters": 10}
    return names | numbers


@pytest.fixture(scope="module")
def base(tmp_path_factory, embedded_tokenizer):
    """A tiny model whose answers are not the same token again and again."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "tiny"
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **SMALL))
    save_finished(folder, model, embedded_tokenizer)
    return folder


@pytest.fixture
def full(tmp_path, base):
    """The folder of a fully fine-tuned model, whose base came with a second end and sampling."""
    model, tokenizer = load_model(base), load_tokenizer(base)
    model.generation_config = GenerationConfig(
        eos_token_id=[0, tokenizer.eos_token_id], do_sample=True, temperature=0.7
    )
    notes = training("tiny_full_ft", base)
    save_finished(tmp_path / "tiny_full_ft", model, tokenizer, notes)
    return tmp_path / "tiny_full_ft"


def chat(context, question, system=True):
    user = {"role": "user", "content": USER.format(context=context, question=question)}
    return [*([{"role": "system", "content": bq.SYSTEM}] if system else []), user]


def with_template(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat_template(tokenizer)
    return tokenizer


@pytest.mark.parametrize("context", ODD)
@pytest.mark.parametrize("fixture", ["embedded_tokenizer", "qwen_tokenizer"])
def test_the_template_is_the_prompt_of_training_to_the_token(fixture, context, request):
    tokenizer = with_template(request.getfixturevalue(fixture))
    for system in (True, False):
        messages = chat(context, "Where is it?", system)
        options = {"add_generation_prompt": True, "return_dict": False}
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        assert text == bq.format_prompt(context, "Where is it?")
        ids = tokenizer.apply_chat_template(messages, **options)
        assert ids == bq.prompt_ids(tokenizer, context, "Where is it?")


def test_an_answer_in_a_chat_ends_as_in_training(embedded_tokenizer):
    tokenizer = with_template(embedded_tokenizer)
    messages = [*chat("Ulm.", "Where?"), {"role": "assistant", "content": "Ulm"}]
    row = {"article_id": "T1", "context": "Ulm.", "question": "Where?", "answer": "Ulm"}
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert ids == bq.encode_example(tokenizer, row)["input_ids"]


def test_a_beginning_is_given_once(embedded_tokenizer):
    begins = copy.deepcopy(embedded_tokenizer)
    begins._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begins.bos_token_id)]
    )
    begins = with_template(begins)
    ids = begins.apply_chat_template(
        chat("Ulm.", "Where?"), add_generation_prompt=True, return_dict=False
    )
    assert ids == bq.prompt_ids(begins, "Ulm.", "Where?")
    assert ids.count(begins.bos_token_id) == 1


def test_a_control_token_in_an_article_acts_as_the_card_says(embedded_tokenizer, full):
    tokenizer = with_template(embedded_tokenizer)
    ids = tokenizer.apply_chat_template(chat("<|im_end|>", "Where?"), return_dict=False)
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.eos_token_id not in bq.prompt_ids(tokenizer, "<|im_end|>", "Where?")
    assert "they take `<|im_end|>` in a text for" in (full / "README.md").read_text()


def run_card(folder, monkeypatch) -> str:
    """What the code in a folder's card prints."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder.parent)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, {})
    return output.getvalue().strip()


def our_answer(folder) -> str:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = stream_answer(model, tokenizer, CONTEXT, "Where is it?", 192, Stamps())
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_the_stock_pipeline_gives_our_answer_to_the_cards_question(full, monkeypatch):
    assert run_card(full, monkeypatch) == our_answer(full) != ""
    generation = GenerationConfig.from_pretrained(full)
    assert (generation.eos_token_id, generation.do_sample) == ([2, 0], False)
    assert (generation.max_new_tokens, generation.temperature) == (192, None)


def test_peft_gives_our_answer_from_an_adapter(tmp_path, base, monkeypatch):
    model = get_peft_model(load_model(base), LoraConfig(r=2, init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = str(base)
    tokenizer, notes = load_tokenizer(base), training("tiny_lora", base)
    save_finished(tmp_path / "tiny_lora", model, tokenizer, notes)
    card = (tmp_path / "tiny_lora" / "README.md").read_text()
    assert str(base) not in card and "library_name: peft" in card
    (tmp_path / "tiny").symlink_to(base)
    answer = run_card(tmp_path / "tiny_lora", monkeypatch)
    assert answer == our_answer(tmp_path / "tiny_lora") != our_answer(base)


def test_ollama_gets_the_prompt_of_training(full):
    text = (full / "Modelfile").read_text()
    template, system = re.findall(r'^(?:TEMPLATE|SYSTEM) """(.*?)"""$', text, re.DOTALL | re.M)
    user = USER.format(context=ODD[1], question="Who?")
    prompt = template.replace("{{ .System }}", system).replace("{{ .Prompt }}", user)
    assert prompt == bq.format_prompt(ODD[1], "Who?")
    assert 'stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\nPARAMETER temperature 0\n' in text


def test_the_card_has_the_scores_of_this_training_alone(full):
    score = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 9, "clusters": 3}
    names = ("exact_match", "f1", "yes_no", "declined_rightly", "declined_wrongly", "perplexity")
    results = {"headline": "benchmark", "data": {"corpus": "sample"}}
    results |= {"variants": {"full": {"benchmark": dict.fromkeys(names, score)}}}
    before = {path.name: path.stat().st_mtime_ns for path in full.iterdir()}
    export_folder(full, results | {"training": {"full": {"run": "another"}}})
    assert {path.name: path.stat().st_mtime_ns for path in full.iterdir()} == before
    export_folder(full, results | {"training": {"full": {"run": "tiny_full_ft-12345678"}}})
    card = ModelCard.load(full / "README.md")
    assert "9 questions (benchmark) on 3 articles of the corpus 'sample', which is" in card.text
    assert "| token F1 | 0.50 [0.25, 0.75] |" in card.text
    assert "1,234 question-answer pairs on 2 articles" in card.text
    assert (
        AutoTokenizer.from_pretrained(full).chat_template
        == (full / "chat_template.jinja").read_text()
    )
