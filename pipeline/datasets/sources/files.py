"""A source's rows as they lie on disk: tables of files, a table or query of a SQLite database, texts by key."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd

from pipeline.datasets.sources.spec import SourceSpec
from pipeline.datasets.tables import FILES, read_file
from pipeline.errors import StillroomError, unknown_name

DATABASES = (".sqlite", ".sqlite3", ".db")
TEXTS = ".txt"
TEXT = "text"  # the column of what a .txt says


def is_database(file: str) -> bool:
    """Whether a source's file is a SQLite database."""
    return Path(file).suffix.lower() in DATABASES


def read_source(spec: SourceSpec, key: str, folder: Path | None) -> pd.DataFrame:
    """Return a source's rows; its file is relative to `folder`, where there is one.

    Raises: StillroomError for a file that is not there or cannot be read, and an unknown table of a database.
    """
    where, path = f"source.{spec.name}.file", Path(spec.file).expanduser()
    path = path if folder is None else folder / path
    if not path.exists():
        raise StillroomError(f"{where}: found no {str(path)!r}; expected a file or a folder of texts; correct the path")
    if path.is_dir():
        return _texts_of_folder(path, key, where)
    suffix = path.suffix.lower()
    if suffix in DATABASES:
        return _rows_of_database(path, spec)
    if suffix == TEXTS:
        return _texts_of_lines(path, key, where)
    if suffix not in FILES:
        known = [*FILES, *DATABASES, TEXTS]
        raise StillroomError(f"{where}: found {suffix!r}; expected one of {', '.join(known)} or a folder; convert it")
    return read_file(path)


def _rows_of_database(path: Path, spec: SourceSpec) -> pd.DataFrame:
    """Return a table or the answer to a query. The database is opened to read alone: no query can change it."""
    where = f"source.{spec.name}"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            if spec.query is None:
                _check_table(database, str(spec.table), where)
            name = str(spec.table).replace('"', '""')
            frame = pd.read_sql_query(spec.query or f'SELECT * FROM "{name}"', database)
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        reason = " ".join(str(error).split())
        raise StillroomError(
            f"{where}: {path} cannot be read ({reason}); expected a table of a SQLite database; mend the file or query"
        ) from error
    return frame.rename(columns=str)


def _check_table(database: sqlite3.Connection, table: str, where: str) -> None:
    known = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
    if table not in known:
        raise unknown_name(f"{where}.table", "table", table, known)


def _texts_of_folder(folder: Path, key: str, where: str) -> pd.DataFrame:
    files = sorted(folder.glob(f"*{TEXTS}"))
    if not files:
        raise StillroomError(f"{where}: found no .txt in {folder}; expected one a key, named after it; put them there")
    rows = {key: [file.stem for file in files], TEXT: [_read(file, where) for file in files]}
    return pd.DataFrame(rows, dtype=object)


def _texts_of_lines(path: Path, key: str, where: str) -> pd.DataFrame:
    rows = list[tuple[str, str]]()
    for number, line in enumerate(_read(path, where).split("\n"), start=1):
        name, tab, text = line.removesuffix("\r").partition("\t")
        if tab:
            rows.append((name, text))
        elif name.strip():
            raise StillroomError(
                f"{where}: line {number} of {path} has no tab; expected a key, a tab and its text; mend the line"
            )
    return pd.DataFrame(rows, columns=[key, TEXT], dtype=object)


def _read(path: Path, where: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise StillroomError(f"{where}: {path} cannot be read ({error}); expected UTF-8 text; mend it") from error
