//! A page in a real browser, seen by a script of the test's own: the page itself has none.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::patience::PATIENCE;
use crate::program;

/// The theme that a page is shown in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Dark ink on light paper.
    Light,
    /// The reverse.
    Dark,
}

/// Loads `page.html` of the folder in a frame, and returns what the script `look` sees of it, as JSON. The script is an expression that
/// may use `page`, the document, `all`, a function from a selector to an array of elements, and `loaded`, the number of files that the
/// page has loaded.
///
/// # Panics
///
/// Where Chromium can't be run, or the script fails.
pub fn look(folder: &Path, look: &str, theme: Theme) -> String {
    let reader = folder.join("reader.html");
    let text = format!(
        r##"<!doctype html><meta charset="utf-8"><iframe src="page.html" width="1000" height="900"></iframe>
<pre id="seen"></pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument;
  const all = (selector) => [...page.querySelectorAll(selector)];
  const loaded = frame.contentWindow.performance.getEntriesByType("resource").length;
  document.querySelector("#seen").textContent = "SEEN" + JSON.stringify({look}) + "END";
}};
</script>"##
    );
    fs::write(&reader, text).expect("the folder can be written to");
    let mut chromium = Command::new("chromium");
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu"]);
    chromium.args(["--no-first-run", "--disable-background-networking"]);
    chromium.args(["--disable-component-update", "--disable-sync"]);
    chromium.args([
        "--allow-file-access-from-files",
        "--virtual-time-budget=10000",
        "--dump-dom",
    ]);
    // Blink's enum PreferredColorScheme: 0 is dark.
    chromium.arg(match theme {
        Theme::Light => "--blink-settings=preferredColorScheme=1",
        Theme::Dark => "--blink-settings=preferredColorScheme=0",
    });
    let profile = folder.join("profile");
    chromium.arg(format!("--user-data-dir={}", profile.display()));
    chromium.arg(format!("file://{}", reader.display()));
    let ended = program::run(&mut chromium, PATIENCE);
    let dom = ended
        .text()
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    let seen = dom.split_once("SEEN").and_then(|(_, rest)| {
        let (seen, _) = rest.split_once("END</pre>")?;
        Some(seen.to_owned())
    });
    seen.unwrap_or_else(|| panic!("{dom}\n{}", ended.stderr))
}
