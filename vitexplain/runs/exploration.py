"""One image: the interactive page of what the model does with it."""

from dataclasses import replace

from vitexplain.api import exploration_page, explored_maps
from vitexplain.explainer import Explainer
from vitexplain.images.writing import short_stem
from vitexplain.progress import watch_of
from vitexplain.runs.single import open_one, report_of
from vitexplain.settings import MapOptions, Settings


def explain_explore(settings: Settings) -> dict:
    """Write the page; raises RequestError or OSError for a request that can't be met."""
    # any model is loaded; what the page needs of it is asked then
    session, path, opened = open_one(replace(settings, maps=MapOptions()))
    maps = explored_maps(settings.maps, session.loaded)
    session = replace(session, explainer=Explainer(maps, session.loaded))
    page = exploration_page(
        session.explainer,
        opened,
        path.name,
        colormap=settings.style.colormap,
        watch=watch_of(settings.run),
    )
    files = {"page": session.folder / f"{short_stem(path.stem)}_explore.html"}
    page.write(files["page"])
    return report_of(session, [], files)
