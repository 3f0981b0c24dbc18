"""The rules that turn a press article into question-answer pairs, without a language model.

One function a kind, each with an example. An answer is a span of the article's context, so a reader can check it:
`context[start:end] == answer`. How a sentence is read and turned into a question is in `qa_sentences`.
`python qa_rules.py --sample 150 --seed 7 [FOLDER]` prints pairs to read, one a line.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from nltk.tokenize.punkt import PunktSentenceTokenizer

from qa_sentences import (  # isort: skip
    ABOUT, ANY_FINITE, BE, CAPITAL, CLOCK, DATE, DAY, DIGITS, ENUMERATION, FINITE, MONTH, MONTHS, NAME,
    NO_NAME, NO_SUBJECT, NOT_PROSE, NUMBER, OFFICE, ROLE, SAYS, UNIT, WEEKDAY, WORDS, YEAR, Page, Span, article_context,
    ask, follows_office, is_person, read_page, split, split_names, tidy, told, train_splitter,
)  # fmt: skip

__all__ = ["KINDS", "ORIGINAL_KINDS", "UNANSWERABLE", "article_context", "find_pairs", "train_splitter"]

ORIGINAL_KINDS = ("title", "date", "about")
UNANSWERABLE = "The press release does not say."
PER_SENTENCE = 2  # pairs that one sentence may give
OTHERS_READ = 6  # other articles that are asked for such questions

Found = Iterator[tuple[str | tuple[str, ...], int, int]]  # a question or its phrasings, start and end of the answer

# ---------------------------------------------------------------------------------------------------------------------
# The three original kinds

ABOUT_LIMIT = 1500  # characters; an article in one single paragraph answers with its first sentences
QUESTIONS = {
    "title": ("What is the title of the press release?", "What is the headline of this article?"),
    "date": ("When was the press release published?", "What is the date of this press release?"),
    "about": ("What is this press release about?", "What does the article report?"),
}


def original(page: Page, kind: str, splitter: PunktSentenceTokenizer) -> Span | None:
    """The title, the date, or the first real paragraph (its first sentences where it is longer than ABOUT_LIMIT)."""
    if kind == "title":
        return (0, len(page.title)) if page.title else None
    if kind == "date":
        return len(page.title) + 1, page.start - 2
    if not page.prose:
        return None
    start, end = min(page.prose, key=lambda span: is_fragment(page.context[slice(*span)]))  # the first whole one
    ends = [stop for _, stop in split(splitter, page.context[start:end])]
    return start, start + max([stop for stop in ends if stop <= ABOUT_LIMIT], default=ends[0])


def is_fragment(text: str) -> bool:
    """Whether it asks, or is short and has no verb: is_fragment("Strengthening the core values of the brand.")."""
    return text.endswith("?") or len(text.split()) <= 15 and not re.search(rf"\b(?:find|{ANY_FINITE})\b", text)


# ---------------------------------------------------------------------------------------------------------------------
# People


def quote(page: Page) -> Found:
    """Who said a quoted sentence.

    >>> show("quote", "Munich. “We are very proud of the new plant,” says Anna Berg, Head of Sales.")
    Who said: “We are very proud of the new plant”? -> Anna Berg
    """
    after = re.compile(rf"[“\"„]([^“”\"„]+)[”\"“] (?:(?:{SAYS}) ({NAME})|({NAME}) (?:{SAYS}))(?!\w|: [“\"„])")
    before = re.compile(rf"({NAME})(?: \([^()]*\)| (?:{SAYS})|, {OFFICE})?: [“\"„]([^“”\"„]+)[”\"“]")
    signed = re.compile(rf"(?<!: )[“\"„]([^“”\"„]{{60,}})[”\"“] ({NAME}), {ROLE}(?!(?:(?!  )[^.“”\"])*(?::|{SAYS}))")
    for pattern, words in ((after, 1), (before, 2), (signed, 1)):
        for match in pattern.finditer(page.plain, page.start):
            name = match.span(1 if words == 2 else 2 if match[2] else 3)
            if NO_NAME.search(page.plain[slice(*name)]) or follows_office(page.plain, name[0]):
                continue
            for sentence in re.split(r"(?<=[.!?])\s", match[words]):
                said = f"“{sentence.strip(' ,.–')}”"
                if 5 <= len(said.split()) <= 25 and not said.endswith("?”"):
                    yield (f"Who said: {said}?", f"Who is quoted as saying {said}?", f"Whose words are {said}?"), *name


CUT_OFFICE = re.compile(  # "Head of Events, Exhibitions and Sport", unless another person follows
    rf", (?!{NAME}(?:, {ROLE}| \(| (?:and|{SAYS})\b)){CAPITAL}"
)


def offices(page: Page) -> list[re.Match]:
    """(name), (office) for each person who holds one office, and each office that one person holds."""
    found = re.compile(rf"({NAME})(?:, | \()({OFFICE})").finditer(page.plain, page.start)
    found = [
        match
        for match in found
        if not NO_NAME.search(match[1])
        and not re.search(r" [A-Z]$", match[2])  # "CEO of A", which goes on ". Berg and Sons"
        and not CUT_OFFICE.match(page.plain, match.end())
    ]
    pairs = {(match[1].split()[-1], match[2]): match for match in found}
    names, held = (Counter(pair[place] for pair in pairs) for place in (0, 1))
    return [match for (name, title), match in pairs.items() if " " in title and names[name] == held[title] == 1]


def office(page: Page) -> Found:
    """What office a named person holds.

    >>> show("office", "Munich. “We are very proud of the new plant,” says Anna Berg, Head of Sales.")
    What is Anna Berg’s position? -> Head of Sales
    """
    for match in offices(page):
        name = match[1]
        asked = f"What is {name}’s position?", f"What office does {name} hold?", f"What is the role of {name}?"
        yield asked, *match.span(2)


def person(page: Page) -> Found:
    """Who holds an office.

    >>> show("person", "Munich. “We are very proud of the new plant,” says Anna Berg, Head of Sales.")
    Who holds the office of Head of Sales? -> Anna Berg
    """
    for match in offices(page):
        title = match[2]
        is_one = re.match(r"(?!Member)[\w ]+? (?:of|for) ", title)  # of several members none is "the member"
        if len(title.split()) > 2 and (is_one or ", " in title or not title.startswith("Member")):
            asked = f"Who holds the office of {title}?", f"Who is named as {title}?", f"Who is the {title}?"
            yield asked[: 3 if is_one else 2], *match.span(1)


TEAM = re.compile(rf"(?:The )?(?:{CAPITAL} )*(?:Racing|Motorsport|Team|GmbH|AG|Group(?! Plant))(?: {CAPITAL})*")
PRONOUN = re.compile(r"\b(?:this|that|these|those|it|he|she|they|we|our|me|my|I|his|her|here|there|you|your)\b", re.I)


def who(page: Page) -> Found:
    """Which person, team or company does something.

    >>> show("who", "Munich. Anna Berg (GER) won the Hill Race in Garmisch.")
    Who won the Hill Race in Garmisch? -> Anna Berg (GER)
    """
    for clause in page.clauses:
        start, end = clause.subject
        names = re.sub(r"^(?:[A-Z]?[a-z-]+ )+(?=[A-Z])", "", page.flat[start:end])  # "private driver Anna Berg"
        team = TEAM.fullmatch(page.flat[start:end])
        if team or all(is_person(name, page.people) for name in split_names(names)):
            one = {"are": "is", "were": "was", "have": "has"}.get(clause.aux, "")
            rest = told(page, clause, clause.verb[0] + (len(clause.aux) if one else 0))
            does = f"{one} {rest}" if one else rest
            kind = "team" if re.search("Racing|Team|(?<!BMW M )Motorsport", page.flat[start:end]) else "company"
            asked = (f"Who {does}", f"Which {kind} {does}") if team else f"Who {does}"
            nation = re.match(r"\s\([A-Z]{3}\)", page.plain[end:])
            if re.search(r"\s[A-Z]|\b\d{4}\b", rest) and clause.aux not in ("do", "had") and not PRONOUN.search(rest):
                yield asked, start, end + (nation.end() if nation else 0)


PRODUCT = (
    r"\b(?:BMW|MINI) (?:iX?\d\b|X\d\b|M\d\b|XM\b|Z4\b|[1-8] Series\b|[A-Z] \d{3,4} [A-Z]+\b|M \d{4} [A-Z]+\b"
    r"|Cooper\b|Countryman\b|Aceman\b)"
)
MODEL = re.compile(
    rf"(?>{PRODUCT}(?: (?:(?!Racing|Trophy|Cup|Team|Junior){CAPITAL}|\d+\b(?!-|[.,]\d)|[ex]Drive\w*))*)"
    r"(?!\w| (?:Racing|Trophy|Cup)\b)"
)


def which(page: Page) -> Found:
    """Which model a sentence is about.

    >>> show("which", "Munich. The BMW iX3 has a range of 800 kilometres in summer.")
    Which model has a range of 800 kilometres in summer? -> BMW iX3
    """
    subject = re.compile(rf"(?:[Tt]he )?(?:(?:new|first|all-new) )?({MODEL.pattern})")
    for clause in page.clauses:
        if match := subject.fullmatch(page.flat, *clause.subject):
            rest = told(page, clause, clause.verb[0])
            if len(rest.split()) > 3 and not PRONOUN.search(rest):
                yield f"Which model {rest}", *match.span(1)


# ---------------------------------------------------------------------------------------------------------------------
# Place, time and reason

HAPPENS = re.compile(
    r"\b(?:held|shown|open|start|begin|live|located|born|take|run|celebrate|work|appear|meet|hosted|cast|view|set|stand|made"
    r"|finish|end|won|win|build|built|seen|spend|grow|race)\b"
    r"|(?:be |been |^)(?!finish|paint|upholst|cover|coat|trim|pric|includ)\w+ed\b"
)
TIME = rf"(?:back )?(?:on|from|until|since|between|in {DATE}|in {MONTH}|in the (?:\w+ )?(?:quarter|half)|at \d\S*)"
PLACE = re.compile(
    rf" (?:in|at) (?!{DATE}|the presence|{MONTH}|\w+day|\d|more|about)"
    rf"((?:(?!(?:for|with|by|to|as|at|during|over|after|through|under|{TIME})\b)\S+ )*?(?:(?!for|with|by)\S)+)"
    rf"(?= (?:{TIME})\b| *$)"
)
OF_THING = re.compile(  # "to plants", before "in Ulm"
    r" (?:to|from|of|for|with|by|among) (?!\d|the first time)(?:(?!in|at|on|for|with|by)\S+(?: +|$))*$"
)
NO_PLACE = re.compile(
    r"#|^(?:the )?(?:front|place|hono|favou?r|memory|terms|return|exchange|contrast|response|search|need) "
    r"|class|categor|championship|segment|series|league|cup\b|trophy|masters|prix|race|round|version|season|field|english"
    r"|german\b|colou?r|time|market|\bgt|line with|addition|form\b|formula|cooperation|collaboration|cycle|white"
    r"|metallic|gr[ae]y\b|shade|action|superbike|accordance|charge|view|\band (?:in|around)\b|course of|moment|lap\b"
    r"|models?\b|vehicles?\b|system|year|month|week|day\b|^(?:an? |the )?(?:new )?(?:bmw|mini)\b(?!.* plant)|gmbh$|"
    + MONTH.lower()
)
WHEN = re.compile(
    rf"\b(?:(?:[Ff]rom|[Bb]etween)\s(?:{DATE}|\d\d?)\s(?:to|until|and)\s{DATE}|(?:back\s)?(?:[Ii]n|[Oo]n)\s(?P<day>{DATE}{CLOCK}))"
    r"(?!\s[a-z]+s\b)"
)
MADE = re.compile(r"\b(?:built|designed|made|launched) $| for the (?:start|launch)\b")  # the time of a thing
REASON = re.compile(
    r",? ((?:because|in order to|thanks to|owing to"
    r"|due to(?! (?:be|expire|start|begin|open|run|end|launch|take|follow|come|go|arrive|join|return|finish|close)\b"
    r"| \w+ (?:until|on|at|by)\b)) "
    rf"(?:(?!, (?:and|but|the|which|who|while|only|{ANY_FINITE})\b| and (?:then|also|thus|{ANY_FINITE})\b)[^;:–])+)"
)


def is_double(rest: str) -> bool:
    """Whether a second place, day or figure follows: is_double(" and in June")."""
    return bool(re.search(rf" (?:and|or) (?:(?:in|on|at|from) |(?:\w+ )?€?{NUMBER}|$)", rest + " "))


def where(page: Page) -> Found:
    """Where an event in the text takes place.

    >>> show("where", "Munich. The Hill Race will be held in Garmisch on 3 May. In Ulm, Anna Berg won the Hill Cup.")
    Where will the Hill Race be held on 3 May? -> Garmisch
    Where did Anna Berg win the Hill Cup? -> Ulm
    """
    for clause in page.clear:
        happens = HAPPENS.search(clause.base + page.flat[clause.rest[0] : clause.rest[0] + 6])
        match = PLACE.search(page.flat, *clause.rest)
        if match and happens and re.search("[A-Z]", match[1]) and not NO_PLACE.search(match[1].lower()):
            before, after = page.flat[clause.rest[0] : match.start()], page.flat[match.end() : clause.rest[1]]
            second = re.search(r"\b(?:in|near) (?:the )?[A-Z]|\b(?:hall|stand) [A-Z]?\d", before)
            second = second or re.search(r"\b(?:in|at|near)\b (?!\d|[A-Z][a-z]+ \d{4})", after)
            if not OF_THING.search(before) and not second:
                yield tuple(ask(page, clause, wh, match.span()) for wh in ("Where", "In which place")), *match.span(1)
        elif (match := re.fullmatch(rf"(?:In|At) ({CAPITAL}(?:[ ‚]+{CAPITAL})*)", clause.lead)) and not (
            NO_PLACE.search(match[1].lower()) or SUPERLATIVE.search(page.flat, *clause.rest)
        ):
            start = page.flat.index(clause.lead, clause.sentence[0])
            asked = tuple(ask(page, replace(clause, lead=""), wh) for wh in ("Where", "In which place"))
            yield asked, start + match.start(1), start + match.end(1)


def when(page: Page) -> Found:
    """When something in the text happens.

    >>> show("when", "Munich. The Hill Race will be held in Garmisch on 3 May. In 2024, Anna Berg won the race.")
    When will the Hill Race be held in Garmisch? -> 3 May
    When did Anna Berg win the race? -> 2024
    """
    for clause in page.clear:
        found = list(WHEN.finditer(page.flat, *clause.rest))
        if clause.base in ("", "be") and re.match(r" (?:the|an?) ", page.flat[clause.rest[0] :]):
            continue  # "Ulm was the starting point in 2022"
        if not found and (match := WHEN.fullmatch(clause.lead)):
            offset, gap, clause = page.flat.index(clause.lead, clause.sentence[0]), None, replace(clause, lead="")
        elif len(found) == 1:
            offset, match, gap = 0, found[0], found[0].span()
        else:
            continue
        rest = clause.rest
        if not (gap and (MADE.search(page.flat, rest[0], gap[0]) or is_double(page.flat[gap[1] : rest[1]]))):
            start, end = match.span("day" if match["day"] else 0)
            asked = ("When", "In which year") if re.fullmatch(YEAR, match["day"] or "") else ("When",)
            yield tuple(ask(page, clause, wh, gap) for wh in asked), offset + start, offset + end


def why(page: Page) -> Found:
    """Why something in the text is so.

    >>> show("why", "Munich. The Hill Race was cancelled due to weather conditions.")
    Why was the Hill Race cancelled? -> due to weather conditions
    """
    for clause in page.clear:
        start, end = clause.rest
        match = REASON.search(page.flat, start, clause.sentence[1] - 1)
        if match and not re.search(rf"[,;:–]| and (?:{ANY_FINITE})\b", page.flat[start : match.start()]):
            if len(match[1].split()) > 2 and not PRONOUN.search(match[1]):
                clause = replace(clause, rest=(start, min(match.start(), end)))
                yield (ask(page, clause, "Why"), ask(page, clause, "For what reason")), *match.span(1)


# ---------------------------------------------------------------------------------------------------------------------
# Figures

COUNT = re.compile(
    rf"(?<!number )({ABOUT}(?!{YEAR}){NUMBER})(?! (?:to|and|per|of|million|billion)\b) (?!{UNIT})"
    r"((?:(?!of|in|and|the|to|a|per|for|with|at|on|from|through|by|as|into|after|or)[a-zA-ZÀ-ÿ-]+ ){0,3}?"
    r"(?:[a-zà-ÿ-]+[^s\W]s(?<!was|has| is)|people|women|men|children)\b)"
)
AMOUNT = re.compile(
    rf"({ABOUT}(?:{NUMBER} ?{UNIT}(?:/{DIGITS} ?{UNIT})?|€ ?{DIGITS}(?: [mb]illion)?)"
    r"(?: per (?:cent|person|child|month|year))?)"
    r"(?![\w%/]|[.,]\d| (?:[mb]illion|to|of|per)\b)"
)
OF_AMOUNT = re.compile(
    rf"(?:an?|the) ((?:(?!(?:an?|the|with|in|of|to|and|from|for|at|by)\b)[a-zA-Z-]+ ){{1,3}})of {AMOUNT.pattern}"
)
LONG = re.compile(r" (long|wide|high|tall|heavy|thick|deep|away|old)\b")
HOW_MUCH = {"cost": "How much", "weigh": "How much", "last": "How long", "take": "How long"}
CROWD = re.compile(
    r"spectators|guests|viewers|fans|starters|volunteers|apprentices|students|engineers|entries|applications|vehicles"
)
MEASURE = re.compile(
    r"(?:output|torque|range|speed|capacity|length|width|height|depth|weight|diameter|price|purse|fund|volume|temperature"
    r"|rate|bonus|dividend|margin|consumption|displacement|radius|power|load|cost|area|fee|surcharge|warranty|humidity"
    r"|content|allowance|investment|budget|gradient|wheelbase|size|time|resolution)$"
)
VAGUE = re.compile(
    r"\b(?:people|times|things|ways|others?|parts|years?|days|hours|weeks|months|minutes|members|per|total|further|more|additional"
    r"|new|steps|points|ones|kinds|types|sides|cases|areas|reasons|thirds|quarters|first|last|next|previous|million|region"
    r"|countries|nations|drivers|riders|teams|participants|figures|numbers|items|pieces|smaller|inhabitants|households"
    r"|employees|visitors|such|plus|advantage|distance|saving|guarantees|thus|that|who|which|than|at)\b"
)


def figure(page: Page) -> Found:
    """How many, how much, how long, how far: figures with what they count.

    >>> show("figure", "Munich. The plant in Leipzig has around 5,300 employees. Tickets cost 12 euros.")
    How many employees does the plant in Leipzig have? -> around 5,300
    How much do tickets cost? -> 12 euros
    """
    for clause in page.clauses:
        flat, (start, end), is_simple = page.flat, clause.subject, clause.aux in BE and not clause.base
        start += len("A total of ") if flat.startswith("A total of ", start) else 0
        if is_double(flat[start : clause.rest[1]]):
            continue
        if (match := COUNT.match(flat, start, end)) and not PRONOUN.search(told(page, clause, match.start(2))):
            yield f"How many {told(page, clause, match.start(2))}", *match.span(1)
        if clause not in page.clear:
            continue
        rest = clause.rest[0] + (flat[clause.rest[0]] == " "), clause.rest[1]
        if match := COUNT.match(flat, *rest):
            if not is_simple and not re.match(r" (?:of|and|from) ", flat[match.end() :]):
                yield ask(page, clause, f"How many {match[2]}", match.span()), *match.span(1)
        elif match := AMOUNT.match(flat, *rest):
            several = clause.base == "cost" and len(AMOUNT.findall(page.plain, *clause.sentence)) > 1
            if clause.base in HOW_MUCH and not several:
                yield ask(page, clause, HOW_MUCH[clause.base], match.span()), *match.span(1)
            elif is_simple and (long := LONG.match(flat, match.end())):
                how = "How " + long[1].replace("away", "far away")
                yield ask(page, clause, how, (match.start(), long.end())), *match.span(1)
            elif is_simple and flat.startswith("The ", start):
                yield ask(page, clause, "What", match.span()), *match.span(1)
        elif (match := OF_AMOUNT.match(flat, *rest)) and clause.base and not re.match(" and an? ", flat[match.end() :]):
            yield ask(page, clause, f"What {match[1]}", match.span()), *match.span(2)


OF_SEVERAL = re.compile(  # "from 198,000 (2018) to 271,400 vehicles", "space for 900 trainees", "the Option 719"
    r"\b(?:from|between) [^.;]*(?:to|and) $|(?:space|room|seats) for $|[a-z] [A-Z]\w* $"
)
INCOMPLETE = re.compile(r"[’']| (?:and|or|of|an?|per|each)\b|.* compared (?:with|to) ")
MONEY = r"€|£|\$|\b(?:euros|dollars|pounds|kroner|pesos)\b|\b[A-Z]{3} (?=\d)"
COUNTED = ("How many {} does the press release mention?", "How many {} are mentioned?")
MEASURED = ("What {} does the press release give?", "What {} is mentioned?", "Which {} does the article state?")


def mentioned(page: Page) -> Found:
    """Figures wherever they stand, when nothing else in the article is counted or measured by the same word.

    >>> show("mentioned", "Munich. There, in front of 74,000 spectators, they rode bikes with an output of 48 hp.")
    How many spectators does the press release mention? -> 74,000
    What output does the press release give? -> 48 hp
    """
    for pattern, asked, number, word in ((COUNT, COUNTED, 1, 2), (OF_AMOUNT, MEASURED, 2, 1)):
        for match in (match for span in page.sentences for match in pattern.finditer(page.flat, *span)):
            words = match[word].strip()
            *others, last = words.split()
            if pattern is COUNT:
                sound = re.search(r"\d{3}", match[1]) or re.search(r"\d\d", match[1]) and CROWD.search(last)
            else:
                unit = re.search(r"€|\S+$", match[2])[0]  # of several prices none is "the price"
                unit = MONEY if re.match(MONEY, unit) else f"(?<![a-z]){re.escape(unit)}"
                sound = MEASURE.search(last) and len(re.findall(unit, page.plain)) == 1
            once = len(re.findall(rf"\b{re.escape(last)}\b", page.plain, re.I)) == 1
            vague = VAGUE.search(words) or PRONOUN.search(words) or set(others) & FINITE.keys()
            part = INCOMPLETE.match(page.flat, match.end(), match.endpos)
            part = part or OF_SEVERAL.search(page.plain, 0, match.start(number))
            if sound and once and words.islower() and not vague and not part:
                yield tuple(question.format(words) for question in asked), *match.span(number)


# ---------------------------------------------------------------------------------------------------------------------
# Definitions, sections and lists

IS_A = re.compile(r" ((?:an?|the|one of|home to) [^,;:–]{12,200}?)(?:$|,|[;:]| [–] | and (?:is|was|has|will|are)\b)")
APPOSED = re.compile(
    rf"\b({CAPITAL}(?: {CAPITAL})+), (an? (?!long |lot |little |few )[a-z][^,.;:–()“”]{{12,90}})(?=[,.](?!\d))"
)
ABBREVIATION = re.compile(rf"((?:{CAPITAL} )+)\(([A-Z]{{2,6}})\)")
NAMED_THING = re.compile(rf"(?!{MONTH})(?:The (?:[a-z]+ )?)?{CAPITAL}(?: (?:{CAPITAL}|\d+|of|and|the))+")
ADDRESS = re.compile(rf"{CAPITAL}(?: {CAPITAL})*, {CAPITAL}(?: {CAPITAL})*")  # a dateline, over a list
BULLET = re.compile(r"(?:^|\n)[ \t]*([-–•]) +(\S[^\n]*?)[.,;*]*[ \t]*(?=\n|$)")


def definition(page: Page) -> Found:
    """What something named is, and what an abbreviation stands for.

    >>> show("definition", "Munich. Quiet Drive is a service for electric cars. The Easy Ride Clutch (ERC) is new.")
    What is Quiet Drive? -> a service for electric cars
    What does ERC stand for? -> Easy Ride Clutch
    """
    for match in ABBREVIATION.finditer(page.plain, page.start):
        words, end = " ".join(match[1].split()[-len(match[2]) :]), match.end(1) - 1
        if "".join(word[0] for word in words.split()) == match[2]:
            yield (f"What does {match[2]} stand for?", f"What is {match[2]} short for?"), end - len(words), end
    for match in APPOSED.finditer(page.plain, page.start):
        listed = ENUMERATION.match(page.plain, match.end()) or page.plain[match.start() - 2] in ",&"
        before = r"\b(?i:(?:his|her|its|their|the)(?: [a-z-]+)?|from|of|in|at|near) $"  # "Eva from Ulm, a former …"
        listed = listed or re.search(before, page.plain[: match.start()])
        quoted = match[1][-1] in "’'"
        if not listed and not quoted and not NO_SUBJECT.match(match[1]) and not set(match[2].split()) & FINITE.keys():
            yield f"{'Who' if is_person(match[1], page.people) else 'Who or what'} is {match[1]}?", *match.span(2)
    for clause in page.clauses:
        match, subject = (
            IS_A.match(page.flat, clause.rest[0], clause.sentence[1] - 1),
            page.flat[slice(*clause.subject)],
        )
        if not match or clause.aux not in ("is", "are") or clause.base:
            continue
        if ENUMERATION.match(page.flat, match.end(1)):
            continue
        if NAMED_THING.fullmatch(subject) and not re.search(r"BMW (?:Group|AG)$", subject):
            wh = "Who" if is_person(subject, page.people) else "What"
            yield ask(page, clause, wh, clause.rest), *match.span(1)


def inner(text: str) -> str:
    """Text to stand in quotation marks: its own become single ones."""
    return re.sub(r'["“](?=\w)', "‘", tidy(text)).replace("”", "’").replace('"', "’").rstrip(":")


def section(page: Page) -> Found:
    r"""What a sub-heading's section says: its first sentence.

    >>> show("section", "Rain at noon\n\nIt rained in Garmisch at noon. The race went on.")
    How does the section “Rain at noon” begin? -> It rained in Garmisch at noon.
    """
    sentences = dict(page.sentences)
    for (start, end), below in zip(page.paragraphs, page.paragraphs[1:], strict=False):
        text, first = page.plain[start:end], (below[0], sentences.get(below[0], below[0]))
        heading = 2 <= len(text.split()) <= 14 and not re.search(rf"[.!…:,”]$|\n|{DAY}", page.context[start:end])
        heading = heading and not NOT_PROSE.search(text)
        if heading and 5 <= len(page.plain[slice(*first)].split()) <= 40:
            yield (
                (f"How does the section “{inner(text)}” begin?", f"What is the first sentence under “{inner(text)}”?"),
                *first,
            )


def lists(page: Page) -> Iterator[tuple[str, list[Span]]]:
    """Each simple list with its heading: one kind of bullet, two items or more, each of one sentence at most."""
    heading, items = "", []
    for start, end in [*page.paragraphs, (0, 0)]:
        text = page.context[start:end]
        found = [(start, match) for match in BULLET.finditer(text)]
        if found and len(found) == len(text.splitlines()):  # a table may have some lines with a dash
            items += found
            continue
        if heading and len(items) > 1 and not any(re.search("[.!?] [A-Z]", item[2]) for _, item in items):
            yield heading, [(offset + item.start(2), offset + item.end(2)) for offset, item in items]
        is_heading = 1 < len(text.split()) <= 12 and not NOT_PROSE.search(text) and not ADDRESS.fullmatch(text)
        heading = inner(text) if is_heading else ""
        items = []


def listing(page: Page) -> Found:
    r"""What a list names first or last, or says under one of its labels.

    >>> show("list", "The prices:\n\n- Day ticket: 12 euros\n\n- Annual pass: 39 euros")
    What does the list “The prices” say about “Day ticket”? -> 12 euros
    What does the list “The prices” say about “Annual pass”? -> 39 euros
    """
    for heading, items in lists(page):
        labels = [re.match(r"([^:]{3,50}): +(?=\S)", page.context[start:end]) for start, end in items]
        if all(labels):
            for label, (start, end) in zip(labels, items, strict=True):
                of, under = f"say about “{inner(label[1])}”?", f"what is given for “{inner(label[1])}”?"
                yield (f"What does the list “{heading}” {of}", f"Under “{heading}”, {under}"), start + label.end(), end
        else:
            yield f"What comes first in the list “{heading}”?", *items[0]
            yield f"What comes last in the list “{heading}”?", *items[-1]


# ---------------------------------------------------------------------------------------------------------------------
# Gaps: any sentence of 6 to 30 words, those too whose grammar is too tangled for the rules above

FIGURE = re.compile(
    rf"(?<!:)(?<!number )(?<!No\. )(?<!\d-)(?<!\d–)(?<!\d to )(?<!\d and )(?<!\d or )"
    rf"{ABOUT}(?:{NUMBER} ?{UNIT}|€ ?{DIGITS}(?: [mb]illion)?"
    rf"|(?<![\w/.,#-])(?<![A-Z] )(?!{YEAR})\d[\d.,]*\d(?: [mb]illion)?"
    r"(?= (?!and|or|to|of|out|per|[mb]illion)[a-z]{3}))(?![\w%])"
)
AFTER_TOWN = (  # but not "in Tamil script", "in Frozen Blue metallic"
    "in|on|at|and|or|as|by|for|from|to|with|until|during|after|before|since|near|between|over|under|through|via|against"
    "|than|where|who|which|that|when|while|but|because|is|are|was|were|will|can|has|have|had|again|alone|too|only|also"
    "|today|next|last|this|every|each|the|once|instead"
)
TOWN = re.compile(
    rf"(?<= in )(?!{MONTH}|{WEEKDAY}|BMW|MINI|[A-Z][A-Z\d]){CAPITAL}(?: {CAPITAL})*"
    rf"(?=,|\.$| (?:{AFTER_TOWN})\b)"
)
NO_TOWN = re.compile(
    r"(?:seats|finish|paint|coat|colou?r|trim|upholst|leather|livery|lacquer|band|caps|roof|look)\w*\b[^.]*$"  # colours
    r"|[’']|(?:ish|ian|ese|German|French|Dutch|Czech)$|(?:White|Red|Blue|Green|Black|Gr[ae]y|Silver|Orange|Yellow)\b[^.]*$"
)
NO_GAP = re.compile(r"""[“”"„…•]|/100 ?km|,['’] |\): """)  # a quotation, a list, a heading before its colon
REFERS = re.compile(r"\b(?:this|these|those|it|he|she|they|him|them)\b", re.I)  # to the sentence before
NEGATED = re.compile(r"\b(?:not?|none|never|nor)\b|n’t\b", re.I)  # "not because of their age"
LASTS = re.compile(r" (?:seconds|minutes|hours|days|weeks|months|years)$")
GAPS = (  # how it is asked for, what is missing, what it looks like
    ("Why", "reason", REASON),
    ("Where", "place", TOWN),
    ("When", "date", WHEN),
    ("Who", "name", None),  # one of the article's people
    ("Which model", "model", MODEL),
    ("How much or how many", "figure", FIGURE),
)


