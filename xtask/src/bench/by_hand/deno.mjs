// Pyodide in Deno, by hand: deno run … deno.mjs PYODIDE SNAPSHOT CODE
const [folder, snapshot, code] = Deno.args;
const { loadPyodide } = await import(`file://${folder}/pyodide.mjs`);
const pyodide = await loadPyodide({ indexURL: `${folder}/`, _loadSnapshot: Deno.readFileSync(snapshot) });
pyodide.runPython(code);
