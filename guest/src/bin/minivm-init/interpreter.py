# A Python that has started before there is anything to run. It runs the code that warms it, reports that it is ready, and waits.
# The code that comes then runs as `python3 -c` runs it: in `__main__`, with the same tracebacks, the same ways to end.
#
# All messages go over one socket. A message is a number of texts, each after its length.


def run():
    import gc
    import os
    import sys

    socket = 100
    main = sys.modules["__main__"].__dict__
    main.pop("os")
    # The variable that Python has set itself where it found no locale (PEP 538).
    locale = os.environb.get(b"LC_CTYPE")

    def read(size):
        data = b""
        while len(data) < size:
            part = os.read(socket, size - len(data))
            if not part:
                os._exit(1)
            data += part
        return data

    def number():
        return int.from_bytes(read(4), "little")

    def texts():
        return [read(number()) for _ in range(number())]

    def prepare(code):
        # Output of this code would appear in each clone.
        kept = os.dup(1), os.dup(2)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            exec(compile(code, "<warm>", "exec"), main)
        except BaseException as error:
            import traceback

            lines = traceback.format_exception_only(type(error), error)
            os.write(socket, b"\0" + lines[-1].strip().encode()[:500])
            os._exit(1)
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)

    def diverge():
        # The kernel's generator has been given bytes of its own by init; these keep what was drawn from it earlier, also in a
        # child. The seed of `hash` can't be changed in a running interpreter.
        modules = sys.modules
        if "random" in modules:
            modules["random"].seed()
        if "numpy.random" in modules:
            modules["numpy.random"].seed()
        if "_ssl" in modules:
            modules["_ssl"].RAND_add(os.urandom(64), 64.0)
        if "tempfile" in modules:
            modules["tempfile"]._name_sequence = None
        if "uuid" in modules:
            uuid = modules["uuid"]
            # A random node, as where there is no network card. The C library's has its own once it was asked, for good.
            uuid._node = int.from_bytes(os.urandom(6), "big") | 1 << 40
            uuid._last_timestamp = uuid._generate_time_safe = None
        if "multiprocessing.process" in modules:
            modules["multiprocessing.process"].current_process().authkey = os.urandom(32)

    def hide_frames():
        # The frames of this file are to show neither in Python's own hook nor in one of the code's.
        hook = sys.excepthook

        def hide(kind, error, trace):
            at = trace
            while at is not None:
                if at.tb_frame.f_code.co_filename == "<minivm>":
                    trace = at.tb_next
                at = at.tb_next
            sys.excepthook = hook
            sys.last_traceback = trace
            hook(kind, error.with_traceback(trace), trace)

        sys.excepthook = hide

    prepare(texts()[0])
    gc.collect()
    # The objects that exist by now live as long as the process: a collection of garbage would only write to their pages.
    if hasattr(gc, "freeze"):
        gc.freeze()
    os.write(socket, b"\1")

    code, folder, stdin, *variables = texts()
    try:
        os.chdir(folder)
    except OSError as error:
        os.write(socket, b"\0" + str(error).encode())
        os._exit(1)
    wanted = dict(entry.split(b"=", 1) for entry in variables)
    if locale is not None:
        wanted.setdefault(b"LC_CTYPE", locale)
    if wanted != dict(os.environb):
        os.environ.clear()
        os.environb.update(wanted)
    # A clone of a machine is to its programs what a child is to a process. A library that keeps a generator's state knows
    # about children, and draws again in one (os.register_at_fork, pthread_atfork, MADV_WIPEONFORK, or another process number).
    if os.fork():
        os._exit(0)
    os.setsid()
    diverge()
    if stdin != b"1":
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    os.write(socket, b"\1" + os.getpid().to_bytes(4, "little"))
    os.close(socket)
    try:
        # As text: in bytes, a first line may name an encoding, which it may not in `-c`.
        exec(compile(code.decode(), "<string>", "exec"), main)
    except SystemExit:
        raise
    except BaseException:
        hide_frames()
        raise


run()
