"""The league of a recipe: shown, kept, decided once, and what "auto" and "single:<name>" become."""

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from few import settle, workspace
from rich.console import Console

from pipeline.errors import StillroomError
from pipeline.lineage import read_manifest
from pipeline.store import open_targets
from stages import distill, fuse, gc, league, logits, status

AUTO = 'fusion.mean.strategy="auto"'


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder with the teachers' stores alone."""
    home = tmp_path_factory.mktemp("home")
    settle(home)
    sys.path.insert(0, str(home))
    logits.run(workspace(home))
    yield home
    sys.path.remove(str(home))


@pytest.fixture
def home(dumped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dumped, tmp_path / "home", symlinks=True))


def few_entries(patch: pytest.MonkeyPatch) -> None:
    """Let the league have strategies that are fitted in no time."""
    entries = {"mean": ("mean", {}), "sharp": ("weighted", {"tau": 0.01}), "hard vote": ("vote", {"kind": "hard"})}
    for module in ("stages.workspace", "stages.league"):
        patch.setattr(f"{module}.ENTRIES", entries)
    patch.setattr("stages.league.standings.__kwdefaults__", {**league.standings.__kwdefaults__, "entries": entries})


def test_the_league_is_shown_and_kept_and_fuses_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_entries(monkeypatch)
    ws = workspace(home)
    ws.console = Console(file=io.StringIO(), width=160)
    fuse.run(ws, compare=True)
    text = ws.console.file.getvalue()
    assert [name in text for name in ("teacher conv", "teacher bayes", "mean", "sharp", "hard vote")] == [True] * 5
    assert ws.teacher_forwards == 0
    assert not (home / "data" / "targets").exists()
    manifest = read_manifest(ws.league_folder(league.LEAGUE))
    rows = {row["name"]: row for row in manifest.details["rows"]}
    nll = {name: row["scores"]["calibration"]["nll"] for name, row in rows.items()}
    assert manifest.details["name"] == min(nll, key=nll.__getitem__)
    again = workspace(home)
    fuse.run(again, compare=True)
    assert again.done == []


def test_auto_is_the_leagues_winner(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_entries(monkeypatch)
    ws = workspace(home)
    fuse.run(ws, auto=True)
    said = read_manifest(ws.league_folder(league.LEAGUE)).details
    store = open_targets(ws.target_folder(league.LEAGUE))
    assert store.manifest.config["strategy"] == said["strategy"]
    assert store.manifest.config["options"] == said["options"]
    assert store.name == "auto"


def test_a_recipe_may_leave_the_strategy_to_the_league(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_entries(monkeypatch)
    undecided = workspace(home, AUTO)
    entry = undecided.recipe.find("fusion", "mean")
    with pytest.raises(StillroomError, match="stillroom fuse --auto"):
        undecided.target_folder(entry)
    assert "mean" not in {wanted.name for wanted in status.wanted(undecided) if wanted.kind == "targets"}
    ws = workspace(home, AUTO)
    distill.run(ws, student="other")
    strategy, _ = ws.strategy_of(entry)
    assert strategy in ("mean", "weighted", "vote")
    assert ws.teacher_forwards == 0
    assert {wanted.kind for wanted in status.wanted(ws)} >= {"leagues", "targets", "students"}
    gc.run([ws], delete=True)
    assert ws.is_decided(entry), "the league is no waste: the recipe's target follows from it"


def test_one_teacher_by_name_is_that_teacher_alone(home: Path) -> None:
    ws = workspace(home, 'fusion.mean.strategy="single:conv"')
    fuse.run(ws, "mean")
    store = open_targets(ws.target_folder(ws.recipe.find("fusion", "mean")))
    assert store.teachers == ("conv",)
    assert (store.read("test", "weights") == 1).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            'fusion.mean.strategy="single:cnov"',
            r"fusion\.mean\.strategy: unknown teacher 'cnov'; .*mean 'conv'",
        ),
        ('fusion.weighted.strategy="auto" fusion.weighted.tau=1.0', r"fusion\.weighted: unknown key 'tau'"),
        ('fusion.mean.strategy="single:conv" fusion.mean.teachers=["conv"]', r"expected one of both; remove it"),
    ],
)
def test_wrong_words_are_told(home: Path, override: str, message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        workspace(home, *override.split(" "))
