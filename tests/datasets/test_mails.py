"""Mails: their bodies are what a reader sees, and no header stays."""

import base64
import io
import json
import quopri
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.catalog import DataFile, Entry
from pipeline.datasets.frames import FRAMES
from pipeline.datasets.mails import body_of

HEADERS = "From nobody Mon\nReceived: from leak.example\nX-Spam-Status: Yes\nSubject: told\n"
PARTS = """--cut
Content-Type: text/plain

plain words
--cut
Content-Type: text/html

<b>fat words</b>
--cut
Content-Type: image/png
Content-Transfer-Encoding: base64

iVBORw0KGgo=
--cut--
"""


def test_headers_are_left_out_and_lines_joined():
    assert body_of(f"{HEADERS}\nHello,\n\n  it is < 3 o'clock.\n") == "Hello, it is < 3 o'clock."
    assert body_of(HEADERS) == ""


def test_encoded_bodies_are_decoded():
    text = "Grüße aus Köln = 100 %"
    quoted = quopri.encodestring(text.encode("latin-1")).decode()
    kinds = "Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: "
    assert body_of(f"{HEADERS}{kinds}quoted-printable\n\n{quoted}") == text
    packed = base64.b64encode(text.encode("latin-1")).decode()
    assert body_of(f"{HEADERS}{kinds}BASE64\n\n{packed}") == text
    unknown = kinds.replace("iso-8859-1", "no-such-set")
    assert body_of(f"{HEADERS}{unknown}base64\n\n{packed}") == text


def test_tags_comments_and_scripts_are_left_out():
    page = "<html><style>p {x: y}</style><!-- a > b --><P class='x'>Buy&nbsp;<b>now</b> &amp; save<script>f()</script>"
    assert body_of(f"Content-Type: text/html\n\n{page}") == "Buy now & save"


def test_of_several_parts_the_plain_ones_are_read_else_html():
    kind = "Content-Type: multipart/alternative; boundary=cut\n\n"
    assert body_of(HEADERS + kind + PARTS) == "plain words"
    assert body_of(HEADERS + kind + PARTS.replace("plain words", "")) == "fat words"


def test_long_bodies_are_cut():
    assert len(body_of(f"{HEADERS}\n{'word ' * 2000}")) == 4000


def test_archive_is_read_in_order_of_names_without_copies(tmp_path):
    mails = {
        "spam-1/b.json": ("spam-1", "buy"),
        "easy-ham-2/a.json": ("easy-ham-2", "hello"),
        "hard-ham-1/c.json": ("hard-ham-1", "buy"),
        "spam-2/d.json": ("spam-2", "win"),
        "file_list.json": ("spam-1", "none"),
    }
    with tarfile.open(tmp_path / "mails.tgz", "w:gz") as archive:
        for name, (group, text) in mails.items():
            content = json.dumps({"group": group, "text": f"{HEADERS}\n{text}"}).encode()
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    file = DataFile(name="mails.tgz", split="train", holds="mails", num_bytes=1, sha256="")
    entry = Entry(title="", licence="", home="", format="spam-assassin", samples={}, files=(file,), sources=())
    found = FRAMES["spam-assassin"](tmp_path, entry)
    assert found.frame["text"].tolist() == ["hello", "buy", "win"]
    assert found.labels.tolist() == [0, 0, 1]  # the copy among spam is left out: the first counts


def test_reviews_are_those_of_one_source_without_copies(tmp_path):
    table = pd.DataFrame(
        {"text": ["a<br /><br />b", "c", "c", "d"], "label": [1, 0, 0, 1], "source": ["x", "x", "x", "y"]}
    )
    table.to_csv(tmp_path / "reviews.csv", index=False)
    file = DataFile(name="reviews.csv", split="train", holds="texts", num_bytes=1, sha256="")
    about = {"format": "reviews-csv", "label": "label", "rows": {"source": "x"}, "samples": {}}
    entry = Entry(title="", licence="", home="", files=(file,), sources=(), **about)
    found = FRAMES["reviews-csv"](tmp_path, entry)
    assert found.frame["text"].tolist() == ["a\n\nb", "c"]
    assert found.labels.tolist() == [1, 0]


def test_tables_leave_out_what_no_model_may_read_but_keep_groups(tmp_path):
    table = pd.DataFrame({"x": [1, 2], "y": ["b", "a"], "late": [3, 4], "sex": ["m", "f"]})
    table.to_csv(tmp_path / "table.csv", index=False)
    file = DataFile(name="table.csv", split="train", holds="rows", num_bytes=1, sha256="")
    about = {"format": "table-csv", "label": "y", "drop": ("late", "sex"), "groups": "sex", "classes": ("a", "b")}
    entry = Entry(title="", licence="", home="", files=(file,), sources=(), samples={}, **about)
    found = FRAMES["table-csv"](Path(tmp_path), entry)
    assert list(found.frame) == ["x", "sex"]
    assert np.array_equal(found.labels, [1, 0])
