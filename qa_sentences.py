"""How a press article becomes sentences a question can be made from: words, sentences, clauses, and the question.

No language model and no tagger: a short list of verbs, and patterns that would rather skip a sentence than misread it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer

MONTHS = "January February March April May June July August September October November December".split()
NEVER_LAST = "Dr Prof Mr Mrs Ms St No U.S U.K".split()  # abbreviations with which no sentence ends
ABBREVIATIONS = [word.lower() for word in NEVER_LAST] + (
    "nos ca approx incl excl max min vs jr sr inc corp ltd co gen e.v e.g i.e a.m p.m sept oct nov dec prev yr"
).split()
UNITS = "kw hp nm kwh km kg mm cm m g l s h".split()

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
    parameters.abbrev_types -= set(UNITS)  # a sentence may well end with one
    parameters.abbrev_types.update(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


NO_END = re.compile(rf"\b(?:{'|'.join(map(re.escape, NEVER_LAST))}|Ing|Dipl|Mag|Gebr)\.$")


def split(splitter: PunktSentenceTokenizer, text: str) -> list[Span]:
    """The sentences of a paragraph, where Punkt has cut behind an abbreviation as one.

    >>> split(train_splitter([]), "He met Dipl.-Ing. Weber. It rained.")
    [(0, 24), (25, 35)]
    """
    spans = []
    for start, end in splitter.span_tokenize(text):
        if spans and NO_END.search(text[: spans[-1][1]]):
            start = spans.pop()[0]
        spans.append((start, end))
    return spans


def paragraph_spans(context: str, start: int) -> list[Span]:
    """The stripped paragraphs of `context` from `start` on.

    >>> paragraph_spans("A title\\n1 May 2025\\n\\nOne.\\n \\n  Two.\\nlines ", 20)
    [(20, 24), (29, 39)]
    """
    return [match.span() for match in re.compile(r"\S(?:(?!\n\s*\n).)*(?<=\S)", re.S).finditer(context, start)]


NOT_PROSE = re.compile(
    r"\+\+\+|\t|^[*•]|^[-–] |^(ladies and|(a )?(very )?(warm )?welcome |dear |check against"
    r"|good (morning|afternoon|evening))"
    r"|^(in (case|the event) of |if you have any |for (further|more) |press contact|media contact|contact)"
    r"|^.{0,150}\bwelcome[^.]*!$|\b(phone|telephone|tel|fax|mobile|e-?mail|instagram|linkedin|youtube|facebook|x)\.? ?:|\w@\w|^(https?://|www\.)"
    r"|^[^.]{0,90}: ?(fuel|energy|electric|power)[^.]{0,20}consumption",
    re.I,
)
SENTENCE_END = re.compile(r"[.!?…][\"”’“')\]*]*$")


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is running text: no heading, teaser, contact, list, table or footnote.

    >>> [is_prose(text) for text in ("Rain at the start", "Phone: +49-89.", "Munich. The new plant opened on Monday.")]
    [False, False, True]
    """
    whole = len(paragraph) > 800 or SENTENCE_END.search(
        paragraph
    )  # an article in one paragraph may end in its contacts
    return bool(whole) and len(paragraph.split()) >= 6 and not NOT_PROSE.search(paragraph[:300])


# ---------------------------------------------------------------------------------------------------------------------
# Words

