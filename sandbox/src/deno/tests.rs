//! Both walls: what code can reach of Deno, and what code that breaks out of Deno finds in the jail.

use std::net::TcpListener;

use minivm_tests::output::Shared;

use super::*;

fn deno() -> Deno {
    let cache = minivm_machine::cache::folder().unwrap();
    npm::install(&cache, &mut |_| {}).unwrap();
    Deno::open(&cache).unwrap()
}

/// The output of code, or of JavaScript that Deno runs with all permissions.
fn output(run: impl FnOnce(&Deno, Streams, &Limits) -> Finished) -> String {
    let (stdout, stderr) = (Shared::default(), Shared::default());
    let streams = Streams::to(stdout.clone(), stderr.clone());
    let finished = run(&deno(), streams, &MAKING_LIMITS);
    assert_eq!(finished.end, End::Exited(0), "{}", stderr.text());
    stdout.text()
}

fn printed(code: String) -> String {
    output(|deno, streams, limits| {
        let mut task = Task::code(code);
        task.stdout = streams.stdout;
        task.stderr = streams.stderr;
        task.limits = *limits;
        deno.run(task).unwrap()
    })
}

fn printed_beyond_deno(script: String) -> String {
    output(|deno, streams, limits| {
        let jail = deno
            .jail()
            .unwrap()
            // Deno's own filter would end it; this tests the namespaces alone.
            .calls(Calls::Ordinary)
            .add_file(script.as_bytes(), "/task/x.mjs")
            .unwrap();
        let arguments = ["run", "--quiet", "--allow-all", "/task/x.mjs"];
        process::run(jail.program("/deno", arguments).unwrap(), streams, limits).unwrap()
    })
}

#[test]
fn calls_that_need_a_permission_are_not_capable() {
    let forbidden = [
        "Deno.readTextFileSync('/etc/passwd')",
        "Deno.readTextFileSync('/proc/self/environ')",
        "Deno.readTextFileSync('/pyodide/package.json')",
        "Deno.readTextFileSync('/task/../proc/version')",
        "Deno.readFileSync('/deno')",
        "[...Deno.readDirSync('/')]",
        "Deno.writeTextFileSync('/tmp/x', 'x')",
        "Deno.writeTextFileSync('/task/x', 'x')",
        "Deno.makeTempFileSync()",
        "Deno.env.get('PATH')",
        "Deno.env.toObject()",
        "process.env.DENO_DIR",
        "Deno.hostname()",
        "Deno.osRelease()",
        "Deno.networkInterfaces()",
        "Deno.systemMemoryInfo()",
        "Deno.uid()",
        "new Deno.Command('/deno').outputSync()",
        "Deno.kill(1, 'SIGKILL')",
        "process.kill(1)",
        "Deno.dlopen('/lib/libc.so.6', {})",
        "Deno.listen({ port: 1 })",
        "Deno.connect({ hostname: '127.0.0.1', port: 1 })",
        "Deno.connect({ transport: 'unix', path: '/x' })",
        "fetch('http://127.0.0.1:8080/')",
        "fetch('file:///etc/passwd')",
        "process.getBuiltinModule('fs').readFileSync('/etc/passwd')",
        "process.getBuiltinModule('os').hostname()",
        "process.getBuiltinModule('child_process').execSync('id')",
        "import('node:fs').then((fs) => fs.readFileSync('/etc/passwd'))",
        "import('file:///etc/passwd')",
        "new Promise((told) => { const worker = new Worker('data:text/javascript,try{Deno.readTextFileSync(\"/etc/passwd\");\
         postMessage(\"read\")}catch(e){postMessage(e.name)}', { type: 'module' }); worker.onmessage = ({ data }) => told(data) })\
         .then((name) => { if (name !== 'read') throw new Error(`NotCapable: ${name}`) })",
    ];
    let calls = serde_json::to_string(&forbidden).unwrap();
    let stdout = printed(format!(
        "import asyncio, js
async def main():
    for call in {calls}:
        try:
            print('it is allowed:', call, await js.eval('(async () => (' + call + '))()'))
        except Exception as error:
            if 'NotCapable' not in str(error) and 'Requires' not in str(error): print(call, error)
    print(await js.eval(\"Deno.permissions.request({{ name: 'read' }}).then((is) => is.state)\"))
asyncio.run(main())"
    ));
    assert_eq!(stdout, "denied\n");
}

#[test]
fn facts_without_a_permission_are_those_of_the_jail() {
    let code = "import js\nprint(js.Deno.pid, js.Deno.execPath(), js.Deno.cwd())\n\
                try:\n    js.localStorage.setItem('a', 'b')\n    print('kept')\nexcept Exception as error:\n    print(error)";
    let expected = "2 /deno /\nError: Read-only file system (os error 30)\n";
    assert_eq!(printed(code.into()), expected);
}

#[test]
fn code_chooses_its_exit_code() {
    let finished = deno().run(Task::code("from js import Deno; Deno.exit(7)"));
    assert_eq!(finished.unwrap().end, End::Exited(7));
}

#[test]
fn code_beyond_deno_finds_only_the_jail() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "const names = (folder) => [...Deno.readDirSync(folder)].map(({{ name }}) => name).sort().join(' ');
        const processes = names('/proc').split(' ').filter(Number);
        console.log(names('/'));
        console.log(names('/lib'), names('/lib64'), names('/task'));
        console.log(processes.length, Deno.hostname(), Deno.networkInterfaces().filter(({{ name }}) => name !== 'lo').length);
        console.log(['HOME', 'USER', 'CARGO', 'CARGO_MANIFEST_DIR'].filter((name) => Deno.env.has(name)).length);
        for (const path of ['/deno', '/pyodide/pyodide.mjs', '/pyodide/new', '/lib/new', '/task/x.mjs']) {{
          try {{ Deno.writeTextFileSync(path, 'x'); console.log('written:', path) }} catch {{}}
        }}
        const text = (text) => new TextEncoder().encode(`${{text}}\\0`);
        const parameters = ['buffer', 'buffer', 'buffer', 'u64', 'pointer'];
        const {{ mount }} = Deno.dlopen('/lib/libc.so.6', {{ mount: {{ parameters, result: 'i32' }} }}).symbols;
        for (const path of ['/', '/deno', '/pyodide']) {{
          // MS_REMOUNT and MS_BIND, without MS_RDONLY.
          if (mount(text('none'), text(path), text(''), 0x1020n, null) === 0) console.log('made writable:', path);
        }}
        console.log(Deno.uid());
        try {{ await Deno.connect({{ hostname: '127.0.0.1', port: {port} }}); console.log('connected') }} catch {{}}
        try {{ new Deno.Command('/bin/sh').outputSync(); console.log('a shell') }} catch {{}}"
    );
    let stdout = printed_beyond_deno(script);
    assert_eq!(
        stdout,
        format!(
            "deno dev lib lib64 proc pyodide task tmp\n{} ld-linux-x86-64.so.2 deno.mjs x.mjs\n2 minivm 0\n0\n1000\n",
            LIBRARIES.join(" ")
        )
    );
    listener.accept().unwrap_err();
}

