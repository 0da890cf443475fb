//! Any bytes as a stream of frames, for either side.

use minivm_guest::channel::frame::Decoder;
use minivm_guest::channel::{ToGuest, ToHost};

pub(crate) fn run(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else {
        return;
    };
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(usize::from(cut) + 1) {
        decoder.extend(piece);
        loop {
            match decoder.next() {
                Ok(Some((tag, body))) => {
                    let _ = ToHost::decode(tag, body);
                    let _ = ToGuest::decode(tag, body);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
