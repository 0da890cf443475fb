//! `minivm images` and `minivm rmi`: what the cache has of images, and the removal of single ones.

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use comfy_table::{ContentArrangement, Table, TableStyle};
use indicatif::{BinaryBytes, HumanDuration};
use minivm_machine::images::{CachedImage, Listing, Removed};
use minivm_machine::printable::printable;
use serde_json::{Value, json};

use super::EXIT_ERROR;
use super::image::{image_cache, told};

/// The most characters of a name in a table: the longest that a registry has.
const NAME_MAX: usize = 600;

#[derive(Args)]
pub(super) struct ImagesArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
    /// Print the ids alone
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

#[derive(Args)]
pub(super) struct RmiArgs {
    /// Images to remove: a name, a digest, an id, or the beginning of an id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Lists the images.
pub(super) fn list(args: &ImagesArgs) -> anyhow::Result<ExitCode> {
    let Listing { mut images, others } = image_cache()?.list();
    // A name may be all that is left.
    images.retain(|image| image.size() > 0);
    if args.quiet {
        for image in &images {
            println!("{}", image.short_id());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.json {
        let rows: Vec<_> = images.iter().map(row).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    match images.is_empty() {
        true => eprintln!("minivm: no images are cached: `minivm run IMAGE` pulls one"),
        false => println!("{}", table(&images)),
    }
    if others.files > 0 {
        eprintln!(
            "minivm: {} more files of the cache, {}, belong to no image: `minivm prune` removes them",
            others.files,
            BinaryBytes(others.bytes)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn table(images: &[CachedImage]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    if let Some(width) = width() {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
    table.set_header(["NAME", "ID", "PLATFORM", "USED", "STORED", "MADE"]);
    for image in images {
        // As many rows as names, as Docker has it.
        let names = image.names.iter().map(|name| printable(name, NAME_MAX));
        let mut names: Vec<_> = names.collect();
        if names.is_empty() {
            names.push("–".into());
        }
        for name in names {
            table.add_row(cells(name, image));
        }
    }
    table
}

/// Returns the width of stdout, where that is a terminal: a pipe gets one line for each row.
fn width() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(stdout()).ok()?;
    stdout().is_terminal().then_some(size.ws_col.max(60))
}

fn cells(name: String, image: &CachedImage) -> [String; 6] {
    let bytes = |bytes: u64| match bytes {
        0 => "–".into(),
        bytes => BinaryBytes(bytes).to_string(),
    };
    let since = |used: SystemTime| SystemTime::now().duration_since(used).unwrap_or_default();
    let platform = image.platform.as_ref().map(ToString::to_string);
    [
        name,
        image.short_id().to_owned(),
        platform.map_or("–".into(), |platform| printable(&platform, NAME_MAX)),
        image.used.map_or("–".into(), |used| {
            format!("{:#} ago", HumanDuration(since(used)))
        }),
        match image.is_whole {
            true => bytes(image.stored),
            false => format!("{}, in part", bytes(image.stored)),
        },
        bytes(image.made()),
    ]
}

fn row(image: &CachedImage) -> Value {
    let seconds = |used: SystemTime| used.duration_since(SystemTime::UNIX_EPOCH).ok();
    json!({
        "names": image.names,
        "id": image.id,
        "digests": image.digests,
        "platform": image.platform.as_ref().map(ToString::to_string),
        "used": image.used.and_then(seconds).map(|since| since.as_secs_f64()),
        "stored": image.stored,
        "complete": image.is_whole,
        "initramfs": image.initramfs,
        "erofs": image.erofs,
        "rootfs": image.rootfs,
        "templates": image.templates,
    })
}

/// Removes images. One that can't be removed doesn't keep the others.
pub(super) fn remove(args: &RmiArgs) -> anyhow::Result<ExitCode> {
    let cache = image_cache()?;
    let mut code = ExitCode::SUCCESS;
    for name in &args.images {
        match cache.remove(name) {
            Ok(Removed::Image(bytes)) => println!("removed {name}: {}", BinaryBytes(bytes)),
            Ok(Removed::Name(other)) => {
                println!("removed {name}, the name alone: {other} is the same image");
            }
            Err(error) => {
                eprintln!("minivm: {}", told(error));
                code = ExitCode::from(EXIT_ERROR);
            }
        }
    }
    Ok(code)
}
