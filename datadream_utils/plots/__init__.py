"""Figures. A function takes data and returns a figure that knows its words: alt text, and a finding for its caption.

It imports from ``analysis`` and the rooms below. Begin with ``style`` (how a figure looks and what it carries), then
``gallery`` (how figures of the catalogue are shown and written); the other modules draw one kind of figure each.
"""
