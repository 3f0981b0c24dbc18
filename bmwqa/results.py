"""What results.json holds, field by field, and its check."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveFloat, ValidationError, create_model

from bmwqa.scores import BASELINES, INT8, SCORES, TRAINED
from bmwqa.settings import Count, Settings

Variant = Literal[(*BASELINES, *TRAINED, INT8)]
Slice = Literal["rule_made", "benchmark"]  # from rules; from people
Share = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """A part of results.json: no field may be missing or unknown, and no number NaN."""


class Bounds(Record):
    low: float | None  # limits of the 95 % interval, by article; None with one article
    high: float | None
    n: Count  # questions
    clusters: Count  # articles


class Interval(Bounds):
    mean: float | None  # over questions; None where the score applies to no question


class KindInterval(Interval):
    slice: Slice
    kind: str  # of question
    variant: Variant


# of one variant in one slice; bmwqa/scores.py `score_answer` defines each
figures = dict.fromkeys((*SCORES, "perplexity"), Interval)
Scores = create_model("Scores", __base__=Record, **figures)


class Difference(Bounds):  # in F1; bmwqa/scores.py `paired_table` defines each field
    slice: Slice
    pair: str  # "a - b": positive where a is better
    difference: Annotated[float, Field(ge=-1, le=1)]
    p: Share
    p_holm: Share | None  # None for a pair outside of the planned three
    shown: bool
    wins: Count
    ties: Count
    losses: Count
    smallest_detectable: float | None


class Training(Record):  # training.json, beside each trained model
    model: dict[str, str]  # what it began from
    run: str  # its folder in runs/ while it trained, with a hash of settings and rows
    rows: Count
    rows_too_long: Count
    held_out: list[str]  # articles
    one_pass: str  # the line of bmwqa/preflight.py `check_exact`
    learning_rate: PositiveFloat
    losses: list[float]  # of each step, nats per supervised token; pruned: with `Distillation`
    eval_losses: list[dict[Literal["step", "loss"], float]]
    articles: list[str]  # of all steps; with n processes, n of each
    questions: Count  # in all steps
    precision: str  # dtype of weights and matrix products; adapters are fp32
    seconds_per_step: PositiveFloat  # median
    peak_memory_gb: PositiveFloat  # 1e9 bytes, see `PeakMemory`
    trainable_parameters: Count
    layers_removed: list[int] | None = None  # pruned alone, counted from 0
    began_from: str | None = None  # pruned alone: the `run` of full


class Cost(Record):
    trainable_parameters: Count | None  # None where nothing was trained
    seconds_per_step: PositiveFloat | None
    peak_memory_gb: PositiveFloat | None
    weights_mb: PositiveFloat  # 1e6 bytes on disk; of lora, the adapter alone
    first_token_seconds: PositiveFloat  # from the prompt to the first token; median over answers
    tokens_per_second: PositiveFloat  # after the first token; median


class Controls(Record):  # full's answers with the right article, with none, with another
    conditions: dict[Literal["own_article", "no_article", "other_article"], Scores]
    differences: list[Difference]  # the own article against each control


class Retrieval(Record):  # bmwqa/retrieval.py `retrieval_figures` defines each field
    articles: Count  # that are searched
    threshold: Annotated[float, Field(ge=0)]
    separation: Share
    recall_at_1: Interval
    recall_at_3: Interval
    declined: Interval
    declined_without: Interval
    scores: dict[Literal["full", "full_retrieved"], Scores]  # article given, and retrieved


class TradeOff(Record):
    question_ids: list[str]  # of the answers whose speed was measured
    variants: dict[Variant | Literal["lora_merged"], Cost]


class Results(Record):
    model: dict[str, str | None]  # used and requested, with their revisions
    machine: dict[str, Any]  # processor, memory, versions
    settings: Settings
    data: dict[str, Any]  # the manifest of notebook 2; how many questions were too long
    headline: Slice
    training: dict[Variant, Training]
    variants: dict[Variant, dict[Slice, Scores]]
    differences: list[Difference]
    by_kind: list[KindInterval]
    controls: Controls
    retrieval: Retrieval
    failures: list[dict[Literal["variant", "question_id", "f1"], Any]]  # the worst answers
    trade_off: TradeOff
    verdict: list[str]
    evaluation_seconds: dict[Variant, Annotated[float, Field(ge=0)]]
    files: list[str]  # what the notebook wrote, below OUT_DIR


def check_results(results: dict) -> dict:
    """`results` as they are; ValueError names the field that is missing, unknown or wrong."""
    try:
        Results.model_validate_json(json.dumps(results))
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"results.json, {'.'.join(map(str, first['loc']))}: {first['msg']}."
        raise ValueError(f"{problem} Correct it, or describe it in bmwqa/results.py.") from error
    return results
