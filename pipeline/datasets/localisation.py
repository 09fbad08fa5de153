"""Pairs of a text and its translation out of the message catalogues (.mo) that localised programs carry.

Strings of menus, dialogues and help: short, modern, and translated by people who know the program. The trade: of most
strings only two words are said, and what stands for a value (%1, $(ARG1)) or marks up a text leaves the pair out, for
such signs are to be copied and not translated.
"""

import gettext
import io
import re
import struct
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.errors import StillroomError

LEAST_WORDS, MOST_WORDS = 2, 16  # of a source
MOST_TARGET_WORDS = 20  # Spanish takes more
KNOWN = {"%PRODUCTNAME": "LibreOffice"}  # the one placeholder whose value everybody sees
CONTEXT = "\x04"  # stands between the place where a string is shown and the string
ACCELERATOR = re.compile(r"(?<![A-Z0-9_])[_~](?=[^\W_])")  # the letter behind it is a key; WEEKNUM_OOO is a name
WIDGET = " :…"  # at the end: of a label, and of what opens a dialogue
# markup, formulas, patterns, paths, names of variables, what has no width; values to be filled in; addresses
UNSAID = re.compile(r"[<>{}\[\]#$@\\|^=*_~\u200b-\u200f]|%\w|%\(|://|\bwww\.")
FOREIGN = re.compile("[^\\W_\u0000-\u024f]")  # letters and digits that are not Latin ones
LETTER = re.compile(r"[^\W\d_]")


class Localisation(NamedTuple):
    """`frame`, a row a pair, of columns `english` and `spanish`; `units` int64 [N], one number for near copies."""

    frame: pd.DataFrame
    units: np.ndarray


def read_localisation(archive: Path) -> Localisation:
    """Return the pairs of a tar archive of .mo files, one a source, in the order of their sources.

    Of several translations the most frequent is kept, then the first by sort order; sources that differ in case alone
    are one. Near copies, which share a unit, differ in case, digits and punctuation.
    Raises StillroomError for a member that is no .mo file, and an archive without pairs.
    """
    found = Counter(pair for name, content in members(archive) for pair in clean_pairs(messages(content, name)))
    if not found:
        raise StillroomError(f"{archive}: found no pair; expected .mo files of translated strings; fetch it again")
    kept = dict[str, tuple[str, str]]()
    for pair in sorted(found, key=lambda pair: (-found[pair], pair)):
        kept.setdefault(pair[0].casefold(), pair)
    frame = pd.DataFrame([kept[source] for source in sorted(kept)], columns=["english", "spanish"], dtype=object)
    _, units = np.unique([near_copy(source) for source in frame["english"]], return_inverse=True)
    return Localisation(frame, units.astype(np.int64))


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each file in an archive, in its order. Raises StillroomError for what is no archive."""
    try:
        with tarfile.open(archive) as opened:
            for found in opened:
                stream = opened.extractfile(found)
                if stream is not None:
                    yield f"{archive}: {found.name}", stream.read()
    except (OSError, tarfile.TarError) as error:
        reason = str(error).splitlines()[0]
        raise StillroomError(f"{archive}: {reason}; expected a tar archive of .mo files; fetch it again") from error


def messages(content: bytes, where: str) -> list[tuple[str, str]]:
    """Return (source, translation) of a .mo file, of plural forms the singular. Raises StillroomError for another file.

    A source that is shown in several places is there several times.
    """
    try:
        read = vars(gettext.GNUTranslations(io.BytesIO(content)))["_catalog"]  # it has no other way to list them
    except (OSError, UnicodeDecodeError, ValueError, struct.error, IndexError) as error:
        raise StillroomError(f"{where}: found no messages ({error}); expected a .mo file; fetch it again") from error
    singular = ((key if isinstance(key, str) else key[0], text) for key, text in read.items() if is_singular(key))
    return [(key.rpartition(CONTEXT)[2], text) for key, text in singular if key]


def is_singular(key: str | tuple[str, int]) -> bool:
    """Return whether a message is one of a kind, or the first of its plural forms."""
    return isinstance(key, str) or key[1] == 0


def clean_pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield those pairs that are sentences or names and their translations, cleaned."""
    for source, target in pairs:
        pair = clean(source), clean(target)
        if is_said(pair[0]) and is_said(pair[1]) and is_translated(*pair):
            yield pair


def clean(text: str) -> str:
    """Return a text without accelerator marks and what its widget adds at the end, in NFC, one space between words."""
    for placeholder, value in KNOWN.items():
        text = text.replace(placeholder, value)
    one_line = " ".join(ACCELERATOR.sub("", unicodedata.normalize("NFC", text)).split())
    return one_line.replace("...", "…").rstrip(WIDGET)


def is_said(text: str) -> bool:
    """Return whether a text holds nothing but words of Latin letters, numbers and punctuation."""
    return not UNSAID.search(text) and not FOREIGN.search(text)


def is_translated(source: str, target: str) -> bool:
    """Return whether both have words, not too many, and are not the same: names and what nobody translated."""
    in_source, in_target = num_words(source), num_words(target)
    fits = LEAST_WORDS <= in_source <= MOST_WORDS and 1 <= in_target <= MOST_TARGET_WORDS
    return fits and source.casefold() != target.casefold()


def num_words(text: str) -> int:
    """Return how many of the parts between spaces have a letter."""
    return sum(LETTER.search(part) is not None for part in text.split())


def near_copy(source: str) -> str:
    """Return what near copies of a source share: its letters, in lower case."""
    return " ".join(re.sub(r"[\W\d_]+", " ", source.casefold()).split())
