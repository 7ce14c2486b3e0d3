"""What one difference per seed says: its mean, an interval over seeds, and whether that is more than noise."""

from datadream_utils.analysis.compare import LEVEL, NOISE, ONE_SEED, over_seeds

ABOVE, BELOW = "above 0", "below 0"
SAID = {ABOVE: "more than noise", BELOW: "more than noise", NOISE: NOISE, ONE_SEED: "one seed: noise not known"}


def against_noise(points):
    """The mean of one difference per seed (points), "low" and "high" (``compare.over_seeds``), and a verdict.

    "verdict": ``ABOVE`` or ``BELOW`` where the 95 % interval excludes 0, else ``NOISE``; ``ONE_SEED`` without interval.
    """
    points = [round(float(value), 9) for value in points]  # differences of shares: 0 is to be 0
    low, high = over_seeds(points)
    verdict = ONE_SEED if len(points) < 2 else ABOVE if low > 0 else BELOW if high < 0 else NOISE
    return {"mean": sum(points) / len(points), "low": low, "high": high, "verdict": verdict}


def by_seed(first, second):
    """``against_noise`` of two ``{seed: value}``, first minus second over the seeds they share; None without one."""
    points = [value - second[seed] for seed, value in first.items() if seed in second]
    return against_noise(points) if points else None


def told(found, unit=" points"):
    """``against_noise`` in words: "+3.0 points (-1.0 to +7.0 over seeds: within noise)"."""
    if found["verdict"] == ONE_SEED:
        return f"{found['mean']:+.1f}{unit} ({SAID[ONE_SEED]})"
    return (
        f"{found['mean']:+.1f}{unit} ({found['low']:+.1f} to {found['high']:+.1f} over seeds: {SAID[found['verdict']]})"
    )


def by_chance(count):
    """How many of ``count`` such intervals miss 0 by chance, in words."""
    expected = LEVEL * count
    return f"about {expected:.0f} by chance" if expected >= 1 else f"about {expected:.1g} by chance"
