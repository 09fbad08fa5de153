"""A recipe whose students weigh the teachers themselves: what it may say, what is made, and that no teacher runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from pipeline import report as reports
from pipeline import train
from pipeline.errors import StillroomError
from pipeline.lineage import read_manifest
from pipeline.objective import Objective
from stages import distill, fuse, gc, logits, objectives, passes, report, runs, status
from stages.load import load_recipe
from stages.workspace import Workspace

RECIPE = """
name = "lazy_run"
[data]
folder = "{folder}"
test = 0.3
calibration = 0.3
[views]
count = 2
transforms = [{{ kind = "shift", pixels = 1 }}]
[[teacher]]
name = "net"
model = "mlp"
width = 8
epochs = 2
[[teacher]]
name = "forest"
model = "sklearn.ensemble:ExtraTreesClassifier"
n_estimators = 5
[[fusion]]
name = "agree"
strategy = "aekd"
target = "lazy"
[[fusion]]
name = "learned"
strategy = "amtml"
dims = 4
[[fusion]]
name = "mean"
[[student]]
name = "small"
model = "mlp"
width = 8
depth = 1
epochs = 3
batch_size = 9
seeds = [0]
fusion = "agree"
baselines = false
loss = {{ temperature = 3.0 }}
"""


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both teachers' stores, and no teacher any more."""
    root = tmp_path_factory.mktemp("run")
    draws = np.random.default_rng(0)
    for number, name in enumerate(("one", "two", "three")):
        (root / "pictures" / name).mkdir(parents=True)
        for index in range(20):
            pixels = (draws.integers(0, 100, (8, 8)) + 70 * number).astype(np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / name / f"{index}.png")
    (root / "lazy_run.toml").write_text(RECIPE.format(folder=root / "pictures"))
    logits.run(open_workspace(root))
    shutil.rmtree(root / "data" / "teachers")
    return root


@pytest.fixture
def home(dumped: Path, tmp_path: Path) -> Path:
    """A copy of it, to work in."""
    return Path(shutil.copytree(dumped, tmp_path / "home"))


def open_workspace(root: Path, *overrides: str, console: Console | None = None) -> Workspace:
    recipe = load_recipe(str(root / "lazy_run.toml"), list(overrides))
    return Workspace(recipe, root / "data", console or Console(quiet=True))


def student_of(ws: Workspace) -> Path:
    (job,) = runs.runs(ws, ws.recipe.student[0])
    return runs.folder_of(ws, job)


def test_a_student_distills_from_the_stores_alone_and_says_whom_it_followed(home: Path) -> None:
    ws = open_workspace(home)
    distill.run(ws)
    assert [Path(path).parent.name for path in ws.done] == ["students"]
    assert ws.teacher_forwards == 0
    assert not (home / "data" / "teachers").exists()
    assert not (home / "data" / "targets").exists()
    manifest = read_manifest(student_of(ws))
    assert manifest.details["teacher_forwards"] == 0
    weights = manifest.details["teacher_weights"]
    assert set(weights) == {"net", "forest"}
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    assert 0.4 - 1e-6 <= min(weights.values()) <= max(weights.values()) <= 0.6 + 1e-6
    stores = [ws.teacher_store_folder(entry) for entry in ws.recipe.teacher]
    expected = [{"name": folder.name.split("-")[0], "store": read_manifest(folder).fingerprint} for folder in stores]
    lazy = manifest.config["lazy"]
    assert lazy["teachers"] == expected
    assert (lazy["strategy"], lazy["options"], lazy["calibrate"]) == ("aekd", {"cap": 0.6}, True)

    again = open_workspace(home)
    distill.run(again)
    assert again.done == []


def test_each_strategy_option_and_teacher_gives_another_student_the_default_said_aloud_does_not(home: Path) -> None:
    same = [(), ("fusion.agree.cap=0.6",), ("fusion.agree.calibrate=true",)]
    others = [
        ("fusion.agree.cap=0.7",),
        ("fusion.agree.calibrate=false",),
        ("fusion.agree.teachers=['net', 'forest']", "fusion.agree.strategy=curriculum"),
        ("fusion.agree.teachers=['forest', 'net']",),
        ("student.small.fusion=learned",),
        ("student.small.fusion=mean", "fusion.mean.temperatures=[3.0]"),
        ("student.small.loss.temperature=2.0",),
    ]
    assert len({student_of(open_workspace(home, *overrides)) for overrides in same}) == 1
    assert len({student_of(open_workspace(home, *overrides)) for overrides in (same[0], *others)}) == 1 + len(others)


