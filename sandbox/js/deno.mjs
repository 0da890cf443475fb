// Runs a task in Pyodide, in Deno. The jail shows Pyodide in /pyodide, the task in /task, with an archive of its files.

import { loadPyodide } from "file:///pyodide/pyodide.mjs";
import { connect, run, start, unpack } from "file:///task/pyodide.mjs";

const INDEX = "/pyodide/";

function writer(to) {
  return (bytes) => {
    let written = 0;
    while (written < bytes.length) written += to.writeSync(bytes.subarray(written));
    return written;
  };
}

/** Writes the memory of a Python that has just started to stdout, and its size to stderr. */
async function makeSnapshot() {
  const pyodide = await start(loadPyodide, { indexURL: INDEX, _makeSnapshot: true });
  const snapshot = pyodide.makeMemorySnapshot();
  writer(Deno.stdout)(snapshot);
  console.error(snapshot.length);
  return 0;
}

async function runTask() {
  const { env, files, snapshot } = JSON.parse(Deno.readTextFileSync("/task/task.json"));
  const pyodide = await start(loadPyodide, {
    indexURL: INDEX,
    _loadSnapshot: snapshot ? Deno.readFileSync(snapshot) : undefined,
  });
  const writeErr = writer(Deno.stderr);
  // `readSync` returns null at the input's end.
  connect(pyodide, (buffer) => Deno.stdin.readSync(buffer) ?? 0, writer(Deno.stdout), writeErr);
  const report = (line) => writeErr(new TextEncoder().encode(`minivm: ${line}`));
  try {
    if (files) unpack(pyodide, Deno.readFileSync("/task/files.cpio"));
  } catch (error) {
    report(`cannot copy files in: ${error?.message ?? error}\n`);
    return 125;
  }
  const code = Deno.readTextFileSync("/task/code.py");
  const bootstrap = Deno.readTextFileSync("/task/bootstrap.py");
  return run(pyodide, bootstrap, code, env, report);
}

Deno.exit(Deno.args[0] === "snapshot" ? await makeSnapshot() : await runTask());
