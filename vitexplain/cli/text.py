"""The reports of the runs in words, as the command prints them."""

from collections.abc import Iterator

from vitexplain.methods.questions import in_words
from vitexplain.methods.registry import METHODS
from vitexplain.words import UNBEATEN, share_of


def folder_text(report: dict) -> str:
    """A run over many images."""
    before = f", {report['explained_before']} before" if report["explained_before"] else ""
    failed = f", {report['failed']} failed" if report["failed"] else ""
    return "\n".join([
        *_opening(report),
        *(f"Method: {_method(method)}" for method in report["methods"]),
        f"{report['pictures']} images: {report['explained']} explained{before}{failed}",
        *_judged(report.get("accuracy")),
        *_wrote(report),
    ])  # fmt: skip


def _judged(accuracy: dict | None) -> list[str]:
    """How many predictions are right."""
    if accuracy is None:
        return []
    low, high = accuracy["interval"]
    return [
        f"{accuracy['right']} of {accuracy['of']} predictions are right: top-1 "
        f"{accuracy['value']:.3f} (95 % interval {low:.3f} to {high:.3f})"
    ]


def sweep_text(report: dict) -> str:
    """A sweep of one image."""
    return "\n".join([*_opening(report), f"Drew {len(report['maps'])} maps", *_wrote(report)])


def comparison_text(report: dict) -> str:
    """All methods on one image, each with its faithfulness, and which map to look at."""
    lines = _opening(report)
    for found in report["maps"]:
        marked = ", the most faithful" if found["most_faithful"] else ""
        described = _method({**found, **found["method"]})
        lines.append(f"  {found['faithfulness']:5.2f}  {described}{marked}")
    if not any(found["beats_baselines"] for found in report["maps"]):
        lines.append(f"{UNBEATEN}: none of them tells what the model looked at here")
    elif not any(found["most_faithful"] for found in report["maps"]):
        lines.append("No map is clearly the most faithful: differences as small as these are noise")
    lines += [f"{question}: {methods}" for question, methods in in_words(report["look_at"])]
    return "\n".join([*lines, *_wrote(report)])


def evaluation_text(report: dict) -> str:
    """Methods measured on images."""
    counts = [f"{report['pictures']} images"] if report["images"] else []
    if masked := report["masks"]["images"]:
        counts.append(f"{len(masked)} images with masks")
    measured = [" and ".join(counts), report["table"]]
    return "\n".join([*_opening(report), *measured, *_wrote(report)])


def queries_text(report: dict) -> str:
    """What single tokens look at."""
    lines = [
        ", ".join([f"Token {each['token']}: {each['query']}", *filter(None, [each.get("image")])])
        for each in report["queries"]
    ]
    return "\n".join([*_opening(report), *lines, *_wrote(report)])


def features_text(report: dict) -> str:
    """What the features of images tell apart."""
    shares = ", ".join(f"{share:.0%}" for share in report["variance"])
    failed = f", {report['failed']} failed" if report["failed"] else ""
    return "\n".join([
        *_opening(report),
        f"{report['pictures']} images{failed}; variance along red, green and blue: {shares}",
        *_wrote(report),
    ])  # fmt: skip


def explore_text(report: dict) -> str:
    """The interactive page of one image."""
    return "\n".join([*_opening(report), *_wrote(report), "Open it in a browser."])


def anatomy_text(report: dict) -> str:
    """The anatomy of a model on one image."""
    lines = [*_opening(report), f"Method: {_method(report['method'])}"]
    if report["blocks"]:
        answer, stays = report["blocks"][-1]["top"][0], report["answer_stays_from_block"]
        lines.append(f"{answer['name']}, {share_of(answer)}: first from block {stays + 1} on")
    return "\n".join([*lines, *_wrote(report)])


def _opening(report: dict) -> list[str]:
    model = report["model"]
    width, height = model["input_size"]
    tokens = ""
    if model["patch_grid"]:
        rows, columns = model["patch_grid"]
        tokens = f", {rows}x{columns} patches, pooling: {model['readout']}"
    return [
        report["device"]["notice"],
        f"Model: {model['name']}, input {width}x{height} ({_seen(report)}){tokens}",
    ]


def image_text(report: dict) -> str:
    """One map of one image."""
    lines = _opening(report)
    if report["top"]:
        lines.append("Most likely categories:")
        lines += [f"  {share_of(c):>6}  {c['index']:4} {c['name']}" for c in report["top"]]
    lines.append(f"Method: {_method(report['method'])}")
    return "\n".join([*lines, *_wrote(report)])


def _wrote(report: dict) -> list[str]:
    return [f"Wrote {path}" for path in report["files"].values()]


def _seen(report: dict) -> str:
    crop = report["model"]["crop"]
    if crop != "center":
        return f"the whole image, {'resized' if crop == 'none' else 'padded'}"
    if "picture" not in report:
        return "the model's crop"
    left, top, right, bottom = (round(edge) for edge in report["picture"]["region_seen"])
    width, height = report["picture"]["size"]
    return f"the model's crop: x {left} to {right}, y {top} to {bottom} of {width}x{height}"


def _method(method: dict) -> str:
    kind, category = METHODS[method["name"]], method.get("category")
    text, details = kind.title, ", ".join(_details(method))
    if not kind.of_category:
        text += ", the same for every category"
    elif category:
        text += f" for category {_named(category)}"
        if rivals := method.get("against"):
            text += f" (red) against {' and '.join(map(_named, rivals))} (blue)"
    return f"{text} ({details})" if details else text


def _named(category: dict) -> str:
    return f"{category['index']} ({category['name']}, {share_of(category)})"


def _details(method: dict) -> Iterator[str]:
    if "block" in method:
        yield "the last block" if method["block"] == -1 else f"block {method['block']}"
    if method.get("head") is not None:
        yield f"head {method['head']}"
    elif "head_fusion" in method:
        yield f"heads fused by {method['head_fusion']}"
    if "discard_ratio" in method:
        yield f"discard ratio {method['discard_ratio']}"
    if method.get("start_block"):
        yield f"from block {method['start_block']}"
    if method.get("as_published"):
        yield "as published"
