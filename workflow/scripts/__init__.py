"""Commands for whole studies: ``python -m workflow.scripts.<name> --help``, started in the project's folder.

study reads a study file, and everything else follows from it; begin there. estimate (with measure) predicts what a study
will cost, launch runs a stage without a notebook, report writes the overview, verify makes a run again and compares,
share copies a run for other people. They may import everything in datadream_utils; nothing imports them, except
the Snakefile.
"""
