//! A registry that misbehaves as a test wants: an HTTP server of one thread a connection, one request a connection.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::digest::Digest;
use crate::fixtures::Made;

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: String,
    /// How many requests for the path there were before.
    pub(super) nth: usize,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Where the asked range starts.
    pub(super) fn start(&self) -> usize {
        let range = self
            .header("range")
            .and_then(|range| range.strip_prefix("bytes="));
        range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap())
    }

    pub(super) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// How an answer's body is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Whole,
    /// As many bytes, and then the connection is closed.
    Cut(usize),
    /// As many bytes, and then nothing.
    Stall(usize),
    /// A byte at a time, with this pause.
    Drip(Duration),
}

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    pub(super) way: Way,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer {
            status,
            headers: Vec::new(),
            body: body.into(),
            way: Way::Whole,
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn way(mut self, way: Way) -> Answer {
        self.way = way;
        self
    }
}

type Behaviour = dyn Fn(&Request) -> Option<Answer> + Send + Sync;

struct Shared {
    content: HashMap<String, Vec<u8>>,
    behaviour: Box<Behaviour>,
    requests: Mutex<Vec<Request>>,
    ended: AtomicBool,
    busy: Mutex<(usize, usize)>,
}

/// A running registry that has an image as `o/n:1`.
pub(super) struct Registry {
    pub(super) address: String,
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Registry {
    /// Serves the image, except where `behaviour` has an answer of its own.
    pub(super) fn start(
        made: &Made,
        behaviour: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut content = HashMap::new();
        content.insert("/v2/o/n/manifests/1".to_owned(), made.manifest.clone());
        for (digest, blob) in made.blobs() {
            for folder in ["manifests", "blobs"] {
                content.insert(format!("/v2/o/n/{folder}/{digest}"), blob.clone());
            }
        }
        let shared = Arc::new(Shared {
            content,
            behaviour: Box::new(behaviour),
            requests: Mutex::default(),
            ended: AtomicBool::new(false),
            busy: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    break;
                }
                let (shared, stream) = (Arc::clone(&serving), stream.unwrap());
                thread::spawn(move || shared.serve(stream));
            }
        });
        Registry {
            address,
            shared,
            thread: Some(thread),
        }
    }

    /// Serves the image as it should be.
    pub(super) fn good(made: &Made) -> Registry {
        Registry::start(made, |_| None)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The requests for one piece of content.
    pub(super) fn requests_for(&self, digest: &Digest) -> Vec<Request> {
        let end = digest.to_string();
        self.requests()
            .into_iter()
            .filter(|request| request.path.ends_with(&end))
            .collect()
    }

    /// The most blobs that were being served at once.
    pub(super) fn most_at_once(&self) -> usize {
        self.shared.busy.lock().unwrap().1
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let Some(request) = self.read(&stream) else {
            return;
        };
        let blob = request.is_blob();
        if blob {
            let mut busy = self.busy.lock().unwrap();
            busy.0 += 1;
            busy.1 = busy.1.max(busy.0);
        }
        let answer = (self.behaviour)(&request).unwrap_or_else(|| self.good(&request));
        if blob {
            // Before the client can have all of it, and ask for the next one.
            self.busy.lock().unwrap().0 -= 1;
        }
        // A client hangs up on a registry that misbehaves.
        let _ = self.send(&answer, stream);
    }

    fn read(&self, stream: &TcpStream) -> Option<Request> {
        let mut reader = BufReader::new(stream);
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            Some(line.trim_end().to_owned()).filter(|line| !line.is_empty())
        };
        let path = line()?.split(' ').nth(1)?.to_owned();
        let mut headers = HashMap::new();
        while let Some(line) = line() {
            let (name, value) = line.split_once(':')?;
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let length = headers
            .get("content-length")
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let body = String::from_utf8(body).unwrap();
        let mut requests = self.requests.lock().unwrap();
        let request = Request {
            nth: requests.iter().filter(|r| r.path == path).count(),
            path,
            headers,
            body,
        };
        requests.push(request.clone());
        Some(request)
    }

    fn good(&self, request: &Request) -> Answer {
        let Some(content) = self.content.get(&request.path) else {
            return Answer::new(404, r#"{"errors":[{"message":"manifest unknown"}]}"#);
        };
        let digest = Digest::of(content).to_string();
        match request.start() {
            0 => Answer::new(200, content.clone()).header("Docker-Content-Digest", digest),
            start if start >= content.len() => Answer::new(416, ""),
            start => partial(content, start),
        }
    }

    fn send(&self, answer: &Answer, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", answer.status);
        head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        match answer.way {
            Way::Whole => stream.write_all(&answer.body),
            Way::Cut(len) => stream.write_all(&answer.body[..len]),
            Way::Stall(len) => {
                stream.write_all(&answer.body[..len])?;
                while !self.ended.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            }
            Way::Drip(pause) => {
                for byte in answer.body.chunks(1) {
                    if self.ended.load(Ordering::SeqCst) {
                        break;
                    }
                    stream.write_all(byte)?;
                    thread::sleep(pause);
                }
                Ok(())
            }
        }
    }
}

/// The rest of some content.
pub(super) fn partial(content: &[u8], start: usize) -> Answer {
    let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
    Answer::new(206, &content[start..]).header("Content-Range", range)
}
