"""Commands for whole studies: ``python -m workflow.scripts.<name> --help``, started in the project's folder.

Begin with ``study.py``, which reads a study file: everything else follows from it. ``estimate.py`` (with
``measure.py``) predicts what a study will cost, ``launch.py`` runs a stage without a notebook, ``report.py`` writes the
overview, ``verify.py`` makes a run again and compares, ``share.py`` copies a run for other people. They may import
everything in ``datadream_utils``; only the Snakefile imports them.
"""
