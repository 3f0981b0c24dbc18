"""What the three notebooks share: articles, rows, the prompt, its tokens and labels. No torch is needed for it."""

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

# ---------------------------------------------------------------------------------------------------------------------
# Question-answer pairs as rows


def make_row(article: dict, pair: dict, source: str) -> dict:
    """{"article_id", "source", "kind", "context", "question", "answer", "prompt"} of one pair, see bmwqa/pairs.py."""
    context = article_context(article)
    row = {"article_id": article["id"], "source": source, "kind": pair["kind"], "context": context}
    row |= {"question": pair["question"], "answer": pair["answer"]}
    return row | {"prompt": format_prompt(context, pair["question"])}


def build_qa_pairs(article: dict, seed: int = 42, reasons: Counter | None = None) -> list[dict]:
    """The rows of one article by rule: title, date and first paragraph; what is left out is counted in `reasons`."""
    pairs, left_out = rule_pairs(article, seed)
    if reasons is not None:
        reasons.update(left_out)
    return [make_row(article, pair, "rule") for pair in pairs]


def written_rows(paths: list[str | Path], articles: list[dict]) -> list[dict]:
    """The rows of the questions that people wrote about `articles`, from files as load_questions reads them."""
    by_id = {article["id"]: article for article in articles}
    lines = load_questions(paths, by_id)
    return [make_row(by_id[line["article_id"]], line | {"answer": line["answers"][0]}, "written") for line in lines]


ROW_KEYS = ("article_id", "source", "kind", "context", "question", "answer", "prompt")


def load_rows(path: str | Path, kinds: list[str] | None = None) -> list[dict]:
    """The rows of these kinds (None: all) of a file that data_processing_prompt.ipynb wrote; ValueError if a kind, or
    every row, is missing."""
    rows = read_jsonl(path, ROW_KEYS)
    there = dict.fromkeys(row["kind"] for row in rows)
    if not rows:
        raise ValueError(f"{path} has no rows. Run data_processing_prompt.ipynb on a folder with articles.")
    if missing := [kind for kind in kinds or [] if kind not in there]:
        raise ValueError(
            f"{path} has no rows of the kind {missing[0]!r}. It has {', '.join(there)}. Choose from these, or run "
            f"data_processing_prompt.ipynb with the QUESTIONS that have it."
        )
    return [row for row in rows if kinds is None or row["kind"] in kinds]


def rule_made_questions(rows: list[dict]) -> list[dict]:
    """The rows as questions of the evaluation: with "slice", "question_id", "reference" and "references"."""
    numbers, questions = Counter(), []
    for row in rows:
        numbers[row["article_id"]] += 1
        name = f"{row['article_id']}-r{numbers[row['article_id']]:02d}"
        references = {"reference": row["answer"], "references": [row["answer"]]}
        questions.append(row | {"slice": "rule_made", "question_id": name} | references)
    return questions


def load_benchmark(path: str | Path, contexts: dict[str, str]) -> list[dict]:
    """The questions written one by one on the articles of `contexts` (article_id -> context), for the evaluation.

    A line of the file has "id", "article_id", "kind", "question" and "answers", the accepted ones, the best one first.
    """
    questions = []
    for line in read_jsonl(path, ("id", "article_id", "kind", "question", "answers")):
        if line["article_id"] in contexts:
            context, answers = contexts[line["article_id"]], line["answers"]
            if not answers:
                raise ValueError(f"{path}, {line['id']}: no accepted answer, need one or more. Add one.")
            row = {key: line[key] for key in ("article_id", "kind", "question")}
            row |= {"context": context, "answer": answers[0], "prompt": format_prompt(context, line["question"])}
            row |= {"slice": "benchmark", "question_id": line["id"], "reference": answers[0], "references": answers}
            questions.append(row)
    return questions


