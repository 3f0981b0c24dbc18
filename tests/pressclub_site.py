"""A local PressClub to test with and to try out: pages, paging, quirks and faults of the real site.

`python tests/pressclub_site.py --port 8765` serves the sample corpus, and one page for each odd
shape of the real site. The articles are fiction (see data/README.md).
"""

import argparse
import html
import json
import re
import socket
import textwrap
import threading
import time
from collections import defaultdict
from contextlib import suppress
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from odd_pages import ODD

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"
PAGE_SIZE = 20
LAST_SAMPLE = "T0900112EN"  # later ones are not on the site: its tests count on these 72

# --------------------------------------------------------------------------------------------------
# Articles: the article schema's dicts, plus `html` (the body as the page has it), `slug`, `listed`


def page_form(text: str) -> str:
    """The body HTML of a plain text, as the real site's editors leave it."""
    paragraphs = text.split("\n\n")
    blocks = [_block(paragraph, first=number == 0) for number, paragraph in enumerate(paragraphs)]
    return "\n<p>&nbsp;</p>\n".join(blocks)


def _block(paragraph: str, first: bool) -> str:
    lines = paragraph.split("\n")
    if "\t" in paragraph:
        rows = "\n".join(f"<tr>{_cells(line)}</tr>" for line in lines)
        return f"<table><tbody>\n{rows}\n</tbody></table>"
    if len(lines) > 1 and all(line.startswith("- ") for line in lines):
        items = "\n".join(f"  <li>{_wrapped(line[2:])}</li>" for line in lines)
        return f"<ul>\n{items}\n</ul>"
    inner = "<br>".join(_wrapped(line) for line in lines)
    if first:
        inner = re.sub(r"^(\w[\w/ ,]{2,30}\. )", r"<strong>\1</strong>", inner)
    elif len(paragraph) < 80 and not re.search(r"[.:!?”0-9]$", paragraph):
        inner = f"<strong>{inner}</strong>"
    return f"<p>\n  {inner}\n</p>"


def _cells(line: str) -> str:
    return "".join(f"<td>\n<p>{html.escape(cell)}</p>\n</td>" for cell in line.split("\t"))


def _wrapped(line: str) -> str:
    folded = "\n  ".join(textwrap.wrap(line, 70, break_long_words=False, break_on_hyphens=False))
    escaped = html.escape(folded, quote=False)
    return re.sub(r"(\d) (km|kW|kWh|hp|Nm|percent)\b", r"\1&nbsp;\2", escaped)


def sample_articles(folder: Path = SAMPLE) -> list[dict]:
    """72 articles of the sample corpus; every other one to evaluate is too old for the listing."""
    articles = []
    for path in sorted(folder.glob("*/T0900*.json")):
        if path.stem > LAST_SAMPLE:
            continue
        article = json.loads(path.read_text(encoding="utf-8"))
        article["html"] = page_form(article["text"])
        article["slug"] = article["url"].rpartition(article["id"] + "/")[2]
        article["listed"] = path.parent.name == "train" or int(article["id"][1:8]) % 2 == 0
        articles.append(article)
    return articles


def filler_articles(count: int) -> list[dict]:
    """Plain articles of some 3,000 characters, one per day."""
    articles = []
    for number in range(count):
        sentence = f"Filler {number} for the local site: a plain sentence with {number} in it. "
        text = "Munich. " + "\n\n".join(f"Part {i}. {sentence * 5}".strip() for i in range(1, 9))
        article_id, day = f"T{700000 + number:07d}EN", date(2023, 12, 28) - timedelta(number)
        articles.append(_article(article_id, day, f"filler {number}", html=page_form(text)))
    return articles


def odd_articles() -> list[dict]:
    """One article for each odd shape of ODD, newest first."""
    last = date(2025, 12, 30)
    return [
        _article(name, last - timedelta(number), **ODD[name]) for number, name in enumerate(ODD)
    ]


def _article(article_id: str, day: date, about: str, **others) -> dict:
    usual = {"id": article_id, "date": day.isoformat(), "listed": True, "teaser": "A teaser."}
    usual |= {"title": f"Odd page: {about}.", "slug": about.replace(" ", "-")}
    return usual | {"category": "Press Release"} | others


# --------------------------------------------------------------------------------------------------
# Pages


