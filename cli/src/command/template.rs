//! `minivm template`: saves machines that are ready for a command, each under a name.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::{Args, Subcommand};
use comfy_table::{Table, TableStyle};
use indicatif::{BinaryBytes, HumanDuration, ProgressBar};
use minivm_image::Source;
use minivm_machine::templates::{self, Listed, Templates, lab};
use minivm_vmm::CPUS_MAX;

use super::accel::AccelArg;
use super::image::{self, PullArgs};
use super::{units, unwrapped};

#[derive(Subcommand)]
pub(super) enum TemplateCommand {
    /// Boot a machine from an image until it is ready, and save it: `minivm run --template NAME` resumes it
    Create(CreateArgs),
    /// List templates
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove templates; running machines keep what they need of them
    Rm {
        /// Templates to remove
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Print what is known of a template, as JSON
    Inspect {
        /// Template to inspect
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(Args)]
pub(super) struct CreateArgs {
    /// Template's name: letters, digits, - and _
    #[arg(value_name = "NAME")]
    name: String,
    /// Container image, as for `minivm run`
    #[arg(value_name = "IMAGE", value_parser = image::source)]
    image: Source,
    /// Save the machine when Python has run this code, such as imports; `python3` alone starts Python and imports nothing
    #[arg(long, value_name = "PYTHON", value_parser = warm)]
    warm: Option<String>,
    /// Guest memory, as for `minivm run`
    #[arg(short, long, value_name = "SIZE", value_parser = units::bytes)]
    memory: Option<u64>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=CPUS_MAX as i64))]
    cpus: u8,
    /// Guest kernel, as for `minivm run`
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    #[command(flatten)]
    pull: PullArgs,
    #[command(flatten)]
    accel: AccelArg,
}

/// Parses the code that the interpreter runs first: Python, or a command line `python3 [-c CODE]`.
fn warm(text: &str) -> Result<String, String> {
    let program = text.split_whitespace().next().unwrap_or_default();
    if !matches!(program, "python" | "python3") {
        return Ok(text.to_owned());
    }
    let rest = text.trim_start()[program.len()..].trim();
    let code = rest.strip_prefix("-c").map(str::trim);
    match (rest, code) {
        ("", _) => Ok(String::new()),
        (_, Some(code)) => Ok(unquoted(code).to_owned()),
        _ => Err("expected Python code, `python3`, or `python3 -c CODE`".into()),
    }
}

