"""Strings made to break something, and where each can be stored."""

from typing import Any, cast
from uuid import UUID, uuid4

from pydantic import BaseModel, JsonValue

from commandbus_process import (
    PostgresProcessRepository,
    ProcessAuditEntry,
    ProcessMetadata,
    ProcessStatus,
    ReplyOutcome,
)

MEGABYTE = 1_000_000
CASES = "cases"  # the domain of the processes that are tried, where the text to try is none

STRINGS = {
    # Statements that end the library's own, or go on with it.
    "drop table": "'; DROP TABLE commandbus.process_audit; DROP TABLE commandbus.process; --",
    "delete": '"; DELETE FROM commandbus.process_audit; --',
    "truncate": "1); TRUNCATE commandbus.process CASCADE; --",
    "always true": "' OR '1'='1",
    "set status": "', status = 'FAILED', domain = '",
    "escaped quote": "\\'; UPDATE commandbus.process SET status = 'FAILED'; --",
    "dollar quotes": "$$; DROP SCHEMA commandbus CASCADE; $$",
    "union": "' UNION SELECT rolpassword FROM pg_authid --",
    "sleep": "'||pg_sleep(60)||'",
    "comment": "/* */ -- \n; */",
    "end of transaction": "'; COMMIT; DROP SCHEMA commandbus CASCADE; BEGIN; --",
    "program": "'; COPY commandbus.process TO PROGRAM 'cat'; --",
    "json operator": "' #- '{a}' || '",
    # What libraries on the way take for their own.
    "driver placeholders": "%s %b %t %(domain)s %(key_domain)s::UUID %% % %(",
    "SQLAlchemy parameters": ":domain :key_domain ::text \\:domain",
    "SQLAlchemy expansion": "__[POSTCOMPILE_statuses] __[POSTCOMPILE_statuses~~a~~b~~]",
    "braces": "{} {0} {domain} {{}} {domain!r:>10}",
    "server parameters": "$1 $2 $$ ? ?? @a #{b} ${c} <%= d %>",
    "lookup": "${jndi:ldap://127.0.0.1/a}",
    # Quotes and escapes.
    "quotes": "' '' \" \"\" ` \u00b4 \u2018\u2019 \u201e\u201c \u00ab\u00bb",
    "one quote": "'",
    "one double quote": '"',
    "one backslash": "\\",
    "backslashes": "\\\\ \\n \\N \\. \\x00 \\0 \\' \\\"",
    "an escaped NUL in letters": "\\u0000 \\\\u0000 \\ud800",
    "JSON": '{"a": [1, null]} null true NaN 1e400 //',
    "end of script": "</script><!-- ]]> <?",
    # Control characters, white space.
    "ASCII control characters": "".join(chr(code) for code in (*range(1, 32), 127)),
    "other control characters": "".join(chr(code) for code in range(128, 160)),
    "line ends": "a\r\nb\rc\nd\u0085e\u2028f\u2029g",
    "terminal": "\x1b[2J\x1b]0;title\x07",
    "white space around": " \t a \n ",
    "only white space": " ",
    "other spaces": "\u00a0\u2007\u3000\u180e",
    # Unicode.
    "right to left": "\u202egnp.exe\u202c \u200f\u200e \u2067a\u2069 \u05d0\u05d1 \u0627\u0644",
    "zero width": "a\u200bb\u200cc\u200dd\u2060e\ufefff",
    "composed": "\u00e9",
    "decomposed": "e\u0301",
    "many combining": "a" + "".join(chr(code) for code in range(0x300, 0x370)),
    "case": "\u00df \u1e9e \u0130 \u0131 \u01c5 \ufb01",
    "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇳 👍🏽",
    "other planes": "\U0001d54f \U0002070e \U00010348 \U000e0001 \U000f0000",
    "last characters": "\ufffd\ufffe\uffff\U0001fffe\U0010ffff",
    "alike": "\u0440\u0430\u0443\u0440\u0430l \uff46\uff55\uff4c\uff4c \u2163",
    # Lengths.
    "empty": "",
    "255 characters": "x" * 255,
    "255 characters of four bytes": "😀" * 255,
    "256 characters": "x" * 256,
    "a megabyte": "x" * MEGABYTE,
    # What PostgreSQL's text cannot hold.
    "NUL": "\0",
    "NUL inside": "a\0b",
    "NUL after a backslash": "\\\0",
    "high surrogate": "a\ud800b",
    "low surrogate": "\udfff",
    "a pair of surrogates that is no character": "\ud83d\ude00",
}


