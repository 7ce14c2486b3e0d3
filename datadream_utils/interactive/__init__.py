"""What only a live notebook needs: pictures with controls, and the short path for one's own folder of images.

It imports from every other room of the package; nothing imports from it but notebooks. Begin with ``explorer``.
"""
