"""Files and articles: read with the name of what is broken, written whole or not at all."""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent
ARTICLE_KEYS = ("id", "url", "title", "date", "category", "teaser", "text")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Write one JSON object per line as the rows come, whole or not at all."""
    write_text(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: str | Path, text: str | Iterable[str]) -> None:
    """Write a text, or its pieces, as UTF-8, whole or not at all."""
    with whole_file(path) as file:
        for piece in [text] if isinstance(text, str) else text:
            file.write(piece.encode())


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write bytes to, whole or not at all: a reader sees the old file or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0o600, which other users could not read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_jsonl(path: str | Path, keys: tuple[str, ...] = ()) -> list[dict]:
    """The objects of a JSONL file; ValueError names a line that is broken or lacks a key."""
    return [row for _, row in numbered_lines(path, keys)]


def numbered_lines(path: str | Path, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, dict]]:
    """("<path>, line <number>", object) for each line of a JSONL file, read as it is asked for.

    Blank lines are passed over; ValueError is as in `read_jsonl`.
    """
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _parse(line, where, keys)


def read_json(path: str | Path, keys: tuple[str, ...] = ()) -> dict:
    """A JSON object; ValueError names the file that is missing, broken, or lacks one of `keys`."""
    with _open(path) as file:
        return _parse(file.read(), str(path), keys)


def _open(path: str | Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        need = "Run the notebook before this one, or correct the path."
        raise ValueError(f"{path} is missing. {need}") from error
    except OSError as error:  # a folder, or a file of someone else's
        raise ValueError(f"{path} cannot be read ({error.strerror}). Correct the path.") from error


def _parse(text: bytes, where: str, keys: tuple[str, ...]) -> dict:
    try:
        value = json.loads(text.decode("utf-8-sig"))  # some editors put a mark in front
        if b"\\u" in text:  # half a character can only come from an escape
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        need = "Mend it, or save it as UTF-8."
        raise ValueError(f"{where}: not JSON in UTF-8 ({error}). Was it cut off? {need}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {type(value).__name__}, need a JSON object. Mend it.")
    if missing := [key for key in keys if key not in value]:
        need = f"Need {', '.join(keys)}. Add it."
        raise ValueError(f"{where}: the key {missing[0]!r} is missing. {need}")
    return value


def require_texts(values: dict, keys: Iterable[str], where: str | Path) -> None:
    """ValueError names `where` and the first of `keys` whose value is no text."""
    for key in keys:
        if not isinstance(values[key], str):
            raise ValueError(f"{where}: {key!r} is {values[key]!r:.60}, need text. Correct it.")


def load_articles(folder: str | Path) -> list[dict]:
    """The articles `<id>.json` in `folder`, sorted by file name.

    An article has the keys ARTICLE_KEYS, all with texts. `date` is ISO ("2025-05-12"). `text` may
    be empty; one blank line separates its paragraphs. ValueError names what is wrong and where.
    """
    return [article for article, _ in _read_articles(folder)]


def _read_articles(folder: str | Path) -> Iterator[tuple[dict, Path]]:
    paths = sorted(Path(folder).glob("[!.]*.json"))
    if not paths:
        need = "Run data_extraction.ipynb, or use data/sample."
        raise ValueError(f"{folder} has no <id>.json. {need}")
    path_of = {}
    for path in paths:
        article = load_article(path)
        first = path_of.setdefault(article["id"], path)
        if first != path:
            raise ValueError(f"{path}: has the id {article['id']} of {first}. Delete one of them.")
        yield article, path


def load_article(path: str | Path) -> dict:
    """One article, checked, see `load_articles`."""
    article = read_json(path, ARTICLE_KEYS)
    require_texts(article, ARTICLE_KEYS, path)
    try:
        if date.fromisoformat(article["date"]).isoformat() != article["date"]:
            raise ValueError("another ISO form")  # as 20250512
    except ValueError as error:
        need = "need an ISO date like 2025-05-12"
        raise ValueError(f"{path}: 'date' is {article['date']!r}, {need}. Correct it.") from error
    return article


def check_corpus(folder: str | Path) -> dict[str, dict[str, Path]]:
    """{"train": {id: file}, "eval": {id: file}} of a corpus folder, every article checked.

    ValueError if one is in both, if only as the edition of another country (T0448814EN_GB) or as
    the same text. No article stays in memory: `load_article` gives it again.
    """
    corpus, eval_id_of = {"train": {}, "eval": {}}, {}
    for split in ("eval", "train"):
        for article, path in _read_articles(Path(folder, split)):
            corpus[split][article["id"]] = path
            release = article["id"].partition("_")[0]
            text = " ".join(article["text"].lower().split())
            for mark in (release, hash(text or release)):
                if split == "eval":
                    eval_id_of[mark] = article["id"]
                elif mark in eval_id_of:
                    why = f"is {eval_id_of[mark]} of eval: its scores would show memory, not skill"
                    raise ValueError(f"{path} {why}. Delete it.")
    return corpus


def article_context(article: dict) -> str:
    """What a model is given to read: the title, the date and the text.

    >>> article_context({"title": " A title. ", "date": "2025-05-02", "text": "Munich. A text."})
    'A title.\\n2 May 2025\\n\\nMunich. A text.'
    """
    return f"{article['title'].strip()}\n{written_date(article)}\n\n{article['text']}"


def written_date(article: dict) -> str:
    """The article's ISO date as people write it: "2 May 2025", in German "2. Mai 2025"."""
    day = date.fromisoformat(article["date"])
    if language(article.get("id", "")) == "DE":
        return f"{day.day}. {GERMAN_MONTHS[day.month - 1]} {day.year}"
    return f"{day.day} {day:%B %Y}"


GERMAN_MONTHS = (
    "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split()
)


def language(article_id: str) -> str:
    """The language that an article's id names: "DE" in T0453713DE, "EN" in T0448814EN_GB."""
    match = re.match(r"T[0-9]{7}([A-Z]{2})", article_id)
    return match[1] if match else ""
