"""What the three notebooks of bmwqa share, and what a test must prove.

Files and articles, question-answer pairs, the prompt and its labels, models, and the evaluation.
Scraping, training settings and plots are in the notebooks: they are the story, this is the small print.
"""

import json
import os
import re
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent

# ---------------------------------------------------------------------------------------------------------------------
# Files: read with the name of what is broken, written whole or not at all


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all: a reader sees the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0o600, which other users of the folder could not read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: list[dict]) -> None:
    """Write one JSON object a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: str | Path, keys: tuple[str, ...] = ()) -> list[dict]:
    """Read a JSONL file; ValueError names the line that is no JSON object or lacks one of `keys`."""
    rows = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            rows.append(_parse(line, f"{path}, line {number}", keys))
    return rows


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8, or delete it.") from error


def _parse(text: str, where: str, keys: tuple[str, ...]) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}). Was it cut off? Make the file again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {type(value).__name__}, need a JSON object.")
    if missing := [key for key in keys if key not in value]:
        raise ValueError(f"{where}: the key {missing[0]!r} is missing. Need {', '.join(keys)}.")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Articles

ARTICLE_KEYS = ("id", "url", "title", "date", "category", "teaser", "text")


def load_articles(folder: str | Path) -> list[dict]:
    """Read every `<id>.json` in `folder`, sorted by id.

    An article has the string keys of ARTICLE_KEYS; `date` is ISO ("2025-05-12"), `text` has its paragraphs separated by
    one blank line and may be empty. ValueError names the file and what is wrong with it, or the folder if it has none.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.json"))
    paths = [path for path in paths if path.name != "manifest.json" and not path.name.startswith(".")]
    if not paths:
        raise ValueError(f"{folder} has no <id>.json. Run data_extraction.ipynb, or use data/sample.")
    articles, owner = [], {}
    for path in paths:
        article = _parse(_read(path), str(path), ARTICLE_KEYS)
        for key in ARTICLE_KEYS:
            if not isinstance(article[key], str):
                raise ValueError(f"{path}: {key!r} is {type(article[key]).__name__}, need a string.")
        try:
            date.fromisoformat(article["date"])
        except ValueError as error:
            raise ValueError(f"{path}: 'date' is {article['date']!r}, need an ISO date like 2025-05-12.") from error
        if article["id"] in owner:
            raise ValueError(f"{path}: has the id {article['id']} of {owner[article['id']]}. Delete one of the two.")
        owner[article["id"]] = path.name
        articles.append(article)
    return articles
