"""The rules of qa_rules, on small texts written here and on the sample corpus; nothing is downloaded."""

import doctest
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import qa_rules
import qa_sentences
from qa_rules import KINDS, ORIGINAL_KINDS, UNANSWERABLE, article_context, find_pairs, train_splitter

ROOT = Path(__file__).parent.parent
SPANS = [kind for kind in KINDS if kind not in ("yes_no", "unanswerable")]
TEXT = """+++ A new record +++ Two races +++

Rain at the start

Munich. Anna Berg (GER) won the Hill Race in Garmisch on Sunday, 4 May 2025. The BMW iX3 is built in Debrecen.

“We have waited a long time for this day,” says Leo Kurz, Head of Sales at Berg Racing. “It was worth it.”

The Hill Race was cancelled in 2024 due to weather conditions. The plant in Ulm has around 5,300 employees.

If you have any questions, please contact:

Phone: +49-89-0"""


def make_article(text=TEXT, title="Hill Race won.", day="2025-05-12", name="T1EN"):
    return {"id": name, "url": "", "title": title, "date": day, "category": "", "teaser": "", "text": text}


@pytest.fixture(scope="module")
def corpus():
    articles = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("data/sample/train/*.json"))]
    return articles, train_splitter(article["text"] for article in articles)


def test_examples_in_the_docstrings_are_true():
    for module in (qa_rules, qa_sentences):
        result = doctest.testmod(module)
        assert result.attempted > 5 and result.failed == 0


def test_original_kinds_alone_are_the_default():
    article = make_article()
    pairs, reasons = find_pairs(article)
    assert [pair["kind"] for pair in pairs] == list(ORIGINAL_KINDS)
    assert [pair["answer"] for pair in pairs][:2] == ["Hill Race won.", "12 May 2025"]
    assert pairs[2]["answer"].startswith("Munich. Anna Berg (GER) won")
    assert not reasons


@pytest.mark.parametrize(
    "text", ["", "   \n\n ", "Heading only", "Phone: 1234 567.", "- Check against delivery –", "Ladies and Gentlemen,"]
)
def test_no_sound_first_paragraph_is_counted(text):
    pairs, reasons = find_pairs(make_article(text))
    assert [pair["kind"] for pair in pairs] == ["title", "date"]
    assert reasons == {"about: no paragraph is a sentence": 1}


def test_an_article_in_one_paragraph_gives_its_first_sentences(corpus):
    articles, splitter = corpus
    for article in articles[:5]:
        pairs, _ = find_pairs({**article, "text": " ".join(article["text"].split())}, splitter=splitter)
        assert 500 < len(pairs[2]["answer"]) <= qa_rules.ABOUT_LIMIT


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="got 'poem', need some of title, date, about"):
        find_pairs(make_article(), kinds=("title", "poem"))


def test_a_small_article_is_asked_what_people_ask():
    pairs, _ = find_pairs(make_article(), KINDS)
    answers = {pair["question"]: pair["answer"] for pair in pairs}
    assert "due to weather conditions" in (
        answers.get("Why was the Hill Race cancelled in 2024?"),
        answers.get("For what reason was the Hill Race cancelled in 2024?"),
    )
    assert answers["In which place is the BMW iX3 built?"] == "Debrecen"
    assert answers["How many employees does the plant in Ulm have?"] == "around 5,300"
    assert "Leo Kurz" in answers.values() and "Head of Sales at Berg Racing" in answers.values()


def test_pairs_of_the_sample_corpus_are_grounded_and_none_is_asked_twice(corpus):
    articles, splitter = corpus
    for article in articles:
        context = article_context(article)
        pairs, _ = find_pairs(article, KINDS, None, splitter, articles)
        assert len({pair["question"] for pair in pairs}) == len(pairs)
        for pair in pairs:
            assert re.search(r"[?]$", pair["question"]) and "\n" not in pair["question"]
            if pair["kind"] in SPANS:
                assert context[slice(*pair["evidence"])] == pair["answer"] == pair["answer"].strip() != ""
            elif pair["kind"] == "unanswerable":
                assert pair["answer"] == UNANSWERABLE and pair["evidence"] is None
            else:
                assert pair["answer"] in ("Yes", "No")
                assert pair["evidence"] or pair["answer"] == "No"


