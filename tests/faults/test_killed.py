"""The law: a writer killed at any instant, however often, and run again ends byte for byte as if nothing had happened.

On the way nothing that was committed is lost or written again, no file under a name of its own is ever half written,
and whoever opens the store sees an error that says it is unfinished, or the right numbers: never a wrong one.
"""

import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cuts import Disk
from forks import fork
from instants import Dead, Step, dies_at, steps_in
from kits import KITS, Kit, lay_out_once
from laws import Expected, check_kept, check_names, check_reader, check_whole, committed, files_of, lay_down
from runs import SMALLEST, Dumping, Fusing, small_replayer
from toys import dump_store, small_blocks

from pipeline.lineage import MANIFEST, write_cost
from pipeline.store import Block
from pipeline.store.records import RECORDS


@pytest.fixture(scope="module")
def kept_whole(tmp_path_factory) -> dict[str, Expected]:
    """Each kit's uninterrupted store, in memory."""
    return {name: kit.expected(tmp_path_factory.mktemp(name)) for name, kit in KITS.items()}


@pytest.fixture(params=KITS)
def kit(request):
    return KITS[request.param]


@pytest.fixture
def expected(kit, kept_whole) -> Expected:
    return next(kept_whole[name] for name in KITS if KITS[name] is kit)


def run_until(step: int, ensure: Callable[[Path], Any], folder: Path) -> bool:
    """Run in a process that dies at a step; return whether it got through before."""
    try:
        with steps_in(folder, dies_at(step)):
            ensure(folder)
    except Dead:
        return False
    return True


def check_all(folder: Path, expected: Expected, before: Any = None, *, but: tuple[str, ...] = ()) -> bool:
    """Check every law that holds at any instant; return whether a reader sees numbers."""
    check_names(folder, expected, but=but)
    check_kept(folder, before or {}, but=but)
    return check_reader(folder, expected)


def steps_of(ensure: Callable[[Path], Any], folder: Path) -> int:
    """Return how many steps a run takes from where the folder is."""
    with steps_in(folder) as steps:
        ensure(folder)
    return len(steps)


# -- white box: every step of the protocol ----------------------------------------------------------------------------


def changed_below(folder: Path, ensure: Callable[[Path], Any]) -> str:
    """Return what Python's own audit says a run opened for writing, made, renamed and unlinked, and what steps say."""
    audited: list[tuple[str, str]] = []
    verbs = {"os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "unlink", "os.rmdir": "rmdir", "open": "open"}

    def heard(event: str, details: tuple[Any, ...]) -> None:
        inside = event in verbs and str(details[0]).startswith(str(folder))
        if inside and (event != "open" or details[2] & 3):
            audited.append((verbs[event], str(details[0])))

    sys.addaudithook(heard)
    with steps_in(folder) as steps:
        ensure(folder)
    seen = [(step.verb, step.path) for step in steps.taken if step.verb not in ("write", "fsync")]
    return f"{len(seen)} steps" if audited == seen else f"heard {set(audited) ^ set(seen)}"


def test_no_change_of_a_store_escapes_the_harness(kit, tmp_path):
    said = fork(lambda: changed_below(tmp_path, kit.ensure)).wait().said  # a hook stays for the life of its process
    assert said.endswith(" steps")
    assert int(said.split()[0]) > 30


def killed_once(ensure: Callable[[Path], Any], step: int, folder: Path, expected: Expected) -> tuple[int, bool]:
    """Die at a step, run again and check every law; return how many files were committed then, and whether sealed."""
    assert not run_until(step, ensure, folder)
    is_read, before = check_all(folder, expected), committed(folder, expected)
    ensure(folder)
    check_kept(folder, before)
    check_whole(folder, expected)
    return len(before), is_read


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.faults)])
def test_killed_at_a_step_and_run_again_the_store_is_whole(kit, expected, tmp_path, stride):
    total = steps_of(kit.ensure, tmp_path / "counted")
    stride = stride if kit is not KITS["plain"] else min(stride, 3)
    seen = {
        killed_once(kit.ensure, step, tmp_path / str(step), expected)
        for step in sorted({*range(0, total, stride), total - 1})
    }
    assert len({files for files, _ in seen}) == len(kit.layout.blocks) + 1, "killed before and after every commit"
    assert {is_read for _, is_read in seen} == {False, True}, "killed before and after the seal"