/// Code without the quotes that were a shell's.
fn unquoted(code: &str) -> &str {
    ['\'', '"']
        .iter()
        .find_map(|quote| code.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(code)
}

pub(super) fn run(command: TemplateCommand) -> anyhow::Result<ExitCode> {
    let templates = folder()?;
    match command {
        TemplateCommand::Create(args) => args.create(&templates)?,
        TemplateCommand::Ls { json } => list(&all(&templates)?, json)?,
        TemplateCommand::Rm { names } => {
            for name in names {
                let freed = templates.remove(&name)?;
                println!("removed {name}: {}", BinaryBytes(freed));
            }
        }
        TemplateCommand::Inspect { name } => inspect(&templates, &name)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The cache of templates.
pub(super) fn folder() -> anyhow::Result<Templates> {
    Ok(Templates::new(&image::cache_folder()?))
}

/// Returns whether the flag or the variable asks for machines that boot.
pub(super) fn is_unwanted(cold: bool) -> bool {
    let variable = std::env::var_os("MINIVM_COLD");
    cold || variable.is_some_and(|cold| !cold.is_empty() && cold != "0")
}

impl CreateArgs {
    fn create(self, templates: &Templates) -> anyhow::Result<()> {
        templates.check_free(&self.name)?;
        let image = image::open(&self.image, &self.pull, &image::image_cache()?)?;
        let (kernel, quiet) = (self.kernel.as_deref(), self.pull.quiet);
        let warn = |why: &str| {
            if !quiet {
                eprintln!("minivm: {why}");
            }
        };
        let accel = || self.accel.choose(warn);
        let microvm = image::microvm(&self.image, image, kernel, quiet, accel)?;
        let microvm = microvm.cpus(self.cpus);
        let recipe = microvm.recipe(self.memory, self.warm).map_err(unwrapped)?;
        let spinner = ProgressBar::new_spinner();
        if !self.pull.quiet {
            spinner.set_message(format!("booting {}", self.image));
            spinner.enable_steady_tick(std::time::Duration::from_millis(100));
        }
        let created = templates.create(&self.name, &recipe, microvm.accel());
        spinner.finish_and_clear();
        created?;
        if !self.pull.quiet {
            println!(
                "made {0}: `minivm run --template {0}` resumes it",
                self.name
            );
        }
        Ok(())
    }
}

/// All templates: those in the cache, and the unnamed ones that kept labs have.
fn all(templates: &Templates) -> anyhow::Result<Vec<Listed>> {
    let mut all = templates.list()?;
    for kept in lab::kept(&image::cache_folder()?) {
        let kept = Listed::of_kept_lab(kept);
        if !all
            .iter()
            .any(|named| named.lab && named.recipe == kept.recipe)
        {
            all.push(kept);
        }
    }
    Ok(all)
}

fn list(all: &[Listed], json: bool) -> anyhow::Result<()> {
    if json {
        let all: Vec<_> = all.iter().map(row).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(["NAME", "IMAGE", "WARM", "MEMORY", "ON DISK", "USED"]);
    for listed in all {
        let recipe = listed.recipe.as_ref();
        table.add_row([
            listed.name.clone(),
            recipe.map_or("damaged".into(), |recipe| recipe.image.clone()),
            recipe.map_or(String::new(), |recipe| match recipe.warm.as_deref() {
                None => "–".into(),
                Some("") => "python3".into(),
                Some(code) => minivm_machine::printable::printable(code, 40),
            }),
            recipe.map_or(String::new(), |recipe| {
                BinaryBytes(recipe.machine.command_memory()).to_string()
            }),
            match listed.lab {
                true => "in the lab".into(),
                false => BinaryBytes(listed.size).to_string(),
            },
            listed.used.map_or(String::new(), |used| {
                let since = SystemTime::now().duration_since(used).unwrap_or_default();
                format!("{} ago", HumanDuration(since))
            }),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn row(listed: &Listed) -> serde_json::Value {
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
    serde_json::json!({
        "name": listed.name,
        "recipe": listed.recipe,
        "lab": listed.lab,
        "size": listed.size,
        "used": listed.used.and_then(seconds).map(|since| since.as_secs_f64()),
    })
}

fn inspect(templates: &Templates, name: &str) -> anyhow::Result<()> {
    let all = templates.list()?;
    let listed = all.iter().find(|listed| listed.name == name);
    let listed = listed.ok_or_else(|| templates::Error::Missing(name.to_owned()))?;
    println!("{}", serde_json::to_string_pretty(&row(listed))?);
    // What is printed can be read even where the machine can't be restored; then that is the answer.
    templates.open_named(name)?;
    Ok(())
}

/// Makes a template for later runs, of the recipe on stdin.
pub(super) fn make_in_background() -> anyhow::Result<ExitCode> {
    let recipe = templates::recipe_of_background().context("cannot read a recipe")?;
    folder()?.create_unnamed(&recipe)?;
    Ok(ExitCode::SUCCESS)
}

/// Keeps a lab for the recipe on stdin.
pub(super) fn keep_lab() -> anyhow::Result<ExitCode> {
    let recipe = templates::recipe_of_background().context("cannot read a recipe")?;
    lab::run_keeper(&recipe, &image::cache_folder()?)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_warmed_is_code_or_a_command_line() {
        assert_eq!(warm("import json"), Ok("import json".into()));
        assert_eq!(warm("python3"), Ok(String::new()));
        assert_eq!(warm("python3 -c 'import json'"), Ok("import json".into()));
        assert_eq!(warm("python -c import\tjson"), Ok("import\tjson".into()));
        assert!(warm("python3 -m http.server").is_err());
    }
}