WORDS = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen twenty".split()
DIGITS = r"\d+(?:[.,]\d+)*"
NUMBER = rf"(?:(?<![#.,\w])(?:€\s?)?\b{DIGITS}|(?<!-)\b(?:{'|'.join(WORDS)}))(?:\s(?:million|billion))?\b"
NOT_DURING = "".join(  # "spread over two days" and "5 million over two years" are not more than two
    rf"(?<!{word} )"
    for word in (
        r"handed taken developed spread extend extends extended stretch stretches run runs ran \d million billion "
        "euros dollars pounds"
    ).split()
)
ABOUT = (
    r"(?i:(?:around|about|some|nearly|almost|roughly|approximately|exactly|just (?:over|under)|up to"
    rf"|(?:well )?{NOT_DURING}over|(?:no )?(?:more|less|fewer) than|at least"
    r"|as many as)\s)?"
)
UNIT = (
    r"(?:%|(?:per ?cent|percent|euros|(?:US )?dollars|pounds|cents|kroner|pesos|kW|kilowatts?(?!-)|megawatts?(?!-)|hp"
    r"|Nm|kWh|(?:kilo|mega|giga)watt-hours|km/h|mph|rpm|bar|km|kg|mm|cm|(?:kilo|centi|milli)?met(?:re|er)s?|miles|grams"
    r"|kilograms|tonnes|lit(?:re|er)s|(?:milli)?seconds|minutes|hours|days|weeks|months|years|degrees(?: Celsius)?"
    r"|gigabytes)\b)"
)
MONTH = f"(?:{'|'.join(MONTHS)})"
WEEKDAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
YEAR = r"\b(?:19|20)\d\d\b"
DAY = rf"(?:{WEEKDAY},?\s)?\d\d?\s{MONTH}\b(?:,?\s{YEAR})?"
DATE = rf"(?:{DAY}|{MONTH}\s{YEAR}|{YEAR}|(?:spring|summer|autumn|winter)\s(?:of\s)?{YEAR})"
CLOCK = r"(?:\sat\s\d\d?(?:[:.]\d\d(?:\s[ap]\.?m\.?)?|\s[ap]\.?m\.?))?"
CAPITAL = r"[A-ZÀ-ÖØ-ÞŠŽŁ][\w’'-]*"
TITLE = r"(?:(?:Prof|Dr|Mr|Ms|Mrs)\.?\s)+"
NAME = rf"{TITLE[:-1]}*{CAPITAL}(?: (?:(?:de|da|di|del|van|von|der|den|la|le|zu) )*(?:[A-Z]\.|{CAPITAL})){{1,3}}"
NO_NAME = re.compile(
    r"\b(?:BMW|MINI|Group|AG|GmbH|The|In|On|At|For|Team|Racing|Motorsport|Plant|Board|Head|M|Series|Photo|Phone|Motorrad"
    r"|Riders?|Drivers?|Pilots?|Statement|World|Director|Manager|Project|Product|Communications|Sciences|University"
    r"|Institute|Cent(?:re|er)|Academy|Association|Foundation|Museum|Now|And|But|So|For|Yet|When|While|As|After|Even"
    r"|Today|Also|Then|With|From|By|Both)\b"
    r"|Speedway|Circuit|International|Klub|Squad|Moto|Sports|Esports|Ring\b|Mans\b|Empire\b"  # a race track, a team
)
ROLE = (
    r"(?:(?:Senior |Deputy |Executive |Managing |Chief |Vice |Project |Product |Team |Technical |General |Plant )*"
    r"(?:Head|Director|CEO|CFO|Officer|Chair(?:man|woman)|Member of the (?:Board|Supervisory)|President|Manager"
    r"|Principal|Spokes(?:person|man|woman)|Designer|Curator|Founder)\b)"
)
DEPARTMENT = r" [A-Z][\w-]+(?: [A-Z][\w-]+)*"
DEPARTMENTS = rf"(?:(?<=AG),{DEPARTMENT}(?:(?:,?\sand|,){DEPARTMENT})*(?=[.,:;]))?"
OFFICE_ENDS = (
    rf"\d+[:.]\d+|who|since|and\s[a-z]+|said|says|in\s{CAPITAL}\son|Phone|Telephone|Tel|Mobile|Fax|Mail|E-?mail|Email"
)
OFFICE = rf"{ROLE}(?: (?!(?:{OFFICE_ENDS})\b)[^\s,.;:“”\"()]+)*{DEPARTMENTS}"
AFTER_OFFICE = re.compile(rf"{ROLE}[^.,:;“”]*, $")  # "Director of Exhibitions, Tate Modern said"
SAYS = "says|said|explains?|explained|adds|added|reports|reported|recalls|recalled|comments|commented|emphasi[sz]es"

