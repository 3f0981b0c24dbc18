"""PressClub pages to articles: polite requests, the listing, the text. No file, no browser.

The rules come from saved pages of the real site, December 2025 to June 2026.
"""

import email.utils
import re
import time
from contextlib import suppress
from datetime import date
from functools import cached_property
from html import unescape
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from bm25s import stopwords
from bs4 import BeautifulSoup, Tag
from bs4.builder import HTMLTreeBuilder
from bs4.dammit import EncodingDetector
from defusedxml.ElementTree import ParseError, fromstring
from protego import Protego

from bmwqa.corpus import ARTICLE_KEYS, GERMAN_MONTHS, language

BOT = "bmwqa/1.0"  # robots.txt may address it with or without the version
USER_AGENT = f"Mozilla/5.0 (X11; Linux x86_64) {BOT} (article research, one request at a time)"
LANGUAGE = "en-US,en;q=0.9"  # without it the site sends dates as Java prints them
ARTICLE_LINKS = "article.newsfeed div.text h3 a[href]"  # side boxes link articles months old
MAX_BYTES = 5_000_000  # the largest page seen is far below 1 MB
PAUSES = (1, 2, 4, 0)  # seconds after each failed try of a page, if Retry-After does not say
MAX_WAIT = 120  # seconds; a site that asks for a longer pause is left alone
MAX_FAILED = 10  # pages in a row that failed in every try: the site is down

# --------------------------------------------------------------------------------------------------
# Fetching


class FetchError(ValueError):
    """A page that could not be had; the message says why."""


class _TryAgain(Exception):
    """A fault that may pass: its reason, and the seconds that the site asked for, or None."""


class PoliteSite:
    """One host: one request at a time, a pause after each, robots.txt obeyed, requests counted."""

    def __init__(self, base_url: str, delay: float, page_seconds: float):
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            need = "need an address like https://www.press.bmwgroup.com/global. Correct it."
            raise ValueError(f"BASE_URL is {base_url!r}, {need}")
        self.base_url, self.delay, self.page_seconds = base_url.rstrip("/"), delay, page_seconds
        self.host, self.requests = address.netloc.lower(), 0
        self._failed_in_a_row, self._last = 0, float("-inf")
        self._closed = ""  # why the site needs a rest, and is asked for nothing more
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Language": LANGUAGE})
        # a proxy does not know this machine's own servers
        self._session.trust_env = address.hostname not in ("127.0.0.1", "localhost")

    @cached_property
    def robots(self) -> Protego:
        """The site's robots.txt, read once; without one all is allowed (RFC 9309, 2.3.1.3)."""
        url = urljoin(self.base_url, "/robots.txt")
        try:
            rules = Protego.parse(self.fetch(url, "robots"))
        except FetchError as fault:
            raise FetchError(f"{url} could not be read ({fault}). Run again later.") from fault
        if (wait := rules.crawl_delay(BOT) or 0) > MAX_WAIT:
            problem = f"{url} asks for {wait:,.0f} s between pages, at most {MAX_WAIT} are waited"
            raise FetchError(f"{problem}. Ask the site for its articles in another way.")
        self.delay = max(self.delay, wait)
        return rules

    def allows(self, url: str) -> bool:
        """Whether robots.txt allows the page."""
        return self.robots.can_fetch(url, BOT)

    def fetch(self, url: str, kind: str = "html") -> str:
        """The whole page of the kind "html", "xml" or "robots", or FetchError."""
        for pause in PAUSES:
            if self._closed:
                raise FetchError(self._closed)
            try:
                text = self._request(url, kind)
                self._failed_in_a_row = 0
                return text
            except _TryAgain as fault:
                reason, wait = fault.args
            wait = pause if wait is None else wait
            if wait > MAX_WAIT:
                self._closed = f"the site asks for a pause of {wait:.0f} s, run again after it"
            else:
                time.sleep(wait)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILED:
            self._closed = f"{MAX_FAILED} pages in a row failed ({reason}), run again later"
        raise FetchError(self._closed or f"{reason}, {len(PAUSES)} times")

    def _request(self, url: str, kind: str) -> str:
        for _ in range(6):
            if (host := urlsplit(url).netloc.lower()) != self.host:
                raise FetchError(f"redirect to another host ({host!r}), not followed")
            if kind != "robots" and not self.allows(url):
                raise FetchError("robots.txt forbids this page")
            time.sleep(max(0.0, self._last + self.delay - time.monotonic()))
            self.requests += 1
            how = {"allow_redirects": False, "stream": True, "timeout": (10, self.page_seconds)}
            try:
                with self._session.get(url, **how) as response:
                    if response.next is None:
                        return self._text(response, kind)
                    url = response.next.url
            except FetchError:
                raise
            except ValueError as fault:
                raise FetchError(f"redirect to an address that is none ({fault})") from fault
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as fault:
                raise _TryAgain(f"connection failed ({type(fault).__name__})", None) from fault
            finally:
                self._last = time.monotonic()
        raise FetchError("more than 5 redirects")

    def _text(self, response: requests.Response, kind: str) -> str:
        status = response.status_code
        content_type = response.headers.get("Content-Type", "no content type")
        if status == 429 or status >= 500:
            raise _TryAgain(f"HTTP {status}", _seconds_asked_for(response))
        if kind == "robots" and 400 <= status < 500:
            return ""
        if status != 200:
            raise FetchError(f"HTTP {status}")
        if kind == "html" and kind not in content_type.partition(";")[0].lower():
            raise FetchError(f"got {content_type!r}, need HTML")
        text = _decode(self._receive(response), content_type)
        if kind != "robots" and (end := _missing_end(text)):
            raise _TryAgain(f"truncated page (no {end})", None)
        return text

    def _receive(self, response: requests.Response) -> bytes:
        body, deadline = bytearray(), time.monotonic() + self.page_seconds
        # read1 gives what has come; read and iter_content would wait for ever on a page that drips
        while chunk := response.raw.read1(2**16, decode_content=True):
            body += chunk
            if len(body) > MAX_BYTES:
                raise FetchError(f"page larger than {MAX_BYTES / 1e6:.0f} MB, cut off")
            if time.monotonic() > deadline:
                raise FetchError(f"page not finished after {self.page_seconds:g} s, cut off")
        return bytes(body)


