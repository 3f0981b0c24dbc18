"""data_extraction.ipynb, pressclub.py and chrome.py against the local PressClub, in a real Chrome.

A machine without Chrome fails these tests: what they are about cannot be shown without one.
"""

import html
import json
import multiprocessing
import os
import random
import subprocess
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import papermill
import psutil
import pytest
import requests
from extraction_cells import NOTEBOOK, run_cells
from odd_pages import ODD, SKIPPED
from pressclub_site import (
    PressClub,
    article_page,
    filler_articles,
    odd_articles,
    page_form,
    sample_articles,
)

from bmwqa import chrome, pressclub
from bmwqa.corpus import language
from bmwqa_utils import load_articles

EVAL_IDS = [f"T{900101 + number:07d}EN" for number in range(12)]


@pytest.fixture
def site():
    """The site with the sample corpus and without a feed."""
    with one_host(sample_articles()) as site:
        yield site


@contextmanager
def one_host(articles: list[dict]):
    """A site without a feed; it points to another host, which nobody may contact."""
    with PressClub([]) as elsewhere, PressClub(articles) as site:
        site.elsewhere, site.feed = f"{elsewhere.url}/article", False
        yield site
        assert not elsewhere.log, "another host was contacted"


def parameters(site: PressClub, raw: Path, **others) -> dict:
    fast = {"BASE_URL": site.url, "RAW_DIR": str(raw), "DELAY": 0, "PAGE_SECONDS": 2}
    return fast | {"TARGET": 30, "EVAL_IDS": EVAL_IDS[:2]} | others


def files(raw: Path) -> dict[str, bytes]:
    """{path in `raw`: content} of the articles."""
    return {str(path.relative_to(raw)): path.read_bytes() for path in raw.rglob("T*.json")}


def requested_ids(site: PressClub) -> list[str]:
    """The id of each request for an article, in order."""
    return [path.rpartition("/")[2] for _, path in site.log if "/detail/" in path]


def polite(site: PressClub) -> pressclub.PoliteSite:
    return pressclub.PoliteSite(site.url, delay=0, page_seconds=2)


def shortest_pause(times: list[float]) -> float:
    return min(later - earlier for earlier, later in zip(times, times[1:], strict=False))


def manifest(raw: Path) -> dict:
    return json.loads((raw / "manifest.json").read_text(encoding="utf-8"))


def page_of(body: str, **others) -> str:
    article = {"title": "A title.", "date": "2025-08-14", "category": "Press Release"}
    article |= {"teaser": "A teaser.", "html": body}
    return article_page(article | others, java=False, side="")


