"""experiments/witness.py and gif.py: Stable-Baselines3's SAC on our tasks, and a trained policy at its task."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, SHORT, train

sys.path.insert(0, str(ROOT / "experiments"))
import figures

WITNESS = [sys.executable, str(ROOT / "experiments" / "witness.py")]


def test_without_stable_baselines3_it_says_what_to_install(tmp_path):
    (tmp_path / "stable_baselines3.py").write_text("raise ImportError('there is none')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(WITNESS, capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and result.stderr.startswith("error: witness.py needs pip install stable-baselines3")
    assert result.stderr.count("\n") == 1


def test_it_writes_what_it_learned_as_a_sweep_does(tmp_path):
    pytest.importorskip("stable_baselines3")
    flags = ["--env-id", "FrankaDrawerClose", "--total-timesteps", "400", "--folder", str(tmp_path)]
    result = subprocess.run([*WITNESS, *flags], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.csv")
    assert path.name == "FrankaDrawerClose__sb3-sac__1.csv"
    heads = path.read_text().splitlines()
    assert heads[0].startswith("# command: python ") and heads[1].startswith("# commit: ")
    curves = figures.read(tmp_path)["FrankaDrawerClose", "sb3-sac"][1]
    assert curves["eval/violation"].shape == (1, 2) and curves["episodes"].shape == (100, 2)
    assert -2.46 * 192 < curves["eval/episodic_return"][-1, 1] < 2.5 * 192  # without the shift
    total = sum(curves["charts/violation"][:, 1] * curves["episodes"][curves["episodes"][:, 1] > 0, 1])
    assert np.isclose(total, curves["charts/violations_total"][-1, 1])


def test_a_gif_of_a_trained_policy(tmp_path):
    from PIL import Image

    run_dir = train(tmp_path, "--env-id", "FrankaDrawerClose", *SHORT)
    command = [sys.executable, str(ROOT / "experiments" / "gif.py"), "--policy", str(run_dir / "policy_300.pt")]
    returns = []
    for flags in ([], ["--failure"]):  # the best of three episodes, and the worst, or the first that violates
        gif = tmp_path / f"a{len(flags)}.gif"
        one = subprocess.run(
            [*command, "--output", str(gif), "--episodes", "3", *flags], capture_output=True, text=True
        )
        assert one.returncode == 0, one.stderr
        returns.append(float(re.search(r": episode \d, .*return (\S+),", one.stdout)[1]))
        with Image.open(gif) as image:
            assert image.width == 240 and image.n_frames >= 2
    assert returns[0] > returns[1], returns
