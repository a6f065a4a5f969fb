"""Tests of the mathematics. They cut the block "Algorithm 1, lines 12 to 20" out of meta_sac_lag.py and execute that
very text on small float64 networks: what is tested is the code that runs, not a copy of it."""

import copy
import math
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.func import functional_call

import meta_sac_lag
from meta_sac_lag import Actor, Args, ReplayBuffer, TwinCritic, flat, rmsprop, unflat


def cut(path):
    text = Path(path).read_text().split("# >>> Algorithm 1, lines 12 to 20\n")[1]
    return textwrap.dedent(text.split("# <<< Algorithm 1, lines 12 to 20")[0])


def whole_graph(text):
    """The block with autograd_form.py in the place of its lines 15 to 19."""
    before, after = text.index("# Alg. 1, line 15"), text.index("# Alg. 1, line 20")
    return text[:before] + (Path(__file__).parent / "autograd_form.py").read_text() + text[after:]


TEXT = cut(meta_sac_lag.__file__)
BLOCK = compile(TEXT, "meta_sac_lag.py, lines 12 to 20", "exec")
AUTOGRAD = compile(whole_graph(TEXT), "meta_sac_lag.py with autograd_form.py", "exec")
BEFORE_LINE_15 = compile(TEXT[: TEXT.index("# Alg. 1, line 15")], "meta_sac_lag.py, lines 12 to 14", "exec")
USED = dict(torch=torch, functional_call=functional_call, rmsprop=rmsprop, flat=flat, unflat=unflat)
OBS_DIM, ACTION_DIM = 3, 2


def make_buffer(capacity, rng, **shapes):
    """The script's, in the default floating-point type (float64 here). What is read before it is written shows up."""
    buffer = ReplayBuffer(capacity, rng, "cpu", **shapes)
    dtype = torch.get_default_dtype()
    buffer.rows = {field: torch.full_like(rows, math.nan, dtype=dtype) for field, rows in buffer.rows.items()}
    return buffer


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def row(obs_dim=OBS_DIM, action_dim=ACTION_DIM):
    return dict(obs=(obs_dim,), action=(action_dim,), reward=(), cost=(), next_obs=(obs_dim,), terminated=())


def make_state(smooth=True, seed=0, obs_dim=OBS_DIM, action_dim=ACTION_DIM, fill=True, **flags):
    """The names that the block reads, as the script makes them, on small networks and random data."""
    torch.manual_seed(seed)
    rng, data = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    small = dict(
        batch_size=16, hidden_size=8, nu_init=2.0, epsilon_init=0.4, alpha_init=0.3, reward_scale=1.0, reward_shift=0.0
    )
    args = Args(**small | flags)
    actor = Actor(obs_dim, action_dim, args.hidden_size, rng)
    if smooth:  # a policy for finite differences
        actor.net[1], actor.net[3] = torch.nn.Softplus(), torch.nn.Softplus()
    phi = flat(actor.parameters()).detach()
    torch.nn.utils.vector_to_parameters(phi, actor.parameters())
    qr, qr_target = (TwinCritic(obs_dim, action_dim, args.hidden_size, probability=False) for _ in range(2))
    qc, qc_target = (TwinCritic(obs_dim, action_dim, args.hidden_size, probability=True) for _ in range(2))
    with torch.no_grad():  # the twins well apart, so that min and max switch nowhere
        for net in (qr, qr_target, qc, qc_target):
            net.bias_3[1] += 1.5
    epsilon = torch.tensor(args.epsilon_init, requires_grad=True)
    log_alpha = torch.tensor(math.log(args.alpha_init), requires_grad=True)
    D, D_s = (make_buffer(64, rng, **row(obs_dim, action_dim)) for _ in range(2))
    D_0 = make_buffer(64, rng, obs=(obs_dim,))
    for i in range(64 if fill else 0):
        D_0.add(obs=data.normal(size=obs_dim))
        cost, obs, next_obs = float(i % 5 == 0), data.normal(size=obs_dim), data.normal(size=obs_dim)
        action, terminated = data.uniform(-1, 1, action_dim), float(i % 5 == 0 or i % 7 == 0)
        transition = dict(obs=obs, action=action, reward=data.normal(), cost=cost, next_obs=next_obs)
        for buffer in (D, D_s) if cost else (D,):
            buffer.add(**transition, terminated=terminated)
    return dict(
        args=args, rng=rng, action_dim=action_dim, actor=actor, phi=phi,
        qr=qr, qr_target=qr_target, qc=qc, qc_target=qc_target,
        qr_optimizer=torch.optim.Adam(qr.parameters(), lr=args.q_lr),
        qc_optimizer=torch.optim.Adam(qc.parameters(), lr=args.q_lr),
        alpha_optimizer=torch.optim.Adam([log_alpha], lr=args.alpha_lr),
        nu=torch.tensor(args.nu_init), epsilon=epsilon, log_alpha=log_alpha,
        nu_square=torch.zeros(()), epsilon_square=torch.zeros(()), phi_square=torch.zeros_like(phi),
        D=D, D_s=D_s, D_0=D_0,
    )  # fmt: skip


