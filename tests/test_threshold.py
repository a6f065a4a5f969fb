"""experiments/threshold.py: the README's table, that its means are over episodes, and what `alpha_parts` finds."""

import sys

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch.func import functional_call
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(ROOT / "experiments"))
import threshold

from meta_sac_lag import Actor, TwinCritic, flat, unflat


def test_the_table_in_docs_is_what_the_csvs_say():
    expected = threshold.table()
    assert (ROOT / "docs" / "tables" / "threshold.md").read_text() == expected + "\n"
    assert expected.count("\n") == 21 and "| CarCircle2 | nonlinear, fast | 40, 35 |" in expected


def test_means_are_over_episodes_not_windows():
    """Of 20 episodes that violate after 50 steps each, and 2 of 500 steps that do not, ten elevenths violate."""
    curves = {
        "charts/violation": np.array([(1000.0, 1.0), (2000.0, 0.0)]),
        "charts/episodic_length": np.array([(1000.0, 50.0), (2000.0, 500.0)]),
        "charts/violations_total": np.array([(1000.0, 20.0), (2000.0, 20.0)]),
        "meta/nu_star": np.array([(1000.0 * i, x) for i, x in enumerate((0.0, 1.0, 100.0))]),
        "meta/nu": np.array([(1000.0 * i, x) for i, x in enumerate((0.0, 1.0, 5.0))]),
    }
    assert threshold.last(curves, "charts/violation") == pytest.approx(20 / 22)
    assert threshold.last(curves, "charts/violation", 1000) == 0
    assert threshold.last(curves, "charts/violations_total") == 20
    assert threshold.last(curves, "meta/nu_star") == 1 and threshold.last(curves, "meta/nu") == 2


@pytest.mark.parametrize("name", ["EggManipulate__ascent__1__17", "CarCircle2__meta_sac_lag__1__17", "x"])
def test_a_run_of_something_else(name):
    with pytest.raises(SystemExit, match="error: .* is no run of these"):
        threshold.to_csv(f"runs/{name}")


def a_checkpoint(run_dir):
    """-> what is in it, and its networks"""
    torch.manual_seed(7)
    sizes = dict(obs_dim=3, action_dim=2, hidden_size=8)
    actor, qr = Actor(**sizes), TwinCritic(**sizes, probability=False)
    qc = TwinCritic(**sizes, probability=True)
    nets = dict(actor=actor, qr=qr, qc=qc)
    phi = flat(actor.parameters()).detach()
    torch.nn.utils.vector_to_parameters(phi, actor.parameters())  # the script's are views, too
    saved = dict(
        sizes=sizes, args=dict(batch_size=5, policy_lr=3e-4),
        parts={name: net.state_dict() for name, net in nets.items()}
        | {name: {"added": n, "obs": torch.randn(n, 3)} for name, n in (("D", 40), ("D_0", 10))},
        tensors=dict(
            nu=torch.tensor(3.0), log_alpha=torch.tensor(-0.7, requires_grad=True), phi_square=torch.rand_like(phi)
        ),
    )  # fmt: skip
    torch.save(saved, run_dir / "checkpoint.pt")
    return saved, *nets.values()


def test_what_alphas_metagradient_is_made_of(tmp_path):
    """Against the derivative, by autograd, of J_alpha at phi - alpha P g_h for alpha = 0, with the same draws."""
    saved, actor, qr, qc = a_checkpoint(tmp_path)
    found = threshold.alpha_parts(tmp_path, batches=1)
    tensors, phi = saved["tensors"], flat(actor.parameters()).detach()
    P = 3e-4 * (tensors["phi_square"] + 1e-12).rsqrt()
    torch.manual_seed(0)
    B, S_0 = (saved["parts"][pool]["obs"][torch.randint(n, (5,))] for pool, n in (("D", 40), ("D_0", 10)))
    g_h = flat(torch.autograd.grad(actor(B)[1].mean(), tuple(actor.parameters())))
    draws = torch.get_rng_state()

    def slope(stochastic, rows=slice(None)):
        """`rows`: of the policy's parameters, those that move"""
        moves, alpha = torch.zeros_like(phi), torch.zeros((), requires_grad=True)
        moves[rows] = 1.0
        torch.set_rng_state(draws)
        sampled, _, deterministic = functional_call(actor, unflat(phi - alpha * P * g_h * moves, actor), S_0)
        action = sampled if stochastic else deterministic
        J_alpha = (qr(S_0, action).amin(0) - tensors["nu"] * qc(S_0, action).amax(0)).mean()
        return torch.autograd.grad(J_alpha, alpha)[0].item()

    last_weight, last_bias = 2 * 2 * 8, 2 * 2  # rows of the mean first
    trunk = len(phi) - last_weight - last_bias
    mean = [*range(trunk, trunk + last_weight // 2), *range(trunk + last_weight, trunk + last_weight + last_bias // 2)]
    expected = dict(
        trunk=slope(False, slice(trunk)), mean=slope(False, mean), log_std=0.0, sum=slope(False),
        sum_if_stochastic=slope(True), at_rest=-tensors["log_alpha"].exp().item() * (g_h @ (P * g_h)).item(),
    )  # fmt: skip
    assert {name: both[0] for name, both in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert abs(expected["mean"]) > 1e-6 and abs(expected["sum"] - expected["sum_if_stochastic"]) > 1e-6
    assert all(std == 0 for _, std in found.values())  # of one batch


@pytest.mark.parametrize("again", ["", "-2", "-2-2"])  # runs that began in the same second
def test_the_csv_of_a_run(tmp_path, monkeypatch, again):
    run_dir = tmp_path / f"CarCircle2__ascent__3__1700000000{again}"
    writer = SummaryWriter(run_dir)
    for step, value, total in ((600, 1.0, 1), (1000, 0.0, 1), (1900, 1.0, 2)):
        writer.add_scalar("charts/violation", value, step)
        writer.add_scalar("charts/violations_total", total, step)
    writer.close()
    a_checkpoint(run_dir)
    (run_dir / "eval_2000.json").write_text('{"step": 2000, "mean": {"violation": 0.25}}')
    monkeypatch.setattr(threshold, "RESULTS", tmp_path / "results")
    threshold.to_csv(str(run_dir))
    curves = threshold.read("CarCircle2", "ascent", 3)
    assert curves["charts/violation"].tolist() == [[1000, 0.5], [2000, 1]]
    assert curves["charts/violations_total"].tolist() == [[1000, 1], [2000, 2]]
    assert curves["eval/violation"].tolist() == [[2000, 0.25]]
    parts = threshold.alpha_parts(run_dir)
    assert curves["alpha/sum_mean"][0, 1] == pytest.approx(parts["sum"][0], rel=1e-4)
    assert curves["alpha/at_rest_std"][0, 1] == pytest.approx(parts["at_rest"][1], rel=1e-4)
