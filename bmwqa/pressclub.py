"""PressClub pages to articles, and nothing else: a polite `fetch`, the listing, the article page, its text.

No browser and no file is touched here: `data_extraction.ipynb` opens Chrome, says what to fetch and writes the files.
The rules come from saved pages and data of the real site (its DOM of December 2025 to June 2026).
"""

import email.utils
import re
import time
from collections.abc import Iterable
from datetime import date
from functools import cached_property
from itertools import groupby
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

import requests
import urllib3
from bs4 import BeautifulSoup, NavigableString, Tag
from bs4.dammit import UnicodeDammit

AGENT = "bmwqa"  # the name robots.txt may address
USER_AGENT = f"Mozilla/5.0 (X11; Linux x86_64) {AGENT}/1.0 (article research, one request at a time)"
LANGUAGE = "en-US,en;q=0.9"  # without it the site sends dates as Java prints them
ARTICLE_LINKS = "article.newsfeed div.text h3 a[href]"  # not the side boxes: their articles are months old
MAX_BYTES = 5_000_000  # the largest page seen is far below 1 MB
TRIES = 4  # of one page: at once, then after 1, 2 and 4 seconds or what Retry-After says
MAX_WAIT = 120  # seconds; a site that asks for a longer pause is left alone
MAX_GIVEN_UP = 10  # pages in a row that failed in every try: the site is down, more requests would only hurt it

# ---------------------------------------------------------------------------------------------------------------------
# Fetching


class FetchError(ValueError):
    """A page that could not be had; the message says why."""


class SiteDown(FetchError):
    """The site needs a rest: stop, and run again later."""


class _TryAgain(Exception):
    """A fault that may be gone in a moment; `wait` is what the site asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class PoliteSite:
    """One host, one request at a time with a pause after each, robots.txt obeyed, every request counted."""

    def __init__(self, base_url: str, delay: float, page_seconds: float):
        if urlsplit(base_url).scheme not in ("http", "https") or not urlsplit(base_url).hostname:
            raise ValueError(f"BASE_URL is {base_url!r}, need an address like https://www.press.bmwgroup.com/global.")
        self.base_url, self.delay, self.page_seconds = base_url.rstrip("/"), delay, page_seconds
        self.host = urlsplit(base_url).netloc
        self.requests = 0
        self._given_up, self._closed, self._last = 0, "", float("-inf")
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Language": LANGUAGE})
        if urlsplit(base_url).hostname in ("127.0.0.1", "localhost"):
            self._session.trust_env = False  # a proxy for the internet does not know this machine's own servers

    @cached_property
    def robots(self) -> RobotFileParser:
        """The site's robots.txt, read once; a site without one allows everything (RFC 9309, 2.3.1.3)."""
        rules, url = RobotFileParser(), urljoin(self.base_url, "/robots.txt")
        try:
            text = self._fetch(url, "text/plain")
        except FetchError as fault:
            raise FetchError(f"{url} could not be read ({fault}), and says what may be. Run again later.") from fault
        rules.parse(text.splitlines())
        self.delay = max(self.delay, float(rules.crawl_delay(AGENT) or 0))
        return rules

    def fetch(self, url: str) -> str:
        """The HTML page at `url`, whole; FetchError if it cannot be had, SiteDown if the site needs a rest."""
        if not self.robots.can_fetch(AGENT, url):
            raise FetchError("robots.txt forbids this page")
        return self._fetch(url, "html")

    def _fetch(self, url: str, kind: str) -> str:
        if self._closed:
            raise SiteDown(self._closed)
        for attempt in range(TRIES):
            try:
                text = self._request(url, kind)
            except _TryAgain as fault:
                reason, wait = str(fault), 2**attempt if fault.wait is None else fault.wait
                if wait > MAX_WAIT:
                    self._closed = f"the site asks for a pause of {wait:.0f} s, run again after it"
                    raise SiteDown(self._closed) from fault
                if attempt < TRIES - 1:
                    time.sleep(wait)
            else:
                self._given_up = 0
                return text
        self._given_up += 1
        if self._given_up >= MAX_GIVEN_UP:
            self._closed = f"{self._given_up} pages in a row failed, the last with {reason}; run again later"
            raise SiteDown(self._closed)
        raise FetchError(f"{reason}, {TRIES} times")

    def _request(self, url: str, kind: str) -> str:
        for _ in range(5):
            time.sleep(max(0.0, self._last + self.delay - time.monotonic()))
            self.requests += 1
            try:
                with self._session.get(
                    url, stream=True, allow_redirects=False, timeout=(10, self.page_seconds)
                ) as response:
                    if not response.is_redirect:
                        return self._body(response, kind)
                    url = urljoin(url, response.headers["Location"])
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as fault:
                raise _TryAgain(f"connection failed ({type(fault).__name__})") from fault
            finally:
                self._last = time.monotonic()
            if urlsplit(url).netloc != self.host:
                raise FetchError(f"redirect to another host ({urlsplit(url).netloc!r}), not followed")
            if kind == "html" and not self.robots.can_fetch(AGENT, url):
                raise FetchError("redirect to a page that robots.txt forbids")
        raise FetchError("more than 5 redirects")

    def _body(self, response: requests.Response, kind: str) -> str:
        status, got = response.status_code, response.headers.get("Content-Type", "no content type")
        if kind != "html" and status in (404, 410):
            return ""
        if status == 429 or status >= 500:
            wait = response.headers.get("Retry-After")
            raise _TryAgain(f"HTTP {status}", urllib3.Retry().parse_retry_after(wait) if wait else None)
        if status != 200:
            raise FetchError(f"HTTP {status}")
        if kind == "html" and "html" not in got:
            raise FetchError(f"got {got!r}, need HTML")
        body, deadline = bytearray(), time.monotonic() + self.page_seconds
        # read1 gives what has come so far: read and iter_content wait for a full chunk, for ever on a page that drips
        while chunk := response.raw.read1(2**16, decode_content=True):
            body += chunk
            if len(body) > MAX_BYTES:
                raise FetchError(f"page larger than {MAX_BYTES / 1e6:.0f} MB, cut off")
            if time.monotonic() > deadline:
                raise FetchError(f"page not finished after {self.page_seconds:g} s, cut off")
        charset = re.search(r"charset=[\"']?([\w-]+)", got)
        text = UnicodeDammit(bytes(body), [charset[1]] if charset else [], is_html=True).unicode_markup or ""
        if kind == "html" and re.search("<html", text, re.I) and not re.search("</html", text, re.I):
            raise _TryAgain("truncated page (no </html>)")
        return text