def gap(page: Page, gaps: Sequence[tuple] = GAPS) -> Found:
    """What is missing in a sentence: of `gaps`, by default a reason, a place, a date, a name, a model or a figure.

    >>> show("gap", "Munich. The Hill Race, long sold out, was held in Ulm on 3 May 2024.")
    Where: “The Hill Race, long sold out, was held in … on 3 May 2024”? -> Ulm
    When: “The Hill Race, long sold out, was held in Ulm on …”? -> 3 May 2024
    """
    people = [re.escape(name) for name in sorted(page.people)] or ["(?!)"]
    people = re.compile(rf"(?<! at )(?<! in )(?<! of )(?<! from )\b(?:{'|'.join(people)})(?!\w)")
    for start, end in page.sentences:
        text = page.plain[start:end]
        if not 6 <= len(text.split()) <= 30 or NO_GAP.search(text):
            continue
        for wh, thing, pattern in gaps:
            found = list((pattern or people).finditer(page.plain, start, end))
            if len(found) != 1:
                continue
            left, right = found[0].span(found[0].lastindex or 0)  # the group of a pattern that has one
            right -= right == end and page.plain[left:right].endswith(".")
            before, missing, after = (page.plain[slice(*span)] for span in ((start, left), (left, right), (right, end)))
            named = re.search(rf" (?!{MONTH}){CAPITAL}", before + after)
            vague = not named and (REFERS.search(before + after) or len((before + after).split()) < 8)
            no_place = thing == "place" and (NO_TOWN.search(before + missing) or NO_PLACE.search(missing.lower()))
            half = re.match(r" and |, (?!and|but|while)", after)  # of a reason
            no_reason = thing == "reason" and (NEGATED.search(before) or half or PRONOUN.search(missing))
            if not vague and not no_place and not no_reason:
                how = "How long" if thing == "figure" and LASTS.search(missing) else wh
                rest = f"“{before}…{after.rstrip('.')}”?".replace("*", "")
                asked = f"{how}: {rest}", f"Which {thing} is missing from {rest}", f"Which {thing} completes {rest}"
                yield asked, left, right


