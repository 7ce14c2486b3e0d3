"""What only a notebook needs: its set-up and progress line, pictures with controls, one's own folder of images.

It imports from every other room of the package; nothing imports from it but notebooks. Begin with ``setup``.
"""