def copied(state):
    names = copy.deepcopy(state)  # which takes the actor's parameters away from phi
    torch.nn.utils.vector_to_parameters(names["phi"], names["actor"].parameters())
    return names


def execute(state, seed=1, block=None, **values):
    """Executes the block on a copy of `state`; returns all its names afterwards. `values` set scalars of the copy."""
    names = copied(state)
    with torch.no_grad():
        for name, value in values.items():
            names[name].fill_(value)
    names["rng"].manual_seed(seed)
    names.update(USED)
    exec(block or BLOCK, names)
    return names


def drawn(state, seed=1):
    """Once more what `execute` draws until line 15, by the actor from before: B_c, actor(B_c.next_obs), and of B."""
    D, actor, size = state["D"], state["actor"], state["args"].batch_size
    state["rng"].manual_seed(seed)
    B_c = D.sample(size, state["D_s"])
    next_c = actor(B_c.next_obs)
    B = D.sample(size)
    return B_c, next_c, B, actor(B.next_obs), actor(B.obs)


def after(names, state):
    return {name: names[name] for name in state}


def warm_state(rates=None, **options):
    """Twenty updates at the real rates: every running mean of RMSProp has a history. Then `rates`, critics frozen."""
    state = make_state(**options)
    for i in range(20):
        state = after(execute(state, seed=100 + i), state)
    for name, rate in (rates or {}).items():
        setattr(state["args"], name, rate)
    for optimizer in (state["qr_optimizer"], state["qc_optimizer"]):
        optimizer.param_groups[0]["lr"] = 0.0  # the critics' own updates are no part of the metagradients
    return state


def five_point(function, x, h):
    return (function(x - 2 * h) - 8 * function(x - h) + 8 * function(x + h) - function(x + 2 * h)) / (12 * h)


def close(x, y, tolerance):
    assert x == pytest.approx(y, rel=tolerance, abs=0), f"{x} != {y}, relative {abs(x - y) / abs(y):.1e}"


VARIANTS = [(o, s) for o in ("linear", "nonlinear") for s in ("ascent", "descent")]
LARGE_RATES = dict(policy_lr=0.05, nu_lr=0.05, epsilon_lr=0.05)