RULES = {
    "quote": quote, "office": office, "person": person, "who": who, "which": which, "where": where, "when": when,
    "figure": figure, "mentioned": mentioned, "why": why, "definition": definition, "section": section, "list": listing,
    "gap": gap,
}  # fmt: skip
KINDS = (*ORIGINAL_KINDS, *RULES, "yes_no", "unanswerable")
A_TURN = {"why": 2, "where": 2, "when": 2, "who": 2, "which": 2, "figure": 2, "definition": 2, "gap": 4}  # others: one


def phrase(question: str | tuple[str, ...], rng: random.Random | None = None) -> str:
    """One of the phrasings of a question, the first without `rng`: phrase(("Who ran ?", "Who did?")) is "Who ran?"."""
    phrasings = (question,) if isinstance(question, str) else question
    return tidy(rng.choice(phrasings) if rng else phrasings[0])


def show(kind: str, text: str) -> None:
    """Print what one rule finds in a text, for the examples in this file."""
    page = read_page({"title": "", "date": "2025-05-02", "text": text}, train_splitter([]))
    for question, start, end in sorted(RULES[kind](page), key=lambda found: found[1]):
        print(phrase(question), "->", page.context[start:end])


# ---------------------------------------------------------------------------------------------------------------------
# Questions whose answer is no span: yes or no, and what this article does not say