def test_an_average_article_gives_a_dozen_pairs_of_many_kinds(corpus):
    articles, splitter = corpus
    usual = [article for article in articles if 3500 < len(article["text"]) < 6000]
    found = [find_pairs(article, KINDS, 15, splitter, articles)[0] for article in usual]
    assert sum(len(pairs) == 15 for pairs in found) > 0.9 * len(found)
    assert sum(len({pair["kind"] for pair in pairs}) >= 7 for pairs in found) > 0.95 * len(found)
    said = Counter(pair["answer"] for pairs in found for pair in pairs if pair["kind"] == "yes_no")
    assert 0.7 < said["Yes"] / said["No"] < 1.4


def test_the_limit_never_cuts_the_original_kinds_and_the_rest_is_counted(corpus):
    articles, splitter = corpus
    everything, _ = find_pairs(articles[0], KINDS, None, splitter)
    pairs, reasons = find_pairs(articles[0], KINDS, 5, splitter)
    assert pairs == everything[:5]
    assert sum(count for reason, count in reasons.items() if "limit" in reason) >= len(everything) - 5
    assert [pair["kind"] for pair in find_pairs(articles[0], KINDS, 1, splitter)[0]] == list(ORIGINAL_KINDS)


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others(corpus):
    articles, splitter = corpus
    first, again, other = (find_pairs(articles[3], KINDS, 15, splitter, articles, seed)[0] for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    "question, thing, other",
    [
        ("Where was the race with 74 riders held?", "74", r"[1-689]4"),
        ("Where was the race held on 3 May?", "May", r"(?!May)[A-Z][a-z]+"),
        ("When was the race held in Ulm with the rest?", "Ulm", "Garmisch"),
        ("Where was the BMW M4 GT3 Evo shown?", "BMW M4 GT3 Evo", "BMW iX3"),
        ("Where did the fans see Anna Berg?", "Anna Berg", "Eva Lind"),
        ("Who is based in Ulm, Ohio?", None, None),
        ("When did the fans see Max Mayer and Anna Berg?", None, None),  # they saw one of them
        ("When was the race held in Germany with the rest?", None, None),  # Garmisch is in it
        ("Where did the race begin?", None, None),
    ],
)
def test_a_swapped_question_has_something_else_in_it_that_the_article_lacks(question, thing, other):
    here = make_article(
        "Ulm. The BMW M4 GT3 Evo of Anna Berg (GER) won in Ulm with the BMW M4 GT3 in May 2024 in Germany."
    )
    there = make_article("Garmisch. The BMW iX3 of Eva Lind (SWE) was shown in May.")
    here, there = (qa_sentences.read_page(article, train_splitter([])) for article in (here, there))
    for seed in range(5):
        found = qa_rules.swapped(here, [there], question, random.Random(seed))
        assert len(found) == (thing is not None)
        assert not found or re.fullmatch(re.escape(question).replace(re.escape(thing), other), found[0])


def test_no_question_without_answer_where_the_article_has_the_other_thing_too():
    page = qa_sentences.read_page(
        make_article(f"The race is held in {', '.join(qa_rules.MONTHS)}."), train_splitter([])
    )
    assert qa_rules.swapped(page, [], "Where was the race held in May?", random.Random(0)) == []


def test_questions_without_answer_are_made_like_those_with_one_and_alone_if_there_are_none(corpus):
    articles, splitter = corpus
    together = [find_pairs(article, KINDS, 16, splitter, articles)[0] for article in articles]
    untold = [(pairs[-1]["question"], [pair["question"] for pair in pairs[:-1]]) for pairs in together]
    twins = [min(len(set(question.split()) - set(other.split())) for other in others) for question, others in untold]
    assert 0 not in twins and sum(differ <= 3 for differ in twins) > len(articles) / 5
    alone = [find_pairs(article, ("title", "unanswerable"), 16, splitter, articles)[0] for article in articles[:5]]
    assert all([pair["kind"] for pair in pairs] == ["title", "unanswerable"] for pairs in alone)


