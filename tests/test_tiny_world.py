"""The tiny world: captions that are true of their pictures, models that stock libraries load, honest card."""

import hashlib
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from datadream_utils.params import ROOT
from models.pretraining import pretrain, typeset
from models.pretraining.architectures import make_tokenizer
from models.pretraining.pretrain import contrastive_loss

CLIP, SD = ROOT / "models" / "tiny-clip", ROOT / "models" / "tiny-stable-diffusion"


def test_pictures_repeat_and_have_the_right_shape():
    first, again = (typeset.render(8, torch.Generator().manual_seed(3), "bent") for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert first[0].shape == (8, 3, 32, 32) and first[0].min() >= 0 and first[0].max() <= 1


def test_captions_say_what_is_in_the_picture():
    generator = torch.Generator().manual_seed(0)
    _, facts = typeset.render(300, generator)
    texts, says = typeset.captions(facts, generator)
    colours = list(typeset.COLOURS)
    for text, (character, ink, background), (say_ink, say_background) in zip(
        texts, facts.tolist(), says.tolist(), strict=True
    ):
        assert typeset.character_name(typeset.CHARACTERS[character]) in text
        assert (f"{colours[ink]} " in text.split(" on a ")[0]) == say_ink
        assert text.endswith(f"on a {colours[background]} background") == say_background
    assert set(" ".join(texts).replace(",", "").split()) <= set(typeset.vocabulary())


def test_truth_of_captions():
    facts = torch.tensor([[7, 0, 1], [7, 0, 2], [7, 3, 1], [8, 0, 1]])
    says = torch.tensor([[True, True], [True, False], [False, False], [True, True]])
    expected = [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert typeset.caption_is_true(facts, says).int().tolist() == expected


def test_contrastive_loss_is_clips_when_every_caption_is_its_own():
    image, text = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    logits = 10 * torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    labels = torch.arange(5)
    ce = torch.nn.functional.cross_entropy
    expected = (ce(logits, labels) + ce(logits.T, labels)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, 10.0, torch.eye(5, dtype=torch.bool)), expected)


def test_pictures_without_hue_have_none():
    pictures, facts = typeset.render(64, torch.Generator().manual_seed(0), "bent")
    grey = torch.isin(facts[:, 1:], typeset.GREYS).all(1)
    assert 8 < grey.sum() < 40 and (pictures[grey].amax(1) - pictures[grey].amin(1)).max() == 0


def _pretrain(folder):
    clip, vae, sd = folder / "tiny-clip", folder / "vae", folder / "tiny-stable-diffusion"
    if pretrain.checkpoint_of("clip", folder).exists() or not clip.exists():
        pretrain.train_clip(clip, 4, "cpu")
    if pretrain.checkpoint_of("vae", folder).exists() or not vae.exists():
        pretrain.train_vae(vae, 4, "cpu")
    pretrain.train_unet(sd, clip, vae, 4, "cpu")


@pytest.mark.parametrize("part", ["clip", "vae", "unet"])
def test_a_killed_pretraining_goes_on_to_the_same_bytes(part, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 2)
    monkeypatch.setattr(pretrain, "BATCH", {"clip": 8, "vae": 4, "unet": 6})
    monkeypatch.setattr(pretrain, "FRESH", 2)
    _pretrain(tmp_path / "whole")

    class KilledError(Exception):
        pass

    def killed(trainer, loss, step=pretrain.Trainer.step):
        if trainer.part == part and trainer.number == 3:
            raise KilledError
        step(trainer, loss)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(pretrain.Trainer, "step", killed)
        _pretrain(tmp_path / "killed")
    _pretrain(tmp_path / "killed")
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors")]
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file


def test_every_caption_word_is_one_token_and_other_text_is_spelt():
    tokenizer = make_tokenizer()
    assert all(make_tokenizer().get_vocab() == tokenizer.get_vocab() for _ in range(5))
    for word in typeset.vocabulary():
        assert len(tokenizer(word).input_ids) == 3, word
    assert tokenizer.decode(tokenizer("crème 東京").input_ids, skip_special_tokens=True) == "crème 東京"


def test_stock_libraries_load_the_shipped_models():
    clip, tokenizer = CLIPModel.from_pretrained(CLIP), CLIPTokenizer.from_pretrained(CLIP)
    assert tokenizer.model_max_length == clip.config.text_config.max_position_embeddings == 24
    pipe = StableDiffusionPipeline.from_pretrained(SD)
    assert pipe.tokenizer("a red seven").input_ids == tokenizer("a red seven").input_ids
    text = pipe.text_encoder.state_dict()
    shared = {k.removeprefix("text_model."): v for k, v in clip.text_model.state_dict().items()}
    assert all(torch.equal(v.float(), shared[k.removeprefix("text_model.")].float()) for k, v in text.items())


def test_shipped_weights_are_small_safetensors_with_the_cards_checksums():
    card = (ROOT / "models" / "README.md").read_text()
    files = [path for path in (ROOT / "models").rglob("*") if path.is_file() and path.stat().st_size > 50_000]
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 4 and set(files) - set(weights) <= set((ROOT / "models").glob("*.png"))
    assert sum(path.stat().st_size for path in weights) < 20 * 10**6
    for path in weights:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card, path


def test_pretraining_log_is_complete():
    rows = [json.loads(line) for line in (ROOT / "models" / "pretraining_log.jsonl").read_text().splitlines()]
    for part in ("clip", "vae", "unet"):
        losses = [row["loss"] for row in rows if row["part"] == part]
        assert len(losses) >= 10 and losses[-1] < 0.7 * losses[0]
