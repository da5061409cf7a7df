"""Images with masks: their layout, what the model sees of a mask, and maps measured on them."""

import io
import zipfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from helpers import make_vit
from vitexplain.faithfulness.baselines import BASELINES, centre_blob
from vitexplain.faithfulness.segmentation import OBJECT, SEGMENTED, UNKNOWN, segmented
from vitexplain.images.reading import PictureError
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import LoadedModel, load_model
from vitexplain.models.transform import InputTransform
from vitexplain.training.data import DataError
from vitexplain.training.localisation import map_functions
from vitexplain.training.masks import MaskedImages, baselines_like, on_masks, seen_mask

HEAD = "file,mask,animal,imagenet_indices\n"


def png(array, mode=None):
    image = Image.fromarray(np.asarray(array, dtype=np.uint8))
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def truth_of(shape=(60, 90), place=(slice(10, 40), slice(20, 50))):
    truth = np.zeros(shape, dtype=np.uint8)
    truth[place] = 1
    truth[-5:] = 255
    return truth


def picture_of(truth):
    """The object white, all else black."""
    return np.repeat((truth == 1)[..., None] * np.uint8(255), 3, axis=2)


def stored(path, files, kind="folder"):
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def with_index(rows, head=HEAD):
    return {
        "index.csv": head + rows,
        "images/a.png": png(picture_of(truth_of())),
        "masks/a.png": png(truth_of()),
    }


@pytest.fixture(scope="module")
def loaded():
    """The bundled model at 64 pixels: 4 x 4 patches."""
    return load_model("bundled", img_size=(64, 64))


@pytest.fixture
def data(tmp_path):
    other = truth_of(place=(slice(30, 50), slice(60, 85)))
    files = with_index(
        "images/a.png,masks/a.png,cat,281-285\n"
        "images/broken.png,masks/a.png,cat,281-285\n"
        "images/b.png,masks/b.png,,\n"
        "images/a2.png,masks/small.png,cat,\n"
        "images/a3.png,masks/none.png,cat,\n"
        "images/a4.png,masks/missing.png,cat,\n"
        "images/a5.png,masks/seven.png,cat,\n"
        "images/a6.png,masks/colours.png,cat,\n"
    )
    files |= {f"images/a{n}.png": files["images/a.png"] for n in range(2, 7)}
    files |= {
        "images/broken.png": b"no image",
        "images/b.png": png(picture_of(other)),
        "masks/b.png": png(other),
        "masks/small.png": png(truth_of((30, 45))),
        "masks/none.png": png(np.zeros((60, 90))),
        "masks/seven.png": png(np.where(truth_of() == 1, 7, 0)),
        "masks/colours.png": png(picture_of(truth_of())),
    }
    return MaskedImages(stored(tmp_path / "data", files))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_layout(kind, tmp_path):
    rows = 'images/a.png,masks/a.png,cat,"285, 281-283;7"\n'
    data = MaskedImages(stored(tmp_path / "data", with_index(rows), kind))
    assert data.names == ["images/a.png"] and data.masks == {"masks/a.png"}
    assert data.read("images/a.png").size == (90, 60)
    np.testing.assert_array_equal(data.truth("images/a.png", (90, 60)), truth_of())
    assert data.categories("images/a.png", 1000) == (7, 281, 282, 283, 285)
    with pytest.raises(DataError, match=r"line 2: the model has the categories 0 to 9, not 285"):
        data.categories("images/a.png", 10)


def test_only_file_and_mask_are_needed(tmp_path):
    """The column of categories can be missing; a byte order mark, as of Excel, does not matter."""
    files = with_index("images/a.png,masks/a.png\n", "\ufefffile,mask\n")
    assert MaskedImages(stored(tmp_path / "data", files)).categories("images/a.png", 5) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,mask\n", "has no column file"),
        ("", "has no column file and mask"),
        (HEAD, "names no image"),
        (HEAD + "images/a.png\n", "line 2: an image and its mask were due"),
        (HEAD + "../a.png,masks/a.png,,\n", r"line 2: \.\./a\.png leads out of the data"),
        (HEAD + "images/a.png,/etc/passwd,,\n", "line 2: /etc/passwd leads out of the data"),
        (HEAD + "images/a.png,masks/a.png,,285-281\n", "'285-281' are no categories like"),
        (HEAD + "images/a.png,masks/a.png,,cat\n", "line 2: 'cat' are no categories like"),
        (HEAD + "a,b,,\n" * 2, "line 3: a has a row already"),
        (HEAD + '"a\n', "is no CSV"),
        (b"\xff\xfe", "is no text in UTF-8"),
    ],
)
def test_wrong_indices_are_one_sentence(content, message, tmp_path):
    with pytest.raises(DataError, match=message) as raised:
        MaskedImages(stored(tmp_path / "data", {"index.csv": content}))
    assert "\n" not in str(raised.value)


