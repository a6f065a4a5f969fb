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
from helpers import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
import figures
import sweep

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
    ):
        assert readme.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- end of {end} -->")[0] == expected
    assert expected.count("|") > 20 and figures.results_table(runs).count("CarCircle2") == 5


def test_the_plan():
    runs = sweep.plan("fig2", "reduced")
    assert len(runs) == len(set(runs)) == 6 * 5 * 3
    assert [run.algo for run in runs[:5]] == list(sweep.ALGOS) and {run.seed for run in runs[:5]} == {1}
    line = " ".join(runs[1].command())
    assert line.startswith("meta_sac_lag.py --epsilon-objective nonlinear --env-id CarCircle2 --seed 1 ")
    assert "--reward-scale 20" in line and "--no-cuda" in line and runs[1].total() == 50_000
    assert sweep.Run("fig2", "full", "CarCircle2", "sacv2-lag", 1).total() == 1_000_000
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


def test_a_run_that_cannot_start_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.time, "sleep", lambda _: None)
    problem = sweep.work(RUN._replace(env_id="NoSuchTask"), tmp_path, False, {})
    assert problem.startswith("error: cannot make --env-id NoSuchTask") and not list(tmp_path.glob("*.csv"))


def test_means_are_weighted_by_episodes():
    curves = {"charts/violation": np.array([(1.0, 1.0), (2.0, 0.0)]), "episodes": np.array([(1.0, 1.0), (2.0, 3.0)])}
    assert figures.per_episode(curves, "charts/violation", last=1.0) == 0.25
    assert figures.per_episode(curves, "charts/violation", last=0.5) == 0.0


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
