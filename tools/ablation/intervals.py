"""Which cells differ from the baseline, and how many seeds it takes to see it."""

from statistics import mean, variance

import numpy as np
import pandas as pd
from scipy.stats import dunnett, ncf, t

CONFIDENCE, POWER = 0.95, 0.8
MOST = 100  # seeds that are tried


def compare(values: dict[str, list[float]], baseline: str) -> pd.DataFrame:
    """Dunnett's simultaneous intervals (1955) of every cell's difference to the baseline.

    The cells that are compared have two values or more, so that none widens the intervals of the
    others before it has one itself; the variance is pooled over them and the baseline.

    Returns:
        By cell, `low` and `high` of its interval and its `seeds needed`. It is empty where the
        baseline or all others have fewer values, and where none has two that differ.
    """
    known = {name: each for name, each in values.items() if len(each) > 1}
    columns = ["low", "high", "seeds needed"]
    if not {baseline} < known.keys() or not any(map(variance, known.values())):
        return pd.DataFrame(columns=columns, dtype=float)
    freedom = [len(each) - 1 for each in known.values()]
    std = np.average([*map(variance, known.values())], weights=freedom) ** 0.5
    control = known.pop(baseline)
    # scipy integrates over random points; rng makes them the same in every report.
    interval = dunnett(*known.values(), control=control, rng=0).confidence_interval(CONFIDENCE)
    seeds = [seeds_needed((mean(v) - mean(control)) / std, len(known)) for v in known.values()]
    return pd.DataFrame(dict(zip(columns, (*interval, seeds), strict=True)), index=[*known])


def seeds_needed(effect: float, cells: int) -> float:
    """Seeds per cell that find a difference with POWER; infinity for more than MOST.

    By a two-sided test of so many `cells` against one baseline, at the family-wise level. Its
    critical value is Šidák's bound on Dunnett's: exact for one cell, else up to a tenth too large.

    Args:
        effect: the difference, in standard deviations over seeds.
    """
    n = np.arange(2, MOST + 1)
    freedom = (cells + 1) * (n - 1)
    critical = t.ppf((1 + CONFIDENCE ** (1 / cells)) / 2, freedom)
    # The square of a noncentral t, which scipy's own nct does not compute for large effects.
    power = ncf.sf(critical**2, 1, freedom, effect**2 * n / 2)
    return next(iter(n[power >= POWER]), np.inf)