@pytest.mark.parametrize("objective, sign", VARIANTS)
def test_metagradients_against_finite_differences(objective, sign):
    state = warm_state(LARGE_RATES, epsilon_objective=objective, epsilon_step=sign)
    names = execute(state)
    epsilon, alpha = state["epsilon"].item(), state["log_alpha"].exp().item()

    def J_epsilon(value):
        moved = execute(state, epsilon=value)
        if objective == "nonlinear":
            return moved["J_epsilon"].item()
        return (names["nu_new"] * moved["q_c"] - moved["q_r"]).mean().item()  # nu'_copy does not move with epsilon

    def J_alpha(value):
        return execute(state, log_alpha=math.log(value))["J_alpha"].item()

    close(names["grad_epsilon"].item(), five_point(J_epsilon, epsilon, 3e-3), 1e-6)
    close(names["grad_alpha"].item(), five_point(J_alpha, alpha, 3e-5), 1e-6)  # short: no kink of the critics in it


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("objective, sign", VARIANTS)
def test_metagradients_against_autograd_through_everything(objective, sign, smooth):
    """At the real rates, with the script's own ReLU too, all that line 20 commits."""
    state = warm_state(epsilon_objective=objective, epsilon_step=sign, smooth=smooth)
    names, reference = execute(state), execute(state, block=AUTOGRAD)
    for name in ("nu_new", "epsilon_new", "grad_epsilon", "grad_alpha_direct", "grad_alpha_via_epsilon", "J_alpha"):
        close(names[name].item(), reference[name].item(), 1e-9)
    for name in ("nu_square", "epsilon_square", "log_alpha"):
        close(names[name].item(), reference[name].item(), 1e-9)
    torch.testing.assert_close(names["phi"], reference["phi"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(names["phi_square"], reference["phi_square"], rtol=1e-9, atol=0)
    assert names["grad_alpha"] == names["grad_alpha_direct"] + names["grad_alpha_via_epsilon"]


@pytest.mark.parametrize("objective, sign", VARIANTS)
def test_a_hundred_updates_end_where_autograd_through_everything_ends(objective, sign):
    start = state = reference = make_state(smooth=False, epsilon_objective=objective, epsilon_step=sign)
    for i in range(100):
        state = after(execute(state, seed=i), state)
        reference = after(execute(reference, seed=i, block=AUTOGRAD), reference)
    for name in ("nu", "epsilon", "log_alpha"):
        assert state[name] != start[name]
        close(state[name].item(), reference[name].item(), 1e-6)
    assert (state["phi"] - reference["phi"]).norm() < 1e-6 * reference["phi"].norm()


def adaptive_step(beta, g, v, e, rho=0.99):
    """RMSProp's step up g, and its first and second derivative by g, in closed form; v' = rho v + (1 - rho) g^2."""
    kept, v_new = rho * v + e, rho * v + (1 - rho) * g**2
    first = beta * kept / (v_new + e) ** 1.5
    return beta * g / (v_new + e) ** 0.5, first, -3 * beta * (1 - rho) * g * kept / (v_new + e) ** 2.5


def closed_form(state):
    """Lines 15 to 19 by the chain rule: no autograd through any of RMSProp's steps.

    g = g_r - alpha g_h - nu' g_c. With D and D2 the step's two derivatives by g (phi's), H the Hessian of J_epsilon,

        dphi'/dalpha = -D g_h       dphi'/dnu' = -D g_c       dJ_epsilon/depsilon = <dJ_epsilon/dphi', -D g_c> dnu'/de
        d2J_epsilon/(depsilon dalpha) = (<H (D g_c), D g_h> + <dJ_epsilon/dphi', D2 g_h g_c>) dnu'/depsilon
    """
    n = SimpleNamespace(**execute(state, block=BEFORE_LINE_15))
    args, alpha, epsilon, sign = n.args, n.alpha.detach(), n.epsilon.detach(), 1 if "asc" in n.args.epsilon_step else -1

    step, by_gap, _ = adaptive_step(args.nu_lr, n.J_c.detach() - epsilon, n.nu_square, 1e-20)
    nu, dnu = n.nu + step, -by_gap
    step, D, D2 = adaptive_step(args.policy_lr, n.g_r - alpha * n.g_h - nu * n.g_c, n.phi_square, 1e-12)
    phi = (n.phi + step).requires_grad_()

    B_new = n.D.sample(args.batch_size)
    a = functional_call(n.actor, unflat(phi, n.actor), B_new.obs)[0]
    q_r, q_c = n.qr(B_new.obs, a).min(0).values, n.qc(B_new.obs, a).max(0).values
    J = (nu * q_c - q_r) if args.epsilon_objective == "linear" else torch.where(q_r < 0, q_r * q_c, q_r * (1 - q_c))
    (dJ,) = torch.autograd.grad(J.mean(), phi, create_graph=True)
    (H_D_g_c,) = torch.autograd.grad(dJ, phi, D * n.g_c)
    dJ = dJ.detach()
    grad_epsilon = dJ @ (-D * n.g_c) * dnu
    d2J = (H_D_g_c @ (D * n.g_h) + dJ @ (D2 * n.g_h * n.g_c)) * dnu
    step, depsilon, _ = adaptive_step(args.epsilon_lr, sign * grad_epsilon, n.epsilon_square, 1e-20)

    S_0 = n.D_0.sample(args.batch_size)
    a = functional_call(n.actor, unflat(phi, n.actor), S_0.obs)[2]
    q_r, q_c = n.qr(S_0.obs, a).min(0).values, n.qc(S_0.obs, a).max(0).values
    (dJ_alpha,) = torch.autograd.grad((q_r - nu * q_c).mean(), phi)
    direct, via = dJ_alpha @ (-D * n.g_h), nu * depsilon * sign * d2J
    return dict(
        nu_new=nu, phi_new=phi.detach(), epsilon_new=epsilon + step, grad_epsilon=grad_epsilon,
        J_alpha=(q_r - nu * (q_c - epsilon - step)).mean().detach(), grad_alpha_direct=direct,
        grad_alpha_via_epsilon=via, grad_alpha=direct + (via if args.alpha_through_epsilon else 0),
    )  # fmt: skip


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("objective, sign", VARIANTS)
def test_metagradients_against_the_closed_form(objective, sign, smooth):
    """At the real rates and at larger ones, from means of squares that grew up with them: where a gradient is far above
    its history, the derivatives are differences of nearly equal numbers, of which autograd keeps eight digits."""
    for rates in ({}, dict(policy_lr=3e-3, nu_lr=0.03, epsilon_lr=0.01)):
        state = warm_state(epsilon_objective=objective, epsilon_step=sign, smooth=smooth, **rates)
        for through in (True, False):
            state["args"].alpha_through_epsilon = through
            names, expected = execute(state), closed_form(state)
            for name in expected.keys() - {"phi_new"}:
                assert expected[name] != 0
                close(names[name].item(), expected[name].item(), 1e-9)
            moved, expected_move = names["phi_new"] - state["phi"], expected["phi_new"] - state["phi"]
            assert (moved - expected_move).norm() < 1e-9 * expected_move.norm()
            close(names["log_alpha"].grad.item(), -(names["alpha"] * expected["grad_alpha"]).item(), 1e-9)


def test_float32_is_enough_for_the_metagradients(monkeypatch):
    """The script runs in float32; dJ_epsilon/depsilon is 1e-8 there. From one state, both precisions agree."""

    def normal_(tensor, generator):  # the same noise in both
        return tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))

    monkeypatch.setattr(torch.Tensor, "normal_", normal_)
    state = warm_state(smooth=False)
    names, single = execute(state), copied(state)
    for net in ("actor", "qr", "qr_target", "qc", "qc_target"):
        single[net].float()
    for name in ("nu", "epsilon", "log_alpha", "phi", "nu_square", "epsilon_square", "phi_square"):
        single[name] = state[name].detach().float().requires_grad_(state[name].requires_grad)
    for name in ("D", "D_s", "D_0"):
        single[name].rows = {field: rows.float() for field, rows in single[name].rows.items()}
    for name, parameters in (("qr", single["qr"].parameters()), ("qc", single["qc"].parameters())):
        single[name + "_optimizer"] = torch.optim.Adam(parameters, lr=0.0)
    single["alpha_optimizer"] = torch.optim.Adam([single["log_alpha"]])
    torch.set_default_dtype(torch.float32)
    single = execute(single)
    for name in ("grad_epsilon", "grad_alpha_direct", "grad_alpha_via_epsilon"):
        assert single[name].dtype == torch.float32
        close(single[name].item(), names[name].item(), 1e-4)