@pytest.mark.parametrize(
    "sentence",
    [
        "They won the Hill Race in Garmisch on Sunday.",
        "This makes the Hill Race in Garmisch special.",
        "If it rains, the Hill Race will be held in Ulm on 3 May.",
        "The cars built in Munich and Leipzig last year, and those from Ulm.",
        "We opened the plant in Ulm in 2024.",
        "The Hill Race has never been won by Anna Berg.",
        "Tickets cost 15 euros or, for pupils, 9 euros.",
        "A German version is due on 3 May.",
        "The finished cars will be delivered to BMW dealers in Ulm.",
        "Anna Berg had just completed her last lap of the Hill Race.",
        "Her sister Eva Lind, a veterinary surgeon, drives the car.",
        "The museum in Ulm shows ‘Hill Tail’, a coachbuilt roadster and the second of four.",
        "Exactly ten years after Berg Racing was founded on 3 May, a show opens.",
        "The contract, which was due to expire this year, runs on.",
        "Eva Lind won the Hill Race in a car built in 1979 ahead of Max Mayer.",
        "The plant in Ulm is being rebuilt for the start of production in 2026.",
        "The new option is included in Hill Navigation.",
        "For the new edition, presented on Tuesday, 8.2 million cars in Ulm were taken into account on 3 May.",
        "Since the spring, 60 of its systems have been in use in Ulm.",
        "Hill Motors has created a collection of ten cars for clients in Ulm.",
        "Anna Berg finished third in the #233 MINI of Berg Racing.",
        "Anna Berg won the Hill Race in front of Eva Lind.",
        "The captain is Eva Lind from South Korea, a former champion of the world.",
        "Today the Hill Centre is the hub of the worldwide network.",
        "The plant in Ulm replaces two lines from 1998 that were slow.",
        "The Hill Village extends over 3,000 square metres.",
        "The bond in Ulm has a volume of 750 million euros and a coupon of 2.6%.",
        "The seats will be mounted in the M Manufaktur in Ulm.",
        "From 1955 to 1962, 161,728 were built in Ulm under licence.",
        "Documentation of the tour is published in a book and shown in Ulm.",
        "A new place, in Ulm, is due to follow in spring 2027, with the college.",
        "The rate of the Hill Test has fallen in Ulm as a result.",
    ],
)
def test_a_sentence_that_could_be_misread_is_left_alone(sentence):
    pairs, _ = find_pairs(make_article("Munich. " + sentence), ("who", "where", "when", "figure", "why", "definition"))
    assert pairs == []


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("The new plant opened on 3 May at 31 places.", "When did the new plant open at 31 places?", "3 May"),
        ("The BMW iX3 (CO₂ class: A–B; 17.9–15.1 kWh/100 km) is built in Ulm.*", "Where is the BMW iX3 built?", "Ulm"),
        ("Dr. Max de Martin joined Berg Racing in 1994.", "When did Dr. Max de Martin join Berg Racing?", "1994"),
        ("A factory museum was opened in Ulm back in 1966.", "Where was a factory museum opened back in 1966?", "Ulm"),
        ("Musée d'Orsay hosts the show on 9 May 2025.", "When does Musée d'Orsay host the show?", "9 May 2025"),
        ("Berg Racing sold 12 cars in the U.S. in 2024.", "When did Berg Racing sell 12 cars in the U.S.?", "2024"),
        ("The BMW iX3 was named best car at a gala in Ulm.", "Where was the BMW iX3 named best car?", "a gala in Ulm"),
        ("Start-ups can apply for a prize on 3 May.", "When can start-ups apply for a prize?", "3 May"),
        ("The Hill Race on Sept. 14 was held in 2024.", "When was the Hill Race on Sept. 14 held?", "2024"),
        ("The desert rally covers 12 stages.", "How many stages does the desert rally cover?", "12"),
        ("Ulm’s Eva Lind won the Hill Race on 3 May.", "When did Ulm’s Eva Lind win the Hill Race?", "3 May"),
        ("Reserve starts in Ulm on 3 May. Use Reserve to reserve.", "When does Reserve start in Ulm?", "3 May"),
        ("The new plant is to begin work in 2026 and be done in 2028.", "When is the new plant to begin work?", "2026"),
    ],
)  # fmt: skip
def test_forms_that_press_releases_love(text, question, answer):
    pairs = [find_pairs(make_article(text), ("where", "when", "figure"), seed=seed)[0] for seed in range(6)]
    assert (question, answer) in {(pair["question"], pair["answer"]) for some in pairs for pair in some}


