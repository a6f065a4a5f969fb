"""experiments/sweep.py and figures.py: the plan, a run from nothing and from its middle to its CSV, the README's table.

Ray is optional: what needs it is slow, and skipped where it is missing.
"""

import csv
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
import figures
import sweep

import meta_sac_lag

RESULTS = ROOT / "experiments" / "results"
RUN = sweep.Run("smoke", "tiny", "CarCircle2", "sacv2-lag", 1)


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def test_the_readmes_tables_are_what_the_csvs_say():
    readme, runs = (ROOT / "README.md").read_text(), figures.whole(figures.read(RESULTS / "fig2_reduced"))
    for name, end, expected in (
        ("experiments/figures.py --table", "the table", figures.results_table(runs)),
        ("and its claims", "the claims", figures.claims_table(runs)),
        ("and its controls", "the controls", figures.results_table(figures.read(RESULTS / "control_reduced"))),
        ("and Figure 3", "Figure 3", figures.results_table(figures.read(RESULTS / "fig3_reduced"), figures.DEPLOYED)),
        ("and the grid", "the grid", figures.results_table(figures.read(RESULTS / "robust_reduced"), figures.STARTED)),
    ):
        assert readme.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- end of {end} -->")[0] == expected
    assert expected.count("|") > 20 and figures.results_table(runs).count("CarCircle2") == 6


def test_on_push_topple_nobody_learns_to_push():
    """README: seven of nine policies return just what an arm that never touches the box does."""
    env, returns = meta_sac_lag.make_env("PushTopple", False), []
    for k in range(40):  # the evaluation's episodes
        env.reset(seed=meta_sac_lag.episode_seed(1, k, stream=1))
        done = False
        while not done:
            _, _, terminated, truncated, info = env.step(np.array([0, 0, 1, 0], np.float32))  # up
            done = terminated or truncated
        returns.append(info["episode"]["episodic_return"])
    runs = figures.read(RESULTS / "fig2_reduced")
    theirs = [
        curves["eval/episodic_return"][-1, 1]
        for algo in ("meta-sac-lag", "meta-sac-lag-nonlinear", "sacv2-lag")
        for curves in runs["PushTopple", algo].values()
    ]
    assert len(theirs) == 9 and sum(abs(x - np.mean(returns)) < 1e-3 for x in theirs) == 7


def test_the_plan():
    runs = sweep.plan("fig2", "reduced")
    assert len(runs) == len(set(runs)) == 6 * 5 * 3
    assert [run.algo for run in runs[:5]] == list(sweep.ALGOS) and {run.seed for run in runs[:5]} == {1}
    line = " ".join(runs[1].command())
    assert line.startswith("meta_sac_lag.py --env-id CarCircle2 --seed 1 ")
    assert "--reward-scale 20 --epsilon-objective nonlinear" in line and "--no-cuda" in line
    assert runs[1].total() == 50_000
    assert sweep.Run("fig2", "full", "CarCircle2", "sacv2-lag", 1).total() == 1_000_000
    (unscaled,) = sweep.plan("control", "reduced", ("CarCircle2",), ("meta-sac-lag-unscaled",))
    assert "--reward-scale 20 --reward-scale 1 " in " ".join(unscaled.command())
    assert len(sweep.plan("robust", "reduced")) == 18 and len(sweep.plan("fig3", "reduced")) == 12
    with pytest.raises(SystemExit, match="error: --env-ids Nothing: the suite fig2 has CarCircle2, "):
        sweep.plan("fig2", "reduced", env_ids=("Nothing",))