def test_nu_copy_is_detached():
    state = warm_state()
    names = execute(state)
    (dnu,) = torch.autograd.grad(rmsprop_of_nu(state, names), state["epsilon"])
    attached = names["grad_epsilon"] + dnu * names["q_c"].mean()  # what the gradient would be without the detachment
    assert abs(attached / names["grad_epsilon"] - 1) > 0.1  # so a missing detach cannot pass the tests above


def rmsprop_of_nu(state, names):
    args, gap = state["args"], names["J_c"].detach() - state["epsilon"]
    return rmsprop(state["nu"], gap, state["nu_square"], args.nu_lr, 1e-20)[0]


@pytest.mark.parametrize("sign", ["ascent", "descent"])
def test_alpha_through_epsilon_flag(sign):
    on = warm_state(epsilon_step=sign)
    off = copy.deepcopy(on)
    off["args"].alpha_through_epsilon = False
    on, off = execute(on), execute(off)
    assert on["grad_alpha_via_epsilon"] != 0 and on["grad_alpha"] != on["grad_alpha_direct"]
    assert off["grad_alpha"] == off["grad_alpha_direct"]  # what is left out is logged all the same
    close(off["log_alpha"].grad.item(), -(off["alpha"] * off["grad_alpha_direct"]).item(), 1e-12)
    for name in ("grad_alpha_direct", "grad_alpha_via_epsilon", "epsilon_new"):
        close(off[name].item(), on[name].item(), 1e-12)