def _seconds_asked_for(response: requests.Response) -> float | None:
    """The pause that Retry-After asks for; None without one, or if it is none, as "soon"."""
    with suppress(urllib3.exceptions.InvalidHeader):
        return urllib3.Retry().get_retry_after(response.raw)
    return None


def _missing_end(text: str) -> str:
    """The end tag, "</html>" or "</rss>", that a page lacks which has the start; else ""."""
    root = re.search(r"<(html|rss)\b", text, re.I)
    return f"</{root[1]}>" if root and not re.search(f"</{root[1]}", text, re.I) else ""


# by windows-1252: a control character, or the surrogate of a byte that is not UTF-8
_WINDOWS = {byte: bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0x100)}
_WINDOWS |= {0xDC00 + byte: character for byte, character in _WINDOWS.items()}


def _decode(body: bytes, content_type: str) -> str:
    """The text by byte order mark, header or <meta>, if it fits; else by UTF-8.

    As in browsers, ISO-8859-1 means windows-1252, and so do bytes that are not UTF-8.
    """
    body, mark = EncodingDetector.strip_byte_order_mark(body)
    header = re.findall(r"charset\s*=[\s\"']*([^\s\"';,]+)", content_type, re.I)
    meta = EncodingDetector.find_declared_encoding(body, is_html=True)
    with suppress(LookupError, ValueError):
        return body.decode(mark or "".join(header[:1]) or meta or "utf-8").translate(_WINDOWS)
    return body.decode("utf-8", "surrogateescape").translate(_WINDOWS)


# --------------------------------------------------------------------------------------------------
# Listing, article page and feed

_ID = r"T[0-9]{7}[A-Z]{2}(?:_[A-Z]{2})?"  # T0454343EN, T0453713DE, T0448814EN_GB


def is_article_id(text: str) -> bool:
    """Whether `text` is an article id and nothing more, so that it is safe as a file name."""
    return re.fullmatch(_ID, text) is not None


def article_ids(hrefs: list[str]) -> list[str]:
    """The ids in links to articles, each once, in order: an article has links of several forms."""
    matches = (re.search(rf"/detail/({_ID})(?:[/?#]|$)", href) for href in hrefs)
    return list(dict.fromkeys(match[1] for match in matches if match))


def listing_ids(html: str) -> list[str]:
    """The article ids of a listing page's newsfeed, newest first; side boxes are left out."""
    links = BeautifulSoup(html, "html.parser").select(ARTICLE_LINKS)
    return article_ids([str(link["href"]) for link in links])


def article_url(base_url: str, article_id: str) -> str:
    """The article's address by its id alone: slugs hold slashes, colons and odd spaces."""
    return f"{base_url.rstrip('/')}/article/detail/{article_id}"


class SkipArticle(ValueError):
    """An article that is read without fault and not wanted; the message says why."""


