//! The devices that every machine has: UARTs, and the buses that lead to devices. What else there is, is below `arch`.

pub(crate) mod bus;
pub(crate) mod uart;