# When a process that was killed at `step` dies the next time: `grew` says whether it had written any file meanwhile.
Next = Callable[[random.Random, int, bool], int]
RESTARTS: dict[str, Next] = {
    "one step later each time": lambda chance, step, grew: step + 1,
    "at the same step of what is left": lambda chance, step, grew: step if grew else step + 1,
    "sooner or later": lambda chance, step, grew: chance.randrange(1, 50),
}


def restarted(
    ensure: Callable[[Path], Any],
    next_step: Next,
    first: int,
    folder: Path,
    expected: Expected,
    *,
    but: tuple[str, ...] = (),
) -> int:
    """Run again and again, each time killed at the next step, until a run gets through; return the number of deaths."""
    chance, step, deaths = random.Random(first), first, 0
    while True:
        before, files = committed(folder, expected), len(files_of(folder))
        if run_until(step, ensure, folder):
            break
        check_all(folder, expected, before, but=but)
        step, deaths = next_step(chance, step, len(files_of(folder)) > files), deaths + 1
    check_kept(folder, before, but=but)
    check_whole(folder, expected)
    return deaths


@pytest.mark.parametrize("starts", [1, pytest.param(60, marks=pytest.mark.faults)])
@pytest.mark.parametrize("how", RESTARTS)
def test_killed_again_while_recovering_the_store_is_whole(kit, expected, tmp_path, how, starts):
    chance = random.Random(how)
    firsts = [chance.randrange(40) for _ in range(starts)]
    deaths = [
        restarted(kit.ensure, RESTARTS[how], first, tmp_path / str(n), expected) for n, first in enumerate(firsts)
    ]
    assert sum(deaths) > 2 * starts


# -- white box: a finished store with damage is mended ----------------------------------------------------------------


