"""A demo that is served, for the tests of its answers and of its pages in a browser."""

import pytest
import torch
from helpers import MASK, Competition

from demo import page, serving, uploads
from foldface import runs


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run with random weights for the mask task, served: (address, desk, settings, answerer)."""
    import model

    root = tmp_path_factory.mktemp("app")
    competition = Competition(root)
    config = competition.config("--app.port", 0, "--app.upload_mb", 1)
    folder = root / "run" / "fold0"
    folder.mkdir(parents=True)
    runs.save(config)
    from foldface.nn import heads

    told = heads.Heads(config.predicted, config.model.heads)
    net = model.build("test_resnet", told.size, False, 32)
    import dataset

    rows, _ = dataset.training_rows(config)
    model.save(folder / "best.safetensors", net, model.describe(config, told, net, "no", 0, rows))
    from demo import gan_networks

    maker = gan_networks.make_generator("projected", 32, MASK.size, 4, 40)
    photos = torch.randint(256, (40, 32, 32, 3), dtype=torch.uint8)
    maker.codes.learn(photos, torch.arange(40) % MASK.size)
    about = {"gan": "projected", "image_size": 32, "width": 4, "classes": list(MASK.classes), "photos": 40, "epoch": 1}
    (root / "run" / "gan").mkdir()
    model.save(root / "run" / "gan" / "best.safetensors", maker, about)
    config.folds, config.share, config.examples = [], False, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "set by page.start")
        desk = uploads.UploadDir(int(config.app.upload_mb * 1e6))
        shown = page.start(config, desk)
        yield shown.local_url, desk, config, serving.Predictor(config), shown
        shown.close(verbose=False)
        desk.close()
    assert not desk.folder.exists()
