"""SUPPORT2 as a hospital would keep it: four files of four systems that share a patient's number, and their flaws.

admissions.csv, laboratory.sqlite (table "results", a row a value), vitals.jsonl (up to three readings a patient) and
notes.txt (a line a patient). Patients are those of SUPPORT2 and every value is theirs or near it; the flaws are put in
on purpose, from a fixed seed: patients whom a system does not know, rows twice, numbers that can't be, two units for
one quantity, several words for "unknown".
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.datasets.frames import read_csv
from pipeline.lineage import write_durably

SEED = 7
LACKING = {"laboratory": 0.15, "vitals": 0.10, "notes": 0.25}  # share of the patients whom a system does not know
TWICE = 0.04  # share of admissions entered twice, the first time wrong
IMPOSSIBLE = 0.005  # share of numbers that stand for a mistyped one
OTHER_UNIT = 0.3  # share of patients whose laboratory, or of readings whose thermometer, has other units
STRANGERS = 25  # patients of the laboratory whom nobody admitted

TESTS = {  # in SUPPORT2: name, unit, other unit and what a number is multiplied by for it
    "wblc": ("white_cells", "10^9/l", "10^9/l", 1.0),
    "pafi": ("oxygen_ratio", "mmHg", "mmHg", 1.0),
    "alb": ("albumin", "g/dl", "g/dl", 1.0),
    "bili": ("bilirubin", "mg/dl", "mg/dl", 1.0),
    "crea": ("creatinine", "mg/dl", "umol/l", 88.42),
    "sod": ("sodium", "mmol/l", "mmol/l", 1.0),
    "ph": ("ph", "", "", 1.0),
    "glucose": ("glucose", "mg/dl", "mmol/l", 0.0555),
    "bun": ("urea_nitrogen", "mg/dl", "mg/dl", 1.0),
    "urine": ("urine", "ml/day", "ml/day", 1.0),
}
VITALS = {  # in SUPPORT2: name, and how far readings of a patient are apart
    "meanbp": ("blood_pressure", 4.0),
    "hrt": ("heart_rate", 4.0),
    "resp": ("breathing_rate", 1.0),
    "temp": ("temperature", 0.2),
}
COMA = ((0, "Alert and oriented."), (30, "Drowsy, answers when asked."), (60, "Stuporous."), (100, "Deep coma."))
TREATMENT = ((10, "Little treatment."), (25, "Treated on the ward."), (40, "Intensive care."), (99, "Life support."))
HELP = ((0.9, "Independent at home."), (3.9, "Needs help at home."), (9, "Dependent in all daily activities."))
ILL = ((20, "Stable."), (40, "Acutely ill."), (60, "Severely ill."), (200, "Critically ill."))


def write_hospital(data_set: Path, folder: Path) -> tuple[str, ...]:
    """Write four files into a folder, from the support2.csv in that of the data set; return their names.

    The same data set gives the same rows every time; those of the database may lie in other bytes with another SQLite.
    """
    table = read_csv(data_set / "support2.csv")
    draws = {name: np.random.default_rng([SEED, place]) for place, name in enumerate(("admissions", *LACKING))}
    known = {name: table[draws[name].random(len(table)) >= share] for name, share in LACKING.items()}
    write_durably(folder / "admissions.csv", _admissions(table, draws["admissions"]).encode())
    write_durably(folder / "laboratory.sqlite", _database(list(_results(known["laboratory"], draws["laboratory"]))))
    readings = "".join(f"{json.dumps(row)}\n" for row in _readings(known["vitals"], draws["vitals"]))
    write_durably(folder / "vitals.jsonl", readings.encode())
    notes = "".join(f"{patient}\t{note}\n" for patient, note in _notes(known["notes"], draws["notes"]))
    write_durably(folder / "notes.txt", notes.encode())
    return "admissions.csv", "laboratory.sqlite", "vitals.jsonl", "notes.txt"


def _admissions(table: pd.DataFrame, draws: np.random.Generator) -> str:
    """Return a row an entry; of patients who have two, the later is right."""
    names = {"sno": "patient", "dzgroup": "diagnosis", "edu": "schooling", "hday": "day_in_hospital"}
    rows = table[["sno", "age", "sex", "race", "edu", "income", "hday", "dzgroup"]].rename(columns=names)
    unknown = draws.choice(np.array([None, "unknown", "n/a"], dtype=object), len(rows))
    rows["income"] = rows["income"].astype(object).where(rows["income"].notna(), unknown)
    rows["age"] = np.where(draws.random(len(rows)) < IMPOSSIBLE, 999.0, rows["age"].round(1))
    is_twice = draws.random(len(rows)) < TWICE
    first = rows[is_twice].assign(income="unknown", schooling=np.nan, age=lambda each: (each["age"] + 10).round(1))
    entries = pd.concat([first, rows], ignore_index=True)
    entries.insert(0, "entry", np.arange(1, len(entries) + 1))
    return entries.iloc[draws.permutation(len(entries))].to_csv(index=False)


def _results(known: pd.DataFrame, draws: np.random.Generator) -> Iterator[tuple[int, str, str, str]]:
    """Yield (patient, test, value, unit): values are text, as the instruments send them, some of them twice."""
    is_other = draws.random(len(known)) < OTHER_UNIT
    for column, (test, unit, other, factor) in TESTS.items():
        impossible, unread, twice = draws.random((3, len(known)))
        for place, (patient, number) in enumerate(zip(known["sno"], known[column], strict=True)):
            if np.isnan(number):
                continue
            value = f"{number * factor if is_other[place] else number:.5g}"
            value = "9999" if impossible[place] < IMPOSSIBLE else "n/a" if unread[place] < IMPOSSIBLE else value
            row = (int(patient), test, value, other if is_other[place] else unit)
            yield from [row, row] if twice[place] < TWICE else [row]
    for place in range(STRANGERS):
        yield 900_000 + place, "sodium", "140", "mmol/l"


def _database(rows: list[tuple[int, str, str, str]]) -> bytes:
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE results (patient INTEGER, test TEXT, value TEXT, unit TEXT)")
        database.executemany("INSERT INTO results VALUES (?, ?, ?, ?)", rows)
        database.commit()
        return database.serialize()


def _readings(known: pd.DataFrame, draws: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield one to three readings a patient, around SUPPORT2's; some thermometers are American."""
    counts = draws.integers(1, 4, len(known))
    places = np.repeat(np.arange(len(known)), counts)
    numbers = {
        name: np.maximum(known[column].to_numpy()[places] + draws.normal(0, spread, len(places)), 0)
        for column, (name, spread) in VITALS.items()
    }
    is_american = draws.random(len(places)) < OTHER_UNIT
    numbers["temperature"] = np.where(is_american, numbers["temperature"] * 9 / 5 + 32, numbers["temperature"])
    numbers["heart_rate"] = np.where(draws.random(len(places)) < IMPOSSIBLE, 999.0, numbers["heart_rate"])
    reading = np.concatenate([np.arange(1, count + 1) for count in counts])
    for row, patient in enumerate(known["sno"].to_numpy()[places]):
        measured = {name: round(float(values[row]), 1) for name, values in numbers.items()}
        yield {
            "patient": str(patient),
            "reading": int(reading[row]),
            **measured,
            "scale": "F" if is_american[row] else "C",
        }


def _notes(known: pd.DataFrame, draws: np.random.Generator) -> Iterator[tuple[int, str]]:
    """Yield a patient's note: sentences on consciousness, illness, treatment and daily life, in any order."""
    measured = {"scoma": COMA, "avtisst": TREATMENT, "adlsc": HELP, "aps": ILL}
    for row in known.to_dict("records"):
        others = int(row["num.co"])
        said = [
            *(sentence for column, steps in measured.items() if (sentence := _said(row[column], steps))),
            "No other illness." if not others else f"{others} other illness{'es' * (others > 1)}.",
            *["Diabetic."] * int(row["diabetes"]),
            *["Demented."] * int(row["dementia"]),
        ]
        yield int(row["sno"]), " ".join(said[each] for each in draws.permutation(len(said)))


def _said(number: float, steps: Sequence[tuple[float, str]]) -> str | None:
    """Return the sentence of the first step that a number doesn't pass, None of a missing one."""
    return next((sentence for largest, sentence in steps if number <= largest), None)
