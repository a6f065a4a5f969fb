"""What epsilon does, with learned critics: the sign of its step, its objective and nu's rate, and what moves alpha.

    python experiments/threshold.py run --env-ids CarCircle2 --variants ascent   # those that have no CSV yet:
                                                        # 15-20 minutes each on a core, --jobs 2 at a time
    python experiments/threshold.py csv runs/FOLDER     # the CSV of a run that was made by such a command by hand
    python experiments/threshold.py table               # the README's table, from the CSVs
    python experiments/threshold.py figure              # images/threshold_*.png, from them (pip install matplotlib)

Each run is the README's training command with the flags below, in a process of its own, then `--evaluate`. A CSV holds,
for every 1,000 steps, the mean of what was logged in them (violations_total: the last), the evaluation's means, and
what `alpha_parts` finds at the end.
"""

import concurrent.futures
import csv
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
import sweep

from meta_sac_lag import Actor, TwinCritic, unflat

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "threshold"
SEEDS = (1, 2)
# Reduced: tau twice the default, so that Q_c forgets its first value, 0.5, within 3 / (tau (1 - gamma_c)) = 30,000.
PROTOCOL = "--hidden-size 128 --batch-size 128 --tau 0.01 --learning-starts 2000 --total-timesteps 40000 --no-cuda"
# flags, Table 1's nu_0
TASKS = {"CarCircle2": ("", 100), "FrankaDrawerClose": ("", 10), "HumanoidVelocity": ("", 10),
         "PourCoffee": ("--total-timesteps 60000", 10)}
VARIANTS = {  # nu's rate: the default 3e-4, or a ten-thousandth ("mid") or thousandth ("fast") of nu_0
    "ascent": "",
    "descent": "--epsilon-step descent",
    "ascent_fast": "--nu-lr {fast}",
    "descent_fast": "--epsilon-step descent --nu-lr {fast}",
    "nonlinear_fast": "--epsilon-objective nonlinear --nu-lr {fast}",
    "nonlinear_mid": "--epsilon-objective nonlinear --nu-lr {mid}",
    "ascent_alpha": "--alpha-init 0.1",
    "descent_alpha": "--epsilon-step descent --alpha-init 0.1",
    "nonlinear_fast_alpha": "--epsilon-objective nonlinear --nu-lr {fast} --alpha-init 0.1",
    "ascent_nu100": "--nu-init 100",
    "ascent_150k": "--total-timesteps 150000",
    "ascent_direct": "--no-alpha-through-epsilon",
    "ascent_else": "--no-store-violations-in-d",
    "nonlinear_fast_direct": "--epsilon-objective nonlinear --nu-lr {fast} --no-alpha-through-epsilon",
    "nonlinear_fast_else": "--epsilon-objective nonlinear --nu-lr {fast} --no-store-violations-in-d",
}
RUNS = [(env_id, variant, seed) for env_id in TASKS for variant in VARIANTS for seed in SEEDS]
EVERY, EPISODES = 1000, "40"


def command(env_id, variant, seed):
    flags, nu_init = TASKS[env_id]
    own = VARIANTS[variant].format(mid=f"{1e-4 * nu_init:g}", fast=f"{1e-3 * nu_init:g}")
    run_flags = f"--env-id {env_id} --seed {seed} --exp-name {variant}"
    return f"python meta_sac_lag.py {run_flags} {PROTOCOL} {flags} {own}".split()


