"""The real images: data sets as lists of files, and the few shots drawn from them.

Begin with ``dataset.py`` (``Dataset``, ``load_dataset``) and ``shots.py`` (``few_shot``); the other modules each read
one thing: folders of classes, class names, known data sets, original archives, the hub's form, split files, pictures.
Imports only the ground modules of the package.
"""
