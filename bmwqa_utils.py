"""What the three notebooks share: articles, rows, the prompt, tokens and labels. Without torch."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from bmwqa.corpus import (  # noqa: F401  (for the notebooks)
    ARTICLE_KEYS,
    ROOT,
    article_context,
    check_corpus,
    load_article,
    load_articles,
    numbered_lines,
    read_json,
    read_jsonl,
    require_texts,
    write_json,
    write_jsonl,
    write_text,
)
from bmwqa.pairs import load_questions, rule_pairs
from bmwqa.settings import Settings

ROW_KEYS = ("article_id", "source", "kind", "context", "question", "answer", "prompt")


def make_row(article: dict, pair: dict, source: str) -> dict:
    """The row of one pair of bmwqa/pairs.py, with the keys ROW_KEYS."""
    row = {"article_id": article["id"], "source": source, "kind": pair["kind"]}
    row |= {"context": article_context(article), "question": pair["question"]}
    prompt = format_prompt(row["context"], row["question"])
    return row | {"answer": pair["answer"], "prompt": prompt}


def build_qa_pairs(article: dict, seed: int = 42, reasons: Counter | None = None) -> list[dict]:
    """The rows of one article by rule; `reasons` counts why pairs were left out."""
    pairs, left_out = rule_pairs(article, seed)
    if reasons is not None:
        reasons.update(left_out)
    return [make_row(article, pair, "rule") for pair in pairs]


def written_pairs(paths: list[str | Path], files: dict[str, Path]) -> dict[str, list[dict]]:
    """{article id: pairs} of the questions that people wrote about the articles in `files`."""
    ids = {str(line.get("article_id")) for path in paths for _, line in numbered_lines(path)}
    asked_about = {name: file for name, file in files.items() if name in ids}
    contexts = {name: article_context(load_article(file)) for name, file in asked_about.items()}
    pairs: dict[str, list[dict]] = {}
    for line in load_questions(paths, contexts):
        pair = {"kind": line["kind"], "question": line["question"], "answer": line["answers"][0]}
        pairs.setdefault(line["article_id"], []).append(pair)
    return pairs


def corpus_rows(
    files: Iterable[Path], seed: int | None, written: dict, reasons: Counter | None = None
) -> Iterator[dict]:
    """The rows of the articles in `files`, one article after the other: by rule, then `written`.

    Without a seed, there are no rows by rule. Memory holds one article.
    """
    for file in files:
        article = load_article(file)
        if seed is not None:
            yield from build_qa_pairs(article, seed, reasons)
        for pair in written.get(article["id"], []):
            yield make_row(article, pair, "written")


def read_rows(path: str | Path, kinds: list[str] | None = None) -> Iterator[dict]:
    """The rows of `kinds` (None: all) in a file of notebook 2, read as they are asked for.

    ValueError names a line that is broken or, at the end, one of `kinds` that has no row.
    """
    kinds_there = {}
    for where, row in numbered_lines(path, ROW_KEYS):
        require_texts(row, ROW_KEYS, where)
        kinds_there[row["kind"]] = True
        if kinds is None or row["kind"] in kinds:
            yield row
    if not kinds_there:
        need = "Run data_processing_prompt.ipynb on a folder with articles."
        raise ValueError(f"{path} has no rows. {need}")
    if missing := [kind for kind in kinds or [] if kind not in kinds_there]:
        problem = f"no rows of the kind {missing[0]!r}. It has {', '.join(kinds_there)}"
        need = "or run data_processing_prompt.ipynb with the QUESTIONS that have it"
        raise ValueError(f"{path} has {problem}. Choose from these, {need}.")


def load_rows(path: str | Path, kinds: list[str] | None = None) -> list[dict]:
    """The rows of `read_rows`, all of them in memory."""
    return list(read_rows(path, kinds))


def rule_made_questions(rows: list[dict]) -> list[dict]:
    """The rows as questions of the evaluation, with "slice", "question_id", "references"."""
    numbers, questions = Counter(), []
    for row in rows:
        numbers[row["article_id"]] += 1
        question_id = f"{row['article_id']}-r{numbers[row['article_id']]:02d}"
        references = {"reference": row["answer"], "references": [row["answer"]]}
        questions.append(row | {"slice": "rule_made", "question_id": question_id} | references)
    return questions


def load_benchmark(path: str | Path, contexts: dict[str, str]) -> list[dict]:
    """The written questions of the evaluation on the articles of `contexts`, and on no others."""
    questions = []
    for line in load_questions([path], contexts, skip_others=True):
        context, answers = contexts[line["article_id"]], line["answers"]
        row = {key: line[key] for key in ("article_id", "kind", "question")}
        row |= {"context": context, "prompt": format_prompt(context, line["question"])}
        row |= {"slice": "benchmark", "question_id": line["id"], "answer": answers[0]}
        questions.append(row | {"reference": answers[0], "references": answers})
    return questions


def evaluation_questions(tokenizer, settings: Settings) -> tuple[list[dict], list[dict]]:
    """(questions, too long) of the evaluation: by rule, and of the benchmark.

    ValueError: a file is missing or wrong, two questions share an id, or all are too long.
    """
    folder = ROOT / settings.processed_dir
    read_json(folder / "manifest.json")
    rows = load_rows(folder / "eval.jsonl")
    questions = rule_made_questions(rows)
    ids = {question["question_id"] for question in questions}
    contexts = {row["article_id"]: row["context"] for row in rows}
    for line in load_benchmark(ROOT / settings.benchmark, contexts):
        if line["question_id"] in ids:
            problem = f"{line['question_id']!r} is the id of a question by rule, too"
            raise ValueError(f"{settings.benchmark}: {problem}. Choose another id.")
        questions.append(line)
    kept, dropped = drop_long(questions, tokenizer, settings.max_tokens)
    require_rows(kept, dropped, settings.max_tokens)
    return kept, dropped


def control_questions(questions: list[dict], slice_name: str) -> dict[str, list[dict]]:
    """{"no_article", "other_article"}: a slice's answerable questions in the wrong context.

    other_article: the next article of `questions`, the first after the last; no rows if there is
    only one article. Unanswerable questions are left out: without their article, declining would be
    just as right.
    """
    contexts = {row["article_id"]: row["context"] for row in questions}
    ids = list(contexts)
    following = dict(zip(ids, ids[1:] + ids[:1], strict=True))
    controls = {"no_article": [], "other_article": []}
    for row in questions:
        if row["slice"] == slice_name and row["kind"] != "unanswerable":
            other = following[row["article_id"]]
            controls["no_article"].append(move_row(row, None, ""))
            if other != row["article_id"]:
                controls["other_article"].append(move_row(row, other, contexts[other]))
    return controls


def move_row(row: dict, article_id: str | None, context: str) -> dict:
    """The row asked in another context; "context_of" is the id of its article, or None."""
    prompt = format_prompt(context, row["question"])
    return row | {"context_of": article_id, "context": context, "prompt": prompt}


IGNORE = -100  # the label of a token that is read and not learnt, for torch's cross entropy

SYSTEM = """\
You are a QA bot who answers questions regarding the press articles of the \
automotive company called BMW.
Use ONLY the provided context as your source of information."""
PREFIX = f"""<|system|>
{SYSTEM}

