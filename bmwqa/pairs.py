"""Question-answer pairs from two sources (notebook 2): three rules, and people.

A pair is {"kind", "question", "answer"}. The rules ask any article for its title, date and first
paragraph. People's questions come from files like data/questions/train.jsonl.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bmwqa.corpus import language, numbered_lines, written_date

RULE_KINDS = ("title", "date", "about")
ENGLISH = {
    "title": ("What is the title of the press release?", "What is the headline of this article?"),
    "date": ("When was the press release published?", "What is the date of this press release?"),
    "about": ("What is this press release about?", "What does the article report?"),
}
GERMAN = {
    "title": ("Wie lautet der Titel der Pressemitteilung?", "Wie ist der Artikel überschrieben?"),
    "date": ("Wann erschien die Pressemitteilung?", "Von wann ist diese Pressemitteilung?"),
    "about": ("Wovon handelt diese Pressemitteilung?", "Was berichtet der Artikel?"),
}
PHRASINGS = {"EN": ENGLISH, "DE": GERMAN}  # by the language in an article's id; others: English
ABOUT_LIMIT = 1500  # characters; a longer first paragraph is cut at the end of a sentence
SENTENCE_END = re.compile(  # not in "z. B. Ulm" or "am 12. Mai"
    r"(?:(?<=[a-zäöüß)\d][.!?])(?<!\b\w\.)(?<!\b\d\d\.)|(?<=[.!?][”“\"]))(?=\s+[A-ZÄÖÜ„“\"])"
)
NOT_PROSE = re.compile(
    r"\+\+\+|\t|^[*•-] |please contact|^(ladies and|dear |contact|press contact|check against)"
    r"|\b(phone|telephone|e-?mail|instagram|linkedin|youtube|facebook)\.? ?:|\w@\w|^www\."
    r"|^(sehr geehrte|meine (sehr geehrten )?damen|pressekontakt|bei (rück)?fragen|telefon)",
    re.IGNORECASE,
)


def rule_pairs(article: dict, seed: int = 42) -> tuple[list[dict], Counter]:
    """(pairs, reasons): the pairs of title, date and first paragraph, and why some are left out.

    An answer stands in the article's context letter for letter. `seed` chooses the phrasings.
    """
    if not article["text"].strip():
        return [], Counter({"the text is empty": 1})
    rng, pairs, reasons = random.Random(f"{seed}:{article['id']}"), [], Counter()
    answers = (article["title"].strip(), written_date(article), first_paragraph(article["text"]))
    phrasings = PHRASINGS.get(language(article["id"]), ENGLISH)
    for kind, answer in zip(RULE_KINDS, answers, strict=True):
        if answer:
            question = rng.choice(phrasings[kind])
            pairs.append({"kind": kind, "question": question, "answer": answer})
        else:
            reasons["no title" if kind == "title" else "no paragraph is running text"] += 1
    return pairs, reasons


def first_paragraph(text: str) -> str:
    """The first paragraph of running text, cut at a sentence's end below ABOUT_LIMIT; "" if none.

    A short paragraph, such as a headline with a full stop, gives way to a longer one.

    >>> first_paragraph("+++ Won +++\\n\\nA great day.\\n\\nUlm. The plant opened its doors today.")
    'Ulm. The plant opened its doors today.'
    """
    prose = [block for block in re.split(r"\n\s*\n", text.strip()) if is_prose(block)]
    long_prose = [block for block in prose if len(block.split()) > 15]
    paragraph = (long_prose or prose or [""])[0].strip()
    if len(paragraph) <= ABOUT_LIMIT:
        return paragraph
    ends = [match.start() for match in SENTENCE_END.finditer(paragraph)]
    return paragraph[: max([end for end in ends if end <= ABOUT_LIMIT], default=len(paragraph))]


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is running text: no heading, teaser, contact, list or table.

    >>> [is_prose(text) for text in ("Rain at the start", "Phone: +49-89.", "It rained all day.")]
    [False, False, False]
    >>> is_prose("It rained for an hour, then it snowed.")
    True
    """
    whole = re.search(r"[.!…][\"”“’)*]*$", paragraph.strip()) or len(paragraph) > 800
    return bool(whole) and len(paragraph.split()) >= 6 and not NOT_PROSE.search(paragraph[:300])


UNANSWERABLE = "The press release does not say."
WRITTEN_KINDS = ("who", "when", "where", "how_many", "which", "what", "why")
WRITTEN_KINDS += ("yes_no", "unanswerable")
QUESTION_KEYS = ("id", "article_id", "kind", "question", "answers")


