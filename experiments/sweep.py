"""The paper's comparisons: many runs of the two scripts, on this machine or on a cluster, to one CSV each.

    pip install -r experiments/requirements.txt                  # Ray and matplotlib
    python experiments/sweep.py --suite smoke                    # minutes: does everything work?
    python experiments/sweep.py --suite fig2 --dry-run           # what it would do, and how long that takes
    python experiments/sweep.py --suite fig2 --env-ids CarCircle2 PourCoffee
    python experiments/sweep.py --suite fig2 --protocol full --address auto --gpus-per-run 0.1   # on a Ray cluster
    python experiments/figures.py                                # the pictures, from the CSVs

Each run is the README's command line in a process of its own, on one thread, then `--evaluate`. Two things are added:
what the last critics promise and what comes (`critics`), and, of fig3, the policies saved along training in the twin
and on the rehearsal's arm. All of a sweep is in one folder (`--folder`, by default sweeps/SUITE_PROTOCOL): a folder for
each run, with its policies and TensorBoard's events, and beside it, once it is whole, its CSV. A sweep that is stopped
goes on where it was, a run that dies from its last checkpoint. On a cluster the folder and this checkout are on a file
system that all nodes share.
"""

import csv
import ctypes
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple

import numpy as np
import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
ALGOS = {
    "meta-sac-lag": "meta_sac_lag.py",
    "meta-sac-lag-nonlinear": "meta_sac_lag.py --epsilon-objective nonlinear",
    "sacv2-lag": "sac_lag_baselines.py --algo sacv2-lag",
    "rcpo-sacv2": "sac_lag_baselines.py --algo rcpo-sacv2",
    "rcpo-metasac": "sac_lag_baselines.py --algo rcpo-metasac",
}
# Of few steps, so errors of Q have to go fast: they decay by 1/e in 1 / (tau (1 - gamma_r)) = 400 updates, with 0.99 in
# 2,000. And one step sooner at the goal is a twentieth of Q, with 0.99 a hundredth (docs/tasks.md)
FEW = "--hidden-size 128 --batch-size 128 --tau 0.05 --gamma-r 0.95 --learning-starts 4000 --eval-every 5000"
PROTOCOLS = {
    "full": "",  # the scripts' defaults: a million steps, width and batch 256
    "reduced": f"--total-timesteps 50000 {FEW}",
    "short": f"--total-timesteps 25000 {FEW}",  # Pour Coffee is learned by step 15,000
    "tiny": "--total-timesteps 1500 --hidden-size 32 --batch-size 32 --learning-starts 500 --initial-states 8 "
            "--checkpoint-every 500",
}  # fmt: skip
# A step of the car is 0.04 s: 20 of those see too little ahead. A box topples within 20 of its steps
OWN = {"CarCircle2": "--gamma-r 0.99", "PushTopple": "--gamma-c 0.95"}
FIG2 = ("PourCoffee", "FrankaDrawerClose", "CarCircle2", "PushTopple", "EggManipulate", "HumanoidVelocity")
GRID = {  # algorithm@epsilon_0,nu_0
    f"{algo}@{epsilon},{nu}": f"{ALGOS[algo]} --epsilon-init {epsilon} --nu-init {nu}"
    for algo, epsilon, nu in itertools.product(("meta-sac-lag", "sacv2-lag"), (0.1, 0.5, 1.0), (50, 500, 5000))
}
CONTROL = {  # what explains the comparison
    "rcpo-unpenalised": "sac_lag_baselines.py --algo rcpo-sacv2 --nu-init 0 --nu-lr 0",  # SAC without a constraint
    # As the tasks' rewards are: a violation pays
    "rcpo-unpenalised-unshifted": "sac_lag_baselines.py --algo rcpo-sacv2 --nu-init 0 --nu-lr 0 --reward-shift 0",
    "meta-sac-lag-unshifted": "meta_sac_lag.py --reward-shift 0",
    "sacv2-lag-unshifted": "sac_lag_baselines.py --algo sacv2-lag --reward-shift 0",
    "rcpo-sacv2-10": "sac_lag_baselines.py --algo rcpo-sacv2 --nu-init 10",  # Table 1's on the drawer; elsewhere ours
    "meta-sac-lag-fixed-epsilon": "meta_sac_lag.py --epsilon-lr 0",  # at 1: what is left is alpha's metagradient
}
SUITES = {  # environments, algorithms, seeds
    "smoke": (("CarCircle2", "PourCoffee"), ALGOS, (1,)),
    "fig2": (FIG2, ALGOS, (1, 2, 3)),
    "fig3": (("PourCoffeeSim1", "PourCoffeeSim2", "PourCoffeeSim3", "PourCoffeeSim4"), ("meta-sac-lag",), (1, 2, 3)),
    "robust": (("FrankaDrawerClose",), GRID, (1,)),
    "control": (("FrankaDrawerClose", "PushTopple", "EggManipulate"), CONTROL, (1, 2)),
}
POINTS = 100  # of a curve: means over a hundredth of the run
METRICS = re.compile(
    r"charts/(episodic_return|episodic_length|violation|violations_total|cost_.*|success_rate|acceleration|jerk|SPS)|"
    r"meta/(epsilon|alpha|nu|nu_star|grad_.*)|values/.*|losses/entropy|gradients/.*"
)
EPISODES = {"tiny": 2}  # of the evaluation at the end; otherwise 40
TWIN = "PourCoffeeTwin"  # Pour Coffee with noise, delay, and friction and fill that nobody knows


