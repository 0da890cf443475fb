//! Traces of a machine: each exit with its meaning, the steps of its life, and how many there were of each.
//!
//! A [`Tracer`] is the observer of a machine ([`minivm_vmm::Observer`]). It leaves [`Event`]s in a bounded ring, from which a thread of
//! its own takes them for a [`Sink`]. A [`Trace`] is such a sink: it finds the meaning of each exit ([`meaning`]) and the function that
//! the guest was in ([`Symbols`]), lets a [`Filter`] choose, counts ([`Totals`]), and writes in one of the forms of [`output`].
//!
//! A machine in a lab has its tracer there: its events come back as JSON lines ([`output::Forward`], [`output::read`]), and are explained
//! here.
//!
//! ```no_run
//! use std::time::Instant;
//! use minivm_trace::{Trace, Tracer};
//! use minivm_vmm::{Builder, Config, Kernel};
//!
//! let tracer = Tracer::start(Trace::new(), Instant::now())?;
//! let config = Config::new(Kernel::File("vmlinux".into()));
//! Builder::new(config).observer(tracer.clone()).build()?.run()?;
//! let trace = tracer.finish().expect("it was not finished before");
//! eprint!("{}", trace.totals());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Modules
//!
//! | module | holds |
//! |---|---|
//! | [`event`] | what a trace is made of, as plain data and as JSON |
//! | `tracer` | the observer, the ring and the writing thread |
//! | [`meaning`] | the devices' registers as tables, and the decoders |
//! | [`symbols`] | the names of a kernel's functions |
//! | `filter` | the choice of exits |
//! | `trace` | the way of an event: meaning, symbol, filter, counts, output |
//! | `totals`, `counts`, `statistics` | the table at the end, and KVM's own counts beside it; the files with those |
//! | `fold` | several exits in one line |
//! | [`output`] | text, JSON lines, Chrome's trace format |

mod counts;
pub mod event;
mod filter;
mod fold;
pub mod meaning;
pub mod output;
mod statistics;
pub mod symbols;
mod totals;
mod trace;
mod tracer;

pub use event::Event;
pub use filter::{Filter, UnknownFilter};
pub use statistics::Statistic;
pub use symbols::Symbols;
pub use totals::Totals;
pub use trace::Trace;
pub use tracer::{Sink, Tracer};
