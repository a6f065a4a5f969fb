"""Pictures and tables of results, from the CSVs of experiments/sweep.py, witness.py and environments.py alone.

    python experiments/figures.py                       # of every sweep in experiments/results/ and in ./sweeps/
    python experiments/figures.py --table               # the tables, as Markdown
    python experiments/figures.py --folders my_sweep    # of this one

What is there is shown; two algorithms are compared by the seeds that both have. Thick: mean over seeds (of alpha the
geometric one); thin: each seed. Epsilon is drawn by seed alone, since a mean of 0 and 1 is no run's. From five seeds on:
their interquartile mean, and its 95 % bootstrap interval. Curves of episodes are means over 5 % of the run to either
side.
"""

import contextlib
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
CONTROLS = {
    "rcpo-unpenalised": "SACv2 without a constraint",
    "rcpo-unpenalised-unshifted": "SACv2 without a constraint, `--reward-shift 0`",
    "meta-sac-lag-unshifted": "Meta SAC-Lag (Eq. 14), `--reward-shift 0`",
    "sacv2-lag-unshifted": "SACv2-Lag, `--reward-shift 0`",
    "rcpo-sacv2-10": "RCPO-SACv2, ν_0 = 10",
    "meta-sac-lag-fixed-epsilon": "Meta SAC-Lag, `--epsilon-lr 0`",
}
WITNESS = {"sb3-sac": "Stable-Baselines3's SAC, no constraint"}
NAMES = {"random": "uniformly random", "nothing": "no motion", "script": "a script", **WITNESS, **LABELS, **CONTROLS}
ENV_IDS = (  # in the order of the figures and tables
    "PourCoffee", "PourCoffeeTwin", "PourCoffeeSim1", "PourCoffeeSim2", "PourCoffeeSim3", "PourCoffeeSim4",
    "FrankaDrawerClose", "CarCircle2", "PushTopple", "EggManipulate", "HumanoidVelocity",
)  # fmt: skip
COLOURS = {algo: f"C{i}" for i, algo in enumerate((*LABELS, *WITNESS, *CONTROLS))}
LAST = 0.2  # the share of a run that the table calls its end
SETTINGS = {  # Table 2
    "PourCoffeeSim1": "#1: distance and roll; spill violates",
    "PourCoffeeSim2": "#2: acceleration too; no spill constraint",
    "PourCoffeeSim3": "#3: acceleration too; spill violates",
    "PourCoffeeSim4": "#4: and a spill costs reward",
}


def read(folder):
    """{(environment, algorithm): {seed: {metric: (points, 2) array of step and value}}}"""
    runs = {}
    for path in sorted(Path(folder).glob("*.csv")):
        with open(path) as file:
            rows = csv.DictReader(line for line in file if not line.startswith("#"))
            if rows.fieldnames != "suite env algo seed step metric value".split():
                print(f"note: {path} is left out: it is no CSV of a sweep", file=sys.stderr)
                continue
            for row in rows:
                curves = runs.setdefault((row["env"], row["algo"]), {}).setdefault(int(row["seed"]), {})
                curves.setdefault(row["metric"], []).append((float(row["step"]), float(row["value"])))
    for of_seeds in runs.values():
        for seed, curves in of_seeds.items():
            of_seeds[seed] = {metric: np.array(sorted(points)) for metric, points in curves.items()}
    return {pair: runs[pair] for pair in sorted(runs, key=place)}


def place(pair):
    """Where figures and tables have an environment and algorithm, with the grid's epsilon_0 and nu_0 after its name"""
    env_id, (algo, _, starts) = pair[0], pair[1].partition("@")
    at = (*ENV_IDS, env_id).index(env_id), env_id, (*NAMES, algo).index(algo), algo
    return *at, [float(start) for start in starts.split(",") if start]


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


def at_end(points, last=LAST):
    """The mean of the last share of a curve."""
    return points[points[:, 0] > (1 - last) * points[-1, 0], 1].mean()


def interquartile_mean(values):
    """Over the first axis: the mean without a quarter of the values at either end (whole ones, rounded down)."""
    values = np.sort(values, 0)
    cut = len(values) // 4
    return values[cut : len(values) - cut].mean(0)