class Run(NamedTuple):
    suite: str
    protocol: str
    env_id: str
    algo: str
    seed: int

    @property
    def name(self):
        return f"{self.env_id}__{self.algo}__{self.seed}"

    def command(self, cuda=False, extra=""):
        script, _, own = {**ALGOS, **GRID, **CONTROL}[self.algo].partition(" ")  # of a flag given twice the last counts
        flags = f"--env-id {self.env_id} --seed {self.seed} --exp-name {self.algo} {PROTOCOLS[self.protocol]}"
        if self.protocol in ("reduced", "short"):
            flags += f" {OWN.get(self.env_id, '')}"
        flags = f"{flags} {own} {'' if cuda else '--no-cuda'} {extra}"
        return [script, *flags.split()]

    def total(self):
        return int(re.search(r"--total-timesteps (\d+)|$", PROTOCOLS[self.protocol])[1] or 1_000_000)


def plan(suite, protocol, env_ids=None, algos=None, seeds=None):
    """All runs of a suite, seed by seed within an environment, so that what is whole first can be shown first."""
    of_suite = SUITES[suite]
    for flag, given, known in zip(("--env-ids", "--algos"), (env_ids, algos), of_suite):
        if unknown := set(given or ()) - set(known):
            sys.exit(f"error: {flag} {' '.join(sorted(unknown))}: the suite {suite} has {', '.join(known)}")
    # Each once: two workers on one run would delete each other's folder
    env_ids, algos, seeds = (dict.fromkeys(given or of_suite[i]) for i, given in enumerate((env_ids, algos, seeds)))
    return [
        Run(suite, protocol, env_id, algo, seed)
        for env_id, seed, algo in itertools.product(env_ids, seeds, algos)
    ]


def start(command, here, cuda, **options):
    """The command line in a process of its own, which dies with this one and logs to log.txt -> its exit code."""
    kill_with_me = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # 1: PR_SET_PDEATHSIG
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({} if cuda else {"CUDA_VISIBLE_DEVICES": ""})
    with open(here / "log.txt", "a") as log:
        print(f"\n$ {shlex.join(command)}", file=log, flush=True)
        return subprocess.run(
            [sys.executable, str(ROOT / command[0]), *command[1:]], cwd=here, env=environment, stdout=log, stderr=log,
            preexec_fn=kill_with_me and (lambda: kill_with_me(1, signal.SIGKILL)), **options,
        ).returncode  # fmt: skip


def work(*given):
    """`to_csv`, whatever happens: one run's trouble is not the sweep's."""
    try:
        return to_csv(*given)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"


