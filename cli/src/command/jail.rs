//! `--no-jail`: no walls around a machine's monitor, the reader of its image and the unpacker of its files.

use clap::Args;
use minivm_machine::{confine, streams};

#[derive(Args)]
pub(super) struct JailArg {
    /// Leave out the walls around the machine, the reader of its image and the unpacker of its files: what breaks out has your rights then
    #[arg(long, hide_short_help = true)]
    no_jail: bool,
}

impl JailArg {
    /// Leaves the walls out, and says so, if that was asked for.
    pub(super) fn apply(&self) {
        if self.no_jail {
            confine::leave_out();
            streams::tell(
                "--no-jail: there are no walls around the machine, the reader of its image and the unpacker of its files, and what breaks out has your rights",
            );
        }
    }
}
