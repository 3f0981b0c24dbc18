"""Files that are broken, missing or cut in half: one clear error names them; nothing is lost."""

import json
import os
from collections import Counter

import pytest

import bmwqa_utils as bq

ROW = dict.fromkeys(bq.ROW_KEYS, "x")


def test_articles_come_back_as_written_sorted_by_id(corpus):
    ids = [article["id"] for article in bq.load_articles(corpus / "train")]
    assert ids == ["T0000001EN", "T0000002EN"]


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_folder_that_is_empty_or_missing_says_which_notebook_fills_it(tmp_path, name):
    with pytest.raises(ValueError, match="has no <id>.json. Run data_extraction.ipynb"):
        bq.load_articles(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('{"id": "T1"', "not JSON"),
        ("<html>", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ('"text"', "found str, need a JSON object"),
        ("[]", "found list, need a JSON object"),
        ('{"id": "a\\ud83d"}', r"not JSON in UTF-8 \(.*'\\ud83d'.*Mend it"),
        ('{"id": "Nürburgring"}'.encode("latin-1"), r"not JSON in UTF-8 \(.*position 9.*UTF-8"),
    ],
)
def test_what_is_no_json_object_names_its_file(corpus, content, message):
    content = content if isinstance(content, bytes) else content.encode()
    (corpus / "train" / "T0000009EN.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"T0000009EN\.json: {message}"):
        bq.check_corpus(corpus)


@pytest.mark.parametrize("key", bq.ARTICLE_KEYS)
def test_a_missing_key_names_file_and_key(corpus, article, key):
    del article[key]
    bq.write_json(corpus / "train" / "T0000009EN.json", article)
    with pytest.raises(ValueError, match=rf"T0000009EN\.json: the key '{key}' is missing"):
        bq.load_articles(corpus / "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ["a", "b"]}, r"'text' is \['a', 'b'\], need text"),
        ({"text": ["a"] * 1000}, "'text' is .{60}, need text"),
        ({"date": "12.05.2025"}, "'date' is '12.05.2025', need an ISO date like 2025-05-12"),
        ({"date": "2025-13-01"}, "'date' is .*need an ISO date"),
        ({"date": "20250512"}, "'date' is '20250512', need an ISO date"),
        ({"date": "2025-W20-1"}, "'date' is .*need an ISO date"),
        ({"date": ""}, "'date' is .*need an ISO date"),
        ({"id": "T0000001EN"}, "has the id T0000001EN of .*T0000001EN.json. Delete one"),
    ],
)
def test_a_wrong_value_names_file_and_key(corpus, article, change, message):
    bq.write_json(corpus / "train" / "T0000009EN.json", article | {"id": "T0000009EN"} | change)
    with pytest.raises(ValueError, match=rf"T0000009EN\.json: {message}"):
        bq.load_articles(corpus / "train")


@pytest.mark.parametrize(
    "change", [{"text": "Another."}, {"text": "Another.", "id": "T0000003EN_GB"}, {"id": "T7"}]
)
def test_one_release_in_train_and_eval_is_refused(corpus, change):
    article = bq.read_json(corpus / "eval" / "T0000003EN.json")
    article |= {"text": f"\n{article['text'].upper()} "} | change
    bq.write_json(corpus / "train" / f"{article['id']}.json", article)
    message = rf"{article['id']}\.json is T0000003EN of eval.* Delete"
    with pytest.raises(ValueError, match=message):
        bq.check_corpus(corpus)


def test_an_empty_body_is_left_out_and_counted(article):
    reasons = Counter()
    assert bq.build_qa_pairs(article | {"text": " \n\n "}, reasons=reasons) == []
    assert reasons == {"the text is empty": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": ', "not JSON"),
        ('{"a": "ü"}'.encode("latin-1"), "not JSON in UTF-8 .*position 7"),
        ('{"article_id": "T1"}', "the key 'source' is missing"),
        (json.dumps(ROW | {"answer": 3}), "'answer' is 3, need text"),
        (json.dumps(ROW | {"answer": None}), "'answer' is None, need text"),
        (json.dumps(ROW | {"answer": ["x"]}), r"'answer' is \['x'\], need text"),
    ],
)
def test_rows_are_read_as_they_are_asked_for_and_a_broken_line_is_named(tmp_path, line, message):
    path, line = tmp_path / "rows.jsonl", line if isinstance(line, bytes) else line.encode()
    path.write_bytes(json.dumps(ROW).encode() + b"\n\n" + line)
    rows = bq.read_rows(path)
    assert next(rows) == ROW
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 3: {message}"):
        next(rows)


def test_files_without_rows_are_refused(tmp_path):
    bq.write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match="has no rows. Run data_processing_prompt.ipynb"):
        bq.load_rows(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="is missing. Run the notebook before this one"):
        bq.load_rows(tmp_path / "nowhere.jsonl")


def test_a_folder_in_place_of_a_file_is_named(corpus):
    (corpus / "train" / "T0000009EN.json").mkdir()
    for read in (bq.load_articles, bq.load_rows, bq.read_json):
        with pytest.raises(ValueError, match="cannot be read .Is a directory.. Correct the path"):
            read(corpus / "train")


def test_rows_are_chosen_by_kind_and_a_kind_that_is_not_there_is_named(tmp_path):
    rows = [ROW | {"kind": kind} for kind in ("title", "date", "title")]
    bq.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert bq.load_rows(tmp_path / "rows.jsonl", ["title"]) == [rows[0], rows[2]]
    assert bq.load_rows(tmp_path / "rows.jsonl") == rows
    with pytest.raises(ValueError, match="no rows of the kind 'about'. It has title, date"):
        bq.load_rows(tmp_path / "rows.jsonl", ["title", "about"])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def broken_rows():
        yield {"old": False}
        raise ValueError("an article is broken")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "rows.jsonl"
    bq.write_jsonl(path, [{"old": True}])
    with pytest.raises(ValueError, match="an article is broken"):
        bq.write_jsonl(path, broken_rows())
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        bq.write_json(path, {"old": False})
    assert bq.read_jsonl(path) == [{"old": True}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_corpus_is_checked_and_named_file_by_file(corpus):
    files = bq.check_corpus(corpus)
    assert list(files["train"]) == ["T0000001EN", "T0000002EN"]
    assert list(files["eval"]) == ["T0000003EN"]
    assert bq.load_article(files["eval"]["T0000003EN"])["text"].endswith("No. 3.")


def test_jsonl_keeps_line_separators_that_are_no_line_breaks(tmp_path):
    rows = [{"text": "a\u2028b\x85c\rd\ne"}, {"text": "Nürburgring – “quote”"}]
    bq.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert bq.read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_mark_in_front_of_a_file_is_no_text(corpus):
    path = corpus / "train" / "T0000001EN.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert bq.load_articles(corpus / "train")[0]["id"] == "T0000001EN"
