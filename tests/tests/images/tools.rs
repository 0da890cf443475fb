//! Running `minivm`, the tools, and their servers.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivm_tests::given;
pub(crate) use minivm_tests::patience::PATIENCE;
use minivm_tests::program::{Ended, ends_until, run};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A folder of a test's own. It is not in `/tmp`, of which the lab has one of its own.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs a tool, which must work; returns its stdout.
pub(crate) fn tool(words: &[&str]) -> String {
    let ended = run(Command::new(words[0]).args(&words[1..]), PATIENCE);
    assert_eq!(ended.code, Some(0), "{words:?}: {ended:?}");
    ended.text()
}

/// `minivm` with a cache of its own.
pub(crate) struct Minivm {
    pub(crate) cache: TempDir,
}

impl Minivm {
    pub(crate) fn new() -> Self {
        Minivm { cache: folder() }
    }

    pub(crate) fn command(&self) -> Command {
        let kernel = given::path("MINIVM_TEST_KERNEL");
        let lab = given::path("MINIVM_TEST_LAB_KERNEL");
        let mut command = Command::new(given::path("MINIVM_TEST_BINARY"));
        command
            .env("XDG_CACHE_HOME", self.cache.path())
            .env("MINIVM_COLD", "1")
            .env("MINIVM_KERNEL", kernel.parent().unwrap())
            .env("MINIVM_LAB_KERNEL", lab.parent().unwrap())
            .env("RUST_BACKTRACE", "1")
            .env_remove("DOCKER_HOST");
        command
    }

    /// `minivm build` to a new file.
    pub(crate) fn build(&self, image: &str) -> Vec<u8> {
        self.build_as(image, &[])
    }

    pub(crate) fn build_as(&self, image: &str, flags: &[&str]) -> Vec<u8> {
        let output = self.cache.path().join("built");
        let ended = run(&mut self.building(image, flags, &output), PATIENCE);
        assert_built(image, &ended);
        let bytes = fs::read(&output).unwrap();
        fs::remove_file(&output).unwrap();
        bytes
    }

    /// The command that builds.
    pub(crate) fn building(&self, image: &str, flags: &[&str], output: &Path) -> Command {
        let mut command = self.command();
        command.args(["build", image, "-o"]).arg(output);
        command.args(flags);
        command
    }

    /// Fails where the cache has something that a later run would take for whole.
    pub(crate) fn assert_sound(&self, what: &str) {
        let cache = self.cache.path().join("minivm");
        for (name, path) in files(&cache.join("images/blobs/sha256")) {
            let digest = hex(&fs::read(&path).unwrap());
            assert_eq!(digest, name, "{what}: {} is broken", path.display());
        }
        for (name, path) in files(&cache.join("images/tags")) {
            let tag: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap())
                .unwrap_or_else(|error| panic!("{what}: tag {name}: {error}"));
            let manifest = tag["manifest"].as_str().unwrap();
            let hex = manifest.strip_prefix("sha256:").unwrap();
            let blob = cache.join("images/blobs/sha256").join(hex);
            assert!(blob.exists(), "{what}: tag {name} leads to nothing");
        }
    }

    /// The archives or EROFS images that are kept: those of images.
    pub(crate) fn kept(&self, format: &str) -> Vec<PathBuf> {
        let all = files(&self.cache.path().join("minivm").join(format));
        let of_images = all
            .into_iter()
            .filter(|(name, _)| !name.starts_with("init-"));
        let whole = of_images.map(|(_, path)| path);
        whole
            .filter(|path| path.extension().is_some_and(|end| end != "partial"))
            .collect()
    }
}

pub(crate) fn assert_built(image: &str, ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{image}: {ended:?}");
    assert_eq!((&*ended.stderr, &*ended.text()), ("", ""), "{image}");
}

/// The names and paths in a folder; none where it isn't there.
pub(crate) fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(listed) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let named = listed.map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), entry.path())
    });
    named.collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server in a process of its own, which ends with the thread that started it, however that ends.
pub(crate) struct Server(Child);

impl Server {
    fn start(command: &[&str], log: &Path) -> Self {
        let log = fs::File::create(log).unwrap();
        let mut server = Command::new("setpriv");
        server.args(["--pdeathsig", "TERM"]).args(command);
        server.env_remove("DOCKER_HOST").stdin(Stdio::null());
        server.stdout(log.try_clone().unwrap()).stderr(log);
        Server(server.spawn().unwrap())
    }

