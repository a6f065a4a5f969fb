"""experiments/foresight.py tells violations that can be foreseen from those that are only known by heart."""

import subprocess
import sys

import torch
from helpers import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
import foresight


def run_dir(path, seed):
    """A violation is where the sum of the first two numbers is large; the other eight are noise."""
    rng = torch.Generator().manual_seed(seed)
    obs, action = torch.randn(4000, 10, generator=rng), torch.rand(4000, 2, generator=rng) * 2 - 1
    cost = (obs[:, 0] + obs[:, 1] > 3.2).float()  # some 1 %
    path.mkdir()
    torch.save({"parts": {"D": dict(obs=obs, action=action, cost=cost)}}, path / "checkpoint.pt")
    return path


def test_what_is_foreseen(tmp_path, capsys):
    folders = [run_dir(tmp_path / name, seed) for seed, name in enumerate("ab")]
    found = []
    for leave_out in ((), (0, 1)):
        foresight.main(*folders, leave_out=leave_out, steps=1200, width=32)
        _, own, other, rest, _ = (cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|", 4)[1:] + [""])
        found.append((float(own), float(other.split(",")[0]), float(rest.strip("| "))))
    (own, other, rest), (_, blind, _) = found
    assert own > 0.6 and other > 0.5 and rest < 0.05 and blind < 0.15, found


def test_the_steps_before_a_violation(tmp_path):
    folder = run_dir(tmp_path / "a", 0)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    D = saved["parts"]["D"]
    D["next_obs"] = D["obs"].roll(-1, 0)
    D["next_obs"][[3, 6]] += 1  # rows 4 and 7 begin an episode
    D["cost"].zero_()[[3, 8]] = 1
    torch.save(saved, folder / "checkpoint.pt")
    for ahead, rows in ((0, [3, 8]), (1, [2, 3, 7, 8]), (5, [0, 1, 2, 3, 7, 8])):
        _, _, violates = foresight.transitions(folder, (), ahead)
        assert violates.nonzero().flatten().tolist() == rows


def test_a_run_without_a_checkpoint_or_violations_is_told(tmp_path):
    folder = run_dir(tmp_path / "a", 0)
    command = [sys.executable, "experiments/foresight.py", "--train", str(folder), "--test"]
    result = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith("error: there is no checkpoint.pt in")
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    saved["parts"]["D"]["cost"].zero_()
    torch.save(saved, folder / "checkpoint.pt")
    result = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "of one kind: 0 of 4000 violate" in result.stderr
