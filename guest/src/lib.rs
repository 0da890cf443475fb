//! The guest's side of minivm, and the formats that guest and host share.
//!
//! A guest's root file system is an initramfs: a cpio archive that the Linux kernel unpacks into memory before it starts its
//! first process. That process is `minivm-init`, the program of this package. It reads the archive's manifest, asks the host
//! for a request over the channel, runs the request's command, and sends its output and its end to the host.
//!
//! # Modules
//!
//! | module | holds | runs in |
//! |---|---|---|
//! | [`newc`] | the writer of cpio archives, entry by entry | host, guest |
//! | [`unpack`] | the reader of cpio archives, which trusts none | host, guest |
//! | [`walk`] | an archive of a folder: [`archive_dir`], [`append_path`] | host, guest |
//! | [`manifest`] | the files in an archive that are for `minivm-init` alone | host, guest |
//! | [`channel`] | the messages of host and guest, their frames, and the rings that carry them | host, guest |
//! | [`contained`] | the arguments of `minivm-init` in a container that is no machine | host, container |
//! | [`lab`] | a lab's first process, and the frames of its channel | host, lab |
//! | [`io_error`] | wrappers for I/O errors that name what was tried | host, lab |
//! | [`pid1`] | the duties of any first process | guest, lab |
//! | [`inherited`] | the repair of signals, limits and streams that a process has inherited | all programs of minivm |
//! | `bin/minivm-lab-init` | a lab's first process, where `minivm` itself isn't compiled for the lab's processor | lab |
//! | `bin/minivm-init` | the guest's first process; its steps are at the head of its `main.rs` | guest, container |
//!
//! # Example
//!
//! A request as the host sends it, and as the guest reads it:
//!
//! ```
//! use minivm_guest::channel::frame::Decoder;
//! use minivm_guest::channel::{Request, ToGuest};
//!
//! let request = Request {
//!     argv: vec![b"/bin/date".to_vec()],
//!     cwd: b"/".to_vec(),
//!     ..Request::default()
//! };
//! let mut wire = Vec::new();
//! ToGuest::Request(request.clone()).encode(&mut wire);
//!
//! let mut decoder = Decoder::default();
//! decoder.extend(&wire);
//! let (tag, body) = decoder.next()?.expect("one whole frame");
//! assert_eq!(ToGuest::decode(tag, body)?, ToGuest::Request(request));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod channel;
pub mod contained;
pub mod inherited;
pub mod io_error;
pub mod lab;
pub mod manifest;
pub mod newc;
pub mod pid1;
pub mod unpack;
pub mod walk;

pub use walk::{FILE_MAX, Nodes, Owner, append_path, archive_dir};