def test_steps_go_the_way_the_paper_says():
    """nu rises while E[Q_c] > epsilon and falls below it; epsilon climbs dJ_epsilon or descends it; alpha climbs."""
    for sign in ("ascent", "descent"):
        state = warm_state(epsilon_step=sign)
        names = execute(state)
        step = names["epsilon_new"] - state["epsilon"]
        assert torch.sign(step) == torch.sign(names["grad_epsilon"]) * (1 if sign == "ascent" else -1)
    for epsilon in (0.05, 0.95):
        state = make_state(epsilon_init=epsilon)
        names = execute(state)
        assert torch.sign(names["nu_new"] - state["nu"]) == torch.sign(names["J_c"] - epsilon)
    state = warm_state()  # a fresh Adam's first step is one learning rate long, along the sign of dJ_alpha/dalpha
    state["alpha_optimizer"] = torch.optim.Adam([state["log_alpha"]], lr=0.01)
    names = execute(state)
    close((names["log_alpha"] - state["log_alpha"]).item(), 0.01 * torch.sign(names["grad_alpha"]).item(), 1e-2)
    close(names["log_alpha"].grad.item(), -(names["alpha"] * names["grad_alpha"]).item(), 1e-12)  # d/dlog alpha


def test_the_terms_of_L():
    """Eq. 11's, on B, by the critics just updated: the worse of either pair, as in their targets."""
    state = warm_state()
    obs = state["D"].rows["obs"]
    for critic in (state["qr"], state["qc"]):  # either twin is the worse one in half of the states
        with torch.no_grad():
            q = critic(obs, state["actor"](obs)[2])
            one, other = q.logit() if critic.probability else q
            critic.bias_3[1] -= (other - one).median() / (1 if critic.probability else 10)
    names = execute(state)
    *_, (action, log_pi, _) = drawn(state)
    q_r, q_c = state["qr"](names["B"].obs, action), state["qc"](names["B"].obs, action)
    close(names["J_r"].item(), torch.minimum(*q_r).mean().item(), 1e-12)
    close(names["J_h"].item(), log_pi.mean().item(), 1e-12)
    close(names["J_c"].item(), torch.maximum(*q_c).mean().item(), 1e-12)
    assert all(len(set(q.argmin(0).tolist())) == 2 for q in (q_r, q_c))


@pytest.mark.parametrize("probability", [True, False])
def test_the_twin_critic_is_two_plain_networks_with_layer_normalisation(probability):
    torch.manual_seed(0)
    critic = TwinCritic(OBS_DIM, ACTION_DIM, 8, probability)
    obs, action = torch.randn(5, OBS_DIM), torch.rand(5, ACTION_DIM) * 2 - 1
    assert (critic.bias_3 == -3).all() if probability else (critic.bias_3.abs() < 1).all()
    for twin, found in enumerate(critic(obs, action)):
        w = {name: weights[twin] for name, weights in critic.named_parameters()}
        x, norm = torch.cat([obs, action], 1) @ torch.cat([w["weight_obs"], w["weight_action"]]), torch.nn.LayerNorm(8)
        x = norm(norm(x + w["bias_1"]).relu() @ w["weight_2"] + w["bias_2"]).relu()
        expected = (x @ w["weight_3"] + w["bias_3"])[:, 0]
        torch.testing.assert_close(found, expected.sigmoid() if probability else 10 * expected)


def test_target_critics_follow_slowly():
    """Polyak averaging: omega_bar = tau omega + (1 - tau) omega_bar (Appendix B), after the critics' own steps."""
    state = make_state()
    names, tau = execute(state), state["args"].tau
    for net in ("qr", "qc"):
        rows = (names[net + "_target"], names[net], state[net + "_target"], state[net])
        for target, omega, target_before, omega_before in zip(*(critic.parameters() for critic in rows)):
            torch.testing.assert_close(target, tau * omega + (1 - tau) * target_before, rtol=1e-12, atol=1e-14)
            assert not any(torch.equal(*twin) for twin in zip(omega, omega_before))


def test_what_is_learned_from_what():
    """Line 12: D u D_s. Line 13: D. Line 17: B', another batch of it. Line 19: the initial states, from D_0."""
    state = make_state(batch_size=64)
    state["D_s"].rows["reward"][:] = 99.0
    names = execute(state)
    assert (names["B_c"].reward == 99).any() and (names["B_c"].reward != 99).any()
    assert not (names["B"].reward == 99).any() and not (names["B_new"].reward == 99).any()
    assert not torch.equal(names["B_new"].obs, names["B"].obs)
    in_D_0 = (names["S_0"].obs[:, None] == names["D_0"].rows["obs"]).all(-1).any(-1)
    assert in_D_0.all() and len(in_D_0) == names["args"].batch_size


