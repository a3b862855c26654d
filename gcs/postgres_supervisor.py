"""The parent of one embedded Postgres server: starts it, passes signals on, reaps it.

Run as a plain file (`python -I -S postgres_supervisor.py UID GID LOG COMMAND...`) with nothing
imported but os, signal and sys, so that it costs little memory for as long as the server lives.
It decides nothing about data, settings or restarts: when the server ends, it ends.

Why it exists: a postmaster whose parent neither waits for it nor dies stays a zombie, and a zombie
still answers `kill(pid, 0)`, so the next server refuses to start on its pid file.

It writes nothing on its standard output, a pipe that the starter reads: end of file there means
that the server is gone. SIGTERM and SIGINT ask the server for a fast shutdown, SIGQUIT for an
immediate one.
"""

from __future__ import annotations

import os
import signal
import sys

#: What the server is sent when the supervisor receives the key.
FORWARDED_SIGNALS = {
    signal.SIGTERM: signal.SIGINT,
    signal.SIGINT: signal.SIGINT,
    signal.SIGQUIT: signal.SIGQUIT,
}


def exec_server(uid: int, gid: int, log_path: str, command: list[str]) -> None:
    """In the forked child: drop privileges, send output to the log, become the server."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
    # The interpreter ignores this one, and an ignored signal stays ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if os.geteuid() == 0 and uid != 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    os.execv(command[0], command)


def supervise(uid: int, gid: int, log_path: str, command: list[str]) -> int:
    """Start the server and wait for its end; the exit status is 0 when the server's was."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED_SIGNALS)
    server_pid = os.fork()
    if server_pid == 0:
        try:
            exec_server(uid, gid, log_path, command)
        finally:
            os._exit(127)
    for received, sent in FORWARDED_SIGNALS.items():
        signal.signal(received, lambda *_, sent=sent: os.kill(server_pid, sent))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
    _, status = os.waitpid(server_pid, 0)
    return 0 if status == 0 else 1


def main(arguments: list[str]) -> int:
    """Leave the starter's process tree first, so that whoever started us has nothing to reap."""
    uid, gid, log_path, *command = arguments
    if os.fork():
        os._exit(0)
    os.setsid()
    return supervise(int(uid), int(gid), log_path, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
