"""Many runs at once: the Snakefile, its profiles, and ``scripts``, the commands before, during and after a study.

The commands are started in the project's folder, ``python -m workflow.scripts.estimate ...``. This file makes the
folder a package, so that another installed package called ``workflow`` cannot take its place.
"""
