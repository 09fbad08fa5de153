"""The league says of each strategy what a target store made with it would say, and who wins."""

from pathlib import Path
from typing import Any

import pytest
from toys import fuse_store

from pipeline.errors import StillroomError
from pipeline.fusion import FUSIONS
from pipeline.league import ENTRIES, Standing, standings, winner


def test_every_strategy_is_in_the_league() -> None:
    assert {strategy for strategy, _ in ENTRIES.values()} == set(FUSIONS)


def test_a_standing_is_what_the_store_says(stores: Any, tmp_path: Path) -> None:
    entries = {"mean": ("mean", {}), "gentle": ("weighted", {"tau": 1.0})}
    for found in standings(stores.teachers, entries=entries):
        store = fuse_store(tmp_path / found.name, stores.teachers, strategy=found.strategy, **found.options)
        assert found.scores == store.manifest.details["scores"]
        assert found.fault == ""


def test_a_strategy_that_cannot_be_used_is_told_and_the_others_go_on(stores: Any) -> None:
    entries = {"broken": ("weighted", {}), "mean": ("mean", {})}
    with pytest.MonkeyPatch.context() as patch:

        def refuse(self: object, outputs: object) -> object:
            raise StillroomError("fusion 'weighted': found nothing; expected something; add it")

        patch.setattr("pipeline.fusion.weighted.Weighted.fit", refuse)
        broken, mean = standings(stores.teachers, entries=entries)
    assert broken.fault.startswith("fusion 'weighted': found nothing")
    assert mean.scores["test"]["accuracy"] > 0
    assert winner([broken, mean]) is mean
    with pytest.raises(StillroomError, match="none of 1 strategies can be used; the first says: fusion 'weighted'"):
        winner([broken])


def test_the_lowest_nll_on_rows_left_out_wins() -> None:
    found = [Standing(str(nll), "mean", {}, {"calibration": {"nll": nll}}) for nll in (0.4, 0.2, 0.3)]
    assert winner(found).name == "0.2"
