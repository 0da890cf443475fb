//! The worker in the jail: it starts Chromium, opens the page in it, and passes on the page's messages.
//!
//! It runs in the jail because DevTools listens on TCP on the loopback device, of which the jail has its own. The page sends messages
//! by a function that DevTools adds to it (a binding): they arrive at once, even while Python is busy. The page itself bounds the
//! messages in transit: it requests from time to time how many have been handled.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use chromiumoxide::cdp::browser_protocol::page::{
    EventFrameNavigated, EventJavascriptDialogOpening, HandleJavaScriptDialogParams,
};
use chromiumoxide::cdp::browser_protocol::target::EventTargetCrashed;
use chromiumoxide::cdp::js_protocol::runtime::{AddBindingParams, EventBindingCalled};
use chromiumoxide::error::CdpError;
use chromiumoxide::{Browser, BrowserConfig, Page};
use futures_util::stream::{
    BoxStream, PollNext, StreamExt, once, select_all, select_with_strategy,
};

use super::OUT_OF_MEMORY;
use super::server::{Drained, Served};

/// The page's function that sends a message.
const BINDING: &str = "minivmSend";
/// How long Chromium may take to start, and then the page until Python runs. It allows for a busy host.
const PATIENCE: Duration = Duration::from_secs(120);
/// Chromium's flags: no connections or dialogs of its own, and no throttling of a page that isn't visible.
const FLAGS: [&str; 16] = [
    "disable-background-networking",
    "disable-background-timer-throttling",
    "disable-backgrounding-occluded-windows",
    "disable-breakpad",
    "disable-client-side-phishing-detection",
    "disable-component-update",
    "disable-default-apps",
    "disable-gpu",
    "disable-hang-monitor",
    "disable-quic",
    "disable-renderer-backgrounding",
    "disable-sync",
    "hide-scrollbars",
    "metrics-recording-only",
    "mute-audio",
    "no-first-run",
];
/// The feature of Chromium that is disabled. In a few of its processes Chromium samples allocations, to report memory use, and walks
/// the stack of each: beyond its end where that is a stack of WebAssembly's own, as in `asyncio.run` (JSPI), and the page crashes.
/// With `HeapProfilerReporting:stable-probability/1.0/nonstable-probability/1.0/sampling-rate/1000` enabled instead, most runs
/// that allocate much inside `asyncio.run` crash (Chromium 156).
const WITHOUT: &str = "HeapProfilerReporting";

/// The exit code of a program that calls `abort`: the end of a page that fails after the code has started.
const ABORTED: u8 = 134;

/// Reasons why a page failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The page is out of memory.
    #[error("its page is out of memory")]
    OutOfMemory,
    /// Chromium didn't start, or DevTools reported an error.
    #[error("{0}")]
    Browser(#[from] CdpError),
    /// The page crashed or failed before the code ran, or Chromium has ended.
    #[error("{0}")]
    Page(String),
    /// A system call failed.
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

/// Writes the failure of a page to the pipe with this descriptor number.
///
/// # Errors
///
/// The system's error where there is no such pipe.
pub fn report(number: u32, failure: &Failure) -> io::Result<()> {
    let text = match failure {
        Failure::OutOfMemory => OUT_OF_MEMORY.to_owned(),
        failure => failure.to_string(),
    };
    let mut pipe = File::options()
        .write(true)
        .open(format!("/proc/self/fd/{number}"))?;
    pipe.write_all(text.as_bytes())
}

/// An event of the page or the browser.
enum PageEvent {
    /// The page has sent a message.
    Called(String),
    /// The page has crashed, with this status.
    Crashed(String),
    /// The browser has navigated to this address.
    Navigated(String),
    /// The connection to the browser is lost.
    Lost,
    /// The time for the start is over.
    Late,
}

/// Runs the jail's task in a page of this Chromium; returns its exit code.
///
/// # Errors
///
/// [`Failure::OutOfMemory`] where the page is out of memory, and the others where Chromium or the page fails before the code runs.
pub fn run(chromium: &Path) -> Result<u8, Failure> {
    let drained = Drained::default();
    let address = Served::new(drained.clone()).start();
    let address = address.map_err(|error| Failure::System("serve the page", error))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::System("start", error))?;
    runtime.block_on(drive(chromium, address, &drained))
}

