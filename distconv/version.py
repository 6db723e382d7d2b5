"""The version, where a package that was only copied to a cluster has it too."""

VERSION = "0.1.0"
