"""Answers and their NLL: all questions of an article at once, or one question, streamed."""

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer

from bmwqa.corpus import read_jsonl, write_jsonl
from bmwqa.one_pass import answer_questions, read_article
from bmwqa_utils import by_context, encode_text, format_prompt, group_by_article

# --------------------------------------------------------------------------------------------------
# Many questions, read and answered together


ARTICLES_AT_ONCE = 12  # read one by one and answered together; the keys of all are in memory


def answer_rows(
    model, tokenizer, rows: list[dict], limits: int | list[int], title: str = ""
) -> list[dict]:
    """{"answer", "stopped", "tokens", "nll", "nll_tokens"} per row, at the price of one reading.

    answer: greedy text; stopped: it ended by itself; tokens: its length, with the end; nll: nats of
    the row's reference, of nll_tokens. limits: the most new tokens, of all or of each row; 0: only
    the NLL. title: of a progress bar.
    """
    limits = limits if isinstance(limits, list) else [limits] * len(rows)
    articles, done = list(by_context(rows).values()), {}
    for start in range(0, len(articles), ARTICLES_AT_ONCE):
        batch = [pair for article in articles[start : start + ARTICLES_AT_ONCE] for pair in article]
        groups = group_by_article([row for _, row in batch], tokenizer)
        if title:
            groups = tqdm(groups, desc=title, file=sys.stdout, ncols=100)
        readings = [read_article(model, group) for group in groups]
        caps, end = [limits[index] for index, _ in batch], tokenizer.eos_token_id
        nll = [answer.cpu().double() for reading in readings for answer in reading.nll]
        ids = answer_questions(model, readings, end, caps) if any(caps) else [[] for _ in batch]
        for (index, _), answer_nll, answer_ids in zip(batch, nll, ids, strict=True):
            done[index] = {
                "answer": tokenizer.decode(answer_ids, skip_special_tokens=True).strip(),
                "stopped": end in answer_ids,
                "tokens": len(answer_ids),
                "nll": answer_nll.sum().item(),
                "nll_tokens": len(answer_nll),
            }
    return [done[index] for index in range(len(rows))]


def kept_answers(path: Path) -> dict[tuple[str, str], dict]:
    """What `answer_missing` has written so far: {(name, question_id): line}."""
    lines = read_jsonl(path) if path.exists() else []
    return {(line["variant"], line["question_id"]): line for line in lines}


def answer_missing(
    load: Callable, tokenizer, pairs: list, caps: list[int], records: dict, path: Path, title: str
) -> None:
    """Answer what `records` lacks of `pairs`; add it there and, every few articles, to `path`.

    load: gives the model, called if an answer is missing. pairs: (name, row), a name being that of
    a variant or a control. caps: the most new tokens of an answer, and of one of kind "about".
    A line of `path` is `answer_rows`' with "variant", "question_id" and "seconds".
    """
    todo = [(name, row) for name, row in pairs if (name, row["question_id"]) not in records]
    model = load() if todo else None
    articles = list(by_context([row for _, row in todo]).values())
    for start in range(0, len(articles), ARTICLES_AT_ONCE):
        clock = time.perf_counter()
        batch = [
            todo[i] for article in articles[start : start + ARTICLES_AT_ONCE] for i, _ in article
        ]
        limits = [caps[row["kind"] == "about"] for _, row in batch]
        answers = answer_rows(model, tokenizer, [row for _, row in batch], limits, title)
        seconds = (time.perf_counter() - clock) / len(batch)
        for (name, row), answer in zip(batch, answers, strict=True):
            ids = {"variant": name, "question_id": row["question_id"]}
            records[tuple(ids.values())] = ids | answer | {"seconds": seconds}
        write_jsonl(path, list(records.values()))
    del model
    gc.collect()  # a model is a circle of references


# --------------------------------------------------------------------------------------------------
# One question, as a person would ask it: the stock `model.generate`, which has nothing to share


def stream_answer(
    model, tokenizer, context: str, question: str, limit: int, streamer: BaseStreamer, **options
) -> list[int]:
    """The token ids of the greedy answer to one question, each given to `streamer` when it comes.

    The prompt is that of training; a control token in the context or the question is plain text.
    limit: the most new tokens. `options` go to `model.generate`.
    """
    prompt = encode_text(tokenizer, format_prompt(context, question))
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        repetition_penalty=1.0,  # some models bring another one, which the evaluation lacks
        max_new_tokens=limit,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        streamer=streamer,
        **options,
    )
    return output[0, ids.shape[1] :].tolist()


class Stamps(BaseStreamer):
    """The times (s) at which the prompt and then each token came."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def answer_speed(
    model, tokenizer, context: str, question: str, new_tokens: int = 12
) -> dict[str, float]:
    """{"first_token_seconds", "tokens_per_second"} of one answer of `new_tokens` tokens.

    first_token_seconds: from the prompt to its first token, nearly all of it reading the article.
    tokens_per_second: after the first. The answer may not end early, so that all models write as
    much.
    """
    stamps = Stamps()
    length = {"limit": new_tokens, "min_new_tokens": new_tokens}
    stream_answer(model, tokenizer, context, question, streamer=stamps, **length)
    start, first, *_, last = stamps.times
    speed = (new_tokens - 1) / (last - first)
    return {"first_token_seconds": first - start, "tokens_per_second": speed}


def pick(options: dict, name: str, what: str):
    """`options[name]`; ValueError names what there is."""
    if name not in options:
        raise ValueError(f"There is no {what} {name!r}. There are: {', '.join(options)}.")
    return options[name]