def shown_date(article: dict, java: bool) -> str:
    """The date as the page prints it: dd.MM.yyyy, or for `java` as Java's Date.toString does.

    One German article has it in words.
    """
    if article.get("id") == "T0800001DE" and not java:
        return "12. Mai 2025"
    day = date.fromisoformat(article["date"])
    zone = "CEST" if 4 <= day.month <= 9 else "CET"
    return day.strftime(f"%a %b %d 10:00:00 {zone} %Y") if java else day.strftime("%d.%m.%Y")


def newsfeed(article: dict, java: bool) -> str:
    """One article of the listing; its picture has a second link, empty and with a query."""
    link = html.escape(f"/global/article/detail/{article['id']}/{article['slug']}")
    return f"""<article class="newsfeed clear-after has-image has-media" data-id="558000">
  <div class="image"><div class="img thumb16-9"></div><div class="buttons">\
<a class="bmw-ci-document-img-med" href="{link}?showMedia=photo"></a></div></div>
  <div class="text">
    <h3><a href="{link}">{html.escape(article["title"])}</a></h3>
    <div class="info"><h4><span class="date">{shown_date(article, java)}</span>
      <span class="category">{html.escape(article["category"])}</span></h4></div>
    <div class="sharing-icons"><a href="https://social.example/share?u={link}">share</a></div>
    <p class="serif">{html.escape(article["teaser"])}</p>
    <div class="tagging-info tags clear-after">
      <div class="clickable tag tag-searchable" data-tag-id="267">Plant</div></div>
  </div>
</article>"""


FRAGMENT_MARK = """<div class="hidden remove-on-search article-video-portlet-url" \
data-url="/global/article/video-portlet/"></div>"""
IMAGE = '<img src="https://mediapool.example/small.jpg" alt=""><br/>'
BUTTON = '<button id="lazy-load-button" class="remove-on-search clear">Show more</button>'
LOADER = """<script>
let page = START, busy = false, done = false;
async function more() {
  if (busy || done || page > 100) return;
  busy = true;
  const spinner = document.getElementById('lazy-loader');
  spinner.classList.remove('hidden');
  try {
    const part = await (await fetch('/global/article/list?page=' + (page + 1))).text();
    done = !part.includes('<article');
    page += 1;
    spinner.insertAdjacentHTML('beforebegin', part);
  } finally { busy = false; spinner.classList.add('hidden'); }
}
function scrolled() { if (innerHeight + scrollY >= document.body.scrollHeight - 400) more(); }
const button = document.getElementById('lazy-load-button');
if (button) button.addEventListener('click', () => {
  if (BLOCKING && document.querySelector('epaas-consent-drawer-shell')) return;
  button.remove(); more(); addEventListener('scroll', scrolled);
}); else if (SCROLLING) addEventListener('scroll', scrolled);
</script>"""
CONSENT = """<script>
setTimeout(() => {
  const shell = document.createElement('epaas-consent-drawer-shell'), \
root = shell.attachShadow({mode: 'open'});
  root.innerHTML = `<div style="position:fixed;bottom:0;left:0;right:0;height:60vh;\
z-index:99999;background:#fff">
    We use cookies. <button class="accept-button">Accept</button>\
<button class="reject-button">Reject</button></div>`;
  for (const button of root.querySelectorAll('button')) button.onclick = () => shell.remove();
  document.body.append(shell);
}, 300);
</script>"""
HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\
<!-- implementationVersion: 3.33.1 -->
<meta property="og:title" content="{title}"></head><body><div id="main"><div id="content">"""
FOOT = """</div></div><footer><div class="co2-info-teaser" id="carbon-info">\
Further information on fuel consumption
figures can be found in a guide.</div></footer></body></html>"""


def side_boxes(articles: list[dict]) -> str:
    """The boxes on the right of every page, with links to articles that may be months old."""
    links = "".join(
        f"""<div class="more-content"><p><a class="presskit" \
href="/global/article/detail/{article["id"]}/{html.escape(article["slug"])}">\
{html.escape(article["title"])}</a> \
Here you can see the webcast of a keynote from another day.</p></div>"""
        for article in articles
    )
    box = f'<div class="fact-and-latest-press-kits"><h3>Latest Press Kits</h3>{links}</div>'
    return f'<div class="content-right">{box}</div>'


def article_page(article: dict, java: bool, side: str) -> str:
    """The page of one article, with all that stands around the text."""
    title, body = html.escape(article["title"]), article["html"]
    teaser = html.escape(article["teaser"])
    teaser = f'<h2 class="teaser clear">{teaser}</h2>' if teaser else ""
    co2 = f'<div class="text co2_summary">{article["co2"]}</div>' if article.get("co2") else ""
    more = '<button class="readmore"><span>Show entire text</span></button>'
    return f"""{HEAD.format(title=title)}<div class="content-block"><div class="content-left">
