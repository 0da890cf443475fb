"""Runs code as `python -c` does. The last expression is the function that the host side calls."""


def run(code, env):
    """Runs the code to its end, and returns its exit status."""
    import __main__
    import linecache
    import os
    import sys

    reseed()
    os.environ.update(env)
    sys.argv = ["-c"]
    # Tracebacks take the lines of code without a file from this cache.
    lines = [line + "\n" for line in code.split("\n")]
    linecache.cache["<string>"] = (len(code), None, lines, "<string>")
    try:
        exec(compile(code, "<string>", "exec"), __main__.__dict__)
        status = 0
    except SystemExit as exit:
        status = status_of(exit)
    except BaseException as error:
        # The first frame is this one.
        frames = error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    finish()
    return status


def reseed():
    """Seeds `random` anew: all interpreters from one snapshot would have the same random numbers."""
    import random

    random.seed()


def status_of(exit):
    """Returns the exit status of a `sys.exit`, and writes its message, if it has one."""
    import sys

    if exit.code is None:
        return 0
    if isinstance(exit.code, int):
        return exit.code & 0xFF
    print(exit.code, file=sys.stderr)
    return 1


def finish():
    """Calls the exit functions and flushes the outputs, as an interpreter does at its end."""
    import atexit
    import sys

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            # The code has closed or replaced it.
            pass


run
