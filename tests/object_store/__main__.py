"""Run a store: ``python -m tests.object_store --port 0 --bucket models --latency-ms 20 --rate-mb 80``.

The first line of output is JSON: url, port, pid, access_key, secret_key.
"""

import argparse
import json
import os
import sys
import threading

from tests.object_store.bodies import made_up
from tests.object_store.control import put, share
from tests.object_store.server import Server
from tests.object_store.state import ACCESS_KEY, SECRET_KEY, Settings


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="tests.object_store", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument("--bucket", action="append", default=[], help="a bucket to begin with")
    parser.add_argument("--share", action="append", default=[], metavar="FOLDER=BUCKET/PREFIX")
    parser.add_argument("--make-up", action="append", default=[], metavar="BUCKET/KEY=BYTES")
    parser.add_argument("--latency-ms", type=float, default=0, help="to the first byte of an answer")
    parser.add_argument(
        "--rate-mb", type=float, default=0, help="10^6 bytes a second and connection; 0: no limit"
    )
    parser.add_argument(
        "--discard", action="store_true", help="throw large contents away (implies --random-etags)"
    )
    parser.add_argument("--random-etags", action="store_true", help="ETags that are no MD5")
    parser.add_argument(
        "--no-verification", action="store_true", help="of signatures; access keys are looked at"
    )
    parser.add_argument("--until-input-ends", action="store_true", help="end when standard input does")
    return parser.parse_args()


def main() -> None:
    """Run a store until it is killed."""
    told = options()
    settings = Settings(
        latency_s=told.latency_ms / 1000,
        rate=told.rate_mb * 1e6,
        discard=told.discard,
        random_etags=told.random_etags or told.discard,
        verify_signatures=not told.no_verification,
    )
    server = Server(told.port, settings, told.host)
    for bucket in told.bucket:
        server.state.buckets[bucket] = {}
    for item in told.share:
        folder, _equals, target = item.rpartition("=")
        share(server.state, folder, target.partition("/")[0], target.partition("/")[2])
    for item in told.make_up:
        name, _equals, size = item.rpartition("=")
        put(server.state, name.partition("/")[0], name.partition("/")[2], made_up(int(size)))
    threading.Thread(target=server.serve, daemon=True).start()
    said = {"url": f"http://127.0.0.1:{server.port}", "port": server.port, "pid": os.getpid()}
    print(json.dumps(said | {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}), flush=True)
    if told.until_input_ends:
        sys.stdin.read()
    else:
        threading.Event().wait()


if __name__ == "__main__":
    main()
