"""sac_lag_baselines.py as a script. What it shares with meta_sac_lag.py is tested there and is the same text."""

import difflib
import json

import numpy as np
import pytest
from conftest import execute
from helpers import ROOT, SCRIPT, SHORT, assert_one_line, run, scalars, train
from test_resume import check_killed

BASELINES = ROOT / "sac_lag_baselines.py"
ALGORITHMS = ["sacv2-lag", "rcpo-sacv2", "rcpo-metasac"]


def test_the_text_that_both_scripts_share():
    """Nothing is renamed or moved: what the baselines do not have is cut out, what they add stands in few places."""
    method, baselines = (path.read_text().splitlines() for path in (SCRIPT, BASELINES))
    blocks = difflib.SequenceMatcher(None, method, baselines, autojunk=False).get_opcodes()
    changed = [(tag, method[a:b], baselines[c:d]) for tag, a, b, c, d in blocks if tag != "equal"]
    assert sum(len(new) for _, _, new in changed) == 62, changed
    start, end = (next(i for i, line in enumerate(method) if mark in line) for mark in ("class Actor", "__main__"))
    here = "\n".join(line for line in method[start:end] if line not in baselines)
    before, tangent = here.split("    def tangent")  # which only the metagradients need
    assert before.count("\n") <= 3 and tangent.count("\n") <= 16, here  # logits; a docstring's line, the table's shape


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_it_trains_resumes_and_evaluates(folder, algo, run_here):
    flags = (*SHORT, "--algo", algo, "--env-id", "my_env:MyEnv-v0")
    run_dir = train(folder, *flags, script=BASELINES)
    assert run_dir.name.startswith(f"my_env_MyEnv-v0__{algo}__1__")
    curves = scalars(run_dir)
    assert {"charts/violation_rate", "meta/alpha", "meta/nu", "meta/grad_alpha", "values/qc"} <= set(curves)
    assert {value for _, value in curves["meta/epsilon"]} == {0.5}
    result = run_here("--evaluate", run_dir, "--episodes", 2, script=BASELINES)
    assert result.returncode == 0 and "2 episodes" in result.stdout
    assert len(json.loads((run_dir / "eval_300.json").read_text())["episodes"]["violation"]) == 2
    result = run_here("--resume", run_dir, "--total-timesteps", 400, script=BASELINES)
    assert result.returncode == 0 and "400 steps" in result.stdout
    assert_one_line(run_here("--resume", run_dir, script=SCRIPT), "sac_lag_baselines 2", "meta_sac_lag 2")


@pytest.mark.parametrize("algo", [pytest.param(a, marks=pytest.mark.slow) for a in ALGORITHMS[:2]] + ALGORITHMS[2:])
def test_a_run_that_is_killed_goes_on_to_the_bit(folder, algo):
    flags = (*SHORT, "--env-id", "my_env:GlobalRandom-v0", "--total-timesteps", 500, "--checkpoint-every", 60)
    check_killed(folder, (*flags, "--algo", algo), [("replace", 6), ("write", 5)], script=BASELINES)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--env-id", "Nowhere"), ("cannot make", "EggManipulate")),
        (("--nu-init", "-1"), ("--nu-init", "at least 0")),
        (("--epsilon-init", "1.5"), ("--epsilon-init", "[0, 1]")),
        (("--env-id", "my_env:NoCost-v0", *SHORT), ("info", "cost")),
    ],
)
def test_bad_input(run_here, flags, words):
    assert_one_line(run_here(*flags, script=BASELINES), *words)


@pytest.mark.parametrize(
    "algo, env_id, epsilon, nu",
    [
        ("sacv2-lag", "HumanoidVelocity", 0.4, 10), ("rcpo-metasac", "FrankaDrawerClose", 0.6, 10),
        ("sacv2-lag", "CarCircle2", 0.5, 100), ("rcpo-sacv2", "CarCircle2", 0.5, 1),
        ("sacv2-lag", "PushTopple", 0.5, 1000), ("rcpo-sacv2", "PushTopple", 0.5, 10),
        ("sacv2-lag", "EggManipulate", 0.5, 100), ("rcpo-metasac", "EggManipulate", 0.5, 1),
    ],
)
def test_table_1(folder, monkeypatch, algo, env_id, epsilon, nu):
    flags = ("--algo", algo, "--env-id", env_id, "--total-timesteps", 2, "--initial-states", 1)
    args = execute(folder, monkeypatch, *flags, script=BASELINES)["args"]
    assert (args.epsilon_init, args.nu_init) == (epsilon, nu)
    assert args.reward_scale == (20 if env_id == "CarCircle2" else 1)


@pytest.mark.slow
def test_without_a_constraint_it_is_sac_and_solves_pendulum(folder):
    flags = "--env-id my_env:FreePendulum-v0 --nu-init 0 --nu-lr 0 --total-timesteps 15000 --learning-starts 1000"
    run_dir = train(folder, *flags.split(), "--hidden-size", 64, "--batch-size", 128, script=BASELINES)
    result = run(folder, "--evaluate", run_dir, "--episodes", 20, script=BASELINES)
    assert result.returncode == 0, result.stderr
    returns = json.loads((run_dir / "eval_15000.json").read_text())["episodes"]["episodic_return"]
    assert np.mean(returns) > -250, returns
