//! Chrome's trace format, which Perfetto and `chrome://tracing` open. (Nduca and Sinclair, "Trace Event Format", 2016.)
//!
//! The file is a JSON array of events. Its closing bracket is optional in the format, so a file that was cut off after an event can be
//! opened, too. Times are in microseconds. A vCPU is a thread of the process "minivm", with an event for the time that minivm needed for
//! each exit; the gaps between them are the time in the guest and in KVM.

use std::io::{self, BufWriter, Write};

use serde::Serialize;
use serde_json::{Value, json};

use super::text::step_name;
use super::{Explained, Format};
use crate::event::{Data, Event};

/// The number of minivm's process in the file.
const PROCESS: u32 = 1;
/// The number of the track for the machine's steps. That of the process would be its main thread's.
const MACHINE: u32 = 2;
/// The number of vCPU 0's track.
const VCPU0: u32 = 10;

/// Writes Chrome's trace format.
pub struct Chrome {
    out: BufWriter<Box<dyn Write + Send>>,
    begun: bool,
    named: Vec<u32>,
    last: u64,
}

/// An exit: a complete event.
#[derive(Serialize)]
struct Complete<'a> {
    ph: &'static str,
    pid: u32,
    tid: u32,
    ts: f64,
    dur: f64,
    cat: &'static str,
    name: &'a str,
    args: Args<'a>,
}

/// What else is known about an exit.
#[derive(Serialize)]
struct Args<'a> {
    meaning: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u32>,
    rip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<String>,
}

impl Chrome {
    /// Makes a writer to `out`.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Chrome {
            out: BufWriter::new(out),
            begun: false,
            named: Vec::new(),
            last: 0,
        }
    }

    /// Writes an event; the first begins the array.
    fn write(&mut self, event: &impl Serialize) -> io::Result<()> {
        let before = if self.begun { ",\n" } else { "[\n" };
        self.out.write_all(before.as_bytes())?;
        self.begun = true;
        serde_json::to_writer(&mut self.out, event)?;
        Ok(())
    }

    /// Names a track before its first event.
    fn name(&mut self, track: u32) -> io::Result<()> {
        if self.named.is_empty() {
            let process = json!({"ph": "M", "pid": PROCESS, "name": "process_name", "args": {"name": "minivm"}});
            self.write(&process)?;
        }
        if self.named.contains(&track) {
            return Ok(());
        }
        self.named.push(track);
        let name = match track {
            MACHINE => "machine".into(),
            vcpu => format!("vcpu{}", vcpu - VCPU0),
        };
        self.write(&json!({"ph": "M", "pid": PROCESS, "tid": track, "name": "thread_name", "args": {"name": name}}))
    }

    /// Writes an event without duration on the machine's track.
    fn instant(&mut self, at: u64, name: &str, args: &Value) -> io::Result<()> {
        self.last = self.last.max(at);
        self.name(MACHINE)?;
        self.write(&json!({
            "ph": "i", "s": "t", "pid": PROCESS, "tid": MACHINE, "ts": micros(at), "name": name, "args": args,
        }))
    }
}

/// Returns microseconds, with the nanoseconds behind the point.
fn micros(nanoseconds: u64) -> f64 {
    #[allow(
        clippy::cast_precision_loss,
        reason = "exact to the nanosecond for 100 days"
    )]
    let exact = nanoseconds as f64;
    exact / 1000.0
}

impl Format for Chrome {
    fn exit(&mut self, seen: &Explained<'_>) -> io::Result<()> {
        let (exit, meaning) = (seen.exit, seen.meaning);
        let track = u32::from(exit.vcpu) + VCPU0;
        self.last = self.last.max(exit.at);
        self.name(track)?;
        let access = exit.kind.is_access().then_some(exit);
        self.write(&Complete {
            ph: "X",
            pid: PROCESS,
            tid: track,
            ts: micros(exit.at),
            dur: micros(exit.took),
            cat: exit.kind.name(),
            name: &meaning.name(),
            args: Args {
                meaning: &meaning.to_string(),
                address: access.map(|access| format!("{:#x}", access.address)),
                data: access.map(|access| access.data),
                size: access.map(|access| access.data.size()),
                rip: format!("{:#x}", exit.rip),
                symbol: seen.place(),
            },
        })
    }

    fn other(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Step { at, step } => self.instant(*at, &step_name(*step), &json!({})),
            Event::Lost { count } => {
                self.instant(self.last, "events lost", &json!({"count": count}))
            }
            Event::Counts { counts } => {
                let args = counts.iter().map(|count| {
                    let of = count
                        .vcpu
                        .map_or("machine".into(), |vcpu| format!("vcpu{vcpu}"));
                    (format!("{of}.{}", count.name), json!(count.count))
                });
                let args = Value::Object(args.collect());
                self.instant(self.last, "KVM's own counts", &args)
            }
            Event::NoCounts { .. } | Event::Exit(_) => Ok(()),
        }
    }

    fn idle(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn end(&mut self) -> io::Result<()> {
        let end = if self.begun { "\n]\n" } else { "[]\n" };
        self.out.write_all(end.as_bytes())?;
        self.out.flush()
    }
}