def test_commit_projects_and_keeps_phi_prime():
    state = make_state(nu_init=1e-5, epsilon_init=1.0, alpha_init=1.0, nu_lr=0.1, epsilon_lr=0.5, alpha_lr=0.5)
    for i in range(6):
        names = execute(state, seed=i)
        assert names["nu"] == names["nu_new"].clamp(min=0)
        assert names["epsilon"] == names["epsilon_new"].clamp(0, 1)
        assert names["log_alpha"] <= 0
        assert torch.equal(names["phi"], names["phi_new"])
        assert torch.equal(names["phi"], flat(names["actor"].parameters()))
        assert torch.equal(names["phi_square"], names["phi_square_new"])
        assert not torch.equal(names["phi_square"], state["phi_square"])
        assert names["nu_square"] == names["nu_square_new"] != state["nu_square"]
        assert names["epsilon_square"] == names["epsilon_square_new"]
        assert i == 0 or names["epsilon_square"] != state["epsilon_square"]  # the first metagradient is 0: no history
        state = after(names, state)
    state = make_state(nu_init=1e-5, epsilon_init=1.0, nu_lr=0.1)  # E[Q_c] < 1 = epsilon: nu would leave for below 0
    names = execute(state)
    assert names["nu_new"] < 0 and names["nu"] == 0