class Typed(BaseModel):
    text: str
    data: JsonValue = None


NAMES = ("domain", "process_type", "step_name", "command_type")
OPTIONAL_NAMES = ("current_step", "error_code")
TEXTS = ("error_message",)
JSON = ("state", "key of state", "command_data", "key of command_data", "reply_data", "typed state")
PLACES = (*NAMES, *OPTIONAL_NAMES, *TEXTS, *JSON)


def is_storable(text: str, place: str) -> bool:
    """What the library promises to store."""
    characters = "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
    shortest, longest = {**dict.fromkeys(NAMES, (1, 255)), **dict.fromkeys(OPTIONAL_NAMES, (0, 255))}.get(
        place, (0, len(text))
    )
    return characters and shortest <= len(text) <= longest


REFUSED = [(name, place) for name, text in STRINGS.items() for place in PLACES if not is_storable(text, place)]
STORED = [name for name, text in STRINGS.items() if any(is_storable(text, place) for place in PLACES)]


def made(process_id: UUID, texts: dict[str, str]) -> tuple[ProcessMetadata[Any], ProcessAuditEntry]:
    """A process and its replied step, with the texts in their places."""
    state: Any = {"text": texts.get("state", ""), texts.get("key of state", "key"): [{"deep": texts.get("state", "")}]}
    if "typed state" in texts:
        state = Typed(text=texts["typed state"], data={texts["typed state"]: [texts["typed state"]]})
    process = ProcessMetadata[Any](
        domain=texts.get("domain", CASES),
        process_id=process_id,
        process_type=texts.get("process_type", "order"),
        state=state,
        status=ProcessStatus.WAITING_FOR_REPLY,
        current_step=texts.get("current_step"),
        error_code=texts.get("error_code"),
        error_message=texts.get("error_message"),
    )
    entry = ProcessAuditEntry(
        step_name=texts.get("step_name", "reserve"),
        command_id=uuid4(),
        command_type=texts.get("command_type", "Reserve"),
        command_data={
            "text": texts.get("command_data", ""),
            texts.get("key of command_data", "key"): [texts.get("command_data", "")],
        },
        reply_outcome=ReplyOutcome.SUCCESS,
        reply_data={"text": texts.get("reply_data", ""), "list": [texts.get("reply_data", "")]},
    )
    entry.received_at = entry.sent_at
    return process, entry


def texts_of(process: ProcessMetadata[Any], entry: ProcessAuditEntry) -> dict[str, object]:
    """What stands in each place of a process and a step that were made as above."""
    found: dict[str, object] = {**dict(process), **dict(entry)}
    for column in ("state", "command_data", "reply_data"):
        value = found[column]
        if isinstance(value, Typed):
            assert value.data == {value.text: [value.text]}
            found["typed state"] = value.text
        elif isinstance(value, dict):
            data = cast("dict[str, object]", value)
            found[column] = data["text"]
            [found[f"key of {column}"]] = data.keys() - {"text"}
    return found


async def store(
    repository: PostgresProcessRepository[Any], process: ProcessMetadata[Any], entry: ProcessAuditEntry
) -> None:
    """Write the process, its step and the reply, each by the method that is there for it."""
    sent = entry.model_copy(update={"reply_outcome": None, "reply_data": None, "received_at": None})
    await repository.save(process)
    await repository.update(process)
    await repository.log_step(process.domain, process.process_id, sent)
    await repository.update_step_reply(process.domain, process.process_id, entry.command_id, entry)