<div class="article-detail remove-on-search"><h1>{title} </h1>
<div class="article-info"><h5><span class="date">{shown_date(article, java)}</span>
<span class="category">{html.escape(article["category"])}</span></h5></div>{teaser}
<div class="tagging-info tags clear-after">\
<div class="clickable tag tag-searchable">Plant</div></div>
<div class="left"><h4>Press Contact.</h4>\
<p>Ada Vogt<br>Tel: +49-89-382-00000</p><a href="#">send an e-mail</a>
<h4>Downloads.</h4><p>Attachments (1x, 3.25 MB)</p></div>
<div class="right"><div id="article-text" class="serif">{body}</div>\
{more if len(body) > 2000 else ""}</div>{co2}
<h4>Article Media Material.</h4></div></div>{side}</div>{FOOT}"""


# --------------------------------------------------------------------------------------------------
# The server


class PressClub:
    """The site; a test sets its traits and faults, and reads its log.

    `faults[key]` is a list of faults, of which each request uses one up; the key is an article id
    or a path. `log` has one (seconds, path with query) per request.
    """

    def __init__(self, articles: list[dict], port: int = 0):
        self.articles = {article["id"]: article for article in articles}
        listed = [article for article in articles if article["listed"]]
        self.listing = sorted(listed, key=lambda a: (a["date"], a["id"]), reverse=True)
        self.faults: defaultdict[str, list[str]] = defaultdict(list)
        self.log: list[tuple[float, str]] = []
        self.busy = self.most_busy = self.bytes_sent = 0
        self.button = self.consent = self.scrolling = True
        self.feed = True  # whether there is an RSS feed
        self.blocking = False  # whether the button is dead while the consent drawer is there
        self.fragments = 100  # how often the scroll brings something
        self.delay = 0.0  # seconds each answer takes
        self.robots = "User-agent: *\nDisallow: /global/internal/\n"
        # {path: status, content type, body, headers}: what is sent, whatever the site has there
        self.answers: dict[str, tuple[int, str, bytes, dict[str, str]]] = {}
        self.elsewhere = "http://127.0.0.2:9"  # where a redirect, a picture and a script point
        self.before_answer = lambda path: None
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.handle_error = lambda *_: None  # a killed client resets its connection
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/global"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def requests_for(self, text: str) -> int:
        """How many requests had `text` in their path."""
        return sum(text in path for _, path in self.log)

    def page(self, number: int) -> list[dict]:
        return self.listing[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]

    def answer(self, path: str, query: dict, java: bool) -> tuple[int, str, str]:
        """Status, content type and text of the answer to a path."""
        number = int(query.get("page", ["1"])[0])
        kind = "text/html;charset=UTF-8"
        if path == "/robots.txt":
            return 200, "text/plain", self.robots
        if path == "/global/article":
            return 200, kind, self._listing_page(number, java)
        if path == "/global/article/list":
            feed = self._feed(number, java) if number - 1 <= self.fragments else ""
            return 200, kind, FRAGMENT_MARK + feed
        match = re.match(r"/global/article/detail/(\w+)", path)
        if article := self.articles.get(match[1] if match else ""):
            return 200, kind, article_page(article, java, self._side())
        if self.feed and path == "/global/rss2":
            return 200, "application/rss+xml", self._rss(self.page(number), number)
        return 404, kind, f"{HEAD.format(title='Not found')}<h1>Page not found</h1>{FOOT}"

    def _side(self) -> str:
        return side_boxes([a for a in self.articles.values() if not a["listed"]][:5])

    def _feed(self, number: int, java: bool) -> str:
        return "".join(newsfeed(article, java) for article in self.page(number))

    def _listing_page(self, number: int, java: bool) -> str:
        feed = self._feed(number, java)
        loader = LOADER.replace("START", str(number))
        loader = loader.replace("BLOCKING", str(self.blocking).lower())
        loader = loader.replace("SCROLLING", str(self.scrolling and not self.button).lower())
        slide = '<div class="swiper-slide" data-url="/global/article/detail/{}"></div>'
        slides = "".join(slide.format(article["id"]) for article in self.page(1)[:3])
        title = "PressClub Global · Articles"
        return f"""{HEAD.format(title=title)}<div id="top-stories">{slides}</div>
