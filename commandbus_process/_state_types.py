"""Check which types a state may have, and build what reads and writes them."""

import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeGuard, Union, cast, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic_core import SchemaSerializer, core_schema, to_json
from typing_extensions import TypeAliasType, is_typeddict

_ALLOWED = (
    "a Pydantic model, a dataclass, a TypedDict, dict[str, ...], a union of them, "
    "or a mapping from process types to such types"
)
# The `type` statement and typing_extensions may create aliases of different classes.
_ALIASES: tuple[Any, ...] = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))


def _unwrapped(declared: Any) -> tuple[Any, tuple[Any, ...]]:  # noqa: ANN401 - there is no type of all types
    """Return the type inside aliases and `Annotated`, and the metadata of `Annotated`."""
    metadata: tuple[Any, ...] = ()
    while True:
        if isinstance(declared, _ALIASES):
            declared = declared.__value__
        elif get_origin(declared) is Annotated:
            metadata = (*declared.__metadata__, *metadata)
            declared = declared.__origin__
        else:
            return declared, metadata


def _is_union(declared: object) -> bool:
    return get_origin(declared) in (Union, UnionType)


def _members(declared: object, *, through_metadata: bool) -> list[Any]:
    inner, metadata = _unwrapped(declared)
    if _is_union(inner) and (through_metadata or not metadata):
        return [each for arg in get_args(inner) for each in _members(arg, through_metadata=through_metadata)]
    return [inner if through_metadata else declared]


def _member_class(member: Any) -> Any:  # noqa: ANN401 - it may be none
    return NoneType if member is None else get_origin(member) or member


def has_fields(candidate: object) -> TypeGuard[type]:
    """Whether it is a Pydantic model class or a dataclass."""
    return inspect.isclass(candidate) and (issubclass(candidate, BaseModel) or is_dataclass(candidate))


def _check(members: Sequence[Any], what: str) -> None:
    classes = [_member_class(each) for each in members]
    if all(each is NoneType for each in classes):
        raise TypeError(f"{what} must be {_ALLOWED}, not None")
    for each in classes:
        if each is BaseModel or not (each in (dict, NoneType) or has_fields(each) or is_typeddict(each)):
            # Not its repr: the repr of a model instance would quote a state.
            given = f"the class {each.__name__}" if inspect.isclass(each) else f"a value of type {type(each).__name__}"
            raise TypeError(f"{what} must be {_ALLOWED}, not {given}")
        if inspect.isabstract(each):
            raise TypeError(f"{what}: {each.__name__} is abstract; declare the classes that states have")


def _count_fields(member: object) -> float:
    def count(each: Any) -> float:  # noqa: ANN401 - see _member_class
        of_class = _member_class(each)
        if of_class is dict:
            return float("inf")
        if of_class is NoneType:
            return 0
        if is_typeddict(of_class):
            return len(of_class.__required_keys__ | of_class.__optional_keys__)
        return len(of_class.model_fields if issubclass(of_class, BaseModel) else fields(of_class))

    return max(map(count, _members(member, through_metadata=True)))


