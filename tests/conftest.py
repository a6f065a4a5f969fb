"""One thread: the tests' networks are small, and two test runs side by side would fight for the cores."""

import os
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; the runs that the tests start inherit it
SCRIPT = Path(__file__).parent.parent / "meta_sac_lag.py"


@pytest.fixture
def folder(tmp_path):
    """A folder that holds nothing but somebody's environments, my_env.py."""
    shutil.copy(Path(__file__).parent / "my_env.py", tmp_path)
    return tmp_path


@pytest.fixture
def train_here(folder, monkeypatch):
    """Runs the script in this process; returns all names of its flat main: buffers, networks, environment."""

    def train(env_id, *flags):
        return execute(folder, monkeypatch, "--env-id", env_id, *flags)

    return train


@pytest.fixture
def run_here(folder, monkeypatch, capfd):
    """Runs the script in this process, without waiting for PyTorch's import; returns what subprocess.run would."""

    def run(*flags, script=SCRIPT):
        at_exit, code = [], 0
        try:
            execute(folder, monkeypatch, *flags, script=script, at_exit=at_exit.append)
        except SystemExit as stop:
            code = stop.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
        for function in at_exit:
            function()
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=1 if isinstance(code, str) else code, stdout=out, stderr=err)

    return run


def execute(folder, monkeypatch, *flags, script=SCRIPT, at_exit=lambda function: None):
    monkeypatch.setattr("atexit.register", at_exit)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("fcntl.flock", lambda *_: None)  # this process outlives the run
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Ctrl-C is pytest's here
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, flags)])
    return runpy.run_path(str(script), run_name="__main__")