def test_what_lives_on_is_written_in_place():
    """Checkpoints hold these very tensors, and the actor's parameters are views of phi."""
    state = warm_state()
    names = copied(state) | USED
    held = {name: names[name] for name in "nu epsilon log_alpha phi nu_square epsilon_square phi_square".split()}
    exec(BLOCK, names)
    for name, tensor in held.items():
        assert names[name] is tensor and not torch.equal(tensor, state[name]), name
        assert tensor.is_leaf and tensor.requires_grad == (name in ("epsilon", "log_alpha"))
    assert torch.equal(flat(names["actor"].parameters()), held["phi"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cold_state_is_finite_a_dead_relu_included(dtype):
    torch.set_default_dtype(dtype)
    for objective, sign in VARIANTS:
        state = make_state(smooth=False, epsilon_objective=objective, epsilon_step=sign)
        with torch.no_grad():
            state["actor"].net[0].bias[0] = -1e3
            state["actor"].net[2].bias[1] = -1e3
        for i in range(3):
            names = execute(state, seed=i)
            scalars = "nu epsilon log_alpha grad_epsilon grad_alpha loss_qr loss_qc".split()
            tensors = [*(names[name] for name in scalars), names["phi"], names["phi_square"]]
            assert all(torch.isfinite(tensor).all() for tensor in tensors)
            state = after(names, state)
        dead = state["actor"].net[0].weight[0]
        assert torch.equal(dead, make_state(smooth=False).get("actor").net[0].weight[0])  # it was dead indeed


def test_rmsprop_against_torch():
    """The two agree where the constant is 0 (torch adds it outside the root)."""
    torch.manual_seed(0)
    theta = torch.randn(7)
    parameter = theta.clone().requires_grad_()
    optimizer = torch.optim.RMSprop([parameter], lr=0.01, alpha=0.9, eps=0.0, maximize=True)
    square_avg = torch.zeros(7)
    for _ in range(20):
        gradient = torch.randn(7)
        theta, square_avg = rmsprop(theta, gradient, square_avg, 0.01, 0.0, decay=0.9)
        parameter.grad = gradient
        optimizer.step()
    torch.testing.assert_close(theta, parameter.detach(), rtol=1e-13, atol=1e-13)


def test_rmsprops_derivatives():
    """Autograd's against the closed form, twice; with a history, dead gradients and cold means of squares."""
    torch.manual_seed(0)
    gradient, square_avg = torch.randn(50), torch.rand(50) ** 4
    gradient[:3], square_avg[:6] = 0.0, 0.0
    for constant in (1e-12, 1e-3):
        g = gradient.clone().requires_grad_()
        stepped, _ = rmsprop(torch.zeros(50), g, square_avg, 0.01, constant)
        (first,) = torch.autograd.grad(stepped.sum(), g, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), g)
        expected = adaptive_step(0.01, gradient, square_avg, constant)
        for found, value in zip((stepped, first, second), expected):  # where v is 0, rounding is all that autograd has
            torch.testing.assert_close(found.detach(), value, rtol=1e-9, atol=1e-12)


def test_actor_density():
    """log pi at sampled actions is the squashed Gaussian's density, written out here; that density integrates to 1."""
    torch.manual_seed(0)
    actor = Actor(1, 1, 4)
    obs = torch.zeros(400_000, 1)
    action, log_pi, det = actor(obs)
    mean, log_std = actor.net(obs[:1]).chunk(2, -1)
    std = torch.exp(-5 + 3.5 * (torch.tanh(log_std) + 1))
    a = torch.linspace(-1 + 1e-7, 1 - 1e-7, 2_000_001)
    u = torch.atanh(a)
    density = torch.exp(-0.5 * ((u - mean[0]) / std[0]) ** 2) / (std[0] * math.sqrt(2 * math.pi)) / (1 - a**2)
    assert torch.trapezoid(density, a).item() == pytest.approx(1, abs=1e-3)
    i = torch.searchsorted(a, action[:1000, 0]).clamp(max=len(a) - 1)
    torch.testing.assert_close(log_pi[:1000].exp(), density[i], rtol=1e-2, atol=1e-3)
    assert (det.abs() < 1).all() and torch.equal(det[0], torch.tanh(mean[0]))


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (20.0, 0.0), (20.0, 0.5), (0.5, -2.0)])
def test_critic_targets_on_a_hand_made_batch(scale, shift):
    """One ordinary step, one truncated, one terminated without and one with a violation; told apart by the reward.

    The script stores every violation as terminated; the fifth, not terminated, tests Eq. 2's own mask (1 - c)."""
    state = make_state(fill=False, reward_scale=scale, reward_shift=shift, batch_size=64, gamma_r=0.9, gamma_c=0.8)
    data = np.random.default_rng(3)
    kinds = {1.0: "ordinary", 2.0: "truncated", 3.0: "terminated", 4.0: "violation", 5.0: "violation going on"}
    for reward, kind in kinds.items():
        cost, terminated = float("violation" in kind), float(kind in ("terminated", "violation"))
        transition = dict(obs=data.normal(size=3), action=data.uniform(-1, 1, 2), reward=reward, cost=cost)
        transition.update(next_obs=data.normal(size=3), terminated=terminated)
        for buffer in (state["D"], state["D_s"]) if cost else (state["D"],):
            buffer.add(**transition)
    state["D_0"].add(obs=np.zeros(3))
    names, alpha = execute(state), math.exp(state["log_alpha"].item())
    B_c, (next_c, _, _), B, (next_action, log_pi, _), _ = drawn(state)
    assert torch.equal(B_c.obs, names["B_c"].obs) and torch.equal(B.obs, names["B"].obs)

    both = state["qc_target"](B_c.next_obs, next_c)
    for reward, target, q1, q2 in zip(B_c.reward, names["target_c"], *both):
        bootstrapped = 0.8 * max(q1.item(), q2.item())
        expected = {"ordinary": bootstrapped, "truncated": bootstrapped, "terminated": 0.0}
        close(target.item(), expected.get(kinds[reward.item()], 1.0), 1e-12)
    assert (names["target_c"] >= 0).all() and (names["target_c"] <= 1).all()

    both = state["qr_target"](B.next_obs, next_action)
    for reward, target, log_p, q1, q2 in zip(B.reward, names["target_r"], log_pi, *both):
        r, value = scale * (reward.item() + shift), 0.9 * (min(q1.item(), q2.item()) - alpha * log_p.item())
        going_on = kinds[reward.item()] in ("ordinary", "truncated", "violation going on")
        assert target.item() == pytest.approx(r + value if going_on else r, rel=1e-12, abs=1e-12)
    assert {kinds[r] for r in B.reward.tolist()} == set(kinds.values())  # all five were in the batch

    # Eq. 4: half the mean squared error, either twin's own, by the critics from before their steps
    for loss, critic, batch, target in (("loss_qc", "qc", B_c, "target_c"), ("loss_qr", "qr", B, "target_r")):
        pairs = zip(state[critic](batch.obs, batch.action).T.tolist(), names[target].tolist())
        close(names[loss].item(), sum((q1 - y) ** 2 + (q2 - y) ** 2 for (q1, q2), y in pairs) / (2 * 64), 1e-12)


