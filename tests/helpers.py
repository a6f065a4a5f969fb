"""What the tests of the script share: running it as its users do, and reading what it wrote."""

import os
import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "meta_sac_lag.py"
SHORT = "--total-timesteps 300 --learning-starts 100 --initial-states 4 --batch-size 32 --hidden-size 16".split()


def run(folder, *flags, script=SCRIPT, **environment):
    return subprocess.run(
        [sys.executable, str(script), *map(str, flags)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def train(folder, *flags, **environment):
    """Runs the script to its end and returns the new run folder."""
    before = set(folder.glob("runs/*"))
    result = run(folder, *flags, **environment)
    assert result.returncode == 0, result.stderr
    (run_dir,) = set(folder.glob("runs/*")) - before
    return run_dir


def scalars(run_dir):
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_one_line(result, *words):
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines[0]
