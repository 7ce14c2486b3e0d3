"""Captions: a chat model, a caption model and the tiny world's stand-in; each from its seed, naming the class."""

import json

import hub_worlds
import numpy as np
import pytest
import torch
from PIL import Image

from datadream_utils.diffusion.captions import COLOURS, Captioner, load_captioner, one_line
from datadream_utils.errors import InputError
from models.pretraining import typeset

WRITERS = {"blip": hub_worlds.write_blip, "llava": hub_worlds.write_llava}


@pytest.fixture(scope="module", params=WRITERS)
def captioner(request, tmp_path_factory):
    folder = WRITERS[request.param](tmp_path_factory.mktemp(request.param))
    return Captioner(str(folder), "", "cpu", torch.float32)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def test_a_caption_is_one_line_from_its_seed_that_names_the_class(captioner, image):
    state = torch.get_rng_state()
    captions = [captioner.describe(image, "big cat", "", seed) for seed in (3, 3, 4, 5)]
    assert torch.equal(torch.get_rng_state(), state)
    assert captions[0] == captions[1] and len(set(captions)) > 1
    for caption in captions:
        assert "big cat" in caption and caption == " ".join(caption.split()) and len(caption) > len("big cat")
    assert not any(special in captions[0] for special in ("[SEP]", "</s>", "<image>", "USER"))


def test_the_picture_and_the_question_count(captioner, image):
    first = captioner.describe(image, "big cat", "", 3)
    assert first != captioner.describe(Image.new("RGB", image.size), "big cat", "", 3)
    if captioner.processor.chat_template:
        asked = captioner.processor.decode(captioner._question(image, "big cat", "pet")["input_ids"][0])
        assert "pet photo shows a big cat" in asked and asked.rstrip().endswith("ASSISTANT:")
    else:
        assert first.startswith("a photo of a big cat")


def test_half_precision_and_nothing_to_train(make_run, tmp_path, image):
    folder = str(hub_worlds.write_llava(tmp_path))
    captioner = load_captioner(make_run("generate", method="disef", captioner=folder, mixed_precision="bf16"))
    parameters = list(captioner.model.parameters())
    assert {p.dtype for p in parameters} == {torch.bfloat16} and not any(p.requires_grad for p in parameters)
    assert "big cat" in captioner.describe(image, "big cat", "pet", 0)
    assert captioner.note == str(tmp_path)


def test_a_missing_captioner_is_explained(make_run, tmp_path):
    folder = hub_worlds.write_blip(tmp_path)
    run = make_run("generate", method="disef", captioner=str(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = r"captioner '.*' cannot be had \(it has pytorch_model\.bin but no safetensors .* or to 'stand-in'\."
    with pytest.raises(InputError, match=message):
        load_captioner(run)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(InputError, match="captioner '.*' cannot be had"):
        load_captioner(run)
    with pytest.raises(InputError, match="filter_model 'models/nowhere' cannot be had"):
        load_captioner(make_run("generate", method="disef", variant="x", filter_model="models/nowhere"))


def test_the_stand_in_says_so_and_sees_colours(make_run):
    assert set(COLOURS) == set(typeset.COLOURS)
    captioner = load_captioner(make_run("generate", method="disef"))
    assert captioner.note.startswith("stand-in:") and "not the caption model" in captioner.note
    pictures, facts = typeset.render(40, torch.Generator().manual_seed(0))
    colours, right = list(typeset.COLOURS), 0
    for picture, (character, ink, background) in zip(pictures, facts.tolist(), strict=True):
        name = typeset.character_name(typeset.CHARACTERS[character])
        image = Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy())
        caption = captioner.describe(image, name, "", 0)
        assert caption == captioner.describe(image, name, "", 1)
        right += caption == f"a photo of a {colours[ink]} {name} on a {colours[background]} background"
    assert right > 20  # of 40; by chance one in 90 would be right


def test_the_domain_word_is_in_the_stand_ins_sentence(make_run, image):
    caption = load_captioner(make_run("generate", method="disef")).describe(image, "forest", "satellite", 0)
    assert caption.startswith("a satellite photo of a ") and " forest on a " in caption


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A Big  Cat\n sleeps.\n", "A Big Cat sleeps."),
        ("  it sleeps\ton a mat", "big cat, it sleeps on a mat"),
        (" \n", "big cat"),
    ],
)
def test_one_line(text, expected):
    assert one_line(text, "big cat") == expected
