"""Files that are broken, missing or cut in half: one clear error names them; nothing is lost."""

import json
import os
from collections import Counter

import pytest

import bmwqa_utils as bq


def write(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def test_articles_come_back_as_written_sorted_by_id(corpus):
    ids = [article["id"] for article in bq.load_articles(corpus / "train")]
    assert ids == ["T0000001EN", "T0000002EN"]


def test_empty_folder_says_which_notebook_fills_it(tmp_path):
    with pytest.raises(ValueError, match="has no <id>.json. Run data_extraction.ipynb"):
        bq.load_articles(tmp_path)


def test_missing_folder_is_the_same_error(tmp_path):
    with pytest.raises(ValueError, match="has no <id>.json"):
        bq.load_articles(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", '{"id": "T1"', "<html>", '"text"', "[]"])
def test_not_a_json_object_names_the_file(corpus, text):
    write(corpus / "train", "T0000009EN.json", text)
    with pytest.raises(ValueError, match=r"T0000009EN\.json: (not JSON|found)"):
        bq.load_articles(corpus / "train")


def test_not_utf8_names_the_file_and_the_byte(corpus):
    (corpus / "train" / "T0000009EN.json").write_bytes('{"id": "Nürburgring"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"T0000009EN\.json: byte 9 is not UTF-8"):
        bq.load_articles(corpus / "train")


@pytest.mark.parametrize("key", bq.ARTICLE_KEYS)
def test_missing_key_names_file_and_key(corpus, article, key):
    del article[key]
    write(corpus / "train", "T0000009EN.json", json.dumps(article))
    with pytest.raises(ValueError, match=rf"T0000009EN\.json: the key '{key}' is missing"):
        bq.load_articles(corpus / "train")


def test_value_of_the_wrong_type_names_the_key(corpus, article):
    write(corpus / "train", "T0000009EN.json", json.dumps(article | {"text": ["a", "b"]}))
    with pytest.raises(ValueError, match="'text' is list, need a string"):
        bq.load_articles(corpus / "train")


@pytest.mark.parametrize("date", ["12.05.2025", "2025-13-01", ""])
def test_a_date_that_is_not_iso_is_refused(corpus, article, date):
    changed = article | {"id": "T0000009EN", "date": date}
    write(corpus / "train", "T0000009EN.json", json.dumps(changed))
    with pytest.raises(ValueError, match="need an ISO date like 2025-05-12"):
        bq.load_articles(corpus / "train")


def test_two_articles_with_one_id_are_refused(corpus, article):
    write(corpus / "train", "copy.json", json.dumps(article))
    with pytest.raises(ValueError, match="T0000001EN"):
        bq.load_articles(corpus / "train")


def test_an_article_in_train_and_eval_is_refused(corpus, article):
    write(corpus / "eval", "T0000001EN.json", json.dumps(article))
    with pytest.raises(ValueError, match="T0000001EN is in train and in eval"):
        bq.check_corpus(corpus)


def test_an_empty_body_is_left_out_and_counted(article):
    reasons = Counter()
    assert bq.build_qa_pairs(article | {"text": " \n\n "}, reasons=reasons) == []
    assert reasons == {"the text is empty": 1}


def test_a_jsonl_line_cut_in_half_names_its_line(tmp_path):
    path = tmp_path / "train.jsonl"
    bq.write_jsonl(path, [{"a": 1}, {"a": 2}])
    path.write_text(path.read_text()[:-4])
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2: not JSON"):
        bq.read_jsonl(path)


def test_rows_without_a_key_and_files_without_rows_are_refused(tmp_path):
    bq.write_jsonl(tmp_path / "a.jsonl", [{"article_id": "T1"}])
    bq.write_jsonl(tmp_path / "b.jsonl", [])
    with pytest.raises(ValueError, match="line 1: the key 'source' is missing"):
        bq.load_rows(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="has no rows. Run data_processing_prompt.ipynb"):
        bq.load_rows(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="is missing. Run the notebook before this one"):
        bq.load_rows(tmp_path / "c.jsonl")


def test_rows_are_chosen_by_kind_and_a_kind_that_is_not_there_is_named(tmp_path):
    kinds = ("title", "date", "title")
    rows = [dict.fromkeys(bq.ROW_KEYS, "x") | {"kind": kind} for kind in kinds]
    bq.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert bq.load_rows(tmp_path / "rows.jsonl", ["title"]) == [rows[0], rows[2]]
    assert bq.load_rows(tmp_path / "rows.jsonl") == rows
    with pytest.raises(ValueError, match="no rows of the kind 'about'. It has title, date"):
        bq.load_rows(tmp_path / "rows.jsonl", ["title", "about"])


def test_rows_are_read_as_they_are_asked_for(tmp_path):
    row = dict.fromkeys(bq.ROW_KEYS, "x")
    bq.write_jsonl(tmp_path / "rows.jsonl", [row, {"article_id": "T2"}])
    rows = bq.read_rows(tmp_path / "rows.jsonl")
    assert next(rows) == row
    with pytest.raises(ValueError, match="rows.jsonl, line 2: the key 'source' is missing"):
        next(rows)


def test_rows_that_break_off_while_they_are_written_leave_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    bq.write_jsonl(path, [{"old": True}])

    def rows():
        yield {"old": False}
        raise ValueError("an article is broken")

    with pytest.raises(ValueError, match="an article is broken"):
        bq.write_jsonl(path, rows())
    assert bq.read_jsonl(path) == [{"old": True}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_corpus_is_checked_and_named_file_by_file(corpus):
    files = bq.check_corpus(corpus)
    assert {split: list(ids) for split, ids in files.items()} == {
        "train": ["T0000001EN", "T0000002EN"],
        "eval": ["T0000003EN"],
    }
    assert bq.load_article(files["eval"]["T0000003EN"])["text"].endswith("No. 3.")


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n' + '{"a": "ü"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: byte 7 is not UTF-8"):
        bq.read_jsonl(tmp_path / "rows.jsonl")


def test_jsonl_keeps_line_separators_that_are_no_line_breaks(tmp_path):
    rows = [{"text": "a\u2028b\x85c\rd\ne"}, {"text": "Nürburgring – “quote”"}]
    bq.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert bq.read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    bq.write_json(path, {"old": True})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        bq.write_json(path, {"old": False})
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_mark_in_front_of_a_file_is_no_text(corpus):
    path = corpus / "train" / "T0000001EN.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert bq.load_articles(corpus / "train")[0]["id"] == "T0000001EN"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a\\ud83d"}', r"'\\ud83d' is half a character. Delete it"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
    ],
)
def test_json_that_cannot_be_kept_names_its_file(corpus, text, message):
    (corpus / "train" / "T0000009EN.json").write_text(text)
    with pytest.raises(ValueError, match=f"T0000009EN.json: {message}"):
        bq.check_corpus(corpus)


@pytest.mark.parametrize("change", [{"id": "T0000003EN_GB"}, {"id": "T0000007EN", "text": None}])
def test_one_release_under_two_ids_is_refused(corpus, change):
    other = bq.read_json(corpus / "eval" / "T0000003EN.json")
    text = f"\n{other['text'].upper()} " if change.get("text", "") is None else "Another."
    article = other | change | {"text": text}
    bq.write_json(corpus / "train" / f"{article['id']}.json", article)
    message = rf"{article['id']} \(in eval T0000003EN\) is in train and in eval.* Delete"
    with pytest.raises(ValueError, match=message):
        bq.check_corpus(corpus)


@pytest.mark.parametrize("value", [3, None, ["x"]])
def test_a_row_whose_answer_is_no_text_names_its_line(tmp_path, value):
    row = dict.fromkeys(bq.ROW_KEYS, "x")
    bq.write_jsonl(tmp_path / "train.jsonl", [row, row | {"answer": value}])
    with pytest.raises(ValueError, match="train.jsonl, line 2: 'answer' is .*, need text"):
        bq.load_rows(tmp_path / "train.jsonl")
