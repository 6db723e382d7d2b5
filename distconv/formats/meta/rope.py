"""What params.json says of how rotary embeddings are scaled, by whichever of a trainer's keys."""

from dataclasses import dataclass

from distconv.formats.meta.fields import Fields


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Numbers of "llama3" rope scaling that the file gives; None where the family's count."""

    factor: float | None = None
    low: float | None = None
    high: float | None = None
    original_context: int | None = None


_SCALINGS = ("rope_scaling", "rope_scaling_args")
_ORIGINAL_CONTEXTS = ("original_max_position_embeddings", "old_context_len")


def takes_scaled_rope(fields: Fields) -> bool:
    """Take the flag; where there is none, numbers of scaling under a key of their own say so."""
    if fields.has("use_scaled_rope"):
        return fields.take_flag("use_scaled_rope")
    return fields.get("use_scaled_rope") is None and _find_scaling(fields) is not None


def _find_scaling(fields: Fields) -> str | None:
    """Give the key with numbers of scaling; those of type "default", as Transformers writes them, scale nothing."""
    for key in filter(fields.has, _SCALINGS):
        found = fields.get(key)
        kind = found.get("rope_type", found.get("type")) if isinstance(found, dict) else None
        if kind != "default" or fields.has("use_scaled_rope"):
            return key
        fields.taken.add(key)
    return None


def take_rope_scaling(fields: Fields) -> RopeScaling:
    """Take the numbers of rope scaling, from whichever of a trainer's keys has them."""
    key = _find_scaling(fields)
    inner = None if key is None else fields.open(key)
    if inner is not None:
        kind = next((inner.get(key) for key in ("rope_type", "type") if inner.has(key)), "llama3")
        inner.taken |= {"rope_type", "type"}
        if kind != "llama3":
            fields.findings.append(
                f"{fields.path}: rope scaling of type {kind!r:.40}, expected that of Llama 3.1 ('llama3')"
            )

    def take(*keys: str, within: tuple[str, ...] = ()) -> float | None:
        found = {fields.take_number(*keys), None if inner is None else inner.take_number(*keys, *within)} - {
            None
        }
        if len(found) > 1:
            fields.findings.append(f"{fields.path}: {keys[0]} is given twice, with different values")
        return next(iter(found), None)

    places = [fields] if inner is None else [inner, fields]
    lengths = [place.take_optional_count(key) for place in places for key in _ORIGINAL_CONTEXTS]
    return RopeScaling(
        factor=take(
            "rope_scaling_factor", "rope_scale_factor", within=("scaling_factor", "scale_factor", "factor")
        ),
        low=take("rope_low_freq_factor", "low_freq_factor"),
        high=take("rope_high_freq_factor", "high_freq_factor"),
        original_context=next((length for length in lengths if length is not None), None),
    )