# Verbs whose forms a question needs, by their infinitive
IRREGULAR = dict(
    pair.split(":")
    for pair in (
        "win:won take:took begin:began run:ran have:had hold:held bring:brought make:made build:built sell:sold "
        "lead:led come:came go:went give:gave become:became drive:drove rise:rose fall:fell grow:grew spend:spent "
        "leave:left stand:stood pay:paid show:showed draw:drew keep:kept get:got meet:met lie:lay cost:cost "
        "choose:chose lose:lost buy:bought teach:taught write:wrote send:sent see:saw break:broke ride:rode "
        "wear:wore"
    ).split()
)
INTRANSITIVE = (  # a preposition may follow: "opens in", "rose by"
    "open start end last join succeed serve operate reach total account climb increase decrease decline improve "
    "finish compete belong consist return move accelerate appear live work participate begin run come go "
    "become rise fall grow stand get take lie travel amount date contribute give drop sprint"
).split()
TRANSITIVE = (  # an object must follow, or "the car built in Munich" would be a clause
    "measure offer deliver feature provide present receive complete produce cover celebrate expect supply include "
    "combine comprise contain use employ secure score achieve add replace invest continue prove create develop launch "
    "introduce release publish host attract carry generate support donate recycle mark reduce extend require need "
    "weigh embody reflect enable claim welcome purchase handle collect conceal showcase enter defend describe display "
    "house illustrate explore design manufacture assemble acquire award appoint study train test evaluate examine "
    "visit help finance learn sign change ensure occupy affect form earn allow assume guide exceed surpass crown "
    "select attend cross process"
).split()
NOUNS = (  # "offers" and the like: nouns too, unless an object follows
    "offer feature supply start test measure cover use need end visit drive run win work launch move host mark reach "
    "claim return change sign form guide house study train design cost lead show rise fall stand "
    "account date support award release finish lie draw pay amount purchase help total travel display process"
).split()


def third(verb: str) -> str:
    """The form with he, she or it: third("carry") is "carries"."""
    ending = "es" if re.search("(?:o|ch|sh|ss|[^aeo]y)$", verb) else "s"
    return "has" if verb == "have" else re.sub(r"([^aeo])y$", r"\1i", verb) + ending


def past(verb: str) -> str:
    """The past tense: past("carry") is "carried"."""
    return IRREGULAR.get(verb) or re.sub(r"([^aeo])y$", r"\1i", verb).removesuffix("e") + "ed"


BE, HAVE, MODAL = ("is", "are", "was", "were"), ("has", "have", "had"), ("will", "can", "must", "should")
FINITE = {word: (word, "") for word in BE + HAVE + MODAL}  # finite verb: (first word, infinitive) in a question
for _verb in sorted({*IRREGULAR, *INTRANSITIVE, *TRANSITIVE}):
    FINITE = {_verb: ("do", _verb), past(_verb): ("did", _verb), third(_verb): ("does", _verb)} | FINITE
FINITE["cost"] = ("do", "cost")
ANY_FINITE = "|".join(FINITE)

# ---------------------------------------------------------------------------------------------------------------------
# Sentences


@dataclass(frozen=True)
class Clause:
    """A simple main clause, its spans in the context of its article."""

    sentence: Span
    lead: str  # "In 2024", before the subject
    subject: Span
    verb: Span
    aux: str  # the first word of a question: "did", "will"
    base: str  # what a question puts after the subject: "win", "be built"
    rest: Span  # up to where another clause begins


