"""Ctrl-C and SIGKILL at any instant of any stage: the same command goes on and ends with the same bytes."""

import json
import random
import signal
import subprocess
import sys

import pytest
from few import ROOT, contents, settle

STAGES = ("data", "teachers", "logits", "fuse", "distill", "report")


def start(stage: str, home) -> subprocess.Popen:
    command = [sys.executable, "-m", "stages", stage, "few.toml"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=home, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, **pipes)


def stores(home) -> dict[str, dict[str, bytes]]:
    folders = [path for kind in ("logits", "targets") for path in (home / "data" / kind).iterdir()]
    found = {f"{path.parent.name}/{path.name}": contents(path) for path in folders}
    for files in found.values():
        files["manifest.json"] = without_weights(files["manifest.json"])
    return found


def without_weights(manifest: bytes) -> bytes:
    """A manifest less its teacher's file: skops writes memory addresses, so two trainings differ in that alone."""
    body = json.loads(manifest)
    body["details"].pop("weights", None)
    body.pop("seal")
    return json.dumps(body).encode()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_at_random_instants_every_stage_ends_with_the_same_bytes(tmp_path, number):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for home in (whole, broken):
        home.mkdir()
        settle(home)
    assert start("distill", whole).wait() == 0
    instants, interrupted = random.Random(int(number)), 0
    for stage in STAGES:
        for _ in range(40):
            process = start(stage, broken)
            try:
                code = process.wait(timeout=instants.uniform(2.0, 9.0))
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                code, interrupted = process.wait(), interrupted + 1
                message = process.stderr.read()
                assert "Traceback" not in message, message
            if code == 0:
                break
        assert code == 0, f"{stage} never got through"
    assert interrupted >= 5
    assert stores(whole) == stores(broken)
