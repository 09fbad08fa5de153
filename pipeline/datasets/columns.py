"""Columns of a table of records: which hold numbers, and their values in one form whatever read them.

The same file gives other dtypes with another release of pandas, or after one more missing value; fingerprints and
categories must not follow.
"""

import numpy as np
import pandas as pd

EXACT = 2**53  # whole numbers up to here are exact as float64


def is_number(column: pd.Series) -> bool:
    """Tell whether a column holds numbers; truth values are categories."""
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)


def as_numbers(column: pd.Series) -> np.ndarray:
    """Return a column of numbers as float64 [N], missing ones as NaN."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def as_texts(column: pd.Series) -> list[str | None]:
    """Return the values of a column as text [N], None where one is missing."""
    missing = column.isna().to_numpy()
    return [
        None if is_missing else str(value) for value, is_missing in zip(column.to_numpy(object), missing, strict=True)
    ]


def joined_texts(frame: pd.DataFrame, columns: tuple[str, ...]) -> list[str]:
    """Return each row's texts of these columns with line ends between them [N]; a missing one is empty."""
    texts = [[text or "" for text in as_texts(frame[column])] for column in columns]
    return texts[0] if len(texts) == 1 else ["\n".join(row) for row in zip(*texts, strict=True)]


def presence_column(source: str) -> str:
    """Return the name of the column that says whether a record has a source."""
    return f"has.{source}"
