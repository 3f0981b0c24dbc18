"""PressClub pages to articles: polite requests, the listing, the text. No file, no browser.

The rules come from saved pages of the real site, December 2025 to June 2026.
"""

import email.utils
import re
import time
from contextlib import suppress
from datetime import date
from functools import cached_property
from itertools import groupby
from urllib.parse import quote, urljoin, urlsplit

import requests
import urllib3
from bs4 import BeautifulSoup, NavigableString, Tag
from bs4.dammit import EncodingDetector
from protego import Protego

BOT = "bmwqa/1.0"  # robots.txt may address it with or without the version
USER_AGENT = f"Mozilla/5.0 (X11; Linux x86_64) {BOT} (article research, one request at a time)"
LANGUAGE = "en-US,en;q=0.9"  # without it the site sends dates as Java prints them
ARTICLE_LINKS = "article.newsfeed div.text h3 a[href]"  # side boxes link articles months old
MAX_BYTES = 5_000_000  # the largest page seen is far below 1 MB
TRIES = 4  # per page: at once, then after 1, 2 and 4 seconds or what Retry-After says
MAX_WAIT = 120  # seconds; a site that asks for a longer pause is left alone
MAX_GIVEN_UP = 10  # pages in a row that failed in every try: the site is down

# --------------------------------------------------------------------------------------------------
# Fetching


class FetchError(ValueError):
    """A page that could not be had; the message says why."""


class SiteDown(FetchError):
    """The site needs a rest: stop, and run again later."""


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
        self._given_up, self._closed, self._last = 0, "", float("-inf")
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Language": LANGUAGE})
        # a proxy does not know this machine's own servers
        self._session.trust_env = address.hostname not in ("127.0.0.1", "localhost")

    @cached_property
    def robots(self) -> Protego:
        """The site's robots.txt, read once; without one all is allowed (RFC 9309, 2.3.1.3)."""
        url = urljoin(self.base_url, "/robots.txt")
        try:
            rules = Protego.parse(self._fetch(url, html=False))
        except FetchError as fault:
            raise FetchError(f"{url} could not be read ({fault}). Run again later.") from fault
        self.delay = max(self.delay, rules.crawl_delay(BOT) or 0)
        return rules

    def allows(self, url: str) -> bool:
        """Whether robots.txt allows the page."""
        return self.robots.can_fetch(url, BOT)

    def fetch(self, url: str) -> str:
        """The whole HTML page at `url`; FetchError without it, SiteDown if the site is down."""
        if not self.allows(url):
            raise FetchError("robots.txt forbids this page")
        return self._fetch(url, html=True)

    def _fetch(self, url: str, html: bool) -> str:
        if self._closed:
            raise SiteDown(self._closed)
        for attempt in range(TRIES):
            try:
                text = self._request(url, html)
                self._given_up = 0
                return text
            except _TryAgain as fault:
                reason, wait = fault.args
                wait = 2**attempt if wait is None else wait
                if wait > MAX_WAIT:
                    self._closed = f"the site asks for a pause of {wait:.0f} s, run again after it"
                    raise SiteDown(self._closed) from fault
                if attempt < TRIES - 1:
                    time.sleep(wait)
        self._given_up += 1
        if self._given_up >= MAX_GIVEN_UP:
            self._closed = f"{self._given_up} pages in a row failed ({reason}), run again later"
            raise SiteDown(self._closed)
        raise FetchError(f"{reason}, {TRIES} times")

    def _request(self, url: str, html: bool) -> str:
        for _ in range(5):
            time.sleep(max(0.0, self._last + self.delay - time.monotonic()))
            self.requests += 1
            how = {"allow_redirects": False, "stream": True, "timeout": (10, self.page_seconds)}
            try:
                with self._session.get(url, **how) as response:
                    if not response.is_redirect:
                        return self._text(response, html)
                    location = response.headers["Location"].encode("latin-1")  # the bytes sent
                    url = urljoin(url, quote(location, safe="!#$%&'()*+,/:;=?@~"))
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as fault:
                raise _TryAgain(f"connection failed ({type(fault).__name__})", None) from fault
            finally:
                self._last = time.monotonic()
            if (host := urlsplit(url).netloc.lower()) != self.host:
                raise FetchError(f"redirect to another host ({host!r}), not followed")
            if html and not self.allows(url):
                raise FetchError("redirect to a page that robots.txt forbids")
        raise FetchError("more than 5 redirects")

    def _text(self, response: requests.Response, html: bool) -> str:
        status = response.status_code
        content_type = response.headers.get("Content-Type", "no content type")
        if status == 429 or status >= 500:
            raise _TryAgain(f"HTTP {status}", urllib3.Retry().get_retry_after(response.raw))
        if not html and 400 <= status < 500:
            return ""
        if status != 200:
            raise FetchError(f"HTTP {status}")
        if html and "html" not in content_type.partition(";")[0].lower():
            raise FetchError(f"got {content_type!r}, need HTML")
        text = _decode(self._receive(response), content_type)
        if html and re.search("<html", text, re.I) and not re.search("</html", text, re.I):
            raise _TryAgain("truncated page (no </html>)", None)
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


