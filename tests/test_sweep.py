"""experiments/sweep.py and figures.py: the plan, a run from nothing and from its middle to its CSV, the README's table.

Ray is optional: what needs it is slow, and skipped where it is missing.
"""

import csv
import itertools
import os
import re
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tyro
from helpers import ROOT
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(ROOT / "experiments"))
import figures
import sweep

import meta_sac_lag
import sac_lag_baselines

RESULTS = ROOT / "experiments" / "results"
RUN = sweep.Run("smoke", "tiny", "CarCircle2", "sacv2-lag", 1)
BAR = "return 1.0, violation rate 0.50, epsilon 0.50, alpha 0.900, nu 99.9 | "


@pytest.fixture
def ray(monkeypatch):
    """Ray's part, in this process: one task after the other. `began` is what ray.init was given."""

    def init(**given):
        fake.began = given

    def remote(function):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *given: (function, given)))

    fake = SimpleNamespace(
        init=init, remote=remote, get=lambda task: task[0](*task[1]),
        wait=lambda tasks, timeout: (tasks[:1], tasks[1:]),
        nodes=lambda: [{"Alive": alive, "Resources": {"GPU": gpus}} for alive, gpus in ((True, 1.0), (False, 9.0))],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(sweep.time, "sleep", lambda _: None)
    return fake


def a_csv(run, folder):
    """In the place of sweep.work"""
    (folder / f"{run.name}.csv").write_text("")


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def test_the_tables_in_docs_are_what_the_csvs_say(monkeypatch, capsys):
    """docs/tables/NAME.md: what figures.py --table --folders experiments/results/NAME prints. Every sweep has one."""
    monkeypatch.chdir(ROOT)
    for folder in sorted(RESULTS.glob("*_*/")):
        figures.main((folder.relative_to(ROOT),), table=True)
        expected = capsys.readouterr().out
        assert expected.count("|") > 20, folder
        assert (ROOT / "docs" / "tables" / f"{folder.name}.md").read_text() == expected, folder
    found = re.findall(r"^\| \([abd]\).*\| (\S+) \|$", (ROOT / "docs" / "tables" / "fig2_reduced.md").read_text(), re.M)
    quoted = [re.findall(r"\(p = ([\d.]+)\)", (ROOT / page).read_text()) for page in ("README.md", "docs/results.md")]
    assert all(quoted) and set(sum(quoted, [])) <= set(found)  # a run that is added changes them


def test_the_plan():
    runs = sweep.plan("fig2", "reduced")
    assert len(runs) == len(set(runs)) == 6 * 5 * 3
    assert [run.algo for run in runs[:5]] == list(sweep.ALGOS) and {run.seed for run in runs[:5]} == {1}
    line = " ".join(runs[1].command())
    assert line.startswith("meta_sac_lag.py --env-id PourCoffee --seed 1 ")
    assert "--epsilon-objective nonlinear" in line and "--no-cuda" in line
    assert runs[1].total() == 50_000
    assert sweep.Run("fig2", "full", "CarCircle2", "sacv2-lag", 1).total() == 1_000_000
    last = {}  # of a flag given twice the last counts: the car's step is short, a box topples within 20 steps
    for env_id in sweep.FIG2:
        flags = " ".join(sweep.Run("fig2", "reduced", env_id, "meta-sac-lag", 1).command())
        last[env_id] = re.findall(r"--gamma-r (\S+)", flags)[-1], re.findall(r"--gamma-c (\S+)|$", flags)[0]
    own = {"CarCircle2": ("0.99", ""), "PushTopple": ("0.95", "0.95")}
    assert last == {env_id: own.get(env_id, ("0.95", "")) for env_id in sweep.FIG2}
    assert len(sweep.plan("robust", "reduced")) == 18 and len(sweep.plan("fig3", "reduced")) == 12
    assert len(sweep.plan("control", "reduced")) == 36
    assert len(sweep.plan("fig2", "reduced", ("CarCircle2",) * 2, ("sacv2-lag",) * 2, (1, 2, 1))) == 2
    with pytest.raises(SystemExit, match="error: --env-ids Nothing: the suite fig2 has PourCoffee, "):
        sweep.plan("fig2", "reduced", env_ids=("Nothing",))


def test_each_name_is_its_algorithm():
    """What the scripts make of the command lines."""
    table1 = None  # the script's own, by the environment: Table 1's, and the rewards' shift
    expected = {
        # script, --algo, objective, nu_0, nu's rate, epsilon_0, reward shift
        "meta-sac-lag": ("meta_sac_lag.py", None, "linear", table1, 3e-4, 1.0, table1),
        "meta-sac-lag-nonlinear": ("meta_sac_lag.py", None, "nonlinear", table1, 3e-4, 1.0, table1),
        "sacv2-lag": ("sac_lag_baselines.py", "sacv2-lag", None, table1, 3e-4, table1, table1),
        "rcpo-sacv2": ("sac_lag_baselines.py", "rcpo-sacv2", None, table1, 3e-4, table1, table1),
        "rcpo-metasac": ("sac_lag_baselines.py", "rcpo-metasac", None, table1, 3e-4, table1, table1),
        "rcpo-unpenalised": ("sac_lag_baselines.py", "rcpo-sacv2", None, 0.0, 0.0, table1, table1),
        "rcpo-unpenalised-unshifted": ("sac_lag_baselines.py", "rcpo-sacv2", None, 0.0, 0.0, table1, 0.0),
        "meta-sac-lag-unshifted": ("meta_sac_lag.py", None, "linear", table1, 3e-4, 1.0, 0.0),
        "sacv2-lag-unshifted": ("sac_lag_baselines.py", "sacv2-lag", None, table1, 3e-4, table1, 0.0),
        "rcpo-sacv2-10": ("sac_lag_baselines.py", "rcpo-sacv2", None, 10.0, 3e-4, table1, table1),
        "meta-sac-lag-fixed-epsilon": ("meta_sac_lag.py", None, "linear", table1, 3e-4, 1.0, table1),
    }
    for epsilon, nu in itertools.product((0.1, 0.5, 1.0), (50, 500, 5000)):
        meta = ("meta_sac_lag.py", None, "linear", nu, 3e-4, epsilon, table1)
        expected[f"meta-sac-lag@{epsilon},{nu}"] = meta
        sacv2 = ("sac_lag_baselines.py", "sacv2-lag", None, nu, 3e-4, epsilon, table1)
        expected[f"sacv2-lag@{epsilon},{nu}"] = sacv2
    found = {}
    for name in (*sweep.ALGOS, *sweep.GRID, *sweep.CONTROL):
        script, *flags = sweep.Run("fig2", "reduced", "CarCircle2", name, 1).command()
        scripts = {"meta_sac_lag.py": meta_sac_lag, "sac_lag_baselines.py": sac_lag_baselines}
        args = tyro.cli(scripts[script].Args, args=flags)
        fields = "algo epsilon_objective nu_init nu_lr epsilon_init reward_shift".split()
        assert args.reward_scale is None  # the table's
        assert getattr(args, "epsilon_lr", 3e-4) == (0 if "fixed-epsilon" in name else 3e-4)
        found[name] = (script, *(getattr(args, field, None) for field in fields))
    assert found == expected


def test_a_run_that_is_killed_goes_on_to_its_csv(tmp_path, monkeypatch):
    """Killed after its first checkpoint, then finished; no point of it is double, and a second call does nothing. Its
    name has a comma, which the script's run folder has not."""
    run = RUN._replace(algo="sacv2-lag@0.5,500")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'experiments')!r}); import sweep; "
    code += f"sweep.work(sweep.Run(*{tuple(run)!r}), {str(tmp_path)!r}, False)"
    first = subprocess.Popen([sys.executable, "-c", code])
    here = tmp_path / run.name
    until = time.time() + 120
    while not list(here.glob("runs/*/checkpoint.pt")):
        assert time.time() < until and first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    began = sweep.commit()
    monkeypatch.setattr(sweep, "commit", lambda: "abc")
    assert sweep.work(run, tmp_path, False) is None
    (run_dir,) = here.glob("runs/*")  # resumed, not begun anew
    assert re.fullmatch(r"CarCircle2__sacv2-lag@0\.5_500__1__\d+", run_dir.name)
    assert sweep.steps_of(run, tmp_path) == 1500 and not list(run_dir.glob("checkpoint*"))
    path = tmp_path / f"{run.name}.csv"
    rows = rows_of(path)
    head = path.read_text().split("suite,")[0]
    assert f"# commit: {began}; abc\n" in head and "# device: cpu\n" in head and "# versions: Python 3" in head
    assert list(rows[0]) == "suite env algo seed step metric value".split()
    assert {row["algo"] for row in rows} == {run.algo}
    keys = [(row["metric"], row["step"]) for row in rows]
    assert len(keys) == len(set(keys))
    metrics = {row["metric"] for row in rows}
    assert {"charts/violation", "episodes", "meta/nu", "eval/violation", "critics/got_c"} <= metrics
    assert sum(float(row["value"]) for row in rows if row["metric"] == "episodes") >= 3
    written = path.stat().st_mtime_ns
    assert sweep.work(run, tmp_path, False) is None and path.stat().st_mtime_ns == written
    path.unlink()
    (run_dir / "policy_1500.pt").unlink()
    assert sweep.steps_of(run, tmp_path) == 1500  # by the progress bar


