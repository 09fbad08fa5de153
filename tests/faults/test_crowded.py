"""The law: writers that share a store cannot harm it. The first to commit a block has made it, whole; one seals.

Beside them a reader sees an error that says the store is unfinished, or the right numbers.
"""

import errno
import fcntl
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import Flags, fork, together
from instants import NO_SPACE, Refusing, Step, steps_in
from kits import KITS, Kit, numbers
from laws import Expected, check_kept, check_names, check_reader, check_whole, committed
from runs import Dumping, small_replayer
from toys import make_teacher, small_blocks

from pipeline.answers import Answers
from pipeline.errors import StillroomError
from pipeline.lineage import MANIFEST, locked
from pipeline.store import Block, Computed, Layout, Store, open_teacher
from pipeline.store.records import RECORDS
from pipeline.store.verify import verify
from pipeline.teachers import TorchTeacher

KIT = Kit(Layout({"train": (3, 8), "test": (1, 4)}, KITS["blocks"].layout.arrays, rows_per_block=2))  # 14 blocks
ROUNDS = [2, pytest.param(60, marks=pytest.mark.faults)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Expected:
    return KIT.expected(tmp_path_factory.mktemp("whole"))


def dawdling(seed: int, author: int = 0) -> Callable[[Block], Computed]:
    """Return how an author computes a block when other things may come between."""
    chance = random.Random(seed)

    def compute(block: Block) -> Computed:
        time.sleep(chance.choice([0, 0, 0.001, 0.004]))
        return KIT.compute(block, author)

    return compute


def writes(folder: Path, seed: int, author: int = 0) -> Callable[[], object]:
    """Return what a writer process does."""
    return lambda: KIT.ensure(folder, dawdling(seed, author))


def check_ended_well(*children: Any) -> None:
    for child in children:
        ended = child.wait()
        assert ended.signal is None
        assert ended.said.startswith("Filled"), ended.said


# -- writers that agree -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("crowd", [2, 4])
def test_writers_started_together_end_with_the_bytes_of_one(expected, tmp_path, crowd, rounds):
    for number in range(rounds):
        folder = tmp_path / str(number)
        check_ended_well(*together([writes(folder, 10 * number + each) for each in range(crowd)]))
        check_whole(folder, expected)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_writer_killed_beside_one_that_lives_harms_nothing(expected, tmp_path, rounds):
    chance = random.Random(3)
    for number in range(rounds):
        folder = tmp_path / str(number)
        dies, lives = together([writes(folder, 2 * number), writes(folder, 2 * number + 1)])
        dies.kill_after(chance.uniform(0, 0.08))
        check_ended_well(lives)
        check_names(folder, expected)
        assert check_reader(folder, expected)
        KIT.ensure(folder)  # sweeps up what the dead one may have left half written after the seal
        check_whole(folder, expected)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_writers_that_find_the_same_damage_mend_it_together(expected, tmp_path, rounds):
    for number in range(rounds):
        folder = tmp_path / str(number)
        KIT.ensure(folder)
        (folder / "train/row/c/1/2").write_bytes(b"rotten")
        check_ended_well(*together([writes(folder, 2 * number), writes(folder, 2 * number + 1)]))
        KIT.ensure(folder)
        check_whole(folder, expected)


# -- writers that don't agree -----------------------------------------------------------------------------------------


def authors_of(folder: Path, kit: Kit, crowd: int) -> dict[str, int]:
    """Return who made each block, by what the block holds; fails when it is nobody's, or in parts different ones'."""
    store, found = Store(folder, kit.kind), {}
    for block in kit.layout.blocks:
        fits = [author for author in range(crowd) if is_made_by(store, block, author)]
        assert len(fits) == 1, f"{block.key} is wholly that of {fits}"
        assert store.records[block.key]["error"]["agreement"] == fits[0]
        found[block.key] = fits[0]
    return found


def is_made_by(store: Store, block: Block, author: int) -> bool:
    return all(
        np.array_equal(
            store.read_block(block, name),
            numbers(block.split, name, block.view if spec.per_view else 0, block.positions, spec, author),
        )
        for name, spec in store.layout.arrays_of(block).items()
    )


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("crowd", [2, 4])
def test_of_writers_that_disagree_each_block_is_wholly_the_work_of_one(tmp_path, crowd, rounds):
    shared = 0
    for number in range(rounds):
        folder = tmp_path / str(number)
        check_ended_well(*together([writes(folder, 10 * number + each, each) for each in range(crowd)]))
        assert verify(folder) == []
        shared += len(set(authors_of(folder, KIT, crowd).values())) > 1
    assert shared > rounds // 3, "more than one writer has had a hand in most stores"


def noisy(seed: int) -> TorchTeacher:
    """Return a teacher whose answers depend on the process it is asked in."""
    teacher, noise = make_teacher(0), torch.Generator().manual_seed(seed)
    answers = teacher.predict

    def predict(inputs: torch.Tensor) -> Answers:
        said = answers(inputs)
        return Answers(said.logits + torch.randn(said.logits.shape, generator=noise), said.features)

    teacher.predict = predict  # type: ignore[method-assign]
    return teacher


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.faults)])
def test_teachers_that_answer_otherwise_in_each_process_make_a_store_that_is_sound(tmp_path, monkeypatch, rounds):
    small_blocks(monkeypatch, 8)
    rows = small_replayer()
    for number in range(rounds):
        folder = tmp_path / str(number)
        dumps = [Dumping(rows, noisy(2 * number + each)) for each in range(2)]
        for each in dumps:
            each.lay_out(folder)
        check_ended_well(*together([partial(each.ensure, folder) for each in dumps]))
        assert verify(folder, thorough=False) == []
        store = open_teacher(folder)
        assert store.manifest.details["temperature"] == dumps[0].figures(folder)["temperature"], "of what was committed"