LONG_MONTHS = [month for month in MONTHS if month not in ("February", "April", "June", "September", "November")]
SUPERLATIVE = re.compile(r"\b(?:one of the|first|last|only|most|least|best|[a-z]+est)\b")


def yes_no(page: Page, others: Sequence[Page], rng: random.Random) -> Iterator[tuple[str, str, Span | None]]:
    """(question, "Yes" or "No", what shows it): statements as they are, with another figure or month, and who is named.

    >>> article = {"title": "", "date": "2025-05-02", "text": "The Hill Race starts on 3 May in Ulm."}
    >>> for question, answer, _ in yes_no(read_page(article, train_splitter([])), [], random.Random(1)):
    ...     print(question, answer)
    Does the Hill Race start on 3 May in Ulm? Yes
    Does the Hill Race start on 3 March in Ulm? No
    """
    for clause in page.clear:
        question = ask(page, clause, "")
        if re.match(" (?:that|who|which|where) ", page.flat[clause.rest[1] :]) and SUPERLATIVE.search(question):
            continue  # "the first plant that …" is not the first plant
        if 6 <= len(question.split()) <= 24 and re.search(r"[A-Z0-9]", question[1:]) and not PRONOUN.search(question):
            yield question, "Yes", clause.sentence
            if (false := falsify(question, rng)) != question:
                yield false, "No", clause.sentence
    held = offices(page)
    for match in held:
        yield f"Does {match[1]} hold the office of {match[2]}?", "Yes", match.span()
        for other in rng.sample(held, min(len(held), 2)):
            if other[2] not in match[2]:
                yield f"Does {match[1]} hold the office of {other[2]}?", "No", match.span()
    for name in rng.sample(sorted(page.people), min(len(page.people), 1)):
        start = page.plain.index(name, page.start)
        yield f"Does the press release mention {name}?", "Yes", (start, start + len(name))
    words = page.plain.lower()
    strangers = sorted(name for other in others for name in other.people if name.split()[-1].lower() not in words)
    for name in rng.sample(strangers, min(len(strangers), 1)):
        yield f"Does the press release mention {name}?", "No", None


