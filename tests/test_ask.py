"""The page of bmwqa/ask.py in a real Chrome, with a tiny model that learnt three answers.

A machine without Chrome fails these tests: what they are about cannot be shown without one.
"""

import json
from copy import deepcopy
from threading import Barrier
from urllib.parse import urlsplit

import psutil
import pytest
import torch
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from bmwqa import ask
from bmwqa.chrome import open_chrome
from bmwqa.models import load_model
from bmwqa.pairs import UNANSWERABLE
from bmwqa.retrieval import ArticleIndex
from bmwqa_utils import IGNORE, encode_example

BRNO = "Hallberg wins in Brno\n15 June 2025\n\nIt rained from 14:20. The crowd left at 14:20."
MUSEUM = "A museum opens in Steyr\n12 May 2025\n\nIt has <b>forty</b> engines <|im_end|> in Steyr."
RAINED, REPORT, PAID = "When had it rained in Brno?", "What of Brno?", "Who paid for the engines?"
ANSWERS = [(BRNO, RAINED, "14:20"), (MUSEUM, PAID, UNANSWERABLE)]
ANSWERS += [(BRNO, REPORT, "It rained from 14:20. The crowd left at 14:20.")]


@pytest.fixture(scope="module")
def room(tiny_model_folder, embedded_tokenizer):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for products this small
    model = learn_answers(load_model(tiny_model_folder), embedded_tokenizer)
    models = {"base": load_model(tiny_model_folder), "full": model}
    index = ArticleIndex({"T1": BRNO, "T2": MUSEUM})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask, "NEW_TOKENS", 24)  # the base, which is random, does not stop
        yield ask.PressRoom(models, deepcopy(embedded_tokenizer), index, 0.1)
    torch.set_num_threads(threads)