def flip(path: Path, place: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


BLOCK = (f"{RECORDS}/train-0-0.json", "train/row/c/0/0", "train/ids/c/0")
DAMAGES: dict[str, tuple[dict[str, Callable[[Path], None]], tuple[str, ...]]] = {
    "a chunk flipped": ({"train/row/c/0/0": flip}, BLOCK),
    "a chunk gone": ({"train/ids/c/0": Path.unlink}, BLOCK),
    "a record flipped": ({BLOCK[0]: flip}, BLOCK),
    "a record gone": ({BLOCK[0]: Path.unlink}, BLOCK),
    "an array's metadata flipped": ({"train/row/zarr.json": flip}, ("train/row/zarr.json",)),
    "the root's metadata flipped": ({"zarr.json": flip}, ("zarr.json",)),
    "the root's metadata gone": ({"zarr.json": Path.unlink}, ("zarr.json",)),
    "a constant flipped": ({"fitted/code/step/c/0": flip}, ("fitted/code/step/c/0",)),
    "the manifest flipped": ({MANIFEST: flip}, (MANIFEST,)),
    "much at once": (
        {"train/row/c/0/0": flip, "train/ids/zarr.json": flip, "fitted/code/low/zarr.json": Path.unlink},
        (*BLOCK, "train/ids/zarr.json", "fitted/code/low/zarr.json"),
    ),
}


def damage(folder: Path, expected: Expected, harms: dict[str, Callable[[Path], None]]) -> None:
    """Lay down the finished store and harm it."""
    lay_down(folder, expected.files)
    for path, harm in harms.items():
        harm(folder / path)


@pytest.mark.parametrize("stride", [20, pytest.param(1, marks=pytest.mark.faults)])
@pytest.mark.parametrize("what", DAMAGES)
def test_killed_while_mending_and_run_again_the_store_is_whole(kept_whole, tmp_path, what, stride):
    kit, expected, (harms, harmed) = KITS["constants"], kept_whole["constants"], DAMAGES[what]
    damage(tmp_path / "counted", expected, harms)
    total = steps_of(kit.ensure, tmp_path / "counted")
    check_whole(tmp_path / "counted", expected)
    for step in sorted({*range(7), *range(0, total, stride)}):  # what takes the seal off comes first
        folder = tmp_path / str(step)
        damage(folder, expected, harms)
        before = committed(folder, expected)
        assert not run_until(step, kit.ensure, folder)
        check_all(folder, expected, before, but=harmed)
        kit.ensure(folder)
        check_kept(folder, before, but=harmed)
        check_whole(folder, expected)


@pytest.mark.faults
@pytest.mark.parametrize("how", RESTARTS)
@pytest.mark.parametrize("what", DAMAGES)
def test_killed_again_and_again_while_mending_the_store_is_whole(kept_whole, tmp_path, what, how):
    kit, expected, (harms, harmed) = KITS["constants"], kept_whole["constants"], DAMAGES[what]
    for first in range(0, 60, 4):
        damage(tmp_path / str(first), expected, harms)
        restarted(kit.ensure, RESTARTS[how], first, tmp_path / str(first), expected, but=harmed)


def test_killed_while_it_notes_its_costs_in_a_finished_store_nothing_is_left_lying_there(kept_whole, tmp_path):
    kit, expected = KITS["plain"], kept_whole["plain"]

    def ensure(folder: Path) -> None:
        kit.ensure(folder)
        write_cost(folder, {"recipe": "small"})

    lay_down(tmp_path / "counted", expected.files)
    for step in range(steps_of(ensure, tmp_path / "counted")):
        folder = tmp_path / str(step)
        lay_down(folder, expected.files)
        assert not run_until(step, ensure, folder)
        ensure(folder)
        check_whole(folder, expected)


# -- white box: the power goes ----------------------------------------------------------------------------------------


def check_after_cut(
    kit: Kit, expected: Expected, files: dict[str, bytes], kept: set[str], folder: Path, harmed: tuple[str, ...] = ()
) -> None:
    """What was said to be committed is there, and what the disk was left with is made whole."""
    lay_down(folder, files)
    lost = {path for path in kept if not (folder / path).exists()}
    assert not lost, f"{sorted(lost)} had been committed"
    check_names(folder, expected, but=harmed)
    is_sealed, is_read = MANIFEST in files, check_reader(folder, expected)
    assert harmed or is_sealed == is_read
    kit.ensure(folder)
    check_whole(folder, expected)


def run_to_cut(kit: Kit, expected: Expected, root: Path) -> tuple[list[Step], list[tuple[int, set[str]]]]:
    """Run through; return the steps, and from which of them on which files count as committed."""
    store, kept = root / "store", []

    def commits(block: Block) -> None:
        paths = {f"{RECORDS}/{block.key}.json", *(kit.layout.chunk_path(block, n) for n in kit.layout.arrays_of(block))}
        kept.append((len(steps), paths))

    with steps_in(root) as steps:
        kit.ensure(store, on_block=commits)
    kept.append((len(steps), {*expected.files}))
    return steps.taken, kept


SHARES = [0.0, 0.5, 0.5, 0.9]  # of what was not synced that reached the disk all the same


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.faults)])
def test_after_a_power_cut_at_any_step_nothing_committed_is_lost_and_the_store_is_made_whole(
    kit, expected, tmp_path, stride
):
    root, chance = tmp_path / "counted", random.Random(11)
    root.mkdir()
    steps, kept = run_to_cut(kit, expected, root)
    for cut in [*range(0, len(steps), stride), len(steps)]:
        disk, committed_by = Disk(root).follow(steps[:cut]), [paths for step, paths in kept if step <= cut]
        for number, share in enumerate(SHARES):
            left = disk.after_cut(chance, share)
            files = {path.removeprefix("store/"): content for path, content in left.items()}
            check_after_cut(kit, expected, files, set().union(*committed_by), tmp_path / f"{cut}-{number}")


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.faults)])
@pytest.mark.parametrize("what", DAMAGES)
def test_after_a_power_cut_while_mending_the_store_is_made_whole(kept_whole, tmp_path, what, stride):
    kit, expected, (harms, harmed) = KITS["constants"], kept_whole["constants"], DAMAGES[what]
    root, chance = tmp_path / "counted", random.Random(13)
    damage(root, expected, harms)
    begun = files_of(root)
    with steps_in(root) as steps:
        kit.ensure(root)
    for cut in range(0, len(steps), stride):
        disk = Disk(root, begun).follow(steps.taken[:cut])
        kept = {path for path in begun if path not in (*harmed, MANIFEST)}
        for number, share in enumerate(SHARES):
            files = disk.after_cut(chance, share)
            check_after_cut(kit, expected, files, kept, tmp_path / f"{cut}-{number}", harmed)


