"""experiments/scale.py: copies are a corpus, the page is that of its file, the costs are right."""

import pytest

import bmwqa_utils as bq
from experiments import scale


def test_copies_are_a_corpus_with_questions_that_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SCRATCH", tmp_path)
    scale.write_corpus(170)  # two more than the sample has
    scale.write_questions(170)
    files = bq.check_corpus(tmp_path / "corpus")["train"]
    first, again = (bq.load_article(files[name]) for name in ("T0000000EN", "T0000168EN"))
    assert len(files) == 170 and first["title"] == again["title"] and first["text"] != again["text"]
    written = bq.written_pairs([tmp_path / "questions.jsonl"], files)
    assert written["T0000000EN"] == written["T0000168EN"] and len(written["T0000000EN"]) > 5


def test_the_page_is_that_of_the_file():
    results, speed = bq.read_json(scale.RESULTS), bq.read_json(scale.HERE / "speed.json")
    gpu = bq.read_json(scale.HERE / "speed_gpu.json")
    assert scale.page(results, speed, gpu) == scale.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "weights, setup, method, compute, network",
    [
        (1e9, (1, None, 25, None), "full", 60.0, 0.0),  # 6 × 1e9 × 1,000 / 1e11
        (1e9, (16, None, 25, 1e9), "full", 60.0, 8.0),
        (2e9, (1, None, 25, None), "LoRA", 80.0, 0.0),  # 32 GB are too much
        (2e9, (2, None, 25, 1e9), "full, FSDP", 120.0, 24.0),
        (2e9, (2, 1e14, 25, 1e9), "full, FSDP", 12 / 35, 12.0),
    ],
)
def test_a_step_is_reckoned_from_weights_tokens_and_rate(weights, setup, method, compute, network):
    cost = scale.step_cost(weights, setup, 1000, 1e11)
    assert cost == {
        "method": method,
        "compute": pytest.approx(compute),
        "network": pytest.approx(network),
    }