    /// Waits until `is_up`.
    fn wait(&mut self, log: &Path, is_up: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_up() {
            let ended = self.0.try_wait().unwrap();
            let log = || fs::read_to_string(log).unwrap_or_default();
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", log());
            assert!(Instant::now() < deadline, "it doesn't answer\n{}", log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        if !ends_until(&self.0, Instant::now() + PATIENCE) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// Docker's registry, on loopback.
pub(crate) struct Registry {
    _server: Server,
    _folder: TempDir,
    pub(crate) address: String,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let folder = folder();
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let config = folder.path().join("config.yml");
        let root = folder.path().join("storage");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            root.display()
        );
        fs::write(&config, text).unwrap();
        let log = folder.path().join("log");
        let words = ["docker-registry", "serve", config.to_str().unwrap()];
        let mut server = Server::start(&words, &log);
        server.wait(&log, || TcpStream::connect(&address).is_ok());
        Registry {
            _server: server,
            _folder: folder,
            address,
        }
    }

    /// Puts an image of a layout into it; returns what it is called there.
    pub(crate) fn push(&self, from: &str, name: &str) -> String {
        let name = format!("{}/{name}", self.address);
        let to = format!("docker://{name}");
        let copy = ["skopeo", "--insecure-policy", "copy", "--quiet"];
        tool(&[&copy[..], &["--dest-tls-verify=false", from, &to]].concat());
        name
    }
}

/// A Docker engine of the tests' own. With `vfs` every layer is put over a copy of those below it, as `umoci` does it;
/// `overlay2` knows no hard link to a lower layer's file.
pub(crate) struct Engine {
    _server: Server,
    _folder: TempDir,
    socket: PathBuf,
}

impl Engine {
    pub(crate) fn start() -> Self {
        // A socket's path must be short.
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let socket = folder.path().join("socket");
        let host = format!("unix://{}", socket.display());
        let (data, state, pid, log) = (at("data"), at("state"), at("pid"), at("log"));
        let mut words = vec!["dockerd", "--iptables=false", "--ip6tables=false"];
        words.extend(["--bridge=none", "--storage-driver=vfs", "-H", &host]);
        words.extend(["--data-root", &data, "--exec-root", &state, "-p", &pid]);
        let mut server = Server::start(&words, Path::new(&log));
        server.wait(Path::new(&log), || UnixStream::connect(&socket).is_ok());
        Engine {
            _server: server,
            _folder: folder,
            socket,
        }
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Loads an image of a layout.
    pub(crate) fn load(&self, from: &str, name: &str) {
        let to = format!("docker-daemon:{name}");
        let copy = ["skopeo", "--insecure-policy", "copy", "--quiet"];
        let host = ["--dest-daemon-host", &self.host(), from, &to];
        tool(&[&copy[..], &host].concat());
    }

    /// What `docker create` and `docker export` give.
    pub(crate) fn export(&self, image: &str) -> Vec<u8> {
        let body = serde_json::json!({ "Image": image }).to_string();
        let created = self.ask("POST", "containers/create", body.as_bytes());
        let created: serde_json::Value = serde_json::from_slice(&created).unwrap();
        let id = created["Id"].as_str().unwrap();
        self.ask("GET", &format!("containers/{id}/export"), b"")
    }

    /// What `docker load` does.
    pub(crate) fn load_archive(&self, archive: &[u8]) {
        let said = self.ask("POST", "images/load?quiet=1", archive);
        let said = String::from_utf8_lossy(&said);
        assert!(!said.contains("error"), "{said}");
    }

    /// The id of an image.
    pub(crate) fn id(&self, image: &str) -> String {
        let inspected = self.ask("GET", &format!("images/{image}/json"), b"");
        let inspected: serde_json::Value = serde_json::from_slice(&inspected).unwrap();
        inspected["Id"].as_str().unwrap().to_owned()
    }

    /// One request of Docker's API. Version 1.0 of HTTP has no chunks.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        let head = format!("{method} /{path} HTTP/1.0\r\nContent-Type: application/json\r\n");
        let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n");
        let (head, body) = answer.split_at(end.unwrap() + 4);
        let head = String::from_utf8_lossy(head);
        let code = head.split(' ').nth(1).unwrap();
        let body_text = || String::from_utf8_lossy(body);
        assert!(code.starts_with('2'), "{path}: {head}{}", body_text());
        body.to_vec()
    }
}