# by windows-1252: a control character, or the surrogate of a byte that is not UTF-8
_WINDOWS = {byte: bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0x100)}
_WINDOWS |= {0xDC00 + byte: character for byte, character in _WINDOWS.items()}


def _decode(body: bytes, content_type: str) -> str:
    """The text by byte order mark, header or <meta>, if they fit; else by UTF-8.

    As in browsers, ISO-8859-1 means windows-1252, and so do bytes that are not UTF-8.
    """
    body, mark = EncodingDetector.strip_byte_order_mark(body)
    header = re.findall(r"charset\s*=[\s\"']*([^\s\"';,]+)", content_type, re.I)[:1]
    meta = EncodingDetector.find_declared_encoding(body, is_html=True) or ""
    for label in (mark or "", *header, meta.replace("utf-16", "utf-8")):
        with suppress(LookupError, ValueError):
            return body.decode(label).translate(_WINDOWS)
    return body.decode("utf-8", "surrogateescape").translate(_WINDOWS)


# --------------------------------------------------------------------------------------------------
# Listing and article page

_ID = r"T[0-9]{7}[A-Z]{2}(?:_[A-Z]{2})?"  # T0454343EN, T0453713DE, T0448814EN_GB


def is_article_id(text: str) -> bool:
    """Whether `text` is an article id and nothing more, so that it is safe as a file name."""
    return re.fullmatch(_ID, text) is not None


def is_english_id(article_id: str) -> bool:
    """Whether the id is an English article's: T0454343EN and T0448814EN_GB, not T0453713DE."""
    return article_id[8:10] == "EN"


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
    """The article dict (id, url, title, date, category, teaser, text) of an article page.

    SkipArticle: it has no body, or is not English. ValueError: it has not an article page's form.
    """
    page = BeautifulSoup(html, "html.parser").select_one("div.article-detail")
    if page is None:
        raise ValueError("page without div.article-detail")
    selectors = ("h1", "span.date", "span.category", "h2.teaser")
    title, day, category, teaser = (_line(page.select_one(selector)) for selector in selectors)
    if not title:
        raise ValueError("article without a title (h1)")
    body = page.select_one("#article-text")
    try:
        text = body_text(body) if body else ""
    except RecursionError as error:
        raise ValueError("body nested too deeply") from error
    if not text:
        raise SkipArticle("no body")
    if not is_english(f"{title} {teaser} {text}"):
        raise SkipArticle("text is not English")
    article = {"id": article_id, "url": url, "title": title, "date": parse_date(day)}
    return article | {"category": category, "teaser": teaser, "text": text}


def parse_date(text: str) -> str:
    """ISO date of "14.08.2025" or of Java's "Fri Nov 21 10:00:00 CET 2025"."""
    match = re.fullmatch(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})", text.strip())
    # without the zone: the site's calendar day counts, and strptime may not know CEST
    numbers = match.groups()[::-1] if match else (email.utils.parsedate(text) or (0, 0, 0))[:3]
    try:
        return date(*map(int, numbers)).isoformat()
    except ValueError as error:
        need = "need 14.08.2025 or Fri Nov 21 10:00:00 CET 2025"
        raise ValueError(f"date {text!r}, {need}") from error


