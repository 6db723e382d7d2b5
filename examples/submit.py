"""Submit a conversion to a Ray cluster, follow its log, and exit with the driver's own code.

    python examples/submit.py http://HEAD:8265 INPUT OUTPUT [OPTIONS OF distconv convert]

INPUT and OUTPUT are paths that every node of the cluster sees. `ray job submit` does the same
but for the exit code, of which its command line tells only 0 or 1.
"""

import asyncio
import shlex
import sys

from ray.job_submission import JobStatus, JobSubmissionClient

STOP_SECONDS = 20
"""How long `ray job stop` waits for workers to remove what they were writing; Ray's own 3 s may be too few."""


async def follow(client: JobSubmissionClient, job: str) -> None:
    """Print the job's log until it ends."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def main() -> int:
    """Submit, follow, and give the exit code."""
    server, source, output, *options = sys.argv[1:]
    client = JobSubmissionClient(server)
    job = client.submit_job(
        entrypoint=shlex.join(["distconv", "convert", source, output, *options]),
        runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}},
    )
    print(f"submitted {job}; stop it with: ray job stop --address {server} {job}")
    asyncio.run(follow(client, job))
    info = client.get_job_info(job)
    print(f"{job}: {info.status}")
    if info.status == JobStatus.SUCCEEDED:
        return 0
    # None where the job was stopped, or never began.
    return 1 if info.driver_exit_code is None else info.driver_exit_code


if __name__ == "__main__":
    sys.exit(main())