def test_a_run_is_given_up_when_it_no_longer_gets_on(tmp_path, monkeypatch):
    """Five deaths, each with more steps than before it; the head says on what and of which code the run was trained."""
    monkeypatch.setattr(sweep.time, "sleep", lambda _: None)
    commands, commits = [], itertools.count()
    monkeypatch.setattr(sweep, "commit", lambda: f"commit{next(commits) // 3}")
    monkeypatch.setattr(sweep, "write_csv", lambda run, run_dir, path, facts: path.write_text(str(facts)))

    def start(command, here, cuda, **_):
        commands.append(command)
        if "--evaluate" in command:
            return 0
        run_dir = here / "runs" / "x"
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / f"policy_{250 * len(commands)}.pt").touch()
        (run_dir / "checkpoint.pt").touch()
        with open(here / "log.txt", "a") as log:
            where = "cpu" if len(commands) < 3 else "cuda"
            log.write(f"\n$ \nCarCircle2: observation 40, action 2. Training on {where}, logging to runs/x\n")
        return int(len(commands) < 6)

    monkeypatch.setattr(sweep, "start", start)
    assert sweep.work(RUN, tmp_path, True) is None and len(commands) == 7
    assert all("--resume" in command for command in commands[1:6]) and "--evaluate" in commands[6]
    facts = (tmp_path / f"{RUN.name}.csv").read_text()
    assert "'commit': 'commit0; commit1'" in facts and "'device': 'cpu; cuda'" in facts

    def stuck(command, here, cuda):
        commands.append(command)
        assert len(commands) < 9
        (here / "log.txt").write_text("\n$ python\nerror: no\n")
        return 1

    monkeypatch.setattr(sweep, "start", stuck)
    commands.clear()
    assert sweep.work(RUN._replace(seed=2), tmp_path, False) == "error: no" and len(commands) == 3


