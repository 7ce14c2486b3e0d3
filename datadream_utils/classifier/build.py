"""The classifiers: CLIP with LoRA, zero-shot CLIP, and the authors' second one, a ResNet-50 trained from scratch.

Each has the attributes ``processor`` (CLIP's preprocessing) and ``image_size`` (pixels). The ResNet is that of
transformers. It gets the same pictures as CLIP: the same size, augmentation and normalisation.
"""

import torch
from peft import PeftModel
from transformers import ResNetConfig, ResNetForImageClassification

from datadream_utils.backbones.clip import ClipClassifier, attach_clip_lora
from datadream_utils.backbones.load import load_clip
from datadream_utils.files import atomic_write
from datadream_utils.params import resolve
from datadream_utils.seeds import stable_seed


class ResNetClassifier(torch.nn.Module):
    """A ResNet with an output per class, initialised from ``seed`` alone."""

    def __init__(self, config, seed, processor, image_size):
        super().__init__()
        self.processor, self.image_size = processor, image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.resnet = ResNetForImageClassification(config)

    def class_weights(self):
        """None: the last layer holds the class weights."""
        return None

    def forward(self, pixel_values, class_weights=None):
        """Logits (n, classes)."""
        return self.resnet(pixel_values).logits

    def blocks(self):
        """What is compiled: all of it, since its blocks are of many shapes."""
        return [self.resnet]

    def checkpoint_activations(self):
        """Does nothing: transformers' ResNet does not support it."""

    def save(self, folder):
        """Write it in transformers' own format, safetensors."""
        with atomic_write(folder) as temporary:
            self.resnet.save_pretrained(temporary)

    def load(self, folder):
        """Take the weights that ``save`` wrote."""
        device = next(self.parameters()).device
        self.resnet = type(self.resnet).from_pretrained(folder, use_safetensors=True).to(device)


def make_classifier(run):
    """The classifier before training: CLIP with fresh LoRA, a fresh ResNet, or for setting "none" CLIP as it is.

    Its random numbers come from (seed, setting) alone. In evaluation mode, on the run's device.
    """
    p = run.params
    seed = stable_seed("train", p.seed, p.setting)
    clip, tokenizer, processor = load_clip(p.clip_model, p.clip_revision, run.device)
    if p.classifier != "clip":
        config = resnet_config(p.classifier, run.data.class_names)
        size = clip.config.vision_config.image_size
        return ResNetClassifier(config, seed, processor, size).to(run.device).eval()
    if p.setting != "none":
        clip = attach_clip_lora(clip, p.clip_lora_rank, p.clip_lora_alpha, p.clip_lora_dropout, seed)
    return ClipClassifier(clip, tokenizer, processor, run.data).eval()


def zero_shot_clip(run):
    """The run's CLIP without any training, as a classifier in evaluation mode."""
    clip, tokenizer, processor = load_clip(run.params.clip_model, run.params.clip_revision, run.device)
    return ClipClassifier(clip, tokenizer, processor, run.data).eval()


def load_classifier(run):
    """The trained classifier of the finished stage of ``run``, in evaluation mode."""
    if run.params.setting == "none":
        return zero_shot_clip(run)
    folder = run.folder / "classifier"
    if run.params.classifier == "clip":
        classifier = zero_shot_clip(run)
        classifier.clip = PeftModel.from_pretrained(classifier.clip, folder)
        return classifier.eval()
    classifier = make_classifier(run)
    classifier.load(folder)
    return classifier.eval()


@torch.inference_mode()
def classify(classifier, image):
    """``(seen, probabilities)`` of one PIL image.

    seen: the preprocessed picture (height, width, 3) in [0, 1]; probabilities: (classes,).
    """
    processor = classifier.processor
    pixels = torch.from_numpy(processor(images=image).pixel_values[0])
    device = next(classifier.parameters()).device
    logits = classifier(pixels[None].to(device), classifier.class_weights())
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    seen = (pixels * std + mean).clamp(0, 1).permute(1, 2, 0)
    return seen.numpy(), logits[0].float().softmax(-1).cpu().numpy()


def resnet_config(classifier, class_names):
    """The configuration of "resnet50", the published ResNet-50, or the config.json in the folder ``classifier``."""
    if classifier == "resnet50":
        config = ResNetConfig(num_labels=len(class_names))
    else:
        config = ResNetConfig.from_pretrained(resolve(classifier), num_labels=len(class_names))
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: label for label, name in enumerate(class_names)}
    return config