def falsify(question: str, rng: random.Random) -> str:
    """The question with another figure or month in place of its only one; unchanged where it has none, or several."""
    months = re.findall(rf"\b{MONTH}\b", question)
    open_end = rf"(?:the month of|after|before|since) (?:\d+ )?{MONTH}"  # a record for May may be one for June, too
    if len(months) == 1 and not re.search(open_end, question):
        long = re.search(r"\b(?:29|3[01])(?:th|st)?\b", question)  # there is no 31 April
        other = rng.choice([month for month in (LONG_MONTHS if long else MONTHS) if month != months[0]])
        return re.sub(rf"\b{months[0]}\b", other, question)
    figures = rf"(?<![-#.,/:\w])(?<![A-Z] )(?<!per )({DIGITS}|{'|'.join(WORDS)})"
    figures += rf"(?= (?:million |billion )?(?:{UNIT}|[a-z]{{4,}}s\b))"
    found = list(re.finditer(figures, question))
    vague = r"\b(?:more|less|fewer|over|least|up to|most|nearly|almost)\b"
    vague += r"|\b(?:after|in|within) (?:\w+ )?\w+ (?:day|week|month|year)s\b"
    if len(found) != 1 or re.search(vague, question):  # "after eight months" is not false because it is nine by now
        return question
    old = found[0][1]
    place = WORDS.index(old) if old in WORDS else 0
    digits = "123456789" if len(old) > 1 else "23456789"  # "1 days" would tell
    others = WORDS[max(0, place - 3) : place + 4] if old in WORDS else [digit + old[1:] for digit in digits]
    new = rng.choice([other for other in others if other != old])
    return question[: found[0].start()] + new + question[found[0].end() :]


