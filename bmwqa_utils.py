"""What the three notebooks share: articles, rows, the prompt, tokens and labels. Without torch."""

from collections import Counter
from pathlib import Path

from bmwqa.corpus import (  # noqa: F401  (articles and files are what all three notebooks share)
    ARTICLE_KEYS,
    ROOT,
    article_context,
    load_articles,
    load_corpus,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from bmwqa.pairs import load_questions, rule_pairs

# --------------------------------------------------------------------------------------------------
# Question-answer pairs as rows


def make_row(article: dict, pair: dict, source: str) -> dict:
    """The row of one pair of bmwqa/pairs.py, with the keys ROW_KEYS."""
    context = article_context(article)
    row = {"article_id": article["id"], "source": source, "kind": pair["kind"], "context": context}
    row |= {"question": pair["question"], "answer": pair["answer"]}
    return row | {"prompt": format_prompt(context, pair["question"])}


def build_qa_pairs(article: dict, seed: int = 42, reasons: Counter | None = None) -> list[dict]:
    """The rows of one article by rule: title, date and first paragraph.

    What is left out is counted in `reasons`.
    """
    pairs, left_out = rule_pairs(article, seed)
    if reasons is not None:
        reasons.update(left_out)
    return [make_row(article, pair, "rule") for pair in pairs]


def written_rows(paths: list[str | Path], articles: list[dict]) -> list[dict]:
    """The rows of the questions that people wrote about `articles`, see `load_questions`."""
    by_id = {article["id"]: article for article in articles}
    contexts = {name: article_context(article) for name, article in by_id.items()}
    pairs = [q | {"answer": q["answers"][0]} for q in load_questions(paths, contexts)]
    return [make_row(by_id[pair["article_id"]], pair, "written") for pair in pairs]


ROW_KEYS = ("article_id", "source", "kind", "context", "question", "answer", "prompt")


def load_rows(path: str | Path, kinds: list[str] | None = None) -> list[dict]:
    """The rows of these kinds (None: all) of a file that data_processing_prompt.ipynb wrote.

    ValueError: there is no row at all, or none of a kind.
    """
    rows = read_jsonl(path, ROW_KEYS)
    there = dict.fromkeys(row["kind"] for row in rows)
    if not rows:
        raise ValueError(
            f"{path} has no rows. Run data_processing_prompt.ipynb on a folder with articles."
        )
    if missing := [kind for kind in kinds or [] if kind not in there]:
        raise ValueError(
            f"{path} has no rows of the kind {missing[0]!r}. It has {', '.join(there)}. Choose "
            f"from these, or run data_processing_prompt.ipynb with the QUESTIONS that have it."
        )
    return [row for row in rows if kinds is None or row["kind"] in kinds]


def rule_made_questions(rows: list[dict]) -> list[dict]:
    """The rows as questions of the evaluation, with "slice", "question_id", "references"."""
    numbers, questions = Counter(), []
    for row in rows:
        numbers[row["article_id"]] += 1
        name = f"{row['article_id']}-r{numbers[row['article_id']]:02d}"
        references = {"reference": row["answer"], "references": [row["answer"]]}
        questions.append(row | {"slice": "rule_made", "question_id": name} | references)
    return questions


def load_benchmark(path: str | Path, contexts: dict[str, str]) -> list[dict]:
    """The written questions of the evaluation on the articles of `contexts`, see `load_questions`.

    Those on other articles are passed over.
    """
    questions = []
    for line in load_questions([path], contexts, skip_others=True):
        context, answers = contexts[line["article_id"]], line["answers"]
        row = {key: line[key] for key in ("article_id", "kind", "question")}
        row |= {"context": context, "prompt": format_prompt(context, line["question"])}
        row |= {"slice": "benchmark", "question_id": line["id"], "answer": answers[0]}
        questions.append(row | {"reference": answers[0], "references": answers})
    return questions


def control_questions(questions: list[dict], part: str) -> dict[str, list[dict]]:
    """The answerable questions of a slice, in the wrong place: {"no_article", "other_article"}.

    no_article: rows with an empty context. other_article: rows with the next article of
    `questions`, the first after the last; none if there is only one article. "context_of" is the
    id of the article in the prompt, or None. To decline an unanswerable question would be as right
    without the article, so these take no part.
    """
    contexts = {row["article_id"]: row["context"] for row in questions}
    ids = list(contexts)
    following = dict(zip(ids, ids[1:] + ids[:1], strict=True))
    controls = {"no_article": [], "other_article": []}
    for row in questions:
        if row["slice"] == part and row["kind"] != "unanswerable":
            other = following[row["article_id"]]
            controls["no_article"].append(_move(row, None, ""))
            if other != row["article_id"]:
                controls["other_article"].append(_move(row, other, contexts[other]))
    return controls


def _move(row: dict, article_id: str | None, context: str) -> dict:
    return row | {
        "context_of": article_id,
        "context": context,
        "prompt": format_prompt(context, row["question"]),
    }


# --------------------------------------------------------------------------------------------------
# The prompt, its tokens and its labels

IGNORE = -100  # the label of a token that is read and not learnt, as torch's cross entropy has it

PREFIX = """<|system|>
You are a QA bot who answers questions regarding the press articles of the \
automotive company called BMW.
Use ONLY the provided context as your source of information.

<|user|>
Context:
{context}

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


def encode_example(tokenizer, row: dict) -> dict[str, list[int]]:
    """{"input_ids", "labels"} of [prompt | answer | end of text], labels IGNORE on the prompt.

    Article, question and answer are tokenized apart. Each begins on a new line, where Qwen's and
    SmolLM2's tokenizers cut anyway; so an article has the same ids whatever is asked about it.
    """
    (example,) = group_by_article([row], tokenizer)
    (branch,) = example["branches"]
    return {
        "input_ids": example["prefix"] + branch["input_ids"],
        "labels": [IGNORE] * len(example["prefix"]) + branch["labels"],
    }


def group_by_article(rows: list[dict], tokenizer, per_group: int | None = None) -> list[dict]:
    """Rows as {"article_id", "prefix", "branches"}: an article's ids once, then its questions.

    prefix: list[int]; a branch: {"input_ids", "labels"}, a question with its answer. A group has at
    most `per_group` branches (None: all rows with the same context), in the order of the rows.
    """
    groups = []
    for context, members in by_context(rows).items():
        prefix = encode_text(tokenizer, PREFIX.format(context=context))
        branches = [_encode_branch(tokenizer, row) for _, row in members]
        size = per_group or len(branches)
        for start in range(0, len(branches), size):
            group = {"article_id": members[0][1]["article_id"], "prefix": prefix}
            groups.append(group | {"branches": branches[start : start + size]})
    return groups


def _encode_branch(tokenizer, row: dict) -> dict[str, list[int]]:
    if not row["answer"].strip():
        raise ValueError(
            f"{row['article_id']}: {row['question']!r} has an empty answer. Delete the row."
        )
    question = encode_text(tokenizer, QUESTION.format(question=row["question"]))
    answer = encode_text(tokenizer, row["answer"]) + [tokenizer.eos_token_id]
    return {"input_ids": question + answer, "labels": [IGNORE] * len(question) + answer}


def drop_long(rows: list[dict], tokenizer, max_tokens: int = 2048) -> tuple[list[dict], list[dict]]:
    """(kept, dropped): the rows of at most `max_tokens` tokens, and the others.

    Nothing is truncated: a cut row would lose its answer or the end of its article (trl #6668).
    """
    lengths = token_lengths(rows, tokenizer)
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= max_tokens]
    return kept, [row for row, length in zip(rows, lengths, strict=True) if length > max_tokens]


def require_rows(kept: list[dict], dropped: list[dict], max_tokens: int) -> None:
    """ValueError if `drop_long` has left nothing."""
    if not kept:
        raise ValueError(
            f"All {len(dropped)} rows have over MAX_TOKENS = {max_tokens:,} tokens, need one that "
            f"has not. Raise MAX_TOKENS, or add shorter articles."
        )


def token_lengths(rows: list[dict], tokenizer) -> list[int]:
    """The tokens of each row: prompt, answer and end of text."""
    prefixes = {
        context: len(encode_text(tokenizer, PREFIX.format(context=context)))
        for context in by_context(rows)
    }
    return [
        prefixes[row["context"]] + len(_encode_branch(tokenizer, row)["input_ids"]) for row in rows
    ]


def by_context(rows: list[dict]) -> dict[str, list[tuple[int, dict]]]:
    """The rows with their index, under the article they ask about."""
    groups: dict[str, list[tuple[int, dict]]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row["context"], []).append((index, row))
    return groups
