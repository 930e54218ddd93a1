"""Tables that somebody has made by hand, each a little different from what the revisions make.

Each variation begins with the tables of a revision, with rows in them, and changes them by a script.
"""

from dataclasses import dataclass

PROCESS, AUDIT = "commandbus.process", "commandbus.process_audit"
LINK = "process_audit_domain_process_id_fkey"
WHOLE = "(reply_outcome IS NULL) = (received_at IS NULL)"


@dataclass(frozen=True)
class Variation:
    """A difference, and what the comparison must say about it.

    Attributes:
        script: What makes it.
        named: The object that it is about.
        kind: What this object is.
        at: The revision that the tables begin at, and are nearest to.
        because: A word of the reason.
        fill: What only a person can do before the statements can be run: values, rows.
    """

    script: str
    named: str
    kind: str = "column"
    at: str = "commandbus_0001"
    because: str = ""
    fill: str = ""


def alter(table: str, *actions: str) -> str:
    return f"ALTER TABLE {table} {', '.join(actions)};"


def retyped(table: str, column: str, type_: str) -> str:
    """Give a column another type, whatever its default was."""
    return alter(table, f"ALTER {column} TYPE {type_} USING {column}::text::{type_.partition(' COLLATE')[0]}")


UNLINKED = alter(AUDIT, f"DROP CONSTRAINT {LINK}")
LINKED = alter(AUDIT, f"ADD FOREIGN KEY (domain, process_id) REFERENCES {PROCESS} (domain, process_id)")
NO_NUMBER_DEFAULT = alter(AUDIT, "ALTER id DROP DEFAULT") + "DROP SEQUENCE commandbus.process_audit_id_seq;"
