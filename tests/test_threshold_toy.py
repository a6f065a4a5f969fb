"""experiments/threshold_toy.py, whose critics are exact, against the script's own block and against the closed form."""

import csv
import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_mathematics import BLOCK, USED, float64  # noqa: F401

from meta_sac_lag import Args, flat

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
sys.path.append(str(EXPERIMENTS))
import threshold_toy as toy


class Policy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.x = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))

    def forward(self, obs, log_pi=True):
        action, log_pi, action_det = toy.policy(self.mean[None], self.x[None])
        return action.T, log_pi[0], action_det.T


class Exact(torch.nn.Module):
    """A critic that is known: both twins are, and its one weight, which the block's optimizer steps, is unused."""

    def __init__(self, value):
        super().__init__()
        self.value, self.unused = value, torch.nn.Parameter(torch.zeros(()))

    def forward(self, obs, action):
        return self.value(action).squeeze(-1).expand(2, -1) + 0 * self.unused


def run_block(setting, updates):
    """The script's lines 12-20 on the toy -> the toy's curves at the end."""
    zeros = torch.zeros(32, 1)
    batch = SimpleNamespace(obs=zeros, next_obs=zeros, action=zeros, reward=zeros[:, 0], cost=zeros[:, 0])
    batch.terminated = batch.cost + 1
    buffer = SimpleNamespace(sample=lambda *_: batch)
    flags = {key: setting[key] for key in ("epsilon_step", "epsilon_objective", "alpha_through_epsilon", "nu_init")}
    nu_lr = 3e-4 if setting["nu_lr"] == "3e-4" else 1e-3 * setting["nu_init"]
    args = Args(**flags, nu_lr=nu_lr, batch_size=32, reward_scale=1.0, reward_shift=0.0)
    qr, qr_target = (Exact(lambda a: toy.q_r(a, toy.OFFSETS[setting["rewards"]])) for _ in range(2))
    qc, qc_target = (Exact(toy.q_c) for _ in range(2))
    actor, log_alpha = Policy(), torch.tensor(0.0, requires_grad=True)
    phi = flat(actor.parameters()).detach()
    torch.nn.utils.vector_to_parameters(phi, actor.parameters())
    names = USED | dict(
        args=args, actor=actor, phi=phi, qr=qr, qr_target=qr_target, qc=qc, qc_target=qc_target, D=buffer, D_s=buffer,
        D_0=buffer, qr_optimizer=torch.optim.Adam(qr.parameters()), qc_optimizer=torch.optim.Adam(qc.parameters()),
        nu=torch.tensor(args.nu_init), epsilon=torch.tensor(1.0, requires_grad=True), log_alpha=log_alpha,
        alpha_optimizer=torch.optim.Adam([log_alpha], lr=args.alpha_lr), nu_square=torch.zeros(()),
        epsilon_square=torch.zeros(()), phi_square=torch.zeros(2),
    )  # fmt: skip
    for _ in range(updates):
        exec(BLOCK, names)
    return {key: names[key].item() for key in ("nu", "epsilon")} | {
        "alpha": names["log_alpha"].exp().item(), "mean": actor.mean.item(), "x": actor.x.item()
    }


def test_the_toy_runs_the_scripts_own_update():
    settings = [s for s in toy.all_settings() if s["nu_init"] == 10.0]
    curves = toy.simulate(settings, updates=30, every=30)
    for i, setting in enumerate(settings):
        for name, value in run_block(setting, 30).items():
            assert curves[name][-1, i].item() == pytest.approx(value, rel=1e-9, abs=1e-12), (setting, name)


def test_epsilon_moves_as_the_sign_of_nu_minus_nu_star():
    """The README's closed form: with Eq. 14 and ascent epsilon rises where nu > nu* and falls where nu < nu*."""
    settings = [
        dict(epsilon_step=step, nu_lr="3e-4", epsilon_objective="linear", rewards="negative",
             alpha_through_epsilon=True, nu_init=nu)
        for step, nu in itertools.product(("ascent", "descent"), (5.0, 9.0, 30.0))
    ]
    curves = toy.simulate(settings, updates=4000, every=1)
    rises = (curves["epsilon"].diff(dim=0) > 0)[:-1]
    inside = ((curves["epsilon"] > 0.01) & (curves["epsilon"] < 0.99))[:-2]
    gap = (curves["nu"] - curves["nu_star"])[:-2]
    clear = inside & (gap.abs() > 1)  # near the balance, phi's own step in between changes the sign
    ascends = torch.tensor([setting["epsilon_step"] == "ascent" for setting in settings])
    assert clear.sum() > 1000
    assert (rises == ((gap > 0) == ascends))[clear].double().mean() > 0.95
    assert math.isfinite(gap.sum())


def test_the_committed_curves_are_this_scripts():
    with open(EXPERIMENTS / "results" / "threshold_toy.csv") as file:
        rows = list(csv.DictReader(file))
    settings = toy.all_settings()
    assert len(rows) == 61 * len(settings)
    chosen = settings[::17]
    curves = toy.simulate(chosen, updates=2000, every=1000)
    for i, setting in enumerate(chosen):
        own = [r for r in rows if all(r[k] == str(v) for k, v in setting.items())]
        for record in range(3):
            for name in ("nu", "epsilon", "alpha", "qc"):
                assert curves[name][record, i].item() == pytest.approx(float(own[record][name]), rel=1e-3, abs=1e-5)