SWAPPED = ("who", "which", "where", "when", "why", "figure")  # kinds whose questions tell what the article tells
FOREIGN = ("quote", "office", "person", "definition", "section", "list")  # those about something with a name
DATELINE = re.compile(rf"({CAPITAL}(?: {CAPITAL})*)\. (?=[A-Z“])")
AREA = re.compile(  # what has towns in it: that something was in Ulm is told by "in Germany"
    r"Europe|Asia|Africa|America|Australia|Bavaria|Brandenburg|Saxony|California|Carolina|Texas|[a-z]+land\b|[a-z]+stan\b"
    r"|Germany|Austria|Italy|France|Spain|Portugal|Belgium|Luxembourg|Denmark|Norway|Sweden|Hungary|Czech|Slovakia"
    r"|Slovenia|Croatia|Greece|Turkey|Britain|Kingdom|Ireland|States|Canada|Mexico|Brazil|Argentina|Uruguay|Chile|China"
    r"|Japan|Korea|India|Malaysia|Indonesia|Vietnam|Singapore|Morocco|Egypt|Kenya|Emirates|Qatar|Saudi|Israel"
)


def unanswerable(page: Page, others: Sequence[Page], pairs: Sequence[dict], rng: random.Random) -> Iterator[str]:
    """Questions that the article does not answer, each made like one of its `pairs`, so that no wording tells.

    The pair's own question with something else in it (`swapped`), or one of its kind about another article (`foreign`).

    >>> article = {"title": "", "date": "2025-05-02", "text": "The race was held in Ulm on 3 May."}
    >>> pair = {"kind": "where", "question": "Where was the race held on 3 May?"}
    >>> list(unanswerable(read_page(article, train_splitter([])), [], [pair], random.Random(0)))
    ['Where was the race held on 3 October?']
    """
    for kinds in rng.sample([SWAPPED, FOREIGN], 2):
        for pair in rng.sample(pairs, len(pairs)):
            if pair["kind"] not in kinds:
                continue
            if kinds is SWAPPED:
                yield from swapped(page, others, pair["question"], rng)
            else:
                yield from foreign(page, others, pair["kind"], rng)
    for kind in rng.sample(FOREIGN, len(FOREIGN)):  # for an article that answers no question of these kinds
        yield from foreign(page, others, kind, rng)


