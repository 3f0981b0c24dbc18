"""One question at a time: answers token by token, as in the evaluation, and control questions."""

import pytest
import torch
from transformers import GenerationConfig, TextStreamer

import bmwqa_utils as bq
from bmwqa.answers import Stamps, answer_rows, answer_speed, pick, stream_answer
from bmwqa.models import load_model, load_tokenizer, weights_mb

CONTEXT, QUESTION = "Munich. A museum opened. <|im_end|>", "Where? <|im_end|>"


def ask(model, tokenizer, streamer):
    return stream_answer(model, tokenizer, CONTEXT, QUESTION, 12, streamer)


def test_the_streamed_answer_is_that_of_the_evaluation(tiny_model_folder, capsys):
    """The article and the question hold a control token, which must stay plain text."""
    model, tokenizer = load_model(tiny_model_folder), load_tokenizer(tiny_model_folder)
    row = {"article_id": "T1", "context": CONTEXT, "question": QUESTION, "answer": "-"}
    (answer,) = answer_rows(model, tokenizer, [row], 12)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = ask(model, tokenizer, streamer)
    assert len(ids) == answer["tokens"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == answer["answer"]
    assert capsys.readouterr().out.strip() == answer["answer"]


@pytest.mark.parametrize("plain", [False, True])
def test_an_answer_ends_at_each_end_token_of_the_model(tiny_model_folder, plain):
    """Its generation config has two ends; the second comes as the fourth token."""
    model, tokenizer = load_model(tiny_model_folder), load_tokenizer(tiny_model_folder)
    torch.manual_seed(0)  # untied, so that the tokens of an answer are not all the same
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    row = {"article_id": "T1", "context": CONTEXT, "question": QUESTION, "answer": "-"}
    (endless,) = answer_rows(model, tokenizer, [row], 12, plain=plain)
    ids = ask(model, tokenizer, Stamps())
    assert endless["tokens"] == len(ids) == 12 and ids[3] not in ids[:3]
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, ids[3]])
    (answer,) = answer_rows(model, tokenizer, [row], 12, plain=plain)
    assert (answer["tokens"], answer["stopped"]) == (4, True)
    assert answer["answer"] == tokenizer.decode(ids[:3], skip_special_tokens=True).strip()
    assert ask(model, tokenizer, Stamps()) == ids[:4]
    prompt = torch.tensor([bq.prompt_ids(tokenizer, CONTEXT, QUESTION)])
    model.set_attn_implementation("sdpa")
    stock = model.generate(prompt, max_new_tokens=12, do_sample=False)
    assert stock[0, prompt.shape[1] :].tolist() == ids[:4]


def test_a_token_reaches_the_streamer_before_the_next_is_made(tiny_model_folder):
    model, tokenizer, seen = load_model(tiny_model_folder), load_tokenizer(tiny_model_folder), []

    class Notes(TextStreamer):
        def put(self, value):
            seen.append(value.numel())

        def end(self):
            seen.append("end")

    ids = ask(model, tokenizer, Notes(tokenizer))
    prompt = len(bq.encode_text(tokenizer, bq.format_prompt(CONTEXT, QUESTION)))
    assert seen == [prompt] + [1] * len(ids) + ["end"]


def test_speed_is_measured_over_as_many_tokens_as_asked(tiny_model_folder):
    model, tokenizer, passes = load_model(tiny_model_folder), load_tokenizer(tiny_model_folder), []
    model.register_forward_hook(lambda *_: passes.append(1))
    speed = answer_speed(model, tokenizer, CONTEXT, QUESTION, new_tokens=5)
    assert len(passes) == 5
    assert set(speed) == {"first_token_seconds", "tokens_per_second"} and min(speed.values()) > 0


def test_what_there_is_to_choose_from_is_named():
    assert pick({"full": 1}, "full", "variant") == 1
    with pytest.raises(ValueError, match="There is no variant 'ful'. There are: base, full."):
        pick({"base": 0, "full": 1}, "ful", "variant")


# --------------------------------------------------------------------------------------------------
# Controls


def rows_of(*articles):
    kinds = [("benchmark", "who"), ("benchmark", "unanswerable"), ("rule_made", "title")]
    return [
        {"article_id": article, "context": f"Text of {article}.", "question": f"{kind}?"}
        | {"slice": slice_name, "kind": kind}
        for article in articles
        for slice_name, kind in kinds
    ]


def test_controls_ask_answerable_questions_without_their_article_and_with_the_next():
    controls = bq.control_questions(rows_of("T1", "T2", "T3"), "benchmark")
    assert [row["article_id"] for row in controls["no_article"]] == ["T1", "T2", "T3"]
    assert {row["question"] for rows in controls.values() for row in rows} == {"who?"}
    assert {row["prompt"] for row in controls["no_article"]} == {bq.format_prompt("", "who?")}
    others = controls["other_article"]
    assert [row["context_of"] for row in others] == ["T2", "T3", "T1"]
    assert [row["context"] for row in others] == ["Text of T2.", "Text of T3.", "Text of T1."]
    assert others[2]["prompt"] == bq.format_prompt("Text of T1.", "who?")


def test_one_article_has_no_other():
    controls = bq.control_questions(rows_of("T1"), "rule_made")
    assert (len(controls["no_article"]), controls["other_article"]) == (1, [])


def test_the_size_on_disk_is_that_of_the_weights(tiny_model_folder):
    model = load_model(tiny_model_folder)
    megabytes = 4 * sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert weights_mb(tiny_model_folder) == pytest.approx(megabytes, rel=0.01)
