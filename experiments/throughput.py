"""How fast it is: gradient updates of both scripts beside their peers, growth. Ratios within one run.

    python experiments/throughput.py                 # updates per second, ours: a Markdown table
    python experiments/throughput.py --peers         # beside OmniSafe's SACLag and Stable-Baselines3's SAC
    python experiments/throughput.py --old CHECKOUT  # beside Meta SAC-Lag of another version (`git worktree add`)
    python experiments/throughput.py --grow          # over width and batch; memory over the buffer's size
    python experiments/throughput.py --cuda --check  # on a GPU: eager, captured, whole runs; is it the same? 8 minutes

Ours is the text of the scripts themselves: the block "Algorithm 1, lines 12 to 20" is cut out and executed. All are
timed in turn, a few updates at a time, and medians are taken, so that what else the machine does falls on all alike.
Peers are installed by hand:

    pip install --no-deps omnisafe==0.5.0 && pip install stable-baselines3==2.3.2 "numpy<2" "pandas<3"

What was tried until commit e0785a5, whose lines 15 to 19 are the chain rule written out (today autograd differentiates
RMSProp's three steps, on vectors of constants). Each was measured beside the form before it, two threads, batch and
width 256, at EggManipulate's and at HumanoidVelocity's size. At first an update took 35.0 and 50.6 ms, and 38.0 and
53.8 by autograd through everything: in one run of all three, 1.57 and 1.63 times what it took in the end.

    kept     the twins stacked in one product, no gradient of obs in the critics' first layer           -11 %   -14 %
             phi as one vector: RMSProp in a few operations                                              -3      -2
             the chain rule written out, with one Hessian-vector product, instead of autograd            -9     -13
             batches taken with `take`                                                                   -2      -2
             Adam with fused=True                                                                        -1      -4
             ReLU in place                                                                               -3      -3
             no log pi where none is used                                                                -2      -2
             the critics' tangents in line 18 (exact for ReLU, and for nothing else)                     -4      -5
    dropped  forward mode (torch.func.jvp twice), though it read best: the update                      x 2
             torch.compile of the networks, without second derivatives, which it has not (SACv2-Lag)    +18
             64 initial states in line 19 instead of 256: what that does to learning is not known        -6      -7
             bfloat16 products (this CPU has no AMX)                                                    +12      +9
             allocator thresholds; the last layer as a sum; biases added in place; _foreach_lerp_;
             other forms of ReLU                                                                          0 or worse

Of the environments only Pour Coffee had any time to give: NumPy's `inv` of a 6 x 6 matrix, which wakes BLAS's threads,
was half of its step beside a training. The others spend their time in MuJoCo's `mj_step`, FrankaDrawerClose in NumPy's
arithmetic; a third of EggManipulate's and PushTopple's step is gymnasium-robotics reading joints by name.
"""

import contextlib
import importlib.util
import io
import math
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest.mock
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import meta_sac_lag
import sac_lag_baselines

SIZES = {"EggManipulate": (85, 20), "HumanoidVelocity": (376, 17)}  # observation, action
ROWS = 20_000  # transitions in the buffers


def block(module):
    text = Path(module.__file__).read_text()
    return textwrap.dedent(text.split("# >>> Algorithm 1, lines 12 to 20\n")[1].split("# <<< Algorithm 1, lines 12")[0])