def swapped(page: Page, others: Sequence[Page], question: str, rng: random.Random) -> list[str]:
    """The question with a figure, month, town, model or person in it that the article lacks; none or one.

    SQuAD 2.0 calls that an entity swap (Rajpurkar, Jia and Liang 2018, "Know What You Don't Know", table 1).
    """
    towns = [name for name in TOWN.findall(page.plain) if not AREA.search(name)]
    datelines = [DATELINE.match(other.plain, other.sentences[0][0]) for other in others if other.sentences]
    swaps = [falsify(question, rng)]
    for own, theirs in (
        (towns, {match[1] for match in datelines if match}),
        (MODEL.findall(page.plain), {name for other in others for name in MODEL.findall(other.plain)}),
        (page.people, {name for other in others for name in other.people}),
    ):
        for name in sorted(set(own)):
            asked = re.compile(rf"(?<= )(?<! and ){re.escape(name)}(?!\w|,? [A-Z]| and [A-Z])")
            strange = sorted(  # no plural in a singular's place
                other
                for other in theirs
                if other.split()[:2] != name.split()[:2] and other.endswith("s") == name.endswith("s")
            )
            if strange and asked.search(question):
                swaps.append(asked.sub(rng.choice(strange), question))
    told, before = words_of(page.plain), words_of(question)
    fits = [swap for swap in swaps if (new := words_of(swap) - before) and not new & told]
    return rng.sample(fits, min(len(fits), 1))


def words_of(text: str) -> set[str]:
    """Its words, brands aside: sorted(words_of("a BMW X1")) is ["X1", "a"]."""
    return set(re.findall(r"\w+", text)) - {"BMW", "MINI"}


