//! The loop around Monty's virtual machine: it runs until it needs its host, yields a request, and is resumed with the answer.
//!
//! This module or a [`Host`] answers all requests: functions, lines of input, variables, the time. Requests for files are refused.

use std::io;
use std::time::Instant;

use monty::{
    Dump, FunctionCall, MontyRun, NameLookup, OsCall, RunProgress, Session, SessionRef, dump,
};
use monty_types::{
    CompileOptions, ExcType, ExtFunctionResult, MontyException, MontyObject, OsFunctionCall,
    ResourceLimits, ResourceTracker,
};
use serde_json::Value;

use super::builtin::{self, Builtin};
use super::host::{Host, Stream, exception};
use super::printer::Printer;
use super::task::{CALL_MAX, Outcome, STATE_MAX, Scope};
use super::traceback::traceback;
use super::{clock, dialect, value};
use crate::Call;

/// The code's file name in tracebacks.
const FILE: &str = "<string>";
/// The message for a valid state that isn't one of a suspended call.
const NOT_SUSPENDED: &str = "it is not the state of a suspended call";

/// The code or the state to run.
pub(super) enum Start {
    Code(String),
    Resume {
        state: Vec<u8>,
        returned: Result<Value, String>,
    },
}

/// Errors of running code that are not the code's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The bytes are not a state that can be resumed.
    #[error("the state cannot be resumed: {0}")]
    State(String),
    /// The host returned an error.
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// The result of running code.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    /// The traceback of the exception that ended the code, as it was written to stderr.
    pub(super) traceback: Option<String>,
}

/// Runs code to its end.
pub(super) fn run(start: Start, scope: &Scope, host: &mut dyn Host) -> Result<Ended, Fault> {
    let mut printer = Printer::new(host);
    let run = Run {
        scope,
        began: Instant::now(),
        exit: None,
    };
    run.until_end(start, &mut printer)
}

type Step = Result<RunProgress, MontyException>;

struct Run<'a> {
    scope: &'a Scope,
    began: Instant,
    /// The code with which `exit` was called.
    exit: Option<u8>,
}

/// The next step after a request of the interpreter.
enum Next {
    Step(Box<Step>),
    End(Outcome),
}