@pytest.mark.parametrize(
    "sentence",
    [
        "The 212 drivers come from 34 countries.",
        "Her jersey with the number 10,000 hangs above her bed.",
        "Two cases with a volume of 27 litres each stand beside a tank of 18 litres.",
        "A rim costs a price of 690 euros, a seat 310 euros.",
        "The line is to make 1,200 bikes a day.",
        "At the Hill Race the Option 719 costs more.",
        "Up to now there had been 1,630 such visits.",
        "The car is sold at a price of €429 and the set costs 9,840 euros.",
        "On the first 300 trips it rained. Trips a day: 28.",
        "The engine of 1,300 cc it develops in Ulm.",
        "Deliveries rose from 198,000 (2018) to 271,400 vehicles (2025).",
        "The academy has space for up to 900 trainees.",
    ],
)
def test_what_is_counted_or_measured_twice_or_cut_off_is_not_asked_for(sentence):
    assert find_pairs(make_article("Munich. " + sentence), ("mentioned",))[0] == []


def test_an_office_keeps_departments_of_several_words():
    text = "“Good,” says Anna Berg, Member of the Board of Management of BMW AG, People and Real Estate."
    pairs, _ = find_pairs(make_article(text), ("office",))
    assert [pair["answer"] for pair in pairs] == [text[text.index("Member") : -1]]


@pytest.mark.parametrize("office", ["Events, Exhibitions and Sport", "Brand, Shows & Events", "Sales, Brands, Ulm"])
def test_an_office_of_several_departments_is_left_alone_where_its_end_is_not_clear(office):
    text = f"“Good,” says Anna Berg, Head of {office}."
    assert find_pairs(make_article(text), ("office", "person"))[0] == []


def test_a_name_in_a_contact_block_is_on_one_line():
    text = "“Good,” says Eva Lind.\n\nCorporate Communications\nAnna Berg, Head of Sales News\nPhone: 1"
    pairs, _ = find_pairs(make_article(text), ("office", "person"))
    assert [pair["answer"] for pair in pairs] == ["Head of Sales News", "Anna Berg"]
    assert qa_sentences.find_people("Corporate Communications, Head of Sales, and Anna Berg, Head of Sales") == {
        "Anna Berg"
    }


def test_an_organisation_between_an_office_and_its_verb_is_no_person():
    text = "Eva Lind, Director of Exhibitions, Hill Modern said: “We have waited a long time for this day.”"
    assert find_pairs(make_article(text), ("quote",))[0] == []


def test_a_quotation_is_not_by_who_speaks_next():
    words = "“In this year we have once again delivered more than 200,000 motorcycles.”"
    text = f"Anna Berg, Head of Sales: {words} Leo Kurz, Head of Design, adds: “The new one is ours.”"
    pairs, _ = find_pairs(make_article(text), ("quote",))
    assert [pair["answer"] for pair in pairs if "200,000" in pair["question"]] == ["Anna Berg"]


def test_what_is_operated_by_someone_does_not_operate():
    text = "At launch, 210 posts operated by Hill Energy support the test, and rose by 5 % in Ulm."
    *_, base = qa_sentences.find_verb(text, 11, len(text)) or ("",)
    assert base != "operate"
    assert qa_sentences.find_verb("Sales rose by 5 % in Ulm.", 0, 25)[4] == "rise"


