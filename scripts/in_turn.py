"""Compare how long commands take on a machine whose speed changes: they run in turn, half a second each.

    python scripts/in_turn.py "COMMAND" "COMMAND" ... [--rounds 4] [--begin 4] [--slice 0.5]

Each is started and left alone for `--begin` seconds, then stopped (SIGSTOP, with all its children); afterwards one at a time
goes on for a slice, so that what slows the machine down slows all of them down. Printed are the seconds that each was
running, and their ratio to the first one's. Who is started first is at a disadvantage of up to 2 %: each is in its turn, so
`--rounds` should be a multiple of their number. Two versions of jrdp, say, are compared by

    python scripts/in_turn.py "env PYTHONPATH=OLD python -m jrdp predict PICTURES --weights FILE --out a" \\
        "env PYTHONPATH=NEW python -m jrdp predict PICTURES --weights FILE --out b"

on 80 pictures or more, from a folder that holds no `jrdp/`, which Python would find before both. Give each its own `--out`: it
is not removed between the rounds. What the commands print is dropped. Linux only. Exits with 1 when a command fails.
"""

import argparse
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time

from jrdp.comparison.report import machine, text_table


def family(pid: int) -> list[int]:
    """A process and all that came of it, as far as they are alive."""
    found = [pid]
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as children:
                for child in children.read().split():
                    found += family(int(child))
    except OSError:  # it has ended
        pass
    return found


def send(process: subprocess.Popen, number: int) -> None:
    for pid in family(process.pid):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def run_in_turn(commands: list, begin: float, piece: float) -> list:
    """Seconds that each command was running. Ends them all when one fails, or on Ctrl-C."""
    running, seconds = [], []
    try:
        for command in commands:
            running.append(subprocess.Popen(shlex.split(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            seconds.append(go_on(running[-1], begin))
        while any(process.poll() is None for process in running):
            for number, process in enumerate(running):
                if process.poll() is None:
                    seconds[number] += go_on(process, piece)
    finally:
        for process in running:
            if process.poll() is None:
                send(process, signal.SIGCONT)
                process.terminate()
                process.wait()
    return seconds


def go_on(process: subprocess.Popen, seconds: float) -> float:
    """Let a process run for so long, or to its end; returns how long it ran."""
    started = time.monotonic()
    send(process, signal.SIGCONT)
    try:
        if process.wait(timeout=seconds):
            sys.exit(f"it failed with code {process.returncode}: {shlex.join(process.args)}")
    except subprocess.TimeoutExpired:
        send(process, signal.SIGSTOP)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--begin", type=float, default=4.0, help="seconds in which a command is not stopped")
    parser.add_argument("--slice", type=float, default=0.5, help="seconds that one goes on before it is another's turn")
    asked = parser.parse_args()
    rounds = []
    for first in range(asked.rounds):
        order = [(first + step) % len(asked.commands) for step in range(len(asked.commands))]
        seconds = run_in_turn([asked.commands[number] for number in order], asked.begin, asked.slice)
        rounds.append([taken for _, taken in sorted(zip(order, seconds))])
    rows = []
    for number, seconds in enumerate(zip(*rounds), 1):
        ratios = [taken[number - 1] / taken[0] for taken in rounds]
        values = statistics.median(seconds), statistics.median(ratios), min(ratios), max(ratios)
        rows.append([str(number), *(f"{value:.3g}" for value in values)])
    print(f"{machine()}; {asked.rounds} rounds, {asked.slice} s each in turn\n")
    print(text_table(["command", "seconds", "ratio of times", "least", "most"], rows))


if __name__ == "__main__":
    main()