def to_csv(run, folder, cuda):
    """One run, from whatever there is of it, to its CSV. Returns what went wrong, or None."""
    folder, here = Path(folder), Path(folder) / run.name
    target = folder / f"{run.name}.csv"
    if target.exists():
        return None
    here.mkdir(parents=True, exist_ok=True)
    last_step, deaths = -1, 0
    while not (done := finished(run, here)):
        with_checkpoint = [path for path in here.glob("runs/*") if list(path.glob("checkpoint*.pt"))]
        if with_checkpoint:
            command = [run.command()[0], "--resume", str(with_checkpoint[0].relative_to(here))]
        elif list(here.glob(f"runs/*/policy_{run.total()}.pt")):
            return f"it was finished, and its CSV is gone: put {target.name} back, or move {here} away"
        else:  # died before its first checkpoint: nothing of it is of use
            shutil.rmtree(here / "runs", ignore_errors=True)
            command = run.command(cuda)
        with open(here / "commits", "a") as commits:  # a sweep takes days: the code may change under it
            print(commit(), file=commits)
        if (code := start(command, here, cuda)) != 0:
            steps = [int(path.stem.split("_")[1]) for path in here.glob("runs/*/policy_*.pt")]
            deaths = deaths + 1 if max(steps, default=0) == last_step else 1
            last_step = max(steps, default=0)
            if deaths == 3:
                return last_words(here, code)
            time.sleep(5)
    run_dir = done.parent
    script, episodes = run.command()[0], ["--episodes", str(EPISODES.get(run.protocol, 40))]
    evaluations = [([script, "--evaluate", str(done.relative_to(here)), *episodes], {})]
    if run.suite == "fig3":
        # The policies saved along training, as they would be on the arm. In its twin, which has coffee, noise, a delay
        # and motors of limited torque; and on the rehearsal's arm, which has the real one's interface and no coffee
        evaluations.append((["kinova_real.py", "--teach", "--robot-ip", "fake"], dict(input=b"yes\n" * 100)))
        rehearse = "--real-robot --robot-ip fake --episodes 2".split()
        for path in run_dir.glob("policy_*.pt"):
            in_twin = run_dir / "twin" / path.name
            in_twin.parent.mkdir(exist_ok=True)
            torch.save({**torch.load(path, weights_only=True), "env_id": TWIN}, in_twin)
            evaluations.append(([script, "--evaluate", str(in_twin.relative_to(here)), *episodes], {}))
            rehearsal = [script, "--evaluate", str(path.relative_to(here)), *rehearse]
            evaluations.append((rehearsal, dict(input=b"yes\n" * 100)))
    for command, options in evaluations:
        if (code := start(command, here, cuda, **options)) != 0:
            return last_words(here, code)
    devices = re.findall("Training on (.*), logging", (here / "log.txt").read_text())
    facts = {
        "command": shlex.join(["python", *run.command(cuda)]), "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "commit": "; ".join(dict.fromkeys((here / "commits").read_text().splitlines())), "machine": machine(),
        "device": "; ".join(dict.fromkeys(devices)), "versions": versions(),
    }  # fmt: skip
    temporary = here / "csv"
    write_csv(run, run_dir, temporary, facts)
    os.replace(temporary, target)
    for checkpoint in run_dir.glob("checkpoint*.pt"):  # nearly all of a run's disk space
        checkpoint.unlink()
    return None


def last_words(here, code):
    """Why the last command failed: its error, not its farewell, which comes after it."""
    if code < 0:
        return f"killed by signal {-code}"
    _, *lines = (here / "log.txt").read_text().rpartition("\n$ ")[2].strip().splitlines()
    lines = [line for line in lines if not line.startswith("stopped at")]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["nothing in its log"])[-1]


def finished(run, here):
    """The last policy of a run that came to its end: its checkpoint is written after it, and is the last thing."""
    for policy in here.glob(f"runs/*/policy_{run.total()}.pt"):
        checkpoint = policy.parent / "checkpoint.pt"
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns >= policy.stat().st_mtime_ns:
            return policy


