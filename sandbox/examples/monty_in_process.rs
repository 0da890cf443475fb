//! Monty in this process: the time of an answer without a process for it.
//!
//! ```console
//! $ cargo run --release -p minivm-sandbox --example monty_in_process -- 'print(2+2)'
//! $ cargo run --release -p minivm-sandbox --example monty_in_process -- --times 1000 'print(2+2)'
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
            often(times.parse().context("--times takes a number")?, code)
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
        "the code ended with {:?}",
        finished.end
    );
    Ok(())
}

/// Measures runs, from the code to its end, with parsing.
fn often(times: usize, code: &str) -> Result<()> {
    ensure!(times > 0, "--times takes a number greater than 0");
    let mut micros = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        let finished = InProcess.run(Task::code(code))?;
        micros.push(began.elapsed().as_secs_f64() * 1e6);
        ensure!(
            finished.end == End::Exited(0),
            "the code ended with {:?}",
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