<|user|>
Context:
{{context}}

Question:
"""
QUESTION = """{question}

<|assistant|>
"""


def format_prompt(context: str, question: str) -> str:
    """The prompt of training and answering, up to the line break after `<|assistant|>`."""
    return PREFIX.format(context=context) + QUESTION.format(question=question)


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids of `text`, in which a control token like "<|endoftext|>" is plain text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_prefix(tokenizer, context: str) -> list[int]:
    """The ids up to the question; the first is the one that this tokenizer begins with, if any."""
    begin = tokenizer("", add_special_tokens=True)["input_ids"]
    begin = begin if begin == [tokenizer.bos_token_id] else []
    return begin + encode_text(tokenizer, PREFIX.format(context=context))


def prompt_ids(tokenizer, context: str, question: str) -> list[int]:
    """The ids of a prompt as training has them: article and question are tokenized apart."""
    question = encode_text(tokenizer, QUESTION.format(question=question))
    return encode_prefix(tokenizer, context) + question


def encode_example(tokenizer, row: dict) -> dict[str, list[int]]:
    """{"input_ids", "labels"} of [prompt | answer | end of text], labels IGNORE on the prompt.

    Article, question and answer are tokenized apart. Each begins on a new line, where Qwen's and
    SmolLM2's tokenizers cut anyway; so an article has the same ids with every question.
    """
    prefix, branch = encode_prefix(tokenizer, row["context"]), encode_branch(tokenizer, row)
    labels = [IGNORE] * len(prefix) + branch["labels"]
    return {"input_ids": prefix + branch["input_ids"], "labels": labels}


def encode_branch(tokenizer, row: dict) -> dict[str, list[int]]:
    """The part of `encode_example` behind the article: the question with its answer."""
    if not row["answer"].strip():
        where = f"{row['article_id']}: {row['question']!r}"
        raise ValueError(f"{where} has an empty answer. Delete the row.")
    question = encode_text(tokenizer, QUESTION.format(question=row["question"]))
    answer = encode_text(tokenizer, row["answer"]) + [tokenizer.eos_token_id]
    return {"input_ids": question + answer, "labels": [IGNORE] * len(question) + answer}


def group_by_article(
    rows: list[dict], tokenizer, prefix_of=encode_prefix, branch_of=encode_branch
) -> list[dict]:
    """{"article_id", "prefix", "branches"} per context: its ids once, then its questions.

    prefix: list[int]; branches: {"input_ids", "labels"} of each row, in their order.
    prefix_of, branch_of: for the ids of another prompt, see `chat_options`.
    """
    groups = []
    for context, members in by_context(rows).items():
        _, first = members[0]
        group = {"article_id": first["article_id"], "prefix": prefix_of(tokenizer, context)}
        groups.append(group | {"branches": [branch_of(tokenizer, row) for _, row in members]})
    return groups


def drop_long(rows: list[dict], tokenizer, max_tokens: int = 2048) -> tuple[list[dict], list[dict]]:
    """(kept, dropped): the rows of at most `max_tokens` tokens, and the others.

    Nothing is truncated: a cut row would lose its answer or the end of its article (trl #6668).
    """
    kept, dropped = [], []
    for row, length in zip(rows, token_lengths(rows, tokenizer), strict=True):
        (kept if length <= max_tokens else dropped).append(row)
    return kept, dropped


def require_rows(kept: list[dict], dropped: list[dict], max_tokens: int) -> None:
    """ValueError if `drop_long` has left nothing."""
    if not kept:
        problem = f"All {len(dropped)} rows have over MAX_TOKENS = {max_tokens:,} tokens"
        need = "need one that has not. Raise MAX_TOKENS, or add shorter articles."
        raise ValueError(f"{problem}, {need}")


def token_lengths(rows: list[dict], tokenizer) -> list[int]:
    """The tokens of each row: prompt, answer and end of text."""
    prefixes = {context: len(encode_prefix(tokenizer, context)) for context in by_context(rows)}
    branches = [len(encode_branch(tokenizer, row)["input_ids"]) for row in rows]
    return [prefixes[row["context"]] + length for row, length in zip(rows, branches, strict=True)]


def by_context(rows: list[dict]) -> dict[str, list[tuple[int, dict]]]:
    """{context: [(index, row), …]}: the rows under the article they ask about."""
    groups: dict[str, list[tuple[int, dict]]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row["context"], []).append((index, row))
    return groups
