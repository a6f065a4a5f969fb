"""Pictures and the README's table of results, from the CSVs of experiments/sweep.py alone.

    python experiments/figures.py                       # of every sweep in experiments/results/ and in ./sweeps/
    python experiments/figures.py --table               # the tables, as Markdown
    python experiments/figures.py --folders my_sweep    # of this one

An environment is shown once all algorithms have it, with the same seeds. Thick: mean over seeds; thin: each seed.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import tyro

HERE = Path(__file__).resolve().parent
LABELS = {  # in the order of the figures
    "meta-sac-lag": "Meta SAC-Lag (Eq. 14)",
    "meta-sac-lag-nonlinear": "Meta SAC-Lag (Eq. 16)",
    "sacv2-lag": "SACv2-Lag",
    "rcpo-sacv2": "RCPO-SACv2",
    "rcpo-metasac": "RCPO-MetaSAC",
}
LAST = 0.2  # the share of a run that the table calls its end


def read(folder):
    """{(environment, algorithm): {seed: {metric: (points, 2) array of step and value}}} of the whole environments."""
    runs = {}
    for path in sorted(Path(folder).glob("*.csv")):
        curves = {}
        with open(path) as file:
            for row in csv.DictReader(line for line in file if not line.startswith("#")):
                curves.setdefault(row["metric"], []).append((float(row["step"]), float(row["value"])))
                run = row["env"], row["algo"], int(row["seed"])
        env_id, algo, seed = run
        curves = {metric: np.array(points) for metric, points in curves.items()}
        runs.setdefault((env_id, algo), {})[seed] = curves
    seeds = {}  # of each environment and algorithm
    for (env_id, algo), of_seeds in runs.items():
        if algo in LABELS:
            seeds.setdefault(env_id, {})[algo] = set(of_seeds)
    whole = [env_id for env_id, of in seeds.items() if all(of.get(algo) == of.get("sacv2-lag") for algo in LABELS)]
    return {pair: of_seeds for pair, of_seeds in sorted(runs.items()) if pair[0] in whole}


def per_episode(curves, metric, last=None):
    """A curve of episode statistics, each window weighted by its episodes; `last`: the mean of that share of it."""
    step, value = curves[metric].T
    weight = dict(curves["episodes"])
    weight = np.array([weight[at] for at in step])
    if last is not None:
        at_end = step > (1 - last) * step.max()
        return float((value * weight)[at_end].sum() / weight[at_end].sum())
    around = [np.abs(step - at) <= 0.05 * step.max() for at in step]
    return step, np.array([(value * weight)[near].sum() / weight[near].sum() for near in around])


def draw(ax, of_seeds, curve, label, **style):
    curves = [curve(curves) for curves in of_seeds.values()]
    steps = np.linspace(max(step[0] for step, _ in curves), min(step[-1] for step, _ in curves), 200)
    values = [np.interp(steps, *one) for one in curves]
    (line,) = ax.plot(steps / 1000, np.mean(values, 0), label=label, linewidth=1.8, **style)
    for one in values if len(values) > 1 else ():
        ax.plot(steps / 1000, one, color=line.get_color(), linewidth=0.5, alpha=0.6, linestyle=line.get_linestyle())


def axes_of(rows, runs):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    env_ids = list(dict.fromkeys(env_id for env_id, _ in runs))
    fig, axes = plt.subplots(rows, len(env_ids), figsize=(4.2 * len(env_ids), 2.7 * rows), squeeze=False, sharex="col")
    for env_id, column in zip(env_ids, axes.T):
        column[0].set_title(env_id)
        column[-1].set_xlabel("thousand steps")
        for ax in column:
            ax.grid(alpha=0.3)
    return fig, dict(zip(env_ids, axes.T)), axes


def figure_2(runs, path):
    """Return, alpha, violation rate with epsilon dashed, of every environment and algorithm."""
    fig, columns, axes = axes_of(3, runs)
    for env_id, (above, middle, below) in columns.items():
        for i, (algo, label) in enumerate(LABELS.items()):
            of_seeds, style = runs[env_id, algo], dict(color=f"C{i}")
            draw(above, of_seeds, lambda c: per_episode(c, "charts/episodic_return"), label, **style)
            draw(middle, of_seeds, lambda c: c["meta/alpha"].T, label, **style)
            draw(below, of_seeds, lambda c: per_episode(c, "charts/violation"), label, **style)
            if algo.startswith("meta"):
                draw(below, of_seeds, lambda c: c["meta/epsilon"].T, None, linestyle="--", **style)
        middle.set_yscale("log")
        below.set_ylim(-0.03, 1.03)
    for ax, label in zip(axes[:, 0], ("return", "α", "violation rate (ε dashed)")):
        ax.set_ylabel(label)
    axes[0, 0].legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(path, dpi=90)


def figure_threshold(runs, path):
    """epsilon beside E[Q_c], and nu, of the three algorithms that have L as Eq. 11 has it."""
    fig, columns, axes = axes_of(4, runs)
    for env_id, column in columns.items():
        for i, algo in enumerate(("meta-sac-lag", "meta-sac-lag-nonlinear", "sacv2-lag")):
            of_seeds, style = runs[env_id, algo], dict(color=f"C{i}")
            draw(column[i], of_seeds, lambda c: c["meta/epsilon"].T, "ε", linestyle="--", **style)
            draw(column[i], of_seeds, lambda c: c["values/qc"].T, "E[Q_c]", **style)
            column[i].set_ylim(-0.03, 1.03)
            draw(column[3], of_seeds, lambda c: c["meta/nu"].T, LABELS[algo], **style)
            column[i].set_ylabel(LABELS[algo] if column is axes.T[0] else "", fontsize=8)
            column[i].legend(fontsize=7)
    axes[3, 0].set_ylabel("ν")
    axes[3, 0].legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(path, dpi=90)


def results_table(runs):
    """Means over seeds, and in brackets the least and the greatest. The end of a run is its last fifth."""
    columns = {
        "violations, whole run": lambda c: c["charts/violations_total"][-1, 1],
        "violation rate, end": lambda c: per_episode(c, "charts/violation", LAST),
        "return, end": lambda c: per_episode(c, "charts/episodic_return", LAST),
        "α, end": lambda c: c["meta/alpha"][-1, 1],
        "ν, end": lambda c: c["meta/nu"][-1, 1],
        "evaluated: violation rate": lambda c: c["eval/violation"][-1, 1],
        "evaluated: return": lambda c: c["eval/episodic_return"][-1, 1],
        "Q_c promises": lambda c: c["critics/promised_c"][-1, 1],
        "π gets": lambda c: c["critics/got_c"][-1, 1],
    }
    lines = [f"| task | algorithm | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 3) + "|"]
    for env_id, algo in sorted(runs, key=lambda pair: (pair[0], list(LABELS).index(pair[1]))):
        of_seeds, cells = runs[env_id, algo], []
        for curve in columns.values():
            values = [curve(curves) for curves in of_seeds.values()]
            cells.append(f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})")
        lines.append(f"| {env_id} | {LABELS[algo]} | {len(of_seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(folders: tuple[Path, ...] = (), table: bool = False):
    """Draws figure_2.png and threshold.png of each sweep: of experiments/results/NAME to experiments/images/NAME_*.png,
    of any other folder into it.

    Args:
        folders: sweeps' folders; none: those in experiments/results and in ./sweeps
        table: print the tables of results instead
    """
    results = HERE / "results"
    named = [folder for folder in folders if not list(folder.glob("*.csv"))]
    if named:
        sys.exit(f"error: there is no CSV in {named[0]}; experiments/sweep.py writes them")
    for folder in folders or sorted([*results.glob("*"), *Path("sweeps").glob("*")]):
        runs = read(folder) if folder.is_dir() and folder.name != "threshold" else {}
        if not runs:
            continue
        if table:
            print(f"{folder}\n\n{results_table(runs)}\n")
            continue
        prefix = f"{HERE / 'images' / folder.name}_" if folder.resolve().parent == results else f"{folder}/"
        for name, figure in (("figure_2", figure_2), ("threshold", figure_threshold)):
            figure(runs, f"{prefix}{name}.png")
            print(f"{prefix}{name}.png")


if __name__ == "__main__":
    tyro.cli(main)
