"""experiments/threshold.py: the README's table, and that its means are over episodes."""

import sys

import numpy as np
import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
import threshold


def test_the_readmes_table_is_what_the_csvs_say():
    expected, readme = threshold.table(), (ROOT / "README.md").read_text()
    start, end = "<!-- experiments/threshold.py table -->\n", "\n<!-- end of threshold.py's -->"
    assert readme.split(start)[1].split(end)[0] == expected
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