@dataclass(frozen=True)
class Page:
    """An article as the rules see it; `plain` and `flat` are as long as `context`, so a span fits all three."""

    context: str
    start: int  # of the text, after title and date
    plain: str  # with every white space a blank, line breaks outside of running text aside
    flat: str  # and with brackets blanked
    title: str
    paragraphs: list[Span]
    prose: list[Span]  # those that are running text
    sentences: list[Span]
    clauses: list[Clause]
    clear: list[Clause]  # those whose subject a reader knows who has not read the sentence before
    people: frozenset[str]


LEAD = re.compile(
    r"(?:In|On|At|Since|From|Until|By|During|Over|Between|After|Within|As of|For|With|Throughout|Despite|Each|Every)"
    r" [^,;:–]{2,90}, "
)
FILLER = re.compile(
    r"(?:In addition|In total|In all|Overall|Today|Currently|However|Furthermore|Moreover|Meanwhile|Finally|Now|Then"
    r"|Thus|At the same time|As always|Of course|As a result|Here|For example|And|But|Also|Again|Separately), "
)
BOUNDARY = re.compile(  # where another clause begins
    r"[,:](?!\d)|;|\s[–—-]\s(?!\d)|\s(?:because|so that|in order to|while|when|whereas|where|who|whose|although|though"
    r"|that|but|(?:(?:in|of|from|with|for|on|at) )?which|until (?!\d|[A-Z])|since (?!\d|[A-Z])|thanks to|due to"
    r"|owing to|as well as|as soon as|making|giving)\b"
    rf"|\sand\s(?=(?:{ANY_FINITE}|be|also|then|now|thus|shown|seen|taken|given|driven|\w+ed|\w+ly)\b)|(?=[.!?…]$)"
)
UNCLEAR = re.compile(  # what a question cannot say without the sentences around it
    r"\b(?:he|she|it|they|him|them|this|these|those|such|here|there|latter|respectively|others?|another|I|we|our|us|my|me"
    r"|you|your|not|never|nor|hardly|nobody|nothing|neither|if|unless|would|could|might|both|that|(?<!-)ones?(?!-| of)"
    r"|no(?! (?:more|less|fewer) than)|by then|(?:on|at|in) the same|\d+-year-old"
    r"|ago|since then|as a result(?! of)|in the process|in doing so|her(?= (?:to|in|at|from|on|with|by)\b))\b",
    re.I,
)
NO_SUBJECT = re.compile(
    r"^(?:One|Ever|Some|All|Each|Every|Many|Most|Few|More|Only|Even|Just|Not|What|Who|How|Why|Where|When|As|If|To|With|Without"
    r"|Here|Now|Today|Once|Afterwards|Its|Their|His|Her|Or|And|But|So|Yet|Up|Next|First|Second|Third|Last|Further|Thanks|Also|Another|Other"
    r"|In|On|Off|At|By|For|From|Of|After|Before|During|While|Because|Since|Like|Over|Under|Among|Between|\w+ing|\w+ly"
    r"|\w+ed (?:in|on|at|by|for|from|with|to))\b",
    re.I,
)
ADVERB = (
    r"(?: (?:also|always|long|just|now|already|currently|once again|again|still|recently|soon|then|therefore|today"
    r"|(?!(?:ap|sup|re|com|multi)p?ly\b|(?:f|ral)ly\b)\w+ly))?"
)
DONE = (
    r"(?:\w+(?:ed|wn|ing)|(?!ten|seven|eleven|open|women|men|children|even|often)\w+en|put|set|hit|born"
    rf"|{'|'.join(IRREGULAR.values())})\b"
)
PARTICIPLE = re.compile(rf"{ADVERB}((?: been| being)? {DONE}| been\b|)")
INFINITIVE = re.compile(rf"{ADVERB}( be\b(?: {DONE})?| \w+|)")
OBJECT = re.compile(
    r" (?:also |now |already )?(?:the|a|an|its|their|his|her|all|each|more|up to|over|around|about|only|just|no|new"
    r"|victory|pole position|part|first|second|third|fourth|fifth"
    rf"|special|(?<!ed )by(?= \d)|{CAPITAL}|“\w+|€?\d[\d.,]*|{'|'.join(WORDS)})(?=\W|$)"
)
PREPOSITION = re.compile(  # "rose by 5 %", but not "operated by"
    r" (?:in|on|at|from|to|with|until|into|as|through|between|over|up|around|about|out|of|place|for|well|underway"
    rf"|by(?! (?!{ABOUT}{NUMBER})))\b"
)
APPOSITION = re.compile(rf"([^,;:–]{{3,70}})(,[^,;:–]{{3,90}}(?:,[^,;:–]{{1,60}})?,)(?= (?:{ANY_FINITE})\b)")
ADJECTIVES = re.compile(  # "a modern, elegant look", where a comma ends no clause
    r" (?:an?|the|its)(?: [a-z]+ly)? [a-z-]+, (?!(?:which|who|where|when|with|and|but|while|so|as|in|on|at|of|for|from"
    r"|to|by|because|due|thanks|\w+ing)\b)[a-z-]+ [a-z]"
)
ENUMERATION = re.compile(
    rf" *,(?: +[^\s,;]+){{1,4}}(?: *,(?: +[^\s,;]+){{1,4}})*,? +(?:and|or|as well as) (?!(?:{ANY_FINITE})(?!\.))"
)
TRAILING = re.compile(
    r"(?: (?:also|thus|then|therefore|now|already|once again|again|alone|each"
    r"|(?!family|assembly|supply|rally)[a-z]+ly))+$"
)
HANGING = re.compile(r"\b(?:the|an?|of|for|in|and|to|at|on|with|by)$")
TOKEN = re.compile(r"[\w’'-]+|[^\s\w]")
NO_CLAUSE = {*";:–—/%", "that", "which", "who", "whose", "when", "where", "as", "because", "while"}
SECOND = re.compile(rf"\b(?:{'|'.join(BE + HAVE + MODAL)}|allows|ensures|makes|becomes|remains)\b")
QUOTATION = re.compile(r"[“\"„][^“”\"„]{30,}[”\"“]")
COMMAS = (  # inside a date or a place, where no clause ends
    re.compile(rf"day(,) \d|\d(,) {YEAR}|{MONTH}(,) {YEAR}"),
    re.compile(rf"\b(?:in|at|from|of|near) {CAPITAL}(,) {CAPITAL}(?=[,.])"),
)
JOINT = re.compile(r"(;|, (?:and|but|while|whereas)) (?=the |an? |[A-Z])")
NATIONAL = re.compile(r"\b(?:[A-Z]\w+(?:ish|ese|ian|can)|German|French|Dutch|Swiss)\s")
TOO_VAGUE = re.compile(
    r"the (?:first|second|third|next|previous|last|other|remaining|remainder|rest|result|average|idea|reason|region)\b",
    re.I,
)