def test_a_run_that_is_killed_goes_on_to_its_csv(tmp_path):
    """Killed after its first checkpoint, then finished; no point of it is double, and a second call does nothing."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'experiments')!r}); import sweep; "
    code += f"sweep.work(sweep.Run(*{tuple(RUN)!r}), {str(tmp_path)!r}, False, {{}})"
    first = subprocess.Popen([sys.executable, "-c", code])
    here = tmp_path / RUN.name
    until = time.time() + 120
    while not list(here.glob("runs/*/checkpoint.pt")):
        assert time.time() < until and first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    assert sweep.work(RUN, tmp_path, False, {"commit": "abc"}) is None
    (run_dir,) = here.glob("runs/*")  # resumed, not begun anew
    assert sweep.steps_of(RUN, tmp_path) == 1500 and not list(run_dir.glob("checkpoint*"))
    path = tmp_path / f"{RUN.name}.csv"
    rows = rows_of(path)
    assert "# commit: abc" in path.read_text() and list(rows[0]) == "suite env algo seed step metric value".split()
    keys = [(row["metric"], row["step"]) for row in rows]
    assert len(keys) == len(set(keys))
    metrics = {row["metric"] for row in rows}
    assert {"charts/violation", "episodes", "meta/nu", "eval/violation", "critics/got_c"} <= metrics
    assert sum(float(row["value"]) for row in rows if row["metric"] == "episodes") >= 3
    written = path.stat().st_mtime_ns
    assert sweep.work(RUN, tmp_path, False, {}) is None and path.stat().st_mtime_ns == written


def test_a_finished_run_without_its_csv_is_not_thrown_away(tmp_path):
    policy = tmp_path / RUN.name / "runs" / "x" / f"policy_{RUN.total()}.pt"
    policy.parent.mkdir(parents=True)
    policy.write_text("")
    assert "put CarCircle2__sacv2-lag__1.csv back" in sweep.work(RUN, tmp_path, False, {}) and policy.exists()


def test_a_folder_has_one_protocol(tmp_path):
    (tmp_path / "protocol").write_text("reduced")
    with pytest.raises(SystemExit, match="holds runs of the protocol reduced, not full: take another --folder"):
        sweep.main("fig2", protocol="full", folder=tmp_path, dry_run=True)


def test_one_runs_trouble_is_not_the_sweeps(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "start", lambda *given, **options: 1 / 0)
    assert sweep.work(RUN, tmp_path, False, {}) == "ZeroDivisionError: division by zero"


def test_a_run_that_cannot_start_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.time, "sleep", lambda _: None)
    problem = sweep.work(RUN._replace(env_id="NoSuchTask"), tmp_path, False, {})
    assert problem.startswith("error: cannot make --env-id NoSuchTask") and not list(tmp_path.glob("*.csv"))


def test_means_are_weighted_by_episodes():
    curves = {"charts/violation": np.array([(1.0, 1.0), (2.0, 0.0)]), "episodes": np.array([(1.0, 1.0), (2.0, 3.0)])}
    assert figures.per_episode(curves, "charts/violation", last=1.0) == 0.25
    assert figures.per_episode(curves, "charts/violation", last=0.5) == 0.0
    steps = np.arange(1.0, 101.0)  # of the curve: a mean of what lies within a twentieth of the run
    late = steps > 50
    curves = {"charts/violation": np.stack([steps, late], 1), "episodes": np.stack([steps, 1 + 2 * late], 1)}
    step, rate = figures.per_episode(curves, "charts/violation")
    assert (step == steps).all() and rate[0] == 0 and rate[-1] == 1 and rate[44] == 0 and rate[55] == 1
    assert rate[49] == pytest.approx(5 * 3 / (6 + 5 * 3))  # steps 45 to 55: six of one episode, five of three


def test_what_critics_promise_and_what_comes(tmp_path, monkeypatch):
    """Critics that say the same everywhere; an environment with a reward of 2 and a violation at step 3, or none."""
    (tmp_path / "known_env.py").write_text(
        """
import gymnasium as gym
import numpy as np


