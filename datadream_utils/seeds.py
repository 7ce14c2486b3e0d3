"""Seeds and permutations that are the same on every machine."""

import hashlib
import json


def stable_seed(*parts):
    """A seed from 0 to 2**63 - 1, made of strings, numbers and truth values: sha256 of the parts as JSON."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


def permuted(items, *parts):
    """The items of a sequence in a new list, in the one order that belongs to the seed of ``parts``."""
    import torch  # slow: who plans a study permutes nothing

    generator = torch.Generator().manual_seed(stable_seed(*parts))
    return [items[i] for i in torch.randperm(len(items), generator=generator)]
