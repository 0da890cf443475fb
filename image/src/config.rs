//! An image's configuration: how it is run, and the digests of its decompressed layers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::digest::Digest;
use super::error::Error;
use super::image::Config;
use super::json;
use super::platform::Platform;

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(flatten)]
    platform: Platform,
    config: Option<Run>,
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<Digest>>,
}

/// Docker writes null for whatever is empty.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Run {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// Reads a configuration, and the digests of the decompressed layers.
pub(super) fn read(
    image: &str,
    bytes: &[u8],
    wanted: &Platform,
) -> Result<(Config, Vec<Digest>), Error> {
    let file: ConfigFile = json::read(bytes).map_err(|source| Error::Json {
        image: image.into(),
        what: "configuration",
        source,
    })?;
    let Platform {
        os, architecture, ..
    } = &file.platform;
    let silent = os.is_empty() && architecture.is_empty();
    if !silent && !file.platform.fits(wanted) {
        return Err(Error::Platform {
            image: image.into(),
            wanted: wanted.to_string(),
            there: file.platform.to_string(),
        });
    }
    let run = file.config.unwrap_or_default();
    check_nul(image, &run)?;
    let config = Config {
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        working_dir: run.working_dir.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
        stop_signal: run.stop_signal.unwrap_or_default(),
        labels: run.labels.unwrap_or_default(),
    };
    let diff_ids = file.rootfs.and_then(|rootfs| rootfs.diff_ids);
    Ok((config, diff_ids.unwrap_or_default()))
}

/// Refuses NULs, which JSON can hold and a process's arguments can't.
fn check_nul(image: &str, run: &Run) -> Result<(), Error> {
    let in_any = |texts: &Option<Vec<String>>| texts.iter().flatten().any(|text| has_nul(text));
    let in_one = |text: &Option<String>| text.iter().any(|text| has_nul(text));
    let places = [
        (in_any(&run.entrypoint), "entrypoint"),
        (in_any(&run.cmd), "command"),
        (in_any(&run.env), "environment"),
        (in_one(&run.working_dir), "working folder"),
        (in_one(&run.user), "user"),
    ];
    match places.into_iter().find(|(there, _)| *there) {
        Some((_, place)) => {
            let problem = format!("has a NUL byte in its {place}: build it again without it");
            Err(Error::invalid(image, problem))
        }
        None => Ok(()),
    }
}

fn has_nul(text: &str) -> bool {
    text.contains('\0')
}