def blank(text: str, pattern: str) -> str:
    """`text` with what matches replaced by as many spaces: blank("a (b) c", "[(]b[)]") is "a     c"."""
    return re.sub(pattern, lambda match: " " * len(match[0]), text)


def tidy(text: str) -> str:
    """One space between words, none before a comma: tidy("a  , b") is "a, b"."""
    return re.sub(r"\s+(?=[,.?])", "", " ".join(text.replace("‚", ",").split()))


def read_page(article: dict, splitter: PunktSentenceTokenizer) -> Page:
    """Split an article into paragraphs, sentences and simple clauses."""
    context, title = article_context(article), article["title"].strip()
    start = len(title) + len(written_date(article)) + 3
    paragraphs = paragraph_spans(context, start)
    texts = [context[slice(*span)] for span in paragraphs]
    if "The BMW Group" in texts:  # from here on the company describes itself, everywhere in the same words
        paragraphs = paragraphs[: texts.index("The BMW Group")]
    plain = re.sub(r"\s", " ", context)
    prose = [span for span in paragraphs if is_prose(context[slice(*span)])]
    for begin, end in paragraphs:
        if (begin, end) not in prose:  # a name in a list or a contact block ends with its line
            plain = plain[:begin] + re.sub(r"[^\S\n]", " ", context[begin:end]) + plain[end:]
    flat = blank(blank(plain, r"(?<=\s)\([^()]*\)"), r"\*+")
    for pattern in COMMAS:
        flat = pattern.sub(lambda match: match[0].replace(",", "‚"), flat)
    sentences, clauses, people = [], [], find_people(plain[start:])
    for begin, end in prose:
        opened, closed, straight = (plain.count(mark, begin, end) for mark in '“”"')
        if opened == closed and straight % 2 == 0:
            quoted = [match.span() for match in QUOTATION.finditer(plain, begin, end)]
            found = [(begin + left, begin + right) for left, right in split(splitter, context[begin:end])]
            sentences += [span for span in found if not any(a < span[1] and span[0] < b for a, b in quoted)]
    for begin, end in sentences:
        first = read_clause(flat, (begin, end), people)
        joints = [
            joint
            for joint in JOINT.finditer(flat, begin, end)
            if joint[1] == ";" or first and first.rest[1] <= joint.start()
        ]
        seconds = [read_clause(flat, (joint.end(), end), people) for joint in joints]
        clauses += [clause for clause in (first, *seconds) if clause]
    clear = [clause for clause in clauses if is_clear(flat, title, clause)]
    return Page(context, start, plain, flat, title, paragraphs, prose, sentences, clauses, clear, people)


