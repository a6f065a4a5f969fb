"""The mathematics of sac_lag_baselines.py, executed from the block that is cut out of it, as in test_mathematics.py."""

import math
import textwrap

import numpy as np
import pytest
import test_mathematics as of_the_method
import torch
from helpers import ROOT
from test_mathematics import close, execute, five_point, flat, float64  # noqa: F401
from torch.func import functional_call

import sac_lag_baselines

SCRIPT = (ROOT / "sac_lag_baselines.py").read_text()
BLOCK = SCRIPT.split("# >>> Algorithm 1, lines 12 to 20\n")[1].split("# <<< Algorithm 1, lines 12 to 20")[0]
BLOCK = compile(textwrap.dedent(BLOCK), "sac_lag_baselines.py, lines 12 to 20", "exec")
ALGORITHMS = ["sacv2-lag", "rcpo-sacv2", "rcpo-metasac"]


@pytest.fixture(autouse=True)
def the_baselines_block(monkeypatch):
    monkeypatch.setattr(of_the_method, "BLOCK", BLOCK)
    monkeypatch.setattr(of_the_method, "Args", sac_lag_baselines.Args)


def make_state(**flags):
    state = of_the_method.make_state(**flags)
    del state["epsilon_square"]
    return state | dict(action_dim=of_the_method.ACTION_DIM)


def warm(updates=20, **flags):
    state = make_state(**flags)
    for i in range(updates):
        state = of_the_method.after(execute(state, seed=100 + i), state)
    for optimizer in (state["qr_optimizer"], state["qc_optimizer"]):
        optimizer.param_groups[0]["lr"] = 0.0
    return state


def spread(state, log_std):
    """Gives the policy one standard deviation everywhere, and so an entropy."""
    with torch.no_grad():
        last = state["actor"].net[-1]
        last.weight.zero_()
        last.bias.zero_()
        last.bias[of_the_method.ACTION_DIM:] = math.atanh((log_std + 5) / 3.5 - 1)
    return state


@pytest.mark.parametrize("algo", ["sacv2-lag", "rcpo-sacv2"])
@pytest.mark.parametrize("log_std, direction", [(-4.0, 1), (-0.5, -1)])
def test_alpha_keeps_the_entropy_at_its_target(algo, log_std, direction):
    """SACv2: alpha rises where the entropy is below -dim(A), falls above it. 2 dimensions, nearly Gaussian."""
    state = spread(make_state(algo=algo), log_std)
    names = execute(state)
    entropy = -names["J_h"].item()
    assert (entropy < -of_the_method.ACTION_DIM) == (direction == 1)
    assert torch.sign(names["log_alpha"] - state["log_alpha"]) == direction
    close(names["log_alpha"].grad.item(), -names["alpha"].item() * (-entropy - of_the_method.ACTION_DIM), 1e-12)


def test_alpha_may_pass_1_where_the_entropy_asks_for_it():
    state = spread(make_state(algo="sacv2-lag", alpha_init=1.0), -4.0)
    assert execute(state)["log_alpha"] > 0


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_policys_gradient(algo):
    """SACv2-Lag: Eq. 11's at nu'. RCPO: of E[Q_hat - alpha log pi], nu Q_c being in Q_hat."""
    state = warm(algo=algo)
    names = execute(state)
    torch.manual_seed(1)
    actor, obs = state["actor"], names["B"].obs
    actor(names["B_c"].next_obs), actor(names["B"].next_obs)
    action, log_pi, _ = actor(obs)
    L = state["qr"](obs, action).amin(0) - state["log_alpha"].exp() * log_pi
    if algo == "sacv2-lag":
        L = L - names["nu_new"] * (state["qc"](obs, action).amax(0) - state["epsilon"])
    phi, gradient = flat(state["phi"].values()), flat(torch.autograd.grad(L.mean(), state["phi"].values()))
    stepped, _ = sac_lag_baselines.rmsprop(phi, gradient, state["phi_square"], 3e-4, 0.99, 1e-12)
    torch.testing.assert_close(flat(names["phi"].values()), stepped, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_critics_target(algo):
    """RCPO's is SAC's minus nu Q_c(s, a); on the same state and noise the two differ by exactly that."""
    state = warm(algo=algo, reward_scale=3.0)
    names = execute(state)
    B, args = names["B"], state["args"]
    torch.manual_seed(1)
    state["actor"](names["B_c"].next_obs)
    next_action, next_log_pi, _ = state["actor"](B.next_obs)
    next_v = state["qr_target"](B.next_obs, next_action).amin(0) - state["log_alpha"].exp() * next_log_pi
    expected = 3.0 * B.reward + (1 - B.terminated) * args.gamma_r * next_v
    if algo != "sacv2-lag":
        expected = expected - state["nu"] * state["qc"](B.obs, B.action).amax(0)
    torch.testing.assert_close(names["target_r"], expected, rtol=1e-12, atol=1e-12)
    assert not names["target_r"].requires_grad


def test_the_metagradient_of_alpha():
    """RCPO-MetaSAC, against finite differences of the whole update: J_alpha = E[Q_hat(s_0, pi_det')] by alpha."""
    state = warm(algo="rcpo-metasac")
    state["args"].policy_lr = 0.05
    names, alpha = execute(state), state["log_alpha"].exp().item()

    def J_alpha(value):
        return execute(state, log_alpha=math.log(value))["J_alpha"].item()

    assert abs(names["grad_alpha"]) > 1e-6
    close(names["grad_alpha"].item(), five_point(J_alpha, alpha, 3e-4), 1e-6)
    close(names["log_alpha"].grad.item(), -alpha * names["grad_alpha"].item(), 1e-12)
    state["alpha_optimizer"] = torch.optim.Adam([state["log_alpha"]], lr=0.01)
    step = execute(state)["log_alpha"] - state["log_alpha"]
    assert torch.sign(step) == torch.sign(names["grad_alpha"])  # it ascends
    # what is ascended: E[min Q_hat(s_0, tanh(mean))] at phi', s_0 from D_0
    obs_0 = names["S_0"].obs
    assert all(any(np.allclose(row, obs) for obs in state["D_0"].rows["obs"]) for row in obs_0)
    mean = functional_call(state["actor"], names["phi"], (obs_0,))[2]
    close(names["J_alpha"].item(), state["qr"](obs_0, mean).min(0).values.mean().item(), 1e-12)


def test_the_metagradient_keeps_alpha_below_1():
    state = make_state(algo="rcpo-metasac", alpha_init=1.0, alpha_lr=0.1)
    assert all(execute(state, seed=seed)["log_alpha"] <= 0 for seed in range(4))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_nu_follows_the_constraint_and_stops_at_0(algo):
    for epsilon in (0.05, 0.95):
        state = make_state(algo=algo, epsilon_init=epsilon)
        names = execute(state)
        assert torch.sign(names["nu"] - state["nu"]) == torch.sign(names["J_c"] - epsilon) != 0
        assert names["epsilon"] == epsilon
    state = make_state(algo=algo, epsilon_init=0.95, nu_init=1e-5, nu_lr=0.1)
    assert execute(state)["nu"] == 0