_STOP_WORDS = {
    "en": "the and of to is with for at by from this that are was has have will it its as be which "
    "their you your",
    "de": "der die und das mit von den für ist ein eine auf im dem des zu sich auch werden wird "
    "nicht bei sie finden",
    "fr": "le la les et des du une un pour est dans avec sur que qui par au aux plus ce cette sont "
    "vous",
    "es": "el la los las y en del una un para es con que por se su más al como este esta",
    "it": "il la di che e per con una un del della nel è sono più gli dei alla questo come anche",
}


def is_english(text: str) -> bool:
    """Whether no other language has more stop words in `text`, or all have fewer than three."""
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    counts = {name: len(words & set(stop.split())) for name, stop in _STOP_WORDS.items()}
    return counts["en"] >= max(counts.values()) or max(counts.values()) < 3


# --------------------------------------------------------------------------------------------------
# Text

_INVISIBLE = re.compile("[\u00ad\u200c-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufdd0-\ufdd2]")
_SPACE = re.compile(r"[\s\u200b\x00-\x1f\x7f-\x9f]+")  # \s knows nbsp and U+202F
_BLOCKS = set(
    "address article aside blockquote center dd div dl dt fieldset figcaption figure footer form "
    "h1 h2 h3 h4 h5 h6 header hr main ol p pre section table tbody td tfoot th thead tr ul".split()
)
_NO_TEXT = set("script style noscript template button iframe object svg select textarea".split())


def body_text(body: Tag) -> str:
    """The body as plain text: one blank line between paragraphs; a list or table is a paragraph.

    A list has "- item" lines and a table "cell<tab>cell" lines. Hard wraps are folded; spacers,
    CO2 boxes, contacts and social-media links are left out.
    """
    text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", _without_notes(_raw_text(body))))
    paragraphs = (paragraph.strip(" \n") for paragraph in re.split(r"\n{2,}", text))
    return _without_contacts("\n\n".join(paragraph for paragraph in paragraphs if paragraph))


