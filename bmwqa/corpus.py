"""Files and articles: read with the name of what is broken, written whole or not at all."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent
ARTICLE_KEYS = ("id", "url", "title", "date", "category", "teaser", "text")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all: a reader sees the old file or the new."""
    _write(path, [text])


def _write(path: str | Path, texts: Iterable[str]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(texts)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0o600, which other users could not read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Write one JSON object per line as the rows come, whole or not at all."""
    _write(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: str | Path, keys: tuple[str, ...] = ()) -> list[dict]:
    """The objects of a JSONL file; ValueError names a line that is broken or lacks a key."""
    return [row for _, row in numbered_lines(path, keys)]


def numbered_lines(path: str | Path, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, dict]]:
    """("<path>, line <number>", object) for each line of a JSONL file, read as it is asked for.

    Blank lines are passed over; ValueError is as in `read_jsonl`.
    """
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if text := _utf8(line, where).strip():
                yield where, _parse(text, where, keys)


def read_json(path: str | Path, keys: tuple[str, ...] = ()) -> dict:
    """A JSON object; ValueError names the file that is missing, broken, or lacks one of `keys`."""
    with _open(path) as file:
        return _parse(_utf8(file.read(), str(path)), str(path), keys)


def _open(path: str | Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        need = "Run the notebook before this one, or correct the path."
        raise ValueError(f"{path} is missing. {need}") from error


def _utf8(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8-sig")  # some editors put a mark in front
    except UnicodeDecodeError as error:
        need = "Save the file as UTF-8, or delete it."
        raise ValueError(f"{where}: byte {error.start} is not UTF-8. {need}") from error


def _parse(text: str, where: str, keys: tuple[str, ...]) -> dict:
    try:
        value = json.loads(text)
        if "\\u" in text:  # half a character can only come from an escape
            json.dumps(value, ensure_ascii=False).encode()
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}). Was it cut off? Mend it.") from error
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"{where}: {half} is half a character. Delete it.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {type(value).__name__}, need a JSON object. Mend it.")
    if missing := [key for key in keys if key not in value]:
        need = f"Need {', '.join(keys)}. Add it."
        raise ValueError(f"{where}: the key {missing[0]!r} is missing. {need}")
    return value


def load_articles(folder: str | Path) -> list[dict]:
    """The articles `<id>.json` in `folder`, sorted by file name.

    An article has the keys ARTICLE_KEYS, all with strings. `date` is ISO ("2025-05-12"). `text` may
    be empty; one blank line separates its paragraphs. ValueError names what is wrong, and the file
    or the folder.
    """
    return [article for article, _ in _read_articles(folder)]


def _read_articles(folder: str | Path) -> Iterator[tuple[dict, Path]]:
    paths = [path for path in sorted(Path(folder).glob("*.json")) if not path.name.startswith(".")]
    paths = [path for path in paths if path.name != "manifest.json"]
    if not paths:
        raise ValueError(
            f"{folder} has no <id>.json. Run data_extraction.ipynb, or use data/sample."
        )
    file_of = {}
    for path in paths:
        article = load_article(path)
        if article["id"] in file_of:
            other = file_of[article["id"]]
            raise ValueError(f"{path}: has the id {article['id']} of {other}. Delete one of them.")
        file_of[article["id"]] = path.name
        yield article, path


def load_article(path: str | Path) -> dict:
    """One article, checked, see `load_articles`."""
    article = read_json(path, ARTICLE_KEYS)
    _check_article(article, path)
    return article


def _check_article(article: dict, path: Path) -> None:
    for key in ARTICLE_KEYS:
        if not isinstance(article[key], str):
            got = type(article[key]).__name__
            raise ValueError(f"{path}: {key!r} is {got}, need a string. Delete or correct it.")
    try:
        date.fromisoformat(article["date"])
    except ValueError as error:
        need = "need an ISO date like 2025-05-12"
        raise ValueError(f"{path}: 'date' is {article['date']!r}, {need}. Correct it.") from error


def check_corpus(folder: str | Path) -> dict[str, dict[str, Path]]:
    """{"train": {id: file}, "eval": {id: file}} of a corpus folder, every article checked.

    ValueError if one is in both. No article stays in memory: `load_article` gives it again.
    """
    corpus, in_eval = {"train": {}, "eval": {}}, {}
    for article, path in _read_articles(Path(folder, "eval")):
        corpus["eval"][article["id"]] = path
        in_eval |= dict.fromkeys(_release(article), article["id"])
    for article, path in _read_articles(Path(folder, "train")):
        corpus["train"][article["id"]] = path
        if twin := next((in_eval[mark] for mark in _release(article) if mark in in_eval), None):
            name = article["id"] if twin == article["id"] else f"{article['id']} (in eval {twin})"
            why = f"{name} is in train and in eval, so its scores would show memory, not skill"
            raise ValueError(
                f"{folder}: {why}. Delete {Path(folder, 'train', article['id'])}.json."
            )
    return corpus


def _release(article: dict) -> list[str]:
    """What two files of one release share: the id without its country (…EN_GB), the text's hash."""
    text = " ".join(article["text"].lower().split())
    digest = hashlib.sha256(text.encode()).hexdigest()
    return [article["id"].partition("_")[0], *([digest] if text else [])]


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
