// Pyodide in Chromium, by hand: node chromium.mjs CHROMIUM PYODIDE SNAPSHOT CODE
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [chromium, folder, snapshot, code] = process.argv.slice(2);
const page = `<!doctype html><script type="module">
import { loadPyodide } from "/pyodide.mjs";
const bytes = new Uint8Array(await (await fetch("/snapshot")).arrayBuffer());
const pyodide = await loadPyodide({ indexURL: "/", _loadSnapshot: bytes, stdout: (line) => console.log(line) });
pyodide.runPython(${JSON.stringify(code)});
console.debug("done");
</script>`;
const types = { mjs: "text/javascript", wasm: "application/wasm", json: "application/json" };

const server = createServer((request, response) => {
  const name = request.url === "/" ? "" : request.url.slice(1);
  const type = name ? types[name.split(".").pop()] ?? "application/octet-stream" : "text/html";
  if (name === "favicon.ico") return response.writeHead(404).end();
  const body = name === "" ? page : name === "snapshot" ? readFileSync(snapshot) : readFileSync(join(folder, name));
  response.writeHead(200, { "content-type": type }).end(body);
}).on("error", () => {});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

const profile = mkdtempSync(join(tmpdir(), "by-hand-"));
const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
  "--remote-debugging-pipe", `--user-data-dir=${profile}`, "about:blank"];
const browser = spawn(chromium, flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
let [, , , commands, events] = browser.stdio;
let next = 1;
const waiting = new Map();
const send = (method, params = {}, sessionId) => new Promise((answered) => {
  waiting.set(next, answered);
  commands.write(JSON.stringify({ id: next++, method, params, sessionId }) + "\0");
});
const finished = new Promise((finish) => {
  let rest = "";
  events.on("data", (bytes) => {
    const messages = (rest + bytes).split("\0");
    rest = messages.pop();
    for (const message of messages.map((text) => JSON.parse(text))) {
      waiting.get(message.id)?.(message.result);
      if (message.method !== "Runtime.consoleAPICalled") continue;
      if (message.params.type === "debug") finish();
      else console.log(message.params.args[0].value);
    }
  });
});
const { targetInfos } = await send("Target.getTargets");
const target = targetInfos.find((info) => info.type === "page");
const { sessionId } = await send("Target.attachToTarget", { targetId: target.targetId, flatten: true });
await send("Runtime.enable", {}, sessionId);
await send("Page.navigate", { url: `http://127.0.0.1:${server.address().port}/` }, sessionId);
await finished;
browser.kill("SIGKILL");
await new Promise((gone) => browser.on("exit", gone));
server.close();
server.closeAllConnections();
rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
