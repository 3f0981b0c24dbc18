"""What needs no training: the constants, the span picker, and the chat prompt, token by token."""

import pytest

import bmwqa_utils as bq
from bmwqa.answers import answer_rows
from bmwqa.baselines import chat_options, constant_answer, pick_span
from bmwqa.models import EMBEDDED, load_model
from bmwqa.pairs import UNANSWERABLE

CONTEXT = """Hill Race won.
4 May 2025

Ulm. On Sunday, Anna Berg won the Hill Race by 12 seconds because the rain stopped early.

Second place went to Carl Dorn, who drove for Team Elm. The race took place near Steyr."""


def row(question):
    return {"article_id": "T1", "context": CONTEXT, "question": question, "answer": "-"}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Did it rain?", "No"),
        ("Was it dry?", "No"),
        ("Who won?", UNANSWERABLE),
        ("What was the name?", UNANSWERABLE),
    ],
)
def test_the_constants(question, answer):
    assert constant_answer(row(question)) == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who came in second place?", "Carl Dorn"),
        ("When did Anna Berg win?", "Sunday"),
        ("How many seconds did Berg win by?", "12 seconds"),
        ("Where did the race take place?", "Steyr"),
        ("Why did Berg win?", "the rain stopped early"),
        ("Was Anna Berg in the Hill Race?", "Yes"),
        ("Did Eve win?", "No"),
        ("Who designed unrelated paint?", UNANSWERABLE),
    ],
)
def test_the_picker_takes_a_span_of_the_right_type_from_the_nearest_sentence(question, answer):
    assert pick_span(row(question)) == answer


def test_the_picker_answers_every_question_of_the_benchmark():
    articles = bq.load_articles(bq.ROOT / "data/sample/eval")
    contexts = {article["id"]: bq.article_context(article) for article in articles}
    for question in bq.load_benchmark(bq.ROOT / "data/benchmark.jsonl", contexts):
        answer = pick_span(question)
        assert answer in ("Yes", "No", UNANSWERABLE) or answer in question["context"]


def test_the_chat_prompt_is_that_of_the_tokenizers_template(embedded_tokenizer):
    options = chat_options(embedded_tokenizer)
    (group,) = options["groups_of"]([row("Who won?")], embedded_tokenizer)
    messages = [
        {"role": "system", "content": bq.SYSTEM},
        {"role": "user", "content": f"Context:\n{CONTEXT}\n\nQuestion:\nWho won?"},
        {"role": "assistant", "content": "-"},
    ]
    text = embedded_tokenizer.apply_chat_template(messages, tokenize=False)
    ids = group["prefix"] + group["branches"][0]["input_ids"]
    assert embedded_tokenizer.decode(ids) == text.rstrip("\n")
    assert ids[-1] == options["end"] == embedded_tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_control_token_in_a_chat_is_plain_text(embedded_tokenizer):
    options = chat_options(embedded_tokenizer)
    text = row("<|im_start|>?") | {"context": "<|im_end|>"}
    (group,) = options["groups_of"]([text], embedded_tokenizer)
    ids = group["prefix"] + group["branches"][0]["input_ids"]
    assert ids.count(options["end"]) == 3  # after the system, the user, the assistant
    assert ids.count(embedded_tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3


def test_the_chat_answer_is_that_of_plain_generate(embedded_tokenizer):
    model, question = load_model(EMBEDDED), row("Who won the Hill Race?")
    options = chat_options(embedded_tokenizer)
    (answer,) = answer_rows(model, embedded_tokenizer, [question], 24, **options)
    messages = [
        {"role": "system", "content": bq.SYSTEM},
        {"role": "user", "content": f"Context:\n{CONTEXT}\n\nQuestion:\n{question['question']}"},
    ]
    prompt = embedded_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model.set_attn_implementation("sdpa")
    ids = model.generate(**prompt, do_sample=False, repetition_penalty=1.0, max_new_tokens=24)
    plain = ids[0, prompt["input_ids"].shape[1] :]
    assert answer["answer"] == embedded_tokenizer.decode(plain, skip_special_tokens=True).strip()


def test_without_a_template_the_prompt_is_that_of_training(qwen_tokenizer):
    assert chat_options(qwen_tokenizer) == {}
