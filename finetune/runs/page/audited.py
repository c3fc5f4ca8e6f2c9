"""Write the page of an audit: each finding with the pictures that it is about."""

from functools import partial
from pathlib import Path

from finetune.auditing.findings import KINDS, Audit, AuditFinding
from finetune.data import in_threads, read_pixels
from finetune.reading import Reading
from finetune.runs.page.pictures import SMALL, Picture, describe_pictures, draw_picture
from finetune.runs.page.writing import page_templates

SHOWN = 60
"""Largest number of findings of each kind with pictures."""


def write_audit_page(audit: Audit, inflation: str, path: Path) -> None:
    """Write the page of an audit.

    Args:
        audit: the audit.
        inflation: sentence about what copies add to the test accuracy; may be empty.
        path: the HTML file to write.
    """
    parts = []
    draw = partial(_pictures, reading=audit.reading)
    for kind, about in KINDS.items():
        found = audit.of_kind(kind)
        if found:
            shown = found[:SHOWN]
            parts.append((about, len(found), list(zip(shown, in_threads(draw, shown), strict=True))))
    text = (
        page_templates()
        .get_template("audit.html")
        .render(audit=audit, parts=parts, inflation=inflation, shown_channels=describe_pictures(audit.reading))
    )
    path.write_text(text, "utf-8")


def _pictures(finding: AuditFinding, reading: Reading) -> list[Picture]:
    """Return the pictures of the images that a finding is about; those that cannot be read are left out."""
    found = []
    for path in (finding.path, finding.other_path):
        try:
            image = read_pixels(path, SMALL, reading) if path and Path(path).is_file() else None
        except Exception:  # decoders raise exceptions of any type
            image = None
        if image is not None:
            found.append(draw_picture(image, SMALL))
    return found
