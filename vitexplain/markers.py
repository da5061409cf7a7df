"""Put a table where a document has markers for it."""

from pathlib import Path

from vitexplain.errors import RequestError


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between the two markers.

    Raises:
        RequestError: if the document does not have both of them, once each.
    """
    document = path.read_text(encoding="utf-8")
    if document.count(begin) != 1 or document.count(end) != 1:
        raise RequestError(f"{path} does not hold the markers {begin} and {end} once each")
    before, rest = document.split(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")
