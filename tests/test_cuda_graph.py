"""What a CUDA graph asks of Algorithm 1's lines 12 to 20, as far as it shows without a GPU: nothing is read back to the
host, what lives on stays where it is, and the capture is made once, after five updates."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, SHORT, assert_one_line, train
from test_mathematics import BLOCK, VARIANTS, execute, make_state
from torch.utils._python_dispatch import TorchDispatchMode

import meta_sac_lag
import sac_lag_baselines


class NothingReadBack(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique")
        assert not any(func.name().removeprefix("aten::").startswith(name) for name in reads), func
        return func(*args, **(kwargs or {}))


def living_on(names):
    """Where each tensor that lives on from update to update has its numbers"""
    tensors = {name: x for name, x in names.items() if name in "phi nu epsilon log_alpha".split() or "_square" in name}
    for name, x in names.items():
        if isinstance(x, torch.nn.Module):
            tensors |= {f"{name}.{key}": parameter for key, parameter in x.named_parameters()}
        if isinstance(x, torch.optim.Optimizer):
            for i, state in enumerate(x.state.values()):
                tensors |= {f"{name}.{i}.{key}": value for key, value in state.items()}
    return {name: x.data_ptr() for name, x in tensors.items() if not name.endswith("_new")}


@pytest.mark.parametrize("objective, sign", VARIANTS)
def test_nothing_is_read_back_and_nothing_moves(objective, sign):
    state = make_state(epsilon_objective=objective, epsilon_step=sign)
    for name in ("qr", "qc", "alpha"):  # as the script makes them; others read their count of steps
        weights = [state["log_alpha"]] if name == "alpha" else state[name].parameters()
        state[f"{name}_optimizer"] = torch.optim.Adam(weights, lr=1e-3, fused=True)
    names = execute(state)  # Adam makes its state in its first step
    before = living_on(names)
    assert len(before) > 60 and {"nu_square", "phi", "qr.bias_1", "qc_optimizer.0.exp_avg"} <= set(before)
    with NothingReadBack():
        exec(BLOCK, names)
    assert living_on(names) == before


def test_a_read_would_be_noticed():
    with NothingReadBack(), pytest.raises(AssertionError):
        torch.ones(()).item()


def test_a_sample_does_not_depend_on_whether_d_s_is_empty_yet():
    """By a branch: a graph that was captured before the first violation would never see one."""
    state = make_state()
    D, D_s, rng = state["D"], state["D_s"], state["rng"]
    D_s.added = 0
    D_s.size.fill_(0)
    drawn = rng.get_state()
    one = D.sample(16, D_s)
    rng.set_state(drawn)
    other = D.sample(16)
    assert all(torch.equal(getattr(one, field), getattr(other, field)) for field in D.rows)
    calls = []

    class Counts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.name())
            return func(*args, **(kwargs or {}))

    for added in (0, 10):
        D_s.added = added
        D_s.size.fill_(added)
        with Counts():
            D.sample(16, D_s)
        calls.append("end")
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]


@pytest.fixture(params=[meta_sac_lag, sac_lag_baselines])
def cuda(request, monkeypatch):
    """torch.cuda's part of it, which takes notes instead"""
    notes = []
    note = lambda name: lambda *_: notes.append(name) or contextlib.nullcontext()  # noqa: E731
    graph = SimpleNamespace(replay=note("replay"), register_generator_state=lambda rng: notes.append(rng))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    for name in ("synchronize", "Stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, note(name))
    return SimpleNamespace(graph=request.param.CudaGraph, notes=notes)


def test_the_sixth_update_is_captured_and_then_replayed(cuda):
    graph = cuda.graph("the generator")
    for update in range(9):
        if not graph.replay():
            with graph.capture():
                cuda.notes.append(f"update {update}")
    warm_up = [["synchronize", "Stream", "stream", f"update {update}", "synchronize"] for update in range(5)]
    captured = ["the generator", "graph", "update 5", "replay"]
    assert cuda.notes == [*sum(warm_up, []), *captured, *3 * ["replay"]]


def test_without_a_graph_every_update_runs_as_it_is(cuda):
    graph = cuda.graph(None)
    for update in range(9):
        assert not graph.replay()
        with graph.capture():
            cuda.notes.append(update)
    assert cuda.notes == list(range(9))


def test_a_capture_that_fails_says_how_to_go_on(cuda):
    graph = cuda.graph("the generator")
    with pytest.raises(meta_sac_lag.gym.error.Error, match="--no-cuda-graph.*out of memory"):
        for update in range(6):
            with graph.capture():
                if update == 5:
                    raise RuntimeError("CUDA error: out of memory")


def test_on_a_cpu_the_flag_has_no_effect(folder, run_here):
    flags = ("--env-id", "my_env:MyEnv-v0", *SHORT)
    one, other = train(folder, *flags), train(folder, *flags, "--no-cuda-graph")
    policies = [torch.load(run_dir / "policy_300.pt", weights_only=True)["actor"] for run_dir in (one, other)]
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])
    result = run_here("--resume", one, "--total-timesteps", 320, "--no-cuda-graph")
    assert result.returncode == 0 and "keeps its own" not in result.stdout
    assert_one_line(run_here("--resume", one), "320 steps")


@pytest.mark.parametrize("script", ["meta_sac_lag.py", "sac_lag_baselines.py"])
def test_a_run_that_comes_from_a_gpu_goes_on_here(folder, run_here, script):
    run_dir = train(folder, "--env-id", "my_env:MyEnv-v0", *SHORT, script=ROOT / script)
    saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    saved["device"] = "cuda"
    for name in ("qr_optimizer", "qc_optimizer", "alpha_optimizer"):
        saved["parts"][name]["param_groups"][0]["capturable"] = True
    torch.save(saved, run_dir / "checkpoint.pt")
    result = run_here("--resume", run_dir, "--total-timesteps", 320, script=ROOT / script)
    assert result.returncode == 0, result.stderr
    saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert saved["device"] == "cpu" and not saved["parts"]["qr_optimizer"]["param_groups"][0]["capturable"]
