"""The mathematics of sac_lag_baselines.py, executed from the block that is cut out of it, as in test_mathematics.py."""

import math

import pytest
import test_mathematics as of_the_method
import torch
from test_mathematics import adaptive_step, close, cut, drawn, execute, five_point, flat, float64  # noqa: F401
from test_mathematics import test_critic_targets_on_a_hand_made_batch, test_target_critics_follow_slowly  # noqa: F401
from torch.func import functional_call

import sac_lag_baselines

BLOCK = compile(cut(sac_lag_baselines.__file__), "sac_lag_baselines.py, lines 12 to 20", "exec")
ALGORITHMS = ["sacv2-lag", "rcpo-sacv2", "rcpo-metasac"]
make_state_of_the_method = of_the_method.make_state


@pytest.fixture(autouse=True)
def the_baselines_own(monkeypatch):
    """Block, flags, networks and functions, for the tests that are imported too."""
    for name in ("Args", "Actor", "TwinCritic", "ReplayBuffer"):
        monkeypatch.setattr(of_the_method, name, getattr(sac_lag_baselines, name))
    for name in ("rmsprop", "flat", "unflat"):
        monkeypatch.setitem(of_the_method.USED, name, getattr(sac_lag_baselines, name))
    monkeypatch.setattr(of_the_method, "BLOCK", BLOCK)
    monkeypatch.setattr(of_the_method, "make_state", make_state)


def make_state(**flags):
    state = make_state_of_the_method(**flags)
    del state["epsilon_square"]
    return state | dict(epsilon=state["epsilon"].detach())


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
    """SACv2-Lag: Eq. 11's at nu'. RCPO: of E[Q_hat - alpha log pi], nu Q_c being in Q_hat. RMSProp written out."""
    state = warm(algo=algo)
    names = execute(state)
    _, _, B, _, (action, log_pi, _) = drawn(state)
    obs = B.obs
    L = state["qr"](obs, action).amin(0) - state["log_alpha"].exp() * log_pi
    if algo == "sacv2-lag":
        L = L - names["nu_new"] * (state["qc"](obs, action).amax(0) - state["epsilon"])
    gradient = flat(torch.autograd.grad(L.mean(), tuple(state["actor"].parameters())))
    step, _, _ = adaptive_step(state["args"].policy_lr, gradient, state["phi_square"], 1e-12)
    torch.testing.assert_close(names["phi"], state["phi"] + step, rtol=1e-9, atol=1e-14)
    square = 0.99 * state["phi_square"] + 0.01 * gradient**2
    torch.testing.assert_close(names["phi_square"], square, rtol=1e-9, atol=0)
    assert torch.equal(names["phi"], flat(names["actor"].parameters()))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_critics_target(algo):
    """RCPO's is SAC's minus nu Q_c(s, a); on the same state and noise the two differ by exactly that."""
    state = warm(algo=algo, reward_scale=3.0, reward_shift=0.5, gamma_r=0.9)
    names = execute(state)
    _, _, B, (next_action, next_log_pi, _), _ = drawn(state)
    next_v = state["qr_target"](B.next_obs, next_action).amin(0) - state["log_alpha"].exp() * next_log_pi
    expected = 3.0 * (B.reward + 0.5) + (1 - B.terminated) * 0.9 * next_v
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
    close(names["grad_alpha"].item(), five_point(J_alpha, alpha, 3e-5), 1e-6)
    close(names["log_alpha"].grad.item(), -alpha * names["grad_alpha"].item(), 1e-12)
    state["alpha_optimizer"] = torch.optim.Adam([state["log_alpha"]], lr=0.01)
    step = execute(state)["log_alpha"] - state["log_alpha"]
    assert torch.sign(step) == torch.sign(names["grad_alpha"])  # it ascends
    # what is ascended: E[min Q_hat(s_0, tanh(mean))] at phi', s_0 from D_0
    obs_0 = names["S_0"].obs
    assert (obs_0[:, None] == state["D_0"].rows["obs"]).all(-1).any(-1).all()
    mean = functional_call(state["actor"], sac_lag_baselines.unflat(names["phi"], state["actor"]), (obs_0,))[2]
    close(names["J_alpha"].item(), state["qr"](obs_0, mean).min(0).values.mean().item(), 1e-12)


def test_the_metagradient_keeps_alpha_below_1():
    state = make_state(algo="rcpo-metasac", alpha_init=1.0, alpha_lr=0.1)
    assert all(execute(state, seed=seed)["log_alpha"] <= 0 for seed in range(4))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_nu_follows_the_constraint_and_stops_at_0(algo):
    state = warm(algo=algo)
    names = execute(state)
    step, _, _ = adaptive_step(3e-4, names["J_c"].item() - state["epsilon"], state["nu_square"], 1e-20)
    close((names["nu"] - state["nu"]).item(), step.item(), 1e-9)
    for epsilon in (0.05, 0.95):
        state = make_state(algo=algo, epsilon_init=epsilon)
        names = execute(state)
        assert torch.sign(names["nu"] - state["nu"]) == torch.sign(names["J_c"] - epsilon) != 0
        assert names["epsilon"] == epsilon
    state = make_state(algo=algo, epsilon_init=0.95, nu_init=1e-5, nu_lr=0.1)
    assert execute(state)["nu"] == 0


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_what_lives_on_is_written_in_place(algo):
    state = warm(algo=algo)
    names = of_the_method.copied(state) | of_the_method.USED
    held = {name: names[name] for name in "nu log_alpha phi nu_square phi_square".split()}
    exec(BLOCK, names)
    for name, tensor in held.items():
        assert names[name] is tensor and tensor.is_leaf and not torch.equal(tensor, state[name]), name
    assert torch.equal(names["epsilon"], state["epsilon"])