def test_a_reason_ends_where_something_else_happened():
    text = "The Hill Race in Ulm was first postponed due to rain and then cancelled altogether."
    (pair,) = find_pairs(make_article(text), ("why",))[0]
    assert pair["answer"] == "due to rain"


def test_nothing_is_said_where_a_colon_says_it():
    text = "The readers of the Hill Journal have chosen: with 31.4 percent of the votes the BMW i5 was elected."
    assert find_pairs(make_article(text), ("yes_no",))[0] == []


def test_a_list_item_ends_without_its_semicolon():
    pairs, _ = find_pairs(make_article("The most valuable:\n\n– an R 37 from 1925;\n\n– an R 5;"), ("list",))
    assert {pair["answer"] for pair in pairs} == {"an R 37 from 1925", "an R 5"}


def test_who_introduces_the_next_quotation_has_not_said_the_one_before():
    first, second = "“That is why the vest works on any motorcycle.”", "“We build 300 prototypes a year in Ulm.”"
    pairs, _ = find_pairs(make_article(f"“It is safe,” says Eva Lind. {first} Leo Kurz adds: {second}"), ("quote",))
    assert [pair["answer"] for pair in pairs if "vest" in pair["question"]] == []
    assert qa_sentences.find_people("And Kurz adds: “Good.” The Innovation Centre (FIZ) did not.") == set()


def test_a_table_with_some_dashes_is_no_list():
    text = "Sales at a glance\n\nBMW 528,906 +2.1%\n- BMW M 53,871 +6.2%\n- BMW i 9,871 +3.2%"
    assert find_pairs(make_article(text), ("list",))[0] == []
    assert len(find_pairs(make_article(text.replace("BMW 5", "- BMW 5")), ("list",))[0]) == 2


def test_a_race_track_in_its_country_is_no_driver():
    assert qa_sentences.find_people("They won at Watkins Glen (USA), in Le Mans (FRA), and with Anna Berg (GER).") == {
        "Anna Berg"
    }


def test_a_company_is_no_team():
    asked = set()
    for name in ("The BMW Group", "Berg Racing"):
        for seed in range(9):
            pairs, _ = find_pairs(make_article(f"{name} won the Hill Race in Garmisch."), ("who",), seed=seed)
            asked |= {(pair["question"].split(" won")[0], name) for pair in pairs}
    assert asked == {
        ("Who", "The BMW Group"),
        ("Which company", "The BMW Group"),
        ("Who", "Berg Racing"),
        ("Which team", "Berg Racing"),
    }


def test_a_date_and_a_place_are_no_heading():
    text = "{}\n\nIt rained in Garmisch at noon on Sunday. The race went on."
    found = [
        find_pairs(make_article(text.format(head)), ("section",))[0] for head in ("Ulm, 4 May 2025", "Rain in Ulm")
    ]
    assert [len(pairs) for pairs in found] == [0, 1]


def test_a_teaser_without_a_verb_is_not_what_an_article_is_about():
    teaser, text = "Strengthening the core values of the brand.", "Ulm. The Hill Race starts on 3 May in Garmisch."
    asked, sent = "Ms Berg, you have won again. What is new?", "Attached please find the report on May for download."
    for first, about in ((teaser, text), (asked, text), (sent, sent)):
        (pair,) = find_pairs(make_article(f"{first}\n\n{text}"), ("about",))[0]
        assert pair["answer"] == about
    (pair,) = find_pairs(make_article(teaser), ("about",))[0]
    assert pair["answer"] == teaser


def test_no_pattern_tries_the_same_words_again_and_again():
    """`(?:\\S+ ?)*$` did: twice as long with every letter in front of a blanked bracket."""
    text = f"Munich. BMW was seen as the winner of the {'Hill' * 6} (the {'long' * 9} one) at Garmisch."
    clock = time.perf_counter()
    find_pairs(make_article(text), KINDS)
    assert time.perf_counter() - clock < 1