def parse_article(html: str, article_id: str, url: str) -> dict:
    """The article of an article page, with ARTICLE_KEYS.

    SkipArticle: it has no body, or not the language of its id. ValueError: it is of another form.
    """
    page = _soup(html).select_one("div.article-detail")
    if page is None:
        raise ValueError("page without div.article-detail")
    tags = map(page.select_one, ("h1", "span.date", "span.category", "h2.teaser"))
    texts = [_one_line(_plain(tag)) if tag else "" for tag in tags]
    return _article(article_id, url, page.select_one("#article-text"), *texts)


def feed_articles(xml: str, base_url: str) -> dict[str, dict]:
    """{id: article} of a page of the feed `rss2`, with an empty category and teaser.

    Other items than articles with a text in their id's language are left out: their pages say why.
    ValueError: it is not XML, or declares entities.
    """
    try:
        items = list(fromstring(xml).iter("item"))
    except ParseError as error:
        raise ValueError(f"the feed is not XML ({error})") from error
    articles = {}
    for item in items:
        names = ("link", "description", "title", "pubDate")
        link, body, title, day = (item.findtext(name, "") for name in names)
        for article_id in article_ids([link]):
            with suppress(ValueError):
                url, title = article_url(base_url, article_id), _one_line(unescape(title))
                articles[article_id] = _article(article_id, url, _soup(body), title, day, "", "")
    return articles


def _article(article_id: str, url: str, body: Tag | None, *texts: str) -> dict:
    title, day, category, teaser = texts
    if not title:
        raise ValueError("article without a title")
    if not (text := body_text(body) if body else ""):
        raise SkipArticle("no body")
    if not is_in_language(f"{title} {text}", code := language(article_id)):
        raise SkipArticle(f"text is not {code}, as the id says")
    values = (article_id, url, title, parse_date(day), category, teaser, text)
    return dict(zip(ARTICLE_KEYS, values, strict=True))


def parse_date(text: str) -> str:
    """ISO date of "14.08.2025", "14. August 2025", "Thu, 14 Aug 2025 …" or "Thu Aug 14 … 2025"."""
    match = re.fullmatch(r"([0-9]{1,2})\. ?([0-9]{1,2}|[^\W\d_]+)\.? ?([0-9]{4})", text.strip())
    # without the zone: the site's calendar day counts, and strptime may not know CEST
    numbers = match.groups()[::-1] if match else (email.utils.parsedate(text) or (0, 0, 0))[:3]
    months = {name: number for number, name in enumerate(GERMAN_MONTHS, start=1)}
    try:
        return date(*(int(months.get(number, number)) for number in numbers)).isoformat()
    except ValueError as error:
        need = "need 14.08.2025, 14. August 2025 or Fri Nov 21 10:00:00 CET 2025"
        raise ValueError(f"date {text!r}, {need}") from error


_STOP_WORDS = {
    "EN": stopwords.STOPWORDS_EN_PLUS,
    "DE": stopwords.STOPWORDS_GERMAN,
    "FR": stopwords.STOPWORDS_FRENCH,
    "ES": stopwords.STOPWORDS_SPANISH,
    "IT": stopwords.STOPWORDS_ITALIAN,
}


def is_in_language(text: str, code: str) -> bool:
    """Whether no other language has more stop words in `text`, or all have fewer than three."""
    words = set(re.findall(r"[^\W\d_]{2,}", text.lower()))
    counts = {name: len(words.intersection(stop)) for name, stop in _STOP_WORDS.items()}
    return max(counts.values()) in (0, 1, 2, counts.get(code))


# --------------------------------------------------------------------------------------------------
# Text

