"""The authors' second classifier: a ResNet-50 trained from scratch, with transformers' own ResNet (no torchvision).

It sees the same pictures as CLIP: the same size, augmentation and normalisation.
"""

import torch
from transformers import ResNetConfig, ResNetForImageClassification

from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write
from datadream_utils.params import resolve


class ResNetClassifier(torch.nn.Module):
    """A ResNet with an output per class, initialised from ``seed`` alone."""

    kind = "resnet"

    def __init__(self, config, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.resnet = ResNetForImageClassification(config)

    def class_weights(self):
        """Nothing: the classes' weights are its last layer."""
        return None

    def forward(self, pixel_values, class_weights=None):
        """Logits (n, classes)."""
        return self.resnet(pixel_values).logits

    def spare_memory(self):
        """There is no way to."""
        return False

    def save(self, folder):
        """In transformers' own format, safetensors."""
        with atomic_write(folder) as temporary:
            self.resnet.save_pretrained(temporary)


def resnet_config(classifier, class_names):
    """``"resnet50"``: the published ResNet-50; otherwise the config.json in the folder ``classifier``. InputError."""
    if classifier == "resnet50":
        config = ResNetConfig(num_labels=len(class_names))
    elif (resolve(classifier) / "config.json").is_file():
        config = ResNetConfig.from_pretrained(resolve(classifier), num_labels=len(class_names))
    else:
        raise InputError(
            f"classifier {classifier!r} is neither 'clip' nor 'resnet50' nor a folder with the config.json of a ResNet."
        )
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: label for label, name in enumerate(class_names)}
    return config