@pytest.mark.parametrize("rounds", ROUNDS)
def test_on_a_disk_without_locks_a_mixture_is_told_and_mended_and_never_read(expected, tmp_path, monkeypatch, rounds):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for number in range(rounds):
        folder = tmp_path / str(number)
        for child in together([writes(folder, 10 * number + each, each) for each in range(3)]):
            assert child.wait().signal is None
        KIT.ensure(folder)
        assert verify(folder, thorough=False) == []
        authors_of(folder, KIT, 3)


def test_damage_found_by_a_late_writer_is_left_alone_once_another_has_sealed(expected, tmp_path):
    KIT.ensure(tmp_path)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "train/row/c/1/2").write_bytes(b"rotten")
    late = KIT.writer(tmp_path)
    (block,) = late.missing()
    KIT.writer(tmp_path).seal({"seed": 0})
    late.forget([block])
    assert not late.commit(block, KIT.compute(block, author=1))
    (fault,) = verify(tmp_path, thorough=False)
    assert (fault.array, fault.rows) == ("row", "train view 1 rows 4-6")
    KIT.ensure(tmp_path)
    check_whole(tmp_path, expected)


def test_a_block_that_another_writer_commits_meanwhile_is_not_forgotten(expected, tmp_path):
    first, late = KIT.writer(tmp_path), KIT.writer(tmp_path)
    first.prepare()
    missing = late.missing()
    assert first.commit(missing[0], KIT.compute(missing[0]))
    before = committed(tmp_path, expected)
    late.forget(missing)
    assert not late.commit(missing[0], KIT.compute(missing[0], author=1))
    assert len(before) > 1
    check_kept(tmp_path, before)
    KIT.ensure(tmp_path)
    check_whole(tmp_path, expected)


def test_a_store_that_another_writer_has_sealed_is_not_sealed_again(tmp_path):
    KIT.ensure(tmp_path)
    written = (tmp_path / MANIFEST).stat()
    sealed = KIT.writer(tmp_path).seal({"seed": 1})
    again = (tmp_path / MANIFEST).stat()
    assert sealed.details["seed"] == 0, "what the first one said"
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


# -- comings and goings -----------------------------------------------------------------------------------------------


def seal_steps(folder: Path) -> int:
    """Return how many steps there are from the last record to the end of a run."""
    with steps_in(folder) as steps:
        KIT.ensure(folder)
    last = max(number for number, step in enumerate(steps.taken) if RECORDS in step.path)
    return len(steps) - last


