"""The law: a disk that is full, read-only or broken stops a writer with one clear error that names the file.

Nothing that was committed is lost, the writer sweeps up what it had half written, and once there is room again the
same call ends with the bytes of a run that nothing happened to.
"""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forks import fork
from instants import BROKEN, NO_SPACE, Refusing, steps_in
from kits import KITS, Kit
from laws import Expected, check_kept, check_names, check_reader, check_whole, committed, raised

from pipeline.lineage import COST, MANIFEST
from pipeline.store import ArraySpec, Filled, Layout
from pipeline.store.records import RECORDS
from pipeline.store.verify import verify
from stages.command import guarded

MEGABYTES = 4
LARGE = Kit(Layout({"train": (2, 256)}, {"values": ArraySpec((4096,), "float32")}, rows_per_block=32))  # 8 MB


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Expected:
    return KITS["plain"].expected(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Expected:
    return LARGE.expected(tmp_path_factory.mktemp("large"))


def exit_of(work: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code and what is told when the command line does this."""
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: work() and None, False)
    return ended.value.code, capsys.readouterr().err


# -- real disks -------------------------------------------------------------------------------------------------------


def mount(*options: str, at: Path) -> str | None:
    """Mount a disk in memory, or mount it otherwise; return why it was refused."""
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", at], capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else None


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of its own of few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if refused := mount("-o", f"size={MEGABYTES}m", at=folder):
        pytest.skip(f"this machine refuses to mount a small disk: {refused}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run into the end of the disk as the command line does; return what it says."""
    code, said = exit_of(lambda: LARGE.ensure(folder), capsys)
    assert code == 1
    return said


def test_a_full_disk_is_told_in_one_line_and_with_more_room_the_same_call_goes_on(disk, large, capsys):
    store = disk / "store"
    said = fill_up(store, capsys)
    where = rf"{store}/(train/values/c/\d/\d/0|records/train-\d-\d\.json)"
    assert re.fullmatch(rf"error: {where}: no space left; expected room to write; free some and run .*\n", said)
    assert not list(disk.rglob("*.partial"))
    before = committed(store, large)
    assert len(before) > 6, "some blocks found room"
    assert fill_up(store, capsys)
    check_kept(store, before)
    check_names(store, large)
    assert not check_reader(store, large)
    assert mount("-o", "remount,size=32m", at=disk) is None
    LARGE.ensure(store)
    check_kept(store, before)
    check_whole(store, large)


def leave(room: int, ballast: Path) -> None:
    """Fill a disk so that this many bytes are left."""
    with open(ballast, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(file.tell() - room)


def test_a_disk_filled_by_others_may_hold_up_any_part_of_a_store(disk, expected):
    kit, store, ballast, stopped = KITS["plain"], disk / "store", disk / "ballast", 0
    for room in range(0, 80_000, 4096):
        leave(room, ballast)
        error = raised(OSError, lambda: kit.ensure(store))
        if error is not None:
            assert error.errno == errno.ENOSPC
            assert str(error.filename).startswith(str(store))
            stopped += 1
        check_names(store, expected)
        before = committed(store, expected)
        ballast.unlink()
        kit.ensure(store)
        check_kept(store, before)
        check_whole(store, expected)
        shutil.rmtree(store)
    assert stopped > 5


def test_a_read_only_disk_is_told_and_once_it_can_be_written_the_same_call_goes_on(disk, large, capsys):
    store = disk / "store"
    fill_up(store, capsys)
    before = committed(store, large)
    assert mount("-o", "remount,ro", at=disk) is None
    code, said = exit_of(lambda: LARGE.ensure(store), capsys)
    assert code == 1
    assert re.fullmatch(rf"error: {store}\S*: no permission to write; expected a folder of yours; .*\n", said)
    assert ".partial" not in said
    assert mount("-o", "remount,rw,size=32m", at=disk) is None
    check_kept(store, before)
    LARGE.ensure(store)
    check_whole(store, large)


def test_a_finished_store_on_a_read_only_disk_is_read_and_found_as_anywhere(disk, expected):
    KITS["plain"].ensure(disk)
    assert mount("-o", "remount,ro", at=disk) is None
    assert KITS["plain"].ensure(disk) == Filled()
    check_whole(disk, expected)


def test_a_new_store_on_a_read_only_disk_is_refused(disk, capsys):
    assert mount("-o", "remount,ro", at=disk) is None
    code, said = exit_of(lambda: KITS["plain"].ensure(disk / "store"), capsys)
    assert (code, said.split(";")[0]) == (1, f"error: {disk}/store: no permission to write")


def test_a_folder_of_somebody_elses_is_told(expected):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        store = Path(name) / "store"
        KITS["plain"].ensure(store)
        (store / MANIFEST).unlink()
        (store / RECORDS / "train-1-0.json").unlink()
        Path(name).chmod(0o755)

        def nobody() -> object:
            os.setuid(65534)
            try:
                return KITS["plain"].ensure(store)
            except OSError as error:
                return f"{errno.errorcode[error.errno]} {error.filename}"

        code, where = fork(nobody).wait().said.split()
        assert code == "EACCES"
        assert where.startswith(str(store))
        KITS["plain"].ensure(store)
        check_whole(store, expected)


# -- every write, every sync ------------------------------------------------------------------------------------------


def own_name(path: str) -> str:
    """Return the name a file would have got."""
    return re.sub(r"/\.([^/]+)\.\d+\.[0-9a-f]{8}\.partial$", r"/\1", path)


def check_refused(kit: Kit, expected: Expected, refusing: Refusing, folder: Path) -> bool:
    """Run into a disk that refuses something, then without; return whether it refused."""
    with steps_in(folder, refusing):
        error = raised(OSError, lambda: kit.ensure(folder))
    assert (error is None) == (refusing.refused is None), f"nobody heard of {refusing.refused}"
    if error is not None and refusing.refused is not None:
        assert error.errno == refusing.error
        assert error.filename == own_name(refusing.refused.path), f"{refusing.refused} was told as {error.filename}"
    assert not list(folder.rglob("*.partial")), f"{refusing.refused} left something half written"
    check_names(folder, expected)
    is_read, before = check_reader(folder, expected), committed(folder, expected)
    assert not is_read or refusing.refused is None or (folder / MANIFEST).exists()
    kit.ensure(folder)
    check_kept(folder, before)
    check_whole(folder, expected)
    return refusing.refused is not None


VERBS = {"write": 10, "fsync": 10, "open": 5, "rename": 5, "mkdir": 5}  # and how many of each there are at least
EVERY = [("write", NO_SPACE, True), ("fsync", BROKEN, False)]
MORE = [
    pytest.param(verb, error, for_good, marks=pytest.mark.faults)
    for verb in VERBS
    for error in (NO_SPACE, BROKEN)
    for for_good in (False, True)
    if (verb, error, for_good) not in EVERY
]


@pytest.mark.parametrize(("verb", "error", "for_good"), [*EVERY, *MORE])
def test_whichever_step_the_disk_refuses_the_error_names_the_file_and_resume_works(
    expected, tmp_path, verb, error, for_good
):
    place = 0
    while check_refused(KITS["plain"], expected, Refusing((verb,), place, error, for_good), tmp_path / str(place)):
        place += 1
    assert place > VERBS[verb]


FILES = {
    "the manifest": f"/.{MANIFEST}",
    "a record": f"/{RECORDS}/.",
    "the costs": f"/.{COST}",
    "metadata": "/.zarr.json",
    "a chunk": "/c/",
}


@pytest.mark.parametrize("verb", ["write", "fsync", "open", "rename"])
@pytest.mark.parametrize("what", FILES)
def test_each_kind_of_file_that_finds_no_room_is_told_by_its_name(expected, tmp_path, what, verb):
    assert check_refused(KITS["plain"], expected, Refusing((verb,), 0, NO_SPACE, under=FILES[what]), tmp_path)


def test_what_the_costs_find_no_room_for_hides_nothing(expected, tmp_path):
    """A run that was stopped says why, also when there is no room to note what it had cost."""

    def stopped(block: object) -> object:
        if len(list((tmp_path / RECORDS).iterdir())) == 1:
            raise KeyboardInterrupt
        return KITS["plain"].compute(block)

    full = Refusing(("write",), 0, NO_SPACE, for_good=True, under=f"/.{COST}")
    with steps_in(tmp_path, full), pytest.raises(KeyboardInterrupt):
        KITS["plain"].ensure(tmp_path, stopped)
    KITS["plain"].ensure(tmp_path)
    check_whole(tmp_path, expected)


def test_a_broken_disk_is_told_in_one_line(tmp_path, capsys):
    with steps_in(tmp_path, Refusing(("fsync",), 0, BROKEN, under="/.0.")):
        code, said = exit_of(lambda: KITS["plain"].ensure(tmp_path), capsys)
    assert code == 1
    assert re.fullmatch(rf"error: {tmp_path}/train/\w+/c/[\d/]+: Input/output error; expected to .*\n", said)
    assert verify(tmp_path)[0].array == MANIFEST
