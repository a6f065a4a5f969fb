"""One thread: the tests' networks are small, and two test runs side by side would fight for the cores."""

import ast
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

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
    """Runs the script in this process; returns main()'s local variables: buffers, networks, environment."""

    def train(env_id, *flags, **options):
        return execute(folder, monkeypatch, "--env-id", env_id, *flags, **options)

    return train


@pytest.fixture
def run_here(folder, monkeypatch, capfd):
    """Runs the script in this process, without waiting for PyTorch's import; returns what subprocess.run would."""

    def run(*flags, script=SCRIPT):
        code = 0
        try:
            execute(folder, monkeypatch, *flags, script=script)
        except SystemExit as stop:
            code = stop.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=1 if isinstance(code, str) else code, stdout=out, stderr=err)

    return run


def execute(folder, monkeypatch, *flags, script=SCRIPT):
    """Runs the script in this process; returns its globals and, over them, what its main() had for locals at its end.

    main() gets a last line that keeps them: a profiler that waits for its return would slow each call by a third.
    """
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Ctrl-C is pytest's here
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, flags)])
    module, left = ModuleType("__main__"), {}
    vars(module).update(__file__=str(script), keep=left.update)
    monkeypatch.setitem(sys.modules, "__main__", module)
    tree = ast.parse(script.read_text())
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    main.body += ast.parse("keep(locals())").body
    exec(compile(tree, str(script), "exec"), vars(module))
    if "writer" in left:
        left["writer"].close()  # its thread would go on, from another folder
    return vars(module) | left
