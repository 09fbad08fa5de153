"""The command line as a user meets it: help without torch, one line and exit code 1 for what goes wrong."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ("data", "teachers", "logits", "fuse", "distill", "recipes", "report", "verify", "status", "gc")


def stillroom(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "stages", *words], cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )


def test_help_needs_neither_torch_nor_pydantic():
    script = (
        "import sys; sys.argv = ['stillroom', '--help']\n"
        "from stages.__main__ import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'pydantic', 'zarr', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    done = stillroom(command, "--help")
    assert done.returncode == 0
    assert f"Example: stillroom {command}" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("data", "fashon"), "error: recipe: found no 'fashon'"),
        (("data", "smoke", "--set", "data.nam=1"), "error: smoke.toml: data.nam: unknown key 'nam'"),
        (("fuse", "smoke", "--fusion", "maen"), "did you mean 'mean'"),
        (("distill", "smoke", "--student", "tny"), "did you mean 'tiny'"),
        (("data", "smoke", "--set", "data.labelled=99999"), "error: data.labelled: found 99999; expected at most"),
    ],
)
def test_a_mistake_is_one_line_without_traceback(words, told, tmp_path):
    (tmp_path / "raw").symlink_to(ROOT / "data" / "raw")
    done = stillroom(*words, "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "no space left; expected"),
        (errno.EACCES, "no permission to write"),
        (errno.EROFS, "no per"),
    ],
)
def test_the_operating_systems_refusals_are_told(number, told, capsys):
    from stages.command import guarded

    def work() -> None:
        raise OSError(number, "refused", "data/logits/x")

    with pytest.raises(SystemExit) as end:
        guarded(work, debug=False)
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: data/logits/x: ")
    assert told in message


def test_interruption_says_that_nothing_is_lost(capsys):
    from stages.command import guarded

    def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        guarded(work, debug=False)
    assert end.value.code == 130
    assert "run the same command to go on" in capsys.readouterr().err


def test_verify_of_no_store_is_exit_code_2(tmp_path):
    done = stillroom("verify", str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (2, f"{tmp_path}: not a store")
