"""What epsilon does, on a problem whose critics are known exactly: the constrained choice of one number.

    python experiments/threshold_toy.py          # simulates (four minutes), to results/threshold_toy.csv, and draws
    python experiments/threshold_toy.py figure   # draws images/threshold_toy_*.png from it (pip install matplotlib)

One state, one action a in [-1, 1]. Q_r(a) = -10 (a - 0.8)^2 + offset and Q_c(a) = sigmoid(8 (a - 0.2)): what pays is
not safe. The policy is meta_sac_lag.py's, with two parameters instead of a network. Lines 15 to 20 of Algorithm 1 run
as in meta_sac_lag.py, for all settings side by side (a test compares them with the script's own block, to 1e-9), and
expectations are exact too: instead of random noise, 32 quantiles of the normal distribution.
"""

import csv
import itertools
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from meta_sac_lag import rmsprop

HERE = Path(__file__).parent
NU_INIT = (3.0, 10.0, 30.0, 100.0)
NU_LR = ("3e-4", "1e-3 nu_0")
OFFSETS = {"negative": 0.0, "positive": 40.0}  # Q_r in [-32.4, 0] or [7.6, 40]
NOISE = torch.distributions.Normal(0, 1).icdf((torch.arange(32, dtype=torch.float64) + 0.5) / 32)


def all_settings():
    """Every combination; the linear objective without other rewards, since a constant has no gradient."""
    objectives = (("linear", "negative"), ("nonlinear", "negative"), ("nonlinear", "positive"))
    product = itertools.product(("ascent", "descent"), NU_LR, objectives, (True, False), NU_INIT)
    names = ("epsilon_step", "nu_lr", "epsilon_objective", "rewards", "alpha_through_epsilon", "nu_init")
    return [dict(zip(names, (step, nu_lr, *objective, through, nu))) for step, nu_lr, objective, through, nu in product]


def policy(mean, x):
    """The parameters, (settings,) each -> actions and log pi (settings, 32), and deterministic actions (settings, 1)"""
    log_std = (-5 + 3.5 * (torch.tanh(x) + 1))[:, None]
    u = mean[:, None] + log_std.exp() * NOISE
    log_normal = -0.5 * NOISE.square() - log_std - 0.5 * math.log(2 * math.pi)
    return torch.tanh(u), log_normal - 2 * (math.log(2) - u - F.softplus(-2 * u)), torch.tanh(mean)[:, None]


def q_r(a, offset):
    return -10 * (a - 0.8).square() + offset


def q_c(a):
    return torch.sigmoid(8 * (a - 0.2))


def simulate(settings, updates, every=500, policy_lr=3e-4, epsilon_lr=3e-4, alpha_lr=3e-4, alpha_init=1.0):
    """A list of settings as in `all_settings` -> {curve: (records, settings)}, the state before every `every`th update.

    The curves: update, nu, epsilon, alpha, qc = E[Q_c], qr = E[Q_r], nu_star, and the policy's parameters mean and x.
    """

    def per_setting(f):
        return torch.tensor([f(setting) for setting in settings], dtype=torch.float64)

    nu = per_setting(lambda s: s["nu_init"])
    nu_lr = per_setting(lambda s: 3e-4 if s["nu_lr"] == "3e-4" else 1e-3 * s["nu_init"])
    sign = per_setting(lambda s: 1 if s["epsilon_step"] == "ascent" else -1)
    linear = per_setting(lambda s: s["epsilon_objective"] == "linear").bool()
    through = per_setting(lambda s: s["alpha_through_epsilon"])
    offset = per_setting(lambda s: OFFSETS[s["rewards"]])[:, None]
    phi = [torch.zeros_like(nu), torch.zeros_like(nu)]
    epsilon, log_alpha = torch.ones_like(nu), torch.full_like(nu, math.log(alpha_init)).requires_grad_()
    adam = torch.optim.Adam([log_alpha], lr=alpha_lr)
    nu_square, epsilon_square, phi_square = torch.zeros_like(nu), torch.zeros_like(nu), [torch.zeros_like(nu)] * 2
    curves = {}
    for update in range(updates + 1):
        phi = [p.detach().requires_grad_() for p in phi]
        epsilon, alpha = epsilon.detach().requires_grad_(), log_alpha.exp()
        action, log_pi, _ = policy(*phi)
        J_r, J_h, J_c = q_r(action, offset).mean(1), log_pi.mean(1), q_c(action).mean(1)
        # Settings do not touch each other: the gradient of a sum over them holds each one's own gradient.
        g_r, g_h, g_c = (torch.autograd.grad(J.sum(), phi, retain_graph=True) for J in (J_r, J_h, J_c))
        if update % every == 0:
            D = [(v + 1e-12).rsqrt() for v in phi_square]
            nu_star = sum(r * d * c for r, d, c in zip(g_r, D, g_c)) / sum(c * d * c for d, c in zip(D, g_c))
            now = dict(update=torch.full_like(nu, update), nu=nu, epsilon=epsilon, alpha=alpha, qc=J_c, qr=J_r)
            for name, value in (now | dict(nu_star=nu_star, mean=phi[0], x=phi[1])).items():
                curves.setdefault(name, []).append(value.detach().clone())
        # lines 15 and 16
        nu_new, nu_square = rmsprop(nu, J_c.detach() - epsilon, nu_square, nu_lr, 1e-20)
        phi_new = []
        for i in range(2):
            dL_dphi = g_r[i] - alpha * g_h[i] - nu_new * g_c[i]
            p, phi_square[i] = rmsprop(phi[i].detach(), dL_dphi, phi_square[i], policy_lr, 1e-12)
            phi_new.append(p)
        # line 18
        action, _, action_det = policy(*phi_new)
        r, c = q_r(action, offset), q_c(action)
        eq_14, eq_16 = nu_new.detach()[:, None] * c - r, torch.where(r < 0, r * c, r * (1 - c))
        J_epsilon = torch.where(linear[:, None], eq_14, eq_16).mean(1)
        (grad_epsilon,) = torch.autograd.grad(J_epsilon.sum(), epsilon, create_graph=True)
        epsilon_new, epsilon_square = rmsprop(epsilon.detach(), sign * grad_epsilon, epsilon_square, epsilon_lr, 1e-20)
        # line 19
        r, c = q_r(action_det, offset).squeeze(1), q_c(action_det).squeeze(1)
        J_alpha = r - nu_new * (c - epsilon_new.detach())
        (direct,) = torch.autograd.grad(J_alpha.sum(), alpha, retain_graph=True)
        (via_epsilon,) = torch.autograd.grad((nu_new.detach() * epsilon_new).sum(), alpha)
        log_alpha.grad = -alpha.detach() * (direct + through * via_epsilon)
        adam.step()
        # line 20
        nu, phi, epsilon = nu_new.detach().clamp(min=0), phi_new, epsilon_new.clamp(0, 1)
        nu_square, epsilon_square = nu_square.detach(), epsilon_square.detach()
        phi_square = [v.detach() for v in phi_square]
        with torch.no_grad():
            log_alpha.clamp_(max=0)
    return {name: torch.stack(values) for name, values in curves.items()}