def alpha_parts(run_dir, batches=60):
    """What the direct metagradient of alpha, -<grad J_alpha, P g_h>, is made of at a run's last checkpoint.

    {name: (mean, standard deviation)} over batches: of the parts by the layers of the policy (`trunk`, the last layer's
    rows of the `mean` and of the `log_std`), of their `sum`, of the sum if J_alpha took stochastic actions, and of
    -alpha <g_h, P g_h>, which is what would be left of that if the policy had come to rest (README).
    """
    saved = torch.load(f"{run_dir}/checkpoint.pt", map_location="cpu", weights_only=True)
    sizes, batch_size = saved["sizes"], saved["args"]["batch_size"]
    actor = Actor(**sizes)
    qr, qc = (TwinCritic(**sizes, probability=probability) for probability in (False, True))
    for name, net in dict(actor=actor, qr=qr, qc=qc).items():
        net.load_state_dict(saved["parts"][name])
    nu, alpha = saved["tensors"]["nu"], saved["tensors"]["log_alpha"].exp().item()
    phi = dict(actor.named_parameters())
    P = unflat(saved["args"]["policy_lr"] * (saved["tensors"]["phi_square"] + 1e-12).rsqrt(), actor)
    states, initial_states = saved["parts"]["D"]["obs"], saved["parts"]["D_0"]["obs"]
    found = []
    torch.manual_seed(0)
    for _ in range(batches):
        B, S_0 = (pool[torch.randint(len(pool), (batch_size,))] for pool in (states, initial_states))
        g_h = torch.autograd.grad(actor(B)[1].mean(), phi.values())
        sampled, _, deterministic = actor(S_0)
        (trunk, mean, log_std), with_samples = [0, 0, 0], 0
        for action in (deterministic, sampled):
            J_alpha = (qr(S_0, action).amin(0) - nu * qc(S_0, action).amax(0)).mean()
            gradients = torch.autograd.grad(J_alpha, phi.values(), retain_graph=True)
            for name, g, h in zip(phi, gradients, g_h):
                part = -g * P[name] * h
                if action is sampled:
                    with_samples += part.sum()
                elif name.startswith("net.4"):
                    mean, log_std = mean + part.chunk(2)[0].sum(), log_std + part.chunk(2)[1].sum()
                else:
                    trunk = trunk + part.sum()
        at_rest = -alpha * sum((h * P[name] * h).sum() for name, h in zip(phi, g_h))
        found.append([float(x) for x in (trunk, mean, log_std, trunk + mean + log_std, with_samples, at_rest)])
    names = ("trunk", "mean", "log_std", "sum", "sum_if_stochastic", "at_rest")
    return dict(zip(names, zip(np.mean(found, 0), np.std(found, 0))))


def to_csv(run_dir: tyro.conf.Positional[str]):
    """Writes the CSV of a finished run of `command`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name = re.fullmatch(r"(\w+?)__(\w+)__(\d+)__\d+(?:-2)*", Path(run_dir).name)
    if not name or name[1] not in TASKS or name[2] not in VARIANTS:
        sys.exit(f"error: {run_dir} is no run of these: its --env-id has to be of {', '.join(TASKS)}, and its "
                 f"--exp-name of {', '.join(VARIANTS)}")  # fmt: skip
    env_id, variant, seed = name.groups()
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    evaluations = [json.loads(path.read_text()) for path in Path(run_dir).glob("eval_*.json")]
    path = RESULTS / f"{env_id}__{variant}__{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".part"), "w", newline="") as file:
        file.write(f"# {shlex.join(command(env_id, variant, int(seed)))}\n# written at commit {sweep.commit()}\n")
        file.write(f"# {sweep.machine()}; {sweep.versions()}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["suite", "env", "algo", "seed", "step", "metric", "value"])
        for tag in sorted(events.Tags()["scalars"]):
            windows = {}
            for event in events.Scalars(tag):
                windows.setdefault(-(-event.step // EVERY) * EVERY, []).append(event.value)
            for step, values in windows.items():
                value = values[-1] if tag == "charts/violations_total" else np.mean(values)
                writer.writerow(["threshold", env_id, variant, seed, step, tag, f"{value:.5g}"])
        for evaluation in evaluations:
            for key, value in evaluation["mean"].items():
                writer.writerow(["threshold", env_id, variant, seed, evaluation["step"], f"eval/{key}", f"{value:.5g}"])
        for key, both in alpha_parts(run_dir).items():
            for what, value in zip(("mean", "std"), both):
                tag = f"alpha/{key}_{what}"
                writer.writerow(["threshold", env_id, variant, seed, max(windows), tag, f"{value:.5g}"])
    os.replace(path.with_suffix(".part"), path)


def run(env_id, variant, seed):
    line = command(env_id, variant, seed)
    log = RESULTS / f"{env_id}__{variant}__{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    options = dict(cwd=HERE.parent, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with open(log, "w") as file:
        subprocess.run([sys.executable, *line[1:]], stdout=file, stderr=file, **options)
        run_dir = re.search(r"logging to (\S+)", log.read_text())[1]
        evaluate = ["meta_sac_lag.py", "--evaluate", run_dir, "--episodes", EPISODES]
        subprocess.run([sys.executable, *evaluate], stdout=file, stderr=file, **options)
    to_csv(HERE.parent / run_dir)
    log.unlink()


def read(env_id, variant, seed):
    """{tag: (windows, 2) array of step and value}, or None where that run has no CSV."""
    path = RESULTS / f"{env_id}__{variant}__{seed}.csv"
    if not path.exists():
        return None
    curves = {}
    with open(path) as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            curves.setdefault(row["metric"], []).append((float(row["step"]), float(row["value"])))
    return {tag: np.array(points) for tag, points in curves.items()}


def episodes(curves):
    """About how many episodes ended in each window, by which means of windows have to be weighted: where violations are
    many, episodes are short, and many."""
    return EVERY / curves["charts/episodic_length"][:, 1]


def figure(env_id, variants, path):
    import matplotlib.pyplot as plt

    rows = {
        "meta/epsilon": "ε", "meta/nu": "ν", "values/qc": "E[Q_c]", "charts/violation": "violations per episode",
        "charts/episodic_return": "return", "meta/alpha": "α",
    }
    fig, axes = plt.subplots(len(rows), len(variants), figsize=(2.6 * len(variants), 10), sharex=True, sharey="row")
    for column, variant in zip(axes.T, variants):
        column[0].set_title(variant.replace("_", ", "), fontsize=10)
        for ax, (tag, label) in zip(column, rows.items()):
            for seed in SEEDS:
                if curves := read(env_id, variant, seed):
                    step, value = curves[tag].T
                    if tag.startswith("charts"):  # means over the episodes of five windows
                        five = [slice(max(0, i - 4), i + 1) for i in range(len(value))]
                        value = np.array([np.average(value[near], weights=episodes(curves)[near]) for near in five])
                    ax.plot(step / 1000, value, linewidth=1, label=f"seed {seed}")
            ax.set_yscale({"meta/nu": "symlog", "meta/alpha": "log"}.get(tag, "linear"))
            ax.set_ylabel(label if ax in axes[:, 0] else "")
            ax.grid(alpha=0.3)
        column[-1].set_xlabel("thousand steps")
    axes[0, 0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=80)


def last(curves, tag, steps=10_000):
    """The mean of a run's last steps: over episodes where it is of episodes. Of nu*, which has outliers, the median."""
    step, value = curves[tag].T
    late = step > step.max() - steps
    if tag == "charts/violations_total":
        return value.max()
    if tag in ("charts/violation", "charts/episodic_return"):
        return np.average(value[late], weights=episodes(curves)[late])
    return (np.median if tag == "meta/nu_star" else np.mean)(value[late])


