"""experiments/throughput.py measures what it says: the scripts' own block, and the same with the whole graph kept."""

import subprocess
import sys

import pytest
import torch
from helpers import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
import throughput

import meta_sac_lag

METHOD = throughput.block(meta_sac_lag)


@pytest.mark.parametrize("updates, width", [(20, 256), pytest.param(100, 256, marks=pytest.mark.slow)])
def test_the_block_does_what_autograd_through_everything_does(updates, width):
    """In float32, after many updates: phi, nu, epsilon and alpha, which have all moved."""
    found = []
    for text in (METHOD, throughput.whole_graph(METHOD)):
        update = throughput.ours(meta_sac_lag, text, 65, 20, 64, width, epsilon_lr=1e-3, nu_lr=0.01)
        before = update.names["phi"]["net.0.weight"].detach().clone()
        torch.manual_seed(1)
        for _ in range(updates):
            update()
        names = update.names
        assert not torch.equal(before, names["phi"]["net.0.weight"])
        scalars = [names[key].item() for key in ("nu", "epsilon")] + [names["log_alpha"].exp().item()]
        found.append((torch.cat([p.detach().flatten() for p in names["phi"].values()]), torch.tensor(scalars)))
    (phi, scalars), (reference, reference_scalars) = found
    apart = ((phi - reference).norm() / reference.norm()).item()
    print(f"phi: {apart:.1e}; nu, epsilon, alpha: {(scalars / reference_scalars - 1).abs().tolist()}")
    assert apart < 1e-4 and torch.allclose(scalars, reference_scalars, rtol=1e-4)
    assert (reference_scalars - torch.tensor([10.0, 0.5, 0.5])).abs().min() > 1e-5


def test_it_prints_a_table():
    command = [sys.executable, str(ROOT / "experiments" / "throughput.py"), "--width", "8", "--batch-size", "8"]
    code = "import sys, throughput as t; t.alternating.__defaults__ = (1, 0.01); sys.argv = sys.argv[1:]; "
    code += "import tyro; tyro.cli(t.main)"
    result = subprocess.run(
        [sys.executable, "-c", code, *command[1:]], cwd=ROOT / "experiments", capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| Meta SAC-Lag |") == 2 and "sacv2-lag" in result.stdout
    result = subprocess.run([*command, "--peers"], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in result.stderr