class Known(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    violates = True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        cost = float(self.violates and self.t == 3)
        return np.zeros(3, np.float32), 2.0, cost > 0, self.t == 5, {"cost": cost}


gym.register("Known-v0", Known)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    sizes = dict(obs_dim=3, action_dim=2, hidden_size=4)
    actor, qr = meta_sac_lag.Actor(**sizes), meta_sac_lag.TwinCritic(**sizes, probability=False)
    qc = meta_sac_lag.TwinCritic(**sizes, probability=True)
    with torch.no_grad():
        for net in (actor, qr, qc):
            for parameter in net.parameters():
                parameter.zero_()
        qr.bias_3.copy_(torch.tensor([7.0, 9.0]).view(2, 1, 1))
        qc.bias_3.copy_(torch.tensor([0.0, -1.0]).view(2, 1, 1))
    args = dict(env_id="known_env:Known-v0", seed=1, gamma_r=0.9, gamma_c=0.8, reward_scale=10.0)
    saved = dict(
        args=args, sizes=sizes, parts=dict(actor=actor.state_dict(), qr=qr.state_dict(), qc=qc.state_dict()),
        tensors=dict(log_alpha=torch.tensor(-100.0), nu=torch.tensor(4.0)),
    )  # fmt: skip

    def found(**changed):
        torch.save({**saved, "args": {**args, **changed}}, tmp_path / "checkpoint.pt")
        return dict(sweep.critics(tmp_path, 2))

    values = found()  # the least of Q_r, the greatest of Q_c
    assert values["promised_r"] == 7 and values["promised_c"] == 0.5
    assert values["got_c"] == pytest.approx(0.8**2)
    assert values["got_r"] == pytest.approx(20 * (1 + 0.9 + 0.81))
    values = found(algo="rcpo-sacv2")  # less nu Q_c at every step
    assert values["got_r"] == pytest.approx((20 - 4 * 0.5) * (1 + 0.9 + 0.81))
    sys.modules["known_env"].Known.violates = False  # truncated at step 5: the critics' own value of the end
    values = found()
    assert values["got_c"] == pytest.approx(0.8**5 * 0.5)
    assert values["got_r"] == pytest.approx(20 * (1 - 0.9**5) / 0.1 + 0.9**5 * 7)


def test_interquartile_means_and_their_intervals():
    assert figures.interquartile_mean([9.0, 0.0, 2.0, 4.0]) == 3.0
    assert figures.interquartile_mean([0.0, 1.0, 5.0]) == 2.0
    drawn = np.random.default_rng(1).normal(size=(100, 3))
    low, high = figures.bootstrap(drawn)
    assert (low < drawn.mean(0) + 0.1).all() and (high > drawn.mean(0) - 0.1).all()
    assert ((high - low > 0.2) & (high - low < 0.7)).all()  # some 4 x 1.2 / sqrt(100)


def curve(end, points=20):
    return np.stack([np.linspace(500, 10_000, points), np.linspace(0, end, points)], 1)


def test_what_the_claims_compare():
    """Fewer is every seed fewer; ranges that overlap are alike."""
    ends = {"meta-sac-lag": (3, 5), "meta-sac-lag-nonlinear": (5, 9), "sacv2-lag": (6, 7), "rcpo-sacv2": (1, 2)}
    runs = {}
    for algo, values in {**ends, "rcpo-metasac": (4, 4)}.items():
        names = "charts/violations_total charts/violation charts/episodic_return charts/episodic_length episodes"
        names += " meta/alpha meta/nu gradients/reward gradients/safety critics/promised_r critics/got_r"
        names = names.split()
        runs["Task", algo] = {seed: dict.fromkeys(names, curve(end)) for seed, end in enumerate(values)}
        for curves in runs["Task", algo].values():
            curves["meta/epsilon"] = np.array([(500.0, 1.0), (1000.0, 0.5), (1500.0, 0.48), (2000.0, 0.51)])
    table = figures.claims_table(runs)
    words = "fewer than SACv2-Lag; overlaps RCPO-MetaSAC; more than RCPO-SACv2"
    assert f"| (a) violations, whole run | {words} | 0.17 |" in table
    assert "| (b) α, last, Eq. 14 | lower than SACv2-Lag | 0.17 |" in table
    assert "| (b) α, last, Eq. 16 | overlaps SACv2-Lag | 0.67 |" in table
    assert "Eq. 14 | 0.51 (1,000), 0.51 (1,000) | |" in table
    assert "| violations in the first half, Eq. 14 | 1.42, 2.37 |" in table  # (5000 - 500) / 9500 of 3 and 5
    assert "| (d) Eq. 14: return, end | overlaps Eq. 16 | 1.00 |" in table
    assert "| norms of g_r and of ν' g_c, end, Eq. 14 | 2.76 / 2.76, 4.61 / 4.61 |" in table  # of the last fifth
    assert "| evaluated: success, best of all runs | none is defined |" in table
    assert "| RCPO-SACv2: steps an episode, end | 0.925, 1.85 |" in table  # weighted
    assert "| E[Q_r] promised at initial states, and what comes, Eq. 14 | 3 / 3, 5 / 5 |" in table
    assert table.count("\n") - 1 == len({line.split("|")[1] for line in table.splitlines()[2:]})


def test_the_rank_test():
    """By hand. Ties count half, environments add up."""

    def runs(**tasks):
        return {
            (env_id, algo): {seed: {"charts/violations_total": np.array([(1.0, x)])} for seed, x in enumerate(values)}
            for env_id, both in tasks.items() for algo, values in both.items()
        }  # fmt: skip

    def p(sign=1, **tasks):
        return figures.p_value(runs(**tasks), "violations, whole run", "a", "b", sign)

    apart = {"a": (1, 2, 3), "b": (4, 5, 6)}
    assert p(one=apart) == pytest.approx(1 / 20) and p(one=apart, sign=-1) == 1
    assert p(one=apart, two=apart) == pytest.approx(1 / 400)
    assert p(one={"a": (1, 2), "b": (2, 3)}) == pytest.approx(2 / 6)


def test_every_figure_is_drawn_of_what_a_folder_has(tmp_path):
    pytest.importorskip("matplotlib")
    header = "suite,env,algo,seed,step,metric,value\n"
    for env_id in list(figures.SETTINGS)[:3]:
        for seed in (1, 2):
            rows = []
            for step in (100, 200, 1000):
                for arm in ("charts", "twin", "fake", "eval"):
                    for name in ("jerk", "acceleration", "success", "violation"):
                        if (arm, seed) == ("fake", 2):  # a rehearsal that failed
                            continue
                        rows.append(f"fig3,{env_id},meta-sac-lag,{seed},{step},{arm}/{name},{seed * step / 4000}")
                rows.append(f"fig3,{env_id},meta-sac-lag,{seed},{step},episodes,2")
            (tmp_path / f"{env_id}__meta-sac-lag__{seed}.csv").write_text(header + "\n".join(rows) + "\n")
    for algo in sweep.GRID:
        epsilon, nu = map(float, algo.split("@")[1].split(","))
        names = ("charts/violations_total", "charts/episodic_return", "charts/violation")
        rows = [f'robust,CarCircle2,"{algo}",1,{step},{name},{nu + epsilon}' for name in names for step in (1, 2)]
        rows += [f'robust,CarCircle2,"{algo}",1,{step},episodes,1' for step in (1, 2)]
        (tmp_path / f"CarCircle2__{algo}__1.csv").write_text(header + "\n".join(rows) + "\n")
    for algo in sweep.ALGOS:
        for seed in range(5):  # enough for intervals
            names = "charts/episodic_return charts/violation meta/alpha meta/epsilon meta/nu values/qc".split()
            rows = [f"fig2,Task,{algo},{seed},{step},{name},{seed + 1}" for name in names for step in (1, 2)]
            rows += [f"fig2,Task,{algo},{seed},{step},episodes,1" for step in (1, 2)]
            (tmp_path / f"Task__{algo}__{seed}.csv").write_text(header + "\n".join(rows) + "\n")
    figures.main(folders=(tmp_path,))
    expected = {"figure_2.png", "threshold.png", "figure_3.png", "robustness.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == expected
    epsilons, nus, values = figures.grid(figures.read(tmp_path), "sacv2-lag", figures.ROBUSTNESS["return, end"])
    assert epsilons == [0.1, 0.5, 1.0] and nus == [10, 100, 1000]
    np.testing.assert_allclose(values, np.add.outer(epsilons, nus))
    of_grid = {pair: of_seeds for pair, of_seeds in figures.read(tmp_path).items() if pair[1] in sweep.GRID}
    lines = figures.results_table(of_grid, figures.ROBUSTNESS).splitlines()[2:]  # in the order of the plan
    assert lines[4] == "| CarCircle2 | Meta SAC-Lag (Eq. 14); ε_0 = 0.5, ν_0 = 100 | 1 | 100 | 100 | 100 |"
    assert lines[-1] == "| CarCircle2 | SACv2-Lag; ε_0 = 1, ν_0 = 1000 | 1 | 1e+03 | 1e+03 | 1e+03 |"
    of_arms = {pair: of_seeds for pair, of_seeds in figures.read(tmp_path).items() if pair[0] in figures.SETTINGS}
    measures = {name: figures.DEPLOYED[name] for name in ("twin: jerk", "arm: jerk", "jerk, end", "evaluated: success")}
    assert figures.results_table(of_arms, measures).splitlines()[2] == (  # "arm": of the seed whose rehearsal went well
        "| PourCoffeeSim1 | Meta SAC-Lag (Eq. 14) | 2 | 0.163 (0.108 to 0.217) | 0.108 | 0.375 (0.25 to 0.5) | "
        "0.375 (0.25 to 0.5) |"
    )
    for path in [*tmp_path.glob("*.png"), *tmp_path.glob("*sacv2-lag@*"), *tmp_path.glob("*__rcpo-metasac__*")]:
        path.unlink()  # a sweep that is not over: what is whole is drawn
    figures.main(folders=(tmp_path,))
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure_3.png"}


@pytest.mark.slow
def test_every_saved_policy_is_deployed(tmp_path):
    """Of fig3: each in the twin and on the rehearsal's arm, which has been taught its goal first."""
    run = sweep.Run("fig3", "tiny", "PourCoffeeSim2", "meta-sac-lag", 1)
    assert sweep.work(run, tmp_path, False, {}) is None
    rows = rows_of(tmp_path / f"{run.name}.csv")
    (run_dir,) = (tmp_path / run.name).glob("runs/*")
    saved = {path.stem.split("_")[1] for path in run_dir.glob("policy_*.pt")}
    assert len(saved) >= 3 and "1500" in saved
    for metric in ("twin/jerk", "twin/violation", "fake/jerk", "fake/success"):
        assert {row["step"] for row in rows if row["metric"] == metric} == saved
    assert {row["step"] for row in rows if row["metric"] == "eval/success"} == {"1500"}


@pytest.mark.slow
def test_two_nodes_one_killed_in_the_middle(tmp_path):
    """Nothing lost, nothing twice: Ray starts the lost runs again on the other node, from their checkpoints."""
    pytest.importorskip("ray")
    code = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import ray, sweep
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
folder = Path(sys.argv[2])
def kill():
    while len(list(folder.glob("*/runs/*/checkpoint.pt"))) < 2:
        time.sleep(0.1)
    cluster.remove_node(other, allow_graceful=False)
    print("killed", flush=True)
threading.Thread(target=kill, daemon=True).start()
sweep.main("smoke", env_ids=("CarCircle2",), folder=folder, address=cluster.address)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "experiments"), str(tmp_path)], capture_output=True, text=True,
        timeout=900, env={**os.environ, "PYTHONPATH": str(ROOT / "experiments")},
    )  # fmt: skip
    assert result.returncode == 0 and "killed" in result.stdout, result.stdout + result.stderr
    assert len(list(tmp_path.glob("*.csv"))) == 5
    for path in tmp_path.glob("*.csv"):
        keys = [(row["metric"], row["step"]) for row in rows_of(path)]
        assert len(keys) == len(set(keys))
        assert len(list((tmp_path / path.stem).glob("runs/*"))) == 1
    starts = sum(path.read_text().count("logging to") for path in tmp_path.glob("*/log.txt"))
    assert starts == 6  # the one that was running on the lost node went on, in the same folder
