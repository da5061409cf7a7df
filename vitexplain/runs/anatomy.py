"""The anatomy of a model: what it does with one image, block by block."""

from vitexplain.anatomy import anatomy
from vitexplain.drawing.anatomy import draw_anatomy
from vitexplain.explainer import Map, answer_stays, blocks_of_image
from vitexplain.images.writing import short_stem, write_png
from vitexplain.outputs import are_values
from vitexplain.runs.single import open_one, report_of
from vitexplain.settings import Settings


def explain_anatomy(settings: Settings) -> dict:
    """What the model does with one image, block by block, on a figure."""
    session, path, opened = open_one(settings)
    (method,) = session.explainer.methods
    options = (method[name] for name in ("head_fusion", "discard_ratio", "start_block"))
    found = anatomy(session.loaded.model, opened.tensor[None], *options)
    style = settings.style
    title = f"{path.name}, seen by the model {session.loaded.name}"
    blocks = ()
    if session.loaded.categories and not are_values(session.loaded.labels):
        blocks = blocks_of_image(session.loaded, opened.tensor)
    figure = draw_anatomy(
        found,
        opened.seen,
        title,
        predictions=blocks,
        alpha=style.alpha,
        colormap=style.colormap,
    )
    files = {"anatomy": session.folder / f"{short_stem(path.stem)}_anatomy.png"}
    write_png(files["anatomy"], figure, session.overlay.texts)
    rollout = Map(found.rollout, None, method)
    return {
        **report_of(session, [rollout], files),
        "method": method,
        "blocks": [each.as_json() for each in blocks],
        "answer_stays_from_block": answer_stays(blocks) if blocks else None,
    }
