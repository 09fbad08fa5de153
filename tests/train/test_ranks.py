"""Two processes that share each batch train the model that one process trains, up to rounding, and agree."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from company import Many, make_rows
from on_rank import CASES, trained

from pipeline.train import ALONE, Ranks

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes is left with, and one by itself."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent))),
        "OMP_NUM_THREADS": "1",
    }
    asked = [[sys.executable, str(HERE / "on_rank.py"), str(rank), "2", str(folder)] for rank in range(2)]
    processes = [subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) for words in asked]
    try:
        alone = {name: trained(name, ALONE, tmp_path_factory.mktemp("alone")) for name in CASES}
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return *(torch.load(folder / f"rank{rank}.pt") for rank in range(2)), alone


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("what", ["grads", "weights", "beside"])
def test_gradients_and_weights_are_those_of_one_process(ranks, name, what):
    first, second, alone = (each[name][what] for each in ranks)
    assert first.keys() == second.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-3, atol=2e-5)
    assert what != "beside" or bool(alone) == (name in ("guided", "killed"))


@pytest.mark.parametrize("name", [name for name in CASES if name != "killed"])
def test_the_history_is_one_and_counts_each_row_once(ranks, name):
    first, second, alone = (each[name] for each in ranks)
    assert first["history"] == second["history"]
    assert first["rows"] == second["rows"] == alone["rows"]
    for found, expected in zip(first["history"], alone["history"], strict=True):
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_the_weights_did_move(ranks, name):
    start = CASES[name].make().model.state_dict()
    assert all(not torch.equal(value, start[key]) for key, value in ranks[0][name]["weights"].items())


@pytest.mark.parametrize(("count", "size"), [(2, 7), (3, 7), (3, 2)])
def test_shares_of_ranks_are_parts_of_every_batch(count, size):
    rows = make_rows()
    whole = [batch for (batch,) in Many(rows, 1, batch_size=size)]
    shares = [[batch for (batch,) in Many(rows, 1, batch_size=size, share=(rank, count))] for rank in range(count)]
    assert all(len(share) == len(whole) for share in shares)
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(np.concatenate([part.positions for part in parts])) == sorted(batch.positions)
        assert {part.whole for part in parts} == {len(batch)}
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_exchanged():
    parameter = torch.nn.Parameter(torch.ones(2))
    ALONE.add_gradients([parameter])
    assert parameter.grad is None
    assert ALONE.sums({"a": torch.ones(())}) == {"a": torch.ones(())}
    assert (ALONE.is_first, Ranks(1, 2).is_first, ALONE.from_first("x")) == (True, False, "x")