def foreign(page: Page, others: Sequence[Page], kind: str, rng: random.Random) -> list[str]:
    """A question of this kind about another article, most of whose names this one does not have; none or one."""
    found, words = [], page.plain.lower()
    for other in others:
        for phrasings, start, end in RULES[kind](other):
            question = phrase(phrasings, rng)
            names = set(re.findall("“([^”]+)”", question) or re.findall(rf"(?<=\s){CAPITAL}", question))
            names -= {*MONTHS, "BMW", "Group", "Head", "MINI"}
            lacking = sum(name.lower() not in words for name in names)
            if names and 2 * lacking >= len(names) and other.context[start:end].lower() not in words:
                found.append(question)
    return rng.sample(found, min(len(found), 1))


# ---------------------------------------------------------------------------------------------------------------------
# All pairs of an article


def find_pairs(
    article: dict,
    kinds: Sequence[str] = ORIGINAL_KINDS,
    limit: int | None = None,
    splitter: PunktSentenceTokenizer | None = None,
    others: Sequence[dict] = (),
    seed: int = 42,
) -> tuple[list[dict], Counter]:
    """(pairs, reasons): {"kind", "question", "answer", "evidence"} of an article, and what was left out and why.

    "evidence" is [start, end] in `article_context(article)`, or None where nothing in the text shows the answer. The
    original kinds come first, whatever `limit` is; the others take turns until it is reached, those of A_TURN first and
    with more than one pair. The last pair is a question without an answer, made with what `others`, articles, have.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds: got {unknown[0]!r}, need some of {', '.join(KINDS)}.")
    rng = random.Random(f"{seed}:{article['id']}")
    splitter = splitter or train_splitter([article["text"]])
    page, pairs, reasons = read_page(article, splitter), [], Counter()
    for kind in [kind for kind in ORIGINAL_KINDS if kind in kinds]:
        if span := original(page, kind, splitter):
            pairs.append(make_pair(kind, rng.choice(QUESTIONS[kind]), page.context[slice(*span)], span))
        else:
            reasons["title: empty" if kind == "title" else "about: no paragraph is a sentence"] += 1
    originals = len(pairs)
    rest = [other for other in others if other["id"] != article["id"]]
    rest = [read_page(other, splitter) for other in rng.sample(rest, min(OTHERS_READ, len(rest)))]
    often = [kind for kind in RULES if kind not in A_TURN]
    order = ["yes_no", *A_TURN, *rng.sample(often, len(often))]
    found = {kind: candidates(kind, page, rest, rng) for kind in order if kind in kinds}
    reasons.update({f"{kind}: nothing found": 1 for kind, queue in found.items() if not queue})
    turns = [found[kind][i :: A_TURN.get(kind, 1)] for kind in found for i in range(A_TURN.get(kind, 1))]
    asked, used = set(), Counter()
    for pair in filter(None, (pair for turn in zip_longest(*turns) for pair in turn)):
        start = pair["evidence"][0] if pair["evidence"] else -1
        sentence = next((span for span in page.sentences if span[0] <= start < span[1]), None)
        if limit is not None and len(pairs) >= limit:
            reasons[f"{pair['kind']}: over the limit"] += 1
        elif pair["question"] in asked:
            reasons[f"{pair['kind']}: asked before"] += 1
        elif sentence and used[sentence] == PER_SENTENCE:
            reasons[f"{pair['kind']}: enough from this sentence"] += 1
        else:
            asked.add(pair["question"])
            used[sentence] += 1
            pairs.append(pair)
    if "unanswerable" in kinds and (limit is None or limit > originals):
        kept = pairs[: None if limit is None else limit - 1]
        like = [pair for pair in kept if pair["kind"] in RULES]
        if question := next(unanswerable(page, rest, like, rng), None):
            reasons.update(f"{pair['kind']}: over the limit" for pair in pairs[len(kept) :])
            pairs = [*kept, make_pair("unanswerable", question, UNANSWERABLE, None)]
        else:
            reasons["unanswerable: nothing found"] += 1
    return pairs, reasons


def make_pair(kind: str, question: str, answer: str, evidence: Span | None) -> dict:
    """A pair as `find_pairs` gives it."""
    return {"kind": kind, "question": question, "answer": answer, "evidence": evidence and list(evidence)}


def candidates(kind: str, page: Page, others: Sequence[Page], rng: random.Random) -> list[dict]:
    """All pairs of one kind in random order; of Yes and No as many, taking turns."""
    if kind == "yes_no":
        pairs = [make_pair(kind, *found) for found in yes_no(page, others, rng)]
        rng.shuffle(pairs)
        sides = [[pair for pair in pairs if pair["answer"] == answer] for answer in rng.sample(["Yes", "No"], 2)]
        return [pair for both in zip(*sides, strict=False) for pair in both]

    def drawn(found: Found) -> list[dict]:
        pairs = [make_pair(kind, phrase(asked, rng), page.context[slice(*span)], span) for asked, *span in found]
        return rng.sample(pairs, len(pairs))

    if kind == "gap":  # a reason, a place, … in turn
        return list(filter(None, sum(zip_longest(*(drawn(gap(page, [one])) for one in GAPS)), ())))
    pairs = drawn(RULES[kind](page))
    if kind in ("where", "when", "why"):  # "When did work begin?": which work?
        pairs = [pair for pair in pairs if len(pair["question"].split()) > 4]
    return pairs


def main() -> None:
    """Print a random sample of the pairs of a folder of articles: kind | question | answer | article id."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", default=Path(__file__).parent / "data" / "sample" / "train", type=Path)
    parser.add_argument("--sample", type=int, default=150, help="pairs to print")
    parser.add_argument("--seed", type=int, default=7, help="of the sample; the pairs themselves have the default seed")
    parser.add_argument("--limit", type=int, default=16, help="pairs an article, as in notebook 2")
    options = parser.parse_args()
    articles = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.folder.glob("*.json"))]
    splitter = train_splitter(article["text"] for article in articles)
    rows = []
    for article in articles:
        pairs, _ = find_pairs(article, KINDS, options.limit, splitter, articles)
        rows += [" | ".join((pair["kind"], pair["question"], tidy(pair["answer"]), article["id"])) for pair in pairs]
    print(*sorted(random.Random(options.seed).sample(rows, min(options.sample, len(rows)))), sep="\n")


if __name__ == "__main__":
    main()
