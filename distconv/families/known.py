"""All families that are known."""

from distconv.families.images import IMAGE_FAMILIES
from distconv.families.llama import FAMILIES
from distconv.families.mistral import MISTRAL_FAMILIES

ALL_FAMILIES = FAMILIES | IMAGE_FAMILIES | MISTRAL_FAMILIES
"""By their names."""
