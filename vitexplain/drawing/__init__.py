"""Maps, sheets, charts and pages as images and HTML."""
