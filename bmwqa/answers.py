"""Answers and their scores: all questions of an article in one reading, or one question, streamed, and its speed."""

import math
import sys
import time

import torch
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer

from bmwqa.one_pass import answer_questions, read_article
from bmwqa_utils import by_context, encode_text, format_prompt, group_by_article

# ---------------------------------------------------------------------------------------------------------------------
# Many questions, read and answered together


def perplexity(model, tokenizer, rows: list[dict]) -> dict:
    """Perplexity of the answers: exp(total NLL / supervised tokens), in nats, over all rows.

    {"perplexity", "nll", "tokens", "rows"}, where "rows" has {"nll", "tokens"} for each row in its order. A mean of
    means would depend on how the rows are batched (transformers #39241).
    """
    if not rows:
        raise ValueError("No rows to score, need one or more. Raise MAX_TOKENS, or run notebook 2 on more articles.")
    scored = [{"nll": row["nll"], "tokens": row["nll_tokens"]} for row in answer_rows(model, tokenizer, rows, 0)]
    nll, tokens = (sum(row[key] for row in scored) for key in ("nll", "tokens"))
    return {"perplexity": math.exp(nll / tokens), "nll": nll, "tokens": tokens, "rows": scored}


def generate_answers(model, tokenizer, rows: list[dict], max_new_tokens: int | list[int] = 96) -> list[dict]:
    """Greedy answers, {"answer", "stopped", "tokens"} a row: text, whether it ended by itself, tokens with that end."""
    rows = [row | {"answer": "-"} for row in rows]  # a reference is not needed, and would only take time
    answered = answer_rows(model, tokenizer, rows, max_new_tokens)
    return [{key: row[key] for key in ("answer", "stopped", "tokens")} for row in answered]


def bar(items, title: str):
    """A progress bar over `items`, on standard output, where a notebook keeps it with its other output."""
    return tqdm(items, desc=title, file=sys.stdout, ncols=100)


ARTICLES_AT_ONCE = 12  # read one by one and answered together: faster, at the price of the keys of twelve articles


def answer_rows(model, tokenizer, rows: list[dict], max_new_tokens: int | list[int], title: str = "") -> list[dict]:
    """Both at the price of one reading: {"answer", "stopped", "tokens", "nll", "nll_tokens"} a row, nll in nats.

    max_new_tokens: of every answer, or a list with that of each row; 0: scores alone. title: of a bar while it reads.
    """
    limits = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(rows)
    articles, done = list(by_context(rows).values()), {}
    for start in range(0, len(articles), ARTICLES_AT_ONCE):
        members = [member for article in articles[start : start + ARTICLES_AT_ONCE] for member in article]
        groups = group_by_article([row for _, row in members], tokenizer)
        readings = [read_article(model, group) for group in (bar(groups, title) if title else groups)]
        some = [limits[index] for index, _ in members]
        answers = answer_questions(model, readings, tokenizer.eos_token_id, some) if any(some) else [[]] * len(some)
        scores = [nll.cpu().double() for reading in readings for nll in reading.nll]
        for (index, _), nll, ids in zip(members, scores, answers, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            answer = {"answer": text, "stopped": tokenizer.eos_token_id in ids, "tokens": len(ids)}
            done[index] = answer | {"nll": nll.sum().item(), "nll_tokens": len(nll)}
    return [done[index] for index in range(len(rows))]


# ---------------------------------------------------------------------------------------------------------------------
# One question, as a person would ask it: the stock `model.generate`, which has nothing to share


def stream_answer(
    model, tokenizer, context: str, question: str, max_new_tokens: int, streamer: BaseStreamer, **options
) -> list[int]:
    """The token ids of the greedy answer to one question on one article, each given to `streamer` as soon as it is.

    The prompt is that of training; a control token in the article or the question is plain text. `options` go to
    `model.generate`.
    """
    ids = torch.tensor([encode_text(tokenizer, format_prompt(context, question))], device=model.device)
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        repetition_penalty=1.0,  # some models bring one of their own, which the evaluation does not apply
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        streamer=streamer,
        **options,
    )
    return made[0, ids.shape[1] :].tolist()


class Stamps(BaseStreamer):
    """The times (s) at which the prompt and then each token came."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def answer_speed(model, tokenizer, context: str, question: str, new_tokens: int = 12) -> dict[str, float]:
    """{"first_token_seconds", "tokens_per_second"} of one answer of `new_tokens`.

    first_token_seconds: from the prompt to its first token, nearly all of it reading the article. tokens_per_second:
    of the tokens after the first, one at a time. The answer may not end early, so that all models write as much.
    """
    stamps = Stamps()
    stream_answer(model, tokenizer, context, question, new_tokens, stamps, min_new_tokens=new_tokens)
    start, first, *_, last = stamps.times
    return {"first_token_seconds": first - start, "tokens_per_second": (new_tokens - 1) / (last - first)}


def pick(options: dict, name: str, what: str):
    """`options[name]`; ValueError names what there is."""
    if name not in options:
        raise ValueError(f"There is no {what} {name!r}. There are: {', '.join(options)}.")
    return options[name]
