"""Answers and their NLL: all questions of an article at once, or one question, token by token."""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer

from bmwqa.corpus import read_jsonl, write_jsonl
from bmwqa.one_pass import answer_questions, read_article, reference_nll, separate_rows
from bmwqa_utils import IGNORE, by_context, group_by_article, prompt_ids

ARTICLES_AT_ONCE = 12  # read one by one and answered together; the keys of all are in memory


def answer_rows(
    model,
    tokenizer,
    rows: list[dict],
    limits,
    title="",
    groups_of=group_by_article,
    end=None,
    plain=False,
) -> list[dict]:
    """{"answer", "stopped", "tokens", "nll", "nll_tokens"} per row; each article is read once.

    answer: the greedy text. stopped: whether it ended by itself. tokens: its length, with the end.
    nll: of the answer in the row, in nats over nll_tokens tokens.
    limits: the most new tokens, an int for all rows or a list; with 0, only the NLL is computed.
    title: of a progress bar. groups_of, end: another prompt and one more id at which an answer
    ends, see `chat_options`. plain: a row per question and the stock `generate`, for a model that
    one pass does not fit; slower, and with the model's own attention.
    """
    ends = end_tokens(model.generation_config, tokenizer)
    ends += [] if end in (None, *ends) else [end]
    limits = limits if isinstance(limits, list) else [limits] * len(rows)
    answer_groups = answer_apart if plain else _answer_at_once
    answers = {}
    for batch in article_batches(rows):
        groups = groups_of([row for _, row in batch], tokenizer)
        if title:
            groups = tqdm(groups, desc=title, file=sys.stdout, ncols=100)
        caps = [limits[index] for index, _ in batch]
        nll, ids = answer_groups(model, groups, ends, caps)
        for (index, _), answer_nll, answer_ids in zip(batch, nll, ids, strict=True):
            answers[index] = _answer(tokenizer, answer_ids, ends) | answer_nll
    return [answers[index] for index in range(len(rows))]


def article_batches(rows: list[dict]) -> Iterator[list[tuple[int, dict]]]:
    """The (index, row) of ARTICLES_AT_ONCE articles, and of the next ones, article by article."""
    articles = list(by_context(rows).values())
    for start in range(0, len(articles), ARTICLES_AT_ONCE):
        yield [pair for article in articles[start : start + ARTICLES_AT_ONCE] for pair in article]


def _answer(tokenizer, ids: list[int], ends: list[int]) -> dict:
    stopped = bool({*ends} & {*ids})
    text = tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
    return {"answer": text.strip(), "stopped": stopped, "tokens": len(ids)}


def end_tokens(generation_config, tokenizer) -> list[int]:
    """The ids at which an answer ends: that of training first, then those the model came with."""
    ids = generation_config.eos_token_id
    if not isinstance(ids, list):
        ids = [] if ids is None else [ids]
    return list(dict.fromkeys([tokenizer.eos_token_id, *ids]))


def _answer_at_once(model, groups, ends: list[int], caps: list[int]) -> tuple[list[dict], list]:
    """({"nll", "nll_tokens"} of each reference, new ids of each answer), one pass per article."""
    readings = [read_article(model, group) for group in groups]
    nll = [answer.cpu().double() for reading in readings for answer in reading.nll]
    ids = answer_questions(model, readings, ends, caps) if any(caps) else [[] for _ in caps]
    return [{"nll": nats.sum().item(), "nll_tokens": len(nats)} for nats in nll], ids


def answer_apart(model, groups, ends: list[int], caps: list[int]) -> tuple[list[dict], list]:
    """The same as `_answer_at_once`, in a row of its own per question."""
    nll, ids = [], []
    for group in groups:
        for branch in group["branches"]:
            length = branch["labels"].count(IGNORE)  # of the question
            nats = reference_nll(model, group | {"branches": [branch]}, separate_rows).item()
            nll.append({"nll": nats, "nll_tokens": len(branch["labels"]) - length})
            prompt, limit = group["prefix"] + branch["input_ids"][:length], caps[len(ids)]
            ids.append(generate(model, prompt, ends, limit) if limit else [])
    return nll, ids


def generate(model, prompt: list[int], ends: list[int], limit: int, **options) -> list[int]:
    """The new ids of the stock greedy `generate`, at most `limit`, up to the first of `ends`."""
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        repetition_penalty=1.0,  # some models bring another value, which the evaluation lacks
        max_new_tokens=limit,
        eos_token_id=ends,
        pad_token_id=ends[0],
        **options,
    )
    return output[0, ids.shape[1] :].tolist()


def kept_answers(path: Path) -> dict[tuple[str, str], dict]:
    """What `answer_missing` has written so far: {(name, question_id): line}."""
    lines = read_jsonl(path) if path.exists() else []
    return {(line["variant"], line["question_id"]): line for line in lines}


def answer_missing(
    load: Callable, tokenizer, pairs: list, caps: list[int], records: dict, path: Path, **options
) -> None:
    """Answer the `pairs` that `records` lacks; add them there and, every few articles, to `path`.

    load: gives the model, and is called only if an answer is missing. pairs: (name, row), with the
    name of a variant or a control. caps: the most new tokens, of an answer and of one of kind
    "about". options: of `answer_rows`.
    A line of `path` is that of `answer_rows` with "variant", "question_id" and "seconds".
    """
    missing = [(name, row) for name, row in pairs if (name, row["question_id"]) not in records]
    model = load() if missing else None
    for members in article_batches([row for _, row in missing]):
        clock = time.perf_counter()
        batch = [missing[index] for index, _ in members]
        limits = [caps[row["kind"] == "about"] for _, row in batch]
        answers = answer_rows(model, tokenizer, [row for _, row in batch], limits, **options)
        seconds = (time.perf_counter() - clock) / len(batch)
        for (name, row), answer in zip(batch, answers, strict=True):
            ids = {"variant": name, "question_id": row["question_id"]}
            records[tuple(ids.values())] = ids | answer | {"seconds": seconds}
        write_jsonl(path, list(records.values()))
    del model
    gc.collect()  # a model is a circle of references


def stream_answer(
    model, tokenizer, context: str, question: str, limit: int, streamer: BaseStreamer, **options
) -> list[int]:
    """The token ids of the greedy answer to one question; `streamer` gets each as it comes.

    The prompt is that of training. limit: the most new tokens. `options` go to `model.generate`.
    """
    prompt = prompt_ids(tokenizer, context, question)
    ends = end_tokens(model.generation_config, tokenizer)
    return generate(model, prompt, ends, limit, streamer=streamer, **options)


class Stamps(BaseStreamer):
    """The times (s) at which the prompt and then each token came."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def answer_speed(model, tokenizer, context: str, question: str, new_tokens: int = 12) -> dict:
    """{"first_token_seconds", "tokens_per_second"} of one answer of `new_tokens` tokens.

    The first token takes mostly the reading of the article; the speed is that after it. The answer
    may not end early, so that all models write the same number of tokens.
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