_INVISIBLE = re.compile("[\u00ad\u200c-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_SPACE = re.compile(r"(?:[^\S\t\n]|[\u200b\x00-\x08\x0b-\x1f\x7f-\x9f])+")
_BLOCKS = [*HTMLTreeBuilder.DEFAULT_BLOCK_ELEMENTS, "tr", "td", "th"]
_NO_TEXT = "noscript, template, button, iframe, object, svg, select, textarea, .co2_summary"


def body_text(body: Tag) -> str:
    """The body as plain text: one blank line between paragraphs; a list or table is a paragraph.

    A list has "- item" lines and a table "cell<tab>cell" lines. Spacers, CO2 boxes, footnote marks,
    contacts and social-media links are left out. `body` comes from `_soup` and is used up.
    """
    text = re.sub(r" *\n *", "\n", _fold(_plain(body))).strip(" \n")
    without_contacts = _SOCIAL_MEDIA.sub("", _CONTACTS.sub("", text)).strip("\n")
    return re.sub(r"\n{2,}", "\n\n", without_contacts or text)


def _soup(html: str) -> BeautifulSoup:
    """`html` in one line, so that the newlines in its text are those that `_plain` puts there."""
    return BeautifulSoup(" ".join(html.split()), "html.parser")


def _plain(element: Tag) -> str:
    """The text, with a newline for a break, a blank line around blocks, and tabs between cells."""
    for tag in element.select(_NO_TEXT):
        tag.decompose()
    for tag in element.find_all("br"):
        tag.replace_with("\n")
    for tag in element.find_all(_BLOCKS):
        tag.insert(0, "\n\n")
        tag.append("\n\n")
    for tag in element.find_all("sup"):
        tag.replace_with(_superscript(tag))
    for tag in reversed(element.find_all(["li", "table"])):  # inner ones first
        if tag.name == "li":  # one paragraph, even if it is made of several or holds a list
            tag.replace_with("\n- " + re.sub(r"\s*\n\s*", "\n", tag.get_text().strip()))
        elif rows := _rows(tag):
            tag.replace_with("\n\n" + "\n".join(map("\t".join, rows)) + "\n\n")
    return element.get_text()


def _fold(text: str) -> str:
    return _SPACE.sub(" ", _INVISIBLE.sub("", text))


def _one_line(text: str) -> str:
    return " ".join(_fold(text).split())


_FOOTNOTE = re.compile(r"(?:[1-9]\d?(?!\d)|[a-d]\b|and|und|[][(){},;.:*†‡#§¹²³&/+\s–-])*")
_EXPONENT = re.compile(  # "before^superscript"; a mark in kWh/100 km and g/km is a footnote's
    r"(?:(?<![^\W\d_])(?:[cdhm]?m|ft|m/s|(?<!/)(?<!/100\s)km)\^[23²³]|(?<![\d.,])10\^(?:[3-9]|\d\d)"
    r"|\^[-−–]\d\d?)\s*$"
)
_RAISED = str.maketrans("0123456789-−–", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻⁻")


def _superscript(tag: Tag) -> str:
    """What a <sup> adds to the text: ² after a unit of length, ⁶ after 10, a footnote's mark no."""
    before, text = str(tag.find_previous(string=True) or ""), tag.get_text()
    if before.endswith("CO"):  # CO<sup>2</sup> for CO<sub>2</sub>
        return text
    if not (tag.a or tag.find_parent("a")) and _EXPONENT.search(f"{before}^{text}"):
        return text.translate(_RAISED)
    return text[len(text.rstrip()) :] if _FOOTNOTE.fullmatch(text) else text


def _rows(table: Tag) -> list[list[str]]:
    """The rows of a table that has columns; none if the table only frames text."""
    trs = [tr for tr in table.find_all("tr") if tr.find_parent("table") is table]
    cells = [tr.find_all(["td", "th"], recursive=False) for tr in trs]
    rows = [[_one_line(cell.get_text()) for cell in row] for row in cells]
    return [row for row in rows if any(row)] if any(sum(map(bool, row)) > 1 for row in rows) else []


_REACH = (
    r"(?:\b(?:phone|tel|telephone|telefon|mobile|mobil|fax)\b\.?:? ?\+?[(\d]|[\w.+-]+@[\w-]+\.\w"
    r"|^(?:media |press )?(?:website|internet):)"
)
_SHORT = r"^(?=.{1,200}$)"  # a longer line is no contact
_CONTACTS = re.compile(  # its first line ends in a colon, or has an address at most 4 lines on
    rf"{_SHORT}(?=.*:$|(?:.*\n++){{0,4}}?.*{_REACH})"
    r"(?:(?:in case of|in the event of|(?:if|should) you have|bei (?:rück)?fragen"
    r"|for (?:any |further |more |additional )).{0,60}\b(?:contact\b|an:?$).*"
    r"|(?:corporate communications|unternehmenskommunikation|(?:press|media) ?contacts?"
    r"|(?:presse|medien)kontakt)[.:]?$)"
    rf"(?:(?:\n++{_SHORT}.+){{0,3}}?\n++{_SHORT}.*?{_REACH}.*)*",
    re.I | re.M,
)
_LINK = r"(?:https?://|www\.)\S+$"
_NETWORK = r"(?:linkedin|youtube|instagram|facebook|x|twitter|tiktok|threads) ?: ?\S*[./@]\S*$"
_SOCIAL_MEDIA = re.compile(
    rf"^(?:{_LINK}\n+)*{_NETWORK}(?:\n+(?:{_LINK}|{_NETWORK}))*", re.I | re.M
)
