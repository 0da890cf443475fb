//! Hints for commands that could not be started.

/// The error of a command that isn't there. `said` is the guest's `PROGRAM: why`.
pub(super) fn not_found(said: &str) -> String {
    let told = format!("no such command: {said}");
    match program(said) {
        Some(program) if program.contains('/') => format!(
            "{told}: it is not in the image, or the interpreter that it names is not; `minivm run IMAGE -- ls -l {program}` looks for it"
        ),
        Some(program) => format!(
            "{told}: not on PATH in the image, or the interpreter that it names is not in the image; `minivm run IMAGE -- which {program}` looks for it"
        ),
        None => told,
    }
}

/// The error of a command that is there, and can't be executed.
pub(super) fn not_executable(said: &str) -> String {
    let told = format!("cannot execute {said}");
    match said.rsplit_once(": ") {
        Some((_, why)) if why.starts_with("Permission denied") => {
            let told =
                format!("{told}: it is a folder, or its mode does not let this user execute it");
            match program(said).filter(|program| program.contains('/')) {
                Some(program) => {
                    format!("{told}; `minivm run IMAGE -- ls -ld {program}` shows that")
                }
                None => told,
            }
        }
        Some((_, why)) if why.starts_with("Exec format error") => format!(
            "{told}: it is a program for another processor, or a script without a first line such as #!/bin/sh"
        ),
        _ => told,
    }
}

/// The program, where its name can be written in a command as it is.
fn program(said: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._+-".contains(&byte);
    let (program, _) = said.rsplit_once(": ")?;
    (!program.is_empty() && program.bytes().all(plain)).then_some(program)
}

/// The error with a hint of memory where the guest's file system is full: its files are in its memory.
pub(super) fn full(error: anyhow::Error) -> anyhow::Error {
    let refused = error.chain().any(|cause| {
        let of_machine = cause.downcast_ref();
        matches!(of_machine, Some(minivm_machine::Error::Refused(why)) if why.contains("No space left on device"))
    });
    match refused && !format!("{error:#}").contains("more -m/--memory") {
        true => anyhow::anyhow!(
            "{error:#}: the guest's files are in its memory, more -m/--memory helps"
        ),
        false => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_with_where_to_look() {
        let told = not_found("pyhton: No such file or directory (os error 2)");
        assert!(
            told.starts_with("no such command: pyhton: No such file"),
            "{told}"
        );
        assert!(told.contains("not on PATH in the image"), "{told}");
        assert!(
            told.contains("`minivm run IMAGE -- which pyhton`"),
            "{told}"
        );
        let told = not_found("/opt/run.sh: No such file or directory (os error 2)");
        assert!(
            told.contains("interpreter") && told.contains("ls -l /opt/run.sh`"),
            "{told}"
        );
        assert_eq!(not_found("x"), "no such command: x");
        // What would be another command is not suggested.
        for odd in ["a: b: No such file", ": No such file", "$(x): No such file"] {
            assert_eq!(not_found(odd), format!("no such command: {odd}"));
        }
    }

    #[test]
    fn what_cannot_be_executed_is_told_with_a_reason() {
        let told = not_executable("/a: Permission denied (os error 13)");
        assert!(told.contains("ls -ld /a`"), "{told}");
        let told = not_executable("/a: Exec format error (os error 8)");
        assert!(
            told.contains("another processor") && told.contains("#!/bin/sh"),
            "{told}"
        );
        assert_eq!(
            not_executable("/a: Is a directory"),
            "cannot execute /a: Is a directory"
        );
    }

    #[test]
    fn a_guest_that_is_full_is_told_of_memory() {
        let refused =
            |why: &str| full(minivm_machine::Error::Refused(why.into()).into()).to_string();
        let told = refused("cannot write /x: No space left on device (os error 28)");
        assert!(told.ends_with("more -m/--memory helps"), "{told}");
        assert!(!refused("the image has no user x").contains("memory"));
    }
}
