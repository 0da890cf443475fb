//! `--no-jail`: no walls around a machine's monitor, and the processes that read its image, unpack its files and serve its folders.

use clap::Args;
use minivm_machine::{confine, streams};

#[derive(Args)]
pub(super) struct JailArg {
    /// Leave out the walls around the machine, and the processes for its image, files and folders: what breaks out has your rights then
    #[arg(long, hide_short_help = true)]
    no_jail: bool,
}

impl JailArg {
    /// Leaves the walls out, and says so, if that was asked for.
    pub(super) fn apply(&self) {
        if self.no_jail {
            confine::leave_out();
            streams::tell(
                "--no-jail: there are no walls around the machine and the processes for its image, files and folders, and what breaks out has your rights",
            );
        }
    }
}
