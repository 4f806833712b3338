"""Files of examples: what is read, and errors with the file and the line."""

import csv
import io
import json
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_c.training.records import read_records

SQUAD = {
    "version": "1.1",
    "data": [
        {"title": "x", "paragraphs": [
            {"context": "Rome is old.", "qas": [{"id": "1", "question": "What is old?"},
                                                {"id": "2", "question": "Is it?"}]},
            {"context": "Oslo.", "qas": [{"id": "3", "question": "Where?"}]},
        ]},
    ],
}  # fmt: skip


def values_of(records):
    return [dict(record.values) for record in records]


def test_every_format_gives_the_same_examples(tmp_path):
    rows = [{"text": 'Good, "and" cheap.\nYes.', "label": "a"}, {"text": "\u00e9\t", "label": "b"}]
    for end, delimiter in ((".csv", ","), (".tsv", "\t"), (".CSV", ",")):
        with open(tmp_path / f"x{end}", "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)
    lines = "\n\n".join(map(json.dumps, rows))
    (tmp_path / "x.jsonl").write_text(lines + "\n")
    (tmp_path / "x.json").write_text(json.dumps(rows))
    for name in ("x.csv", "x.tsv", "x.CSV", "x.jsonl", "x.json"):
        assert values_of(read_records(tmp_path / name)) == rows
    both = read_records([str(tmp_path / "x.csv"), tmp_path / "x.jsonl"])
    assert values_of(both) == rows + rows
    places = [record.where.removeprefix(str(tmp_path)) for record in both]
    # the first text has two lines
    assert places == ["/x.csv:2", "/x.csv:4", "/x.jsonl:1", "/x.jsonl:3"]


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1))
def test_tables_are_read_as_the_csv_module_writes_them(tmp_path_factory, rows):
    file = tmp_path_factory.getbasetemp() / "rows.csv"
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    try:
        file.write_bytes(text.getvalue().encode())
    except UnicodeEncodeError:
        return
    if "\0" in text.getvalue() and sys.version_info < (3, 11):
        return
    assert [(r["a"], r["b"]) for r in read_records(file)] == rows


def test_a_mark_of_byte_order_and_long_fields_are_read(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "x.csv").write_text("text\n" + "x" * (limit + 1), encoding="utf-8-sig")
    [record] = read_records(tmp_path / "x.csv")
    assert len(record.text("text")) == limit + 1
    assert csv.field_size_limit() == limit


def test_squad_is_read_question_by_question(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(SQUAD))
    records = read_records(tmp_path / "x.json")
    assert [(r["id"], r["context"]) for r in records] == [
        ("1", "Rome is old."), ("2", "Rome is old."), ("3", "Oslo."),
    ]  # fmt: skip
    assert records[2].where.endswith("x.json: data[0].paragraphs[1].qas[0]")


def test_each_line_of_a_text_is_an_example(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"one\r\n\ntwo")
    records = read_records(tmp_path / "x.txt")
    assert [r.text("text") for r in records] == ["one", "two"]
    assert records[1].where.endswith("x.txt:3")


def test_standard_input_is_lines_of_json(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"text": "one"}\n')))
    [record] = read_records("-")
    assert (record.text("text"), record.where) == ("one", "-:1")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.csv", b"", "x.csv: must have at least one example, got none"),
        ("x.csv", b"text,label\n", "x.csv: must have at least one example, got none"),
        ("x.csv", b"text,label\na,b\nc\n", "x.csv:3: must have 2 columns, got 1"),
        ("x.csv", b"text,text\na,b\n", "x.csv:1: columns must have different names"),
        ("x.csv", b'text\n"a\n', "x.csv:2: must be a row of CSV"),
        ("x.csv", b"text\na\n\xff\n", "x.csv:3: must be UTF-8"),
        ("x.jsonl", b'{"text": 1}\n{"text"\n', "x.jsonl:2: must be JSON"),
        ("x.jsonl", b'[1]\n', "x.jsonl:1: must be an object, got list"),
        ("x.jsonl", b"\n \n", "x.jsonl: must have at least one example, got none"),
        ("x.json", b"3", "x.json: must be a list of objects, or 'data' of SQuAD, got int"),
        ("x.json", b'[{}, 3]', "x.json[1]: must be an object, got int"),
        ("x.json", b'{"data": [{"paragraphs": [{"qas": []}]}]}', "columns must include 'context'"),
        ("x.xml", b"<a/>", "FILE must end in .csv, .tsv, .jsonl, .json, .txt, got "),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_line(name, data, words, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=r".") as raised:
        read_records(tmp_path / name)
    assert words in str(raised.value)


def test_a_wrong_column_is_named_with_those_that_there_are(tmp_path):
    (tmp_path / "x.csv").write_text("txt,label\n,1\n")
    [record] = read_records(tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"x.csv:2: columns must include 'text', got 'txt', 'la"):
        record.text("text")
    with pytest.raises(ValueError, match=r"x.csv:2: txt must be a text, got ''"):
        record.text("txt")