def test_why_a_command_failed(tmp_path):
    """Its error, not the farewell after it, nor an error of the command before it."""
    log = tmp_path / "log.txt"
    before = "\n$ python x\nerror: of before\nstopped at step 1; to go on\n"
    after = "stopped at step 2; to go on from step 1: python x --resume runs/x --total-timesteps 9\n"
    bar = f"{BAR}2/9 [00:01<00:03, 2.0it/s]"
    log.write_text(f"{before}\n$ python x\n{bar}\r   \rerror: the disk\n\r{bar}\nnote\n{after}")
    assert sweep.last_words(tmp_path, 1) == "error: the disk" and sweep.last_words(tmp_path, -9) == "killed by signal 9"
    after = "stopped at step 2; before its first checkpoint\n"
    for log_text in (f"ValueError: 7\n{after}", f"\r{bar}\n{after}Traceback\nValueError: 7\n"):
        log.write_text(f"{before}\n$ python x\n{log_text}")
        assert sweep.last_words(tmp_path, 1) == "ValueError: 7"
    sweep.start(["no_such_script.py"], tmp_path, False)
    assert "No such file" in sweep.last_words(tmp_path, 2)
    log.write_text(f"{before}\n$ python x\n")
    assert sweep.last_words(tmp_path, 1) == "nothing in its log"


def test_what_a_csv_says_of_a_run(tmp_path, monkeypatch):
    """A tiny run's window is 15 steps, its end included."""
    writer = SummaryWriter(tmp_path)
    for step, violation, total, value in ((1, 1, 1, 2), (2, 0, 1, 4), (15, 1, 2, 9), (16, 0, 2, -7), (45, 1, 3, 8)):
        writer.add_scalar("charts/violation", violation, step)
        writer.add_scalar("charts/violations_total", total, step)
        writer.add_scalar("charts/episodic_return", value, step)
        writer.add_scalar("charts/violation_rate", 0.5, step)  # a mean over episodes before the window: not taken
    writer.close()
    (tmp_path / "twin").mkdir()
    for file, value in (("eval_1500", 0.25), ("eval_1500_fake", 0.5), ("twin/eval_1000", 0.75)):
        step = file.split("_")[1]
        (tmp_path / f"{file}.json").write_text(f'{{"step": {step}, "mean": {{"violation": {value}}}}}')
    monkeypatch.setattr(sweep, "critics", lambda run_dir, episodes: [("got_c", 0.125)])
    sweep.write_csv(RUN, tmp_path, tmp_path / "csv", {"device": "cpu", "commit": "abc"})
    run = "smoke,CarCircle2,sacv2-lag,1"
    expected = """# commit: abc
# device: cpu
suite,env,algo,seed,step,metric,value
run,15,charts/episodic_return,5
run,30,charts/episodic_return,-7
run,45,charts/episodic_return,8
run,15,charts/violation,0.66667
run,30,charts/violation,0
run,45,charts/violation,1
run,15,episodes,3
run,30,episodes,1
run,45,episodes,1
run,15,charts/violations_total,2
run,30,charts/violations_total,2
run,45,charts/violations_total,3
run,1500,eval/violation,0.25
run,1500,fake/violation,0.5
run,1000,twin/violation,0.75
run,1500,critics/got_c,0.125
"""
    assert (tmp_path / "csv").read_text() == expected.replace("\nrun,", f"\n{run},")


