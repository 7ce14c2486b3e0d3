"""How the toy world's base models were made: ``pretrain.py`` trains the ``architectures`` on ``typeset`` characters.

Start it in the project's folder: ``python -m models.pretraining.pretrain --output models`` (``make pretrain``).
"""