def load_questions(
    paths: Iterable[str | Path], contexts: dict[str, str], skip_others: bool = False
) -> list[dict]:
    """The lines of files of written questions, each checked against the context of its article.

    A line has the keys QUESTION_KEYS; its kind is one of WRITTEN_KINDS, its answers are a list of
    accepted texts. The first is trained on. It stands in the context word for word, unless the kind
    is yes_no ("Yes" or "No") or unanswerable (UNANSWERABLE).
    contexts: by article id. skip_others: pass over lines on other articles.
    ValueError names the file, the line, what it has and what to do.
    """
    lines, place_of = [], {}
    for path in paths:
        for where, line in numbered_lines(path, QUESTION_KEYS):
            if fault := _fault(line, contexts, skip_others):
                raise ValueError(f"{where}: {fault}")
            if line["article_id"] not in contexts:
                continue
            question = " ".join(line["question"].casefold().split())
            for key in (line["id"], (line["article_id"], question)):
                if key in place_of:
                    raise ValueError(f"{where}: {key!r} is in {place_of[key]}, too. Delete one.")
                place_of[key] = where
            lines.append(line)
    return lines


def _fault(line: dict, contexts: dict[str, str], skip_others: bool) -> str:
    """What is wrong with a line and what to do about it, or ""."""
    kind, answers, article_id = line["kind"], line["answers"], line["article_id"]
    for key in ("id", "article_id", "question"):
        if not _is_text(line[key]):
            return f"{key!r} is {line[key]!r}, need text. Correct it."
    if not isinstance(answers, list) or not answers or not all(map(_is_text, answers)):
        need = 'need a list of texts like ["12 May", "May 12"]'
        return f"'answers' is {answers!r}, {need}. Correct it."
    if kind not in WRITTEN_KINDS:
        return f"'kind' is {kind!r}, need one of {', '.join(WRITTEN_KINDS)}. Correct it."
    if article_id not in contexts:
        need = "Add its file to the training articles, or delete the line."
        return "" if skip_others else f"there is no article {article_id!r}. {need}"
    return _answer_fault(kind, answers[0], article_id, contexts[article_id])


def _answer_fault(kind: str, answer: str, article_id: str, context: str) -> str:
    """What is wrong with the first answer to a question of a kind, or ""."""
    fixed = {"yes_no": ("Yes", "No"), "unanswerable": (UNANSWERABLE,)}.get(kind)
    if fixed is None and answer not in context:
        need = "Copy it, letter for letter, from its title, date or text."
        return f"the answer {answer!r} does not stand in {article_id}. {need}"
    if fixed is not None and answer not in fixed:
        need = " or ".join(map(repr, fixed))
        return f"the answer is {answer!r}, {kind} needs {need}. Correct it."
    return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


COMMON = frozenset(
    "a an the of to in on at by for from with and or as is are was were be been did do does done "
    "has have had will would can could may must it its this that these those what which who whom "
    "whose when where why how many much long far old there their they he she his her him them "
    "than then so not no yes into about after before during until since per out up down over one "
    "any all".split()
)
YES_NO_VERBS = frozenset(
    "is are was were do does did has have had can could will would must may should".split()
)
PREPOSITIONS = frozenset(
    "in on at by from for to of with after before during since until under over near through "
    "between against into out besides apart alongside around within behind".split()
)


def first_word(question: str) -> str:
    """What a question begins with: all verbs of yes/no questions are one word, as prepositions are.

    >>> [first_word(q) for q in ("Who won?", "Did it rain?", "In which town?", "Whose was it?")]
    ['who', 'is/did/…', 'in/on/…', 'who']
    """
    word = words(question)[0]
    if word in YES_NO_VERBS:
        return "is/did/…"
    if word in PREPOSITIONS:
        return "in/on/…"
    return {"whose": "who", "whom": "who"}.get(word, word)


def words(text: str) -> list[str]:
    """The lower-cased words of a text: words("The i4’s price?") is ["the", "i4’s", "price"]."""
    return re.findall(r"[\w’'-]+", text.lower())


def content_words(text: str) -> frozenset[str]:
    """The lower-cased words of a text that are not COMMON."""
    return frozenset(words(text)) - COMMON


def share_in_common(question: str, answer: str, context: str) -> float | None:
    """The share of a question's content words that stand in the sentence of its answer.

    Of several such sentences, the lowest share counts. None if the answer stands in no sentence, or
    the question has no content word.

    >>> share_in_common("Who won the race?", "Berg", "It rained. Berg won by a second.")
    0.5
    """
    content = content_words(question)
    sentences = [s for s in re.split(r"(?<=[.!?”])\s+|\n", context) if answer in s]
    if not content or not sentences:
        return None
    return min(len(content & set(words(sentence))) / len(content) for sentence in sentences)