class Declared:
    """A declared type and its members.

    Args:
        declared: The type.
        what: The name of the type in an error.

    Raises:
        TypeError: A state cannot have this type.
    """

    def __init__(self, declared: object, what: str) -> None:
        self._declared = declared
        members = _members(declared, through_metadata=True)
        _check(members, what)
        self.name = " | ".join(map(_name, members))
        # Instances of a TypedDict are dictionaries.
        self._classes = {dict if is_typeddict(each) else each for each in map(_member_class, members)}

    def adapters(self) -> list[TypeAdapter[Any]]:
        """Return the adapters that read the type. All of them must read the same object.

        For most types there is one adapter. A union without a discriminator may need two, because Pydantic tries its
        members. It chooses the member that has most of the given fields and, among several, the first one.

        Take a union of `Order` and `ExpressOrder`, which has one field more. The smaller type has to come first.
        Otherwise an order that lacks an optional field would become an express order. So the members are sorted by
        their number of fields, not as they were declared. If several have the same number of fields, there is a second
        adapter with these in the opposite order.
        """
        inner, metadata = _unwrapped(self._declared)
        adapter = _adapter(_make_union([inner], metadata))
        members = _members(inner, through_metadata=False)
        union = _union_in(adapter.core_schema)
        if len(members) == 1 or union is None:
            return [adapter]
        ordered = members if union.get("mode") == "left_to_right" else sorted(members, key=_count_fields)
        last_first: dict[float, list[Any]] = {}
        for each in ordered:
            last_first.setdefault(_count_fields(each), []).append(each)
        other = [last_first[_count_fields(each)].pop() for each in ordered]
        orders = [ordered] if other == ordered else [ordered, other]
        return [_adapter(_make_union(each, metadata)) for each in orders]

    def refusal(self, of_class: type) -> str | None:
        """Return why a state of this class is rejected; `None` if it is accepted."""
        if of_class in self._classes:
            return None
        name = of_class.__name__
        if has_fields(of_class):
            return f"is {name}, which is not declared; declare state_type={self.name} | {name}"
        article = "an" if name[0] in "aeiouAEIOU" else "a"
        return f"is {'None' if of_class is NoneType else f'{article} {name}'}, not {self.name}"


def _name(member: Any) -> str:  # noqa: ANN401 - see _member_class
    if _member_class(member) is NoneType:
        return "None"
    return member.__name__ if get_origin(member) is None else str(member)


def _adapter(declared: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - see _unwrapped
    adapter = TypeAdapter[Any](declared)
    # A name that cannot be resolved raises an error now, not when the first process is saved.
    adapter.rebuild(raise_errors=True)
    return adapter


def _make_union(members: Iterable[Any], metadata: tuple[Any, ...]) -> object:
    union: Any = Union
    annotated: Any = Annotated
    # The `object()` makes the type unique. `typing` caches unions, and takes unions in another order for equal.
    return annotated[(union[tuple(members)], *metadata, object())]


def _union_in(schema: Any) -> Any:  # noqa: ANN401 - schemas are dictionaries of many types
    """Return the schema of a union whose members Pydantic tries; `None` if there is a discriminator, or no union."""
    while schema["type"] != "union" and "schema" in schema:
        schema = schema["schema"]
    return schema if schema["type"] == "union" else None


def writer(adapter: TypeAdapter[Any]) -> Callable[..., bytes]:
    """Return the function that writes JSON. It sorts the elements of sets by their JSON texts.

    The order of a set depends on PYTHONHASHSEED. Without sorting, two workers would write the same state differently.
    """
    schema = adapter.core_schema
    if not _has_sets(schema):
        return adapter.dump_json
    # `_use_prebuilt=False`: otherwise Pydantic would use the existing serialiser of each nested model, which does not
    # sort.
    return SchemaSerializer(_with_sorted_sets(schema), _use_prebuilt=False).to_json


def _has_sets(schema: Any) -> bool:  # noqa: ANN401 - schemas are dictionaries of many types
    if type(schema) in (list, tuple):
        return any(map(_has_sets, schema))
    if not isinstance(schema, dict):
        return False
    keys = cast("dict[str, Any]", schema)
    return keys.get("type") in _SETS or any(map(_has_sets, keys.values()))


def _with_sorted_sets(schema: Any) -> Any:  # noqa: ANN401 - schemas are dictionaries of many types
    if type(schema) in (list, tuple):
        return type(schema)(map(_with_sorted_sets, schema))
    if isinstance(schema, dict):
        made = {key: _with_sorted_sets(value) for key, value in cast("dict[str, Any]", schema).items()}
        if made.get("type") in _SETS and "serialization" not in made:
            made["serialization"] = core_schema.wrap_serializer_function_ser_schema(_sorted, when_used="json")
        return made
    return schema


_SETS = ("set", "frozenset")


def _sorted(elements: object, write: Callable[[object], list[Any]]) -> list[Any]:
    return sorted(write(elements), key=to_json)
