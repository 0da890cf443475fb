// Runs a task in Pyodide, in a page. The page's server has Pyodide in /pyodide and the task in /task. The page sends messages by
// `minivmSend`, a function that DevTools adds: a letter for the kind of the message, and its content.

import { loadPyodide } from "/pyodide/pyodide.mjs";
import { connect, run, start, unpack } from "/task/pyodide.mjs";

// The largest numbers of messages and of bytes in transit to the worker.
const MESSAGES_MAX = 256;
const BYTES_MAX = 1 << 20;
// The largest number of bytes in a message: few enough for the arguments of `String.fromCharCode`.
const CHUNK = 1 << 15;

const post = window.minivmSend;
let sent = 0;
let underWay = { messages: 0, bytes: 0 };

/** Sends a synchronous request to the server: Python's reads and writes can't be interrupted. */
function requestSync(path) {
  const request = new XMLHttpRequest();
  request.open("GET", path, false);
  // With this charset, each byte becomes a character.
  request.overrideMimeType("text/plain; charset=x-user-defined");
  request.send();
  if (request.status !== 200) throw new Error(`${path}: ${request.status}`);
  return request.responseText;
}

function send(letter, chunk) {
  post(letter + btoa(String.fromCharCode(...chunk)));
  sent += 1;
  underWay.messages += 1;
  underWay.bytes += chunk.length;
  if (underWay.messages > MESSAGES_MAX || underWay.bytes > BYTES_MAX) {
    requestSync(`/drained?${sent}`);
    underWay = { messages: 0, bytes: 0 };
  }
}

/** Returns a function that writes all bytes of a buffer: few programs check for a short write. */
function writer(letter) {
  return (bytes) => {
    for (let at = 0; at < bytes.length; at += CHUNK) send(letter, bytes.subarray(at, at + CHUNK));
    return bytes.length;
  };
}

function read(buffer) {
  const bytes = requestSync(`/stdin?${buffer.length}`);
  for (let index = 0; index < bytes.length; index++) buffer[index] = bytes.charCodeAt(index) & 0xff;
  return bytes.length;
}

async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response;
}

async function runTask() {
  const { env, files, snapshot } = await (await get("/task/task.json")).json();
  const pyodide = await start(loadPyodide, {
    indexURL: "/pyodide/",
    _loadSnapshot: snapshot ? (await get("/snapshot")).arrayBuffer() : undefined,
  });
  const writeErr = writer("e");
  connect(pyodide, read, writer("o"), writeErr);
  if (files) unpack(pyodide, new Uint8Array(await (await get("/task/files.cpio")).arrayBuffer()));
  const code = await (await get("/task/code.py")).text();
  const bootstrap = await (await get("/task/bootstrap.py")).text();
  const report = (line) => writeErr(new TextEncoder().encode(`minivm: ${line}`));
  post("s");
  return run(pyodide, bootstrap, code, env, report);
}

try {
  post(`x${await runTask()}`);
} catch (error) {
  post(`f${error?.message ?? error}`);
}
