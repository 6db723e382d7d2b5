"""File formats that are written: layouts are computed purely, from names, shapes and dtypes alone."""
