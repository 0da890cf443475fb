// Runs Python code from stdin in Pyodide, in Deno, in gVisor, in a machine.

import { loadPyodide } from "file:///pyodide/pyodide.mjs";
import { connect, run, start } from "file:///task/pyodide.mjs";

function writer(to) {
  return (bytes) => {
    let written = 0;
    while (written < bytes.length) written += to.writeSync(bytes.subarray(written));
    return written;
  };
}

function readAll(from) {
  const decoder = new TextDecoder();
  const buffer = new Uint8Array(1 << 16);
  let text = "";
  for (let len; (len = from.readSync(buffer)); ) text += decoder.decode(buffer.subarray(0, len), { stream: true });
  return text + decoder.decode();
}

const code = readAll(Deno.stdin);
const snapshot = Deno.args[0];
const pyodide = await start(loadPyodide, {
  indexURL: "/pyodide/",
  _loadSnapshot: snapshot ? Deno.readFileSync(snapshot) : undefined,
});
const writeErr = writer(Deno.stderr);
connect(pyodide, () => 0, writer(Deno.stdout), writeErr);
const report = (line) => writeErr(new TextEncoder().encode(`minivm: ${line}`));
Deno.exit(await run(pyodide, Deno.readTextFileSync("/task/bootstrap.py"), code, {}, report));
