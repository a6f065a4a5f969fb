"""experiments/throughput.py measures what it says: the scripts' own block, at its real sizes and in float32."""

import copy
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from test_mathematics import whole_graph

sys.path.insert(0, str(ROOT / "experiments"))
import throughput

import meta_sac_lag

METHOD = throughput.block(meta_sac_lag)


@pytest.mark.parametrize("updates", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_in_float32_each_update_is_what_autograd_through_everything_makes_of_it(updates):
    """phi, nu, epsilon and alpha after each update, both forms starting from the same state.

    Left to themselves, two runs that differ by rounding agree to 1e-7 for some sixty updates, until a ReLU switches in
    one of them; test_mathematics.py compares whole runs in float64. At the first update v = 0, and what autograd finds
    of theta's derivatives is rounding, in both forms.
    """
    fast, reference = (
        throughput.ours(meta_sac_lag, text, 64, 20, 64, 256, epsilon_lr=1e-3, nu_lr=0.01)
        for text in (METHOD, whole_graph(METHOD))
    )
    here, there = fast.names, reference.names
    fast()
    worst = {}
    for i in range(updates):
        for key in ("actor", "qr", "qr_target", "qc", "qc_target", "qr_optimizer", "qc_optimizer", "alpha_optimizer"):
            there[key].load_state_dict(copy.deepcopy(here[key].state_dict()))
        with torch.no_grad():
            for key in ("nu", "epsilon", "log_alpha", "nu_square", "epsilon_square", "phi_square"):
                there[key].copy_(here[key])
        assert torch.equal(here["phi"], there["phi"])  # the actor is a view of it
        before = there["log_alpha"].item()
        for update in (fast, reference):
            update.names["actor"].rng.manual_seed(i)
            update()
        assert here["log_alpha"].item() != before
        for key in ("phi_new", "nu", "epsilon", "log_alpha", "grad_epsilon", "grad_alpha"):
            x, y = here[key].detach(), there[key].detach()
            worst[key] = max(worst.get(key, 0.0), ((x - y).norm() / y.norm()).item())
    print({key: f"{value:.1e}" for key, value in worst.items()})
    assert max(worst[key] for key in ("phi_new", "nu", "epsilon", "log_alpha")) < 1e-4
    assert max(worst.values()) < 4e-3  # the metagradients are differences, and may be near 0


def test_it_prints_a_table(tmp_path):
    for name in ("meta_sac_lag.py", "sac_lag_baselines.py", "experiments/throughput.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    with open(tmp_path / "meta_sac_lag.py", "a") as file:  # a version that takes longer
        file.write("\ndef rmsprop(*args, step=rmsprop):\n    time.sleep(0.02)\n    return step(*args)\n")
    code = "import sys, throughput as t; t.alternating.__defaults__ = (1, 0.01); import tyro; tyro.cli(t.main)"
    flags = ["--width", "8", "--batch-size", "8", "--threads", "1", "--old", str(tmp_path)]
    command = [sys.executable, "-c", code, *flags]
    result = subprocess.run(command, cwd=ROOT / "experiments", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| Meta SAC-Lag |") == 2 and result.stdout.count("| rcpo-metasac |") == 2
    ratios = [float(line.split()[-1]) for line in result.stdout.splitlines() if "new / old" in line]
    assert len(ratios) == 2 and all(0 < ratio < 0.9 for ratio in ratios), result.stdout  # three times 20 ms


def test_peers_that_are_not_installed_are_asked_for():
    command = [sys.executable, "experiments/throughput.py", "--width", "8", "--batch-size", "8", "--peers"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so():
    command = [sys.executable, "experiments/throughput.py", "--cuda", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.strip() == "error: --cuda: PyTorch finds no GPU here"


def test_captured_is_eager_as_far_as_a_cpu_can_tell():
    """On a CPU nothing is captured, and both are the same to the bit."""
    assert throughput.same_on_cuda(device="cpu", updates=5) == 0


def test_float32_is_near_float64_and_foreach_is_the_loop():
    apart = throughput.precision(device="cpu", size=(64, 20, 16, 16), warm=3)
    assert all(0 < x < 1e-3 for x in apart["float32"]), apart
    one, other = (throughput.ours(meta_sac_lag, text, 64, 20, 16, 16) for text in (METHOD, throughput.foreach()))
    for update in (one, other):
        update()
    targets = zip(one.names["qc_target"].parameters(), other.names["qc_target"].parameters())
    assert throughput.foreach() != METHOD and all(torch.equal(x, y) for x, y in targets)


def test_runs_side_by_side_are_timed_and_a_failure_is_one_line():
    extra = "--no-cuda --hidden-size 8 --batch-size 8 --total-timesteps 1300".split()
    rates = [throughput.at_once("experiments.slow_pendulum:SlowPendulum-v0", runs, extra) for runs in (1, 2)]
    assert min(rates) > 0
    with pytest.raises(SystemExit, match="no_such_module"):
        throughput.at_once("no_such_module:Env-v0", 1)
