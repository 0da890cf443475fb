//! Any text as what a registry answers: HTTP responses with a NUL byte behind each, which it sends one after another, whatever it is
//! asked for. `$HOST` in them is its own address.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use minivm_image::{Options, Source, Store, Unwatched};

/// The most requests that a pull of one small image may take: where each answer leads to another request, there is an end.
const REQUESTS_MAX: usize = 100;

pub(crate) fn run(data: &[u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
    let address = listener.local_addr().expect("it has one").to_string();
    let text = String::from_utf8_lossy(data).replace("$HOST", &address);
    let answers: Vec<&str> = text.split('\0').collect();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let ended = &ended;
        let serving = scope.spawn(move || {
            let mut requests = 0;
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                requests += 1;
                let answer = answers[(requests - 1) % answers.len()];
                let _ = stream.map(|stream| serve(&stream, answer));
            }
            requests
        });
        pull(&address);
        ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&address);
        let requests = serving.join().expect("the server doesn't panic");
        assert!(requests <= REQUESTS_MAX, "{requests} requests");
    });
}

/// Answers one request and closes the connection.
fn serve(stream: &TcpStream, answer: &str) -> std::io::Result<()> {
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let mut stream = stream;
    stream.write_all(answer.as_bytes())
}

/// Pulls an image; the error of a pull that fails has to be one line.
fn pull(address: &str) {
    let folder = std::env::temp_dir().join(format!("minivm-fuzz-registry-{}", std::process::id()));
    let options = Options {
        connect_timeout: Duration::from_millis(300),
        stall_timeout: Duration::from_millis(300),
        retries: 1,
        backoff: Duration::ZERO,
        longest_pause: Duration::ZERO,
        largest: 1 << 20,
        ..Options::default()
    };
    let source: Source = format!("docker://{address}/o/n:1")
        .parse()
        .expect("it is a name");
    let store = Store::new(folder.clone());
    if let Err(error) = minivm_image::open(&source, &store, &options, &Unwatched) {
        let line = error.to_string();
        assert!(!line.contains(char::is_control), "{line:?}");
    }
    let _ = std::fs::remove_dir_all(&folder);
}
