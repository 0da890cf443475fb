//! A trace: explains events, lets the filter choose, counts, and writes.

use std::io;

use crate::event::{Event, Exit};
use crate::filter::Filter;
use crate::meaning::{Architecture, Decoder};
use crate::output::{Explained, Format};
use crate::symbols::{Strays, Symbols};
use crate::totals::Totals;
use crate::tracer::Sink;

/// A trace in the making: the [`Sink`] of a [`Tracer`](crate::Tracer), or of [`read`](crate::output::read).
pub struct Trace {
    decoder: Decoder,
    filter: Filter,
    symbols: Option<Symbols>,
    strays: Strays,
    totals: Totals,
    output: Option<Box<dyn Format>>,
    on_failure: OnFailure,
}

/// A function that is called when the output fails, with the reason and the number of exits so far.
type OnFailure = Box<dyn FnMut(&io::Error, u64) + Send>;

impl Trace {
    /// Makes a trace that only counts.
    pub fn new() -> Self {
        Trace {
            decoder: Decoder::new(),
            filter: Filter::default(),
            symbols: None,
            strays: Strays::default(),
            totals: Totals::default(),
            output: None,
            on_failure: Box::new(|_, _| {}),
        }
    }

    /// Writes the trace to `output`. Where that fails, the trace ends there: `on_failure` gets the error and the number of exits so far,
    /// and the counting goes on.
    pub fn output(
        mut self,
        output: Box<dyn Format>,
        on_failure: impl FnMut(&io::Error, u64) + Send + 'static,
    ) -> Self {
        self.output = Some(output);
        self.on_failure = Box::new(on_failure);
        self
    }

    /// Explains the exits of a machine of another architecture than this program's.
    pub fn architecture(mut self, architecture: Architecture) -> Self {
        self.decoder = Decoder::of(architecture);
        self
    }

    /// Shows and counts only what the filter lets pass.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Names instruction pointers.
    pub fn symbols(mut self, symbols: Symbols) -> Self {
        self.symbols = Some(symbols);
        self
    }

    /// Returns the counts.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Returns a warning where the symbols turned out to be another kernel's.
    pub fn warning(&self) -> Option<String> {
        self.strays.warning(self.symbols.as_ref()?)
    }

    fn exit(&mut self, exit: &Exit) {
        // Always: the decoders keep state.
        let meaning = self.decoder.decode(exit);
        self.totals.see();
        if let Some(symbols) = &self.symbols {
            self.strays.count(symbols, exit.rip);
        }
        if !self.filter.passes(exit, meaning.device) {
            return;
        }
        self.totals.add(exit, &meaning);
        let symbol = self
            .symbols
            .as_ref()
            .and_then(|symbols| symbols.find(exit.rip));
        let written = self.output.as_mut().map(|output| {
            output.exit(&Explained {
                exit,
                meaning: &meaning,
                symbol,
            })
        });
        self.written(written);
    }

    /// Ends the output where it failed.
    fn written(&mut self, written: Option<io::Result<()>>) {
        if let Some(Err(error)) = written {
            self.output = None;
            (self.on_failure)(&error, self.totals.exits());
        }
    }
}

impl Default for Trace {
    fn default() -> Self {
        Trace::new()
    }
}

impl Sink for Trace {
    fn event(&mut self, event: Event) {
        match &event {
            Event::Exit(exit) => return self.exit(exit),
            Event::Lost { count } => self.totals.add_lost(*count),
            Event::Counts { .. } | Event::NoCounts { .. } => self.totals.counts.take(&event),
            Event::Step { .. } => {}
        }
        let written = self.output.as_mut().map(|output| output.other(&event));
        self.written(written);
    }

    fn idle(&mut self) {
        let written = self.output.as_mut().map(|output| output.idle());
        self.written(written);
    }

    fn end(&mut self) {
        let written = self.output.as_mut().map(|output| output.end());
        self.written(written);
    }
}