# --------------------------------------------------------------------------------------------------
# The whole notebook


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The notebook as papermill runs it, 246 articles, and the seconds it took."""
    raw = tmp_path_factory.mktemp("raw")
    with one_host(sample_articles() + odd_articles() + filler_articles(200)) as site:
        started = time.monotonic()
        papermill.execute_notebook(
            str(NOTEBOOK),
            str(raw / "out.ipynb"),
            parameters(site, raw, TARGET=246, EVAL_IDS=EVAL_IDS),
            kernel_name="python3",
            cwd=str(NOTEBOOK.parent),
            progress_bar=False,
            coalesce_streams=True,
        )
        yield site, raw, time.monotonic() - started


def test_246_articles_in_a_minute_and_those_to_evaluate_never_in_train(whole_run):
    _, raw, seconds = whole_run
    train, evaluation = (load_articles(raw / split) for split in ("train", "eval"))
    assert [article["id"] for article in evaluation] == EVAL_IDS
    assert len({article["id"] for article in train} - set(EVAL_IDS)) == len(train) == 246 - 12
    assert seconds < 60


def test_a_run_prints_no_more_than_a_page_and_no_errors(whole_run):
    _, raw, _ = whole_run
    for cell in nbformat.read(raw / "out.ipynb", as_version=4).cells:
        for output in cell.get("outputs", []):
            assert output.get("name", "stdout") == "stdout", output.text
            assert len(output.get("text", "").splitlines()) <= 30


def test_every_sample_article_comes_through_its_page(whole_run):
    site, raw, _ = whole_run
    articles = load_articles(raw / "train") + load_articles(raw / "eval")
    written = {article["id"]: article for article in articles}
    for sample in sample_articles():
        article = written[sample["id"]]
        for key in ("title", "date", "category", "teaser"):
            assert article[key] == sample[key]
        assert article["url"] == f"{site.url}/article/detail/{sample['id']}"
        assert "Phone: +" not in article["text"]
        kept, paragraphs = article["text"].split("\n\n"), sample["text"].split("\n\n")
        assert [paragraph for paragraph in paragraphs if paragraph in kept] == kept
        contacts = [paragraph for paragraph in paragraphs if paragraph not in kept]
        assert not contacts or contacts[0].endswith("please contact:")
        assert all(len(paragraph) < 100 for paragraph in contacts[1:])


@pytest.mark.parametrize("article_id", ODD)
def test_every_odd_page(whole_run, article_id):
    _, raw, _ = whole_run
    path = raw / "train" / f"{article_id}.json"
    if article_id in SKIPPED:
        assert not path.exists()
        assert SKIPPED[article_id] in manifest(raw)["skipped"][article_id]
    else:
        assert json.loads(path.read_text(encoding="utf-8"))["text"] == ODD[article_id]["text"]


def test_the_manifest_says_what_happened_and_counts_each_request(whole_run):
    site, raw, _ = whole_run
    outcome = manifest(raw)
    assert set(outcome["fetched"]) == {Path(name).stem for name in files(raw)}
    assert set(outcome["skipped"]) == set(SKIPPED)
    assert outcome["failed"] == {} and outcome["browser"] == "worked"
    assert "HTTP 404" in outcome["feed"] and outcome["languages"] == {"EN": 246}
    assert len(outcome["found"]) == len(set(outcome["found"])) >= 234
    assert outcome["requests"] == len(site.log)
    article_ids = requested_ids(site)
    assert len(article_ids) == len(set(article_ids)) == 246 + 2  # an id tells the German article


def test_a_rerun_fetches_nothing_and_changes_nothing(whole_run):
    site, raw, _ = whole_run
    before = files(raw)
    site.log.clear()
    run_cells(parameters(site, raw, TARGET=246, EVAL_IDS=EVAL_IDS))
    assert set(requested_ids(site)) <= set(SKIPPED)
    assert files(raw) == before
    assert len(manifest(raw)["already_there"]) == 246


# --------------------------------------------------------------------------------------------------
# The feed, and other languages


def test_the_feed_gives_what_the_pages_give_for_a_fifth_of_the_requests(whole_run, tmp_path):
    site, raw, _ = whole_run
    by_page = {article["id"]: article for article in load_articles(raw / "train")}
    site.feed = True
    site.log.clear()
    run_cells(parameters(site, tmp_path, TARGET=246, EVAL_IDS=EVAL_IDS))
    site.feed = False
    by_feed = {article["id"]: article for article in load_articles(tmp_path / "train")}
    assert len(by_feed) == 234 and by_feed.keys() == by_page.keys()
    for article_id, article in by_feed.items():
        for key in ("url", "title", "date", "text"):
            assert article[key] == by_page[article_id][key]
    assert site.requests_for("rss2") <= 13
    assert len(site.log) == manifest(tmp_path)["requests"] < 246 / 5
    assert set(SKIPPED) <= set(manifest(tmp_path)["skipped"])


BOMB = "<!DOCTYPE rss [" + "".join(
    f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "boom"}">' for n in range(9)
)
FEEDS = {  # what /rss2 sends: what the manifest says
    "<rss><channel><item><title>x</item></channel></rss>": "not XML",
    f"{BOMB}]><rss><channel><item><title>&e8;</title></item></channel></rss>": "EntitiesForbidden",
    "<rss><channel><item>": "truncated page",
    "<rss><channel></channel></rss>": "0 articles",
}


@pytest.mark.parametrize("xml", FEEDS)
def test_a_broken_feed_costs_nothing_but_itself(site, tmp_path, monkeypatch, xml):
    monkeypatch.setattr(pressclub.time, "sleep", lambda seconds: None)
    site.feed = True
    site.answers["/global/rss2"] = (200, "application/rss+xml", xml.encode(), {})
    run_cells(parameters(site, tmp_path, TARGET=12))
    assert FEEDS[xml] in manifest(tmp_path)["feed"]
    assert len(load_articles(tmp_path / "train")) == 10 == site.requests_for("/detail/") - 2


def test_a_feed_that_cuts_its_articles_is_not_used(site, tmp_path):
    site.feed, rss = True, site._rss
    site._rss = lambda articles, number: rss(
        [a | {"html": a["html"][: len(a["html"]) // 2] + "…"} for a in articles], number
    )
    run_cells(parameters(site, tmp_path, TARGET=12))
    assert "the feed has another text of" in manifest(tmp_path)["feed"]
    for article in load_articles(tmp_path / "train"):
        assert not article["text"].endswith("…")


def test_an_empty_listing_is_an_error_that_says_where_even_if_the_feed_is_full(site, tmp_path):
    (tmp_path / "manifest.json").write_text("old")
    site.feed, site._feed = True, lambda number, java: ""
    with pytest.raises(RuntimeError, match="No article found") as error:
        run_cells(parameters(site, tmp_path, PAGE_SECONDS=0.6))
    assert f"{site.url}/article" in str(error.value) and "article.newsfeed" in str(error.value)
    assert not site.requests_for("rss") and not files(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == "old"


def test_items_of_the_feed():
    item = "<item><link>https://a.example/global/article/detail/{}?language=en</link>"
    item += "<title>A &amp;amp; B</title><pubDate>Thu, 4 Jun 2026 00:49:10 +0200</pubDate>"
    item += "<description>{}</description>"
    bodies = {"T0000001EN": "&lt;p&gt;5 &amp;euro; and 571&lt;sup&gt;1&lt;/sup&gt; km&lt;/p&gt;"}
    bodies |= {"T0000002EN": "", "T0000003DE": "The fair is open, and the text is for all."}
    bodies |= {"T0000004DE": "Die Messe ist für das Boot.", "../../x": "The text."}
    items = "".join(item.format(*pair) + "</item>" for pair in bodies.items())
    xml = f'<?xml version="1.0" encoding="UTF-8"?><rss><channel>{items}</channel></rss>'
    articles = pressclub.feed_articles(xml, "https://b.example/global/")
    assert {i: a["text"] for i, a in articles.items()} == {
        "T0000001EN": "5 € and 571 km",
        "T0000004DE": "Die Messe ist für das Boot.",
    }
    article = articles["T0000001EN"]
    assert (article["title"], article["date"]) == ("A & B", "2026-06-04")
    assert article["url"] == "https://b.example/global/article/detail/T0000001EN"


@pytest.mark.parametrize("feed", [False, True])
def test_german_articles_alone(tmp_path, feed):
    settings = {"TARGET": 20, "LANGUAGES": ["DE"], "EVAL_IDS": ["T0900203DE"], "PAGE_SECONDS": 1.2}
    with PressClub(sample_articles() + odd_articles()) as site:
        site.feed = feed
        run_cells(parameters(site, tmp_path, **settings))
    (train,), (evaluation,) = (load_articles(tmp_path / split) for split in ("train", "eval"))
    assert (train["id"], evaluation["id"]) == ("T0800001DE", "T0900203DE")
    for article in (train, evaluation):
        odd = ODD[article["id"]]
        assert all(article[key] == odd[key] for key in ("title", "date", "text"))
    outcome = manifest(tmp_path)
    assert outcome["languages"] == {"DE": 2}
    assert outcome["skipped"]["T0900204DE"] == "text is not DE, as the id says"
    assert outcome["skipped"]["T0900001EN"] == "in EN, says its id"


def test_too_few_articles_are_no_error_and_two_languages_are_counted_apart(tmp_path, capsys):
    settings = {"TARGET": 60, "LANGUAGES": ["EN", "DE"], "EVAL_IDS": [], "PAGE_SECONDS": 1.2}
    with PressClub(sample_articles()[:30] + odd_articles()) as site:
        run_cells(parameters(site, tmp_path, **settings))
    assert manifest(tmp_path)["found"] == [article["id"] for article in site.listing]
    assert manifest(tmp_path)["languages"]["DE"] == 2
    assert [line for line in capsys.readouterr().out.splitlines() if "is not DE" in line]


# --------------------------------------------------------------------------------------------------
# Faults of single pages

FAULTS = {  # fault: (how often it strikes, what the run says of the article)
    "busy": (1, "fetched"),
    "error": (2, "fetched"),
    "drop": (1, "fetched"),
    "truncated": (1, "fetched"),
    "halved": (1, "fetched"),
    "moved": (1, "fetched"),
    "gone": (1, "HTTP 404"),
    "pdf": (1, "got 'application/pdf', need HTML"),
    "away": (1, "redirect to another host"),
    "huge": (1, "larger than 5 MB"),
    "endless": (1, "not finished after 2 s"),
}


def test_faults_cost_only_their_article_and_the_rerun_mends_them(site, tmp_path):
    struck = dict(zip((article["id"] for article in site.listing[3:]), FAULTS, strict=False))
    for article_id, fault in struck.items():
        site.faults[article_id] = [fault] * FAULTS[fault][0]
    names = run_cells(parameters(site, tmp_path, TARGET=len(site.listing)))
    for article_id, fault in struck.items():
        outcome = names["outcomes"]["eval" if article_id in EVAL_IDS[:2] else "train"][article_id]
        assert FAULTS[fault][1] in " ".join(outcome), (fault, outcome)
    assert site.bytes_sent < 50_000_000, "the 50 MB page was read to its end"
    busy = next(article_id for article_id, fault in struck.items() if fault == "busy")
    first, second = (seconds for seconds, path in site.log if busy in path)
    assert second - first >= 1, "Retry-After was not waited for"

    before = files(tmp_path)
    failed = set(manifest(tmp_path)["failed"])
    assert failed == {i for i, fault in struck.items() if FAULTS[fault][1] != "fetched"}
    site.log.clear()
    run_cells(parameters(site, tmp_path, TARGET=len(site.listing)))
    assert set(requested_ids(site)) == failed
    after = files(tmp_path)
    assert before.items() <= after.items() and len(after) == len(before) + len(failed)
    load_articles(tmp_path / "train")


def test_a_site_that_wants_an_hour_is_left_alone(site, tmp_path):
    site.faults[site.listing[4]["id"]] = ["busy_for_an_hour"]
    names = run_cells(parameters(site, tmp_path, TARGET=20))
    outcomes = names["outcomes"]["train"].values()
    reasons = [reason for outcome, reason in outcomes if outcome == "failed"]
    assert reasons and all("pause of 3600 s" in reason for reason in reasons)
    assert site.requests_for("/detail/") == 2 + 5
    assert len(files(tmp_path)) == 2 + 4 and len(manifest(tmp_path)["failed"]) == len(reasons)


def test_a_site_that_is_down_is_not_hammered(site, monkeypatch):
    monkeypatch.setattr(pressclub.time, "sleep", lambda seconds: None)
    club = polite(site)
    for number in range(30):
        site.faults[f"/global/down/{number}"] = ["error"] * 4
        reason = "10 pages in a row failed .*again later" if number >= 9 else "HTTP 500, 4 times"
        with pytest.raises(pressclub.FetchError, match=reason):
            club.fetch(f"{site.url}/down/{number}")
    assert site.requests_for("/down/") == 10 * 4


SLUGS = ["récord-–-à-la-Å…-“Größe”\u202f", "plain-slug", "two%20words-%E2%80%93", "a b", "50%-off"]


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("form", ["{path}", "//{host}{path}", "http://{host}{path}", "../{name}"])
def test_redirects_ask_for_the_address_that_was_meant(site, slug, form):
    host = urlsplit(site.url).netloc
    name = f"detail/T0900001EN/{slug}"
    location = form.format(host=host, path=f"/global/article/{name}", name=name)
    headers = {"Location": location.encode().decode("latin-1")}  # UTF-8, byte by byte
    site.answers["/global/article/old/page"] = (302, "text/html", b"", headers)
    page = polite(site).fetch(f"{site.url}/article/old/page")
    assert site.articles["T0900001EN"]["title"] in html.unescape(page)
    requested = site.log[-1][1]
    assert requested.isascii() and unquote(requested) == f"/global/article/{unquote(name)}"


@pytest.mark.parametrize("form", ["//{}/x", "http://{}/x", "//{}é/x", "http://é@{}", "https:{}"])
def test_redirects_to_other_hosts_are_refused(site, form):
    location = form.format(urlsplit(site.elsewhere).netloc).encode().decode("latin-1")
    site.answers["/global/old"] = (302, "text/html", b"", {"Location": location})
    with pytest.raises(pressclub.FetchError, match="redirect to another host"):
        polite(site).fetch(f"{site.url}/old")


def test_a_redirect_to_no_address_is_named(site):
    site.answers["/global/old"] = (302, "text/html", b"", {"Location": "http://[::1/x"})
    with pytest.raises(pressclub.FetchError, match="redirect to an address that is none"):
        polite(site).fetch(f"{site.url}/old")


@pytest.mark.parametrize("pause", ["soon", "-5", "1.5"])
def test_a_pause_that_is_no_number_of_seconds_is_passed_over(site, monkeypatch, pause):
    monkeypatch.setattr(pressclub.time, "sleep", lambda seconds: None)
    site.answers["/global/x"] = (429, "text/html", b"", {"Retry-After": pause})
    with pytest.raises(pressclub.FetchError, match="HTTP 429, 4 times"):
        polite(site).fetch(f"{site.url}/x")


def test_a_crawl_delay_of_years_is_not_waited_for(site):
    site.robots = "User-agent: *\nCrawl-delay: 1e9\n"
    with pytest.raises(pressclub.FetchError, match="asks for 1,000,000,000 s between pages"):
        polite(site).fetch(f"{site.url}/article")


def test_redirects_to_the_host_in_capitals_are_followed(site):
    site.url = site.url.replace("127.0.0.1", "localhost")
    location = f"{site.url.upper().replace('/GLOBAL', '/global')}/article"
    site.answers["/global/old"] = (302, "text/html", b"", {"Location": location})
    assert "newsfeed" in polite(site).fetch(f"{site.url}/old")


TEXT = "<html>{}<p>“Größe” – it’s 5 €, “that’s all” …</p></html>"
UTF_8, WINDOWS = "utf-8", "windows-1252"


@pytest.mark.parametrize(
    ("content_type", "meta", "codec"),
    [
        ("TEXT/HTML; CHARSET=UTF-8", "", UTF_8),
        ('Text/Html ;  Charset = "Utf-8"', "", UTF_8),
        ("text/html;charset='utf8'", "", UTF_8),
        ("application/xhtml+xml", "", UTF_8),
        ("text/html;charset=ISO-8859-1", "", WINDOWS),
        ("text/html; charset=Latin1", "", WINDOWS),
        ("text/html; charset=x-unknown", "", UTF_8),
        ("text/html", "", UTF_8),
        ("text/html", "", WINDOWS),
        ("text/html", "", "utf-8-sig"),
        ("text/html; charset=ISO-8859-1", "", "utf-8-sig"),
        ("text/html", "", "utf-16"),
        ("text/html", '<meta charset="utf-8">', UTF_8),
        ("text/html", '<META CHARSET="latin1">', WINDOWS),
        ("text/html", '<meta content="text/html; charset=cp1250">', "cp1250"),
        ("text/html; charset=utf-8", '<meta charset="iso-8859-1">', UTF_8),
        ("text/html; charset=utf-8", "", WINDOWS),
    ],
)
def test_every_charset_comes_through(site, content_type, meta, codec):
    text = TEXT.format(meta)
    site.answers["/global/x"] = (200, content_type, text.encode(codec), {})
    assert polite(site).fetch(f"{site.url}/x") == text


def test_a_broken_byte_spoils_no_other(site):
    body = "<html><p>Größe: 5 – 6".encode() + b"\x96\x81 7</p></html>"
    site.answers["/global/x"] = (200, "text/html; charset=utf-8", body, {})
    assert polite(site).fetch(f"{site.url}/x") == "<html><p>Größe: 5 – 6– 7</p></html>"


@pytest.mark.parametrize("kind", ["application/pdf", "text/plain", 'image/png; name="a.html"'])
def test_what_is_not_html_is_named(site, kind):
    site.answers["/global/x"] = (200, kind, b"<html></html>", {})
    with pytest.raises(pressclub.FetchError, match=f"got '{kind}', need HTML"):
        polite(site).fetch(f"{site.url}/x")


# --------------------------------------------------------------------------------------------------
# Faults of the listing and of Chrome


def test_a_drawer_that_kills_the_button(site, tmp_path):
    site.blocking = True
    names = run_cells(parameters(site, tmp_path, TARGET=60, DELAY=0.2), until="browse")
    assert len(names["for_training"](names["listed_ids"])) >= 58
    assert shortest_pause([seconds for seconds, path in site.log if "favicon" not in path]) >= 0.2


TRAITS = [{"button": False, "scrolling": False}, {"fragments": 1}, {"consent": False}]


@pytest.mark.parametrize("trait", TRAITS)
def test_the_listing_goes_on_by_pages(site, tmp_path, trait):
    vars(site).update(trait)
    names = run_cells(parameters(site, tmp_path, TARGET=60), until="listing")
    listed_ids = names["listed_ids"]
    assert listed_ids == [article["id"] for article in site.listing][: len(listed_ids)]
    assert len(names["for_training"](listed_ids)) >= 58
    assert bool(site.requests_for("article?page=")) == (trait != {"consent": False})


def test_chrome_killed_in_the_middle(site, tmp_path):
    def kill_chrome(path):
        if path.startswith("/global/article/list?page=3"):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # one of the tab's helpers may just have ended
                    command = " ".join(process.cmdline())
                    if "--headless=new" in command and "--type=" not in command:
                        process.kill()

    site.before_answer = kill_chrome
    names = run_cells(parameters(site, tmp_path, TARGET=62))
    assert names["fault"].startswith("Chrome failed") and site.requests_for("list?page=3") == 1
    assert site.requests_for("article?page=") and len(load_articles(tmp_path / "train")) == 60
    assert manifest(tmp_path)["browser"].startswith("Chrome failed")


def test_robots_txt_is_obeyed(site, tmp_path):
    first, second = [article["id"] for article in site.listing if article["id"] not in EVAL_IDS][:2]
    site.robots = "User-agent: bmwqa\nDisallow: /global/article/list\n"
    site.robots += f"Disallow: /global/article/detail/{first}\n"
    names = run_cells(parameters(site, tmp_path, TARGET=12, DELAY=0.1))
    assert names["outcomes"]["train"][first] == ("failed", "robots.txt forbids this page")
    assert names["outcomes"]["train"][second] == ("fetched", "")
    assert not site.requests_for("article/list") and not site.requests_for(first)
    assert shortest_pause([seconds for seconds, _ in site.log]) >= 0.1
    assert site.most_busy == 1


@pytest.mark.parametrize("agent", ["*", "bmwqa", "BMWQA/1.0", "other\nUser-agent: bmwqa"])
def test_a_crawl_delay_is_obeyed(site, agent):
    site.robots = f"User-agent: {agent}\nCrawl-delay: 1.2\n"
    polite(site).fetch(f"{site.url}/article")
    assert site.log[1][0] - site.log[0][0] >= 1.2


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ("Disallow: /global/*/detail/", "article page"),
        ("Disallow: /*?page=", "article detail"),
        ("Disallow: /global/article$", "page detail"),
        ("Disallow: /global/article\nAllow: /global/article/detail/", "detail"),
        ("\nDisallow: /global/article/", "article page"),
        ("# a comment\n\nDisallow: /", ""),
        ("Disallow: /\nAllow: /*detail*EN$", "detail"),
        ("Disallow: /\n\nUser-agent: bmwqa\nAllow: /", "article page detail"),
        ("Allow: /\n\nUser-agent: BMWQA\n\nDisallow: /", ""),
        ("Allow: /\n\nUser-agent: qa\nDisallow: /", "article page detail"),
    ],
)
def test_rules_of_robots_txt(site, rules, allowed):
    site.robots = f"User-agent: *\n{rules}\n"
    club = polite(site)
    paths = {"article": "article", "page": "article?page=2", "detail": "article/detail/T0900001EN"}
    for name, path in paths.items():
        allows = club.allows(f"{site.url}/{path}")
        assert allows == (name in allowed.split())
        with nullcontext() if allows else pytest.raises(pressclub.FetchError, match="robots.txt"):
            club.fetch(f"{site.url}/{path}")
        assert (f"/global/{path}" in [path for _, path in site.log]) == allows


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_without_a_robots_txt_all_is_allowed(site, status):
    site.answers["/robots.txt"] = (status, "text/plain", b"User-agent: *\nDisallow: /", {})
    assert "newsfeed" in polite(site).fetch(f"{site.url}/article")


@pytest.mark.parametrize("fault", ["error", "drop", "busy", "away", "huge", "endless"])
def test_a_robots_txt_that_cannot_be_read_forbids_all(site, monkeypatch, fault):
    monkeypatch.setattr(pressclub.time, "sleep", lambda seconds: None)
    site.faults["/robots.txt"] = [fault] * 4
    with pytest.raises(pressclub.FetchError, match="robots.txt could not be read"):
        polite(site).fetch(f"{site.url}/article")
    assert not site.requests_for("article")


def test_a_robots_txt_behind_a_redirect_counts(site):
    site.answers["/robots.txt"] = (301, "text/html", b"", {"Location": "/other/robots.txt"})
    site.answers["/other/robots.txt"] = (200, "text/plain", b"User-agent: *\nDisallow: /global", {})
    assert not polite(site).allows(f"{site.url}/article")


def test_a_driver_of_another_version_is_not_used(tmp_path, monkeypatch):
    browser, driver = chrome.browser_and_driver()
    version = subprocess.check_output(["chromedriver", "--version"], text=True)
    version = version.split()[1].split(".")[0]
    assert chrome.major_version(browser) == chrome.major_version(driver) == version

    old_driver = tmp_path / "chromedriver"
    old_driver.write_text("#!/bin/sh\necho ChromeDriver 99.0.1\n")
    old_driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(chrome.ChromeDriverManager, "install", lambda manager: "downloaded")
    assert chrome.browser_and_driver() == (browser, "downloaded")


# --------------------------------------------------------------------------------------------------
# Kills, and what lies on the disk before a run


def kill(run: multiprocessing.Process) -> None:
    family = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    for process in family:  # its Chrome, which nobody would stop now
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_twenty_kills_lose_nothing(tmp_path, monkeypatch):
    # a server that has loaded the notebook's packages forks the runs; it finds them by PYTHONPATH
    folders = [str(Path(__file__).parent), str(NOTEBOOK.parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    dice = random.Random(3)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["extraction_cells"])
    killed = 0
    with PressClub(sample_articles() + filler_articles(200)) as site:
        site.delay, site.feed = 0.02, False  # page by page, so that kills meet the work
        settings = parameters(site, tmp_path, TARGET=len(site.listing))
        for number in range(20):
            before = files(tmp_path)
            site.log.clear()
            run = forks.Process(target=run_cells, args=(settings,))
            run.start()
            # half of the moments lie anywhere in a run, half where articles are fetched and written
            sign, seconds = ("/robots.txt", 3.0) if number % 2 else ("/detail/", 1.5)
            while run.is_alive() and not site.requests_for(sign):
                time.sleep(0.01)
            time.sleep(dice.uniform(0, seconds))
            if run.is_alive():
                kill(run)
                killed += 1
            run.join()
            after = files(tmp_path)
            assert before.items() <= after.items(), "an article was lost or changed"
            assert all(json.loads(text)["text"] for text in after.values()), "half an article"
            known = {Path(name).stem for name in before}
            assert not known & set(requested_ids(site)), "an article was fetched twice"
        assert killed == 20 and 20 < len(after) < len(site.listing), "the kills missed the work"

        site.log.clear()
        run_cells(settings)
        assert len(files(tmp_path)) == settings["TARGET"]
        assert site.requests_for("/detail/") == settings["TARGET"] - len(after)


def test_kills_while_the_feed_is_read_lose_nothing(tmp_path, monkeypatch):
    folders = [str(Path(__file__).parent), str(NOTEBOOK.parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["extraction_cells"])
    with PressClub(sample_articles()) as site:
        settings = parameters(site, tmp_path, TARGET=len(site.listing))
        wanted, site.delay = {article["id"] for article in site.listing}, 0.05
        for page in (1, 2, 3):  # killed while this page of the feed is on its way, or just there
            site.log.clear()
            run = forks.Process(target=run_cells, args=(settings,))
            run.start()
            while run.is_alive() and not site.requests_for(f"rss2?page={page}"):
                time.sleep(0.005)
            time.sleep(0.03 * page)
            assert run.is_alive(), "the kill missed the feed"
            kill(run)
            run.join()
            assert all(json.loads(text)["text"] for text in files(tmp_path).values())
        site.log.clear()
        names = run_cells(settings)
        assert names["feed_fault"] == "" and len(files(tmp_path)) == settings["TARGET"]
        assert {Path(name).stem for name in files(tmp_path)} <= wanted | set(EVAL_IDS)
        assert site.requests_for("rss2") <= 4 and not list(tmp_path.rglob(".*.json.*"))


def test_what_was_there_stays(site, tmp_path, capsys):
    new_ids = [article["id"] for article in site.listing if article["id"] not in EVAL_IDS]
    broken, whole, moved = new_ids[:3]
    article = dict.fromkeys(("url", "title", "category", "teaser"), "x")
    article |= {"id": whole, "date": "2025-01-01", "text": "Mine."}
    kept = {f".{whole}.json.x1": '{"id": "T09', "notes.txt": "mine"}
    kept[f"{whole}.json"] = json.dumps(article)
    others = {f"{broken}.json": '{"id": "T09', f"{moved}.json": json.dumps(article | {"id": moved})}
    train, moved_to = tmp_path / "train", tmp_path / "eval" / f"{moved}.json"
    train.mkdir()
    for name, text in (kept | others).items():
        (train / name).write_text(text)
    run_cells(parameters(site, tmp_path, TARGET=10, EVAL_IDS=[moved]))
    printed = capsys.readouterr().out
    for words in (f"fetched again: {broken}.json", "killed run: 1", f"{moved} moved"):
        assert words in printed
    assert {name: (train / name).read_text() for name in kept} == kept
    assert json.loads(moved_to.read_text())["text"] == "Mine."
    assert not (train / f"{moved}.json").exists()
    assert not site.requests_for(moved) and not site.requests_for(whole)
    assert broken in manifest(tmp_path)["fetched"] and len(load_articles(train)) == 9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"EVAL_IDS": ["../../etc/passwd"]}, "need ids like"),
        ({"TARGET": 2}, "need more than the 2"),
        ({"LANGUAGES": ["FR"]}, r"LANGUAGES is \['FR'\], need a list of \['EN', 'DE'\]"),
        ({"LANGUAGES": ["DE"]}, "need ids of LANGUAGES"),
        ({"BASE_URL": "press.bmwgroup.com"}, "need an address"),
    ],
)
def test_wrong_parameters_are_named(site, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        run_cells(parameters(site, tmp_path, **wrong), until="site")


# --------------------------------------------------------------------------------------------------
# pressclub.py


def test_ids_come_from_the_newsfeed_alone_and_once():
    item = """<article class="newsfeed">
        <div class="image"><a href="/global/article/detail/T0000009EN/x?showMedia=photo"></a></div>
        <div class="text"><h3><a href="{}">x</a></h3></div></article>"""
    hrefs = [
        "/global/article/detail/T0000001EN/valid-from-03/2025",
        "https://www.press.bmwgroup.com/global/article/detail/T0000002EN_GB?language=en",
        "/global/article/detail/T0000001EN/valid%20from",
        "/global/article/detail/T0000003DE/die-%E2%80%93-messe",
        "/global/article/detail/../../../etc/passwd",
        "/global/article/detail/T0000004EN..%2F..%2Fx",
        "/global/article/detail/T٠٠٠٠٠٠٥EN/arabic-digits",
        "/global/article/attachment/T0000006EN/621216",
    ]
    side = '<div class="content-right"><a href="/global/article/detail/T0000007EN/x">x</a></div>'
    article_ids = pressclub.listing_ids("".join(map(item.format, hrefs)) + side)
    assert article_ids == ["T0000001EN", "T0000002EN_GB", "T0000003DE"]
    assert list(map(language, article_ids)) == ["EN", "EN", "DE"]


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("14.08.2025", "2025-08-14"),
        (" 1.2.2025 ", "2025-02-01"),
        ("Fri Nov 21 10:00:00 CET 2025", "2025-11-21"),
        ("Wed Oct 08 00:01:00 CEST 2025", "2025-10-08"),
        ("Tue Oct 18 17:49:60 CET 2015", "2015-10-18"),
        ("Thu, 4 Jun 2026 00:49:10 +0200", "2026-06-04"),
        ("12. Mai 2025", "2025-05-12"),
        ("3. März 2025", "2025-03-03"),
    ],
)
def test_dates(text, day):
    assert pressclub.parse_date(text) == day


@pytest.mark.parametrize("text", ["", "yesterday", "31.02.2025", "00.00.0000", "12. Mia 2025"])
def test_wrong_dates_are_named(text):
    with pytest.raises(ValueError, match="need 14.08.2025, 14. August 2025 or"):
        pressclub.parse_date(text)


def test_a_date_as_java_prints_it_comes_without_accept_language(site):
    address, article = pressclub.article_url(site.url, "T0900001EN"), site.articles["T0900001EN"]
    plain = requests.get(address, headers={"Accept-Language": None}, timeout=5).text
    assert "10:00:00 CE" in plain
    assert pressclub.parse_article(plain, "T0900001EN", address)["date"] == article["date"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<p>Munich. <b>A</b>\n  B</p>C<br/>D<p>&nbsp;</p>", "Munich. A B\n\nC\nD"),
        ("<p>a\u00adb \u200bc\u202fd \x1b[31m<!-- e --></p><style>f</style>", "ab c d [31m"),
        ("<ul><li>a<li>b</ul>", "- a\n- b"),
        ("<p>Phone: call the hotline.</p>", "Phone: call the hotline."),
        ("<p>For more information contact a dealer of your choice.</p><p>Or wait.</p>", None),
        ("<p>www.pressclub.example</p>", "www.pressclub.example"),
        ("<p>Instagram: https://instagram.example/b</p>", "Instagram: https://instagram.example/b"),
        ("<table><tr><td>a<table><tr><td>b</td><td>c</table></td></tr></table>", "a\n\nb\tc"),
    ],
)
def test_text(body, text):
    article = pressclub.parse_article(page_of(body), "T0000001EN", "u")
    expected = text or body.replace("</p><p>", "\n\n").strip("</p>")
    assert article["text"] == expected


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("571<sup>1</sup> km", "571 km"),
        ("2,500<a><sup>3</sup></a> units", "2,500 units"),
        ('2,500<sup><a href="#fn1">3</a></sup> units', "2,500 units"),
        ("<b>571</b><sup><b>1</b></sup>&nbsp;km<sup>&nbsp;2)</sup>", "571 km"),
        ("5<sup>[1]</sup>, 6<sup>*</sup>, 7<sup>1, 2</sup>, 8<sup>a)</sup>", "5, 6, 7, 8"),
        ("571<sup>1</sup><sup>,</sup><sup>2 </sup>km.<sup>†</sup>", "571 km."),
        ("up to 100 m</p><p><sup>2</sup> Provisional.", "up to 100 m\n\nProvisional."),
        ("CO<sub>2</sub><sup>1</sup>, CO<sup>2</sup>, H<sub>2</sub>O", "CO2, CO2, H2O"),
        ("25 m<sup>2</sup>, 3&nbsp;km<sup>2</sup>, 420 cm<sup>3</sup>.", "25 m², 3 km², 420 cm³."),
        ("420 cm<sup>3</sup><sup>1</sup>, 9.8 m/s<sup>2</sup>", "420 cm³, 9.8 m/s²"),
        ("25 m<sup>²</sup>, 7 km<sup>²</sup><sup>1</sup>, 2<sup>1 and 2</sup>", "25 m², 7 km², 2"),
        (
            "5<sup>1 and 2</sup>, 6<sup>1 & 2</sup>, 7<sup>1/2</sup>, 3 ft<sup>2</sup>",
            "5, 6, 7, 3 ft²",
        ),
        ('25 m<sup><a href="#2">2</a></sup>', "25 m"),
        ("14.7 kWh/100&nbsp;km<sup>2</sup>, 0 g/km<sup>3</sup>", "14.7 kWh/100 km, 0 g/km"),
        ("10<sup>6</sup>, 10<sup>12</sup>, top 10<sup>1</sup>", "10⁶, 10¹², top 10"),
        ("11,000 min<sup>-1</sup>", "11,000 min⁻¹"),
        ("1<sup>st</sup>, BMW<sup>®</sup>, 20<sup>°</sup>C", "1st, BMW®, 20°C"),
        ("<table><tr><td>a<sup>1</sup></td><td>571<sup>2</sup></td></tr></table>", "a\t571"),
    ],
)
def test_footnote_marks_go_and_exponents_stay(body, text):
    page = page_of(f"<p>{body}</p>", teaser="T").replace("A title. ", "A title 5<sup>1</sup> ")
    article = pressclub.parse_article(page, "T0000001EN", "u")
    assert (article["text"], article["title"]) == (text, "A title 5")


def test_page_form_is_undone_for_every_kind_of_paragraph():
    text = f"Munich. Long line {'with words ' * 30}end.\n\nA heading\n\n- one\n- two"
    text += "\n\na\tb\n1\t2\n\nA 20 km\nline."
    assert pressclub.parse_article(page_of(page_form(text)), "T0000001EN", "u")["text"] == text


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<html><h1>Sorry</h1></html>", "div.article-detail"),
        (page_of("<p>x</p>", title=""), "without a title"),
        (page_of("<p>x</p>").replace("14.08.2025", "soon"), "date 'soon'"),
    ],
)
def test_pages_of_another_form_are_named(page, message):
    with pytest.raises(ValueError, match=message) as error:
        pressclub.parse_article(page, "T0000001EN", "u")
    assert error.type is ValueError


FOREIGN = {
    "DE": "Die neue Messe ist eröffnet und das Programm ist bis Mittwoch in der Anlage zu finden.",
    "FR": "Le salon est ouvert et les visiteurs sont au rendez-vous dans la ville de Munich.",
    "ES": "La feria se abre con un programa para los visitantes y el público de la ciudad.",
    "IT": "La fiera è aperta con un programma per gli ospiti della città, che sono più di mille.",
}


@pytest.mark.parametrize("code", FOREIGN)
def test_languages_are_told_apart(code):
    english = "The show is open, and the programme of the day is in the file. "
    names = "1. Kelvin van der Linde (RSA) 2. Raffaele de la Rosa 3. Augusto Farfus"
    assert not pressclub.is_in_language(FOREIGN[code], "EN")
    assert pressclub.is_in_language(FOREIGN[code], code)
    assert not pressclub.is_in_language(english, code)
    assert pressclub.is_in_language(names, "EN") and pressclub.is_in_language(names, code)
    assert pressclub.is_in_language(english + FOREIGN[code][:20], "EN")
