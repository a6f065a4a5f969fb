"""sac_lag_baselines.py as a script. What it shares with meta_sac_lag.py is tested there and is the same text."""

import difflib
import json
import re

import numpy as np
import pytest
from conftest import execute
from helpers import ROOT, SCRIPT, SHORT, assert_one_line, run, scalars, train
from test_resume import check_killed

BASELINES = ROOT / "sac_lag_baselines.py"
ALGORITHMS = ["sacv2-lag", "rcpo-sacv2", "rcpo-metasac"]


def test_the_text_that_both_scripts_share():
    """Line for line the same but for the algorithm. Whoever changes one has to change the other: what is compared are
    the algorithms, and what test_script.py and test_resume.py find holds for both.

    Of each part of the scripts, from the line with this mark on: how many lines the baselines lack, and how many they
    have instead. Lines that only move count as both.
    """
    parts = {
        "# Meta SAC-Lag": (23, 21),  # the head, Table 1's numbers, the flags
        "class Actor(": (0, 0),
        "class TwinCritic(": (0, 0),
        "class ReplayBuffer:": (0, 0),
        "def rmsprop(": (0, 0),
        "def main(": (6, 5),  # epsilon is a constant
        "# >>> Algorithm 1": (38, 21),
        "# <<< Algorithm 1": (5, 4),  # the metrics
        "# ---- From here on": (3, 4),  # the range of a flag, the defaults
    }
    starts = f"^(?=.*(?:{'|'.join(map(re.escape, list(parts)[1:]))}))"
    method, baselines = (re.split(starts, path.read_text(), flags=re.M) for path in (SCRIPT, BASELINES))
    found = {}
    for mark, one, other in zip(parts, method, baselines, strict=True):
        changed = [line[0] for line in difflib.ndiff(one.splitlines(), other.splitlines())]
        found[mark] = changed.count("-"), changed.count("+")
    assert all(lacks <= parts[mark][0] and has <= parts[mark][1] for mark, (lacks, has) in found.items()), found


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_it_trains_resumes_and_evaluates(folder, algo, run_here):
    flags = (*SHORT, "--algo", algo, "--env-id", "my_env:MyEnv-v0")
    run_dir = train(folder, *flags, script=BASELINES)
    assert run_dir.name.startswith(f"my_env_MyEnv-v0__{algo}__1__")
    curves = scalars(run_dir)
    assert {"charts/violation_rate", "meta/alpha", "meta/nu", "meta/grad_alpha", "values/qc"} <= set(curves)
    assert {value for _, value in curves["meta/epsilon"]} == {0.5}
    result = run_here("--evaluate", run_dir, "--episodes", 2, script=BASELINES)
    assert result.returncode == 0 and "violation " in result.stdout
    assert len(json.loads((run_dir / "eval_300.json").read_text())["episodes"]["violation"]) == 2
    result = run_here("--resume", run_dir, "--total-timesteps", 400, script=BASELINES)
    assert result.returncode == 0 and "400 steps" in result.stdout
    assert_one_line(run_here("--resume", run_dir, script=SCRIPT), run_dir.name, "is of another script", "'algo'")


@pytest.mark.parametrize("algo", [pytest.param(a, marks=pytest.mark.slow) for a in ALGORITHMS[:2]] + ALGORITHMS[2:])
def test_a_run_that_is_killed_goes_on_to_the_bit(folder, algo):
    flags = (*SHORT, "--env-id", "my_env:GlobalRandom-v0", "--total-timesteps", 500, "--checkpoint-every", 60)
    check_killed(folder, (*flags, "--algo", algo), [("replace", 6), ("write", 2)], script=BASELINES)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--env-id", "Nowhere"), ("cannot make", "EggManipulate")),
        (("--nu-init", "-1"), ("--nu-init", "from 0")),
        (("--epsilon-init", "1.5"), ("--epsilon-init", "from 0 to 1,")),
        (("--env-id", "my_env:NoCost-v0", *SHORT), ("info", "cost")),
    ],
)
def test_bad_input(run_here, flags, words):
    assert_one_line(run_here(*flags, script=BASELINES), *words)


@pytest.mark.parametrize(
    "algo, env_id, epsilon, nu",
    [
        ("sacv2-lag", "HumanoidVelocity", 0.4, 10), ("rcpo-metasac", "FrankaDrawerClose", 0.6, 500),
        ("sacv2-lag", "CarCircle2", 0.5, 500), ("rcpo-sacv2", "CarCircle2", 0.5, 5),
        ("sacv2-lag", "PushTopple", 0.5, 1000), ("rcpo-sacv2", "PushTopple", 0.5, 10),
        ("sacv2-lag", "EggManipulate", 0.5, 1000), ("rcpo-metasac", "EggManipulate", 0.5, 10),
    ],
)
def test_table_1(folder, monkeypatch, algo, env_id, epsilon, nu):
    flags = ("--algo", algo, "--env-id", env_id, "--total-timesteps", 2, "--initial-states", 1)
    args = execute(folder, monkeypatch, *flags, script=BASELINES)["args"]
    assert (args.epsilon_init, args.nu_init) == (epsilon, nu)
    shifts = {"FrankaDrawerClose": 2.5, "PushTopple": 3.6, "EggManipulate": 3.2}  # the same as meta_sac_lag.py's
    scales = {"CarCircle2": 100, "FrankaDrawerClose": 5, "PushTopple": 20, "EggManipulate": 10}
    assert args.reward_scale == scales.get(env_id, 1) and args.reward_shift == shifts.get(env_id, 0)


@pytest.mark.slow
def test_without_a_constraint_it_is_sac_and_solves_pendulum(folder):
    flags = "--env-id my_env:FreePendulum-v0 --nu-init 0 --nu-lr 0 --total-timesteps 15000 --learning-starts 1000"
    run_dir = train(folder, *flags.split(), "--hidden-size", 64, "--batch-size", 128, script=BASELINES)
    result = run(folder, "--evaluate", run_dir, "--episodes", 20, script=BASELINES)
    assert result.returncode == 0, result.stderr
    returns = json.loads((run_dir / "eval_15000.json").read_text())["episodes"]["episodic_return"]
    assert np.mean(returns) > -250, returns