<img src="{self.elsewhere}/pixel.png" alt="">
<script async src="{self.elsewhere}/statistics.js"></script>
<div class="content-left"><h3>{title}.</h3>
<div id="filter-tags"></div><div class="content">{feed}{BUTTON if self.button else ""}
<div id="lazy-loader" class="loading ispinner gray animating hidden"></div></div></div>\
{self._side()}
{loader}{CONSENT if self.consent else ""}{FOOT}"""

    def _rss(self, articles: list[dict], number: int) -> str:
        items = "".join(
            f"""<item><title>{html.escape(a["title"])}</title>\
<guid isPermaLink="false">www.press.bmwgroup.com/{a["id"]}</guid>
<link>{self.url}/article/detail/{a["id"]}?language=en</link>
<pubDate>{date.fromisoformat(a["date"]):%a, %-d %b %Y} 00:09:10 +0200</pubDate>
<description>{html.escape(IMAGE + a["html"])}</description></item>"""
            for a in articles
        )
        return f"""<?xml version="1.0" encoding="UTF-8"?>
<rss xmlns:atom="http://www.w3.org/2005/Atom" version="2.0"><channel>
<title>BMW Group PressClub Global</title>\
<atom:link rel="next" href="/rss?page={number + 1}"/>{items}</channel></rss>"""


PLAIN_FAULTS = {  # name: status, content type, body, headers
    "busy": (429, "text/html", b"slow down", {"Retry-After": "1"}),
    "busy_for_an_hour": (429, "text/html", b"slow down", {"Retry-After": "3600"}),
    "error": (500, "text/html", b"oops", {}),
    "gone": (404, "text/html", b"<html>no such page</html>", {}),
    "pdf": (200, "application/pdf", b"%PDF-1.7 nothing to read", {}),
}


class _Handler(BaseHTTPRequestHandler):
    site: PressClub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's acknowledgement

    def log_message(self, *_):
        pass

    def do_GET(self):
        site, url = self.site, urlsplit(self.path)
        site.log.append((time.monotonic(), self.path))
        site.busy += 1
        site.most_busy = max(site.most_busy, site.busy)
        try:
            site.before_answer(self.path)
            time.sleep(site.delay)
            self._answer(url.path, parse_qs(url.query))
        except OSError:  # the client went away, as it does from a page that is too large
            self.close_connection = True
        finally:
            site.busy -= 1

    def _answer(self, path: str, query: dict):
        site, java = self.site, "Accept-Language" not in self.headers
        key = path.split("/")[4] if path.startswith("/global/article/detail/") else path
        fault = site.faults[key].pop(0) if site.faults[key] else "send"
        if path in site.answers:
            self._send(*site.answers[path])
        elif fault in PLAIN_FAULTS:
            self._send(*PLAIN_FAULTS[fault])
        else:
            status, kind, text = site.answer(path, query, java)
            getattr(self, f"_{fault}")(status, kind, text.encode())

    def _send(self, status: int, kind: str, body: bytes, headers: dict | None = None):
        self.send_response(status)
        usual = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in (usual | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _away(self, *_):
        self._send(302, "text/html", b"", {"Location": self.site.elsewhere})

    def _moved(self, *_):
        self._send(302, "text/html", b"", {"Location": self.path + "/with-slug"})

    def _halved(self, status: int, kind: str, body: bytes):
        """Half a page, complete for all that HTTP can tell."""
        self._send(status, kind, body[: len(body) // 2])

    def _drop(self, *_):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _truncated(self, status: int, kind: str, body: bytes):
        """Half a page under the length of the whole."""
        self._send(status, kind, body[: len(body) // 2], {"Content-Length": str(len(body))})
        self._drop()

    def _open_end(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def _endless(self, *_):
        self._open_end()
        while True:
            self.wfile.write(b"<p>and so on</p>")
            time.sleep(0.05)

    def _huge(self, *_):
        self._open_end()
        for _ in range(50):
            self.wfile.write(b" " * 1_000_000)
            self.site.bytes_sent += 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8765)
    port = parser.parse_args().port
    with PressClub(sample_articles() + odd_articles(), port) as site:
        print(f"The local PressClub: {site.url}/article, {len(site.listing)} fictional articles.")
        command = "papermill data_extraction.ipynb runs/data_extraction.ipynb"
        print(f"Fetch them: {command} -f tests/local_site.yaml. Ctrl+C stops the site.", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