def bootstrap(values, times=2000):
    """The 95 % interval of the interquartile mean, over the first axis, by resampling the seeds: (2, ...)"""
    values, rng = np.asarray(values), np.random.default_rng(0)
    drawn = [interquartile_mean(values[rng.integers(len(values), size=len(values))]) for _ in range(times)]
    return np.percentile(drawn, (2.5, 97.5), axis=0)


def draw(ax, of_seeds, curve, label, mean=True, **style):
    curves = [curve(curves) for curves in of_seeds.values()]
    if not mean:
        for i, (step, value) in enumerate(curves):
            ax.plot(step / 1000, value, label=None if i else label, linewidth=0.9, **style)
        return
    steps = np.linspace(max(step[0] for step, _ in curves), min(step[-1] for step, _ in curves), 200)
    values = [np.interp(steps, *one) for one in curves]
    middle = np.mean(values, 0) if len(values) < 5 else interquartile_mean(values)
    (line,) = ax.plot(steps / 1000, middle, label=label, linewidth=1.8, **style)
    if len(values) >= 5:
        ax.fill_between(steps / 1000, *bootstrap(values), color=line.get_color(), alpha=0.2, linewidth=0)
    for one in values if len(values) > 1 else ():
        ax.plot(steps / 1000, one, color=line.get_color(), linewidth=0.5, alpha=0.6, linestyle=line.get_linestyle())


def pyplot():
    try:
        import matplotlib
    except ImportError:
        sys.exit("error: the figures need matplotlib: pip install -r experiments/requirements.txt")
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def axes_of(rows, runs):
    env_ids = list(dict.fromkeys(env_id for env_id, _ in runs))
    size = 4.2 * len(env_ids), 2.7 * rows
    fig, axes = pyplot().subplots(rows, len(env_ids), figsize=size, squeeze=False, sharex="col", layout="constrained")
    for env_id, column in zip(env_ids, axes.T):
        column[0].set_title(env_id)
        column[-1].set_xlabel("thousand steps")
        for ax in column:
            ax.grid(alpha=0.3)
    return fig, dict(zip(env_ids, axes.T)), axes


def figure_2(runs, path):
    """Return, success of the evaluated policies, violations in all, violation rate with epsilon dashed, and alpha."""
    trained = [*LABELS, *WITNESS]
    runs = {pair: of_seeds for pair, of_seeds in runs.items() if pair[1] in trained}
    fig, columns, axes = axes_of(5, runs)
    for (env_id, algo), of_seeds in sorted(runs.items(), key=lambda item: trained.index(item[0][1])):
        returned, success, total, rate, alpha = columns[env_id]
        style = dict(color=COLOURS[algo])
        draw(returned, of_seeds, lambda c: per_episode(c, "charts/episodic_return"), NAMES[algo], **style)
        if "eval/success" in next(iter(of_seeds.values())):  # some have no goal to reach
            draw(success, of_seeds, lambda c: c["eval/success"].T, None, **style)
        draw(total, of_seeds, lambda c: c["charts/violations_total"].T, None, **style)
        draw(rate, of_seeds, lambda c: per_episode(c, "charts/violation"), None, **style)
        if algo in LABELS:
            draw(alpha, of_seeds, lambda c: (c["meta/alpha"][:, 0], np.log10(c["meta/alpha"][:, 1])), None, **style)
        if algo.startswith("meta"):
            draw(rate, of_seeds, lambda c: c["meta/epsilon"].T, None, mean=False, linestyle="--", **style)
        for ax in (success, rate):
            ax.set_ylim(-0.03, 1.03)
    labels = "return", "success, evaluated", "violations in all", "violation rate (ε dashed)", "log₁₀ α"
    for ax, label in zip(axes[:, 0], labels):
        ax.set_ylabel(label)
    handles = {label: line for ax in axes[0] for line, label in zip(*ax.get_legend_handles_labels())}
    fig.legend(handles.values(), handles, loc="outside upper center", ncols=3, fontsize=8)
    fig.savefig(path, dpi=75)