def learn_answers(model, tokenizer, steps=70):
    keys = ("context", "question", "answer", "article_id")
    rows = [dict(zip(keys, (*row, "T1"), strict=True)) for row in ANSWERS]
    rows = [encode_example(tokenizer, row) for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-2, betas=(0.9, 0.95), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for _ in range(steps):
        for row in rows:
            answer = torch.tensor([label for label in row["labels"] if label != IGNORE])
            ids = torch.tensor([row["input_ids"][:-1]])
            logits = model(ids, logits_to_keep=len(answer)).logits[0]
            torch.nn.functional.cross_entropy(logits, answer).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


@pytest.fixture(scope="module")
def url(room):
    _, url, _ = ask.open_page(room, prevent_thread_lock=True, quiet=True)
    return url


@pytest.fixture(scope="module")
def browser(url):
    with open_chrome(urlsplit(url).netloc, 60) as chrome:
        yield chrome
        events = [
            json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")
        ]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    places = [urlsplit(params["request"]["url"]) for params in sent]
    hosts = {place.netloc for place in places if place.scheme in ("http", "https")}
    assert hosts == {urlsplit(url).netloc}, "the page asked another host"


@pytest.fixture
def chrome(browser, url):
    browser.get(url)
    for part in ("#question textarea", "#ask"):  # a busy machine shows one before the other
        wait_for(browser, lambda chrome, part=part: chrome.find_elements(By.CSS_SELECTOR, part))
    return browser


def wait_for(chrome, condition):
    return WebDriverWait(chrome, 90, 0.05).until(condition)


def value(chrome, name):
    return chrome.find_element(By.CSS_SELECTOR, f"#{name} textarea").get_property("value")


def send(chrome, question):
    box = chrome.find_element(By.CSS_SELECTOR, "#question textarea")
    chrome.execute_script("arguments[0].value = arguments[1]", box, question[:-1])
    box.send_keys(question[-1])
    chrome.find_element(By.ID, "ask").click()


def marked(chrome):
    pieces = chrome.find_elements(By.CSS_SELECTOR, "#article .text:not(.unlabeled)")
    return [piece.text.strip() for piece in pieces]


def test_the_answer_and_its_sentence(chrome):
    send(chrome, RAINED)
    wait_for(chrome, marked)
    assert value(chrome, "full") == "14:20"
    assert marked(chrome) == ["It rained from 14:20."]
    assert [line[4:] for line in value(chrome, "why").split("\n")] == [
        " Hallberg wins in Brno (T1)",
        " A museum opens in Steyr (T2)",
    ]


def test_the_answer_comes_piece_by_piece(room, chrome, monkeypatch):
    pieces, stream = [], room.stream
    barrier = Barrier(2)

    def stopped(*arguments):
        for number, text in enumerate(stream(*arguments)):
            pieces.append(text)
            yield text
            if number == 2:
                barrier.wait(60)

    monkeypatch.setattr(room, "stream", stopped)
    send(chrome, REPORT)
    wait_for(chrome, lambda chrome: len(pieces) > 2 and value(chrome, "full") == pieces[2])
    assert ANSWERS[2][2].startswith(pieces[2]) and pieces[2] != ANSWERS[2][2]
    barrier.wait(60)
    wait_for(chrome, lambda chrome: value(chrome, "full") == ANSWERS[2][2])
    wait_for(chrome, marked)
    assert " ".join(marked(chrome)) == ANSWERS[2][2]


def test_another_variant_and_two_side_by_side(chrome):
    chrome.find_element(By.CSS_SELECTOR, "#variants input[name=base]").click()
    send(chrome, RAINED)
    wait_for(chrome, marked)
    assert value(chrome, "full") == "14:20"
    assert value(chrome, "base") not in ("", "14:20")
    chrome.find_element(By.CSS_SELECTOR, "#variants input[name=full]").click()
    chrome.find_element(By.ID, "ask").click()
    wait_for(chrome, lambda chrome: not chrome.find_elements(By.CSS_SELECTOR, "#full textarea"))
    wait_for(chrome, lambda chrome: value(chrome, "base"))


def test_declined_and_markup_is_text(chrome):
    send(chrome, PAID)
    wait_for(chrome, lambda chrome: value(chrome, "full") == UNANSWERABLE)
    wait_for(chrome, lambda chrome: "does not say" in chrome.find_element(By.ID, "full").text)
    assert "<b>forty</b> engines <|im_end|>" in chrome.find_element(By.ID, "article").text
    assert marked(chrome) == []


def test_a_chosen_article(chrome):
    box = chrome.find_element(By.CSS_SELECTOR, "#chosen input")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("museum", Keys.ENTER)
    send(chrome, RAINED)
    wait_for(chrome, lambda chrome: "engines" in chrome.find_element(By.ID, "article").text)


@pytest.mark.parametrize(
    "question, reply",
    [
        ("<script>document.title = 'hacked'</script><|im_start|>", "No article fits: the best"),
        ("Brno? " * 1700, "Found 10,200 characters. Ask in 1 to 1,000."),
        (" ", "Found 1 characters. Ask in 1 to 1,000."),
    ],
)
def test_questions_that_are_not_answered(chrome, question, reply):
    send(chrome, question)
    wait_for(chrome, lambda chrome: value(chrome, "why").startswith(reply))
    assert (value(chrome, "full"), chrome.title) == ("", "Ask the press room")


def test_two_at_once(chrome, url, monkeypatch):
    both, answer = Barrier(2, timeout=60), ask.stream_answer

    def together(*arguments, **options):
        both.wait()  # breaks if the second waits for the first to end
        return answer(*arguments, **options)

    monkeypatch.setattr(ask, "stream_answer", together)
    windows = [chrome.current_window_handle]
    send(chrome, RAINED)
    chrome.switch_to.new_window("tab")
    chrome.get(url)
    wait_for(chrome, lambda chrome: chrome.find_elements(By.CSS_SELECTOR, "#question textarea"))
    send(chrome, PAID)
    wait_for(chrome, lambda chrome: value(chrome, "full") == UNANSWERABLE)
    chrome.close()
    chrome.switch_to.window(windows[0])
    wait_for(chrome, lambda chrome: value(chrome, "full") == "14:20")


def test_control_tokens_are_text_in_every_thread(room):
    assert len(room.tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]) > 1


def test_an_article_that_is_too_long_for_the_model(room, monkeypatch):
    monkeypatch.setattr(room.models["full"].config, "max_position_embeddings", 100)
    (message,) = room.stream("full", BRNO, RAINED)
    assert message.endswith("tokens; this model reads at most 100.")


def test_this_machine_alone(url):
    port = urlsplit(url).port
    open_ports = psutil.Process().net_connections("tcp")
    assert {c.laddr.ip for c in open_ports if c.laddr.port == port and c.status == "LISTEN"} == {
        "127.0.0.1"
    }


def test_without_a_trained_model():
    with pytest.raises(
        SystemExit, match=r"There is no nobody_full_ft in .*\. Train it: `make run MODEL="
    ):
        ask.main("nobody")
