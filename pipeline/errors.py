"""One root for whatever a user can cause, and the one form its message takes.

`WHERE: what was found; what was expected; what to do.` The command line prints it behind
`error:` without a traceback. A caller's bug stays a ValueError.
"""

import difflib
from collections.abc import Iterable


class StillroomError(Exception):
    """A mistake or misfortune that the user can mend; the message says where, what and how."""


class CorruptBlockError(StillroomError):
    """Bytes of a store differ from what its commit records say."""


class StaleStoreError(StillroomError):
    """A store was made from something else than what is asked for now."""


def printable(text: str) -> str:
    """Return text that a terminal shows as it is: names of files may hold anything, also what moves the cursor."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def near_names(found: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'?" when a known name is close, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(found, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(map(repr, close)) + "?"
    return "known: " + (", ".join(known) or "none")


def unknown_name(where: str, kind: str, found: str, known: Iterable[str]) -> StillroomError:
    """Return the error for a mistyped name: what was found, what is known, the near ones."""
    known = list(known)
    return StillroomError(
        f"{where}: unknown {kind} {found!r}; expected one of {len(known)}; {near_names(found, known)}"
    )
