//! The HTTP server on the jail's loopback that serves the page, Pyodide, the task and its input.
//!
//! Only processes in the jail can reach it, and the code may see all that it serves. It answers GET requests of a few known paths,
//! each on a connection of its own.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

const PAGE: &[u8] = include_bytes!("../../js/chromium.html");

/// The largest size of a request in bytes.
const REQUEST_MAX: u64 = 16 << 10;
/// The largest number of bytes of input in a response.
const INPUT_MAX: usize = 1 << 20;
/// Folders whose files are served.
const FOLDERS: [&str; 2] = ["/pyodide/", "/task/"];

/// The number of the page's messages that have been handled.
#[derive(Clone, Default)]
pub(super) struct Drained(Arc<(Mutex<u64>, Condvar)>);

impl Drained {
    /// Counts one more message.
    pub(super) fn add(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.1.notify_all();
    }

    fn wait_for(&self, count: u64) {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = |done: &mut u64| *done < count;
        drop(self.0.1.wait_while(guard, behind));
    }
}

/// The server's state.
pub(super) struct Served {
    pub(super) drained: Drained,
    /// Whether the page was sent. It is sent once: another request means that the browser has left it.
    page_sent: AtomicBool,
}

/// A response's content type and bytes.
type Response = (&'static str, Vec<u8>);

impl Served {
    pub(super) fn new(drained: Drained) -> Self {
        Served {
            drained,
            page_sent: AtomicBool::new(false),
        }
    }

    /// Starts the server's thread, and returns the page's address.
    pub(super) fn start(self) -> io::Result<String> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = format!("http://{}/", listener.local_addr()?);
        let served = Arc::new(self);
        thread::Builder::new().spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                // Where no thread can be started, the page's connection is closed.
                let _ = thread::Builder::new().spawn(move || served.serve(stream));
            }
        })?;
        Ok(address)
    }

    /// Answers one request. An error of writing means that the page has closed the connection.
    fn serve(&self, mut stream: TcpStream) {
        let answer = request(&stream).and_then(|target| self.answer(&target));
        let _ = match answer {
            Ok((kind, body)) => respond(&mut stream, "200 OK", kind, &body),
            Err(error) => respond(
                &mut stream,
                "404 Not Found",
                "text/plain",
                error.to_string().as_bytes(),
            ),
        };
    }

    fn answer(&self, target: &str) -> io::Result<Response> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        match path {
            "/" if !self.page_sent.swap(true, Ordering::SeqCst) => Ok(("text/html", PAGE.to_vec())),
            "/stdin" => input(number(query)?),
            "/snapshot" => file(Path::new(path)),
            "/drained" => {
                self.drained.wait_for(number(query)?);
                Ok(("text/plain", Vec::new()))
            }
            _ => of_folders(path),
        }
    }
}

fn of_folders(path: &str) -> io::Result<Response> {
    let mut folders = FOLDERS
        .iter()
        .filter_map(|folder| path.strip_prefix(folder));
    // No path below or above a folder.
    if folders.any(|name| !name.contains('/') && !name.starts_with('.')) {
        return file(Path::new(path));
    }
    Err(io::ErrorKind::NotFound.into())
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn file(path: &Path) -> io::Result<Response> {
    let kind = match path.extension().and_then(|extension| extension.to_str()) {
        Some("mjs") => "text/javascript",
        Some("json") => "application/json",
        // Browsers compile WebAssembly while it loads only with this type.
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    };
    Ok((kind, fs::read(path)?))
}

/// Waits for input. An empty response is its end.
fn input(max: u64) -> io::Result<Response> {
    let max = usize::try_from(max).unwrap_or(INPUT_MAX).min(INPUT_MAX);
    let mut bytes = vec![0; max];
    let len = rustix::io::retry_on_intr(|| rustix::io::read(io::stdin(), &mut bytes))?;
    bytes.truncate(len);
    Ok(("application/octet-stream", bytes))
}

/// Reads the target of a GET request.
fn request(stream: &TcpStream) -> io::Result<String> {
    let mut bytes = stream.take(REQUEST_MAX);
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match bytes.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => head.extend(&buffer[..len]),
        }
    }
    let head = String::from_utf8_lossy(&head);
    let target = head
        .strip_prefix("GET ")
        .and_then(|rest| rest.split(' ').next());
    target
        .map(str::to_owned)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn respond(stream: &mut TcpStream, status: &str, kind: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
         Connection: close\r\n\r\n"
    )?;
    stream.write_all(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(address: &str, request: &str) -> String {
        let host = address.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = TcpStream::connect(host).unwrap();
        let _ = stream.write_all(request.as_bytes());
        let mut answer = String::new();
        // The server closes the connection of too long a request before it has read it.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn only_known_paths_are_served() {
        let drained = Drained::default();
        let address = Served::new(drained.clone()).start().unwrap();
        let get = |path: &str| send(&address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(get("/").contains("<!doctype html>"));
        assert!(
            get("/").starts_with("HTTP/1.1 404"),
            "the page is served twice"
        );
        drained.add();
        assert!(get("/drained?1").starts_with("HTTP/1.1 200"));
        for path in [
            "/files/0",
            "/etc/passwd",
            "/task/../etc/passwd",
            "/pyodide/",
            "/task/..",
            "/drained?x",
        ] {
            assert!(get(path).starts_with("HTTP/1.1 404"), "{path}");
        }
        for request in ["POST / HTTP/1.1\r\n\r\n", "\r\n\r\n", &"x".repeat(1 << 15)] {
            assert!(!send(&address, request).contains("200"), "{request:.20}");
        }
    }
}