def test_a_role_before_a_name_is_no_name():
    text = "Ulm. Anna Berg (GER) was tired. Driver Anna Berg and co-driver Eva Lind finished second in Ulm on 3 May."
    pairs, _ = find_pairs(make_article(text), ("when",))
    assert [pair["question"] for pair in pairs] == [
        "When did driver Anna Berg and co-driver Eva Lind finish second in Ulm?"
    ]


def test_no_question_without_answer_asks_for_what_is_mentioned(corpus):
    articles, splitter = corpus
    found = [find_pairs(article, ("unanswerable",), 12, splitter, articles)[0] for article in articles]
    assert not [pair for pairs in found for pair in pairs if re.search("mention|article state", pair["question"])]


@pytest.mark.parametrize(
    "sentence",
    [
        "British style is shown in Ulm with numerous parts featuring a modern, elegant look.",
        "Each session in Ulm is limited to six guests, so booking online is required on 3 May.",
        "Ten months ago the #33 of Berg Racing lost 22 minutes in the garage because its discs had broken in Ulm.",
        "1. Dries Vanthoor (BEL), Kevin Magnussen (DEN), #15, 242 laps",
        "Revenues 142,380 155,498 -8.4",
        "* Fuel consumption combined in l/100 km: 8.0–7.5. The values were determined on 1 July 2024.",
    ],
)
def test_a_paragraph_that_is_no_simple_sentence_gives_nothing(sentence):
    kinds = [kind for kind in KINDS if kind not in (*ORIGINAL_KINDS, "gap", "unanswerable")]
    assert find_pairs(make_article(sentence), kinds)[0] == []


@pytest.mark.parametrize(
    "sentence, missing",
    [
        ("While others waited, the race in Ulm was cancelled because of fog.", {"Ulm", "because of fog"}),
        ("The body is finished in Fathom Blue and the roof in Chalk White, as ever.", set()),
        ("The agreement, which is due to run until 2029, was signed by all of them.", set()),
        ("The lap of the #17 took 1:58.418 minutes on a track that was drying slowly.", set()),
        ("Dynamic Brake Control (DBC) helps, as it always has, on every wet road.", set()),
        ("I do not tell you this in order to threaten anyone, nor because of my age.", set()),
        ("Her jersey with the number 10,000 hangs, as it always has, above her bed.", set()),
        ("He drove the BMW M2 CS Racing, which was new, to the end of the long race.", set()),
        ("Visitors are led through the work in Portuguese and English, as ever, for free.", set()),
        ("He has been with the company, as it was and as it is, for 35 years.", set()),
        ("The decline is, as ever, due to fog.", set()),
        ("As ever, the seats in Vescin, which is no town, are brown and soft.", set()),
        ("The doors show, as ever, the names of all the weavers in Tamil script.", set()),
        ("In the group, the cost of sales was, as ever, lower in Q3.", set()),
        ("When the lane is free, a glance suffices, as ever, in order to trigger it.", set()),
        ("The work, worth DKK 31 million over five years, was, as ever, given to BMW.", {"five years"}),
        ("Twenty-five years and several extensions later, the site has become one of the largest.", set()),
        ("The carbon footprint of Chinese steel is about 10 to 30 per cent smaller than that of others.", set()),
        ("Since the spring, the K 1600 models have been built, as ever, by hand.", set()),
        ("Not one vehicle was, as BMW says, lost because of fog.", set()),
        ("Of the two, the leading scorers in Spain’s Liga are Berg and Lind.", set()),
        ("The margin is expected to be good, with an outlook (previously: 8-10%) that is not.", set()),
        ("One in three kilowatt-hours comes, as ever, from gas that is bought.", {"three kilowatt-hours"}),
        ("BMW handed over 7,600 cars, and said so, without a word on motorcycles.", {"7,600"}),
        ("The decrease is, as BMW says, due to stocks, built up to cover weeks of work.", set()),
        (
            "Between the two, a BMW M4 GT3 Evo lost 14.2 seconds to a Porsche, or so it seemed.",
            {"BMW M4 GT3 Evo", "14.2 seconds"},
        ),
    ],
)
def test_a_gap_takes_out_what_its_question_asks_for(sentence, missing):
    assert {pair["answer"] for pair in find_pairs(make_article(sentence), ["gap"])[0]} == missing


