//! Frames: a body's length (four bytes, little endian), a tag with the body's kind (one byte), the body.

/// The longest body in bytes: 1 MiB. A request with all of a command's arguments and environment fits.
pub const BODY_MAX: usize = 1 << 20;

/// The length of the header before a body, in bytes.
pub const HEADER: usize = 5;

/// The error of a header that announces a body of more than [`BODY_MAX`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {len} bytes was announced: the most is {BODY_MAX}")]
pub struct TooLong {
    /// The length in the header.
    pub len: u32,
}

/// The error of a body that is too long to be sent: its bytes, which are more than [`BODY_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a body of {0} bytes is too long for a frame: the most is {BODY_MAX}")]
pub struct BodyTooLong(pub usize);

/// Appends a frame to `out`; `body` appends its body.
///
/// # Panics
///
/// Where the body is longer than [`BODY_MAX`], which the caller has to see to.
pub(crate) fn encode(tag: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    if let Err(error) = try_encode(tag, out, body) {
        panic!("{error}");
    }
}

/// Appends a frame as [`encode`] does, with a body whose length users decide. Where it is too long, `out` is left as it was.
///
/// # Errors
///
/// [`BodyTooLong`] with the body's length.
pub(crate) fn try_encode(
    tag: u8,
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>),
) -> Result<(), BodyTooLong> {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, tag]);
    body(out);
    let len = out.len() - start - HEADER;
    if len > BODY_MAX {
        out.truncate(start);
        return Err(BodyTooLong(len));
    }
    let len = u32::try_from(len).expect("at most BODY_MAX");
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    Ok(())
}

/// A decoder of the frames in a stream of bytes that comes in pieces of any size.
///
/// ```
/// use minivm_guest::channel::frame::Decoder;
/// use minivm_guest::channel::ToHost;
///
/// let mut wire = Vec::new();
/// ToHost::Stdout(b"hello").encode(&mut wire);
/// let mut decoder = Decoder::default();
/// decoder.extend(&wire[..6]);
/// assert_eq!(decoder.next()?, None);
/// decoder.extend(&wire[6..]);
/// let (tag, body) = decoder.next()?.expect("one whole frame");
/// assert_eq!(ToHost::decode(tag, body)?, ToHost::Stdout(b"hello"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// The bytes at its beginning that `next` has returned.
    consumed: usize,
}

impl Decoder {
    /// Adds bytes as they came. The decoder keeps those that aren't a whole frame yet: at most one frame, if
    /// [`next`](Self::next) is called until it has no more.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next whole frame: its tag and its body.
    ///
    /// # Errors
    ///
    /// [`TooLong`], as soon as the header is there. The stream can't be decoded any further.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator's items couldn't borrow from it"
    )]
    pub fn next(&mut self) -> Result<Option<(u8, &[u8])>, TooLong> {
        let rest = &self.buffer[self.consumed..];
        let Some((&[a, b, c, d, tag], body)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let announced = u32::from_le_bytes([a, b, c, d]);
        let len = announced as usize;
        if len > BODY_MAX {
            return Err(TooLong { len: announced });
        }
        if body.len() < len {
            return Ok(None);
        }
        self.consumed += HEADER + len;
        Ok(Some((tag, &body[..len])))
    }

    /// Returns whether the stream could end here: no part of a frame is left over.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.consumed == self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_beyond_the_limit_is_refused_from_the_header_alone() {
        let mut decoder = Decoder::default();
        decoder.extend(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(decoder.next(), Err(TooLong { len: u32::MAX }));
    }

    #[test]
    fn a_body_beyond_the_limit_is_refused_and_leaves_nothing() {
        let mut wire = vec![9];
        let body = |len| move |out: &mut Vec<u8>| out.resize(out.len() + len, 0);
        assert_eq!(
            try_encode(1, &mut wire, body(BODY_MAX + 1)),
            Err(BodyTooLong(BODY_MAX + 1))
        );
        assert_eq!(wire, [9]);
        assert_eq!(try_encode(1, &mut wire, body(BODY_MAX)), Ok(()));
    }

    #[test]
    fn half_a_frame_is_left_over() {
        let mut decoder = Decoder::default();
        decoder.extend(&[2, 0, 0, 0, 1, b'x']);
        assert_eq!(decoder.next(), Ok(None));
        assert!(!decoder.is_empty());
        decoder.extend(b"y");
        assert_eq!(decoder.next(), Ok(Some((1, &b"xy"[..]))));
        assert!(decoder.is_empty());
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_bytes_are_cut(
            frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
            cuts in prop::collection::vec(1usize..60, 1..50),
        ) {
            let mut wire = Vec::new();
            for (tag, body) in &frames {
                encode(*tag, &mut wire, |out| out.extend_from_slice(body));
            }
            let (mut decoder, mut seen, mut rest) = (Decoder::default(), Vec::new(), &wire[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                decoder.extend(piece);
                while let Some((tag, body)) = decoder.next().unwrap() {
                    seen.push((tag, body.to_vec()));
                }
                rest = after;
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn no_bytes_panic_or_are_kept_beyond_a_frame(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let mut decoder = Decoder::default();
            'stream: for piece in pieces {
                decoder.extend(&piece);
                loop {
                    match decoder.next() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
                prop_assert!(decoder.buffer.len() <= HEADER + BODY_MAX + 300);
            }
        }
    }
}
