//! The agent's code, and its task.

use std::io;
use std::path::Path;
use std::time::Duration;

use minivm_sandbox::{Call, Function, Task};
use serde_json::Value;

use super::database::Reader;
use super::report::{self, Report};

/// Code as a model might write it to find out which service fails, and why; then it tries what it should not.
pub(crate) const CODE: &str = r#"
counts = query("SELECT service, count(*) AS requests, sum(status >= 500) AS failed FROM requests GROUP BY service")
slow = query("SELECT service, avg(ms) AS ms FROM requests WHERE status < 500 GROUP BY service")
milliseconds = {row['service']: row['ms'] for row in slow}

bars = []
for row in counts:
    rate = 100 * row['failed'] / row['requests']
    print(f"{row['service']:<10} {row['requests']:>5} requests, {rate:4.1f} % failed, {milliseconds[row['service']]:.0f} ms")
    bars.append([row['service'], round(rate, 1)])
bars.sort(key=lambda bar: -bar[1])
worst = bars[0][0]

paths = query("SELECT path, count(*) AS failed FROM requests WHERE status >= 500 AND service = '" + worst + "' GROUP BY path ORDER BY failed DESC, path")
for row in paths:
    bars.append([worst + ' ' + row['path'] + ' (requests)', row['failed']])
report('Failed requests, in percent by service', bars, note=f"{worst} fails most, at {paths[0]['path']}.")

for sql in [
    "DELETE FROM requests",
    "ATTACH DATABASE '/tmp/other.sqlite' AS other",
    "PRAGMA query_only = OFF",
    "CREATE TEMP TABLE t (x)",
    "SELECT load_extension('evil')",
    "SELECT 1; DROP TABLE requests",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "SELECT a.ms FROM requests a, requests b",
]:
    try:
        query(sql)
        print('DONE:', sql)
    except RuntimeError as error:
        print('refused:', sql, '->', error)
try:
    open('/etc/passwd')
except PermissionError as error:
    print('refused: open ->', error)
print('requests left:', query("SELECT count(*) AS n FROM requests")[0]['n'])
"#;

/// Makes the task of the code, with its functions, whose output goes to stdout.
pub(crate) fn task(code: &str, database: &Path, chart: &Path) -> anyhow::Result<Task> {
    let reader = Reader::open(database)?;
    let chart = chart.to_owned();
    let query: Function = Box::new(move |call| match strings(&call) {
        [Some(sql)] if call.kwargs.is_empty() => reader.query(sql),
        _ => Err("query() takes one argument, which is SQL".into()),
    });
    let report: Function = Box::new(move |call| {
        let report = Report::of(&call)?;
        std::fs::write(&chart, report::html(&report))
            .map_err(|error| format!("the report cannot be written: {error}"))?;
        Ok(Value::Null)
    });
    let mut task = Task::code(code);
    task.functions.insert("query".into(), query);
    task.functions.insert("report".into(), report);
    task.stdout = Box::new(io::stdout());
    task.stderr = Box::new(io::stderr());
    task.limits.time = Some(Duration::from_secs(20));
    task.limits.memory = Some(128 << 20);
    task.limits.output = Some(1 << 20);
    Ok(task)
}

/// Returns the only argument, if it is a text.
fn strings(call: &Call) -> [Option<&str>; 1] {
    match call.args.as_slice() {
        [Value::String(text)] => [Some(text)],
        _ => [None],
    }
}