def figure_reliability(runs, path):
    """What Q_c promises against what comes, at the states that the last policy comes through, in ten bins; a point is
    as large as its bin is full. Below the diagonal Q_c promises too much."""
    runs = {pair: of_seeds for pair, of_seeds in runs.items() if reliability(of_seeds)}
    fig, columns, _ = axes_of(1, runs)
    for (env_id, algo), of_seeds in runs.items():
        (ax,), (promised, got, states) = columns[env_id], reliability(of_seeds)
        style = dict(color=COLOURS.get(algo, f"C{len(ax.collections)}"), label=NAMES.get(algo, algo))
        ax.plot([0, 1], [0, 1], color="0.8", lw=1)
        ax.plot(promised, got, lw=1, **style | dict(label=None))
        ax.scatter(promised, got, s=200 * np.sqrt(states / sum(states)), alpha=0.6, **style)
        ax.set(title=env_id, xlabel="Q_c promises", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        ax.legend(fontsize=7)
    fig.axes[0].set_ylabel("comes")
    fig.savefig(path, dpi=90)


def reliability(of_seeds):
    """Arrays of what Q_c promises, what comes and how many states, bin by bin, over all seeds; () where none has it"""
    bins = {}
    for curves in of_seeds.values():
        for k in range(10):
            if f"critics/bin{k}_states" in curves:
                names = ("states", "promised", "got")
                states, promised, got = (curves[f"critics/bin{k}_{name}"][-1, 1] for name in names)
                bins.setdefault(k, []).append((promised * states, got * states, states))
    totals = np.array([np.sum(bins[k], axis=0) for k in sorted(bins)]).T
    return (totals[0] / totals[2], totals[1] / totals[2], totals[2]) if bins else ()


def figure_threshold(runs, path):
    """epsilon beside E[Q_c], and nu, of the three algorithms that have L as Eq. 11 has it."""
    three = ("meta-sac-lag", "meta-sac-lag-nonlinear", "sacv2-lag")
    runs = {pair: of_seeds for pair, of_seeds in runs.items() if pair[1] in three}
    fig, columns, axes = axes_of(4, runs)
    for env_id, column in columns.items():
        for i, algo in enumerate(three):
            column[i].set_ylabel(LABELS[algo] if env_id == next(iter(columns)) else "", fontsize=8)
            if (env_id, algo) not in runs:
                continue
            of_seeds, style = runs[env_id, algo], dict(color=f"C{i}")
            draw(column[i], of_seeds, lambda c: c["meta/epsilon"].T, "ε", mean=False, linestyle="--", **style)
            draw(column[i], of_seeds, lambda c: c["values/qc"].T, "E[Q_c]", mean=False, **style)
            column[i].set_ylim(-0.03, 1.03)
            draw(column[3], of_seeds, lambda c: c["meta/nu"].T, LABELS[algo], **style)
            column[i].legend(fontsize=7)
    axes[3, 0].set_ylabel("ν")
    axes[3, 0].legend(fontsize=7)
    fig.savefig(path, dpi=90)


def figure_3(runs, path):
    """Jerk and acceleration while training, and of the policies saved along it, in the twin with noise, delay and
    saturation (dashed) and on the rehearsal's arm (dotted); success and violations of the last ones, there and in their
    own simulation. The rehearsal's arm has no coffee: its success is the mug at the goal and rolled."""
    fig, axes = pyplot().subplots(1, 4, figsize=(18, 4.5), layout="constrained")
    for i, (env_id, label) in enumerate(SETTINGS.items()):
        if (env_id, "meta-sac-lag") not in runs:
            continue
        of_seeds = runs[env_id, "meta-sac-lag"]
        for ax, name in zip(axes, ("jerk", "acceleration")):
            draw(ax, of_seeds, lambda c: per_episode(c, f"charts/{name}"), label, color=f"C{i}")
            for arm, line in (("twin", "--"), ("fake", ":")):
                deployed = {seed: curves for seed, curves in of_seeds.items() if f"{arm}/{name}" in curves}
                if deployed:  # the machine may have failed in every episode
                    draw(ax, deployed, lambda c: c[f"{arm}/{name}"].T, None, color=f"C{i}", linestyle=line)
        for ax, name in zip(axes[2:], ("success", "violation")):
            for j, (where, hatch) in enumerate((("eval", ""), ("twin", "//"), ("fake", ".."))):
                metric = f"{where}/{name}"
                values = [
                    curves[metric][-1, 1]
                    for curves in of_seeds.values()  # the last policy's rehearsal may have failed
                    if metric in curves and curves[metric][-1, 0] == curves[f"eval/{name}"][-1, 0]
                ]
                if values and metric != "fake/violation":
                    ax.bar(i + 0.27 * (j - 1), np.mean(values), 0.25, color=f"C{i}", alpha=0.6, hatch=hatch)
                    ax.plot([i + 0.27 * (j - 1)] * len(values), values, "k.", markersize=4)
    titles = ("(a) jerk, m/s³", "(b) acceleration, m/s²", "(c) success, last policy", "(d) violations, last policy")
    for ax, title in zip(axes, titles):
        ax.set_title(title)
        ax.grid(alpha=0.3)
    for ax in axes[:2]:
        ax.set_ylim(bottom=0)
        ax.set_xlabel("thousand steps (dashed: in the twin, dotted: rehearsal arm)")
    for ax in axes[2:]:
        ax.set(xlim=(-0.6, 3.6), ylim=(-0.03, 1.03))
        ax.set_xticks(range(len(SETTINGS)), [label[:2] for label in SETTINGS.values()])
        ax.set_xlabel("its simulation; // twin; .. rehearsal arm (no coffee)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    fig.savefig(path, dpi=90)


def grid(runs, algo, curve):
    """epsilon_0 (down, ascending), nu_0 (across), and the mean over seeds of each pair."""
    values = {}
    for (_, name), of_seeds in runs.items():
        if name.startswith(f"{algo}@"):
            pair = tuple(map(float, name.split("@")[1].split(",")))
            values[pair] = np.mean([curve(curves) for curves in of_seeds.values()])
    epsilons, nus = (sorted(set(side)) for side in zip(*values))
    return epsilons, nus, np.array([[values.get((epsilon, nu), np.nan) for nu in nus] for epsilon in epsilons])


def figure_robustness(runs, path):
    """What the choice of epsilon_0 and nu_0 does to violations and return, with and without metagradients."""
    fig, axes = pyplot().subplots(len(ROBUSTNESS), 2, figsize=(8.4, 3.2 * len(ROBUSTNESS)))
    for row, (title, curve) in zip(axes, ROBUSTNESS.items()):
        grids = [grid(runs, algo, curve) for algo in ("meta-sac-lag", "sacv2-lag")]
        low, high = (f([f(values) for *_, values in grids]) for f in (np.nanmin, np.nanmax))
        for ax, algo, (epsilons, nus, values) in zip(row, ("Meta SAC-Lag (Eq. 14)", "SACv2-Lag"), grids):
            colors = "viridis" if "return" in title else "viridis_r"
            ax.imshow(values, vmin=low, vmax=high, cmap=colors, origin="lower", aspect="auto")
            for (i, j), value in np.ndenumerate(values):
                light = (value - low) / max(high - low, 1e-9) > 0.5
                ax.text(j, i, f"{value:.3g}", ha="center", color="k" if light == (colors == "viridis") else "w")
            ax.set_xticks(range(len(nus)), [f"{nu:g}" for nu in nus])
            ax.set_yticks(range(len(epsilons)), [f"{epsilon:g}" for epsilon in epsilons])
            ax.set(title=f"{title}: {algo}", xlabel="ν_0", ylabel="ε_0")
    fig.tight_layout()
    fig.savefig(path, dpi=90)


MEASURES = {
    "violations, whole run": lambda c: c["charts/violations_total"][-1, 1],
    "violation rate, end": lambda c: per_episode(c, "charts/violation", LAST),
    "return, end": lambda c: per_episode(c, "charts/episodic_return", LAST),
    "α, last": lambda c: c["meta/alpha"][-1, 1],
    "ν, last": lambda c: c["meta/nu"][-1, 1],
    "evaluated: violation rate": lambda c: c["eval/violation"][-1, 1],
    "evaluated: return": lambda c: c["eval/episodic_return"][-1, 1],
    "Q_c promises": lambda c: c["critics/promised_c"][-1, 1],
    "π gets": lambda c: c["critics/got_c"][-1, 1],
}
ROBUSTNESS = {name: MEASURES[name] for name in ("violations, whole run", "violation rate, end", "return, end")}
STARTED = MEASURES | {"ε after a fifth": lambda c: np.interp(c["meta/epsilon"][-1, 0] / 5, *c["meta/epsilon"].T)}


def at_start(term, steps=10_000):
    return lambda c: (curve := c[f"gradients/{term}"])[curve[:, 0] <= steps, 1].mean()


TASKS = {name: MEASURES[name] for name in MEASURES if "promises" not in name and "gets" not in name} | {
    "Q_c's calibration error": lambda c: c["critics/calibration_error"][-1, 1],
    "evaluated: success": lambda c: c["eval/success"][-1, 1],
    "steps": lambda c: c["charts/violations_total"][-1, 0],
    "reward's gradient to step 10,000": at_start("reward"),
    "entropy's": at_start("entropy"),
    "safety's": at_start("safety"),
}


def deployed(metric):
    """The mean over the policies saved along training, where the machine did not fail in every episode."""
    return lambda c: c[metric][:, 1].mean()


DEPLOYED = {  # of Fig. 3's runs; jerk in m/s³, acceleration in m/s²
    **ROBUSTNESS,
    "jerk, end": lambda c: per_episode(c, "charts/jerk", LAST),
    "acceleration, end": lambda c: per_episode(c, "charts/acceleration", LAST),
    "evaluated: violation rate": MEASURES["evaluated: violation rate"],
    "evaluated: return": MEASURES["evaluated: return"],
    "evaluated: success": lambda c: c["eval/success"][-1, 1],
    "twin: violation rate": deployed("twin/violation"),
    "twin: spilled": deployed("twin/cost_spill"),
    "twin: success": deployed("twin/success"),
    "twin: jerk": deployed("twin/jerk"),
    "twin: acceleration": deployed("twin/acceleration"),
    "arm: success": deployed("fake/success"),
    "arm: jerk": deployed("fake/jerk"),
    "arm: acceleration": deployed("fake/acceleration"),
}


def spread(measure, of_seeds):
    """The mean and, where they differ, the least and the greatest, of the seeds that have what is measured."""
    values = []
    for curves in of_seeds.values():
        with contextlib.suppress(KeyError):
            values.append(measure(curves))
    if not values:
        return ""
    found = np.mean(values), min(values), max(values)
    mean, *ends = (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" for value in found)
    return mean + " ({} to {})".format(*ends) * (len(set(ends)) > 1)


def results_table(runs, measures=MEASURES):
    """Means over seeds, and in brackets the least and the greatest. The end of a run is its last fifth; last: the last
    point of its curve."""
    lines = [f"| task | algorithm | seeds | {' | '.join(measures)} |", "|---" * (len(measures) + 3) + "|"]
    for env_id, algo in sorted(runs, key=place):
        of_seeds, starts = runs[env_id, algo], place((env_id, algo))[-1]
        label = NAMES[algo.split("@")[0]] + ("; ε_0 = {:g}, ν_0 = {:g}".format(*starts) if starts else "")
        cells = [str(len(of_seeds)) * (algo not in ("random", "nothing", "script"))]
        cells += [spread(measure, of_seeds) for measure in measures.values()]
        lines.append(f"| {env_id} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def settles(curves):
    """The step from which epsilon stays within 0.05 of where it ends, and that end."""
    step, epsilon = curves["meta/epsilon"].T
    away = np.flatnonzero(np.abs(epsilon - epsilon[-1]) > 0.05)
    return (step[away[-1] + 1] if len(away) else step[0]), epsilon[-1]


def both(runs, env_id, one, other, name):
    """A measure of two algorithms' runs, of the seeds that both have: (2, seeds). One seed tells nothing: (2, 0)"""
    of_one, of_other = (runs.get((env_id, algo), {}) for algo in (one, other))
    seeds = sorted(of_one.keys() & of_other.keys())
    seeds *= len(seeds) > 1
    return np.array([[MEASURES[name](of_seeds[seed]) for seed in seeds] for of_seeds in (of_one, of_other)])


def p_value(runs, name, one, other, sign):
    """Of `one` being lower (sign 1) or higher (-1) than `other`: the exact one-sided rank test, within environments."""
    observed, counts = 0, np.ones(1)
    for env_id in dict.fromkeys(env_id for env_id, _ in runs):
        values = sign * both(runs, env_id, one, other, name)
        n, values = values.shape[1], values.ravel()
        ranks = 2 * (values[:, None] > values).sum(1) + (values[:, None] == values).sum(1)  # twice, for ties
        ways = np.zeros((n + 1, ranks.sum() + 1))  # how many choices of so many ranks have this sum
        ways[0, 0] = 1
        for rank in ranks:
            ways[1:, rank:] += ways[:-1, :-rank].copy()  # a rank is 1 at least
        observed, counts = observed + ranks[:n].sum(), np.convolve(counts, ways[n])
    return counts[: observed + 1].sum() / counts.sum()


def claims_table(runs):
    """What the claims (a) to (d) compare, for each environment, of the seeds that both algorithms have: is every seed of
    the one below every seed of the other (fewer, lower), above (more, higher), or do their ranges overlap? And p over
    all environments that have both, of the claim against SACv2-Lag, or Eq. 16."""

    def compare(env_id, one, others, name, below, above):
        found = {below: [], "overlaps": [], above: []}
        for other in others:
            mine, theirs = both(runs, env_id, one, other, name)
            if len(mine):
                word = below if max(mine) < min(theirs) else above if min(mine) > max(theirs) else "overlaps"
                found[word].append(LABELS[other].removeprefix("Meta SAC-Lag ").strip("()"))
        return "; ".join(f"{word} {', '.join(names)}" for word, names in found.items() if names)

    baselines, meta, nonlinear = ("sacv2-lag", "rcpo-sacv2", "rcpo-metasac"), "meta-sac-lag", "meta-sac-lag-nonlinear"
    fewer, lower = ("fewer than", "more than"), ("lower than", "higher than")
    norms = [lambda c, tag=tag: at_end(abs(c[f"gradients/{tag}"])) for tag in ("reward", "safety")]
    of_r, of_c = ([lambda c, tag=f"critics/{p}_{x}": c[tag][-1, 1] for p in ("promised", "got")] for x in "rc")
    alpha, nu = MEASURES["α, last"], MEASURES["ν, last"]
    half = lambda c: np.interp(c["charts/violations_total"][-1, 0] / 2, *c["charts/violations_total"].T)
    rate, steps = MEASURES["violation rate, end"], lambda c: per_episode(c, "charts/episodic_length", LAST)
    compared = {
        "(a) violations, whole run": (meta, baselines, "violations, whole run", fewer, 1),
        "(a) violation rate, end": (meta, baselines, "violation rate, end", lower, 1),
        "(a) return, end": (meta, baselines, "return, end", lower, -1),
        "(b) α, last, Eq. 14": (meta, baselines[:1], "α, last", lower, 1),
        "(b) α, last, Eq. 16": (nonlinear, baselines[:1], "α, last", lower, 1),
        "(d) Eq. 14: violations, whole run": (meta, [nonlinear], "violations, whole run", fewer, 1),
        "(d) Eq. 14: violation rate, end": (meta, [nonlinear], "violation rate, end", lower, 1),
        "(d) Eq. 14: return, end": (meta, [nonlinear], "return, end", lower, -1),
    }
    rows = {
        "(c) ε ends at (and is within 0.05 of it from step), Eq. 14": lambda e: ends(e, meta),
        "(c) the same, Eq. 16": lambda e: ends(e, nonlinear),
        "violations in the first half, Eq. 14": lambda e: each(e, meta, half),
        "those, SACv2-Lag": lambda e: each(e, "sacv2-lag", half),
        "ν, last, Eq. 14": lambda e: each(e, meta, nu),
        "α, last, Eq. 14": lambda e: each(e, meta, alpha),
        "α, last, Eq. 16": lambda e: each(e, nonlinear, alpha),
        "α, last, SACv2-Lag": lambda e: each(e, "sacv2-lag", alpha),
        "norms of g_r and of ν' g_c, end, Eq. 14": lambda e: each(e, meta, *norms),
        "those norms, SACv2-Lag": lambda e: each(e, "sacv2-lag", *norms),
        "E[Q_r] promised at initial states / what comes, Eq. 14": lambda e: each(e, meta, *of_r),
        "both, SACv2-Lag": lambda e: each(e, "sacv2-lag", *of_r),
        "E[Q_c] promised at initial states / what comes, Eq. 14": lambda e: each(e, meta, *of_c),
        "both of Q_c, SACv2-Lag": lambda e: each(e, "sacv2-lag", *of_c),
        "RCPO-SACv2: violation rate, end": lambda e: each(e, "rcpo-sacv2", rate),
        "RCPO-SACv2: steps an episode, end": lambda e: each(e, "rcpo-sacv2", steps),
        "RCPO-MetaSAC: violation rate, end": lambda e: each(e, "rcpo-metasac", rate),
        "RCPO-MetaSAC: steps an episode, end": lambda e: each(e, "rcpo-metasac", steps),
    }

    def ends(env_id, algo):
        found = [settles(curves) for curves in runs.get((env_id, algo), {}).values()]
        return ", ".join(f"{epsilon:.2f} ({step:,.0f})" for step, epsilon in found)

    def each(env_id, algo, *measures):
        found = [[measure(curves) for measure in measures] for curves in runs.get((env_id, algo), {}).values()]
        return ", ".join(" / ".join(f"{value:.3g}" for value in values) for values in found)

    env_ids = list(dict.fromkeys(env_id for env_id, algo in runs if algo == meta))
    lines = [f"| Meta SAC-Lag's seeds | {' | '.join(env_ids)} | p |", "|---" * (len(env_ids) + 2) + "|"]
    for name, (one, others, measure, words, sign) in compared.items():
        cells = [compare(env_id, one, others, measure, *words) for env_id in env_ids]
        p = f"{p_value(runs, measure, one, others[0], sign):.2g}" if any(cells) else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {p} |")
    cells = {name: " | ".join(map(row, env_ids)) for name, row in rows.items()}
    return "\n".join(lines + [f"| {name} | {of} | |" for name, of in cells.items() if of.strip(" |")])


def main(folders: tuple[Path, ...] = (), table: bool = False):
    """Draws what a sweep's runs are of, figure_2.png and threshold.png, figure_3.png, robustness.png: of
    experiments/results/NAME to experiments/images/NAME_*.png, of any other folder into it.

    Args:
        folders: sweeps' folders; none: those in experiments/results and in ./sweeps
        table: print the tables of results instead
    """
    results = HERE / "results"
    named = [folder for folder in folders if not list(folder.glob("*.csv"))]
    if named:
        sys.exit(f"error: there is no CSV in {named[0]}; experiments/sweep.py writes them")
    # SUITE_PROTOCOL: results/threshold is of threshold.py
    for folder in folders or sorted([*results.glob("*_*/"), *Path("sweeps").glob("*/")]):
        runs = read(folder)
        compared = {pair: of for pair, of in runs.items() if pair[0] not in SETTINGS and pair[1] in NAMES}
        if not any(algo in LABELS for _, algo in compared):
            compared = {}
        controls = {pair: of_seeds for pair, of_seeds in runs.items() if pair[1] in CONTROLS}
        of_grid = {pair: of_seeds for pair, of_seeds in runs.items() if "@" in pair[1]}
        of_arms = {pair: of_seeds for pair, of_seeds in runs.items() if "twin/jerk" in next(iter(of_seeds.values()))}
        prefix = f"{HERE / 'images' / folder.name}_" if folder.resolve().parent == results else f"{folder}/"
        figures = [(figure_2, compared, "figure_2"), (figure_threshold, compared, "threshold")] if compared else []
        if of_arms:
            figures.append((figure_3, of_arms, "figure_3"))
        if all(any(f"{algo}@" in name for _, name in of_grid) for algo in ("meta-sac-lag", "sacv2-lag")):
            figures.append((figure_robustness, of_grid, "robustness"))
        if any(map(reliability, runs.values())):
            figures.append((figure_reliability, runs, "reliability"))
        if folders and not (compared or controls or of_arms or of_grid if table else figures):
            print(f"note: nothing in {folder} is enough for a {'table' if table else 'figure'}", file=sys.stderr)
        if table:
            if compared:
                print(f"{folder}\n\n{results_table(compared, TASKS)}\n\n{claims_table(compared)}\n")
            for of, measures in ((controls, TASKS), (of_arms, DEPLOYED), (of_grid, STARTED)):
                if of:
                    print(f"{folder}\n\n{results_table(of, measures)}\n")
            continue
        for figure, of, name in figures:
            figure(of, f"{prefix}{name}.png")
            print(f"{prefix}{name}.png")


if __name__ == "__main__":
    tyro.cli(main)
