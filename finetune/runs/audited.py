"""Print an audit, and write its tables."""

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune.auditing.findings import KINDS, Audit, AuditFinding
from finetune.runs.layout import counted, print_entry, print_text
from finetune.runs.page.audited import write_audit_page

EXAMPLES = 3
"""Number of findings of each kind that are printed without --verbose."""


def print_audit(console: Console, audit: Audit, verbose: bool = False) -> None:
    """Print the number of findings of each kind with examples, and what copies add to the test accuracy."""
    images = f"{counted(audit.num_images, 'image')} of {audit.num_classes} classes"
    print_entry(console, "Audit", escape(f"{images}: {counted(len(audit.findings), 'finding')}"))
    for note in audit.notes:
        print_entry(console, "", escape(note))
    for kind, about in KINDS.items():
        found = audit.of_kind(kind)
        if not found:
            continue
        crossing = sum(finding.crosses_splits for finding in found)
        across = f" ({crossing} across splits)" if crossing else ""
        console.print()
        print_text(console, f"[bold]{len(found)}[/bold] {escape(about)}{across}", indent=0)
        shown = found if verbose else found[:EXAMPLES]
        for finding in shown:
            print_text(console, escape(describe(finding)))
        if len(found) > len(shown):
            print_text(console, f"[dim]and {len(found) - len(shown):,} more[/dim]")
    sentence = describe_inflation(audit)
    if sentence:
        console.print()
        print_text(console, escape(sentence), indent=0)


def describe(finding: AuditFinding) -> str:
    """Return a finding in one line."""
    name = " ".join(part for part in (finding.split, _short(finding.path)) if part)
    label = f" ('{finding.label}')" if finding.label else ""
    if finding.other_path:
        other = f"{finding.other_split} {_short(finding.other_path)}"
        other += f" ('{finding.suggested_label}')" if finding.suggested_label else ""
        return f"{name}{label} = {other}: {finding.about}"
    return f"{name}{label}: {finding.about}" if name or label else finding.about


def describe_inflation(audit: Audit) -> str:
    """Return the sentence about what copies add to the test accuracy; empty if there are none."""
    before, after = audit.test_accuracy, audit.test_accuracy_without_copies
    if before is None or after is None:
        return ""
    return (
        f"A linear probe labels {100 * before:.1f} % of the test images correctly, and {100 * after:.1f} % if the "
        f"training images that are copies of test images are left out of its training."
    )


def summarise_audit(audit: Audit) -> dict[str, object]:
    """Return the result of an audit as plain values, for `--json`."""
    counts = Counter(finding.kind for finding in audit.findings)
    return {
        "data": audit.data,
        "images": audit.num_images,
        "findings": {kind: counts[kind] for kind in KINDS},
        "across_splits": sum(finding.crosses_splits for finding in audit.findings),
        "test_accuracy": audit.test_accuracy,
        "test_accuracy_without_copies": audit.test_accuracy_without_copies,
    }


def write_audit(audit: Audit, output: Path | None, clean: Path | None) -> list[Path]:
    """Write the findings into a folder and the table of the images to keep, and return the paths that were written.

    Raises:
        DataError: a table of the images to keep is wanted, and an image is not a file.
    """
    written = []
    if clean is not None:
        clean.parent.mkdir(parents=True, exist_ok=True)
        audit.save_clean(clean)
        written.append(clean)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        audit.save_findings(output / "audit.csv")
        write_audit_page(audit, describe_inflation(audit), output / "audit.html")
        written += [output / "audit.csv", output / "audit.html"]
    return written


def _short(path: str) -> str:
    """Return the last three parts of a path, which name the split and the class."""
    return "/".join(Path(path).parts[-3:])