def ours(module, text, obs_dim, action_dim, batch_size, width, device="cpu", dtype=torch.float32, **flags):
    """-> update(), which executes the block once on a filled buffer."""
    m = module
    flags = dict(nu_init=10.0, epsilon_init=0.5, reward_scale=1.0, reward_shift=0.0) | flags
    args = m.Args(batch_size=batch_size, hidden_size=width, **flags)
    torch.manual_seed(0)
    rng, of = torch.Generator(device).manual_seed(0), dict(device=device, dtype=dtype)
    sizes = obs_dim, action_dim, width
    actor = m.Actor(*sizes, rng).to(**of)
    phi = m.flat(actor.parameters()).detach()
    torch.nn.utils.vector_to_parameters(phi, actor.parameters())
    qr, qr_target = (m.TwinCritic(*sizes, probability=False).to(**of) for _ in range(2))
    qc, qc_target = (m.TwinCritic(*sizes, probability=True).to(**of) for _ in range(2))
    fields = dict(obs=(obs_dim,), action=(action_dim,), reward=(), cost=(), next_obs=(obs_dim,), terminated=())
    D, D_s = (m.ReplayBuffer(ROWS, rng, device, **fields) for _ in range(2))
    D_0 = m.ReplayBuffer(10_000, rng, device, obs=(obs_dim,))
    for buffer, added in ((D, ROWS), (D_s, ROWS // 10), (D_0, 1000)):
        drawn = {field: torch.randn(added, *rows.shape[1:]) for field, rows in buffer.rows.items()}
        drawn |= {field: (drawn[field] > 1.5).float() for field in ("cost", "terminated") if field in drawn}
        buffer.load_state_dict({"added": added, **{field: rows.clamp(-1, 1) for field, rows in drawn.items()}})
        buffer.rows = {field: rows.to(dtype) for field, rows in buffer.rows.items()}
    epsilon = torch.tensor(args.epsilon_init, **of, requires_grad=m is not sac_lag_baselines)
    log_alpha = torch.tensor(math.log(0.5), **of, requires_grad=True)
    adam = dict(fused=True, capturable=device != "cpu")
    names = dict(
        vars(m), args=args, actor=actor, phi=phi, qr=qr, qr_target=qr_target, qc=qc, qc_target=qc_target, D=D, D_s=D_s,
        D_0=D_0, epsilon=epsilon, log_alpha=log_alpha, nu=torch.tensor(args.nu_init, **of),
        nu_square=torch.zeros((), **of), epsilon_square=torch.zeros((), **of), phi_square=torch.zeros_like(phi),
        action_dim=action_dim, qr_optimizer=torch.optim.Adam(qr.parameters(), lr=args.q_lr, **adam),
        qc_optimizer=torch.optim.Adam(qc.parameters(), lr=args.q_lr, **adam),
        alpha_optimizer=torch.optim.Adam([log_alpha], lr=args.alpha_lr, **adam),
    )  # fmt: skip
    code = compile(text, f"{m.__name__}, Algorithm 1", "exec")

    def update():
        exec(code, names)

    update.names = names
    return update


def captured(module, *size, device="cuda", text=None, **options):
    """-> update(), as the script does it: five times as it is, then captured, then replayed."""
    eager = ours(module, text or block(module), *size, device=device, **options)
    graph = module.CudaGraph(eager.names["D"].rng if device == "cuda" else None)

    def update():
        if not graph.replay():
            with graph.capture():
                eager()
        if device == "cuda":
            torch.cuda.synchronize()

    update.names = eager.names
    return update


def of_checkout(path, *size):
    """-> update() of that version's Meta SAC-Lag, built by its own experiments/throughput.py."""
    scripts = {name: sys.modules.pop(name) for name in ("meta_sac_lag", "sac_lag_baselines")}  # it imports its own
    search = sys.path[:]
    try:
        spec = importlib.util.spec_from_file_location("old_throughput", Path(path) / "experiments" / "throughput.py")
        old = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(old)
    finally:
        sys.modules.update(scripts)
        sys.path[:] = search
    return old.ours(old.meta_sac_lag, old.block(old.meta_sac_lag), *size)


def omnisafe_saclag(obs_dim, action_dim, batch_size, width, device="cpu"):
    """OmniSafe's own update, with a policy step in each (its default skips every second), on random transitions."""
    import benchmark_envs

    benchmark_envs.import_safety_gymnasium()  # which it imports, and which Python 3.11 refuses as it is
    import omnisafe
    from gymnasium.spaces import Box
    from omnisafe.envs.core import CMDP, env_register

    name = f"Sizes{obs_dim}x{action_dim}-v0"

    class Sizes(CMDP):
        _support_envs, need_time_limit_wrapper, need_auto_reset_wrapper, _num_envs = [name], False, False, 1

        def __init__(self, env_id, **_):
            super().__init__(env_id)
            self._observation_space = Box(-np.inf, np.inf, (obs_dim,), np.float32)
            self._action_space = Box(-1, 1, (action_dim,), np.float32)
            self._metadata = {}

        def reset(self, seed=None, options=None):
            return torch.zeros(obs_dim), {}

        def step(self, action):
            no = torch.tensor(False)
            return torch.randn(obs_dim), torch.randn(()), torch.zeros(()), no, no, {}

        def set_seed(self, seed):
            pass

        def render(self):
            pass

        def close(self):
            pass

    Sizes.__name__ = f"Sizes{obs_dim}x{action_dim}"
    env_register(Sizes)
    settings = {
        "train_cfgs": {"device": device, "torch_threads": torch.get_num_threads(), "total_steps": 4000},
        "algo_cfgs": {"batch_size": batch_size, "update_iters": 1, "policy_delay": 1, "size": ROWS,
                      "steps_per_epoch": 2000, "obs_normalize": False},
        "model_cfgs": {"actor": {"hidden_sizes": [width] * 2}, "critic": {"hidden_sizes": [width] * 2}},
        "logger_cfgs": {"use_wandb": False, "use_tensorboard": False, "log_dir": tempfile.mkdtemp()},
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        agent = omnisafe.Agent("SACLag", name, custom_cfgs=settings).agent
    for _ in range(2000):
        zero = torch.zeros(1)
        agent._buf.store(obs=torch.randn(1, obs_dim), act=torch.rand(1, action_dim) * 2 - 1, reward=torch.randn(1),
                         cost=zero, done=zero, next_obs=torch.randn(1, obs_dim))  # fmt: skip
    agent._logger.store({"Metrics/EpCost": 0.0, "Metrics/EpRet": 0.0, "Metrics/EpLen": 1.0})
    return agent._update


def stable_baselines3_sac(obs_dim, action_dim, batch_size, width, device="cpu"):
    """Stable-Baselines3's SAC: no constraint at all."""
    import gymnasium as gym
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger

    class Sizes(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (action_dim,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(obs_dim, np.float32), {}

    model = SAC("MlpPolicy", Sizes(), batch_size=batch_size, buffer_size=ROWS, device=device,
                policy_kwargs=dict(net_arch=[width] * 2))  # fmt: skip
    model.set_logger(Logger(None, []))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        seen = rng.normal(size=(2, 1, obs_dim)).astype(np.float32)
        model.replay_buffer.add(*seen, rng.uniform(-1, 1, (1, action_dim)), rng.normal(size=1), np.zeros(1), [{}])
    return lambda: model.train(gradient_steps=1, batch_size=batch_size)


def alternating(updates, rounds=15, seconds=0.4):
    """{name: update} -> {name: milliseconds per update, the median of rounds in which each has its turn}."""
    times, counts = {name: [] for name in updates}, {}
    for name, update in updates.items():
        for _ in range(5):
            update()
        started = time.perf_counter()
        update()
        counts[name] = max(2, round(seconds / (time.perf_counter() - started)))
    for _ in range(rounds):
        for name, update in updates.items():
            started = time.perf_counter()
            for _ in range(counts[name]):
                update()
            times[name].append(1000 * (time.perf_counter() - started) / counts[name])
    return {name: float(np.median(values)) for name, values in times.items()}


def print_table(header, rows):
    print("| " + " | ".join(map(str, header)) + " |\n" + "|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row) + " |")
    print(flush=True)


def updates_table(peers, old, batch_size, width):
    for env_id, (obs_dim, action_dim) in SIZES.items():
        size = obs_dim, action_dim, batch_size, width
        updates = {"Meta SAC-Lag": ours(meta_sac_lag, block(meta_sac_lag), *size)}
        if old:
            updates["Meta SAC-Lag, old"] = of_checkout(old, *size)
        for algo in ("sacv2-lag", "rcpo-sacv2", "rcpo-metasac"):
            updates[algo] = ours(sac_lag_baselines, block(sac_lag_baselines), *size, algo=algo)
        if peers:
            updates["OmniSafe 0.5 SACLag, policy_delay 1"] = omnisafe_saclag(*size)
            updates["Stable-Baselines3 2.3 SAC"] = stable_baselines3_sac(*size)
        found = alternating(updates)
        print(f"{env_id}'s size ({obs_dim}, {action_dim}), batch {batch_size}, width {width}, "
              f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}\n")  # fmt: skip
        first, base = found["Meta SAC-Lag"], found["sacv2-lag"]
        rows = [(name, ms, 1000 / ms, ms / base, first / ms) for name, ms in found.items()]
        print_table(("update", "ms", "per second", "x SACv2-Lag (ours)", "Meta SAC-Lag is x of it"), rows)
        if old:
            print(f"Meta SAC-Lag, new / old: {first / found['Meta SAC-Lag, old']:.3f}\n", flush=True)


def on_cuda(batch_size, width):
    """Updates, eager and captured; whole runs, and what their environments take alone."""
    for env_id, (obs_dim, action_dim) in SIZES.items():
        size, updates = (obs_dim, action_dim, batch_size, width), {}
        for name, module, flags in (
            ("Meta SAC-Lag", meta_sac_lag, {}), ("sacv2-lag", sac_lag_baselines, dict(algo="sacv2-lag"))
        ):  # fmt: skip
            updates[f"{name}, eager"] = ours(module, block(module), *size, device="cuda", **flags)
            updates[f"{name}, captured"] = captured(module, *size, **flags)
        torch.backends.cuda.matmul.allow_tf32 = True
        updates["Meta SAC-Lag, captured, TF32 products"] = captured(meta_sac_lag, *size)
        for _ in range(6):  # what is captured keeps its kernels
            updates["Meta SAC-Lag, captured, TF32 products"]()
        torch.backends.cuda.matmul.allow_tf32 = False
        updates["Meta SAC-Lag, captured, target critics by foreach"] = captured(meta_sac_lag, *size, text=foreach())
        for name, peer in (("OmniSafe 0.5 SACLag", omnisafe_saclag), ("Stable-Baselines3 SAC", stable_baselines3_sac)):
            with contextlib.suppress(ImportError):
                updates[name] = peer(*size, device="cuda")
        print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}: {env_id}'s size, batch {batch_size}\n")
        found = alternating(updates)
        print_table(("update", "ms", "per second"), [(name, ms, 1000 / ms) for name, ms in found.items()])
    rows = []
    for env_id in ("EggManipulate", "CarCircle2"):
        env = meta_sac_lag.make_env(env_id, SimpleNamespace(capture_video=False, real_robot=False))
        started, steps = time.perf_counter(), 0
        for episode in range(20):
            done, _ = False, env.reset(seed=episode)
            while not done:
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                done, steps = terminated or truncated, steps + 1
        alone = steps / (time.perf_counter() - started)
        rows.append((env_id, *(at_once(env_id, runs) for runs in (1, 4, 8)), acting(env), alone))
        env.close()
    print("Whole runs, all defaults: steps/s, of all that run side by side on this card\n")
    print_table(("task", "one", "four", "eight", "acting alone, steps/s", "the environment alone, steps/s"), rows)


def foreach():
    """The block with the target critics' steps as one call for each critic"""
    loop = """for omega, omega_bar in zip(net.parameters(), target.parameters()):
            omega_bar.lerp_(omega, args.tau)"""
    text = block(meta_sac_lag)
    assert loop in text
    return text.replace(loop, "torch._foreach_lerp_([*target.parameters()], [*net.parameters()], args.tau)")


def at_once(env_id, runs, extra=()):
    """Steps/s of the script, summed over so many runs side by side, updates included"""
    flags = "--total-timesteps 3000 --learning-starts 1000 --initial-states 16 --checkpoint-every 0".split()
    with tempfile.TemporaryDirectory() as here:
        command = [sys.executable, str(ROOT / "meta_sac_lag.py"), "--env-id", env_id, *flags, *extra]
        started = [
            subprocess.Popen([*command, "--seed", str(seed)], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for seed in range(runs)
        ]
        for run in started:
            output, _ = run.communicate()
            if run.returncode:
                sys.exit(f"error: {env_id}, {runs} at once: {output.decode().strip().splitlines()[-1]}")
        rates = []
        for run_dir in Path(here).glob("runs/*"):
            events = EventAccumulator(str(run_dir))
            events.Reload()
            first, *_, last = events.Scalars("charts/SPS")  # both count from the first step of the run
            rates.append((last.step - first.step) / (last.step / last.value - first.step / first.value))
    return sum(rates)


def acting(env, device="cuda", width=256, times=500):
    """Actions/s, from an observation on the host to an action on the host"""
    (obs, _), sizes = env.reset(seed=0), (env.observation_space.shape[0], env.action_space.shape[0], width)
    actor = meta_sac_lag.Actor(*sizes, torch.Generator(device)).to(device)
    with torch.no_grad():
        for count in range(times + 50):
            if count == 50:
                started = time.perf_counter()
            actor(torch.from_numpy(obs).to(device)[None], log_pi=False)[0][0].cpu().numpy()
    return times / (time.perf_counter() - started)


def same_on_cuda(device="cuda", updates=100):
    """Captured against eager, from the same state and generator, float64: phi's relative difference."""
    size = (64, 20, 64, 64)
    eager = ours(meta_sac_lag, block(meta_sac_lag), *size, device=device, dtype=torch.float64)
    graph = captured(meta_sac_lag, *size, device=device, dtype=torch.float64)
    for _ in range(updates):
        eager()
        graph()
    one, other = (update.names["phi"] for update in (eager, graph))
    apart = ((one - other).norm() / one.norm()).item()
    print(f"captured against eager, float64, after {updates} updates: phi differs by {apart:.1e} of its norm\n")
    return apart


def precision(device="cuda", size=(64, 20, 256, 256), warm=50):
    """From one state of float64, after some updates, one more in float64, float32 and TF32, with the same noise: by how
    much of their size the two metagradients, and the step of phi, differ from float64's. {name: three numbers}"""

    def normal(x, generator):  # a float64 draw is another one than a float32 draw
        return x.copy_(torch.randn(x.shape, generator=generator, device=x.device))

    def one_more(dtype):
        update = ours(meta_sac_lag, block(meta_sac_lag), *size, device=device, dtype=dtype)
        names = update.names
        for name in "phi nu epsilon log_alpha nu_square epsilon_square phi_square".split():
            names[name].data.copy_(state[name])
        for name in "qr qc qr_target qc_target".split():
            names[name].load_state_dict(state[name].state_dict())
        update()
        return [names[name].double().flatten() for name in ("grad_epsilon", "grad_alpha", "phi")]

    with unittest.mock.patch.object(torch.Tensor, "normal_", normal):
        first = ours(meta_sac_lag, block(meta_sac_lag), *size, device=device, dtype=torch.float64)
        for _ in range(warm):
            first()
        state = first.names
        *exact, phi = one_more(torch.float64)
        apart = {}
        for name, allowed in (("float32", False), ("TF32", True)):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            *found, phi_new = one_more(torch.float32)
            pairs = [*zip(found, exact), (phi_new - state["phi"], phi - state["phi"])]
            apart[name] = [((one - other).norm() / other.norm()).item() for one, other in pairs]
        torch.backends.cuda.matmul.allow_tf32 = False
    return apart


def growth():
    rows = []  # first of all, while the process has no freed memory to fill
    for capacity in (10_000, 100_000, 1_000_000):
        fields = dict(obs=(64,), action=(20,), reward=(), cost=(), next_obs=(64,), terminated=())
        D = meta_sac_lag.ReplayBuffer(capacity, torch.Generator(), "cpu", **fields)
        before = resident()
        for array in D.rows.values():
            array[:] = 1
        D.added = capacity
        D.size.fill_(capacity)
        grown, started = resident() - before, time.perf_counter()
        for _ in range(200):
            D.sample(256)
        rows.append((capacity, grown, 1e6 * (time.perf_counter() - started) / 200))
    print("The replay buffer D, EggManipulate's size: memory when full, and time of one batch of 256\n")
    print_table(("transitions", "MB", "microseconds"), rows)

    method = block(meta_sac_lag)
    rows = []
    for width in (64, 128, 256, 512, 1024):
        row = [width]
        for batch_size in (64, 128, 256, 1024, 4096):
            update = ours(meta_sac_lag, method, 64, 20, batch_size, width)
            row.append(1000 / alternating({"": update}, rounds=3, seconds=0.5)[""])
        rows.append(row)
    print("Updates per second, EggManipulate's size, over width (down) and batch\n")
    print_table(("width", 64, 128, 256, 1024, 4096), rows)


def resident():
    """MB of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(
    peers: bool = False,
    old: Path | None = None,
    grow: bool = False,
    cuda: bool = False,
    check: bool = False,
    batch_size: int = 256,
    width: int = 256,
    threads: int = 2,
):
    """Prints Markdown tables.

    Args:
        peers: beside OmniSafe's SACLag and Stable-Baselines3's SAC, which have to be installed
        old: a checkout of another version, whose Meta SAC-Lag is timed beside this one's
        grow: updates per second over width and batch, memory over the buffer's size
        cuda: on a GPU: updates eager and captured, peers where they are installed, whole runs, one and many at once
        check: with --cuda: what float32 and TF32 make of the metagradients, whether captured is eager, then the tests
            of the mathematics and of resuming, there
        batch_size: of the table of updates
        width: units of each hidden layer, in that table
        threads: PyTorch's
    """
    torch.set_num_threads(threads)
    if grow:
        growth()
        return
    if cuda:
        if not torch.cuda.is_available():
            sys.exit("error: --cuda: PyTorch finds no GPU here")
        on_cuda(batch_size, width)
        if check:
            rows = [(name, *apart) for name, apart in precision().items()]
            print_table(("products, against float64", "dJ_epsilon/depsilon", "dJ_alpha/dalpha", "phi' - phi"), rows)
            tests = [f"tests/test_{name}.py" for name in ("mathematics", "cuda_graph", "resume")]
            code = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "8", *tests], cwd=ROOT).returncode
            sys.exit(same_on_cuda() > 1e-6 or code)
        return
    try:
        updates_table(peers, old, batch_size, width)
    except ImportError as error:
        if not peers:
            raise
        sys.exit(f"--peers needs OmniSafe and Stable-Baselines3 ({error}): see the head of this file")


if __name__ == "__main__":
    tyro.cli(main)
