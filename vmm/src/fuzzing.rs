//! The entries of the fuzz targets for what this crate doesn't show, which its property tests share. Each takes any bytes, and panics where
//! it finds a fault.

pub use crate::arch::fuzzing::*;
pub use crate::devices::uart::model::run as uart;
use crate::snapshot::file;

/// Reads a state file with these bytes for a body and a checksum that is right. A state that is taken makes sense, and is written as it
/// was read.
pub fn state(body: &[u8]) {
    let file = file::with_body(body);
    if let Ok(state) = file::decode(&file) {
        assert_eq!(state.check(), Ok(()));
        let again = file::decode(&file::encode(&state)).expect("it was taken before");
        assert_eq!(file::encode(&again), file::encode(&state));
    }
}

#[cfg(test)]
mod tests {
    use minivm_tests::mutation::try_out;
    use minivm_tests::stress;
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::state::State;

    #[test]
    fn states_are_taken_or_refused() {
        let good = file::encode(&State::sample())[48..].to_vec();
        try_out(state, &[good], "", stress::count(1000, 1_000_000));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(stress::count(400, 100_000)))]

        #[test]
        fn a_uart_does_what_its_model_does(steps in prop::collection::vec(any::<u8>(), 0..400)) {
            uart(&steps);
        }
    }
}