# \ufdd0 and \ufdd1 stand around a superscript, \ufdd2 before a subscript: no text may have them
_NOTE = (
    "\ufdd0(?:[1-9¹²³]\\d?(?!\\d)|\\b[a-d]\\b|[][(){},;.:*†‡§#–\\s-])*\ufdd1(?! ?(?:⁄|/ ?\ufdd2))"
)
_NOTES = re.compile(rf" *{_NOTE}(?:[,;] ?{_NOTE})*(?=[\s.,;:!?)]|$)|{_NOTE}")
_LENGTH = r"(?<![^\W\d_])(?:[cdmµ]?m|(?<!/100)(?<!/100 )(?<!g/)km|m/s|ft|in|yd|mi)"
_POWER = re.compile(
    rf"({_LENGTH}(?=\ufdd0[23]\ufdd1)|(?<![\d.,])10(?!\ufdd0[12]\ufdd1)|(?=\ufdd0[-−–]))"
    r"\ufdd0([-−–]?\d\d?)\ufdd1"
)
_RAISED = str.maketrans("0123456789-−–", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻⁻")


def _without_notes(text: str) -> str:
    """`text` without the superscripts that mark footnotes: 1 to 99, a to d, *, †, also in brackets.

    A number outside a link is no mark after a unit of length if 2 or 3 (but in g/km, l/100 km),
    after 10 if 3 or more, and if negative: it is an exponent. Other superscripts stay as they are.
    """
    text = _POWER.sub(lambda match: match[1] + match[2].translate(_RAISED), text)
    text = _NOTES.sub("", text.replace("CO\ufdd02\ufdd1", "CO2"))
    return re.sub("[\ufdd0-\ufdd2]", "", re.sub(r"(?<=\d)\ufdd0(?=\d)", " ", text))


def _fold(text: str) -> str:
    return _SPACE.sub(" ", _INVISIBLE.sub("", text))


def _line(element: Tag | None) -> str:
    return _fold(_without_notes(_raw_text(element))).strip() if element else ""


def _raw_text(element: Tag) -> str:
    if element.name == "br":
        return "\n"
    if element.name == "table" and (rows := _rows(element)):
        return "\n\n" + "\n".join("\t".join(row) for row in rows) + "\n\n"
    pieces = []
    for child in element.children:
        if isinstance(child, Tag):
            if child.name in _NO_TEXT or "co2_summary" in child.get("class", []):
                continue
            pieces.append(_raw_text(child))
        elif type(child) is NavigableString:  # not a comment, which is a subclass
            pieces.append(_fold(child))
    text = "".join(pieces)
    if element.name == "li":  # one paragraph, even if it is made of several or holds a list
        return "\n- " + re.sub(r"\s*\n\s*", "\n", text.strip())
    if element.name in ("sub", "sup"):
        return _script(element, text)
    return f"\n\n{text}\n\n" if element.name in _BLOCKS else text


def _script(element: Tag, text: str) -> str:
    """The text of a <sub> or <sup>, marked for `_without_notes`; a number in a link becomes *."""
    if element.name == "sub":
        return f"\ufdd2{text}"
    link = element.a or element.find_parent("a")
    if link and link.get_text(strip=True) in text:
        text = re.sub(r"\d+", "*", text)
    return re.sub(r"\S(?:.*\S)?", "\ufdd0\\g<0>\ufdd1", text.replace("\n", " "))


def _rows(table: Tag) -> list[list[str]]:
    """The rows of a table that has columns; none if the table only frames text."""
    trs = [tr for tr in table.find_all("tr") if tr.find_parent("table") is table]
    rows = [[_line(cell) for cell in tr.find_all(["td", "th"], recursive=False)] for tr in trs]
    has_columns = any(sum(map(bool, row)) > 1 for row in rows)
    return [row for row in rows if any(row)] if has_columns else []


_CONTACT = re.compile(
    r"(?i)(in case of|in the event of|(if|should) you have|for (any |further |more |additional ))"
    r".{0,60}\bcontact\b|(corporate communications|(press|media) contacts?)[.:]?$"
)
_REACH = re.compile(
    r"(?i)\b(phone|tel|telephone|mobile|fax)\b\.?:? ?\+?[(\d]|[\w.+-]+@[\w-]+\.\w"
    r"|^(media |press )?(website|internet):"
)
_NETWORKS = "linkedin|youtube|instagram|facebook|x|twitter|tiktok|threads"
_SOCIAL = re.compile(rf"({_NETWORKS}) ?: ?\S*[./@]\S*$", re.I)
_URL = re.compile(r"(https?://|www\.)\S+$", re.I)
_PROSE = 200  # characters; a longer line is no contact


def _without_contacts(text: str) -> str:
    """`text` without contacts and links to social media; all of it if it has nothing else."""
    lines = text.split("\n")  # not by paragraphs: an article may be one paragraph of lines
    numbers = [number for number, line in enumerate(lines) if line]
    filled = [lines[number] for number in numbers]
    starts = [i for i, line in enumerate(filled) if len(line) <= _PROSE and _CONTACT.match(line)]
    contacts = {place for start in starts for place in range(start, _contact_end(filled, start))}
    dropped = {numbers[place] for place in contacts | _social_media(filled)}
    kept = "\n".join(line for number, line in enumerate(lines) if number not in dropped)
    return re.sub(r"\n{3,}", "\n\n", kept).strip("\n") or text


def _contact_end(lines: list[str], start: int) -> int:
    """Where a contact ends: after its last way to reach someone; names may stand between."""
    end = start + 1 if lines[start].endswith(":") else start
    last_reach = start
    for place in range(start, len(lines)):
        if len(lines[place]) > _PROSE or place - last_reach > 4:
            break
        if _REACH.search(lines[place]):
            end, last_reach = place + 1, place
    return end


def _social_media(lines: list[str]) -> set[int]:
    """The places of social-media lines, and of bare addresses in the same run of lines."""
    is_link = [bool(_SOCIAL.match(line) or _URL.match(line)) for line in lines]
    runs = [list(run) for _, run in groupby(range(len(lines)), key=is_link.__getitem__)]
    return set().union(*(run for run in runs if any(_SOCIAL.match(lines[place]) for place in run)))