def test_no_index(tmp_path):
    with pytest.raises(DataError, match=r"holds no index\.csv"):
        MaskedImages(tmp_path)
    with pytest.raises(DataError, match="neither a folder nor a zip file"):
        MaskedImages(tmp_path / "nowhere")


@pytest.mark.parametrize("mode", ["1", "P", "L"])
def test_masks_of_every_mode_are_numbers(mode, tmp_path):
    """Of a palette the indices count, whatever their colours are; of one bit, 0 and 1."""
    truth = np.zeros((60, 90), dtype=np.uint8)
    truth[5:20, 30:60] = 1
    image = Image.fromarray(truth)
    if mode == "P":
        image.putpalette([0, 0, 0, 128, 0, 0, 200, 200, 200])
    elif mode == "1":
        image = Image.fromarray(truth.astype(bool))
    assert image.mode == mode
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    files = with_index("images/a.png,masks/a.png,,\n") | {"masks/a.png": buffer.getvalue()}
    data = MaskedImages(stored(tmp_path / "data", files))
    np.testing.assert_array_equal(data.truth("images/a.png", (90, 60)), truth)


@pytest.mark.parametrize("crop", ["none", "center", "pad"])
@pytest.mark.parametrize("size", [(90, 60), (50, 120), (64, 64)])
def test_a_mask_lies_where_the_model_sees_its_object(crop, size):
    """The object is white in the image: what becomes white in the input is the object's mask."""
    truth = np.zeros(size[::-1], dtype=np.uint8)
    truth[size[1] // 5 : size[1] // 2, size[0] // 3 : size[0] * 3 // 4] = 1
    transform = InputTransform((48, 64), (0.0,) * 3, (1.0,) * 3, "bilinear", crop, 0.8)
    seen = seen_mask(transform, truth)
    white = np.asarray(transform.seen(Image.fromarray(picture_of(truth))))[..., 0] > 127
    edges = 64 + 48  # pixels on the object's edge may be either
    assert (seen == OBJECT).sum() > 100
    assert ((seen == OBJECT) != white).sum() < edges
    inside = (seen == OBJECT)[1:-1, 1:-1]  # moved by a pixel, it fits less well
    for moved in (white[2:, 1:-1], white[:-2, 1:-1], white[1:-1, 2:], white[1:-1, :-2]):
        assert (inside != white[1:-1, 1:-1]).sum() < (inside != moved).sum()
    assert (seen == UNKNOWN).any() == (crop == "pad" and size != (64, 48))


def test_padding_is_unknown():
    transform = InputTransform((40, 40), (0.0,) * 3, (1.0,) * 3, crop="pad")
    seen = seen_mask(transform, np.ones((20, 40), dtype=np.uint8))
    assert (seen[:10] == UNKNOWN).all() and (seen[30:] == UNKNOWN).all()
    assert (seen[10:30] == OBJECT).all()


def test_values_of_each_image(loaded, data):
    """Those of the map of the most likely of its categories, or of all; what fails is named."""
    asked, told = [], []

    def first_channel(x, categories):
        asked.append(list(categories))
        return torch.nn.functional.avg_pool2d(x, 4)[0, 0].repeat(len(categories), 1, 1).numpy()

    found = dict(on_masks({"m": first_channel}, loaded, data, data.names, tell=told.append))
    assert list(found) == ["images/a.png", "images/b.png"]
    tensors = [loaded.transform(data.read(name)) for name in found]
    with torch.inference_mode():
        logits = loaded.model(torch.stack(tensors))
    assert asked == [[281 + int(logits[0, 281:286].argmax())], [int(logits[1].argmax())]]
    for tensor, (name, values) in zip(tensors, found.items(), strict=True):
        mask = first_channel(tensor[None], [0])[0]
        truth = seen_mask(loaded.transform, data.truth(name, (90, 60)))
        assert values == {"m": segmented(mask, truth)}
    # a bright object, and the map is the brightness: above the mean lies the object
    assert found["images/a.png"]["m"]["foreground_iou"] > 0.7
    expected = [
        "images/broken.png is not an image",
        "masks/small.png has 45x30 pixels, and its image images/a2.png 90x60",
        "masks/none.png has no pixel of value 1, the object; 0 is background and 255 unknown",
        "no image at masks/missing.png",
        "masks/seven.png holds the value 7: 0 is background",
        "masks/colours.png has 3 channels",
    ]
    assert len(told) == len(expected)
    for notice, start in zip(told, expected, strict=True):
        assert notice.startswith(f"skipped: {start}")


def test_an_object_outside_the_crop_is_skipped(loaded, tmp_path):
    truth = np.zeros((60, 200), dtype=np.uint8)
    truth[:, :20] = 1
    files = with_index("images/a.png,masks/a.png,,\n")
    files |= {"images/a.png": png(picture_of(truth)), "masks/a.png": png(truth)}
    data = MaskedImages(stored(tmp_path / "data", files))
    central = load_model("bundled", img_size=(64, 64), crop="center")
    told = []
    assert list(on_masks({}, central, data, data.names, tell=told.append)) == []
    assert "images/a.png: the model sees nothing of its object" in told[0]
    assert len(list(on_masks({}, loaded, data, data.names, tell=told.append))) == 1


def test_work_resumes_after_any_image(loaded, data):
    """One image at a time, and each one's values depend on no other."""
    maps = map_functions({"relevance": METHODS["relevance"]}, loaded.model)
    maps |= baselines_like(maps["relevance"])
    good = ["images/a.png", "images/b.png"]
    whole = list(on_masks(maps, loaded, data, good))
    assert set(whole[0][1]) == {"relevance", "random", "centre_blob"}
    work = on_masks(maps, loaded, data, good)
    assert next(work) == whole[0]
    work.close()
    assert list(on_masks(maps, loaded, data, good[1:])) == whole[1:]


def test_baselines_are_those_of_the_measures(loaded, data):
    """The same maps as `--evaluate` gives, which need no method to know the grid."""
    tensor = loaded.transform(data.read("images/a.png"))[None]
    relevance = map_functions({"relevance": METHODS["relevance"]}, loaded.model)["relevance"]
    known, ours = map_functions(BASELINES, loaded.model), baselines_like(relevance)
    for name, explain in ours.items():
        mask = explain(tensor, [1, 2])
        assert mask.shape == (2, 4, 4)
        np.testing.assert_allclose(mask[1] / mask[1].max(), known[name](tensor, [1])[0], rtol=1e-6)


def test_categories_that_the_model_lacks_end_the_work(loaded, tmp_path):
    files = with_index("images/a.png,masks/a.png,x,1000\n")
    data = MaskedImages(stored(tmp_path / "data", files))
    with pytest.raises(DataError, match=r"line 2: the model has the categories 0 to 999, not 1000"):
        list(on_masks({}, loaded, data, data.names))


def test_a_model_without_categories(data):
    """Attention rollout needs none, whatever the index says of them."""
    model = make_vit(num_classes=0)
    transform = InputTransform((32, 32), (0.5,) * 3, (0.5,) * 3)
    loaded = LoadedModel(model, "no head", transform, [])
    rollout = METHODS["attention_rollout"]
    maps = map_functions({"rollout": rollout}, model)
    ((_, found),) = on_masks(maps, loaded, data, ["images/a.png"])
    image = data.read("images/a.png")
    truth = seen_mask(transform, data.truth("images/a.png", image.size))
    mask = rollout.make(model)(transform(image)[None])
    assert found == {"rollout": segmented(mask, truth)}


def test_a_cnn(data):
    """Grad-CAM, and both baselines on its grid."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=5).eval()
    transform = InputTransform((64, 64), (0.5,) * 3, (0.5,) * 3)
    loaded = LoadedModel(model, "resnet10t", transform, list("abcde"))
    maps = map_functions({"gradcam": METHODS["gradcam"]}, model)
    maps |= baselines_like(maps["gradcam"])
    ((_, found),) = on_masks(maps, loaded, data, ["images/b.png"])
    truth = seen_mask(transform, data.truth("images/b.png", (90, 60)))
    assert found["centre_blob"] == segmented(centre_blob(2, 2), truth)
    assert found["gradcam"] != found["random"]


def test_a_member_that_is_missing_is_named(tmp_path):
    rows = "images/b.png,masks/a.png,,\n"
    data = MaskedImages(stored(tmp_path / "data.zip", with_index(rows), "zip"))
    with pytest.raises(PictureError, match=r"data\.zip holds no images/b\.png"):
        data.read("images/b.png")


@pytest.mark.slow
def test_photographs_of_animals(shared):
    """Near what was measured on 299 others of the collection: mIoU 0.661, 0.608 and 0.545."""
    weights = shared / "reference" / "deit_tiny_patch16_224.safetensors"
    path = shared / "data" / "masks.zip"
    for file in (weights, path):
        if not file.is_file():
            pytest.skip(f"needs {file}, which is not here")
    deit = load_model("deit_tiny_patch16_224", weights)
    methods = {name: METHODS[name] for name in ("relevance", "attention_rollout")}
    maps = map_functions(methods, deit.model)
    maps |= baselines_like(maps["relevance"])
    data = MaskedImages(path)
    assert len(data.names) == 299
    found = [values for _, values in on_masks(maps, deit, data, data.names[::10])]
    assert len(found) == 30
    means = {
        method: {m.key: np.mean([each[method][m.key] for each in found]) for m in SEGMENTED}
        for method in maps
    }
    assert means["relevance"]["pixel_accuracy"] == pytest.approx(0.825, abs=0.06)
    assert means["relevance"]["ap"] == pytest.approx(0.846, abs=0.06)
    ious = [means[name]["iou"] for name in ("relevance", "attention_rollout", "centre_blob")]
    assert ious == [pytest.approx(value, abs=0.06) for value in (0.661, 0.608, 0.545)]
    assert sorted(ious, reverse=True) == ious and means["random"]["iou"] < min(ious)
