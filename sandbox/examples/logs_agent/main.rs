//! An agent that answers questions about logs: Python that a model wrote, run in the sandbox `monty`, with two functions of the
//! host. `query(sql)` reads a database, `report(title, bars)` writes an HTML file with a chart.
//!
//! Such code reads untrusted data, which may contain instructions for the model (prompt injection). It can do no harm: it has no
//! files, no network and no processes, and can only read the database. Its report is one file, which runs no script and loads
//! nothing.
//!
//! ```console
//! $ cargo build -p minivm-sandbox
//! $ cargo run -p minivm-sandbox --example logs_agent
//! ```

mod agent;
mod database;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use minivm_machine::Accel;
use minivm_sandbox::{Backend, End, Host};

fn main() -> Result<()> {
    let host = Host {
        worker: worker()?,
        cache: PathBuf::new(),
        image: None,
        kernel: None,
        accel: Accel::Kvm,
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
        "the code ended with {:?}",
        finished.end
    );
    println!(
        "\nThat took {:.1?}. See {}",
        finished.usage.total,
        chart.display()
    );
    Ok(())
}

/// The program `minivm-worker`, which Cargo builds into the folder above the examples.
fn worker() -> Result<PathBuf> {
    let example = std::env::current_exe()?;
    let folder = example.parent().and_then(|folder| folder.parent());
    let program = folder
        .context("the example's path has no folder")?
        .join("minivm-worker");
    ensure!(
        program.is_file(),
        "there is no {}: `cargo build -p minivm-sandbox` makes it",
        program.display()
    );
    Ok(program)
}