# -- the library's own dump and fusion --------------------------------------------------------------------------------


Made = tuple[Dumping | Fusing, Expected, int]  # how it is made, what it is in the end, the steps of a whole run
REAL = ("dump", "dump with auto and pca", "fuse with auto")


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Iterator[dict[str, Made]]:
    """A teacher store as it is by default, one with everything chosen and fitted, a target store of two."""
    rows, root = small_replayer(), tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, 8)
        lay_out_once(patch)
        teachers = [dump_store(root / name, rows, name=name, seed=seed) for seed, name in enumerate("ab")]
        made = (Dumping(rows), Dumping(rows, asked=SMALLEST), Fusing(teachers, "auto"))
        counted = [steps_of(each.ensure, root / str(number)) for number, each in enumerate(made)]
        kept = [each.expected(root / str(number)) for number, each in enumerate(made)]
        yield dict(zip(REAL, zip(made, kept, counted, strict=True), strict=True))


@pytest.mark.parametrize("rounds", [1, pytest.param(80, marks=pytest.mark.faults)])
@pytest.mark.parametrize("what", REAL)
def test_a_dump_or_fusion_killed_at_seeded_steps_is_whole_in_the_end(real, tmp_path, what, rounds):
    (made, expected, total), chance = real[what], random.Random(what)
    for number in range(rounds):
        folder = tmp_path / str(number)
        for _ in range(3):
            before = committed(folder, expected)
            if run_until(chance.randrange(total), made.ensure, folder):
                break
            check_all(folder, expected, before)
        before = committed(folder, expected)
        made.ensure(folder)
        check_kept(folder, before)
        check_whole(folder, expected)


# -- black box: SIGKILL at random instants ----------------------------------------------------------------------------


def seconds_of(ensure: Callable[[Path], Any], tmp_path: Path) -> float:
    """Return what an uninterrupted run takes in a process of its own: the first is slower than any other."""
    taken = []
    for number in range(2):
        begun = time.perf_counter()
        assert fork(partial(ensure, tmp_path / f"timed{number}")).wait().signal is None
        taken.append(time.perf_counter() - begun)
    return min(taken)


def killed_at_random(
    ensure: Callable[[Path], Any], folder: Path, expected: Expected, chance: random.Random, seconds: float
) -> list[bool]:
    """Kill runs at instants all over what is left to do, a few times, then let one through; return which were hit."""
    hits = []
    for _ in range(chance.randint(1, 5)):
        before = committed(folder, expected)
        left = 1 - len(before) / len(expected.files)
        ended = fork(lambda: ensure(folder)).kill_after(chance.uniform(0, seconds * (0.1 + 0.9 * left)))
        assert ended.was_killed or ended.said.startswith("Filled"), ended
        hits.append(ended.was_killed and check_all(folder, expected, before) is False)
        if not ended.was_killed:
            break
    before = committed(folder, expected)
    ensure(folder)
    check_kept(folder, before)
    check_whole(folder, expected)
    shutil.rmtree(folder)
    return hits


FEW_ROUNDS = [("dump", 4), ("fuse with auto", 4)]  # killed on the way, of at most 11
MANY_ROUNDS = [pytest.param(what, 100, marks=pytest.mark.faults) for what in REAL]


@pytest.mark.parametrize(("what", "rounds"), [*FEW_ROUNDS, *MANY_ROUNDS])
def test_killed_by_a_signal_at_random_instants_the_store_is_whole_in_the_end(real, tmp_path, what, rounds):
    (made, expected, _), chance = real[what], random.Random(7)
    seconds, hits = seconds_of(made.ensure, tmp_path), list[bool]()
    while sum(hits) < rounds and len(hits) < 5 + rounds / 0.6:
        hits += killed_at_random(made.ensure, tmp_path / "killed", expected, chance, seconds)
        seconds *= 1.02 if hits[-1] else 0.8  # a crowded machine is slower now, and faster then
    assert sum(hits) >= rounds, f"only {sum(hits)} of {len(hits)} rounds were killed on the way"
