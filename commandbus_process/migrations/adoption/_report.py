"""Write what a comparison has found, as text and as JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from textwrap import indent, wrap

from commandbus_process.migrations.adoption._verdicts import AdoptionObject, Verdict

_WIDTH = 100


def as_text(schema: str, revision: str | None, objects: Sequence[AdoptionObject]) -> str:
    """Return a report: what must change, what is acceptable, and what is the same."""
    if revision is None:
        return f'There are no tables to adopt in the schema "{schema}". Upgrade, which makes them.'
    must_change = [each for each in objects if each.verdict is Verdict.MUST_CHANGE]
    parts = [f'The tables in the schema "{schema}" are nearest to revision {revision}.']
    parts += _section("Must change", must_change)
    parts += _section("Acceptable", [each for each in objects if each.verdict is Verdict.ACCEPTABLE])
    # A column has its table in its name; the table itself needs its kind.
    same = [each for each in objects if each.verdict is Verdict.SAME]
    names = [each.name if "." in each.name else f"{each.name} ({each.kind})" for each in same]
    parts.append(f"Same ({len(names)})\n{_paragraph(', '.join(names))}")
    parts.append(_end(revision, must_change))
    return "\n\n".join(parts)


def as_json(found: Mapping[str, object]) -> str:
    """Return the same as JSON."""
    return json.dumps(found, indent=2, ensure_ascii=False)


def _section(title: str, objects: Sequence[AdoptionObject]) -> Iterable[str]:
    if objects:
        yield f"{title} ({len(objects)})\n" + "\n".join(_entry(each) for each in objects)


def _entry(found: AdoptionObject) -> str:
    lines = [f"  {found.name} ({found.kind})", _paragraph(found.reason)]
    if found.rows is not None:
        lines.append(f"    {found.rows.count} found. The first:")
        lines += [f"      {row}" for row in found.rows.first]
        lines.append(f"    All of them:\n{indent(found.rows.query, ' ' * 6)}")
    if found.statement is not None:
        lines.append(indent(found.statement, " " * 6))
    return "\n".join(lines)


def _paragraph(content: str) -> str:
    return "\n".join(wrap(content, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4, break_long_words=False))


def _end(revision: str, must_change: Sequence[AdoptionObject]) -> str:
    if not must_change:
        return f"They fit. Stamp {revision}, and upgrade."
    return (
        "They do not fit yet. Run the statements in this order, each by itself, correct the rows, and compare again.\n"
        "Nothing was changed."
    )
