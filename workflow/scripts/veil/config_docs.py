"""Schema, commented default and reference page, all made from the models in `config`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from veil import config

DEFAULT_HEADER = """\
# The demonstration study: phantom cohorts, minutes on two CPU cores.
# Generated from the models in workflow/scripts/veil/config.py by `make config`; every key is
# explained in config/README.md. To run another study, lay a file over this one:
#   snakemake --cores all --configfile config/studies/kossen2022.yaml
"""


def schema() -> str:
    """The JSON schema of a study."""
    return json.dumps(config.Study.model_json_schema(), indent=2) + "\n"


def default_yaml() -> str:
    """config/config.yaml: the default study with a comment on every key."""
    return DEFAULT_HEADER + "\n".join(_commented(config.Study(), 0)) + "\n"


def reference() -> str:
    """config/README.md: every key with its meaning, range and default."""
    lines = [
        "# Configuration",
        "",
        "Generated from the models in `workflow/scripts/veil/config.py` by `make config`.",
        "A study file under `config/studies/` is laid over `config/config.yaml` with",
        "`--configfile` and states only what differs; mappings are merged key by key, lists are",
        "replaced. Unknown keys are refused at every level.",
        "",
    ]
    for model, place in _sections(config.Study, ""):
        lines += [f"## {place or 'Study'}", "", (model.__doc__ or "").strip(), ""]
        lines += ["| key | type and range | default | meaning |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            meaning = " ".join((field.description or "").split())
            lines.append(f"| `{name}` | {_type(model, name)} | {_default(field)} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def _commented(model: BaseModel, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(model).model_fields.items():
        for line in (field.description or "").splitlines():
            yield f"{indent}# {line.strip()}"
        yield from _entry(name, getattr(model, name), depth)


def _entry(name: str, value: Any, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, BaseModel):
        yield f"{indent}{name}:"
        yield from _commented(value, depth + 1)
    elif isinstance(value, dict) and any(isinstance(inner, BaseModel) for inner in value.values()):
        yield f"{indent}{name}:"
        explained = set()
        for key, inner in value.items():
            if type(inner) not in explained:
                explained.add(type(inner))
                yield from _entry(key, inner, depth + 1)
            else:  # the first of its kind explained the keys; the next ones say what differs
                brief = _inline(inner.model_dump(mode="json", exclude_unset=True))
                yield f"{indent}  {key}: {brief}"
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        yield f"{indent}{name}:"
        for inner in value:
            yield f"{indent}  - {_inline(inner.model_dump(mode='json', exclude_unset=True))}"
    else:
        # Through JSON, which has no tuples.
        yield f"{indent}{name}: {_inline(json.loads(json.dumps(value)))}"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _sections(model: type[BaseModel], place: str) -> Iterator[tuple[type[BaseModel], str]]:
    yield model, place
    for name, field in model.model_fields.items():
        inner = list(config.models_in(field.annotation))
        plural = name in ("cohorts", "generators")
        for child in inner:
            tag = get_args(child.model_fields["kind"].annotation)[0] if plural else ""
            where = ".".join(filter(None, [place, name]))
            yield from _sections(child, f"{where}.<name>, kind {tag}" if plural else where)


def _type(model: type[BaseModel], name: str) -> str:
    prop = model.model_json_schema()["properties"][name]
    return _spell(prop)


def _spell(prop: dict[str, Any]) -> str:
    if "const" in prop:
        return f"`{prop['const']}`"
    if "enum" in prop:
        return " or ".join(f"`{option}`" for option in prop["enum"])
    if "anyOf" in prop:
        return " or ".join(_spell(option) for option in prop["anyOf"])
    if "$ref" in prop or "allOf" in prop or "oneOf" in prop:
        return "mapping"
    if prop.get("type") == "array":
        inner = prop.get("items") or prop.get("prefixItems", [{}])[0]
        length = (
            f"{prop['minItems']} x "
            if "minItems" in prop and prop["minItems"] == prop.get("maxItems")
            else ""
        )
        return f"list of {length}{_spell(inner)}"
    if prop.get("type") == "object":
        return "mapping by name"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {prop[key]}" for key, sign in bounds.items() if key in prop]
    return " ".join([prop.get("type", "value"), ", ".join(limits)]).strip()


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if isinstance(value, BaseModel | dict) or (
        isinstance(value, tuple) and value and isinstance(value[0], BaseModel)
    ):
        return "see below"
    if isinstance(value, str) and len(value) > 40:
        return "a note on the demonstration"
    return f"`{_inline(list(value) if isinstance(value, tuple) else value)}`"


def main() -> None:
    """Write the schema, the default configuration and the reference page."""
    root = Path(__file__).resolve().parents[3]
    for place, text in GENERATED.items():
        (root / place).write_text(text(), encoding="utf-8")


GENERATED = {
    "config/config.yaml": default_yaml,
    "config/README.md": reference,
    "workflow/schemas/config.schema.json": schema,
}

if __name__ == "__main__":
    main()
