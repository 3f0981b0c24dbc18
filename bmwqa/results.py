"""What results.json holds, field by field, and the check of it."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from bmwqa.scores import TABLE_SCORES
from bmwqa.settings import Settings

Variant = Literal["base", "full", "lora", "pruned"]
Slice = Literal["rule_made", "benchmark"]  # by rule from each article; asked by a person
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Interval(Part):
    mean: float | None  # over questions; None where the score applies to no question
    low: float | None  # limits of the 95 % interval, by article; None with one article
    high: float | None
    n: Count  # questions
    clusters: Count  # articles


class KindInterval(Interval):
    slice: Slice
    kind: str  # of question
    variant: Variant


# of one variant in one slice; bmwqa/scores.py `score_answer` defines each
Scores = create_model("Scores", __base__=Part, **{name: (Interval, ...) for name in TABLE_SCORES})


class Difference(Part):
    """Paired, in token F1; bmwqa/scores.py `paired_difference` defines each."""

    slice: Slice
    pair: str  # "a - b": positive where a is better
    difference: Annotated[float, Field(ge=-1, le=1)]
    low: float | None
    high: float | None
    p: Share
    wins: Count
    ties: Count
    losses: Count
    smallest_detectable: float | None
    n: Count
    clusters: Count
    p_holm: Share | None  # None for a pair outside of the planned three
    shown: bool


class Training(Part):
    """training.json, beside each trained model."""

    model: dict[str, str]  # what it began from
    run: str  # its folder in runs/ while it trained, with a hash of settings and rows
    rows: Count
    rows_too_long: Count
    held_out: list[str]  # articles
    one_pass: str  # what the check of one pass per article printed
    learning_rate: Positive
    losses: list[float]  # of each step, nats per supervised token
    eval_losses: list[dict[Literal["step", "loss"], float]]
    articles: list[str]  # of each step
    questions: Count  # in all steps
    precision: str  # dtype of matrix products
    seconds_per_step: Positive  # median
    peak_memory_gb: Positive  # 1e9 bytes, without what the process held before
    trainable_parameters: Count
    layers_removed: list[int] | None = None  # pruned alone, counted from 0


class Cost(Part):
    trainable_parameters: Count | None  # None where nothing was trained
    seconds_per_step: Positive | None
    peak_memory_gb: Positive | None
    weights_mb: Positive  # 1e6 bytes on disk; of lora the adapter alone
    first_token_seconds: Positive  # from the prompt to the first token, of one answer
    tokens_per_second: Positive  # after the first token


class Controls(Part):  # full's answers with the right article, with none, with another
    conditions: dict[Literal["own_article", "no_article", "other_article"], Scores]
    differences: list[Difference]  # the own article against each control


class TradeOff(Part):
    question_id: str  # of the answer whose speed was measured
    prompt_tokens: Count
    variants: dict[Variant | Literal["lora_merged"], Cost]


class Results(Part):
    model: dict[str, str | None]  # used and requested, with their revisions
    machine: dict[str, Any]  # processor, memory, versions
    settings: Settings
    data: dict[str, Any]  # the manifest of notebook 2; questions asked, and left out as too long
    headline: Slice
    training: dict[Variant, Training]
    variants: dict[Variant, dict[Slice, Scores]]
    differences: list[Difference]
    by_kind: list[KindInterval]
    controls: Controls
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
        what, place = error.errors()[0]["msg"], ".".join(map(str, error.errors()[0]["loc"]))
        text = f"results.json, {place}: {what}. Correct it, or describe it in bmwqa/results.py."
        raise ValueError(text) from error
    return results