def sealing(folder: Path, flags: Flags, pause: int) -> Callable[[], object]:
    """Return a writer that waits before a step, counted from its last record, until another one has begun."""
    seen = {"after": 0}

    def fate(number: int, step: Step) -> None:
        seen["after"] = 0 if RECORDS in step.path else seen["after"] + 1
        blocks = len(list((folder / RECORDS).glob("*.json"))) if (folder / RECORDS).exists() else 0
        if blocks == len(KIT.layout.blocks) and seen["after"] == pause:
            flags.up(0)
            flags.wait(1)
            time.sleep(0.01)

    def run() -> object:
        with steps_in(folder, fate):
            return KIT.ensure(folder)

    return run


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.faults)])
def test_a_writer_that_starts_while_another_seals_finds_it_whole(expected, tmp_path, stride):
    for pause in range(1, seal_steps(tmp_path / "counted"), stride):
        folder, flags = tmp_path / str(pause), Flags()

        def late(folder: Path = folder, flags: Flags = flags) -> object:
            flags.wait(0)
            flags.up(1)
            return KIT.ensure(folder)

        second, first = fork(late), fork(sealing(folder, flags, pause))
        check_ended_well(first, second)
        check_whole(folder, expected)


def looking(folder: Path, expected: Expected, flags: Flags) -> Callable[[], object]:
    """Return a reader that opens and reads the store again and again until it has seen it finished some times."""

    def look() -> object:
        unfinished = finished = 0
        flags.up(0)
        while finished < 3:
            if check_reader(folder, expected):
                finished += 1
            else:
                said = reason(folder, expected)
                assert said is None or "unfinished" in said or "found nothing" in said, said
                unfinished += 1
        return f"Filled {unfinished}"

    return look


def reason(folder: Path, expected: Expected) -> str | None:
    """Return why a store cannot be opened now, None when it can."""
    try:
        Store(folder, expected.kind)
    except StillroomError as error:
        return str(error)
    return None


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_reader_beside_writers_sees_nothing_or_the_right_numbers(expected, tmp_path, rounds):
    for number in range(rounds):
        folder, flags = tmp_path / str(number), Flags()
        reader = fork(looking(folder, expected, flags))
        flags.wait(0)
        check_ended_well(*together([writes(folder, number), writes(folder, number + 1)]), reader)
        assert int(reader.wait().said.split()[1]) > 0, "it looked before the end"


def test_a_child_that_a_writer_forks_while_it_holds_the_lock_does_not_keep_it(expected, tmp_path):
    KIT.writer(tmp_path).prepare()
    with locked(tmp_path):
        child = fork(lambda: time.sleep(20))
    waits = fork(lambda: KIT.ensure(tmp_path))
    try:
        time.sleep(0.5)
        assert (tmp_path / MANIFEST).exists(), "the lock went with the writer's hold on it"
    finally:
        child.kill()
        child.wait()
    check_ended_well(waits)
    check_whole(tmp_path, expected)


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [0, 1, 2])
@pytest.mark.parametrize("threads", [0, 4])
def test_threads_that_compute_and_one_that_writes_end_with_the_same_bytes(expected, tmp_path, threads, behind):
    for number in range(2):
        folder = tmp_path / str(number)
        if threads:
            with ThreadPoolExecutor(threads) as pool:
                KIT.ensure(folder, dawdling(number), run=pool.map, write_behind=behind)
        else:
            KIT.ensure(folder, dawdling(number), write_behind=behind)
        check_whole(folder, expected)


@pytest.mark.parametrize("behind", [1, 2])
@pytest.mark.parametrize("place", [0, 5, 13])
def test_a_writing_thread_that_fails_stops_the_dump_with_its_error_and_resume_works(expected, tmp_path, place, behind):
    computed: list[Block] = []

    def compute(block: Block) -> Computed:
        computed.append(block)
        return KIT.compute(block)

    full = Refusing(("fsync",), place, NO_SPACE, for_good=True, under=f"/{RECORDS}/.")
    with steps_in(tmp_path, full), pytest.raises(OSError, match="No space left") as failure:
        KIT.ensure(tmp_path, compute, write_behind=behind)
    assert failure.value.errno == errno.ENOSPC
    assert len(computed) <= place + behind + 2, "it stopped, and did not compute what nobody could write"
    assert not list(tmp_path.rglob("*.partial"))
    before = committed(tmp_path, expected)
    assert len([path for path in before if path.startswith(RECORDS)]) == place
    KIT.ensure(tmp_path, write_behind=behind)
    check_kept(tmp_path, before)
    check_whole(tmp_path, expected)
