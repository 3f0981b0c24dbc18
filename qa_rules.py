"""The rules that turn a press article into question-answer pairs, without a language model.

An answer is a span of the article's context, so a reader can check it: `context[start:end] == answer`.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date

from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer

ORIGINAL_KINDS = ("title", "date", "about")
KINDS = ORIGINAL_KINDS
UNANSWERABLE = "The press release does not say."
MONTHS = "January February March April May June July August September October November December".split()
ABBREVIATIONS = "dr prof mr mrs ms st no nos ca approx incl excl max min vs etc jr sr co inc corp ltd e.g i.e".split()

Span = tuple[int, int]

# ---------------------------------------------------------------------------------------------------------------------
# The context, its paragraphs and sentences


def article_context(article: dict) -> str:
    """What a model is given to read: the title, the date and the text.

    >>> article_context({"title": " A title. ", "date": "2025-05-02", "text": "Munich. A text."})
    'A title.\\n2 May 2025\\n\\nMunich. A text.'
    """
    return f"{article['title'].strip()}\n{written_date(article)}\n\n{article['text']}"


def written_date(article: dict) -> str:
    """The article's ISO date as people write it.

    >>> written_date({"date": "2025-05-02"})
    '2 May 2025'
    """
    day = date.fromisoformat(article["date"])
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def train_splitter(texts: Iterable[str]) -> PunktSentenceTokenizer:
    """nltk's Punkt sentence splitter, trained on `texts` and told the abbreviations that press releases use.

    >>> train_splitter([]).tokenize("Dr. Weber won at St. Moritz. He was 0.2 s ahead.")
    ['Dr. Weber won at St. Moritz.', 'He was 0.2 s ahead.']
    """
    trainer = PunktTrainer()
    for text in texts:
        trainer.train(text, finalize=False)
    trainer.finalize_training()
    parameters = trainer.get_params()
    parameters.abbrev_types.update(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


def paragraph_spans(context: str, start: int) -> list[Span]:
    """The stripped paragraphs of `context` from `start` on.

    >>> paragraph_spans("A title\\n1 May 2025\\n\\nOne.\\n \\n  Two.\\nlines ", 20)
    [(20, 24), (29, 39)]
    """
    return [match.span() for match in re.compile(r"\S(?:(?!\n\s*\n).)*(?<=\S)", re.S).finditer(context, start)]


# ---------------------------------------------------------------------------------------------------------------------
# The three original kinds

ABOUT_LIMIT = 1500  # characters; an article in one single paragraph answers with its first sentences
NOT_PROSE = re.compile(
    r"\+\+\+|\t|^[*•]|^[-–] |^(ladies and|dear |check against|good (morning|afternoon|evening))"
    r"|^(in (case|the event) of |if you have any |for (further|more) |press contact|media contact|contact)"
    r"|\b(phone|telephone|tel|fax|mobile|e-?mail|instagram|linkedin|youtube|facebook|x)\.? ?:|\w@\w|^(https?://|www\.)"
    r"|^[^.]{0,90}: ?(fuel|energy|electric|power)[^.]{0,20}consumption",
    re.I,
)
SENTENCE_END = re.compile(r"[.!?…][\"”’“')\]*]*$")


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is running text: no heading, teaser, contact, list, table or footnote.

    >>> [is_prose(text) for text in ("Rain at the start", "Phone: +49-89.", "Munich. The new plant opened on Monday.")]
    [False, False, True]
    """
    return bool(SENTENCE_END.search(paragraph)) and len(paragraph.split()) >= 6 and not NOT_PROSE.search(paragraph)


def about_span(context: str, paragraphs: Sequence[Span], splitter: PunktSentenceTokenizer) -> Span | None:
    """The first real paragraph, or its first sentences where it is longer than ABOUT_LIMIT."""
    for start, end in paragraphs:
        if is_prose(context[start:end]):
            if end - start <= ABOUT_LIMIT:
                return start, end
            ends = [stop for _, stop in splitter.span_tokenize(context[start:end])]
            return start, start + max([stop for stop in ends if stop <= ABOUT_LIMIT], default=ends[0])
    return None


QUESTIONS = {
    "title": ("What is the title of the press release?", "What is the headline of this article?"),
    "date": ("When was the press release published?", "What is the date of this press release?"),
    "about": ("What is this press release about?", "What does the article report?"),
}


def find_pairs(
    article: dict,
    kinds: Sequence[str] = ORIGINAL_KINDS,
    limit: int | None = None,
    splitter: PunktSentenceTokenizer | None = None,
    others: Sequence[dict] = (),
    seed: int = 42,
) -> tuple[list[dict], Counter]:
    """(pairs, reasons): {"kind", "question", "answer", "evidence"} of an article, and what was left out and why.

    "evidence" is [start, end] in `article_context(article)`, or None where nothing in the text shows the answer.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds: got {unknown[0]!r}, need some of {', '.join(KINDS)}.")
    rng = random.Random(f"{seed}:{article['id']}")
    context, title, day = article_context(article), article["title"].strip(), written_date(article)
    splitter = splitter or train_splitter([article["text"]])
    text_start = len(title) + len(day) + 3
    paragraphs = paragraph_spans(context, text_start)
    spans = {
        "title": (0, len(title)) if title else None,
        "date": (len(title) + 1, len(title) + 1 + len(day)),
        "about": about_span(context, paragraphs, splitter),
    }
    pairs, reasons = [], Counter()
    for kind in ORIGINAL_KINDS:
        question = rng.choice(QUESTIONS[kind])
        if kind not in kinds:
            continue
        if spans[kind] is None:
            reasons["title: empty" if kind == "title" else "about: no paragraph is a sentence"] += 1
            continue
        start, end = spans[kind]
        pairs.append({"kind": kind, "question": question, "answer": context[start:end], "evidence": [start, end]})
    return pairs, reasons
