import json

from pipeline.report import Part, results

RATES = ["accuracy", "precision", "recall", "f1", "nll", "ece"]
CONTRACT = ["name", "kind", "split", "seed", "params", *RATES, "seconds", "teacher_forwards"]


def test_every_row_has_every_key_of_the_contract_and_is_json(parts: list[Part]) -> None:
    found = json.loads(json.dumps(results("made_up", [part.row for part in parts]), allow_nan=False))
    assert found.keys() == {"recipe", "fingerprint", "rows"}
    for row in found["rows"]:
        assert not set(CONTRACT) - row.keys(), row["name"]
        assert row["split"] == "test"
    assert {row["kind"] for row in found["rows"]} == {"teacher", "fusion", "student", "baseline"}


def test_names_seeds_and_students_of_the_rows(parts: list[Part]) -> None:
    told = [(row["kind"], row["name"], row["seed"], row.get("student")) for row in (part.row for part in parts)]
    assert told == [
        ("teacher", "a", 0, None),
        ("teacher", "b", 0, None),
        ("teacher", "c", 0, None),
        ("fusion", "mean", None, None),
        ("student", "small", 0, "small"),
        ("student", "small", 1, "small"),
        ("baseline", "hard_labels", 0, "small"),
        ("baseline", "hard_labels", 1, "small"),
        ("baseline", "uniform_mean", 0, "small"),
        ("baseline", "uniform_mean", 1, "small"),
    ]


def test_what_rows_cost(parts: list[Part]) -> None:
    rows = {part.row["name"]: part.row for part in parts}
    assert rows["a"]["seconds"] == 16.0  # training and dump
    assert rows["a"]["teacher_forwards"] == 100
    assert rows["c"]["params"] is None
    assert rows["mean"]["params"] is None  # of c nobody knows it
    assert (rows["mean"]["seconds"], rows["mean"]["teacher_forwards"]) == (2.0, 0)
    assert (rows["small"]["seconds"], rows["small"]["agreement"]) == (3.0, 0.8)
    assert rows["hard_labels"]["agreement"] is None


def test_the_fingerprint_follows_from_the_parents_not_from_seconds(parts: list[Part]) -> None:
    rows = [part.row for part in parts]
    slower = [{**row, "seconds": 99.0} for row in rows]
    assert results("made_up", rows)["fingerprint"] == results("made_up", slower)["fingerprint"]
    assert results("made_up", rows)["fingerprint"] != results("made_up", rows[1:])["fingerprint"]
