//! The devices behind the guest's I/O ports and memory-mapped registers: two UARTs, an IOAPIC, two ports that end the
//! machine. Nothing else.

pub(crate) mod bus;
pub(crate) mod uart;
