"""Pairs out of message catalogues: what is left of a string, what is left out, and that near copies stay together."""

import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.archives import tar_of
from pipeline.datasets.localisation import clean, is_said, is_translated, messages, near_copy, read_localisation
from pipeline.errors import StillroomError

HEADER = ("", "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=n != 1;\n")


def mo(*pairs: tuple[str, str]) -> bytes:
    """A .mo file of pairs, sorted as msgfmt does; plural forms are parted by a zero byte."""
    pairs = tuple(sorted([HEADER, *pairs]))
    start = 28 + 16 * len(pairs)
    texts, tables = b"", []
    for column in (0, 1):
        for pair in pairs:
            content = pair[column].encode()
            tables += [len(content), start + len(texts)]
            texts += content + b"\0"
    head = [0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, start]
    return struct.pack(f"<{7 + len(tables)}I", *head, *tables) + texts


def archive(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        (folder / f"{name}.mo").write_bytes(content)
    path = folder / "es.tar"
    path.write_bytes(tar_of(folder, "*.mo"))
    return path


def pairs_of(path: Path) -> list[tuple[str, str]]:
    return [tuple(row) for row in read_localisation(path).frame[["english", "spanish"]].to_numpy()]


# -- files ------------------------------------------------------------------------------------------------------------


def test_messages_are_told_without_their_context_and_plurals_by_their_singular():
    content = mo(("A\x04Open file", "Abrir archivo"), ("B\x04Open file", "Abra"), ("a row\0rows", "una fila\0filas"))
    assert messages(content, "x") == [("Open file", "Abrir archivo"), ("Open file", "Abra"), ("a row", "una fila")]


@pytest.mark.parametrize("content", [b"", b"no messages", mo(("Open file", "Abrir archivo"))[:40], b"\xde\x12\x04\x95"])
def test_what_is_no_mo_file_is_told(content, tmp_path):
    with pytest.raises(
        StillroomError, match=r"es\.tar: bad\.mo: found no messages \(.*\); expected a \.mo file; fetch"
    ):
        read_localisation(archive(tmp_path, bad=content))


def test_what_is_no_archive_or_holds_no_pair_is_told(tmp_path):
    with pytest.raises(StillroomError, match=r"es\.tar: found no pair; expected \.mo files of translated strings"):
        read_localisation(archive(tmp_path, a=mo(("OK", "Aceptar"))))
    (tmp_path / "es.tar").write_bytes(b"nothing")
    with pytest.raises(StillroomError, match=r"es\.tar: .*; expected a tar archive of \.mo files"):
        read_localisation(tmp_path / "es.tar")


# -- what is left of a string -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("_Open file...", "Open file"),
        ("Salvar ~como…", "Salvar como"),
        ("De_lete Row:", "Delete Row"),
        ("About %PRODUCTNAME", "About LibreOffice"),
        ("  two\n lines\xa0here ", "two lines here"),
        ("cancio\u0301n nueva", "canción nueva"),
        ("Values 1; 2; ... are", "Values 1; 2; … are"),
        ("WEEKNUM_OOO", "WEEKNUM_OOO"),  # no mark, so it is left out for its sign
        ("the end.", "the end."),
    ],
)
def test_marks_of_widgets_go(text, left):
    assert clean(text) == left
    assert clean(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "Slide %1 of 2", "Delete $(ARG1)", "Delete # objects", "the <b> tag", "{None} of it", "[T]: on typing", "a_b c",
        "see http://x.org now", "see www.x.org now", "%(name) is not", "x = 2 y", "C:\\files here", "me@here there",
        "Список слов", "the π of it", "٣ and more", "zero\u200bwidth here", "A * B",
    ],
)  # fmt: skip
def test_strings_with_values_markup_and_other_scripts_are_left_out(text):
    assert not is_said(text)


def test_percents_and_punctuation_are_said():
    assert is_said("«¿Qué?» (100% or 5 %) — “x” ▸ y; C6/5, it's; ½ 1.º &!")


def test_sources_have_two_to_sixteen_words_and_another_translation():
    assert is_translated("Open file", "Abrir")
    assert not is_translated("Open", "Abrir")
    assert not is_translated("Open 2", "Abrir 2")  # one word and a number
    assert not is_translated("Open file", "12")
    assert not is_translated("Open File", "open file")
    words = " ".join(["word"] * 16)
    assert is_translated(words, words + " más")
    assert not is_translated(words + " word", words)
    assert not is_translated(words, " ".join(["palabra"] * 21))


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_of_several_translations_the_most_frequent_is_kept_then_the_first(tmp_path):
    path = archive(
        tmp_path,
        a=mo(("1\x04Open _file", "Abrir archivo"), ("2\x04Open file", "Abrir fichero"), ("Add row", "Añadir fila")),
        b=mo(("Open File...", "Abrir el archivo…"), ("Open file", "Abrir fichero"), ("3\x04Add row", "Agregar fila")),
    )
    assert pairs_of(path) == [("Add row", "Agregar fila"), ("Open file", "Abrir fichero")]


def test_pairs_are_in_the_order_of_their_sources_whatever_the_files_are_called(tmp_path):
    first = mo(("b b", "x y"), ("Zoom in", "Ampliar"))
    second = mo(("a c", "u v"), ("B c", "w"))
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one, other = archive(tmp_path / "1", a=first, b=second), archive(tmp_path / "2", a=second, b=first)
    assert pairs_of(one) == pairs_of(other)
    assert [source for source, _ in pairs_of(one)] == ["a c", "b b", "B c", "Zoom in"]


def test_near_copies_share_a_unit_and_others_do_not(tmp_path):
    sources = ["Light 1 color", "Light 12 color", "Light, color!", "LIGHT COLOR", "Light colors", "Year 1", "year (2) "]
    path = archive(tmp_path, a=mo(*((each, f"palabra {place}") for place, each in enumerate(sources)), ("Y z", "w")))
    found = read_localisation(path)
    assert found.units.dtype == np.int64
    same = found.units[:, None] == found.units
    keys = [near_copy(each) for each in found.frame["english"]]
    assert same.tolist() == [[one == other for other in keys] for one in keys]
    assert len(set(keys)) == 3  # a year and a number are one word, so they are no pair


def test_a_frame_is_text_alone_and_the_same_each_time(tmp_path):
    path = archive(tmp_path, a=mo(*((f"Row {letter} here", f"Fila {letter}") for letter in "cab")))
    first, second = read_localisation(path), read_localisation(path)
    assert first.frame.equals(second.frame)
    assert list(first.frame) == ["english", "spanish"]
    assert all(isinstance(each, str) for each in first.frame.to_numpy().ravel())