# ---------------------------------------------------------------------------------------------------------------------
# Listing

_ID = r"T[0-9]{7}[A-Z]{2}(?:_[A-Z]{2})?"  # T0454343EN, and on the global listing also T0453713DE and T0448814EN_GB


def is_article_id(text: str) -> bool:
    """Whether `text` is an article id and nothing more, so that it is safe as a file name."""
    return re.fullmatch(_ID, text) is not None


def is_english_id(article_id: str) -> bool:
    """Whether the id is that of an English article: T0454343EN and T0448814EN_GB are, T0453713DE is not."""
    return article_id[8:10] == "EN"


def article_ids(hrefs: Iterable[str]) -> list[str]:
    """The ids in links to articles, each once, in order: one article comes under several spellings of its slug."""
    found = (re.search(rf"/detail/({_ID})(?:[/?#]|$)", href) for href in hrefs)
    return list(dict.fromkeys(match[1] for match in found if match))


def listing_ids(html: str) -> list[str]:
    """The article ids of a listing page's newsfeed, newest first, without those of its side boxes."""
    return article_ids(str(link["href"]) for link in BeautifulSoup(html, "html.parser").select(ARTICLE_LINKS))


def article_url(base_url: str, article_id: str) -> str:
    """The article's address by its id alone, which the site answers; slugs hold slashes, colons and odd spaces."""
    return f"{base_url.rstrip('/')}/article/detail/{article_id}"


# ---------------------------------------------------------------------------------------------------------------------
# Article page


class SkipArticle(ValueError):
    """An article that is read without fault and not wanted; the message says why."""


def parse_article(html: str, article_id: str, url: str) -> dict:
    """The article dict (id, url, title, date, category, teaser, text) of an article page.

    SkipArticle: it has no body, or is not English. ValueError: the page has not the form of an article page.
    """
    page = BeautifulSoup(html, "html.parser").select_one("div.article-detail")
    if page is None:
        raise ValueError("page without div.article-detail")
    title, day = _line(page, "h1"), _line(page, "span.date")
    if not title:
        raise ValueError("article without a title (h1)")
    body = page.select_one("#article-text")
    try:
        text = body_text(body) if body else ""
    except RecursionError as error:
        raise ValueError("body nested too deeply") from error
    if not text:
        raise SkipArticle("no body")
    teaser = _line(page, "h2.teaser")
    if not is_english(f"{title} {teaser} {text}"):
        raise SkipArticle("text is not English")
    article = {"id": article_id, "url": url, "title": title, "date": parse_date(day)}
    return article | {"category": _line(page, "span.category"), "teaser": teaser, "text": text}


def parse_date(text: str) -> str:
    """ISO date of "14.08.2025" or, as the site answers without Accept-Language, "Fri Nov 21 10:00:00 CET 2025"."""
    if match := re.fullmatch(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})", text.strip()):
        year, month, day = int(match[3]), int(match[2]), int(match[1])
    else:
        # the zone is dropped: the site's calendar day counts, and strptime does not know CEST everywhere
        year, month, day = (email.utils.parsedate(text) or (0, 0, 0))[:3]
    try:
        return date(year, month, day).isoformat()
    except ValueError as error:
        raise ValueError(f"date {text!r}, need 14.08.2025 or Fri Nov 21 10:00:00 CET 2025") from error


_STOP_WORDS = {
    "en": "the and of to is with for at by from this that are was has have will it its as be which their you your",
    "de": "der die und das mit von den für ist ein eine auf im dem des zu sich auch werden wird nicht bei sie finden",
    "fr": "le la les et des du une un pour est dans avec sur que qui par au aux plus ce cette sont vous",
    "es": "el la los las y en del una un para es con que por se su más al como este esta",
    "it": "il la di che e per con una un del della nel è sono più gli dei alla questo come anche",
}


