"""How long tests wait for what must come: on a busy machine everything takes its time, and only what hangs may fail."""

HANG_SECONDS = 600.0