async fn drive(chromium: &Path, address: String, drained: &Drained) -> Result<u8, Failure> {
    let config = BrowserConfig::builder()
        .chrome_executable(chromium)
        .disable_default_args()
        .args(FLAGS)
        .arg(("password-store", "basic"))
        .arg(("disable-features", WITHOUT))
        .user_data_dir("/tmp/profile")
        .viewport(None)
        .launch_timeout(PATIENCE)
        .request_timeout(PATIENCE)
        .build()
        .map_err(Failure::Page)?;
    let (browser, mut handler) = Browser::launch(config).await?;
    // Polling the handler moves the messages of the connection, until it is lost.
    let lost = async move {
        while let Some(Ok(())) = handler.next().await {}
        PageEvent::Lost
    };
    let lost = tokio::spawn(lost);
    let page = browser.new_page("about:blank").await?;
    let (calls, ends) = events(&browser, &page).await?;
    let lost = once(async { lost.await.unwrap_or(PageEvent::Lost) });
    let late = once(async {
        tokio::time::sleep(PATIENCE).await;
        PageEvent::Late
    });
    page.execute(AddBindingParams::new(BINDING)).await?;
    tokio::spawn(answer_dialogs(page.clone()));
    // `goto` returns when the page has been loaded, which Python may delay.
    let there = address.clone();
    tokio::spawn(async move { page.goto(there).await.map(drop) });
    let ends = select_all([ends, lost.boxed(), late.boxed()]);
    // The page's messages come before its end.
    let events = select_with_strategy(calls, ends, |(): &mut ()| PollNext::Left);
    follow(&address, events, drained).await
}

/// Closes the dialogs of `alert`, `confirm` and `prompt`, which would wait for a user.
async fn answer_dialogs(page: Page) -> Result<(), CdpError> {
    let mut opened = page
        .event_listener::<EventJavascriptDialogOpening>()
        .await?;
    while opened.next().await.is_some() {
        page.execute(HandleJavaScriptDialogParams::new(false))
            .await?;
    }
    Ok(())
}

/// Returns the stream of the page's messages, and that of its other events.
async fn events(
    browser: &Browser,
    page: &Page,
) -> Result<(BoxStream<'static, PageEvent>, BoxStream<'static, PageEvent>), CdpError> {
    let calls = page.event_listener::<EventBindingCalled>().await?;
    let calls = calls.map(|event| PageEvent::Called(event.payload.clone()));
    let crashed = browser.event_listener::<EventTargetCrashed>().await?;
    let crashed = crashed.map(|event| PageEvent::Crashed(event.status.clone()));
    let navigated = page.event_listener::<EventFrameNavigated>().await?;
    let navigated = navigated.filter_map(|event| {
        let main = event.frame.parent_id.is_none();
        let event = main.then(|| PageEvent::Navigated(event.frame.url.clone()));
        async move { event }
    });
    let ends = select_all([crashed.boxed(), navigated.boxed()]);
    Ok((calls.boxed(), ends.boxed()))
}

/// Passes on the page's messages, until the end of the page at this address. Returns the exit code.
async fn follow(
    address: &str,
    mut events: impl StreamExt<Item = PageEvent> + Unpin,
    drained: &Drained,
) -> Result<u8, Failure> {
    let mut started = false;
    let mut arrived = false;
    while let Some(event) = events.next().await {
        match event {
            PageEvent::Called(text) => {
                let (kind, rest) = text.split_at_checked(1).unwrap_or_default();
                match kind {
                    "o" => pass(&mut io::stdout(), rest)?,
                    "e" => pass(&mut io::stderr(), rest)?,
                    "s" => started = true,
                    "x" => return Ok(rest.parse().unwrap_or(1)),
                    "f" if !started => return Err(Failure::Page(rest.to_owned())),
                    "f" => return died(rest),
                    // The code itself has called the binding.
                    _ => {}
                }
                if matches!(kind, "o" | "e") {
                    drained.add();
                }
            }
            PageEvent::Crashed(how) if how == "oom" => return Err(Failure::OutOfMemory),
            PageEvent::Crashed(how) if started => {
                return died(&format!("the page crashed ({how})"));
            }
            PageEvent::Crashed(how) => {
                return Err(Failure::Page(format!("its page crashed ({how})")));
            }
            // The event of the empty page may come first.
            PageEvent::Navigated(url) if !arrived => arrived = url == address,
            PageEvent::Navigated(_) => return died("the code has left its page"),
            PageEvent::Late if started => {}
            PageEvent::Late => return Err(Failure::Page("Python did not start in time".into())),
            PageEvent::Lost => break,
        }
    }
    Err(Failure::Page("Chromium has ended".into()))
}

/// Writes why a page ended in which the code ran already; returns the exit code of that.
fn died(why: &str) -> Result<u8, Failure> {
    let written = writeln!(io::stderr(), "minivm: {why}");
    written.map_err(|error| Failure::System("write the output", error))?;
    Ok(ABORTED)
}

/// Writes the bytes of a Base64 text to an output.
fn pass(out: &mut dyn Write, letters: &str) -> Result<(), Failure> {
    // Text that isn't Base64 is a call of the code itself.
    let bytes = BASE64_STANDARD.decode(letters).unwrap_or_default();
    let written = out.write_all(&bytes).and_then(|()| out.flush());
    written.map_err(|error| Failure::System("write the output", error))
}
