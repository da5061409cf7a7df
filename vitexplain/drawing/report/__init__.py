"""One self-contained HTML page of all images of a run."""
