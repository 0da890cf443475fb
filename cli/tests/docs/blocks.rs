//! A page's blocks of code: those of a console, their commands, and the marks of those that are run.
//!
//! A mark is a comment on the line before a block, `<!-- runnable: host -->`, and says what the commands need ([`Needs`]). A
//! command is a line that begins with `$ `, with the lines that a shell would read on for; what it prints, stderr
//! included, stands below it (see [`shown`](crate::shown)). Each command ends with code 0, unless the next one is `echo $?`.

use crate::shown;

/// Separates what commands print, and their exit codes, in the output of a block.
const STEP: char = '\x1e';
/// The same in a script.
const STEP_IN_SHELL: &str = r"\036";

/// What a block's commands need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// The program alone.
    Host,
    /// Sandboxes that run on the host, and the tools of these.
    Sandboxes,
    /// A KVM that runs kernels.
    Kvm,
}

/// A block of a console's.
#[derive(Debug)]
pub(crate) struct Block {
    /// The page's name.
    pub(crate) page: String,
    /// The need that its mark names; `None` of a block without a mark.
    pub(crate) needs: Option<Needs>,
    pub(crate) steps: Vec<Step>,
}

/// A command, and what the page shows of its output.
#[derive(Debug)]
pub(crate) struct Step {
    /// The number of its line.
    line: usize,
    pub(crate) command: String,
    shown: Vec<String>,
}

/// The blocks of a console's in a page.
///
/// # Errors
///
/// Where a mark is not a valid one, or a marked block has no commands.
pub(crate) fn of_page(page: &str, text: &str) -> Result<Vec<Block>, String> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut mark = None;
    // Whether a line is in a block, and in one of a console's.
    let (mut code, mut console) = (false, false);
    for (line, text) in (1..).zip(text.lines()) {
        let wrong = |why: &str| Err(format!("{page}:{line}: {why}: {text}"));
        if let Some(language) = text.strip_prefix("```") {
            code = !code;
            console = code && language == "console";
            match (mark.take(), console) {
                (Some(_), false) => return wrong("a mark belongs to a console's block"),
                (needs, true) => blocks.push(Block {
                    page: page.to_owned(),
                    needs,
                    steps: Vec::new(),
                }),
                (None, false) => {}
            }
        } else if console {
            let block = blocks.last_mut().expect("one was begun");
            if let Err(why) = block.add(line, text) {
                return wrong(why);
            }
        } else if mark.is_some() {
            return wrong("a mark belongs on the line before a block");
        } else if !code && text.starts_with("<!-- runnable") {
            mark = Some(match text {
                "<!-- runnable: host -->" => Needs::Host,
                "<!-- runnable: sandboxes -->" => Needs::Sandboxes,
                "<!-- runnable: kvm -->" => Needs::Kvm,
                _ => return wrong("not a valid mark"),
            });
        }
    }
    match (mark, code) {
        (None, false) => Ok(blocks),
        _ => Err(format!("{page}: the last block has no end")),
    }
}

impl Block {
    /// Takes a further line.
    fn add(&mut self, line: usize, text: &str) -> Result<(), &'static str> {
        match (self.steps.last_mut(), text.strip_prefix("$ ")) {
            (Some(step), _) if step.shown.is_empty() && reads_on(&step.command) => {
                step.command.push('\n');
                step.command.push_str(text);
            }
            (_, Some(command)) => self.steps.push(Step {
                line,
                command: command.to_owned(),
                shown: Vec::new(),
            }),
            (Some(step), None) => step.shown.push(text.to_owned()),
            // Some blocks show an output alone.
            (None, None) if self.needs.is_none() => {}
            (None, None) => return Err("a block that is run begins with a command"),
        }
        Ok(())
    }

    /// A shell script of its commands, as `changed` has them.
    pub(crate) fn script(&self, changed: impl Fn(&str) -> String) -> String {
        let step = |step: &Step| {
            let command = changed(&step.command);
            format!(
                "{command}\ncode=$?; printf '{STEP_IN_SHELL}%s{STEP_IN_SHELL}' \"$code\"; (exit \"$code\")\n"
            )
        };
        self.steps.iter().map(step).collect()
    }

    /// What in the script's output is not as the page has it.
    pub(crate) fn faults(&self, output: &str) -> Vec<String> {
        let mut faults = Vec::new();
        let mut parts = output.split(STEP);
        for (step, next) in self.steps.iter().zip(1..) {
            let Step {
                line,
                command,
                shown,
            } = step;
            let at = format!("{}:{line}: `{command}`", self.page);
            let (Some(printed), Some(code)) = (parts.next(), parts.next()) else {
                faults.push(format!("{at} did not come to its end"));
                return faults;
            };
            let asked = self
                .steps
                .get(next)
                .is_some_and(|next| next.command == "echo $?");
            if code != "0" && !asked {
                faults.push(format!(
                    "{at} ended with code {code}, and printed:\n{printed}"
                ));
            } else if !shown::is_as_shown(shown, printed) {
                let shown = shown.join("\n");
                faults.push(format!("{at} printed:\n{printed}\nand not:\n{shown}"));
            }
        }
        faults
    }
}

