// Runs a task in Pyodide, in Deno. The jail shows Pyodide in /pyodide, the task in /task, and its files in /files.

import { loadPyodide } from "file:///pyodide/pyodide.mjs";
import { connect, put, run, start } from "file:///task/pyodide.mjs";

const INDEX = "/pyodide/";

function writer(to) {
  return (bytes) => {
    let written = 0;
    while (written < bytes.length) written += to.writeSync(bytes.subarray(written));
    return written;
  };
}

function copy(pyodide, from, to) {
  const { isDirectory, isSymlink, isFile, mode } = Deno.lstatSync(from);
  if (isSymlink) {
    put(pyodide, to, { kind: "link", target: Deno.readLinkSync(from) });
  } else if (isDirectory) {
    put(pyodide, to, { kind: "folder", mode });
    for (const { name } of Deno.readDirSync(from)) copy(pyodide, `${from}/${name}`, `${to}/${name}`);
  } else if (isFile) {
    put(pyodide, to, { kind: "file", mode }, Deno.readFileSync(from));
  }
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
  // A read of nothing is the input's end.
  connect(pyodide, (buffer) => Deno.stdin.readSync(buffer) ?? 0, writer(Deno.stdout), writeErr);
  const tell = (line) => writeErr(new TextEncoder().encode(`minivm: ${line}`));
  for (const { from, to } of files) {
    try {
      copy(pyodide, from, to);
    } catch (error) {
      tell(`cannot copy to ${to}: ${error?.message ?? error}\n`);
      return 125;
    }
  }
  const code = Deno.readTextFileSync("/task/code.py");
  const bootstrap = Deno.readTextFileSync("/task/bootstrap.py");
  return run(pyodide, bootstrap, code, env, tell);
}

Deno.exit(Deno.args[0] === "snapshot" ? await makeSnapshot() : await runTask());