def table():
    """The README's, as Markdown: the violations of the whole run, `last`, and pi_det, for each seed."""
    columns = {
        "violations, whole run": "charts/violations_total", "violation rate": "charts/violation",
        "return": "charts/episodic_return", "ε": "meta/epsilon", "ν": "meta/nu", "ν*": "meta/nu_star",
        "E[Q_c]": "values/qc", "E[Q_r]": "values/qr", "α": "meta/alpha", "evaluated: violation rate": "eval/violation",
        "evaluated: return": "eval/episodic_return",
    }  # fmt: skip
    lines = [f"| task | variant | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for env_id, variant in itertools.product(TASKS, VARIANTS):
        runs = [read(env_id, variant, seed) for seed in SEEDS]
        runs = [curves for curves in runs if curves and "eval/violation" in curves]  # not one that was stopped
        cells = [", ".join(f"{last(curves, tag):.3g}" for curves in runs) for tag in columns.values()]
        lines += [f"| {env_id} | {variant.replace('_', ', ')} | {' | '.join(cells)} |"] * bool(runs)
    return "\n".join(lines)


if __name__ == "__main__":
    def run_all(jobs: int = 2, env_ids: tuple[str, ...] = tuple(TASKS), variants: tuple[str, ...] = tuple(VARIANTS)):
        missing = [one for one in RUNS if one[0] in env_ids and one[1] in variants and read(*one) is None]
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda one: run(*one), missing))

    def figures():
        for env_id in TASKS:
            done = [variant for variant in VARIANTS if any(read(env_id, variant, seed) for seed in SEEDS)]
            if done:
                figure(env_id, done, HERE / "images" / f"threshold_{env_id}.png")

    def show():
        print(table())

    tyro.extras.subcommand_cli_from_dict({"run": run_all, "csv": to_csv, "table": show, "figure": figures})