def test_killed_in_mid_epoch_the_weigher_goes_on_with_the_student(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = "student.small.fusion=learned"
    distill.run(open_workspace(home, learned))
    folder = student_of(open_workspace(home, learned))
    whole, weights = load_file(folder / "weights.safetensors"), read_manifest(folder).details["teacher_weights"]
    shutil.rmtree(folder)
    step, taken = train.Run.step, []

    class Killed(BaseException):
        """Stands for a signal."""

    def dies(self: train.Run, batch: object) -> None:
        if len(taken) == 5:
            raise Killed
        taken.append(batch)
        step(self, batch)

    save_always = {"checkpoint_seconds": 0.0}
    fit = passes.fit_together
    monkeypatch.setattr(
        passes, "fit_together", lambda *arguments, **options: fit(*arguments, **{**options, **save_always})
    )
    monkeypatch.setattr(train.Run, "step", dies)
    with pytest.raises(Killed):
        distill.run(open_workspace(home, learned))
    assert (folder / "checkpoint.pt").exists()
    monkeypatch.setattr(train.Run, "step", step)
    distill.run(open_workspace(home, learned))
    resumed = load_file(folder / "weights.safetensors")
    assert all((whole[name] == resumed[name]).all() for name in whole)
    assert read_manifest(folder).details["teacher_weights"] == weights


def test_fuse_skips_it_and_says_so(home: Path) -> None:
    console = Console(record=True, width=200, quiet=False, file=(home / "said.txt").open("w"))
    ws = open_workspace(home, console=console)
    fuse.run(ws)
    said = console.export_text()
    assert "agree: skipped, 'aekd' weighs the teachers as each student trains" in said
    assert "fusion mean" in said
    assert "fusion agree" not in said
    assert [Path(path).name.split("-")[0] for path in ws.done] == ["mean"]


def test_status_report_and_gc_count_its_student_and_no_target(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "render", lambda report: "")
    ws = open_workspace(home, "student.small.baselines=true", "student.small.loss.temperature=1.0")
    distill.run(ws)
    report.run(ws)
    results = json.loads((home / "data" / "reports" / "lazy_run" / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert rows["small"]["teacher_forwards"] == 0
    assert sum(rows["small"]["teacher_weights"].values()) == pytest.approx(1, abs=1e-5)
    assert {"uniform_mean", "best_single", "hard_labels"} <= rows.keys()
    assert "agree" not in rows
    status.run(ws, as_json=True)
    artefacts = json.loads(capsys.readouterr().out)["artefacts"]
    assert "agree" not in {row["name"] for row in artefacts}
    assert {row["state"] for row in artefacts if row["kind"] in ("logits", "students")} == {"finished"}
    before = set((home / "data").glob("students/*"))
    gc.run([ws], delete=True)
    assert set((home / "data").glob("students/*")) == before


def test_a_recipe_of_lazy_fusions_alone_is_reported(home: Path) -> None:
    text = (home / "lazy_run.toml").read_text()
    start, end = text.index('[[fusion]]\nname = "mean"'), text.index("[[student]]")
    (home / "lazy_run.toml").write_text(text[:start] + text[end:])
    ws = open_workspace(home)
    distill.run(ws)
    report.run(ws)
    assert (home / "data" / "reports" / "lazy_run" / "index.html").exists()


def test_without_a_label_in_sight_meta_online_stops_before_training(home: Path) -> None:
    mixed = ("views.mix={kind='mixup', views=2}", "fusion.agree.strategy=meta_online")
    ws = open_workspace(home, *mixed)
    (job,) = runs.runs(ws, ws.recipe.student[0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(StillroomError, match=r"fusion 'meta_online': found no train row that shows its label"):
        objectives.lazy_loss(ws, job, model, Objective(model, steps=10), 10)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["fusion.agree.target=store"], r"fusion\.agree\.target: found 'store'; expected 'lazy', for 'aekd' needs the"),
        (["fusion.mean.target=lazy"], r"fusion\.mean\.target: found 'lazy' with strategy 'linear_pool'; expected"),
        (["fusion.agree.codec=fp32"], r"fusion\.agree\.codec: found 'fp32' with strategy 'aekd'; expected none"),
        (["fusion.agree.correction=soft"], r"fusion\.agree\.correction: found 'soft' with strategy 'aekd'; expected"),
        (["fusion.agree.calibrate_pool=false"], r"fusion\.agree\.calibrate_pool: found False with strategy 'aekd'"),
        (["fusion.agree.temperatures=[4.0]"], r"fusion\.agree\.temperatures: found \[4.0\] with strategy 'aekd'"),
        (["fusion.agree.cap=0.4"], r"fusion 'aekd': cap is 0.4 with 2 teachers; expected at least 0.5"),
        (["fusion.agree.teachers=['net']"], r"fusion 'aekd': cap is 0.6 with 1 teacher; expected at least 1"),
        (["fusion.agree.cpa=0.7"], r"fusion\.agree: unknown key 'cpa'; .*did you mean 'cap'"),
        (["fusion.agree.strategy=akd"], r"fusion\.agree\.strategy: unknown strategy 'akd'.*'aekd'"),
        (["fusion.agree.target=lasy"], r"fusion\.agree\.target: found 'lasy'"),
        (["logits.codec=sampled"], r"fusion\.agree: found teachers kept as random draws"),
    ],
)
def test_what_a_lazy_fusion_may_not_say_is_told(dumped: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(StillroomError, match=told):
        open_workspace(dumped, *overrides)


def test_a_lazy_student_may_ask_for_any_temperature_a_stored_one_may_not(dumped: Path) -> None:
    open_workspace(dumped, "student.small.loss.temperature=7.5", "fusion.mean.target=store")
    with pytest.raises(StillroomError, match=r"temperature: found 7.5; expected one of fusion 'mean'"):
        open_workspace(dumped, "student.small.loss.temperature=7.5", "student.small.fusion=mean")