def find_people(plain: str) -> frozenset[str]:
    """The full names of people: those with a title, a nation, an age or an office, or that say something.

    >>> sorted(find_people("Anna Berg (GER) met Dr Leo Kurz. “Good,” said Eva Lind, Head of Sales. BMW Group (ABC)"))
    ['Anna Berg', 'Eva Lind', 'Leo Kurz']
    """
    found = re.finditer(
        rf"(?<! at )(?<! in )(?<! near )({NAME})(?=,? \((?:[A-Z]{{3}}|\d\d)\)|, {ROLE}| (?:{SAYS})\b)", plain
    )
    found = [match[1] for match in found if not follows_office(plain, match.start())]
    found += re.findall(rf"\b(?:{SAYS}) ({NAME})", plain) + re.findall(rf"(?:Dr|Ms|Mr|Prof)\.? {NAME}", plain)
    names = {re.sub(f"^{TITLE}", "", name) for name in found}
    names = {name for name in names if " " in name and not NO_NAME.search(name)}
    return frozenset(name for name in names if f"({''.join(re.findall('[A-Z]', name))})" not in plain)  # abbreviated


def follows_office(plain: str, start: int) -> bool:
    """Whether what begins at `start` stands behind an office and a comma, and so is no person but where it is held.

    >>> follows_office("Eva Lind, Director of Exhibitions, Hill Modern said", 35)
    True
    """
    return bool(AFTER_OFFICE.search(plain, max(0, start - 90), start))


def is_clear(flat: str, title: str, clause: Clause) -> bool:
    """Whether a reader who has not just read the sentence before knows what the subject is."""
    text = NATIONAL.sub("", flat[slice(*clause.subject)])  # "a German version" of what?
    words = text.lower().split()
    if re.search(r"(?<=\s)[A-Z]", text) or words[0] not in ("the", "a", "an"):
        return True
    known = len(words) > 2 or words[-1] in title.lower() or flat.lower().count(words[-1]) > 2
    return known and not TOO_VAGUE.match(text)


def is_person(text: str, people: frozenset[str]) -> bool:
    """Whether `text` is the name of one of `people`, whole or the surname: is_person("Berg", {"Anna Berg"})."""
    name = re.sub(f"^{TITLE}", "", " ".join(text.split()))
    return name in people or any(full.endswith(" " + name) for full in people)


