// The common part of Deno and Chromium: Pyodide with the task's files and streams, and the run of the code in it.

// The exit status of an interpreter that failed: 128 and the number of SIGABRT, as of a program that calls abort().
const ABORTED = 134;

/** Starts Python. It doesn't buffer its outputs: a limit would lose what is in the buffer. */
export function start(loadPyodide, options) {
  return loadPyodide({ env: { HOME: "/home/pyodide", PYTHONUNBUFFERED: "1" }, ...options });
}

/** Connects file descriptors 0, 1 and 2: `read` fills a buffer, the others write one and return how many bytes they took. */
export function connect(pyodide, read, writeOut, writeErr) {
  pyodide.setStdin({ read, isatty: false });
  pyodide.setStdout({ write: writeOut, isatty: false });
  pyodide.setStderr({ write: writeErr, isatty: false });
}

/** Makes a file, folder or link in Python's file system, with the folders above it. */
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

/** Unpacks an archive (cpio, as minivm writes it) into Python's file system. Files share the archive's memory. */
export function unpack(pyodide, archive) {
  const words = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const text = (from, length) => {
    const bytes = archive.subarray(from, from + length);
    try {
      return words.decode(bytes);
    } catch {
      throw new Error(`the name ${JSON.stringify(new TextDecoder().decode(bytes))} is not UTF-8`);
    }
  };
  const next4 = (offset) => Math.ceil(offset / 4) * 4;
  const folders = [];
  for (let at = 0; ; ) {
    // A header has a magic number of six characters, and fields of eight hexadecimal digits.
    const field = (index) => parseInt(text(at + 6 + 8 * index, 8), 16);
    const [mode, mtime, size, length] = [field(1), field(5), field(6), field(11)];
    const name = text(at + 110, length - 1);
    if (name === "TRAILER!!!") break;
    const data = next4(at + 110 + length);
    const kind = { 0o040000: "folder", 0o100000: "file", 0o120000: "link" }[mode & 0o170000];
    const target = kind === "link" ? text(data, size) : undefined;
    if (kind) put(pyodide, `/${name}`, { kind, mode: mode & 0o7777, target }, archive.subarray(data, data + size));
    if (kind === "file") setTime(pyodide, `/${name}`, mtime);
    if (kind === "folder") folders.push([`/${name}`, mtime]);
    at = next4(data + size);
  }
  // At the end, since new files change their folder's time.
  for (const [name, mtime] of folders) setTime(pyodide, name, mtime);
}

/** Sets the modification time of a file or folder, in seconds since 1970. */
function setTime({ FS }, path, seconds) {
  FS.utime(path, seconds * 1000, seconds * 1000);
}

/** Runs the code, and returns its exit status. Calls `writeError` with a line where the interpreter itself failed. */
export async function run(pyodide, bootstrap, code, env, writeError) {
  const { runPython, toPy } = pyodide;
  try {
    const own = runPython("dict(__name__='minivm')");
    const main = runPython(bootstrap, { globals: own, filename: "<minivm>" });
    // `callPromising` lets `asyncio.run` and similar functions wait: the engine switches stacks.
    return await main.callPromising(code, toPy(env));
  } catch (error) {
    // os._exit()
    if (typeof error?.status === "number") return error.status & 0xff;
    writeError(`the Python interpreter came to its end: ${error?.message ?? error}\n`);
    return ABORTED;
  }
}