def write_csv(run, run_dir, path, facts):
    """Long format. Each point of a curve is the mean of what was logged in its window, the last of violations_total;
    `episodes` is how many ended in it, by which means of windows have to be weighted."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    every, rows = run.total() // POINTS, []
    for tag in sorted(filter(METRICS.fullmatch, events.Tags()["scalars"])):
        windows = {}
        for event in events.Scalars(tag):
            windows.setdefault(-(-event.step // every) * every, []).append(event.value)
        rows += [(step, tag, x[-1] if tag.endswith("_total") else np.mean(x)) for step, x in windows.items()]
        if tag == "charts/violation":
            rows += [(step, "episodes", len(x)) for step, x in windows.items()]
    for file in sorted([*run_dir.glob("eval_*.json"), *run_dir.glob("twin/eval_*.json")]):
        found = json.loads(file.read_text())
        arm = "fake" if file.stem.endswith("_fake") else "twin" if file.parent.name == "twin" else "eval"
        rows += [(found["step"], f"{arm}/{key}", value) for key, value in sorted(found["mean"].items())]
    rows += [(run.total(), f"critics/{key}", value) for key, value in critics(run_dir, EPISODES.get(run.protocol, 20))]
    with open(path, "w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in sorted(facts.items()))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["suite", "env", "algo", "seed", "step", "metric", "value"])
        for step, tag, value in rows:
            writer.writerow([run.suite, run.env_id, run.algo, run.seed, step, tag, f"{value:.5g}"])


def critics(run_dir, episodes):
    """What the last critics promise for pi, and what pi then gets: name and value.

    At initial states, means over episodes: `r`: of shifted and scaled rewards and entropy, discounted by gamma_r (in
    RCPO less nu Q_c), as Q_r has it; `c`: gamma_c^t for a violation at step t. Where an episode was truncated the
    critic's own value of its end is added. At all states that pi comes through, Q_c's reliability: of those where it
    promises 0.1 k to 0.1 (k + 1), `bin{k}`, how many, what it promises and what comes; and the expected calibration
    error, the mean of |promised - got| over bins, weighted by how many.
    """
    sys.path[:0] = [str(ROOT)]
    from meta_sac_lag import Actor, TwinCritic, episode_seed, make_env

    saved = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
    args, sizes = saved["args"], saved["sizes"]
    actor = Actor(**sizes, rng=torch.Generator().manual_seed(0))
    qr, qc = (TwinCritic(**sizes, probability=probability) for probability in (False, True))
    for name, net in dict(actor=actor, qr=qr, qc=qc).items():
        net.load_state_dict(saved["parts"][name])
    alpha, nu = saved["tensors"]["log_alpha"].exp().item(), saved["tensors"]["nu"].item()
    penalty = nu if args.get("algo", "").startswith("rcpo") else 0.0
    env = make_env(args["env_id"], SimpleNamespace(capture_video=False, real_robot=False, robot_ip=""))
    at_start, at_all = [], []

    def act(obs):
        """-> a ~ pi, its entropy bonus, min Q_r, max Q_c"""
        obs = torch.as_tensor(obs, dtype=torch.float32)[None]
        with torch.no_grad():
            action, log_pi, _ = actor(obs)
            values = qr(obs, action).amin().item(), qc(obs, action).amax().item()
        return action[0].numpy(), -alpha * log_pi.item(), *values

    for k in range(episodes):
        obs, _ = env.reset(seed=episode_seed(args["seed"], k, stream=1))
        action, _, promised_r, q_c = act(obs)
        promised_c, got_r, t, done = [], 0.0, 0, False
        while not done:
            promised_c.append(q_c)
            obs, reward, terminated, truncated, info = env.step(action)
            reward = args["reward_scale"] * (reward + args["reward_shift"])
            got_r += args["gamma_r"] ** t * (reward - penalty * q_c)
            t, done = t + 1, terminated or truncated
            if not terminated:
                action, bonus, q_r, q_c = act(obs)
                got_r += args["gamma_r"] ** t * (bonus + q_r * done)
        end = info["cost"] if terminated else args["gamma_c"] * q_c
        got_c = [end * args["gamma_c"] ** (t - 1 - i) for i in range(t)]
        at_start.append((promised_r, got_r, promised_c[0], got_c[0]))
        at_all += zip(promised_c, got_c)
    env.close()
    found = list(zip(("promised_r", "got_r", "promised_c", "got_c"), np.mean(at_start, 0)))
    promised_c, got_c = np.array(at_all).T
    bins, error = np.minimum(promised_c * 10, 9).astype(int), 0.0
    for k in np.unique(bins):
        promised, got = promised_c[bins == k].mean(), got_c[bins == k].mean()
        error += abs(promised - got) * np.mean(bins == k)
        found += [(f"bin{k}_states", (bins == k).sum()), (f"bin{k}_promised", promised), (f"bin{k}_got", got)]
    return [*found, ("calibration_error", error)]


def machine():
    cpu = re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] if sys.platform == "linux" else ""
    return f"{platform.system()} {platform.machine()}, {cpu or platform.processor()}, {os.cpu_count()} cores"


def commit():
    git = dict(cwd=ROOT, capture_output=True, text=True)
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **git).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **git).stdout.strip()
    except OSError:
        commit, changed = "", ""
    return (commit or "unknown") + (", changed since" if changed else "")


def versions():
    packages = ("torch", "numpy", "gymnasium", "safety-gymnasium", "gymnasium-robotics", "mujoco", "pybullet")
    found = " ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"Python {platform.python_version()} {found}"


def steps_of(run, folder):
    """How far a run is, by the last line of its progress bar."""
    here = folder / run.name
    if (folder / f"{run.name}.csv").exists() or list(here.glob(f"runs/*/policy_{run.total()}.pt")):
        return run.total()
    log = here / "log.txt"
    if not log.exists():
        return 0
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
        seen = re.findall(rf"(\d+)/{run.total()} \[", file.read().decode(errors="replace"))
    return int(seen[-1]) if seen else 0


def rate_of(run, folder, cuda):
    """Environment steps a second, updates included: of a CSV of this sweep, else measured by 300 steps now."""
    for path in sorted(folder.glob(f"{run.env_id}__{run.algo}__*.csv")):
        with open(path) as file:
            rows = csv.DictReader(line for line in file if not line.startswith("#"))
            rates = [float(row["value"]) for row in rows if row["metric"] == "charts/SPS"]
        if rates:
            return rates[-1]
    here = folder / f"{run.name}.rate"
    shutil.rmtree(here, ignore_errors=True)  # of a measurement that was interrupted
    here.mkdir(parents=True)
    few = "--total-timesteps 400 --learning-starts 100 --initial-states 1 --checkpoint-every 0"
    if (code := start(run.command(cuda, few), here, cuda)) != 0:
        sys.exit(f"error: {last_words(here, code).removeprefix('error: ')}")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run_dir,) = here.glob("runs/*")
    events = EventAccumulator(str(run_dir))
    events.Reload()
    first, *_, last = events.Scalars("charts/SPS")  # both count from the first step of the run
    shutil.rmtree(here)
    return (last.step - first.step) / (last.step / last.value - first.step / first.value)


def table(runs, folder, failed=()):
    """A row for each environment and algorithm, a cell for each seed."""
    lines, seeds = [], sorted({run.seed for run in runs})
    lines.append(f"{'':18}{'':28}" + "".join(f"{f'seed {seed}':>9}" for seed in seeds))
    for env_id, algo in dict.fromkeys((run.env_id, run.algo) for run in runs):
        cells = dict.fromkeys(seeds, "")
        for run in runs:
            if (run.env_id, run.algo) == (env_id, algo):
                share = steps_of(run, folder) / run.total()
                done = (folder / f"{run.name}.csv").exists()
                cells[run.seed] = "done" if done else "failed" if run in failed else f"{share:.0%}" if share else "-"
        lines.append(f"{env_id:18}{algo:28}" + "".join(f"{cell:>9}" for cell in cells.values()))
    return "\n".join(lines)


def outcome(ray, task, run, folder):
    """What went wrong, or None."""
    try:
        if problem := ray.get(task):
            return problem
    except Exception as error:  # the worker's own: it could not import torch, say. Ray's text ends in its reason
        return (str(error).strip() or type(error).__name__).splitlines()[-1]
    for _ in range(5):  # a network's file system may be behind
        if (folder / f"{run.name}.csv").exists():
            return None
        time.sleep(1)
    return f"its CSV is not in {folder}: is it on a file system that all nodes share?"


def duration(seconds):
    return f"{seconds // 3600:.0f} h {seconds % 3600 / 60:02.0f} min"


def main(
    suite: Literal["smoke", "fig2", "fig3", "robust", "control"],
    protocol: Literal["full", "reduced", "short", "tiny"] | None = None,
    env_ids: tuple[str, ...] = (),
    algos: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    folder: Path | None = None,
    jobs: int | None = None,
    gpus_per_run: float = 0.0,
    address: str | None = None,
    dry_run: bool = False,
):
    """Runs what is missing of a suite.

    Args:
        suite: fig2: the five algorithms on six environments; fig3: Pour Coffee's four reward and penalty settings, then
            the policies saved along training in the twin and on the simulated arm; robust: a grid of epsilon_0 and
            nu_0; control: rewards that are not shifted, RCPO with nu = 0, which is SAC without a constraint, and
            with 10, and epsilon fixed at 1; smoke: minutes
        protocol: full: the scripts' defaults; reduced: 50,000 steps, short: 25,000, with width and batch 128, tau
            0.05 and gamma_r 0.95, but for what OWN has; None: reduced, smoke: tiny
        env_ids: only these of the suite's environments
        algos: only these of its algorithms
        seeds: these instead of its seeds
        folder: all of the sweep's state and results; None: sweeps/SUITE_PROTOCOL
        jobs: runs at a time on this machine; None: as many as it lets this program have cores
        gpus_per_run: a run's share of a GPU, or whole GPUs; 0: it stays on the CPU
        address: of a Ray cluster (auto: the one that this machine belongs to); None: this machine alone
        dry_run: only say what would be done, and how long it would take at a rate that is measured now
    """
    protocol = protocol or ("tiny" if suite == "smoke" else "reduced")
    runs = plan(suite, protocol, env_ids, algos, seeds)
    if jobs is not None and (address or jobs < 1):
        sys.exit(f"error: --jobs {jobs}: at least 1, and without --address: a cluster knows its cores")
    if gpus_per_run < 0 or gpus_per_run > 1 and gpus_per_run % 1:
        sys.exit(f"error: --gpus-per-run {gpus_per_run:g}: at least 0, and above 1 a whole number")
    # os.cpu_count() has those too that taskset or a container keeps from this program
    jobs = jobs or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    folder = (folder or Path("sweeps") / f"{suite}_{protocol}").resolve()
    cuda = gpus_per_run > 0
    of, flags = folder / "protocol", f"{protocol} {PROTOCOLS[protocol]}".strip()
    held = of.read_text() if of.exists() else "an unknown protocol" if list(folder.glob("*.csv")) else flags
    if held != flags:
        sys.exit(f"error: {folder} holds runs of {held}, not of {flags}: take another --folder")
    missing = [run for run in runs if not (folder / f"{run.name}.csv").exists()]
    if dry_run:
        seconds = 0.0
        rates = {}
        for run in missing:
            pair, left = (run.env_id, run.algo), run.total() - steps_of(run, folder)
            rates[pair] = rate = rates.get(pair) or rate_of(run, folder, cuda)
            seconds += left / rate
            print(f"{left:9} steps at {rate:5.1f} a second: python {shlex.join(run.command(cuda))}", flush=True)
        print(f"{len(runs) - len(missing)} of {len(runs)} runs done, in {folder}. The rest takes about "
              f"{duration(seconds)} of one core: {duration(seconds / jobs)} with {jobs} at once")  # fmt: skip
        return
    try:
        import ray
    except ImportError:
        sys.exit("error: the sweep runs on Ray: pip install -r experiments/requirements.txt")
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / "lock", "w")  # until the program ends
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"error: another sweep is running in {folder}")
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass
    of.write_text(flags)
    try:
        if re.fullmatch(r"[\w.-]+:\d+", address or ""):  # where nothing listens Ray tries for more than ten minutes
            socket.create_connection(address.split(":"), timeout=10).close()
        # "local": what Ray has left in /tmp of a cluster of before is not joined
        ray.init(address=address or "local", log_to_driver=False, include_dashboard=False,
                 **({} if address else {"num_cpus": jobs}))  # fmt: skip
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        sys.exit(f"error: Ray, --address {address or 'local'}: {reason}")
    gpus = max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    if gpus_per_run > gpus:  # Ray would wait for one that has
        sys.exit(f"error: --gpus-per-run {gpus_per_run:g}: no node has more than {gpus:g}")
    # Ray itself starts a task again, elsewhere, if its node or its process is lost
    remote = ray.remote(work).options(num_cpus=1, num_gpus=gpus_per_run, max_retries=-1)
    waiting = {remote.remote(run, str(folder), cuda): run for run in missing}
    failed, shown, began = {}, 0.0, time.time()
    at_first = sum(steps_of(run, folder) for run in missing)
    while waiting:
        done, _ = ray.wait(list(waiting), timeout=5)
        for task in done:
            run = waiting.pop(task)
            if problem := outcome(ray, task, run, folder):
                failed[run] = problem
        if not waiting or time.time() - shown > (5 if sys.stdout.isatty() else 300):
            shown = time.time()
            steps = sum(steps_of(run, folder) for run in missing) - at_first
            rate = max(0.0, steps / (time.time() - began))  # a killed run's checkpoint may be behind its progress bar
            left = sum(run.total() - steps_of(run, folder) for run in waiting.values())
            print("\033[H\033[J" * sys.stdout.isatty() + table(runs, folder, failed))
            end = f"; about {duration(left / rate)} to go" if rate and waiting else ""
            print(f"{len(runs) - len(waiting) - len(failed)} of {len(runs)} runs done, {rate:.0f} steps a second{end}",
                  flush=True)  # fmt: skip
    for run, problem in failed.items():
        print(f"failed: {run.name}: {problem}; its log is in {folder / run.name}", file=sys.stderr)
    print(f"CSVs: {folder}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    tyro.cli(main)
