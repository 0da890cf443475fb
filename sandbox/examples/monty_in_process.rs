//! Monty in this process: what an answer takes where no process is started for it.
//!
//! ```console
//! $ cargo run --release -p minivm --example monty_in_process -- 'print(2+2)'
//! $ cargo run --release -p minivm --example monty_in_process -- --times 1000 'print(2+2)'
//! ```

use std::io;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use minivm_sandbox::monty::InProcess;
use minivm_sandbox::{End, Sandbox, Task};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &*words {
        [code] => once(code),
        [flag, times, code] if flag == "--times" => {
            often(times.parse().context("how often?")?, code)
        }
        _ => bail!("usage: monty_in_process [--times N] CODE"),
    }
}

fn once(code: &str) -> Result<()> {
    let mut task = Task::code(code);
    task.stdout = Box::new(io::stdout());
    task.stderr = Box::new(io::stderr());
    let finished = InProcess.run(task)?;
    ensure!(
        finished.end == End::Exited(0),
        "it ended with {:?}",
        finished.end
    );
    Ok(())
}

/// From code to answer, parsing included.
fn often(times: usize, code: &str) -> Result<()> {
    ensure!(times > 0, "once at least");
    let mut micros = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        let finished = InProcess.run(Task::code(code))?;
        micros.push(began.elapsed().as_secs_f64() * 1e6);
        ensure!(
            finished.end == End::Exited(0),
            "it ended with {:?}",
            finished.end
        );
    }
    micros.sort_by(f64::total_cmp);
    let at = |part: usize| micros[(micros.len() - 1) * part / 100];
    println!(
        "  {times} runs: median {:.1} µs, 99 % within {:.1} µs, the slowest {:.1} µs",
        at(50),
        at(99),
        at(100)
    );
    Ok(())
}