def test_a_finished_run_without_its_csv_is_not_thrown_away(tmp_path):
    policy = tmp_path / RUN.name / "runs" / "x" / f"policy_{RUN.total()}.pt"
    policy.parent.mkdir(parents=True)
    policy.write_text("")
    assert "put CarCircle2__sacv2-lag__1.csv back" in sweep.work(RUN, tmp_path, False) and policy.exists()


def test_a_folder_has_one_protocol(tmp_path, monkeypatch, ray):
    monkeypatch.setattr(sweep, "work", lambda run, folder, cuda: a_csv(run, tmp_path))
    one = dict(env_ids=("CarCircle2",), algos=("sacv2-lag",), folder=tmp_path)
    with pytest.raises(SystemExit, match="^False$"):
        sweep.main("smoke", **one)
    with pytest.raises(SystemExit, match="holds runs of tiny --total-timesteps 1500 .*, not of full: take another"):
        sweep.main("fig2", protocol="full", **one, dry_run=True)
    monkeypatch.setitem(sweep.PROTOCOLS, "tiny", "--total-timesteps 1600")  # an edited one is another
    with pytest.raises(SystemExit, match="holds runs of tiny --total-timesteps 1500 .*, not of tiny --total-timest"):
        sweep.main("smoke", **one, dry_run=True)
    (tmp_path / "protocol").unlink()
    with pytest.raises(SystemExit, match="holds runs of an unknown protocol, not of tiny "):
        sweep.main("smoke", **one, dry_run=True)


def test_a_folder_has_one_sweep(tmp_path, monkeypatch, ray):
    def again(run, folder, cuda):
        monkeypatch.setattr(sweep, "plan", lambda *_: [])
        with pytest.raises(SystemExit, match=f"^error: another sweep is running in {tmp_path}$"):
            sweep.main("smoke", folder=tmp_path)
        return a_csv(run, tmp_path)

    monkeypatch.setattr(sweep, "work", again)
    with pytest.raises(SystemExit, match="^False$"):
        sweep.main("smoke", env_ids=("CarCircle2",), algos=("sacv2-lag",), folder=tmp_path)
    assert list(tmp_path.glob("*.csv"))
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(SystemExit, match="^False$"):
        sweep.main("smoke", folder=tmp_path)


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(jobs=0), "error: --jobs 0: at least 1"),
        (dict(jobs=2, address="auto"), "error: --jobs 2: .*without --address"),
        (dict(gpus_per_run=-1.0), "error: --gpus-per-run -1: at least 0"),
        (dict(gpus_per_run=1.5), "error: --gpus-per-run 1.5: at least 0, and above 1 a whole number"),
        (dict(gpus_per_run=2.0), "error: --gpus-per-run 2: no node has more than 1$"),
    ],
)
def test_flags_that_cannot_be(tmp_path, monkeypatch, ray, flags, message):
    monkeypatch.setattr(sweep, "plan", lambda *_: [])
    with pytest.raises(SystemExit, match=f"^{message}"):
        sweep.main("smoke", folder=tmp_path, **flags)