impl Run<'_> {
    fn until_end(mut self, start: Start, printer: &mut Printer<'_>) -> Result<Ended, Fault> {
        let mut step = self.start(start, printer)?;
        loop {
            if let Some(error) = printer.error.take() {
                return Err(error.into());
            }
            let progress = match step {
                Ok(progress) => progress,
                Err(exception) => return self.raised(&exception, printer),
            };
            match self.answer(progress, printer)? {
                Next::Step(next) => step = *next,
                Next::End(outcome) => {
                    return Ok(Ended {
                        outcome,
                        traceback: None,
                    });
                }
            }
        }
    }

    fn start(&self, start: Start, printer: &mut Printer<'_>) -> Result<Step, Fault> {
        let (state, returned) = match start {
            Start::Code(code) => return Ok(self.begin(&code, printer)),
            Start::Resume { state, returned } => (state, returned),
        };
        let loaded = Dump::load(&state).map_err(|error| Fault::State(error.to_string()))?;
        let Session::Running(progress) = loaded.state else {
            return Err(Fault::State(NOT_SUSPENDED.into()));
        };
        let RunProgress::FunctionCall(mut call) = *progress else {
            return Err(Fault::State(NOT_SUSPENDED.into()));
        };
        *call.tracker_mut() = self.tracker();
        let result = result(&call.function_name, returned);
        Ok(call.resume(result, printer.writer()))
    }

    fn begin(&self, code: &str, printer: &mut Printer<'_>) -> Step {
        let code = dialect::translated(code).into_owned();
        // The interpreter's own `print` is faster, and can be passed to `map` and similar functions.
        let (names, inputs) = match code.contains("file=") && code.contains("stderr") {
            true => (vec!["print".to_owned()], vec![function("print")]),
            false => (Vec::new(), Vec::new()),
        };
        let run = MontyRun::new(code, FILE, names, CompileOptions::default())?;
        run.start(inputs, self.tracker(), printer.writer())
    }

    fn tracker(&self) -> ResourceTracker {
        let memory = self.scope.memory;
        ResourceTracker::new(ResourceLimits {
            max_duration: self.scope.time,
            max_memory: memory.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            ..ResourceLimits::default()
        })
    }

    fn answer(&mut self, progress: RunProgress, printer: &mut Printer<'_>) -> io::Result<Next> {
        let step = match progress {
            RunProgress::Complete(_) => return Ok(Next::End(Outcome::Exited(0))),
            RunProgress::FunctionCall(call) => return self.function_call(call, printer),
            RunProgress::NameLookup(lookup) => self.name_lookup(lookup, printer),
            RunProgress::OsCall(call) => self.os_call(call, printer),
            // No call returns a future here.
            RunProgress::ResolveFutures(futures) => {
                let why = exception(ExcType::RuntimeError, "there is nothing to wait for");
                futures.abort(why, printer.writer())
            }
        };
        Ok(Next::Step(Box::new(step)))
    }

    /// Answers the call of a function.
    fn function_call(&mut self, call: FunctionCall, printer: &mut Printer<'_>) -> io::Result<Next> {
        let name = call.function_name.clone();
        if self.late() {
            return Ok(Next::End(Outcome::TimedOut));
        }
        let suspends = self.scope.suspend_at.contains(&name);
        let known = suspends || self.scope.functions.contains(&name);
        let answer = if call.object_id.is_some() {
            ExtFunctionResult::NotFound(name)
        } else if known {
            match value::call(&name, &call.args, &call.kwargs) {
                Err(why) => exception(ExcType::TypeError, why).into(),
                Ok(message) if suspends => match suspended(call, message) {
                    Ok(outcome) => return Ok(Next::End(outcome)),
                    Err(refused) => {
                        let (call, why) = *refused;
                        let why = exception(ExcType::ValueError, why);
                        return Ok(stepped(call.resume(why, printer.writer())));
                    }
                },
                Ok(message) => result(&name, printer.host.call(message)?),
            }
        } else {
            match Builtin::named(&name) {
                Some(builtin) => self.builtin(builtin, &call, printer)?,
                None => ExtFunctionResult::NotFound(name),
            }
        };
        // The function may have used up the time limit.
        if self.late() {
            return Ok(Next::End(Outcome::TimedOut));
        }
        Ok(stepped(call.resume(answer, printer.writer())))
    }

    fn builtin(
        &mut self,
        builtin: Builtin,
        call: &FunctionCall,
        printer: &mut Printer<'_>,
    ) -> io::Result<ExtFunctionResult> {
        match builtin {
            Builtin::Input => builtin::input(&call.args, printer.host),
            Builtin::Print => builtin::print(&call.args, &call.kwargs, printer.host),
            Builtin::Exit => {
                let (code, raised) = builtin::exit(&call.args);
                self.exit = code;
                Ok(raised.into())
            }
        }
    }

    fn name_lookup(&self, lookup: NameLookup, printer: &mut Printer<'_>) -> Step {
        let name = &lookup.name;
        let known = self.scope.functions.contains(name)
            || self.scope.suspend_at.contains(name)
            || Builtin::named(name).is_some();
        let found = (known && lookup.object_id().is_none()).then(|| function(name));
        lookup.resume(found, printer.writer())
    }

    /// Answers a request to the operating system.
    fn os_call(&self, call: OsCall, printer: &mut Printer<'_>) -> Step {
        let env = &self.scope.env;
        call.resume_with(printer.writer(), |call| match call {
            OsFunctionCall::GetEnviron => {
                let text = |text: &String| MontyObject::String(text.clone());
                let pairs = env.iter().map(|(name, value)| (text(name), text(value)));
                MontyObject::dict(pairs.collect::<Vec<_>>()).into()
            }
            OsFunctionCall::Getenv(args) => match env.get(&args.key) {
                Some(value) => MontyObject::String(value.clone()).into(),
                None => args.default.into(),
            },
            OsFunctionCall::DateToday => MontyObject::Date(clock::today()).into(),
            OsFunctionCall::DateTimeNow(zone) => MontyObject::DateTime(clock::now(zone)).into(),
            refused => refused.on_no_handler().into(),
        })
    }

    fn late(&self) -> bool {
        let time = self.scope.time;
        time.is_some_and(|time| self.began.elapsed() >= time)
    }

    /// Writes the traceback of the exception that ended the code, and returns the code's end.
    fn raised(
        &self,
        exception: &MontyException,
        printer: &mut Printer<'_>,
    ) -> Result<Ended, Fault> {
        let outcome = self.outcome(exception);
        let text = match builtin::exit_text(exception, self.exit) {
            Some(text) => text,
            None => Some(traceback(exception)),
        };
        if let Some(text) = &text {
            printer.host.write(Stream::Stderr, &format!("{text}\n"))?;
        }
        Ok(Ended {
            outcome,
            traceback: text,
        })
    }

    fn outcome(&self, exception: &MontyException) -> Outcome {
        let message = exception.message().unwrap_or_default();
        match exception.exc_type() {
            ExcType::SystemExit => {
                let silent = exception.message().is_none();
                Outcome::Exited(self.exit.unwrap_or(u8::from(!silent)))
            }
            ExcType::TimeoutError
                if message.starts_with("time limit exceeded: ") && self.late() =>
            {
                Outcome::TimedOut
            }
            ExcType::MemoryError
                if message.starts_with("memory limit exceeded: ")
                    && self.scope.memory.is_some() =>
            {
                Outcome::OutOfMemory
            }
            _ => Outcome::Exited(1),
        }
    }
}

fn stepped(step: Step) -> Next {
    Next::Step(Box::new(step))
}

/// Returns the outcome of a suspended call with its state. Where that is too large, returns the call and the message of an exception.
fn suspended(call: FunctionCall, message: Call) -> Result<Outcome, Box<(FunctionCall, String)>> {
    let progress = RunProgress::FunctionCall(call);
    let state = dump(FILE, None, SessionRef::Running(&progress));
    let size = serde_json::to_vec(&message).map_or(usize::MAX, |bytes| bytes.len());
    let why = match state {
        Ok(state) if state.len() <= STATE_MAX && size <= CALL_MAX => {
            return Ok(Outcome::Suspended {
                call: message,
                state,
            });
        }
        Ok(state) => format!(
            "cannot suspend: the state has {} bytes of at most {STATE_MAX}, the call {size} of at most {CALL_MAX}",
            state.len()
        ),
        Err(error) => format!("cannot suspend: {error}"),
    };
    let call = progress.into_function_call().expect("it is one");
    Err(Box::new((call, why)))
}

/// Converts the result of a function of the host for the interpreter.
fn result(function: &str, returned: Result<Value, String>) -> ExtFunctionResult {
    match returned.map(value::from_host) {
        Ok(Ok(object)) => object.into(),
        Ok(Err(why)) => {
            let why = format!("cannot take what {function}() returned: {why}");
            exception(ExcType::TypeError, why).into()
        }
        Err(message) => exception(ExcType::RuntimeError, message).into(),
    }
}

fn function(name: &str) -> MontyObject {
    MontyObject::Function {
        name: name.to_owned(),
        docstring: None,
    }
}
