"""The sentence that names a class, the same for Stable Diffusion and CLIP (the authors' first small template)."""


def class_prompt(class_name, domain=""):
    """``a photo of a seven``; with a domain word ``a satellite photo of a forest``."""
    return f"a {domain + ' ' if domain else ''}photo of a {class_name}"


def generation_prompt(kind, class_name, domain="", definition=""):
    """The prompt of a generated image.

    kind "template": ``class_prompt``. kind "definition": class name and what it is, ``seven, a digit``, as in FakeIt
    (Sariyildiz et al. 2023, section 3.2); without a definition the class name alone, their plainest prompt.
    """
    if kind == "template":
        return class_prompt(class_name, domain)
    return f"{class_name}, {definition}" if definition else class_name