def test_runs_at_a_time(tmp_path, monkeypatch, ray):
    """As many as this program has cores, not as many as the machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(sweep, "plan", lambda *_: [])
    for flags, cpus in ((dict(), 3), (dict(jobs=2), 2), (dict(gpus_per_run=1.0), 3)):
        with pytest.raises(SystemExit, match="^False$"):
            sweep.main("smoke", folder=tmp_path, **flags)
        assert ray.began["num_cpus"] == cpus and ray.began["address"] == "local"


def test_ray_that_does_not_come(tmp_path, ray):
    def init(**_):
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    ray.init = init
    with pytest.raises(SystemExit, match="^error: Ray, --address auto: Could not find any running Ray instance.$"):
        sweep.main("smoke", folder=tmp_path, address="auto")
    with socket.socket() as nobody:  # bound, and not listened to
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(SystemExit, match=f"^error: Ray, --address {address}: .*refused"):
            sweep.main("smoke", folder=tmp_path, address=address)


def test_what_workers_cannot_say(tmp_path, monkeypatch, capsys, ray):
    """One cannot import torch, one writes its CSV where nobody sees it; the third is done all the same."""

    def work(run, folder, cuda):
        if run.algo == "meta-sac-lag":
            raise RuntimeError("The remote function failed to import\n\nModuleNotFoundError: No module named 'torch'\n")
        return a_csv(run, tmp_path) if run.algo == "sacv2-lag" else None

    monkeypatch.setattr(sweep, "work", work)
    with pytest.raises(SystemExit, match="^True$"):
        sweep.main("smoke", env_ids=("CarCircle2",), algos=("meta-sac-lag", "sacv2-lag", "rcpo-sacv2"), folder=tmp_path)
    out, err = capsys.readouterr()
    assert "1 of 3 runs done" in out and err.count("\n") == 2
    assert "failed: CarCircle2__meta-sac-lag__1: ModuleNotFoundError: No module named 'torch'; its log is" in err
    unseen = f"its CSV is not in {tmp_path}: is it on a file system that all nodes share?"
    assert f"failed: CarCircle2__rcpo-sacv2__1: {unseen}; its log is" in err


def test_how_far_a_sweep_is(tmp_path, monkeypatch, capsys, ray):
    """What a failed run had done is not what the others have done."""
    ticks = itertools.count(0, 400)
    monkeypatch.setattr(sweep, "time", SimpleNamespace(time=lambda: next(ticks), sleep=lambda _: None))

    def work(run, folder, cuda):
        if run.algo == "sacv2-lag":
            return a_csv(run, tmp_path)
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "log.txt").write_text(f"{BAR}1200/1500 [00:30<34:48, 1.00s/it]")
        return "error: the disk"

    monkeypatch.setattr(sweep, "work", work)
    with pytest.raises(SystemExit, match="^True$"):
        sweep.main("smoke", env_ids=("CarCircle2",), algos=("meta-sac-lag", "sacv2-lag"), folder=tmp_path)
    # 1,200 steps took three ticks; all of the other run's 1,500 are to come
    assert "0 of 2 runs done, 1 steps a second; about 0 h 25 min to go" in capsys.readouterr().out


def test_how_far_a_run_is(tmp_path):
    here = tmp_path / RUN.name
    (here / "runs" / "x").mkdir(parents=True)
    assert sweep.steps_of(RUN, tmp_path) == 0
    for shown, steps in (("0/1500 [00:00<?, ?it/s]", 0), (f"{BAR}900/1500 [00:30<00:20, 30.0it/s]", 900)):
        with open(here / "log.txt", "a") as log:
            log.write(f"\r{shown}")
        assert sweep.steps_of(RUN, tmp_path) == steps
    (here / "log.txt").write_text(f"{BAR}900/1500 [00:30<00:20, 30.0it/s]\r{BAR}1200/1500 [00:40<00:10, 30.0it/s]\n")
    assert sweep.steps_of(RUN, tmp_path) == 1200
    (here / "runs" / "x" / "policy_1500.pt").touch()
    (here / "log.txt").write_text("evaluations\n" * 1000)
    assert sweep.steps_of(RUN, tmp_path) == 1500


def test_a_rate_is_measured_anew_where_it_was_interrupted(tmp_path, monkeypatch):
    (tmp_path / f"{RUN.name}.rate" / "runs" / "x").mkdir(parents=True)

    def start(command, here, cuda):
        writer = SummaryWriter(here / "runs" / "y")
        for step, rate in ((100, 100.0), (200, 40.0), (300, 60.0)):  # 1 s, then 4 s more
            writer.add_scalar("charts/SPS", rate, step)
        writer.close()
        return 0

    monkeypatch.setattr(sweep, "start", start)
    assert sweep.rate_of(RUN, tmp_path, False) == pytest.approx(50)


def test_one_runs_trouble_is_not_the_sweeps(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "start", lambda *given, **options: 1 / 0)
    assert sweep.work(RUN, tmp_path, False) == "ZeroDivisionError: division by zero"


def test_a_run_that_cannot_start_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.time, "sleep", lambda _: None)
    problem = sweep.work(RUN._replace(env_id="NoSuchTask"), tmp_path, False)
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
        qr.bias_3.copy_(torch.tensor([0.7, 0.9]).view(2, 1, 1))  # of a tenth of Q_r
        qc.bias_3.copy_(torch.tensor([0.0, -1.0]).view(2, 1, 1))
    args = dict(env_id="known_env:Known-v0", seed=1, gamma_r=0.9, gamma_c=0.8, reward_scale=10.0, reward_shift=0.0)
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
    came = np.mean([0.64, 0.8, 1])  # from the three states of an episode, all in the bin from 0.5 to 0.6
    assert (values["bin5_states"], values["bin5_promised"]) == (6, 0.5) and "bin4_states" not in values
    assert values["bin5_got"] == pytest.approx(came) and values["calibration_error"] == pytest.approx(came - 0.5)
    assert values["got_r"] == pytest.approx(20 * (1 + 0.9 + 0.81))
    assert found(reward_shift=-0.5)["got_r"] == pytest.approx(15 * (1 + 0.9 + 0.81))
    values = found(algo="rcpo-sacv2")  # less nu Q_c at every step
    assert values["got_r"] == pytest.approx((20 - 4 * 0.5) * (1 + 0.9 + 0.81))
    sys.modules["known_env"].Known.violates = False  # truncated at step 5: the critics' own value of the end
    values = found()
    assert values["got_c"] == pytest.approx(0.8**5 * 0.5)
    assert values["bin5_got"] == pytest.approx(np.mean(0.5 * 0.8 ** np.arange(1, 6)))
    assert values["got_r"] == pytest.approx(20 * (1 - 0.9**5) / 0.1 + 0.9**5 * 7)


def test_reliability_is_of_the_states_of_all_seeds():
    def of_seed(**values):
        return {f"critics/{name}": np.array([[9.0, value]]) for name, value in values.items()}

    one = of_seed(bin0_states=30, bin0_promised=0.02, bin0_got=0.0, bin7_states=10, bin7_promised=0.7, bin7_got=0.5)
    other = of_seed(bin0_states=10, bin0_promised=0.06, bin0_got=0.2)
    promised, got, states = figures.reliability({1: one, 2: other})
    assert promised == pytest.approx([0.03, 0.7]) and got == pytest.approx([0.05, 0.5]) and states.tolist() == [40, 10]
    assert figures.reliability({1: {}}) == ()


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
        names += " meta/alpha meta/nu gradients/reward gradients/safety"
        names = [*names.split(), *(f"critics/{what}_{x}" for what in ("promised", "got") for x in "rc")]
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
    assert "| (d) Eq. 14: return, end | overlaps Eq. 16 | 1 |" in table
    assert "| norms of g_r and of ν' g_c, end, Eq. 14 | 2.76 / 2.76, 4.61 / 4.61 |" in table  # of the last fifth
    assert "| RCPO-SACv2: steps an episode, end | 0.925, 1.85 |" in table  # weighted
    assert "| E[Q_r] promised at initial states / what comes, Eq. 14 | 3 / 3, 5 / 5 |" in table
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
    assert p(one={"a": range(15), "b": range(15, 30)}) == pytest.approx(1 / 155_117_520)  # at once, in no memory


def test_only_seeds_that_both_have_are_compared(tmp_path, capsys):
    def runs(**values):
        violations = "charts/violations_total"
        return {seed: {violations: np.array([(1.0, value)])} for seed, value in values.items()}

    three = {
        ("Task", "meta-sac-lag"): runs(a=1, b=2, c=99), ("Task", "sacv2-lag"): runs(b=4, a=3, d=0),
        ("Other", "meta-sac-lag"): runs(a=1), ("Third", "sacv2-lag"): runs(a=1),
        ("Once", "meta-sac-lag"): runs(a=1), ("Once", "sacv2-lag"): runs(a=3, b=4),  # one seed tells nothing
    }  # fmt: skip
    name = "violations, whole run"
    assert figures.both(three, "Task", "meta-sac-lag", "sacv2-lag", name).tolist() == [[1, 2], [3, 4]]
    for none in ("Other", "Third", "Once"):
        assert figures.both(three, none, "meta-sac-lag", "sacv2-lag", name).shape == (2, 0)
    assert figures.p_value(three, name, "meta-sac-lag", "sacv2-lag", 1) == pytest.approx(1 / 6)
    assert figures.p_value(three, name, "meta-sac-lag", "rcpo-sacv2", 1) == 1  # of nothing


def test_what_is_no_sweeps_is_left_out_and_said(tmp_path, capsys):
    (tmp_path / "one.csv").write_text("suite,env,algo,seed,step,metric,value\nfig2,Task,random,1,1,episodes,1\n")
    (tmp_path / "other.csv").write_text("step,value\n1,2\n")
    for table, what in ((False, "figure"), (True, "table")):
        figures.main(folders=(tmp_path,), table=table)
        out, err = capsys.readouterr()
        assert err.splitlines() == [
            f"note: {tmp_path}/other.csv is left out: it is no CSV of a sweep",
            f"note: nothing in {tmp_path} is enough for a {what}",
        ] and not out  # fmt: skip


def write_sweeps(folder):
    """Of each suite that has a figure. Every metric has values of its own."""

    def write(suite, env_id, algo, seed, rows):
        lines = [f'{suite},{env_id},"{algo}",{seed},{step},{metric},{value}' for step, metric, value in rows]
        text = "\n".join(["suite,env,algo,seed,step,metric,value", *lines, ""])
        (folder / f"{env_id}__{algo}__{seed}.csv").write_text(text)

    names = {"jerk": 4, "acceleration": 3, "success": 1, "violation": 0.5}
    for env_id, seed in itertools.product(list(figures.SETTINGS)[:3], (1, 2)):
        rows = [(step, "episodes", 2) for step in (100, 200, 1000)]
        for i, arm in enumerate(("charts", "twin", "fake", "eval")):
            steps = (100, 200, 1000)
            if arm == "fake":  # rehearsals that failed: of one seed all, of one setting's other one the last
                steps = () if seed == 2 else (100, 200) if env_id == "PourCoffeeSim3" else steps
            rows += [(x, f"{arm}/{name}", y * (seed * x / 4000 + i / 100)) for x in steps for name, y in names.items()]
        write("fig3", env_id, "meta-sac-lag", seed, rows)
    names = {"charts/violations_total": 1, "charts/episodic_return": 2, "charts/violation": 3}
    for algo in sweep.GRID:
        epsilon, nu = map(float, algo.split("@")[1].split(","))
        rows = [(step, name, factor * (nu + epsilon)) for name, factor in names.items() for step in (1, 2)]
        write("robust", "CarCircle2", algo, 1, rows + [(1, "episodes", 1), (2, "episodes", 1)])
    names = "charts/episodic_return charts/violation meta/alpha meta/epsilon meta/nu values/qc eval/success"
    names = [*names.split(), "charts/violations_total"]
    for (i, algo), seed in itertools.product(enumerate(sweep.ALGOS), range(5)):  # enough for intervals
        rows = [(step, name, (seed + 1) * 10**j + i) for j, name in enumerate(names) for step in (1, 2)]
        write("fig2", "Task", algo, seed, rows + [(1, "episodes", 1), (2, "episodes", 1)])
    rows = [(1, "charts/episodic_return", 7), (1, "charts/violation", 8), (1, "charts/violations_total", 9)]
    write("fig2", "Other", "sb3-sac", 1, rows + [(1, "episodes", 1)])  # a task that one has, and without a goal
    write("fig2", "Untrained", "random", 0, [(0, "eval/violation", 1)])


def test_tables_of_what_a_folder_has(tmp_path):
    write_sweeps(tmp_path)
    runs = figures.read(tmp_path)
    epsilons, nus, values = figures.grid(runs, "sacv2-lag", figures.ROBUSTNESS["return, end"])
    assert epsilons == [0.1, 0.5, 1.0] and nus == [50, 500, 5000]
    np.testing.assert_allclose(values, 2 * np.add.outer(epsilons, nus))
    of_grid = {pair: of_seeds for pair, of_seeds in runs.items() if pair[1] in sweep.GRID}
    of_grid["CarCircle2", "sacv2-lag@0.5,60"] = of_grid["CarCircle2", "sacv2-lag@0.5,50"]
    lines = figures.results_table(of_grid, figures.ROBUSTNESS).splitlines()[2:]  # in the order of the plan
    assert "ε_0 = 0.5, ν_0 = 60 | 1 |" in lines[13]  # by number
    assert lines[4] == "| CarCircle2 | Meta SAC-Lag (Eq. 14); ε_0 = 0.5, ν_0 = 500 | 1 | 500 | 1,502 | 1,001 |"
    assert lines[-1] == "| CarCircle2 | SACv2-Lag; ε_0 = 1, ν_0 = 5000 | 1 | 5,001 | 15,003 | 10,002 |"
    of_arms = {pair: of_seeds for pair, of_seeds in runs.items() if pair[0] in figures.SETTINGS}
    measures = {name: figures.DEPLOYED[name] for name in ("twin: jerk", "arm: jerk", "jerk, end", "evaluated: success")}
    assert figures.results_table(of_arms, measures).splitlines()[2] == (  # "arm": of the seed whose rehearsal went well
        "| PourCoffeeSim1 | Meta SAC-Lag (Eq. 14) | 2 | 0.69 (0.473 to 0.907) | 0.513 | 1.5 (1 to 2) | "
        "0.405 (0.28 to 0.53) |"
    )


def test_every_figure_is_drawn_of_what_a_folder_has(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    save, drawn = Figure.savefig, {}

    def savefig(figure, path, **options):
        drawn[os.path.basename(path)] = figure.axes
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    write_sweeps(tmp_path)
    figures.main(folders=(tmp_path,))
    assert {path.name for path in tmp_path.glob("*.png")} == set(drawn)
    assert set(drawn) == {"figure_2.png", "threshold.png", "figure_3.png", "robustness.png"}

    def first(ax, label):
        return next(line.get_ydata() for line in ax.get_lines() if line.get_label() == label)

    columns = {axes[0].get_title(): axes for axes in (drawn["figure_2.png"][k::2] for k in (0, 1))}
    assert set(columns) == {"Task", "Other"}  # untrained policies have no curve
    assert [[line.get_ydata()[0] for line in ax.get_lines()] for ax in columns["Other"]] == [[7], [], [9], [8], []]
    returned, success, total, rate, alpha = columns["Task"]  # the mean of five seeds is the third's
    thick = [[line.get_ydata()[0] for line in ax.get_lines() if line.get_linewidth() == 1.8] for ax in columns["Task"]]
    for i, label in enumerate(figures.LABELS.values()):
        assert first(returned, label) == pytest.approx(3 + i)
        assert thick[3][i] == pytest.approx(30 + i)
        logs = np.log10(100 * np.arange(1, 6) + i)
        assert thick[4][i] == pytest.approx(figures.interquartile_mean(logs))
        assert thick[1][i] == pytest.approx(3e6 + i) and thick[2][i] == pytest.approx(3e7 + i)
    assert {line.get_ydata()[0] for line in rate.get_lines() if line.get_linestyle() == "--"} == {
        1000 * seed + i for seed in range(1, 6) for i in (0, 1)
    }
    *of_algos, below = drawn["threshold.png"]
    for i, ax in enumerate(of_algos):
        assert list(first(ax, "ε")) == [1000 + i] * 2 and list(first(ax, "E[Q_c]")) == [100_000 + i] * 2
    assert first(below, "SACv2-Lag") == pytest.approx(30_002)
    jerk, acceleration, success, violation = drawn["figure_3.png"]
    for ax, factor in ((jerk, 4), (acceleration, 3)):
        of_first = [line for line in ax.get_lines() if line.get_color() == "C0" and line.get_linewidth() == 1.8]
        assert [line.get_linestyle() for line in of_first] == ["-", "--", ":"]
        ends = [line.get_ydata()[-1] for line in of_first]
        assert ends == pytest.approx([factor * 0.375, factor * 0.385, factor * 0.27])
    bars = [0.405, 0.385, 0.27] * 2 + [0.405, 0.385]  # the third setting's last policy was not rehearsed
    assert [bar.get_height() for bar in success.patches] == pytest.approx(bars)
    assert [bar.get_height() for bar in violation.patches] == pytest.approx([0.2025, 0.1925] * 3)
    factors = {"violations, whole run": 1, "violation rate, end": 3, "return, end": 2}
    for row, (title, factor) in enumerate(factors.items()):
        for ax, algo in zip(drawn["robustness.png"][2 * row :], ("Meta SAC-Lag (Eq. 14)", "SACv2-Lag")):
            assert ax.get_title() == f"{title}: {algo}"
            shown = np.add.outer((0.1, 0.5, 1.0), (50, 500, 5000))
            np.testing.assert_allclose(ax.get_images()[0].get_array(), factor * shown)
    for path in [*tmp_path.glob("*.png"), *tmp_path.glob("*sacv2-lag@*"), *tmp_path.glob("Task__meta*")]:
        path.unlink()  # a sweep that is not over: what is there is drawn
    figures.main(folders=(tmp_path,))
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure_2.png", "threshold.png", "figure_3.png"}


@pytest.mark.slow
def test_every_saved_policy_is_deployed(tmp_path):
    """Of fig3: each in the twin and on the rehearsal's arm, which has been taught its goal first."""
    run = sweep.Run("fig3", "tiny", "PourCoffeeSim2", "meta-sac-lag", 1)
    assert sweep.work(run, tmp_path, False) is None
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
