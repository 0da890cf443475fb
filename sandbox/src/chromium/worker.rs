//! The part of minivm that is in the jail: starts Chromium, opens the page in it, and passes on what the page tells.
//!
//! It is in there because DevTools is reached by TCP on the loopback device, and the jail's is its own. What the page tells
//! comes as calls of a function that DevTools has given to it: at once, even while Python is busy. That there is never much
//! under way is up to the page, which asks now and then how far this has come.

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

use super::server::{Drained, Served};

/// The function that the page has.
const BINDING: &str = "minivmSend";
/// How long Chromium may take to start, and then the page until Python runs. It is for machines that do much else.
const PATIENCE: Duration = Duration::from_secs(120);
/// What Chromium is told: to be quiet and alone, and to keep nothing back because nobody looks.
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
/// What Chromium does without. In a few of its processes it samples allocations, to report how memory is used, and follows the
/// stack of each: beyond its end where that is one of WebAssembly's own, as `asyncio.run` has it (JSPI), and the page crashes.
/// With `HeapProfilerReporting:stable-probability/1.0/nonstable-probability/1.0/sampling-rate/1000` enabled instead, most runs
/// do that ask for much inside `asyncio.run` (Chromium 156).
const WITHOUT: &str = "HeapProfilerReporting";

/// How a program ends that calls `abort`, for a page that fails where the code runs already.
const ABORTED: u8 = 134;

/// Why the page didn't come to its own end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The page got no more memory.
    #[error("its page is out of memory")]
    OutOfMemory,
    /// Chromium didn't start, or said something unexpected.
    #[error("{0}")]
    Browser(#[from] CdpError),
    /// It started otherwise than it should.
    #[error("{0}")]
    Page(String),
    /// Something of the system's could not be had.
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

/// What happens.
enum PageEvent {
    Called(String),
    Crashed(String),
    /// The page is another now, of this address.
    Navigated(String),
    Lost,
    Late,
}

/// Runs the jail's task in a page of this Chromium; returns its exit code.
///
/// # Errors
///
/// Where the page didn't come to its end by itself.
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
    // It is what moves messages, for as long as there is a connection.
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
    // It ends when the page has been loaded, which Python may put off.
    let there = address.clone();
    tokio::spawn(async move { page.goto(there).await.map(drop) });
    let ends = select_all([ends, lost.boxed(), late.boxed()]);
    // What it has told comes before its end, however that came about.
    let events = select_with_strategy(calls, ends, |(): &mut ()| PollNext::Left);
    follow(&address, events, drained).await
}

/// Closes what `alert` and its like open: they wait for somebody, and nobody is there.
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

/// What the page tells, and what else happens to it.
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

/// Passes on what is told, to the end of the page at this address.
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
                    // It is the code's own call.
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
            // An empty page may still come before it.
            PageEvent::Navigated(url) if !arrived => arrived = url == address,
            PageEvent::Navigated(_) => return died("the code has left its page"),
            PageEvent::Late if started => {}
            PageEvent::Late => return Err(Failure::Page("Python did not start in time".into())),
            PageEvent::Lost => break,
        }
    }
    Err(Failure::Page("Chromium has ended".into()))
}

/// The end of a page in which the code runs, and has brought that about.
fn died(why: &str) -> Result<u8, Failure> {
    let written = writeln!(io::stderr(), "minivm: {why}");
    written.map_err(|error| Failure::System("write the output", error))?;
    Ok(ABORTED)
}

/// Writes bytes that have come in letters.
fn pass(out: &mut dyn Write, letters: &str) -> Result<(), Failure> {
    // Other letters are the code's own call.
    let bytes = BASE64_STANDARD.decode(letters).unwrap_or_default();
    let written = out.write_all(&bytes).and_then(|()| out.flush());
    written.map_err(|error| Failure::System("write the output", error))
}