def is_english(text: str) -> bool:
    """Whether no other language has more of its stop words in `text` than English; a text with few of any is."""
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    counts = {language: len(words & set(stop.split())) for language, stop in _STOP_WORDS.items()}
    return counts["en"] >= max(counts.values()) or max(counts.values()) < 3


# ---------------------------------------------------------------------------------------------------------------------
# Text

_INVISIBLE = re.compile("[\u00ad\u200c-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")  # soft hyphens, direction marks
_SPACE = re.compile(r"[\s\u200b\x00-\x1f\x7f-\x9f]+")  # \s knows nbsp and U+202F; a control character is none of text
_BLOCKS = set(
    "address article aside blockquote center dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
    "header hr main ol p pre section table tbody td tfoot th thead tr ul".split()
)
_NO_TEXT = {"script", "style", "noscript", "template", "button", "iframe", "object", "svg", "select", "textarea"}


def body_text(body: Tag) -> str:
    """The body as plain text: paragraphs separated by one blank line, a list or a table is one paragraph.

    A list has "- item" lines and a table "cell<tab>cell" lines. Hard wraps are folded, spacers and CO2 boxes dropped.
    """
    text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", _raw_text(body)))
    paragraphs = (paragraph.strip(" \n") for paragraph in re.split(r"\n{2,}", text))
    return _without_contacts("\n\n".join(paragraph for paragraph in paragraphs if paragraph.strip()))


def _fold(text: str) -> str:
    return _SPACE.sub(" ", _INVISIBLE.sub("", text))


def _line(page: Tag, selector: str) -> str:
    element = page.select_one(selector)
    return _fold(_raw_text(element)).strip() if element else ""


def _raw_text(node: Tag) -> str:
    parts = []
    for child in node.children:
        if isinstance(child, Tag):
            if child.name in _NO_TEXT or "co2_summary" in child.get("class", []):
                continue
            if child.name == "br":
                parts.append("\n")
            elif child.name == "li":  # an item is one paragraph, even where it is made of several or holds a list
                parts.append("\n- " + re.sub(r"\s*\n\s*", "\n", _raw_text(child).strip()))
            elif child.name == "table" and (rows := _rows(child)):
                parts.append("\n\n" + "\n".join("\t".join(row) for row in rows) + "\n\n")
            elif child.name in _BLOCKS:
                parts.append(f"\n\n{_raw_text(child)}\n\n")
            else:
                parts.append(_raw_text(child))
        elif type(child) is NavigableString:  # not a comment, which is a subclass
            parts.append(_fold(child))
    return "".join(parts)


def _rows(table: Tag) -> list[list[str]]:
    """The rows of a table that has columns; none for one that only frames the text, which is read as blocks."""
    rows = []
    for row in table.find_all("tr"):
        if row.find_parent("table") is table:
            rows.append([_fold(_raw_text(cell)).strip() for cell in row.find_all(["td", "th"], recursive=False)])
    return [row for row in rows if any(row)] if any(sum(map(bool, row)) > 1 for row in rows) else []


_CONTACT = re.compile(
    r"(in case of|in the event of|(if|should) you have|for (any |further |more |additional )).{0,60}\bcontact\b"
    r"|(corporate communications|(press|media) contacts?)[.:]?$",
    re.I,
)
_REACH = re.compile(
    r"\b(phone|tel|telephone|mobile|fax)\b\.?:? ?\+?[(\d]|[\w.+-]+@[\w-]+\.\w|^(media |press )?(website|internet):",
    re.I,
)
_SOCIAL = re.compile(r"(linkedin|youtube|instagram|facebook|x|twitter|tiktok|threads) ?: ?\S*[./@]\S*$", re.I)
_URL = re.compile(r"(https?://|www\.)\S+$", re.I)


def _without_contacts(text: str) -> str:
    """`text` without contacts and social-media links, cut by lines: an article may be one paragraph of lines."""
    lines = text.split("\n")
    gone: set[int] = set()
    filled = [number for number, line in enumerate(lines) if line]
    for place, number in enumerate(filled):
        if len(lines[number]) > 200 or not _CONTACT.match(lines[number]):
            continue
        end, last = place + 1 if lines[number].endswith(":") else place, place
        # names and functions stand between the lines that say how to reach someone; after the last one, text goes on
        for later in range(place, len(filled)):
            line = lines[filled[later]]
            if len(line) > 200 or later - last > 4:
                break
            if _REACH.search(line):
                end, last = later + 1, later
        gone.update(filled[place:end])
    for _, run in groupby(filled, key=lambda number: bool(_SOCIAL.match(lines[number]) or _URL.match(lines[number]))):
        numbers = list(run)  # a bare address goes only where a social-media line stands next to it
        if any(_SOCIAL.match(lines[number]) for number in numbers):
            gone.update(numbers)
    kept = "\n".join(line for number, line in enumerate(lines) if number not in gone)
    return re.sub(r"\n{3,}", "\n\n", kept).strip("\n") or text
