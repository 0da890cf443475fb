//! The forms in which the parts of an error go to another process, for serde's `with`: a monitor that runs in a process of its own reports
//! its errors so.

/// An operating system's error: its number, or its text where it has none.
pub(crate) mod io_error {
    use std::io;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        error: &io::Error,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        (error.raw_os_error(), error.to_string()).serialize(serializer)
    }

    /// One without a number gets the kind [`io::ErrorKind::Other`].
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<io::Error, D::Error> {
        let (number, text): (Option<i32>, String) = Deserialize::deserialize(deserializer)?;
        Ok(match number {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::other(text),
        })
    }
}

/// A path, which may have any bytes.
pub(crate) mod path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<PathBuf, D::Error> {
        let bytes = Vec::deserialize(deserializer)?;
        Ok(OsString::from_vec(bytes).into())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::ffi::OsStrExt;

    use crate::{Error, Outcome, Reset};

    #[test]
    fn errors_and_outcomes_arrive_as_they_were_sent() {
        let chain = |error: &dyn std::error::Error| {
            let mut texts = vec![error.to_string()];
            let mut next = error.source();
            while let Some(error) = next {
                texts.push(error.to_string());
                next = error.source();
            }
            texts
        };
        for error in [
            Error::Output(io::Error::from_raw_os_error(libc::EPIPE)),
            Error::host("a thread")(io::Error::other("none left")),
            Error::KvmLacks("KVM_CAP_X".into()),
            Error::Snapshot {
                path: std::ffi::OsStr::from_bytes(b"/a\xff").into(),
                source: crate::SnapshotError::Senseless("no".into()),
            },
            Error::Exit {
                vcpu: 1,
                reason: "r".into(),
                rip: 2,
            },
        ] {
            let bytes = postcard::to_allocvec(&error).unwrap();
            let arrived: Error = postcard::from_bytes(&bytes).unwrap();
            assert_eq!(chain(&arrived), chain(&error));
            assert_eq!(
                std::mem::discriminant(&arrived),
                std::mem::discriminant(&error)
            );
            if let (Error::Output(arrived), Error::Output(sent)) = (&arrived, &error) {
                assert_eq!(arrived.kind(), sent.kind());
            }
        }
        let outcome = Outcome::Panic(Reset::TripleFault);
        let bytes = postcard::to_allocvec(&outcome).unwrap();
        assert_eq!(postcard::from_bytes::<Outcome>(&bytes).unwrap(), outcome);
    }
}