def control_questions(questions: list[dict], part: str) -> dict[str, list[dict]]:
    """The answerable questions of one slice in the wrong place: {"no_article": rows, "other_article": rows}.

    no_article: with an empty context, in the same prompt. other_article: with the next article in the order of
    `questions`, the first one after the last, its id in "context_of" (None: no article); no row if there is only one.
    Only answerable questions: to decline one that the article does not answer is as right without the article.
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
    return row | {"context_of": article_id, "context": context, "prompt": format_prompt(context, row["question"])}


# ---------------------------------------------------------------------------------------------------------------------
# The prompt, its tokens and its labels

IGNORE = -100  # the label of a token that is read and not learnt, as torch's cross entropy has it

PREFIX = """<|system|>
You are a QA bot who answers questions regarding the press articles of the automotive company called BMW.
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
    """The prompt up to the line break after `<|assistant|>`: one text for training, scoring and answering."""
    return PREFIX.format(context=context) + QUESTION.format(question=question)


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids of `text`, in which a control token like "<|endoftext|>" is plain text: what a page says is data."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_example(tokenizer, row: dict) -> dict[str, list[int]]:
    """{"input_ids", "labels"}, two lists of one length: [prompt | answer | end of text], labels IGNORE on the prompt.

    The article, the question and the answer are tokenized apart: each begins on a new line, where both Qwen's and
    SmolLM2's tokenizer cut anyway, and so an article has the same ids whatever is asked about it.
    """
    (example,) = group_by_article([row], tokenizer)
    (branch,) = example["branches"]
    return {
        "input_ids": example["prefix"] + branch["input_ids"],
        "labels": [IGNORE] * len(example["prefix"]) + branch["labels"],
    }


def group_by_article(rows: list[dict], tokenizer, per_group: int | None = None) -> list[dict]:
    """Encode rows as {"article_id", "prefix", "branches"}: an article's ids once, then each question with its answer.

    prefix: list[int]; a branch: {"input_ids", "labels"}, two lists of one length. A group has at most `per_group`
    branches (None: all rows with the same context), in the order of the rows.
    """
    groups = []
    for context, members in by_context(rows).items():
        prefix = encode_text(tokenizer, PREFIX.format(context=context))
        branches = [_encode_branch(tokenizer, row) for _, row in members]
        size = per_group or len(branches)
        for start in range(0, len(branches), size):
            some = branches[start : start + size]
            groups.append({"article_id": members[0][1]["article_id"], "prefix": prefix, "branches": some})
    return groups


def _encode_branch(tokenizer, row: dict) -> dict[str, list[int]]:
    if not row["answer"].strip():
        raise ValueError(f"{row['article_id']}: {row['question']!r} has an empty answer, need one. Delete the row.")
    question = encode_text(tokenizer, QUESTION.format(question=row["question"]))
    answer = encode_text(tokenizer, row["answer"]) + [tokenizer.eos_token_id]
    return {"input_ids": question + answer, "labels": [IGNORE] * len(question) + answer}


def drop_long(rows: list[dict], tokenizer, max_tokens: int = 2048) -> tuple[list[dict], list[dict]]:
    """(kept, dropped): the rows whose prompt, answer and end of text have at most `max_tokens` tokens, and the others.

    Nothing is truncated: a cut row would lose its answer or the end of its article (trl #6668).
    """
    lengths = token_lengths(rows, tokenizer)
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= max_tokens]
    return kept, [row for row, length in zip(rows, lengths, strict=True) if length > max_tokens]


def require_rows(kept: list[dict], dropped: list[dict], max_tokens: int) -> None:
    """ValueError if `drop_long` has left nothing."""
    if not kept:
        raise ValueError(
            f"All {len(dropped)} rows have over MAX_TOKENS = {max_tokens:,} tokens, need one that has not. Raise "
            f"MAX_TOKENS, or add shorter articles."
        )


def token_lengths(rows: list[dict], tokenizer) -> list[int]:
    """The tokens of each row: prompt, answer and end of text."""
    prefixes = {context: len(encode_text(tokenizer, PREFIX.format(context=context))) for context in by_context(rows)}
    return [prefixes[row["context"]] + len(_encode_branch(tokenizer, row)["input_ids"]) for row in rows]


def by_context(rows: list[dict]) -> dict[str, list[tuple[int, dict]]]:
    """The rows with their index, under the article they ask about."""
    groups: dict[str, list[tuple[int, dict]]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row["context"], []).append((index, row))
    return groups