def read_clause(flat: str, sentence: Span, people: frozenset[str]) -> Clause | None:
    """The simple main clause at the beginning of a sentence, or None where a question about it could go wrong.

    >>> clause = read_clause("In 2024, the plant was built by Anna.", (0, 37), frozenset())
    >>> clause.lead, clause.aux, clause.base, clause.subject, clause.rest
    ('In 2024', 'was', 'built', (9, 18), (28, 36))
    """
    start, end = sentence
    text = flat[start:end]
    if not 4 <= len(text.split()) <= 50 or text[-1] != "." or re.search(r"\b(?:if|unless)\b", text, re.I):
        return None
    if filler := FILLER.match(text):
        start += filler.end()
    lead = LEAD.match(flat, start, end)
    if lead and SECOND.search(lead[0]):
        return None
    start = lead.end() if lead else start
    if (extra := APPOSITION.match(flat, start, end)) and not set(extra[1].split()) & FINITE.keys():
        flat = flat[: extra.start(2)] + " " * len(extra[2]) + flat[extra.end(2) :]
    verb = find_verb(flat, start, end)
    if not verb:
        return None
    names, place, after, aux, base = verb
    lead = lead[0].strip(" ,") if lead else ""
    if (
        re.search(r",(?!\d)", names)
        and not all(is_person(name, people) for name in split_names(names))
        or len(names.split()) > 14
    ):
        return None
    if (
        re.search(r" (?:after|before|since) ", names)
        or NO_SUBJECT.match(re.sub(rf"^{ABOUT}(?=\d)", "", names))
        or UNCLEAR.search(f"{lead} {names}")
        or re.search(r" (?:its|their|his|her) ", names)
        or re.fullmatch(f"{ABOUT}{NUMBER}", names)
        or HANGING.search(names)
    ):
        return None
    stop = BOUNDARY.search(flat, after, end)
    stop = stop.start() if stop else end
    if second := SECOND.search(flat, after, stop):
        stop = max(flat.rfind(" and ", after, second.start()), flat.rfind(" or ", after, second.start()))
    rest = flat[after : max(after, stop)]
    cut = (
        stop < 0
        or flat.startswith(":", stop)
        and not rest.strip()  # "The readers have chosen: …"
        or aux in HAVE  # "has initiated and engaged in more than 100 projects"
        and base
        and not rest.strip()
        and flat.startswith(" and ", stop)
        or flat.startswith((", at least", ", at most", ", except"), stop)
        or flat.startswith(" that", stop)
        and (base or not re.match(" (?:an?|the) ", rest))
    )
    if cut or ENUMERATION.match(flat, stop) or UNCLEAR.search(rest) or HANGING.search(rest.rstrip()):
        return None
    if ADJECTIVES.match(flat, flat.rfind(" ", 0, flat.rfind(" ", 0, stop)), end):
        return None
    return Clause(sentence, lead, (start, start + len(names)), (place, after), aux, base, (after, stop))


def find_verb(flat: str, start: int, end: int) -> tuple[str, int, int, str, str] | None:
    """(subject, place of the verb, its end, first word and infinitive of a question) of the first verb that is one.

    >>> find_verb("The plant has built cars.", 0, 25)
    ('The plant', 10, 19, 'has', 'built')
    """
    doubtful = False  # after a word that can be a verb but was none: a participle, a noun
    for match in TOKEN.finditer(flat, start, end):
        word, after = match[0], match.end()
        names = TRAILING.sub("", flat[start : match.start()].rstrip())
        if word in NO_CLAUSE:
            return None
        if not names or word not in FINITE:
            continue
        aux, base = FINITE[word]
        done = (INFINITIVE if word in MODAL else PARTICIPLE).match(flat, after)
        if word in BE + MODAL or word in HAVE and done[1]:
            base = done[1].strip()
            return None if base in ("not", "no", "never") else (names, match.start(), done.end(), aux, base)
        if word in HAVE:
            return names, match.start(), after, {"has": "does", "have": "do", "had": "did"}[word], "have"
        if word == "cost" and not is_plural(names):
            aux = "did"
        goes_on = base in INTRANSITIVE and PREPOSITION.match(flat, after) and not doubtful
        if (goes_on or OBJECT.match(flat, after)) and (aux != "do" or is_plural(names)):
            return names, match.start(), after, aux, base
        if aux == "does" and base not in NOUNS:
            return names, match.start(), after, aux, base
        doubtful = aux == "did"
    return None


