"""Several processes on this machine, as several hosts would run: each gets the coordinator's variables and the command.

  python launch/local.py --processes=2 -- python -m jaxad.main --config=configs/quickstart.py --workdir=runs/two

On real hosts, set the same three variables yourself and start the same command on each:

  JAX_COORDINATOR_ADDRESS=HOST0:12345 JAX_NUM_PROCESSES=4 JAX_PROCESS_ID=0..3 python -m jaxad.main ...
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time


def main() -> int:
    """Starts the processes and waits; when one fails, the others are stopped and its exit code is returned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    command = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    if not command or asked.processes < 1:
        parser.error("say how many processes and, after --, which command")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    running = []
    for number in range(asked.processes):
        variables = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(asked.processes),
            "JAX_PROCESS_ID": str(number),
        }
        running.append(subprocess.Popen(command, env={**os.environ, **variables}))
    code = 0
    try:
        while any(process.poll() is None for process in running) and not code:
            time.sleep(0.2)
            code = next((process.returncode for process in running if process.returncode), 0)
    except KeyboardInterrupt:
        code = 130  # every process got the Ctrl-C too and is saving its checkpoint
    finally:
        for process in running:
            if code not in (0, 130) and process.poll() is None:
                process.terminate()
        for process in running:
            code = process.wait() or code
    return code


if __name__ == "__main__":
    sys.exit(main())