@pytest.mark.parametrize("violations_count_twice", [False, True])
def test_critics_learn_what_is_known_of_a_chain(violations_count_twice):
    """States 0 -> 1 -> 2 -> end; each step violates with probability p of its state. Known: Q = p + (1 - p) gamma Q'.
    Each is rewarded by 1: Q_r = 1 + (1 - p) gamma_r Q_r', and D alone counts, whatever Q_c learns from.

    With the violations in D and in D_s (the default), the safety critic's batches hold each of them twice, so it
    learns the chain with p replaced by 2 p / (1 + p): a bias to the careful side that the README states.
    """
    torch.set_default_dtype(torch.float32)
    p, gamma, gamma_r = np.array([0.05, 0.2, 0.4]), 0.9, 0.7
    state = make_state(
        fill=False, obs_dim=3, action_dim=1, gamma_c=gamma, batch_size=256, hidden_size=32, q_lr=1e-3, tau=0.02,
        gamma_r=gamma_r, alpha_init=1e-9, alpha_lr=0.0, policy_lr=0.0,  # or it would go where few data look safe
    )  # fmt: skip
    data = np.random.default_rng(0)
    state["D"], state["D_s"] = (make_buffer(3000, state["rng"], **row(3, 1)) for _ in range(2))
    states = np.eye(3)
    for s in range(3):
        for i in range(1000):
            cost = float(i < 1000 * p[s])
            transition = dict(obs=states[s], action=data.uniform(-1, 1, 1), reward=1.0, cost=cost)
            transition.update(next_obs=states[min(s + 1, 2)], terminated=float(cost or s == 2))
            for buffer in (state["D"], state["D_s"]) if cost and violations_count_twice else (state["D"],):
                buffer.add(**transition)
    state["D_0"].add(obs=states[0])
    state["args"].batch_size = 256
    for i in range(1200):
        if i == 800:
            for optimizer in (state["qc_optimizer"], state["qr_optimizer"]):
                optimizer.param_groups[0]["lr"] = 2e-4
        state.update(USED)
        exec(BLOCK, state)
    returns = 1 + (1 - p[0]) * gamma_r * (1 + (1 - p[1]) * gamma_r), 1 + (1 - p[1]) * gamma_r, 1.0
    if violations_count_twice:
        p = 2 * p / (1 + p)
    q2 = p[2]
    q1 = p[1] + (1 - p[1]) * gamma * q2
    q0 = p[0] + (1 - p[0]) * gamma * q1
    with torch.no_grad():
        actions = torch.linspace(-1, 1, 21)[:, None]
        for s, q in enumerate((q0, q1, q2)):
            learned = state["qc"](torch.eye(3)[s].expand(21, 3), actions).mean().item()
            assert learned == pytest.approx(q, abs=0.03), f"state {s}"
            both = state["qr"](torch.eye(3)[s].expand(21, 3), actions).mean(1)
            assert both.tolist() == pytest.approx([returns[s]] * 2, abs=0.06), f"state {s}"


def test_pool_is_sampled_as_one():
    """D u D_s: every row of both with one probability, and a full ring forgets its oldest rows. None that was never
    written is read (they are NaN here), and fields of all shapes keep together."""
    rng = torch.Generator().manual_seed(0)
    D, D_s, empty = (make_buffer(4, rng, x=(), twice=(2,)) for _ in range(3))
    for x in range(6):
        D.add(x=x, twice=[x, -x])  # 0 and 1 are overwritten
        assert D.size == len(D) == min(x + 1, 4)
    D_s.add(x=10, twice=[10, -10])
    for first, other, known in ((D, D_s, [2, 3, 4, 5, 10]), (D_s, D, [2, 3, 4, 5, 10]), (D, empty, [2, 3, 4, 5]),
                                (D, None, [2, 3, 4, 5]), (D_s, empty, [10])):  # fmt: skip
        batch = first.sample(50_000, other)
        assert torch.equal(batch.twice, torch.stack([batch.x, -batch.x], 1))
        counts = torch.bincount(batch.x.long(), minlength=11)
        assert counts.nonzero().flatten().tolist() == known
        assert (counts[known] / 50_000 - 1 / len(known)).abs().max() < 0.01
    assert D_s.sample(5).x.tolist() == [10] * 5 and len(D_s) == 1