def test_a_false_month_has_as_many_days():
    asked = {qa_rules.falsify("Does the race start on 31 May?", random.Random(seed)) for seed in range(50)}
    asked |= {qa_rules.falsify("Is it on 30th and 31st May?", random.Random(seed)) for seed in range(50)}
    assert len(asked) == 12 and not [question for question in asked if re.search("Feb|Apr|Jun|Sep|Nov|May", question)]


@pytest.mark.parametrize(
    "question",
    [
        "Was it a record for the month of May?",
        "Must it be made after 3 May?",
        "Has BMW built the K 1600 models in Ulm?",
        "Is the consumption measured per 100 kilometres?",
    ],
)
def test_what_another_month_or_figure_would_not_make_false_is_left_alone(question):
    assert qa_rules.falsify(question, random.Random(1)) == question


def test_a_false_month_leaves_names_alone():
    asked = qa_rules.falsify("Did Max Mayer win the Hill Race in Ulm in May?", random.Random(1))
    assert "Max Mayer" in asked and not asked.endswith("in May?")


def test_no_wording_tells_that_there_is_no_answer(corpus):
    """Most questions without an answer begin as others that have one do, names and figures aside."""
    articles, splitter = corpus
    openings = {True: Counter(), False: Counter()}
    for article in articles:
        for pair in find_pairs(article, SPANS[3:] + ["unanswerable"], 12, splitter, articles)[0]:
            question = re.sub(r"“[^”]*”|(?<= )[A-Z#\d]\S*", "X", pair["question"])
            openings[pair["kind"] == "unanswerable"][" ".join(question.split()[:3])] += 1
    told, untold = openings[False], openings[True]
    assert sum(untold.values()) == len(articles)
    assert sum(count for words, count in untold.items() if words not in told) < 0.1 * sum(untold.values())


def test_damaged_texts_never_crash_and_stay_grounded(corpus):
    articles, splitter = corpus
    rng = random.Random(0)
    damages = [
        lambda text: text.replace("\n\n", "\n"),
        lambda text: " ".join(text.split()),
        lambda text: text.replace(" ", "\n  ").replace("\n  \n", "\n"),
        lambda text: text[: rng.randrange(len(text))],
        lambda text: "".join(
            rng.choice([c, c, c, "\t", "\u202f", "“", '"', "(", "€"]) if c == " " else c for c in text
        ),
        lambda text: text.upper(),
    ]
    for damage in damages:
        for article in rng.sample(articles, 5):
            broken = {**article, "text": damage(article["text"])}
            context = article_context(broken)
            for pair in find_pairs(broken, KINDS, None, splitter, articles[:3])[0]:
                if pair["kind"] in SPANS:
                    assert context[slice(*pair["evidence"])] == pair["answer"] == pair["answer"].strip() != ""


def test_the_command_prints_pairs_to_read():
    command = [sys.executable, ROOT / "qa_rules.py", "--sample", "12", "--seed", "7"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout.splitlines()
    assert len(lines) == 12 and all(line.split(" | ")[0] in KINDS and "| T09" in line for line in lines)


def test_the_audit_says_of_every_pair_whether_it_is_accepted():
    rows = [json.loads(line) for line in (ROOT / "data" / "pair_audit.jsonl").read_text(encoding="utf-8").splitlines()]
    for source, least in (("sample", 150), ("real", 60)):
        some = [row for row in rows if row["source"] == source]
        assert len(some) >= least and sum(row["ok"] for row in some) >= 0.95 * len(some)
        assert all(("question" in row) == (source == "sample") and row["note"] for row in some if not row["ok"])
