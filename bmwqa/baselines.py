"""Answers without training: two constants, a span picker, and the base with its own chat prompt.

None of them was tuned on the benchmark. A trained model that does not beat them has learnt little.
"""

import math
import re
from collections import Counter
from functools import partial

from bmwqa.pairs import UNANSWERABLE, YES_NO_VERBS, content_words, words
from bmwqa_utils import IGNORE, SYSTEM, encode_text, group_by_article

CAPITAL = r"[A-ZÄÖÜ][\w’-]*"
NAME = rf"{CAPITAL}(?: (?:(?:of|von|van|de|der) )?(?:{CAPITAL}|\d+))*"
NUMBER = r"[€$£]?\d[\d.,:]*(?: (?:million|billion))?(?: ?(?:%|[a-z]\w*))?"
MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
DATE = rf"\d\d? {MONTH}(?: \d{{4}})?|{MONTH} \d{{4}}|\d\d?:\d\d|{MONTH}|\b(?:19|20)\d\d\b|\w+day\b"
TYPES = {  # what a question begins with -> a pattern whose first group is the span
    r"who|whose|whom": rf"({NAME})",
    r"when|since when|until when": f"({DATE})",
    r"where|in which|at which|to which": rf"\b(?:in|at|near|to|from) (?:the )?({NAME})",
    r"how": f"({NUMBER})",
    r"why": r"\b(?:because|since|so that|due to|as|to) ([^.,;:–”]+)",
}
OTHER = rf"“([^”]+)”|({NAME})"  # for all other questions


def constant_answer(row: dict) -> str:
    """ "No" to a yes/no question, else the sentence that declines."""
    return "No" if words(row["question"])[0] in YES_NO_VERBS else UNANSWERABLE


def pick_span(row: dict) -> str:
    """The answer of a span picker to a row's question, from its context alone.

    Sentences are ranked by the words they share with the question; rare words count more. The
    answer is the first span in the best three that has the right type and is not in the question.
    """
    known, beginning = stems(row["question"]), " ".join(words(row["question"])[:2])
    if beginning.split()[0] in YES_NO_VERBS:
        return "Yes" if known <= stems(row["context"]) else "No"
    types = (TYPES[start] for start in TYPES if re.match(rf"(?:{start})\b", beginning))
    pattern = next(types, OTHER)
    for sentence in nearest_sentences(known, row["context"]):
        for match in re.finditer(pattern, sentence):
            span = match[match.lastindex]
            if stems(span) - known or re.search(r"\d", span):
                return span.strip()
    return UNANSWERABLE


def nearest_sentences(question_stems: set[str], context: str) -> list[str]:
    """The three sentences that share most with a question, none if it shares nothing with any."""
    sentences = [s for s in re.split(r"(?<=[.!?”]) |\n", context) if s.strip()]
    frequency = Counter(stem for sentence in sentences for stem in stems(sentence))
    weight = {stem: math.log(1 + len(sentences) / frequency[stem]) for stem in frequency}

    def shared(sentence: str) -> float:
        return math.fsum(weight[stem] for stem in stems(sentence) & question_stems)

    ranked = sorted(sentences, key=shared, reverse=True)
    return ranked[:3] if question_stems & {*frequency} else []


def stems(text: str) -> set[str]:
    """The content words of a text, each cut to five letters."""
    return {word[:5] for word in content_words(text)}


def chat_options(tokenizer) -> dict:
    """Options of `answer_rows` for the tokenizer's chat template; {} if it has none."""
    if not tokenizer.chat_template:
        return {}
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Context:\n⟨context⟩\n\nQuestion:\n⟨question⟩"},
        {"role": "assistant", "content": "⟨answer⟩"},
    ]
    template = tokenizer.apply_chat_template(messages, tokenize=False)
    pieces = re.split("⟨context⟩|⟨question⟩|⟨answer⟩", template)
    # control tokens of the template are real, those of an article are text
    ids = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
    before, middle, after, [end, *_] = ids

    def prefix_of(tokenizer, context: str) -> list[int]:
        return before + encode_text(tokenizer, context)

    def branch_of(tokenizer, row: dict) -> dict[str, list[int]]:
        question = middle + encode_text(tokenizer, row["question"]) + after
        answer = encode_text(tokenizer, row["answer"]) + [end]
        return {"input_ids": question + answer, "labels": [IGNORE] * len(question) + answer}

    groups_of = partial(group_by_article, prefix_of=prefix_of, branch_of=branch_of)
    return {"groups_of": groups_of, "end": end}
