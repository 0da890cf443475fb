//! An agent that answers questions about logs: Python that some model wrote, run in the sandbox `monty`, with two functions of
//! the host's. `query(sql)` reads a database, `report(title, bars)` writes an HTML file with a chart.
//!
//! Such code reads data that others have written, among it what is made to look like orders. It can do no harm, as it has
//! nothing: no file, no network, no process, and of the database only what may be read. What it tells goes into one file,
//! in which nothing runs and from which nothing is loaded.
//!
//! ```console
//! $ cargo build -p minivm
//! $ cargo run -p minivm --example logs_agent
//! ```

mod agent;
mod database;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use minivm_machine::Place;
use minivm_sandbox::{Backend, End, Host};

fn main() -> Result<()> {
    let host = Host {
        worker: worker()?,
        cache: PathBuf::new(),
        image: None,
        kernel: None,
        place: Place::Here,
    };
    let sandbox = host.open(Backend::Monty)?;
    sandbox.check()?;
    let folder = std::env::temp_dir().join("minivm-logs-agent");
    std::fs::create_dir_all(&folder)?;
    let database = folder.join("logs.sqlite");
    database::create(&database).context("cannot make the database")?;
    let chart = folder.join("report.html");
    let task = agent::task(agent::CODE, &database, &chart)?;
    let finished = sandbox.run(task)?;
    ensure!(
        finished.end == End::Exited(0),
        "the code ended otherwise: {:?}",
        finished.end
    );
    println!(
        "\nThat took {:.1?}. See {}",
        finished.usage.total,
        chart.display()
    );
    Ok(())
}

/// The program for inside, which Cargo puts beside the folder of the examples.
fn worker() -> Result<PathBuf> {
    let example = std::env::current_exe()?;
    let folder = example.parent().and_then(|folder| folder.parent());
    let program = folder
        .context("the example is nowhere")?
        .join("minivm-worker");
    ensure!(
        program.is_file(),
        "there is no {}: `cargo build -p minivm` makes it",
        program.display()
    );
    Ok(program)
}
