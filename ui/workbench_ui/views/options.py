"""A form for the options of anything that has a strict configuration: one widget per field, by its type and limits."""

from __future__ import annotations

import typing
from typing import Any, Literal

import streamlit as st
from pydantic.fields import FieldInfo

from sae.strict import StrictConfig
from workbench.markup.tokens import visible


def form(
    model: type[StrictConfig],
    key: str,
    start: dict[str, Any] | None = None,
    known: dict[str, dict[str, str]] | None = None,
) -> dict[str, Any]:
    """Widgets for every field in a row that wraps; returns what differs from the defaults of ``model``.

    ``start`` replaces defaults; ``known`` holds, for fields that are text, the values that make sense and what to call
    them.
    """
    values: dict[str, Any] = {}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        for name, field in model.model_fields.items():
            default = (start or {}).get(name, defaults[name])
            choices = (known or {}).get(name)
            if choices and field.annotation is str:
                values[name] = _known(name, choices, f"{key}_{name}", str(default or ""))
            else:
                values[name] = _widget(name, field, f"{key}_{name}", default)
    return {name: value for name, value in values.items() if value != defaults[name] and (value or defaults[name])}


def _known(name: str, choices: dict[str, str], key: str, default: str) -> str:
    """A text field whose sensible values are known; an empty default stays possible."""
    ids = [default, *(c for c in choices if c != default)]
    if st.session_state.get(key) not in ids:
        st.session_state[key] = default
    return str(
        st.selectbox(
            _label(name), ids, key=key, format_func=lambda v: visible(choices.get(v, v) or "automatic"), width=260
        )
    )


def _label(name: str) -> str:
    return {"n": "How many"}.get(name, name.replace("_", " ").capitalize())


def _widget(name: str, field: FieldInfo, key: str, default: Any) -> Any:
    """One field; a type without a widget keeps its default."""
    label = _label(name)
    kind: Any = field.annotation
    options = [a for a in typing.get_args(kind) if a is not type(None)]
    if typing.get_origin(kind) is Literal:
        return st.selectbox(
            label, options, index=options.index(default) if default in options else 0, key=key, width=170
        )
    if kind is bool:
        return st.toggle(label, value=bool(default), key=key)
    if kind is int:
        lo, hi = _limits(field)
        return int(
            st.number_input(
                label,
                int(lo) if lo is not None else None,
                int(hi) if hi is not None else None,
                int(default or 0),
                step=1,
                key=key,
                width=150,
            )
        )
    if kind is float:
        lo, hi = _limits(field)
        return st.number_input(label, lo, hi, float(default or 0.0), key=key, width=150)
    if typing.get_origin(kind) is tuple:
        number = typing.get_args(kind)[0] is int
        text = st.text_input(
            label, value=", ".join(str(v) for v in default or ()), key=key, max_chars=400, width=220, placeholder="all"
        )
        parts = [p.strip() for p in (text or "").split(",") if p.strip()]
        return [int(p) for p in parts if p.isdecimal() and len(p) < 10] if number else parts
    longest = next((m.max_length for m in field.metadata if getattr(m, "max_length", None) is not None), 200)
    if kind is str and longest > 400:  # a text with lines
        return st.text_area(label, value=str(default or ""), key=key, max_chars=longest, height=96, width=460)
    if kind is str:
        return st.text_input(label, value=str(default or ""), key=key, max_chars=200, width=220)
    return default


def _limits(field: FieldInfo) -> tuple[float | None, float | None]:
    lo = next((float(m.ge) for m in field.metadata if getattr(m, "ge", None) is not None), None)
    hi = next((float(m.le) for m in field.metadata if getattr(m, "le", None) is not None), None)
    return lo, hi