def is_plural(subject: str) -> bool:
    """Whether a subject takes a plural verb: is_plural("Tickets for the race") is True."""
    head = re.split(r" (?:of|for|in|from|at|with|to|by) ", subject)[0]
    return " and " in subject or bool(re.search(r"[^su]s$", head))


def split_names(text: str) -> list[str]:
    """The members of a list: split_names("Anna, Ben and Eva") is ["Anna", "Ben", "Eva"]."""
    return re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", text.strip())


# ---------------------------------------------------------------------------------------------------------------------
# Questions


def subject_of(page: Page, clause: Clause) -> str:
    """A subject in the middle of a question: "The plant" becomes "the plant", a name stays as it is."""
    text = page.flat[slice(*clause.subject)]
    first, _, more = text.partition(" ")
    lower = text[0].lower() + text[1:]
    if first in ("The", "A", "An") or first.lower() in WORDS or re.match(rf"{ABOUT}\d", text):
        return lower
    name = is_person(text, page.people) or is_person(first, page.people) or re.match(f"{TITLE}|{WEEKDAY}|{MONTH}", text)
    if name or not first[1:].islower():
        return text
    phrase = not more or more[0].islower() and not re.match("and [A-Z]", more)  # "Production", "Production of the car"
    if phrase and re.search(r"(?:[ts]ion|ment|ity|ance|ness|[^s]s)$", first):
        return lower
    inside = re.search(rf"(?:[a-zà-ÿ,]|\b[A-Z]\.) {first}\b", page.flat)  # it has a capital inside of sentences too
    if phrase and (more or not inside) and re.search(rf"\b{first.lower()}\b", page.flat):
        return lower
    if more.startswith(tuple(page.people)) and first[-2:] not in ("’s", "'s"):  # "Driver Anna Berg"
        return lower
    if not more or inside:
        return text
    return text if re.match(r"[A-Z\d]|(?:(?:of|for|at|in|de|and) |d['’])[A-Z]", more) else lower


def told(page: Page, clause: Clause, start: int) -> str:
    """The words of a clause from `start` on, its lead at the end."""
    rest = re.sub(r" (?:also|therefore|thus|then)\b", "", page.flat[start : clause.rest[1]])
    return tidy(f"{rest} {clause.lead[:1].lower()}{clause.lead[1:]}?")


def ask(page: Page, clause: Clause, wh: str, gap: Span | None = None) -> str:
    """The question `wh` about a clause, its subject and verb inverted, without what stands in the gap.

    >>> article = {"title": "", "date": "2025-05-02", "text": "Anna won the Hill Race in Ulm."}
    >>> page = read_page(article, train_splitter([]))
    >>> ask(page, page.clauses[0], "Where", (36, 42))
    'Where did Anna win the Hill Race?'
    """
    start, end = clause.rest
    rest = page.flat[start : gap[0]] + " " + page.flat[gap[1] : end] if gap else page.flat[start:end]
    rest = re.sub(r" (?:already|only|just)\s*$", "", rest)
    lead = clause.lead[:1].lower() + clause.lead[1:]
    question = tidy(f"{wh} {clause.aux} {subject_of(page, clause)} {clause.base} {rest} {lead}?")
    return question[0].upper() + re.sub(r"(?<=\.\w)\?$", ".?", question[1:])