def figure(name, rows, columns):
    """columns: {title: {name: value} that its settings have}; one curve for each initial nu."""
    import matplotlib.pyplot as plt

    curves = {"epsilon": "ε", "nu": "ν", "qc": "E[Q_c]", "alpha": "α"}
    fig, axes = plt.subplots(4, len(columns), figsize=(3 * len(columns), 8), sharex=True, sharey="row", squeeze=False)
    for column, (title, chosen) in zip(axes.T, columns.items()):
        column[0].set_title(title, fontsize=10)
        for ax, (curve, label) in zip(column, curves.items()):
            for nu_init in NU_INIT:
                own = [r for r in rows if all(r[k] == str(v) for k, v in (chosen | {"nu_init": nu_init}).items())]
                x, y = ([float(r[key]) for r in own] for key in ("update", curve))
                ax.plot([u / 1000 for u in x], y, label=f"ν₀ = {nu_init:g}")
            ax.set_yscale("symlog" if curve == "nu" else "linear")
            ax.set_ylabel(label if ax in axes[:, 0] else "")
            ax.grid(alpha=0.3)
        column[-1].set_xlabel("thousand updates")
    axes[0, 0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(HERE / "images" / f"{name}.png", dpi=80)


if __name__ == "__main__":
    path = HERE / "results" / "threshold_toy.csv"
    if sys.argv[1:] not in ([], ["figure"]):
        sys.exit(__doc__)
    if not sys.argv[1:]:
        settings = all_settings()
        curves = simulate(settings, updates=60_000, every=1000)
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            names = ("update", "nu", "nu_star", "epsilon", "qc", "alpha", "qr")
            writer.writerow([*settings[0], *names])
            for i, setting in enumerate(settings):
                for record in range(len(curves["nu"])):
                    writer.writerow([*setting.values(), *(f"{curves[name][record, i].item():.5g}" for name in names)])
    with open(path) as file:
        rows = list(csv.DictReader(file))
    figure("threshold_toy_linear", rows, {
        f"{step}, ν at {nu_lr.replace('nu_0', 'ν₀')}": dict(
            epsilon_step=step, nu_lr=nu_lr, epsilon_objective="linear", alpha_through_epsilon=True
        ) for step in ("ascent", "descent") for nu_lr in NU_LR
    })
    figure("threshold_toy_nonlinear", rows, {
        f"Q_r {'<' if rewards == 'negative' else '>'} 0, {step}": dict(
            epsilon_step=step, nu_lr=NU_LR[1], epsilon_objective="nonlinear", rewards=rewards,
            alpha_through_epsilon=True,
        ) for rewards in OFFSETS for step in ("ascent", "descent")
    })
