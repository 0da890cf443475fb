// What Deno and Chromium have in common: Pyodide with the task's files and streams, and the code run in it.

// Where a program ends that has died rather than exited: 128 and the number of SIGABRT, as if it had called abort().
const ABORTED = 134;

/** Starts Python. Its outputs are not buffered, or what was printed before a limit would be lost. */
export function start(loadPyodide, options) {
  return loadPyodide({ env: { HOME: "/home/pyodide", PYTHONUNBUFFERED: "1" }, ...options });
}

/** Connects file descriptors 0, 1 and 2: `read` fills a buffer, the others write one and return how many bytes they took. */
export function connect(pyodide, read, writeOut, writeErr) {
  pyodide.setStdin({ read, isatty: false });
  pyodide.setStdout({ write: writeOut, isatty: false });
  pyodide.setStderr({ write: writeErr, isatty: false });
}

/** Puts a file, folder or link into Python's file system. Folders above it are made. */
export function put(pyodide, path, { kind, mode, target }, bytes) {
  const { FS } = pyodide;
  FS.mkdirTree(path.slice(0, path.lastIndexOf("/")) || "/");
  if (kind === "folder") {
    FS.mkdirTree(path);
  } else if (kind === "link") {
    FS.symlink(target, path);
    return;
  } else {
    FS.writeFile(path, bytes, { canOwn: true });
  }
  FS.chmod(path, mode);
}

/** Runs the code, and returns its exit status. `writeError` gets a line where the interpreter itself came to its end. */
export async function run(pyodide, bootstrap, code, env, writeError) {
  const { runPython, toPy } = pyodide;
  try {
    const own = runPython("dict(__name__='minivm')");
    const main = runPython(bootstrap, { globals: own, filename: "<minivm>" });
    // Called so, `asyncio.run` and the like can wait: the engine switches stacks.
    return await main.callPromising(code, toPy(env));
  } catch (error) {
    // os._exit()
    if (typeof error?.status === "number") return error.status & 0xff;
    writeError(`the Python interpreter came to its end: ${error?.message ?? error}\n`);
    return ABORTED;
  }
}
