"""Stage 4: numbers and tables. It reads what finished runs left on disk.

Begin with ``results.py`` (every run as a row), then ``compare.py`` (whether two classifiers differ). ``published.py``
holds the paper's numbers, ``ablations.py`` runs that differ in one parameter, ``alignment.py``, ``copies.py`` and
``per_class.py`` what the paper leaves out, ``cost.py`` what a result costs; ``tables.py`` writes them all. It
may import from every room but ``plots`` and ``interactive``.
"""
