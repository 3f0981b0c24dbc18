"""Rows as token ids for training, in a memory-mapped dataset: memory holds what is in use."""

import os
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import datasets

import bmwqa_utils
from bmwqa_utils import group_by_article, read_rows

LARGE = 1e9  # bytes of a file of rows; from here on, all cores tokenize, and bars show how far


def tokenize_rows(path: str | Path, tokenizer, folder: str | Path, **options):
    """The groups of a file of rows, tokenized once: a `datasets.Dataset` that lies in `folder`.

    options: of `read_rows` and `_tokenize`. A group has the keys of `group_by_article`, "written",
    whether people asked about the article, and "lengths", the tokens of its rows. Of those, the
    branches leave out what is over `max_tokens`. Memory holds the groups that are in use.
    """
    kinds, file = options.pop("kinds", None), Path(path).stat()
    large = file.st_size > LARGE
    (datasets.enable_progress_bars if large else datasets.disable_progress_bars)()
    ids = datasets.List(datasets.Value("int32"))
    features = {"article_id": datasets.Value("string"), "prefix": ids, "lengths": ids}
    features |= {"branches": datasets.List({"input_ids": ids, "labels": ids})}
    features |= {"written": datasets.Value("bool")}
    code = Path(bmwqa_utils.__file__).read_bytes() + Path(__file__).read_bytes()
    state = [code, str(path), file.st_size, file.st_mtime_ns, kinds]
    try:
        articles = datasets.Dataset.from_generator(
            _whole_articles,
            gen_kwargs={"path": path, "kinds": kinds},
            cache_dir=str(folder),
            fingerprint=datasets.fingerprint.Hasher.hash(state),
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ from None
    return articles.map(
        _tokenize,
        batched=True,
        batch_size=50,
        fn_kwargs={"tokenizer": tokenizer} | options,
        remove_columns=articles.column_names,
        features=datasets.Features(features),
        num_proc=os.cpu_count() if large else None,
    )


def _whole_articles(path: str | Path, kinds: list[str] | None) -> Iterator[dict]:
    ids = set()
    for key, rows in groupby(read_rows(path, kinds), itemgetter("article_id", "context")):
        if key[0] in ids:
            problem = f"the rows of {key[0]} are not in one place, or have two contexts"
            raise ValueError(f"{path}: {problem}. Run data_processing_prompt.ipynb again.")
        ids.add(key[0])
        pairs = [{name: row[name] for name in ("source", "question", "answer")} for row in rows]
        yield {"article_id": key[0], "context": key[1], "pairs": pairs}


def _tokenize(
    articles: dict[str, list], tokenizer, max_tokens: int = 2048, per_group: int | None = None
) -> dict[str, list]:
    """The columns of `tokenize_rows` for a batch of `_whole_articles`."""
    columns = {name: [] for name in ("article_id", "prefix", "branches", "written", "lengths")}
    for article_id, context, pairs in zip(*articles.values(), strict=True):
        rows = [pair | {"article_id": article_id, "context": context} for pair in pairs]
        for group in _groups(rows, tokenizer, max_tokens, per_group):
            for name, column in columns.items():
                column.append(group[name])
    return columns


def _groups(rows: list[dict], tokenizer, max_tokens: int, per_group: int | None) -> list[dict]:
    """The groups of one article's rows; one without branches if all rows are too long."""
    (group,) = group_by_article(rows, tokenizer)
    branches, head = group["branches"], len(group["prefix"])
    lengths = [head + len(branch["input_ids"]) for branch in branches]
    kept = [b for b, length in zip(branches, lengths, strict=True) if length <= max_tokens]
    group |= {"written": any(row["source"] == "written" for row in rows)}
    size = per_group or len(kept) or 1
    return [
        group | {"branches": kept[start : start + size], "lengths": [] if start else lengths}
        for start in range(0, len(kept) or 1, size)
    ]
