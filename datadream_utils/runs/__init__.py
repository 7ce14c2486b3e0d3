"""Runs: what a stage is made from, where it is kept, and how it goes on after an interruption.

Begin with ``run.py``: a ``Run`` is one stage at work. ``stage.py`` is its folder on disk, ``device.py`` what computes,
``shards.py`` how the work is divided. ``locks.py`` and ``checksums.py`` keep it whole, ``checkpoint.py`` saves an
unfinished training, ``progress.py`` shows it, ``plausible.py`` refuses what cannot be a result.
Imports the ground modules and ``data``.
"""