/// Whether a shell would read a further line: a quote is open, or the last word is one of those that a command follows.
fn reads_on(command: &str) -> bool {
    let mut quote = None;
    // What is in no quote and no comment.
    let mut bare = String::from(" ");
    let mut rest = command.chars().peekable();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (None | Some('"'), '\\') if rest.next().is_none() => return true,
            (None, '#') if bare.ends_with(char::is_whitespace) => {
                while rest.next_if(|c| *c != '\n').is_some() {}
            }
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (Some(_), _) => {}
            (None, _) => bare.push(c),
        }
    }
    let last = bare.trim_end();
    quote.is_some() || last.ends_with('|') || last.ends_with("&&")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Block {
        let mut blocks = of_page("page", text).unwrap();
        assert_eq!(blocks.len(), 1);
        blocks.remove(0)
    }

    fn commands(block: &Block) -> Vec<&str> {
        let commands = block.steps.iter().map(|step| step.command.as_str());
        commands.collect()
    }

    #[test]
    fn commands_go_on_where_a_shell_reads_on() {
        let block = only(
            "text\n```console\n$ one 'a # b' # it's that\ntwo\n$ sh -c \"\nthree\n\"\n$ four \\\n  five\n\nsix\n$ seven 'a |' | # b\neight &&\nnine\n```\n",
        );
        assert_eq!(
            commands(&block),
            [
                "one 'a # b' # it's that",
                "sh -c \"\nthree\n\"",
                "four \\\n  five",
                "seven 'a |' | # b\neight &&\nnine"
            ]
        );
        let shown: Vec<_> = block.steps.iter().map(|step| &*step.shown).collect();
        assert_eq!(shown, [&["two"][..], &[], &["", "six"], &[]]);
        assert_eq!(block.needs, None);
    }

    #[test]
    fn blocks_have_their_marks_and_other_code_is_left_out() {
        let page = "```rust\n<!-- runnable: x -->\n$ no\n```\n<!-- runnable: kvm -->\n```console\n$ yes\n```\n";
        let block = only(page);
        assert_eq!(
            (block.needs, &*commands(&block)),
            (Some(Needs::Kvm), &["yes"][..])
        );
    }

    #[test]
    fn wrong_marks_are_errors() {
        for wrong in [
            "<!-- runnable -->\n```console\n$ a\n```\n",
            "<!-- runnable: hots -->\n```console\n$ a\n```\n",
            "<!-- runnable: host -->\n\n```console\n$ a\n```\n",
            "<!-- runnable: host -->\n```rust\n```\n",
            "<!-- runnable: host -->\n```console\nno command\n```\n",
            "<!-- runnable: host -->\n",
            "```console\n$ a\n",
        ] {
            assert!(of_page("page", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_page_has_faults_at_its_lines() {
        let block =
            only("<!-- runnable: host -->\n```console\n$ a\n1\n$ b\n$ c\n$ echo $?\n7\n```\n");
        let faults = |output: &str| block.faults(output);
        let right = "1\n\u{1e}0\u{1e}\u{1e}0\u{1e}\u{1e}7\u{1e}7\n\u{1e}0\u{1e}";
        assert_eq!(faults(right), [""; 0]);
        for (output, fault) in [
            (
                right.replacen('1', "2", 1),
                "page:3: `a` printed:\n2\n\nand not:\n1",
            ),
            (
                right.replacen("0\u{1e}\u{1e}0", "0\u{1e}\u{1e}1", 1),
                "page:5: `b` ended with code 1",
            ),
            (
                right.replacen("0\u{1e}\u{1e}0", "0\u{1e}x\u{1e}0", 1),
                "page:5: `b` printed:\nx\nand not:\n",
            ),
            (
                "1\n\u{1e}0\u{1e}\u{1e}0\u{1e}".into(),
                "page:6: `c` did not come to its end",
            ),
            (String::new(), "page:3: `a` did not come to its end"),
        ] {
            let found = faults(&output);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(fault), "{found:?}");
        }
    }
}