/// JavaScript with all of Deno's permissions calls the C library, and only the filter of system calls holds it.
#[test]
fn code_beyond_deno_can_make_few_system_calls() {
    let script = |call: &str| {
        format!(
            "const symbols = {{ unshare: {{ parameters: ['i32'], result: 'i32' }}, \
             socket: {{ parameters: ['i32', 'i32', 'i32'], result: 'i32' }}, \
             ptrace: {{ parameters: ['i64', 'i32', 'i64', 'i64'], result: 'i64' }}, \
             syscall: {{ parameters: ['i64', 'i64', 'i64', 'i64'], result: 'i64' }} }};
            const c = Deno.dlopen('/lib/libc.so.6', symbols).symbols;
            console.log(String({call}))"
        )
    };
    let run = |call: &str| {
        let stdout = Shared::default();
        let streams = Streams::to(stdout.clone(), io::sink());
        let jail = deno().jail().unwrap();
        let jail = jail
            .add_file(script(call).as_bytes(), "/task/x.mjs")
            .unwrap();
        let arguments = ["run", "--quiet", "--allow-all", "/task/x.mjs"];
        let jailed = jail.program("/deno", arguments).unwrap();
        let finished = process::run(jailed, streams, &MAKING_LIMITS).unwrap();
        (finished.end, stdout.text())
    };
    let failed = (End::Exited(0), "-1\n".to_owned());
    // CLONE_NEWUSER; a Unix socket.
    assert_eq!(run("c.unshare(0x10000000)"), failed);
    assert_eq!(run("c.socket(1, 1, 0)"), failed);
    // PTRACE_TRACEME, which is always allowed elsewhere; and io_uring_setup, as on a kernel without it.
    let killed = (End::Signal(31), String::new());
    assert_eq!(run("c.ptrace(0n, 0, 0n, 0n)"), killed);
    assert_eq!(run("c.syscall(425n, 1n, 0n, 0n)"), failed);
}

#[test]
fn a_removed_snapshot_is_made_again() {
    let cache = tempfile::tempdir().unwrap();
    let path = cache.path().join("python.snapshot");
    let mut deno = deno();
    deno.make_snapshot(&path).unwrap();
    let size = fs::metadata(&path).unwrap().len();
    assert!(size > 10 << 20, "{size}");
    for snapshot in [Some(path), None] {
        deno.snapshot = snapshot;
        let task = Task::code("import sys; sys.exit(42)");
        assert_eq!(deno.run(task).unwrap().end, End::Exited(42));
    }
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
}

#[test]
fn what_is_not_installed_is_not_available() {
    let cache = tempfile::tempdir().unwrap();
    let error = Deno::open(cache.path()).err().unwrap().to_string();
    assert!(error.contains("minivm doctor --fix"), "{error}");
}
