"""Made-up patients in the columns of SUPPORT2, whose values follow from the diagnosis."""

from pathlib import Path

import numpy as np
import pandas as pd

DIAGNOSES = ("ARF/MOSF w/Sepsis", "CHF", "COPD", "Cirrhosis", "Colon Cancer", "Coma", "Lung Cancer", "MOSF w/Malig")
TYPICAL = {  # mean and spread; the spread times a diagnosis' own place is added
    "avtisst": (25, 8),
    "aps": (35, 10),
    "meanbp": (85, 12),
    "hrt": (95, 15),
    "resp": (22, 4),
    "temp": (37, 0.5),
    "wblc": (12, 3),
    "pafi": (240, 60),
    "alb": (3, 0.4),
    "bili": (2, 0.5),
    "crea": (1.8, 0.4),
    "sod": (137, 4),
    "ph": (7.4, 0.05),
    "glucose": (150, 30),
    "bun": (30, 8),
    "urine": (2000, 400),
}


def make_patients(count: int = 400, seed: int = 0) -> pd.DataFrame:
    """Return patients, of each diagnosis as many; some values of the laboratory were never measured."""
    draws = np.random.default_rng(seed)
    diagnosis = np.arange(count) % len(DIAGNOSES)
    place = (draws.permutation(len(DIAGNOSES) * len(TYPICAL)).reshape(len(TYPICAL), -1) % len(DIAGNOSES)) / 3 - 1
    columns = {
        name: np.abs(mean + spread * place[row][diagnosis] + draws.normal(0, spread / 2, count)).round(3)
        for row, (name, (mean, spread)) in enumerate(TYPICAL.items())
    }
    for name in ("alb", "glucose", "urine"):
        columns[name][draws.random(count) < 0.3] = np.nan
    return pd.DataFrame(
        {
            "sno": np.arange(1, count + 1),
            "age": (50 + 4 * diagnosis + draws.normal(0, 5, count)).round(3),
            "sex": draws.choice(["male", "female"], count),
            "race": draws.choice(["white", "black", "other"], count),
            "edu": draws.integers(6, 20, count).astype(float),
            "income": draws.choice(np.array(["under $11k", ">$50k", None], dtype=object), count),
            "hday": draws.integers(1, 20, count),
            "dzgroup": np.array(DIAGNOSES)[diagnosis],
            "num.co": draws.integers(0, 5, count),
            "diabetes": draws.integers(0, 2, count),
            "dementia": draws.integers(0, 2, count),
            "scoma": np.where(diagnosis == 5, 90, draws.integers(0, 40, count)).astype(float),
            "adlsc": draws.integers(0, 8, count).astype(float),
            **columns,
        }
    )


def write_patients(folder: Path, count: int = 400) -> pd.DataFrame:
    """Write patients as the data set's file, and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    patients = make_patients(count)
    patients.to_csv(folder / "support2.csv", index=False)
    return patients
