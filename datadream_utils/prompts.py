"""The sentence that names a class, for Stable Diffusion and CLIP alike (the authors' first small template)."""


def class_prompt(class_name, domain=""):
    """``a photo of a seven``; with a domain word ``a satellite photo of a forest``."""
    return f"a {domain + ' ' if domain else ''}photo of a {class_name}"


def generation_prompt(kind, class_name, domain="", definition=""):
    """The prompt a method generates with.

    kind "template": ``class_prompt``. kind "definition": ``seven, a digit``, class name and what it is, as FakeIt
    prompts (Sariyildiz et al. 2023, section 3.2); a class that the data set does not define is prompted by its name
    alone, their plainest prompt. Every generated image's prompt is kept in ``metadata.jsonl``.
    """
    if kind == "template":
        return class_prompt(class_name, domain)
    return f"{class_name}, {definition}" if definition else class_name
